"""Environments of other libraries and of plain functions, one per file. What they need is imported when it is used."""
