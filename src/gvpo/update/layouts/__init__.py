"""Layouts: how prompts and completions are arranged in the micro-batches of an update."""
