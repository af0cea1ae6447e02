"""A question of reasoning-gym with several tries (`pip install 'gvpo[reasoning-gym]'`)."""

import json
from functools import partial
from typing import Any

from gvpo.environments.base import EnvironmentSpec, Turn
from gvpo.errors import EpisodeError
from gvpo.rewards.verifiers.reasoning_gym import AGAIN, score


class Tries:
    """Scores answers to a question of the task `reasoning_gym`, and asks for another one while they are wrong.

    The last try gets the reward: its score times discount^(tries before it).

    Args:
        tries: Maximum number of tries.
        again: Text after a wrong answer.
        discount: Factor of the reward per further try.
    """

    def __init__(self, tries: int, again: str, discount: float) -> None:
        self._most, self._again, self._discount = tries, again, discount

    def reset(self, *, seed: int, **columns: Any) -> None:
        """Begin with the question of the prompt."""
        if not {"dataset", "options", "item"} <= set(columns):
            raise EpisodeError("the row is not of reasoning-gym; set data.task='reasoning_gym'")
        self._asked = (columns["dataset"], json.loads(columns["options"]), columns["item"])
        self._done = 0

    def step(self, text: str) -> Turn:
        """Score an answer."""
        value = score(*self._asked, text)
        self._done += 1
        if value < 1 and self._done < self._most:
            return Turn(self._again)
        return Turn("", value * self._discount ** (self._done - 1), done=True, metrics={"tries": self._done})


def reasoning_gym(tries: int = 2, again: str = AGAIN, discount: float = 1.0) -> EnvironmentSpec:
    """Return the environment of the task `reasoning_gym`, whose rows it reads.

    Args:
        tries: Maximum number of tries per question.
        again: Text that the policy hears after a wrong answer.
        discount: Factor of the reward per further try, from 0 to 1.

    Raises:
        EpisodeError: If an option is out of range.
    """
    if tries < 1 or not again or not 0 <= discount <= 1:
        raise EpisodeError(
            "the environment 'reasoning_gym' needs tries of at least 1, a text in again, and discount from 0 to 1"
        )
    return EnvironmentSpec("reasoning_gym", partial(Tries, tries, again, discount))
