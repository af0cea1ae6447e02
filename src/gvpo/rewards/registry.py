"""Rewards by name, as recipes write them."""

import difflib
import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import cloudpickle

from gvpo.errors import RewardError
from gvpo.rewards.addition import addition_steps
from gvpo.rewards.base import RewardFunc
from gvpo.rewards.boxed import boxed_answer
from gvpo.rewards.code import code_tests
from gvpo.rewards.countdown import countdown
from gvpo.rewards.exact import exact_match
from gvpo.rewards.format import boxed_format
from gvpo.rewards.gsm8k import gsm8k
from gvpo.rewards.length import token_cost
from gvpo.rewards.math_answer import math_answer
from gvpo.rewards.number import number_match

REWARDS: dict[str, RewardFunc] = {
    "addition_steps": addition_steps,
    "boxed_answer": boxed_answer,
    "boxed_format": boxed_format,
    "code_tests": code_tests,
    "countdown": countdown,
    "exact_match": exact_match,
    "gsm8k": gsm8k,
    "math_answer": math_answer,
    "number_match": number_match,
    "token_cost": token_cost,
}
"""The built-in rewards that need no settings."""


def load(name: str) -> RewardFunc:
    """The reward function of a name.

    Args:
        name: a key of `REWARDS`, `package.module:function` (looked for in the working directory too), or
            `path/to/file.py:function`.

    Returns:
        The function.

    Raises:
        RewardError: there is none of that name, or its module cannot be imported.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon:
        return _built_in(name)
    if not place.strip(".") or not attribute:
        raise RewardError(f"reward {name!r} is not a name; write module:function or file.py:function")
    module = _file(Path(place), name) if place.endswith(".py") else _module(place, name)
    function = getattr(module, attribute, None)
    if not callable(function):
        near = _nearest(attribute, [key for key, value in vars(module).items() if callable(value)])
        raise RewardError(f"reward {name!r}: {place} has no function {attribute!r}{near}")
    return function  # type: ignore[no-any-return]  # any callable may be a reward


def _built_in(name: str) -> RewardFunc:
    if name.endswith(".py"):
        raise RewardError(f"reward {name!r} is a file; name its function too, {name}:FUNCTION")
    if name not in REWARDS:
        near = _nearest(name, REWARDS)
        raise RewardError(
            f"there is no reward {name!r}{near}; choose one of {', '.join(REWARDS)}, "
            "or give module:function or file.py:function"
        )
    return REWARDS[name]


def _nearest(name: str, names: "list[str] | dict[str, RewardFunc]") -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _module(place: str, name: str) -> ModuleType:
    _make_importable(Path.cwd())
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise _cannot_import(name, place, error) from error


def _file(path: Path, name: str) -> ModuleType:
    """The module of a file; its functions travel to the workers by value, as those could not import it by name."""
    path = path.expanduser().resolve()
    if not path.is_file():
        raise RewardError(f"reward {name!r}: there is no file {path}; correct the path")
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


def _cannot_import(name: str, place: str | Path, error: BaseException) -> RewardError:
    what = f"{type(error).__name__}: {error}".replace("\n", " ")
    return RewardError(f"reward {name!r}: {place} cannot be imported: {what}")


def _make_importable(directory: Path) -> None:
    """Append to the import path, last so that nothing installed is shadowed; the workers get the same path."""
    if str(directory) not in sys.path:
        sys.path.append(str(directory))
