"""Code: the forms in which data sets write tests, and the rewards that run them in the sandbox."""
