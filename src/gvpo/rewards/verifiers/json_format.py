"""JSON: is a completion that, has it the fields, and is it the right value?"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gvpo.errors import RewardError
from gvpo.rewards.base import Answer, RewardFunc, blames_text, completion_text
from gvpo.rewards.verifiers.stated_answer import without_thinking

_BLOCK = re.compile(r"^\s*```[ \t]*(?:json)?[ \t]*\n(.*?)\n?[ \t]*```\s*$", re.DOTALL | re.IGNORECASE)
NOTHING = object()
"""What `read_json` gives for a text that is not JSON; None is a JSON value."""
KINDS: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "list": (list,),
    "object": (dict,),
    "null": (type(None),),
}
"""The kinds of values that `json_fields` knows."""


def json_format(completions: Sequence[Answer], **columns: Any) -> list[float | None]:
    """1 where the completion is a JSON object or list and nothing else, else 0; one fence around it is allowed.

    Args:
        completions: k completions; what stands before </think> does not count.
        columns: not used.

    Returns:
        k values, 1.0 or 0.0.
    """
    return [float(isinstance(_value(completion), dict | list)) for completion in completions]


def json_match(completions: Sequence[Answer], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 where the completion is JSON with the value of `answer`, else 0.

    Objects have no order, 1 and 1.0 are the same number, true is not 1.

    Args:
        completions: k completions, read as by `json_format`.
        answer: k values, or their JSON as text; None abstains.
        columns: not used.

    Returns:
        k values: 1.0, 0.0, or None.
    """
    return [
        None if gold is None else float(same_json(_value(completion), _gold(gold)))
        for completion, gold in zip(completions, answer, strict=True)
    ]


def json_fields(fields: Mapping[str, str], *, only: bool = False, name: str = "json_fields") -> RewardFunc:
    """Make a reward: the share of `fields` that the completion, a JSON object, has with a value of the right kind.

    >>> person = json_fields({"name": "text", "age": "integer"})
    >>> person(completions=['{"name": "Ada", "age": 36}', '{"name": "Ada", "age": "36"}', "Ada, 36"])
    [1.0, 0.5, 0.0]

    Args:
        fields: what each field is: text, number, integer, boolean, list, object or null; several as "text | null".
        only: an object with other fields gets 0.
        name: what the reward is called in metrics.

    Raises:
        RewardError: no fields, or a kind that does not exist.
    """
    if not isinstance(fields, Mapping) or not fields:
        raise RewardError('json_fields: give the fields and their kinds, { name = "text", age = "integer" }')
    kinds = {field: _kinds(field, kind) for field, kind in fields.items()}

    def share(completions: Sequence[Answer], **columns: Any) -> list[float | None]:
        return [_share(_value(completion), kinds, only=only) for completion in completions]

    share.__name__ = name
    return blames_text(share)


def read_json(text: str) -> Any:
    """The value of a text that is JSON; `NOTHING` if it is not. NaN and Infinity are not JSON."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return NOTHING


def same_json(left: Any, right: Any) -> bool:
    """Whether two JSON values are the same."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same_json(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same_json, left, right))
    return bool(left == right)


def fenced(text: str) -> str:
    """The content of a text that is one fenced block; else the text."""
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
        raise RewardError(f"json_fields: {field} is {wrong!r}; choose of {', '.join(KINDS)}")
    return frozenset(each for word in words for each in KINDS[word])


def _share(value: Any, kinds: Mapping[str, frozenset[type]], *, only: bool) -> float:
    if not isinstance(value, dict) or (only and not value.keys() <= kinds.keys()):
        return 0.0
    return sum(field in value and type(value[field]) in allowed for field, allowed in kinds.items()) / len(kinds)
