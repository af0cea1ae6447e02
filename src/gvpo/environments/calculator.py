"""A calculator that the policy calls step by step.

    prompt 4-2*7?   policy 4-2;   tool 2|   policy 2*7;   tool 14|   policy =14.

Expressions are computed from left to right, modulo 100. The tool computes what it is asked, whether or not it is the
right call, and says `!|` to what it cannot read.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

from gvpo.environments.base import EnvironmentSpec, Turn
from gvpo.errors import EpisodeError

MODULUS = 100
UNREADABLE = "!|"
"""Text of the tool after a call that it cannot read."""
_CALL = re.compile(r"(\d{1,2})([-+*])(\d{1,2})")
_EXPRESSION = re.compile(r"\d{1,2}([-+*]\d{1,2})+")


def result_of(call: str) -> int | None:
    """Return the result of one operation, such as `14` for "2*7"; None if the call cannot be read."""
    found = _CALL.fullmatch(call)
    if found is None:
        return None
    left, sign, right = int(found[1]), found[2], int(found[3])
    return {"+": left + right, "-": left - right, "*": left * right}[sign] % MODULUS


def calls_of(expression: str) -> list[str]:
    """Return the right calls for an expression, in order: ["4-2", "2*7"] for "4-2*7".

    Raises:
        EpisodeError: If it is not an expression of one operation or more.
    """
    if not isinstance(expression, str) or not _EXPRESSION.fullmatch(expression):
        raise EpisodeError(f"the calculator needs the column `expression`, such as 4-2*7; it is {expression!r}")
    value, *operations = re.findall(r"(?:^|[-+*])\d+", expression)
    calls = []
    for operation in operations:
        calls.append(f"{value}{operation}")
        value = str(result_of(calls[-1]))
    return calls


class Calculator:
    """Computes the calls of the policy, and ends the episode with its answer.

    Args:
        step_reward: Reward of a call that is the right next one; none is rewarded twice.
        answer_reward: Reward of the right answer.
    """

    def __init__(self, *, step_reward: float = 0.25, answer_reward: float = 1.0) -> None:
        self._step_reward, self._answer_reward = step_reward, answer_reward
        self._left: Sequence[str] = ()
        self._answer = ""

    def reset(self, *, seed: int, expression: str = "", **_: Any) -> None:
        """Begin with the `expression` of a problem."""
        self._left = calls_of(expression)
        self._answer = f"={result_of(self._left[-1])}"

    def step(self, text: str) -> Turn:
        """Answer a call such as `4-2;`, or judge an answer such as `=14.`."""
        said = text.strip().rstrip(";.")
        if said.startswith("="):
            return Turn(reward=self._answer_reward * (said == self._answer), done=True)
        result = result_of(said)
        if result is None:
            return Turn(UNREADABLE, 0.0)
        is_next = said in self._left[:1]
        self._left = self._left[is_next:]
        return Turn(f"{result}|", self._step_reward * is_next)


def calculator(*, step_reward: float = 0.25, answer_reward: float = 1.0) -> EnvironmentSpec:
    """Return the environment; see `Calculator` for the options."""
    make = functools.partial(Calculator, step_reward=step_reward, answer_reward=answer_reward)
    return EnvironmentSpec("calculator", make)
