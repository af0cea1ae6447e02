"""Short names for data: equal for the same rows in the same order, so that work is not resumed on other data.

    the run's problems         problem_rows        inputs.json        id, prompt, every column with the labels, tokens
    the run's answers          answer_rows         inputs.json        id, reward, mask if any, tokens
    the run's demonstrations   demonstration_rows  inputs.json        id, aligned scores, tokens
    stored reference scores    token_rows          reference/         id, tokens
    `gvpo score`               record_rows         OUT.partial        all contents of the rows
    `gvpo generate` and `eval` asked               *.settings.json    id, tokens, every column
    `gvpo eval --responses`    answered            *.settings.json    id, texts, finish reasons

Rewards have separate fingerprints of their names and code (`gvpo.rewards.identity`). All of these fingerprints are
stored on disk and compared on resume, so their inputs must not change.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gvpo.rewards.identity import identity
from gvpo.rollout.collect import EncodedProblem
from gvpo.runfiles import to_json
from gvpo.types import Completion, Group

Row = tuple[str, Sequence[int]]
"""Description of a row, and its token ids."""


def fingerprint(rows: Iterable[Row]) -> str:
    """Return the short name of training data."""
    return _digest((f"{name!r} {list(tokens)}" for name, tokens in rows), size=16)


def problem_rows(items: Iterable[EncodedProblem]) -> Iterator[Row]:
    """Yield problems with everything that determines their rewards: the prompt and every column."""
    for item in items:
        yield f"{item.problem.id} {identity((item.problem.prompt, dict(item.problem.columns)))}", item.prompt


def answer_rows(groups: Iterable[Group]) -> Iterator[Row]:
    """Yield the answers of groups, with their rewards."""
    for group in groups:
        for row in group.completions:
            mask = "" if row.mask is None else f" {[float(row.mask[place]) for place in range(len(row.mask))]}"
            yield f"{group.id} {row.reward}{mask}", [*group.prompt, *row.tokens]


def demonstration_rows(written: Iterable[tuple[EncodedProblem, Completion]]) -> Iterator[Row]:
    """Yield written answers with the objective's other inputs."""
    for item, answer in written:
        yield f"{item.problem.id} {dict(answer.extras) or ''}", [*item.prompt, *answer.tokens]


def token_rows(groups: Iterable[Group]) -> Iterator[Row]:
    """Yield the answers of groups by their tokens only, which is all that a reference scores."""
    for group in groups:
        for row in group.completions:
            yield group.id, [*group.prompt, *row.tokens]


def record_rows(records: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """Yield the rows of a file unchanged."""
    return ((to_json(record), []) for record in records)


def asked(items: Iterable[EncodedProblem]) -> str:
    """Return the short name of problems that are sampled for a file."""
    return _digest((repr((i.problem.id, i.prompt, sorted(i.problem.columns.items()))) for i in items), size=8)


def answered(by_id: Mapping[str, Sequence[Completion]]) -> str:
    """Return the short name of the responses to problems."""
    texts = ((name, [(row.text, row.finish_reason) for row in rows]) for name, rows in by_id.items())
    return _digest(map(repr, texts), size=8)


def _digest(parts: Iterable[str], *, size: int) -> str:
    digest = hashlib.blake2b(digest_size=size)
    for part in parts:
        digest.update(part.encode())
    return digest.hexdigest()
