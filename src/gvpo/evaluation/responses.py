"""Responses from a file, scored as if they had been sampled, to check a benchmark or the output of another program."""

from collections.abc import Mapping, Sequence
from typing import Any

from gvpo.data import completion_text, read_groups
from gvpo.errors import DataError
from gvpo.rollout.fingerprints import answered
from gvpo.sampling import Request, SamplingParams
from gvpo.types import Completion, FinishReason, Problem

SEVERAL = ("responses", "completions", "texts")
COLUMNS = (*SEVERAL, "response", "completion")
"""Possible columns of a row's responses, the first three for a list; the first one present is read."""


class Responses:
    """A sampler that returns the given responses of each problem.

    Args:
        by_id: Responses by problem ID.
    """

    def __init__(self, by_id: Mapping[str, Sequence[Completion]]) -> None:
        self._by_id = by_id

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]], problems: Sequence[Problem], name: str) -> "Responses":
        """Match the responses of a file's rows to problems, by `id` if the rows have IDs, otherwise in order.

        Args:
            rows: `{"id", "responses": [text, ...]}`, `{"response": text}`, or the rows of a groups file; several rows
                with the same ID are samples of one problem.
            problems: The problems that the rows answer.
            name: Name of the file, for messages.

        Raises:
            DataError: If a problem has no row, or a row has no responses.
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
            raise DataError(
                f"{name} has {len(read)} rows for {len(problems)} problems; give one row per problem, or ids"
            )
        return cls({problem.id: completions for problem, completions in zip(problems, read, strict=True)})

    @property
    def most(self) -> int:
        """Maximum number of responses per problem."""
        return max(len(completions) for completions in self._by_id.values())

    def fingerprint(self) -> str:
        """Return a short hash of the responses."""
        return answered(self._by_id)

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> list[list[Completion]]:
        """Return all responses of each request, regardless of `params`."""
        return [list(self._by_id[request.id]) for request in requests]


def of_text(text: str, *, tokens: Sequence[int] = (), reason: FinishReason = "stop") -> Completion:
    """Return a response as a completion."""
    return Completion(tokens, text=text, finish_reason=reason, source="responses")


def _completions(row: Mapping[str, Any], where: str) -> list[Completion]:
    column = next((name for name in COLUMNS if row.get(name) is not None), None)
    if column is None:
        raise DataError(f"{where} has no responses; give `responses`, a list of texts, or `response`")
    try:
        (read,) = read_groups([_as_group(row, column)])
        texts = [completion_text(written) for written in read.completions]
    except DataError as error:
        raise DataError(f"{where}: {str(error).removeprefix('row 1: ')}") from None
    return [
        of_text(text, tokens=written.tokens or (), reason=written.finish_reason)
        for text, written in zip(texts, read.completions, strict=True)
    ]


def _as_group(row: Mapping[str, Any], column: str) -> dict[str, Any]:
    """Return the row as a group without its rewards, because an evaluation scores it again."""
    given = row[column]
    several = column in SEVERAL and isinstance(given, list | tuple) and not _is_one(given)
    kept = {name: row[name] for name in ("texts", "finish_reasons") if row.get(name)}
    return {**kept, "prompt": row.get("prompt") or "?", "completions": list(given) if several else [given]}


def _is_one(given: Sequence[Any]) -> bool:
    """Return whether a list is the messages of one response. If all are the assistant's, each is a response."""
    roles = [part.get("role") if isinstance(part, Mapping) else None for part in given]
    return None not in roles and set(roles) != {"assistant"} and bool(roles)
