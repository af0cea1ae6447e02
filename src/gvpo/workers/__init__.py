"""Worker processes that can be killed: calls with deadlines, whatever the called functions do."""
