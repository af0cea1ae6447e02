"""A file of scored groups, one JSON line a problem, and beside it the settings that it is made with.

    groups.jsonl            rows as data/group_rows.py reads them back (docs/guides/offline.md)
    groups.settings.json    going on with other settings is refused

Knows files; nothing of models or rewards.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gvpo import runfiles
from gvpo.data.group_rows import group_record, json_lines
from gvpo.errors import ConfigError, RunError
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
        """Where the settings stand."""
        return self.path.with_suffix(".settings.json")

    def check(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Refuse to begin, or to go on, where that would spoil what is there; nothing is written.

        Args:
            settings: everything that decides what the groups are, as JSON.
            resume: whether the file may be there; where none is, it is begun.

        Raises:
            RunError: the file is there and is not to be gone on with, or was made with other settings.
        """
        if not self.path.exists():
            return
        written = runfiles.read_json(self.settings_path)
        if not resume:
            raise RunError(f"{self.path} is there already; go on with it by --resume, or choose another --out")
        if not written:
            raise RunError(f"{self.path} has no {self.settings_path.name} beside it; choose another --out")
        for name in {**written, **settings}:
            before, now = (runfiles.to_json(values.get(name)) for values in (written, settings))
            if before != now:
                raise RunError(
                    f"{self.path} was made with {name}={_short(before)}, and now it is {_short(now)}; "
                    "take the same, or choose another --out"
                )

    def begin(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Make the file ready to be appended to; see `check`.

        Raises:
            RunError: as `check`, or the file cannot be written.
        """
        self.check(settings, resume=resume)
        runfiles.write_json(self.settings_path, settings)
        runfiles.cut_torn_line(self.path)

    def rows(self) -> list[dict[str, Any]]:
        """The finished groups, in the order in which they were finished.

        Raises:
            RunError: a line is damaged, or two have the same id.
        """
        rows = runfiles.read_lines(self.path)
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
        """Add groups, which are on the disk on return; a crash in between leaves whole groups and one torn line.

        Raises:
            RunError: the file cannot be written.
        """
        runfiles.append(self.path, json_lines(rows).encode("utf-8", errors="replace"))


def records(rollout: Rollout, *, logprobs: bool = True) -> Iterator[dict[str, Any]]:
    """Yield the groups as rows that `gvpo.data.read_groups` reads back.

    Args:
        rollout: the groups.
        logprobs: keep the sampler's log-probs, which are most of a file's bytes.
    """
    for group, verdicts, problem in zip(rollout.groups, rollout.verdicts, rollout.problems, strict=True):
        yield group_record(group, verdicts, problem, logprobs=logprobs)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
