"""One step of the learner: its forward passes, and the values that they attach to the rows."""
