"""One step of the learner: which passes it makes, and what they attach to the rows."""
