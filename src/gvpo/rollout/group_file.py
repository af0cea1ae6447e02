"""A file of scored groups with one JSON line per problem, and a file with its settings next to it.

    groups.jsonl            rows in the form that data/group_rows.py reads (docs/guides/offline.md)
    groups.settings.json    resuming with other settings raises an error
    groups.part.json        ids of the problems that are being sampled together, while only some of them are written

This module handles files and does not depend on models or rewards.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gvpo import runfiles
from gvpo.data.group_rows import group_record
from gvpo.errors import ConfigError, RunError
from gvpo.resumable import ResumableFile
from gvpo.rollout.collect import Rollout


@dataclass(frozen=True)
class GroupFile:
    """A file of scored groups that is appended to while the groups are sampled.

    Args:
        path: Path that ends in .jsonl.

    Raises:
        ConfigError: If the path has another ending.
    """

    path: Path

    def __post_init__(self) -> None:
        if self.path.suffix != ".jsonl":
            raise ConfigError(f"{self.path} has to be JSON lines; choose a name that ends in .jsonl")

    @property
    def settings_path(self) -> Path:
        """Return the path of the settings file."""
        return self.path.with_suffix(".settings.json")

    @property
    def _file(self) -> ResumableFile:
        return ResumableFile(self.path, self.settings_path)

    def check(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Check that the work can begin or resume; see `ResumableFile.check`."""
        self._file.check(settings, resume=resume)

    def begin(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Prepare the file for appending; see `ResumableFile.begin`."""
        self._file.begin(settings, resume=resume)
        if not self.path.exists():
            self.mark([])

    def rows(self) -> list[dict[str, Any]]:
        """Return the finished groups, in the order in which they were finished.

        Raises:
            RunError: If a line is damaged, or two lines have the same id.
        """
        rows = self._file.rows()
        seen = set()
        for number, row in enumerate(rows, start=1):
            if row.get("id") in seen:
                raise RunError(f"{self.path} line {number} has the id {row.get('id')!r} again; remove that line")
            seen.add(row.get("id"))
        return rows

    def finished(self) -> set[str]:
        """Return the ids of the finished problems."""
        return {row["id"] for row in self.rows()}

    @property
    def _part_path(self) -> Path:
        return self.path.with_suffix(".part.json")

    def mark(self, ids: Sequence[str]) -> None:
        """Store the ids of the problems that are sampled together, before some of them are written; [] removes them."""
        if not ids:
            self._part_path.unlink(missing_ok=True)
        elif self.begun() != set(ids):
            runfiles.write_json(self._part_path, {"ids": list(ids)})

    def begun(self) -> set[str]:
        """Return the ids of the problems that an interrupted session sampled together; empty without an interruption.

        Raises:
            RunError: If their file is damaged.
        """
        return set(runfiles.read_json(self._part_path).get("ids", []))

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append groups; see `ResumableFile.append`."""
        self._file.append(rows)


def records(rollout: Rollout, *, logprobs: bool = True) -> Iterator[dict[str, Any]]:
    """Yield the groups as rows that `gvpo.data.read_groups` reads.

    Args:
        rollout: Rollout with the groups.
        logprobs: Whether to keep the sampler's log-probs, which are most of a file's bytes.
    """
    for group, verdicts, problem in zip(rollout.groups, rollout.verdicts, rollout.problems, strict=True):
        yield group_record(group, verdicts, problem, logprobs=logprobs)
