"""Mixtures of experts: routing is recorded, compared and replayed, and the experts' load is balanced."""
