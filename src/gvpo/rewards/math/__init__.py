"""Mathematical answers: parse them, evaluate them, and decide whether two are the same."""
