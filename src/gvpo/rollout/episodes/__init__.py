"""Episodes: the policy and an environment speak in turns, and each episode becomes one completion."""
