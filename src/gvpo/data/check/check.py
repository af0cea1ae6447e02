"""All checks of a dataset, and their report."""

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
    """Results of the checks.

    Args:
        rows: Number of rows.
        findings: Findings, ordered by check and then by row.
        skipped: Reason why a check was skipped, by kind of finding.
        lengths: Percentiles (`PERCENTILES`) of the prompts' lengths, in "characters" and optionally in "tokens".
    """

    rows: int
    findings: Sequence[Finding]
    skipped: Mapping[Kind, str] = field(default_factory=dict)
    lengths: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def places(self) -> set[Place]:
        """Rows with a finding."""
        return {finding.place for finding in self.findings}

    def of(self, kind: Kind) -> list[Finding]:
        """Return the findings of a kind."""
        return [finding for finding in self.findings if finding.kind == kind]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
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
    """Settings for the lengths of prompts in tokens.

    Args:
        count: Function that returns the number of tokens of a prompt as in training.
        context: Maximum number of tokens per prompt; None for no limit.
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
    """Run all checks on a dataset.

    Args:
        rows: The rows of all its files.
        benchmarks: Rows that must not be trained on.
        pool: Pool with the data's rewards, to score correct and wrong answers.
        tokens: How to count tokens; None counts only characters.
        similarity: Fraction of shared grams from which two texts are near duplicates, in (0, 1].
        progress: Function that is called with the number of rows whose answers were tried.

    Raises:
        DataError: If no row has an answer and a reward needs one.
        RewardError: If a reward needs a column that no row has.
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
    """Return the percentiles, each one of the values; zeros if there are no values."""
    if not values:
        return [0] * len(PERCENTILES)
    return [int(value) for value in np.percentile(values, PERCENTILES, method="inverted_cdf")]
