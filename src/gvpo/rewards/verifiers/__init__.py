"""Verifiers: rewards that a program can compute from the text of a completion."""
