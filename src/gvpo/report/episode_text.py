"""An example of the episodes that a command has sampled, turn by turn, for a terminal of 80 columns."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gvpo.report.episodes import shown_turns

WIDTH, LABEL, FACT = 80, 12, 14
"""Width of a line, of its first column, and of its last one."""

MOST_LINES, MOST_TURNS = 8, 12
"""Maximum number of lines per message, and of turns."""


def example(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the episode with the highest reward as text; None if the groups contain no episodes.

    Args:
        rows: Groups as `gvpo.data.group_rows.group_record` returns them.
    """
    found = [(row, number) for row in rows for number, turns in enumerate(row.get("episode_turns") or ()) if turns]
    if not found:
        return None
    row, number = max(found, key=_rank)
    reward = row["rewards"][number]
    turns = shown_turns(row["episode_turns"][number])
    facts = ["no reward" if reward is None else f"reward {reward:.4g}", f"{len(turns)} turns"]
    facts.append(f"ended by {row['finish_reasons'][number]!r}")
    title = f"an episode of {row['id']} (completion {number + 1} of {len(row['episode_turns'])}): {', '.join(facts)}"
    return "\n".join([*textwrap.wrap(_plain(title), WIDTH), *_lines(turns)])


def _rank(item: tuple[Mapping[str, Any], int]) -> tuple[float, int]:
    """Return the reward and the number of turns of a completion of a group."""
    row, number = item
    reward = row["rewards"][number]
    return (float("-inf") if reward is None else reward, len(row["episode_turns"][number]))


def _lines(turns: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for turn in turns[:MOST_TURNS]:
        yield from _message("model", turn["own"], "" if turn["reward"] is None else f"reward {turn['reward']:.4g}")
        said = turn["heard"] or ([["environment", turn["detail"]]] if turn["outcome"] else [])
        for role, text in said:
            yield from _message(role, f"[{turn['outcome']}] {text}" if turn["outcome"] else text, turn["time"])
    if len(turns) > MOST_TURNS:
        yield f"  {len(turns) - MOST_TURNS} more turns"


def _message(role: str, text: str, fact: str) -> Iterator[str]:
    """Yield the lines of a message: who says it, the text, and a fact about it at the end of the first line."""
    width = WIDTH - LABEL - FACT - 3
    wrapped = [part for line in text.splitlines() for part in textwrap.wrap(_plain(line), width) or [""]] or [""]
    if len(wrapped) > MOST_LINES:
        wrapped[MOST_LINES - 1 :] = [f"({len(wrapped) - MOST_LINES + 1} more lines)"]
    for number, line in enumerate(wrapped):
        label, end = (_plain(role)[:LABEL], fact[:FACT]) if number == 0 else ("", "")
        yield f"  {label:<{LABEL}} {line:<{width}}{end:>{FACT}}".rstrip()


def _plain(text: str) -> str:
    """Return text without characters that control a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
