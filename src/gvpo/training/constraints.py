"""Inputs of an objective besides rewards: segments of completions, and costs with their multipliers."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from gvpo.config import TrainConfig
from gvpo.errors import RewardError
from gvpo.objectives import ObjectiveOutput, updated_multipliers
from gvpo.rollout.collect import Rollout
from gvpo.types import Completion, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MULTIPLIER_RATE = 0.1


def with_inputs(rollout: Rollout, config: TrainConfig, tokenizer: "PreTrainedTokenizerBase") -> Rollout:
    """Return the rollout with the inputs of the settings' objective in the completions' extras.

    Raises:
        RewardError: If no completion has one of the costs.
    """
    if config.segment_at is not None:
        rollout = _with_segments(rollout, config.segment_at, tokenizer)
    if config.costs is not None:
        _require_costs(rollout, list(config.costs))
        rollout = _with_costs(rollout, list(config.costs))
    return rollout


def segments(tokens: Sequence[int], ends: Callable[[int], bool]) -> list[int]:
    """Return the number of each token's segment, from 0; a token for which `ends` is true ends its segment."""
    found, number = [], 0
    for token in tokens:
        found.append(number)
        number += ends(token)
    return found


class Constraints:
    """Limits on the means of costs, and the multipliers that enforce them.

    Args:
        limits: Limit of each cost's mean, by the name of its reward function.
        rate: Step size of the multipliers' ascent.

    Attributes:
        multipliers: Multipliers by name, as the next updates use them; 0 at the start.
    """

    def __init__(self, limits: Mapping[str, float], rate: float) -> None:
        self._limits, self._rate = dict(limits), rate
        self.multipliers = dict.fromkeys(self._limits, 0.0)

    @classmethod
    def of(cls, config: TrainConfig) -> "Constraints | None":
        """Return the constraints of the settings, or None without costs."""
        if config.costs is None:
            return None
        return cls(config.costs, MULTIPLIER_RATE if config.multiplier_rate is None else config.multiplier_rate)

    def bound(self, objective: Callable[..., ObjectiveOutput]) -> Callable[..., ObjectiveOutput]:
        """Return the objective with the current multipliers, in the order of the limits."""
        return functools.partial(objective, multipliers=[self.multipliers[name] for name in self._limits])

    def ascend(self, rollout: Rollout) -> dict[str, float]:
        """Update the multipliers with the costs of a step's completions.

        Returns:
            The metrics `multiplier/NAME`, with the values that the step's updates used.
        """
        used = {f"multiplier/{name}": value for name, value in self.multipliers.items()}
        rates = [fmean(_values(rollout, name)) for name in self._limits]
        moved = updated_multipliers(
            [self.multipliers[name] for name in self._limits],
            rates=rates,
            limits=list(self._limits.values()),
            rate=self._rate,
        )
        self.multipliers = dict(zip(self._limits, moved, strict=True))
        return used


def _with_segments(rollout: Rollout, text: str, tokenizer: "PreTrainedTokenizerBase") -> Rollout:
    ends = functools.cache(lambda token: text in tokenizer.decode([token]))

    def changed(row: Completion) -> Completion:
        return dataclasses.replace(row, extras={**row.extras, "segments": segments(row.tokens, ends)})

    groups = [
        dataclasses.replace(group, completions=[changed(row) for row in group.completions]) for group in rollout.groups
    ]
    return dataclasses.replace(rollout, groups=groups)


def _require_costs(rollout: Rollout, names: Sequence[str]) -> None:
    for name in names:
        if not _values(rollout, name):
            raise RewardError(
                f"no completion of this step has the cost {name!r}; a reward function of that name must return it"
            )


def _values(rollout: Rollout, name: str) -> list[float]:
    """Return the values of a cost for the completions that have one."""
    verdicts = [verdict for group in rollout.verdicts for verdict in group]
    return [value for verdict in verdicts if (value := verdict.parts.get(name)) is not None]


def _with_costs(rollout: Rollout, names: Sequence[str]) -> Rollout:
    """Return the rollout with costs on each row. A row without a cost gets no reward and is dropped."""
    verdicts = [[_judged(verdict, names) for verdict in group] for group in rollout.verdicts]

    def changed(row: Completion, verdict: Verdict) -> Completion:
        costs = [verdict.parts.get(name) for name in names]
        return dataclasses.replace(row, reward=verdict.reward, extras={**row.extras, "costs": costs})

    groups = [
        dataclasses.replace(group, completions=[changed(*pair) for pair in zip(group.completions, judged, strict=True)])
        for group, judged in zip(rollout.groups, verdicts, strict=True)
    ]
    return dataclasses.replace(rollout, groups=groups, verdicts=verdicts)


def _judged(verdict: Verdict, names: Sequence[str]) -> Verdict:
    missing = next((name for name in names if verdict.parts.get(name) is None), None)
    if missing is None or verdict.reward is None:
        return verdict
    return dataclasses.replace(verdict, reward=None, reason=f"missing cost: {missing} has no value")
