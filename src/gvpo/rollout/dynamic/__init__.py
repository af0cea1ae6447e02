"""Choices that follow the rewards of a run: which prompts are drawn, and which groups are left out or replaced."""
