"""Sources of the groups of each step: one file per source, and their common protocol in `base`."""
