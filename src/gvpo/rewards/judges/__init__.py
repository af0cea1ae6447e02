"""Judges: language models at a chat endpoint that score completions."""
