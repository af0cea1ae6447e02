"""The rewards of an environment's turns as a reward of the episode, in addition to those of reward functions."""

from collections.abc import Sequence
from typing import Any, Literal

from gvpo.environments.base import EnvironmentSpec
from gvpo.types import ENDINGS, EpisodeTurn, Verdict

ENVIRONMENT = "environment"
"""Name of this reward."""
UNANSWERED = ("timeout", "died", *ENDINGS)
"""Outcomes of a turn that the environment did not answer."""


class EnvironmentReward:
    """The reward of episodes from the rewards of their turns. It runs in the trainer's process.

    An episode without any reward gets the environment's lowest one, so that a policy cannot avoid a bad reward by never
    finishing. So does an episode with a turn that had no answer, if that is blamed on the policy's text; its reward is
    the sum of its turns' rewards if that is even lower. If the environment is blamed, an episode whose last turn had no
    answer has no reward. An episode that is gone because of another one, or never began, has none either. That also
    holds for an environment that pays nothing, whose other episodes are left to the reward functions.

    Args:
        spec: The environment.
        of: "sum" of the turns' rewards, or the "last" of them.
    """

    def __init__(self, spec: EnvironmentSpec, of: Literal["sum", "last"]) -> None:
        self.__name__, self._spec, self._of = ENVIRONMENT, spec, of

    def identity(self) -> Any:
        """Return what determines its rewards."""
        return self._spec.make

    def __call__(self, turns: Sequence[Sequence[EpisodeTurn]] = (), **_: Any) -> list[float | None]:
        """Return one value per episode."""
        return [verdict.reward for verdict in self.verdicts(turns)]

    def verdicts(self, turns: Sequence[Sequence[EpisodeTurn]] = (), **_: Any) -> list[Verdict]:
        """Return one verdict per episode."""
        return [self._verdict(each) for each in turns]

    def _verdict(self, turns: Sequence[EpisodeTurn]) -> Verdict:
        last = turns[-1] if turns else EpisodeTurn(0, 0, 0)
        rewards = [turn.reward for turn in turns if turn.reward is not None]
        is_texts_fault = last.outcome != "gone" and any(self._is_texts_fault(turn) for turn in turns)
        if last.outcome in UNANSWERED and not is_texts_fault:
            return Verdict(None, reason=f"{last.outcome}: {last.detail}")
        if not self._spec.pays:
            return Verdict(None)
        if is_texts_fault:
            return Verdict(min(self._spec.worst, sum(rewards)))
        if not rewards:
            return Verdict(self._spec.worst)
        return Verdict(sum(rewards) if self._of == "sum" else rewards[-1])

    def _is_texts_fault(self, turn: EpisodeTurn) -> bool:
        """Return whether the policy's text is to blame for a turn without an answer."""
        return self._spec.blames == "text" and turn.stop > 0 and turn.outcome in UNANSWERED and turn.outcome != "gone"
