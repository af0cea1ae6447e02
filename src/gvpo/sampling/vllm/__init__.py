"""vLLM as the sampling engine: requests and their results, the engine in this process, and weights for servers."""
