"""Code: the formats in which datasets write tests, and the rewards that run them in the sandbox."""
