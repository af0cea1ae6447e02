"""Callbacks of a run: transformers' `TrainerCallback` with the state and the flags that it expects."""

from gvpo.callbacks.events import Events

__all__ = ["Events"]
