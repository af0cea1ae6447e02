"""Rollouts: where the groups of a step come from."""
