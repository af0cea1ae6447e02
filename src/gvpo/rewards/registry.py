"""The registry of rewards by name, as recipes write them."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from gvpo.errors import RewardError, type_of
from gvpo.nearest import did_you_mean
from gvpo.rewards.base import RewardFunc, blames_text
from gvpo.rewards.code.code import code_reward, code_tests
from gvpo.rewards.judges.judge import judge
from gvpo.rewards.math.math_answer import math_answer
from gvpo.rewards.verifiers.addition import addition_slip, addition_steps
from gvpo.rewards.verifiers.boxed import boxed_answer
from gvpo.rewards.verifiers.calculator import calculator
from gvpo.rewards.verifiers.choice import multiple_choice
from gvpo.rewards.verifiers.countdown import countdown
from gvpo.rewards.verifiers.exact import exact_match
from gvpo.rewards.verifiers.format import boxed_format, regex_format
from gvpo.rewards.verifiers.gsm8k import gsm8k
from gvpo.rewards.verifiers.ifeval import ifeval, ifeval_loose, ifeval_share
from gvpo.rewards.verifiers.json_format import json_fields, json_format, json_match
from gvpo.rewards.verifiers.length import length_penalty, token_cost
from gvpo.rewards.verifiers.number import number_match
from gvpo.rewards.verifiers.reasoning_gym import reasoning_gym
from gvpo.rewards.verifiers.refusal import over_refusal, refusal
from gvpo.rewards.verifiers.repetition import repetition_penalty
from gvpo.rewards.verifiers.text import text_f1, text_match
from gvpo.user_code import UserCode

CODE = UserCode("reward", RewardError)
"""Loads users' rewards."""

REWARDS: dict[str, RewardFunc] = {
    "addition_slip": addition_slip,
    "addition_steps": addition_steps,
    "boxed_answer": boxed_answer,
    "boxed_format": boxed_format,
    "calculator": calculator,
    "code_tests": code_tests,
    "countdown": countdown,
    "exact_match": exact_match,
    "gsm8k": gsm8k,
    "ifeval": ifeval,
    "ifeval_loose": ifeval_loose,
    "ifeval_share": ifeval_share,
    "json_format": json_format,
    "json_match": json_match,
    "math_answer": math_answer,
    "multiple_choice": multiple_choice,
    "number_match": number_match,
    "over_refusal": over_refusal,
    "reasoning_gym": reasoning_gym,
    "refusal": refusal,
    "text_f1": text_f1,
    "text_match": text_match,
    "token_cost": token_cost,
}
"""The built-in rewards that need no settings."""

WORST = {"addition_slip": 1.0, "over_refusal": -1.0}
"""The value of a completion that a built-in reward cannot finish, if it is not 0 (`blames_text`)."""

CONTROL = {
    "boxed_answer": r"\boxed{0}",
    "calculator": "=0.",
    "code_tests": "pass",
    "countdown": r"\boxed{0}",
    "gsm8k": "#### 0",
    "math_answer": r"\boxed{0}",
    "number_match": "0",
}
"""The harmless completion that makes a built-in reward read the row's columns, if the empty one does not."""

for _name in REWARDS.keys() - {"token_cost"}:  # token_cost reads no text
    blames_text(REWARDS[_name], WORST.get(_name, 0.0), CONTROL.get(_name, ""))

Maker = Callable[..., RewardFunc]
"""A function that returns a reward for given options."""

MAKERS: dict[str, Maker] = {
    "code_reward": code_reward,
    "json_fields": json_fields,
    "judge": judge,
    "length_penalty": length_penalty,
    "regex_format": regex_format,
    "repetition_penalty": repetition_penalty,
}
"""The built-in rewards that are created from options."""

REWARD_MODEL = "reward_model"
"""Name of the reward that is a model; its maker is in `gvpo.rollout.rewards`, because it needs torch."""


def load(name: str, options: Mapping[str, Any] | None = None, *, makers: Mapping[str, Maker] = MAKERS) -> RewardFunc:
    """Return the reward function with a name.

    Args:
        name: A key of `REWARDS` or of `makers`, `package.module:function` (also searched in the working directory), or
            `path/to/file.py:function`.
        options: Arguments of a maker. A function of a module or a file is a maker if it has options; a class always is.
        makers: Makers that have a name.

    Returns:
        The function.

    Raises:
        RewardError: If no reward has that name, its module cannot be imported, or its options do not fit.
    """
    if name in makers:
        return _made(name, makers[name], options or {})
    found = _named(name, makers)
    if options is None:
        return _made(name, found, {}) if isinstance(found, type) else found
    if name in REWARDS:
        raise RewardError(f"the reward {name!r} accepts no options; those that do are {', '.join(makers)}")
    return _made(name, found, options)


def require_named(name: str) -> None:
    """Check that a built-in reward or a file has this name, without importing the file; modules are not looked up.

    Raises:
        RewardError: If there is none.
    """
    place, colon, _ = name.rpartition(":")
    if colon and place.endswith(".py"):
        CODE.existing(place, name)
    elif not colon and name not in MAKERS and name != REWARD_MODEL:
        _built_in(name, [*MAKERS, REWARD_MODEL])


def is_model_name(name: str) -> bool:
    """Return whether the name of a reward is the directory or Hub ID of a reward model, and not that of a function."""
    return "/" in name and ":" not in name and not name.endswith(".py")


def needs_options(name: str) -> bool:
    """Return whether a built-in reward requires options."""
    parameters = inspect.signature(MAKERS[name]).parameters.values() if name in MAKERS else ()
    return any(one.default is one.empty and one.kind is not one.VAR_KEYWORD for one in parameters)


def _made(name: str, maker: Callable[..., Any], options: Mapping[str, Any]) -> RewardFunc:
    made = CODE.make(name, maker, options)
    if not callable(made):
        raise RewardError(f"{name!r} returned {type_of(made)} for its options; it must return a reward function")
    reward: RewardFunc = made
    return reward


def _named(name: str, makers: Mapping[str, Maker]) -> RewardFunc:
    return CODE.load(name) if ":" in name else _built_in(name, makers)


def _built_in(name: str, makers: Collection[str]) -> RewardFunc:
    if name.endswith(".py"):
        raise RewardError(f"reward {name!r} is a file; name its function too, {name}:FUNCTION")
    if name not in REWARDS:
        known = sorted([*REWARDS, *makers])
        raise RewardError(
            f"there is no reward {name!r}{did_you_mean(name, known)}; choose one of {', '.join(known)}, "
            "or give module:function or file.py:function"
        )
    return REWARDS[name]
