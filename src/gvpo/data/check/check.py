"""All checks of a data set, and what came of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

import numpy as np

from gvpo.data.check.answers import tried
from gvpo.data.check.findings import SIMILARITY, Finding, Kind, contamination, duplicates, without_prompt
from gvpo.data.check.rows import CheckedRow, Place
from gvpo.rewards import RewardPool
from gvpo.types import Prompt

PERCENTILES = (0, 10, 50, 90, 99, 100)


@dataclass(frozen=True)
class Report:
    """What the checks say.

    Args:
        rows: how many there are.
        findings: by the order of the checks, then of the rows.
        skipped: why a check was not made, by what it would have found.
        lengths: percentiles (`PERCENTILES`) of the prompts' lengths, in "characters" and perhaps in "tokens".
    """

    rows: int
    findings: Sequence[Finding]
    skipped: Mapping[Kind, str] = field(default_factory=dict)
    lengths: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def places(self) -> set[Place]:
        """The rows of which something was found."""
        return {finding.place for finding in self.findings}

    def of(self, kind: Kind) -> list[Finding]:
        """The findings of a kind."""
        return [finding for finding in self.findings if finding.kind == kind]

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "rows": self.rows,
            "rows_with_findings": len(self.places),
            "counts": {kind: len(self.of(kind)) for kind in get_args(Kind) if kind not in self.skipped},
            "skipped": dict(self.skipped),
            "lengths": {
                unit: {f"p{share}": value for share, value in zip(PERCENTILES, values, strict=True)}
                for unit, values in self.lengths.items()
            },
            "findings": [asdict(finding) for finding in self.findings],
        }


@dataclass(frozen=True)
class Tokens:
    """How prompts are counted in tokens.

    Args:
        count: the tokens of a prompt, as training would see it.
        context: the most tokens that a prompt may have; None for no limit.
    """

    count: Callable[[Prompt], int]
    context: int | None = None


def check(
    rows: Sequence[CheckedRow],
    *,
    benchmarks: Sequence[CheckedRow] = (),
    pool: RewardPool | None = None,
    tokens: Tokens | None = None,
    similarity: float = SIMILARITY,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Look for everything in a data set.

    Args:
        rows: of all its files.
        benchmarks: rows that must not be trained on.
        pool: with the data's rewards, to try right and wrong answers on.
        tokens: how to count; only characters are counted without it.
        similarity: the share of grams from which two texts are almost the same, in (0, 1].
        progress: told of rows whose answers were tried.

    Raises:
        DataError: no row has an answer, and a reward needs one.
        RewardError: a reward needs a column that no row has.
    """
    lengths = {"characters": [len(row.text) for row in rows if row.prompt is not None]}
    found = [*without_prompt(rows), *duplicates(rows, similarity), *contamination(rows, benchmarks, similarity)]
    skipped: dict[Kind, str] = {} if benchmarks else {"contamination": "name benchmarks with --against"}
    if pool is None:
        skipped |= dict.fromkeys(("unscorable", "wrong answer paid"), "name the data's reward with rewards.funcs")
    else:
        found += tried(rows, pool, progress)
    if tokens is not None:
        lengths["tokens"] = [tokens.count(row.prompt) for row in rows if row.prompt is not None]
        found += _too_long(rows, lengths["tokens"], tokens.context)
    if tokens is None or tokens.context is None:
        skipped["too long"] = "give --tokenizer and --context"
    return Report(len(rows), found, skipped, {unit: _percentiles(values) for unit, values in lengths.items()})


def _too_long(rows: Sequence[CheckedRow], lengths: Sequence[int], context: int | None) -> list[Finding]:
    asked = [row for row in rows if row.prompt is not None]
    return [
        Finding("too long", row.place, f"{length} tokens")
        for row, length in zip(asked, lengths, strict=True)
        if context is not None and length > context
    ]


def _percentiles(values: Sequence[int]) -> list[int]:
    """The smallest value that as large a share of them does not exceed; none of none."""
    if not values:
        return [0] * len(PERCENTILES)
    return [int(value) for value in np.percentile(values, PERCENTILES, method="inverted_cdf")]
