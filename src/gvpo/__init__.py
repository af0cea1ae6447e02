"""gvpo."""
