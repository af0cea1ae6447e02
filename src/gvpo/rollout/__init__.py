"""Rollouts: the sources of the groups of a step."""
