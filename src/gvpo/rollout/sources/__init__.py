"""Where the groups of each step come from: one file per source, and the protocol that they share in `base`."""
