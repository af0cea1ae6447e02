"""Data sets of reasoning-gym (`pip install 'gvpo[reasoning-gym]'`): their items, and their scores of answers.

A row names its item by the data set, its settings and a number; workers make the item again, since its metadata is not
always JSON. The answer of a completion is its last <answer>...</answer>; without a tag, the whole text.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from gvpo.errors import ConfigError, one_line
from gvpo.nearest import did_you_mean
from gvpo.rewards.base import Answer, completion_text

INSTALL = "reasoning-gym is not installed; run pip install 'gvpo[reasoning-gym]'"
AGAIN = "That is not right. Try again."
"""Text that asks for another answer, in the environment and in demonstrations."""
BLOCK = 500
"""Number of items that a data set makes with one seed; item n is made with the seed n // BLOCK * BLOCK."""
BLOCKS = 2**31 // BLOCK
"""Number of seeds."""

_CONSTANT = "a constant answer gets {} of the reward"
_OWN = "its own answers get no reward"
UNSOUND = {
    "boxnet": _OWN,
    "circuit_logic": _CONSTANT.format("more than half"),
    "codeio": "it is not the same when it is made again",
    "coin_flip": _CONSTANT.format("all"),
    "composite": "it needs other data sets",
    "course_schedule": _CONSTANT.format("half"),
    "game_of_life": _CONSTANT.format("almost all"),
    "game_of_life_halting": _CONSTANT.format("all"),
    "graph_color": _OWN,
    "isomorphic_strings": _CONSTANT.format("half"),
    "list_functions": "it is not the same when it is made again",
    "propositional_logic": _OWN,
    "puzzle24": _CONSTANT.format("all"),
    "ransom_note": _CONSTANT.format("half"),
    "syllogism": _CONSTANT.format("half"),
}
"""Reasons why data sets cannot be trained on."""
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def reasoning_gym(
    completions: Sequence[Answer], dataset: Sequence[Any], item: Sequence[Any], options: Sequence[Any], **columns: Any
) -> list[float | None]:
    """Return what the data set's `score_answer` returns, from 0 to 1.

    Args:
        completions: k completions.
        dataset: k names of data sets of reasoning-gym.
        item: k numbers of items; None abstains.
        options: k settings of the data set as JSON.
        columns: Not used.

    Returns:
        k values from 0 to 1, or None.
    """
    return [
        None if number is None else score(name, json.loads(settings), int(number), completion_text(text))
        for text, name, number, settings in zip(completions, dataset, item, options, strict=True)
    ]


def score(name: str, settings: Mapping[str, Any], item: int, text: str) -> float:
    """Return the score of a completion's answer to an item, from 0 to 1."""
    data = open_dataset(name, settings, item)
    tagged = _TAGGED.findall(text)
    return float(data.score_answer((tagged[-1] if tagged else text).strip(), made_item(name, settings, item)))


def made_item(name: str, settings: Mapping[str, Any], item: int) -> Mapping[str, Any]:
    """Return an item of a data set, with `question`, `answer` and `metadata`."""
    return _item(name, json.dumps(settings), item)


def open_dataset(name: str, settings: Mapping[str, Any], item: int = 0) -> Any:
    """Return a data set of reasoning-gym with the seed of an item.

    Raises:
        ConfigError: If reasoning-gym is not installed, there is no such data set, it cannot be trained on, or its
            settings do not fit.
    """
    return _open(name, json.dumps(settings), item // BLOCK)


def check_dataset(name: str) -> None:
    """Check that a data set exists and can be trained on.

    Raises:
        ConfigError: If not; the message says why.
    """
    if find_spec("reasoning_gym") is None:
        raise ConfigError(INSTALL)
    from reasoning_gym.factory import DATASETS

    if name in UNSOUND:
        raise ConfigError(f"the data set {name!r} of reasoning-gym cannot be trained on: {UNSOUND[name]}")
    if name not in DATASETS:
        near = did_you_mean(name, DATASETS, f"choose one of {', '.join(sorted(set(DATASETS) - set(UNSOUND)))}")
        raise ConfigError(f"reasoning-gym has no data set {name!r}{near}")


@functools.lru_cache(64)
def _open(name: str, settings: str, block: int) -> Any:
    check_dataset(name)
    import reasoning_gym as library
    from reasoning_gym.factory import DATASETS

    try:
        return library.create_dataset(name, seed=block * BLOCK, size=BLOCK, **json.loads(settings))
    except (TypeError, ValueError, AssertionError) as error:
        fields = ", ".join(key for key in DATASETS[name][1].__dataclass_fields__ if key not in ("seed", "size"))
        raise ConfigError(
            f"the settings of the data set {name!r} do not fit: {one_line(error)}; it accepts {fields}"
        ) from None


@functools.lru_cache(1024)
def _item(name: str, settings: str, item: int) -> Mapping[str, Any]:
    found: Mapping[str, Any] = _open(name, settings, item // BLOCK)[item % BLOCK]
    return found
