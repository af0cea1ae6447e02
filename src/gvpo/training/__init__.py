"""Training: from settings, a model and data to a finished run."""
