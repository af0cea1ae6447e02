"""Attention for the layouts in which completions share a prompt."""
