"""The engine that samples for a run: how it is opened, how it gets new weights, and how it is checked at the start."""
