"""Given rows: completions of a group that the policy does not sample in the step (history, logged, expert)."""
