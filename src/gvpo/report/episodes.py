"""Episodes in the report: their turns as plain values for the group viewer, and as markup for held-out answers."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from gvpo.report.data import is_number

Turn = Mapping[str, Any]

TROUBLES = {"error": ("error",), "timeout": ("timeout",), "gone": ("died", "lost", "gone")}
"""Outcomes of turns by the filter that finds them."""

OUTCOMES = {
    "error": "error",
    "timeout": "no answer in time",
    "died": "its process ended",
    "lost": "failed",
    "gone": "ended with its process",
    "none": "not asked: the turn was cut",
}
"""Words for outcomes other than "ok"."""


def episode_facts(texts: Sequence[str]) -> dict[str, list[Any]] | None:
    """Return the facts of episodes as columns with a value per completion, or None if no completion has turns.

    Args:
        texts: turns of each completion, as JSON.

    Returns:
        "turns": number of turns; "peak": largest size of a turn's weight, null if it was not trained on; and the number
        of turns with each of `TROUBLES`.
    """
    rows = [json.loads(text) for text in texts]
    if not any(rows):
        return None
    return {
        "turns": [len(row) for row in rows],
        "peak": [_peak(row) for row in rows],
        **{name: [_count(row, outcomes) for row in rows] for name, outcomes in TROUBLES.items()},
    }


def _count(row: Sequence[Turn], outcomes: Sequence[str]) -> int:
    return sum(turn.get("outcome") in outcomes for turn in row)


def _peak(row: Sequence[Turn]) -> float | None:
    weights = [abs(turn["weight"]) for turn in row if is_number(turn.get("weight"))]
    return max(weights, default=None)


def shown_turns(turns: Iterable[Turn]) -> list[dict[str, Any]]:
    """Return the turns of a completion as readers see them.

    Returns:
        Per turn "at": the places of its tokens and of those that it heard (start, stop, end); "own": text of the
        policy; "heard": [speaker, text] of each message; "reward"; "weight"; "outcome": in words, "" if it answered;
        "detail"; "time" of the environment, in words.
    """
    return [_shown(turn) for turn in turns]


def _shown(turn: Turn) -> dict[str, Any]:
    return {
        "at": [int(turn.get(name) or 0) for name in ("start", "stop", "end")],
        "own": str(turn.get("text") or ""),
        "heard": _heard(turn.get("heard") or ()),
        **{name: _rounded(turn.get(name)) for name in ("reward", "weight")},
        "outcome": OUTCOMES.get(str(turn.get("outcome")), ""),
        "detail": str(turn.get("detail") or ""),
        "time": _duration(turn.get("seconds")),
    }


def _heard(messages: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    return [[_speaker(message.get("role")), _content(message.get("content"))] for message in messages]


def _speaker(role: Any) -> str:
    """Return who said a message; chat templates know an environment's text as that of the user."""
    return "environment" if role in (None, "", "user") else str(role)


def _duration(seconds: Any) -> str:
    if not is_number(seconds) or not seconds:
        return ""
    if seconds < 1e-3:
        return "< 1 ms"
    return f"{1e3 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.3g} s"


def _content(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _rounded(value: Any) -> float | None:
    return float(f"{value:.5g}") if is_number(value) else None


def bubbles(turns: Iterable[Turn]) -> str:
    """Return the markup of an episode: what the policy said on the left, what it heard on the right."""
    return "".join(_bubble(number, turn) for number, turn in enumerate(shown_turns(turns), start=1))


def _bubble(number: int, turn: Turn) -> str:
    chip = "" if turn["reward"] is None else f'<span class="chip">reward {turn["reward"]:.4g}</span>'
    own = f'<div class="said own"><b><span>turn {number}</span>{chip}</b>{escape(turn["own"])}</div>'
    return own + "".join(_answers(turn))


def _answers(turn: Turn) -> Iterable[str]:
    """Yield what the environment said; if it said nothing, what came of the turn, unless that is nothing either."""
    said = turn["heard"] or ([["environment", turn["detail"]]] if turn["outcome"] else [])
    for role, text in said:
        outcome = f'<span class="warn">{escape(turn["outcome"])}</span>' if turn["outcome"] else ""
        time = f"<small>{escape(turn['time'])}</small>" if turn["time"] else ""
        yield f'<div class="said heard"><b><span>{escape(role)}</span>{outcome}{time}</b>{escape(text)}</div>'
