"""Attention for layouts in which completions share a prompt."""
