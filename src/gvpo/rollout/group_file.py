"""A file of scored groups, one JSON line a problem, and beside it the settings that it is made with.

    groups.jsonl            rows as data/group_rows.py reads them back (docs/guides/offline.md)
    groups.settings.json    going on with other settings is refused

Knows files; nothing of models or rewards.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gvpo.data.group_rows import group_record
from gvpo.errors import ConfigError, RunError
from gvpo.resumable import ResumableFile
from gvpo.rollout.collect import Rollout


@dataclass(frozen=True)
class GroupFile:
    """A file of scored groups that is appended to while it is made.

    Args:
        path: ends in .jsonl.

    Raises:
        ConfigError: it does not.
    """

    path: Path

    def __post_init__(self) -> None:
        if self.path.suffix != ".jsonl":
            raise ConfigError(f"{self.path} has to be JSON lines; give a name that ends in .jsonl")

    @property
    def settings_path(self) -> Path:
        """Return where the settings are."""
        return self.path.with_suffix(".settings.json")

    @property
    def _file(self) -> ResumableFile:
        return ResumableFile(self.path, self.settings_path)

    def check(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Refuse to begin or to resume, as `ResumableFile.check`."""
        self._file.check(settings, resume=resume)

    def begin(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Make the file ready to be appended to, as `ResumableFile.begin`."""
        self._file.begin(settings, resume=resume)

    def rows(self) -> list[dict[str, Any]]:
        """The finished groups, in the order in which they were finished.

        Raises:
            RunError: a line is damaged, or two have the same id.
        """
        rows = self._file.rows()
        seen = set()
        for number, row in enumerate(rows, start=1):
            if row.get("id") in seen:
                raise RunError(f"{self.path} line {number} has the id {row.get('id')!r} once more; remove that line")
            seen.add(row.get("id"))
        return rows

    def finished(self) -> set[str]:
        """The ids of the problems that are done."""
        return {row["id"] for row in self.rows()}

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add groups, as `ResumableFile.append`."""
        self._file.append(rows)


def records(rollout: Rollout, *, logprobs: bool = True) -> Iterator[dict[str, Any]]:
    """Yield the groups as rows that `gvpo.data.read_groups` reads back.

    Args:
        rollout: the groups.
        logprobs: keep the sampler's log-probs, which are most of a file's bytes.
    """
    for group, verdicts, problem in zip(rollout.groups, rollout.verdicts, rollout.problems, strict=True):
        yield group_record(group, verdicts, problem, logprobs=logprobs)
