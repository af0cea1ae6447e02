"""The pool: reward functions run in workers, and their values become verdicts."""
