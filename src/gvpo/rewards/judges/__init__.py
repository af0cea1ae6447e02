"""Judges: language models behind a chat endpoint that score completions."""
