"""Matrix products on a CPU. It is imported on CPUs only, and it gains no features."""
