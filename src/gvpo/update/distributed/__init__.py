"""Several processes: ranks, and weights that are replicated or split over them."""
