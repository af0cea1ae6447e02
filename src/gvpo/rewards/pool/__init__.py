"""The reward pool: it runs reward functions in workers and combines their values into verdicts."""
