"""The update: everything between groups and gradients."""
