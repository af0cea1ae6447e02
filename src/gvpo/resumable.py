"""A JSON-lines file that grows while long work is done, and refuses to grow under other settings.

    groups.jsonl       and groups.settings.json     `gvpo generate`, `gvpo eval`
    out.jsonl.partial  whose first line is settings  `gvpo score`

Other things that grow on the disk work differently and are not of this kind: features of a probe are chunks that never
change, scores of a reference are whole files that name their rows, and a judge's answers are a database of requests.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gvpo import runfiles
from gvpo.errors import RunError


@dataclass(frozen=True)
class ResumableFile:
    """Rows in a file, and the settings that they are made with.

    Args:
        path: The file.
        settings_path: Where the settings are; None for the file's first line.
        remedy: What the user can do about a file that is in the way, for messages.
    """

    path: Path
    settings_path: Path | None = None
    remedy: str = "choose another --out"

    def check(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Refuse to begin or to resume where that would spoil what is there; nothing is written.

        Args:
            settings: Everything that decides what the rows are, as JSON.
            resume: The file may exist; where it does not, it is begun.

        Raises:
            RunError: The file exists and is not to be resumed, or was made with other settings.
        """
        if not self.path.exists():
            return
        if not resume:
            raise RunError(f"{self.path} is there already; go on with it by --resume, or {self.remedy}")
        written = self._settings()
        if not written:
            raise RunError(f"{self.path} has no {self._place}; {self.remedy}")
        for name in {**written, **settings}:
            before, now = (runfiles.to_json(values.get(name)) for values in (written, settings))
            if before != now:
                raise RunError(
                    f"{self.path} was made with {name}={_short(before)}, and now it is {_short(now)}; "
                    f"take the same, or {self.remedy}"
                )

    def begin(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Make the file ready to be appended to; see `check`.

        Raises:
            RunError: As `check`, or the file cannot be written.
        """
        self.check(settings, resume=resume)
        if self.settings_path is not None:
            runfiles.write_json(self.settings_path, settings)
        elif not self.path.exists():
            runfiles.write_text(self.path, json_lines([settings]))
        runfiles.cut_torn_line(self.path)

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows so far; one that was not written to its end is left out.

        Raises:
            RunError: A line is damaged.
        """
        lines = runfiles.read_lines(self.path)
        return lines if self.settings_path is not None else lines[1:]

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows, which are on the disk on return; a crash in between leaves whole rows and one torn line.

        Raises:
            RunError: The file cannot be written.
        """
        runfiles.append(self.path, json_lines(rows).encode("utf-8", errors="replace"))

    @property
    def _place(self) -> str:
        return "settings in its first line" if self.settings_path is None else f"{self.settings_path.name} beside it"

    def _settings(self) -> dict[str, Any]:
        if self.settings_path is not None:
            return runfiles.read_json(self.settings_path)
        return next(iter(runfiles.read_lines(self.path)), {})


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as JSON lines."""
    return "".join(f"{runfiles.to_json(row)}\n" for row in rows)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
