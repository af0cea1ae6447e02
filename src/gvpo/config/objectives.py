"""The objectives that settings can name: the place of each function, what it learns from and what it needs.

This table does not import torch, so settings can be checked and documented without it. The functions are in
`gvpo.objectives`, and `tests/objectives/test_registry.py` compares each entry with the signature of its function.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from gvpo import lazy
from gvpo.errors import ConfigError

if TYPE_CHECKING:
    from gvpo.objectives import ObjectiveOutput

PREFIX = "python:"
"""Beginning of the name of an objective that is passed as a function, which no entry of the table has."""

INPUT_OF = {"segment_at": "segments", "costs": "costs", "multiplier_rate": "costs", "teacher": "teacher_logprobs"}
"""Settings from which the trainer computes an input of the objective, with the name of the input."""


@dataclass(frozen=True)
class ObjectiveSpec:
    """An objective as far as it is known before its function is called.

    Args:
        function: Place of the function, "module:function", or a function that is given in Python.
        summary: Short description.
        paper: arXiv number of its paper.
        learns_from: "groups" of completions with rewards, written "answers", or "pairs": one chosen answer per prompt
            and the answers that it is compared with.
        needs: Inputs that the function requires besides log-probs, mask and group.
        keywords: Keywords of the function that settings can bind, with their defaults.
        min_group: Smallest number of completions in a group.
        needs_support: True if its optimum is unique only if the samples cover the reference policy.
        at_reference: Description of the objective that it equals as long as the policy equals its reference, if any.
        token_advantages: True if it accepts an advantage per token in place of those that it computes from rewards.
    """

    function: "str | Callable[..., ObjectiveOutput]"
    summary: str
    paper: str
    learns_from: Literal["groups", "answers", "pairs"] = "groups"
    needs: tuple[str, ...] = ("rewards",)
    keywords: Mapping[str, Any] = field(default_factory=dict)
    min_group: int = 2
    needs_support: bool = False
    at_reference: str | None = None
    token_advantages: bool = False

    def load(self) -> "Callable[..., ObjectiveOutput]":
        """Return the function; import it if its place is known."""
        if not isinstance(self.function, str):
            return self.function
        function: Callable[..., ObjectiveOutput] = lazy.named(self.function)
        return function

    def takes(self, setting: str) -> bool:
        """Return whether a setting changes this objective: it is a keyword, or an input is computed from it."""
        return setting in self.keywords or INPUT_OF.get(setting) in self.needs

    def bound(self, settings: object) -> dict[str, Any]:
        """Return its keywords with the values that are set, and its own defaults for all others."""
        return {**self.keywords, **self.set_by(settings)}

    @property
    def needs_rewards(self) -> bool:
        """Return whether rows without a reward are left out, if rows have rewards."""
        return "rewards" in self.needs or self.learns_from != "groups"

    def set_by(self, settings: object) -> dict[str, Any]:
        """Return the keywords that are set in `settings`, which has them as attributes."""
        found = {key: getattr(settings, key) for key in self.keywords}
        return {key: value for key, value in found.items() if value is not None}

    def reads_reference(self, keywords: Mapping[str, Any]) -> bool:
        """Return whether it reads the reference's log-probs; some objectives do only for a KL term."""
        return "ref_logprobs" in self.needs or (keywords.get("kl_coef") or 0.0) > 0

    def preset(self, function: str, *, summary: str, paper: str, **keywords: Any) -> "ObjectiveSpec":
        """Return the entry of the same objective with other defaults."""
        defaults = {**self.keywords, **keywords}
        return dataclasses.replace(self, function=function, summary=summary, paper=paper, keywords=defaults)


_GRPO = ObjectiveSpec(
    "gvpo.objectives.grpo:grpo",
    summary="clipped ratio times the group's standardised advantage",
    paper="2402.03300",
    needs=("old_logprobs", "rewards"),
    keywords={
        "clip_low": 0.2,
        "clip_high": 0.2,
        "scale_rewards": True,
        "baseline": "mean",
        "reduction": "sequence_mean",
        "max_length": None,
        "kl_coef": 0.0,
        "is_cap": None,
    },
    token_advantages=True,
)
_GSPO = ObjectiveSpec(
    "gvpo.objectives.gspo:gspo",
    summary="GRPO with one ratio per completion",
    paper="2507.18071",
    needs=("old_logprobs", "rewards"),
    keywords={"clip_low": 3e-4, "clip_high": 4e-4, "scale_rewards": True},
)

_REGRESSION = ObjectiveSpec(
    "gvpo.objectives.regression:regression",
    summary="GVPO's loss, and an anchor for the mean of each group",
    paper="2602.05933",
    needs=("ref_logprobs", "rewards"),
    keywords={"beta": 0.1, "anchor": 0.0},
    needs_support=True,
    at_reference="beta times RLOO: beta only scales the gradient",
)

OBJECTIVES: dict[str, ObjectiveSpec] = {
    "gvpo": ObjectiveSpec(
        "gvpo.objectives.gvpo:gvpo",
        summary="match implicit rewards to rewards within a group",
        paper="2504.19599",
        needs=("ref_logprobs", "rewards"),
        keywords={"beta": 0.1, "variance_weight": 1.0, "covariance_weight": 1.0, "anchor": 0.0},
        needs_support=True,
        at_reference="beta times RLOO: beta only scales the gradient",
    ),
    "regression": _REGRESSION,
    "pmd_mean": _REGRESSION.preset(
        "gvpo.objectives.regression:pmd_mean",
        summary="policy mirror descent with the mean reward for log Z",
        paper="2501.12599",
        anchor=1.0,
    ),
    "grpo": _GRPO,
    "dr_grpo": _GRPO.preset(
        "gvpo.objectives.grpo:dr_grpo",
        summary="GRPO without std and without length normalisation",
        paper="2503.20783",
        scale_rewards=False,
        reduction="constant",
    ),
    "dapo": _GRPO.preset(
        "gvpo.objectives.grpo:dapo",
        summary="GRPO with a higher upper clip and a mean over all tokens",
        paper="2503.14476",
        clip_high=0.28,
        reduction="token_mean",
    ),
    "rloo": _GRPO.preset(
        "gvpo.objectives.grpo:rloo",
        summary="REINFORCE with a leave-one-out baseline",
        paper="2402.14740",
        clip_low=float("inf"),
        clip_high=float("inf"),
        scale_rewards=False,
        baseline="leave_one_out",
        reduction="constant",
        max_length=1,
    ),
    "cispo": ObjectiveSpec(
        "gvpo.objectives.cispo:cispo",
        summary="REINFORCE with clipped importance ratios as weights",
        paper="2506.13585",
        needs=("old_logprobs", "rewards"),
        keywords={
            "clip_low": 1.0,
            "clip_high": 4.0,
            "scale_rewards": True,
            "reduction": "token_mean",
            "max_length": None,
            "is_cap": None,
        },
        token_advantages=True,
    ),
    "gspo": _GSPO,
    "gspo_token": dataclasses.replace(
        _GSPO,
        function="gvpo.objectives.gspo:gspo_token",
        summary="GSPO with an advantage per token",
        token_advantages=True,
    ),
    "gsspo": ObjectiveSpec(
        "gvpo.objectives.gsspo:gsspo",
        summary="one ratio per segment: GRPO at one end, GSPO at the other",
        paper="2602.01202",
        needs=("old_logprobs", "rewards", "segments"),
        keywords={"clip_low": 0.2, "clip_high": 0.2, "scale_rewards": True},
        token_advantages=True,
    ),
    "constrained_grpo": ObjectiveSpec(
        "gvpo.objectives.constrained_grpo:constrained_grpo",
        summary="GRPO's reward against costs under limits",
        paper="2602.05863",
        needs=("old_logprobs", "rewards", "costs", "multipliers"),
        keywords={
            "clip_low": 0.2,
            "clip_high": 0.2,
            "reduction": "sequence_mean",
            "max_length": None,
            "reward_multiplier": 1.0,
            "is_cap": None,
        },
    ),
    "distill": ObjectiveSpec(
        "gvpo.objectives.distill:distill",
        summary="GVPO's loss with a teacher in place of rewards",
        paper="2504.19599",
        needs=("teacher_logprobs",),
        needs_support=True,
    ),
    "dpo": ObjectiveSpec(
        "gvpo.objectives.dpo:dpo_rows",
        summary="raise the better answer over the worse",
        paper="2305.18290",
        learns_from="pairs",
        needs=("ref_logprobs", "role"),
        keywords={"beta": 0.1},
    ),
    "epa": ObjectiveSpec(
        "gvpo.objectives.epa:epa_rows",
        summary="raise the chosen answer over strong and weak negatives together",
        paper="2412.13862",
        learns_from="pairs",
        needs=("ref_logprobs", "role"),
        keywords={"beta": 0.1, "weak_weight": 1.0},
    ),
    "poft": ObjectiveSpec(
        "gvpo.objectives.poft:poft",
        summary="make written answers more likely than aligned models do",
        paper="2412.12865",
        learns_from="answers",
        needs=("aligned_mean_logprobs",),
        min_group=1,
    ),
    "sft": ObjectiveSpec(
        "gvpo.objectives.sft:sft",
        summary="likelihood of written answers",
        paper="2203.02155",
        learns_from="answers",
        needs=(),
        keywords={"reduction": "token_mean"},
        min_group=1,
    ),
}
"""Objectives by the name that recipes use (`objective.name`)."""


def find_objective(name: str) -> ObjectiveSpec:
    """Return the entry of a name.

    Raises:
        ConfigError: If there is no such objective.
    """
    if name.startswith(PREFIX):
        raise ConfigError(f"objective.name={name!r} is a function; pass it to gvpo.Trainer as objective")
    if name not in OBJECTIVES:
        raise ConfigError(f"objective.name={name!r} does not exist; choose one of {', '.join(sorted(OBJECTIVES))}")
    return OBJECTIVES[name]


def learning_from(kind: str) -> list[str]:
    """Return the names of the objectives that learn from groups, answers or pairs."""
    return [name for name, spec in OBJECTIVES.items() if spec.learns_from == kind]


def crediting_turns() -> list[str]:
    """Return the names of the objectives that accept an advantage per turn."""
    return [name for name, spec in OBJECTIVES.items() if spec.token_advantages]


def taking(setting: str) -> list[str]:
    """Return the names of the objectives that a setting changes."""
    return [name for name, spec in OBJECTIVES.items() if spec.takes(setting)]
