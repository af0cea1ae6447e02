"""Worker processes that can be killed: calls have deadlines, regardless of what the called functions do."""
