"""Rewards with a state or on whole batches, in a module that workers and forked runs can import."""

from collections import Counter
from typing import Any

import gvpo


@gvpo.reward(stateful=True)
class Novelty:
    """A reward of 1 over the number of times that a text was seen, in all steps so far."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def __call__(self, completions: Any, **_: Any) -> list[float]:
        """Count each text, and return its reward."""
        values = []
        for text in completions:
            self.seen[text] += 1
            values.append(1.0 / self.seen[text])
        return values

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from stored counts."""
        self.seen = state["seen"]


@gvpo.reward(batch=True)
def rarity(completions: Any, **_: Any) -> list[float]:
    """Return how rare a text is among all rows of the step."""
    counts = Counter(completions)
    return [1.0 / counts[text] for text in completions]
