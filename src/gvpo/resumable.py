"""A JSON-lines file that grows during long work, and does not accept rows that were created with other settings.

    groups.jsonl       and groups.settings.json     `gvpo generate`, `gvpo eval`
    out.jsonl.partial  whose first line is settings  `gvpo score`

Other files that grow work differently. Features of a probe are chunks that never change, scores of a reference are
whole files that name their rows, and a judge's answers are a database of requests.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gvpo import runfiles
from gvpo.errors import RunError


@dataclass(frozen=True)
class ResumableFile:
    """Rows in a file, and the settings that they were created with.

    Args:
        path: The file.
        settings_path: The file with the settings; None if they are the first line of `path`.
        remedy: Advice in messages about a file that is in the way.
    """

    path: Path
    settings_path: Path | None = None
    remedy: str = "choose another --out"

    def check(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Raise RunError if beginning or resuming would spoil an existing file; write nothing.

        Args:
            settings: Everything that determines the rows, as JSON.
            resume: Accept an existing file; a missing file is created.

        Raises:
            RunError: If the file exists and `resume` is False, or it was created with other settings.
        """
        if not self.path.exists():
            return
        if not resume:
            raise RunError(f"{self.path} already exists; resume it with --resume, or {self.remedy}")
        written = self._settings()
        if not written:
            raise RunError(f"{self.path} has no {self._place}; {self.remedy}")
        for name in {**written, **settings}:
            before, now = (runfiles.to_json(values.get(name)) for values in (written, settings))
            if before != now:
                raise RunError(
                    f"{self.path} was created with {name}={_short(before)}, not {_short(now)}; "
                    f"use the same settings, or {self.remedy}"
                )

    def begin(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Prepare the file for appending; see `check`.

        Raises:
            RunError: As for `check`, or if the file cannot be written.
        """
        self.check(settings, resume=resume)
        if self.settings_path is not None:
            runfiles.write_json(self.settings_path, settings)
        elif not self.path.exists():
            runfiles.write_text(self.path, json_lines([settings]))
        runfiles.cut_torn_line(self.path)

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows so far, without an incomplete last line.

        Raises:
            RunError: If a line is damaged.
        """
        lines = runfiles.read_lines(self.path)
        return lines if self.settings_path is not None else lines[1:]

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows and flush them to disk; a crash leaves whole rows and at most one incomplete line.

        Raises:
            RunError: If the file cannot be written.
        """
        runfiles.append(self.path, json_lines(rows).encode("utf-8", errors="replace"))

    @property
    def _place(self) -> str:
        return "settings in its first line" if self.settings_path is None else f"{self.settings_path.name} next to it"

    def _settings(self) -> dict[str, Any]:
        if self.settings_path is not None:
            return runfiles.read_json(self.settings_path)
        return next(iter(runfiles.read_lines(self.path)), {})


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as JSON lines."""
    return "".join(f"{runfiles.to_json(row)}\n" for row in rows)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
