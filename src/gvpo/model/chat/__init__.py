"""What chat templates get besides messages."""
