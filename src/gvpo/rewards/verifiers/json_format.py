"""JSON: is a completion valid JSON, does it have the required fields, and does it have the correct value?"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gvpo.errors import RewardError
from gvpo.rewards.base import Answer, RewardFunc, blames_text, completion_text, grade
from gvpo.rewards.verifiers.stated_answer import without_thinking

_BLOCK = re.compile(r"^\s*```[ \t]*(?:json)?[ \t]*\n(.*?)\n?[ \t]*```\s*$", re.DOTALL | re.IGNORECASE)
NOTHING = object()
"""Result of `read_json` for a text that is not JSON; None is a JSON value."""
KINDS: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "list": (list,),
    "object": (dict,),
    "null": (type(None),),
}
"""The kinds of values that `json_fields` accepts."""


def json_format(completions: Sequence[Answer], **columns: Any) -> list[float | None]:
    """Return 1 if the completion consists of one JSON object or list, else 0; one fence around it is allowed.

    Args:
        completions: k completions; the text before </think> does not count.
        columns: Not used.

    Returns:
        k values, 1.0 or 0.0.
    """
    return [float(isinstance(_value(completion), dict | list)) for completion in completions]


def json_match(completions: Sequence[Answer], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    """Return 1 if the completion is JSON with the value of `answer`, else 0.

    Objects have no order, 1 and 1.0 are the same number, and true is not 1.

    Args:
        completions: k completions, read like those of `json_format`.
        answer: k values, or their JSON as text; None abstains.
        columns: Not used.

    Returns:
        k values: 1.0, 0.0, or None.
    """
    return grade(completions, answer, lambda text, gold: same_json(_value(text), _gold(gold)))


def json_fields(fields: Mapping[str, str], *, only: bool = False, name: str = "json_fields") -> RewardFunc:
    """Create a reward: the fraction of `fields` that the completion, a JSON object, has with a value of the right kind.

    >>> person = json_fields({"name": "text", "age": "integer"})
    >>> person(completions=['{"name": "Ada", "age": 36}', '{"name": "Ada", "age": "36"}', "Ada, 36"])
    [1.0, 0.5, 0.0]

    Args:
        fields: Kind of each field: text, number, integer, boolean, list, object or null; several as "text | null".
        only: Give 0 to an object with other fields.
        name: Name of the reward in metrics.

    Raises:
        RewardError: If there are no fields, or a kind does not exist.
    """
    if not isinstance(fields, Mapping) or not fields:
        raise RewardError('json_fields: give the fields and their kinds, such as { name = "text", age = "integer" }')
    kinds = {field: _kinds(field, kind) for field, kind in fields.items()}

    def share(completions: Sequence[Answer], **columns: Any) -> list[float | None]:
        return [_share(_value(completion), kinds, only=only) for completion in completions]

    share.__name__ = name
    return blames_text(share)


def read_json(text: str) -> Any:
    """Return the value of a text that is JSON; `NOTHING` if it is not. NaN and Infinity are not JSON."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return NOTHING


def same_json(left: Any, right: Any) -> bool:
    """Return whether two JSON values are the same."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same_json(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same_json, left, right))
    return bool(left == right)


def fenced(text: str) -> str:
    """Return the content of a text that consists of one fenced block; otherwise return the text."""
    block = _BLOCK.match(text)
    return block[1] if block else text


def _value(completion: Answer) -> Any:
    return read_json(fenced(without_thinking(completion_text(completion))).strip())


def _gold(gold: Any) -> Any:
    value = read_json(gold) if isinstance(gold, str) else gold
    return gold if value is NOTHING else value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _kinds(field: str, kind: str) -> frozenset[type]:
    words = [word.strip() for word in str(kind).split("|")]
    wrong = next((word for word in words if word not in KINDS), None)
    if wrong is not None:
        raise RewardError(f"json_fields: {field} is {wrong!r}; choose one of {', '.join(KINDS)}")
    return frozenset(each for word in words for each in KINDS[word])


def _share(value: Any, kinds: Mapping[str, frozenset[type]], *, only: bool) -> float:
    if not isinstance(value, dict) or (only and not value.keys() <= kinds.keys()):
        return 0.0
    return sum(field in value and type(value[field]) in allowed for field, allowed in kinds.items()) / len(kinds)
