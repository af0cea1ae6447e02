"""Mixtures of experts: routing is recorded, compared and replayed, and its load is balanced."""
