"""The data of the page's group viewer: compressed blocks, as many as fit.

The page always contains the facts of all groups. Texts and tokens are large: each kind has an allowance, which is given
to steps that are spread over the run, the first and the last step first. The page says what was left out, and names the
rollout file that has it.
"""

import gzip
import json
from base64 import b64encode
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gvpo import notices
from gvpo.errors import RunError
from gvpo.report.data import Run
from gvpo.report.groups import StepGroups, read_step, run_index, text_blocks, token_blocks
from gvpo.report.tokens import Pieces

TEXT_BYTES = 48_000_000
TOKEN_BYTES = 32_000_000
"""Bytes that texts and tokens may add to a page, over all of its runs."""

LEVEL = 4
"""Level of compression. Level 6 makes blocks 7 to 14% shorter, but takes several times as long."""


def viewer_data(runs: Sequence[Run], *, text_bytes: int = TEXT_BYTES, token_bytes: int = TOKEN_BYTES) -> dict[str, str]:
    """Return the viewer's data by the names under which its script looks for them.

    Args:
        runs: the runs of the page.
        text_bytes: the allowance of texts, shared evenly by the runs.
        token_bytes: the allowance of tokens.

    Returns:
        Compressed JSON, as `pack` returns it: `index-R` for run R, and for its block B `text-R-B` and `tokens-R-B`.
        Blocks that do not fit are missing. A step whose rollout file is damaged is left out, with a warning.
    """
    packed: dict[str, str] = {}
    for number, run in enumerate(runs):
        steps = _readable_steps(run)
        packed[f"index-{number}"] = pack(run_index(run, steps))
        pieces = Pieces.of(run) if steps else None
        packed |= _texts(run, steps, pieces, f"text-{number}", text_bytes // len(runs))
        packed |= _tokens(run, steps, pieces, f"tokens-{number}", token_bytes // len(runs))
    return packed


def _readable_steps(run: Run) -> list[StepGroups]:
    steps = []
    for step in run.rollout_steps:
        try:
            steps.append(read_step(run, step))
        except RunError as error:
            _warn_of_damage(error)
    return steps


def _warn_of_damage(error: RunError) -> None:
    notices.warn(f"{error}; the report leaves it out")


def pack(value: Any) -> str:
    """Return a value as JSON, gzip and base64: short, safe inside any element, and the same every time."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return b64encode(gzip.compress(text.encode("utf-8", errors="replace"), LEVEL, mtime=0)).decode()


def _texts(run: Run, steps: Sequence[StepGroups], pieces: Pieces | None, name: str, allowance: int) -> dict[str, str]:
    found = ((_first_block(steps, at), text_blocks(run, steps[at], pieces)) for at in spread(len(steps)))
    return _fill(name, found, allowance)


def _tokens(run: Run, steps: Sequence[StepGroups], pieces: Pieces | None, name: str, allowance: int) -> dict[str, str]:
    found = ((_first_block(steps, at), token_blocks(run, steps[at], pieces)) for at in spread(len(steps)))
    return _fill(name, found, allowance)


def _first_block(steps: Sequence[StepGroups], at: int) -> int:
    return sum(len(step.blocks) - 1 for step in steps[:at])


def _fill(name: str, found: Iterable[tuple[int, Iterable[Any]]], allowance: int) -> dict[str, str]:
    """Pack blocks in the given order until the allowance is spent; the remaining blocks are not read."""
    packed: dict[str, str] = {}
    for first, blocks in found:
        for number, block in enumerate(_undamaged(blocks), start=first):
            text = pack(block)
            if len(text) > allowance:
                return packed
            allowance -= len(text)
            packed[f"{name}-{number}"] = text
    return packed


def _undamaged(blocks: Iterable[Any]) -> Iterator[Any]:
    """Yield the blocks of a rollout file up to the first damaged one, about which the user is warned."""
    try:
        yield from blocks
    except RunError as error:
        _warn_of_damage(error)


def spread(count: int) -> list[int]:
    """Return 0 to count - 1 with both ends first, then the middles of the gaps, so that every beginning is even."""
    order = list(range(count)) if count <= 2 else [0, count - 1]
    gaps = deque([(0, count - 1)])
    while gaps:
        low, high = gaps.popleft()
        middle = (low + high) // 2
        if low < middle < high:
            order.append(middle)
            gaps += [(low, middle), (middle, high)]
    return order
