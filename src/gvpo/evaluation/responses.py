"""Responses from a file, judged as if they had been sampled: to check a benchmark, or another program's output."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from gvpo.errors import DataError
from gvpo.messages import answer_text
from gvpo.sampling import Request, SamplingParams
from gvpo.types import Completion, FinishReason, Problem

COLUMNS = ("texts", "responses", "completions", "response", "completion")
"""What the responses of a row may be called; the first that is there counts."""


class Responses:
    """A sampler that gives each problem the responses that it was given.

    Args:
        by_id: problem's id -> its responses.
    """

    def __init__(self, by_id: Mapping[str, Sequence[Completion]]) -> None:
        self._by_id = by_id

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]], problems: Sequence[Problem], name: str) -> "Responses":
        """The responses of a file's rows: by `id` where the rows have ids, else in the order of the problems.

        Args:
            rows: `{"id", "responses": [text, ...]}`, `{"response": text}`, or the rows of a groups file; several rows
                with one id are samples of one problem.
            problems: those that the rows answer.
            name: of the file, for messages.

        Raises:
            DataError: a problem has no row, or a row no responses.
        """
        read = [_completions(row, f"{name} row {number}") for number, row in enumerate(rows, start=1)]
        if any("id" in row for row in rows):
            found: dict[str, list[Completion]] = {}
            for row, completions in zip(rows, read, strict=True):
                found.setdefault(str(row.get("id")), []).extend(completions)
            missing = [problem.id for problem in problems if problem.id not in found]
            if missing:
                raise DataError(f"{name} has no row with the id {missing[0]!r} ({len(missing)} are missing); add them")
            return cls(found)
        if len(read) != len(problems):
            raise DataError(f"{name} has {len(read)} rows for {len(problems)} problems; give each one, or give ids")
        return cls({problem.id: completions for problem, completions in zip(problems, read, strict=True)})

    @property
    def most(self) -> int:
        """The most responses that a problem has."""
        return max(len(completions) for completions in self._by_id.values())

    def fingerprint(self) -> str:
        """A short name for the responses: equal for the same ones."""
        digest = hashlib.blake2b(digest_size=8)
        for name, completions in self._by_id.items():
            digest.update(repr((name, [(row.text, row.finish_reason) for row in completions])).encode())
        return digest.hexdigest()

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> list[list[Completion]]:
        """The responses of each request, however many there are."""
        return [list(self._by_id[request.id]) for request in requests]


def of_text(text: str, *, tokens: Sequence[int] = (), reason: FinishReason = "stop") -> Completion:
    """A response as a completion."""
    return Completion(tokens, text=text, finish_reason=reason, source="responses")


def _texts(given: Any, column: str, where: str) -> list[str]:
    """Return a row's responses as texts: one or several, each text or the one message of the assistant."""
    one = not isinstance(given, list) or all(isinstance(part, Mapping) for part in given)
    written = [given] if one and given else given
    if not written or not all(isinstance(each, str | list) for each in written):
        raise DataError(f"{where}: `{column}` has to be text or a list of texts")
    try:
        return [answer_text(each) for each in written]
    except DataError as error:
        raise DataError(f"{where}: `{column}`: {error}") from None


def _completions(row: Mapping[str, Any], where: str) -> list[Completion]:
    column = next((name for name in COLUMNS if row.get(name) is not None), None)
    if column is None:
        raise DataError(f"{where} has no responses; give `responses`, a list of texts, or `response`")
    given = _texts(row[column], column, where)
    reasons = row.get("finish_reasons") or ["stop"] * len(given)
    tokens = row["completions"] if column == "texts" and "completions" in row else [()] * len(given)
    if not len(reasons) == len(tokens) == len(given):
        raise DataError(f"{where} has {len(given)} responses, and another number of finish reasons or completions")
    return [
        of_text(text, tokens=ids if isinstance(ids, list) else (), reason="length" if reason == "length" else "stop")
        for text, ids, reason in zip(given, tokens, reasons, strict=True)
    ]
