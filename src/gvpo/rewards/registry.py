"""The registry of rewards by name, as recipes write them."""

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from gvpo.errors import RewardError, type_of
from gvpo.nearest import did_you_mean
from gvpo.rewards.base import RewardFunc, blames_text
from gvpo.rewards.code.code import code_reward, code_tests
from gvpo.rewards.judges.judge import judge
from gvpo.rewards.math.math_answer import math_answer
from gvpo.rewards.verifiers.addition import addition_slip, addition_steps
from gvpo.rewards.verifiers.boxed import boxed_answer
from gvpo.rewards.verifiers.choice import multiple_choice
from gvpo.rewards.verifiers.countdown import countdown
from gvpo.rewards.verifiers.exact import exact_match
from gvpo.rewards.verifiers.format import boxed_format, regex_format
from gvpo.rewards.verifiers.gsm8k import gsm8k
from gvpo.rewards.verifiers.ifeval import ifeval, ifeval_loose, ifeval_share
from gvpo.rewards.verifiers.json_format import json_fields, json_format, json_match
from gvpo.rewards.verifiers.length import length_penalty, token_cost
from gvpo.rewards.verifiers.number import number_match
from gvpo.rewards.verifiers.refusal import over_refusal, refusal
from gvpo.rewards.verifiers.repetition import repetition_penalty
from gvpo.rewards.verifiers.text import text_f1, text_match

REWARDS: dict[str, RewardFunc] = {
    "addition_slip": addition_slip,
    "addition_steps": addition_steps,
    "boxed_answer": boxed_answer,
    "boxed_format": boxed_format,
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
        _existing(place, name)
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
    try:
        inspect.signature(maker).bind(**options)
    except TypeError as error:
        takes = ", ".join(inspect.signature(maker).parameters)
        raise RewardError(f"the options of the reward {name!r} do not fit: {error}; it accepts {takes}") from None
    except ValueError:
        pass  # its signature cannot be read
    try:
        made = maker(**options)
    except (TypeError, ValueError) as error:
        raise RewardError(f"the options of the reward {name!r} do not fit: {error}") from error
    if not callable(made):
        raise RewardError(f"{name!r} returned {type_of(made)} for its options; it must return a reward function")
    reward: RewardFunc = made
    return reward


def _named(name: str, makers: Mapping[str, Maker]) -> RewardFunc:
    place, colon, attribute = name.rpartition(":")
    if not colon:
        return _built_in(name, makers)
    if not place.strip(".") or not attribute:
        raise RewardError(f"reward {name!r} is not a name; write module:function or file.py:function")
    module = _file(Path(place), name) if place.endswith(".py") else _module(place, name)
    function = getattr(module, attribute, None)
    if not callable(function):
        near = did_you_mean(attribute, [key for key, value in vars(module).items() if callable(value)])
        raise RewardError(f"reward {name!r}: {place} has no function {attribute!r}{near}")
    return function  # type: ignore[no-any-return]  # any callable may be a reward


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


def _module(place: str, name: str) -> ModuleType:
    _make_importable(Path.cwd())
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise _cannot_import(name, place, error) from error


def _file(path: Path, name: str) -> ModuleType:
    """Import a file as a module. Its functions are pickled by value, since workers cannot import it by name."""
    path = _existing(path, name)
    known = f"gvpo_reward_{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    if known in sys.modules:
        return sys.modules[known]
    _make_importable(path.parent)
    spec = importlib.util.spec_from_file_location(known, path)
    if spec is None or spec.loader is None:
        raise RewardError(f"reward {name!r}: {path} is not a Python file")
    module = sys.modules[known] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[known]
        raise _cannot_import(name, path, error) from error
    cloudpickle.register_pickle_by_value(module)
    return module


def _existing(path: str | Path, name: str) -> Path:
    path = Path(path).expanduser().resolve()
    if not path.is_file():
        raise RewardError(f"reward {name!r}: there is no file {path}; correct the path")
    return path


def _cannot_import(name: str, place: str | Path, error: BaseException) -> RewardError:
    what = f"{type(error).__name__}: {error}".replace("\n", " ")
    return RewardError(f"reward {name!r}: {place} cannot be imported: {what}")


def _make_importable(directory: Path) -> None:
    """Append to the import path, at the end so that it shadows no installed module; the workers use the same path."""
    if str(directory) not in sys.path:
        sys.path.append(str(directory))
