"""Several processes: ranks, and weights that are replicated or sharded."""
