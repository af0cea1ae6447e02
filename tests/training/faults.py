"""A disk that fails at its k-th operation: by death (as SIGKILL does) or by an error (as a full disk does)."""

import contextlib
import errno
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gvpo.rewards import RewardBatch
from gvpo.types import Verdict

OPERATIONS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir")
"""Disk operations besides opening files for writing and writing to them; all are functions of `os`."""


class Killed(BaseException):
    """The process is dead; no code may catch this."""


def killed() -> BaseException:
    return Killed()


def full_disk() -> BaseException:
    return OSError(errno.ENOSPC, "No space left on device")


def forbidden() -> BaseException:
    return PermissionError(errno.EACCES, "Permission denied")


class FaultyDisk:
    """Counts the operations and fails with `error()` at number `at`, from 0; None only counts.

    After a death every operation fails.
    """

    def __init__(self, at: int | None, error: Callable[[], BaseException]) -> None:
        self.at, self.error = at, error
        self.asked: list[str] = []
        self.failed = ""

    @property
    def count(self) -> int:
        return len(self.asked)

    def ask(self, what: str) -> None:
        self.asked.append(what)
        dead = bool(self.failed) and isinstance(self.error(), Killed)
        if dead or self.count - 1 == self.at:
            self.failed = self.failed or what
            raise self.error()


class _File:
    """A file opened for writing, whose writes may fail half-way."""

    def __init__(self, file: Any, disk: FaultyDisk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> int:
        try:
            self._disk.ask("write")
        except BaseException:
            self._file.write(data[: len(data) // 2])
            raise
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextmanager
def faulty_disk(at: int | None, error: Callable[[], BaseException] = killed) -> Iterator[FaultyDisk]:
    """Pass every change of the disk through a `FaultyDisk` within this context."""
    disk, open_file = FaultyDisk(at, error), io.open

    def opened(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if not set(mode) & set("wax+"):
            return open_file(file, mode, *rest, **more)
        disk.ask(f"open {file}")
        return _File(open_file(file, mode, *rest, **more), disk)

    def wrapped(name: str) -> Callable[..., Any]:
        original = getattr(os, name)

        def call(*arguments: Any, **more: Any) -> Any:
            if name != "mkdir" or not Path(arguments[0]).is_dir():  # pathlib also calls mkdir for existing directories
                disk.ask(f"{name} {arguments[0]}")
            return None if name == "fsync" else original(*arguments, **more)  # the power does not fail in these tests

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", opened)  # pathlib's
        for name in OPERATIONS:
            patch.setattr(os, name, wrapped(name))
        yield disk


class InlinePool:
    """A `RewardPool` without processes."""

    first_failure = None

    def __init__(self, functions: dict[str, Callable[..., list[float]]], *_: object, **__: object) -> None:
        self._functions = functions

    def __enter__(self) -> "InlinePool":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def require_columns(self, batches: Sequence[RewardBatch]) -> None:
        pass

    def unchanged(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        pass

    def score(self, batches: Sequence[RewardBatch]) -> list[list[Verdict]]:
        return [self._group(batch) for batch in batches]

    def _group(self, batch: RewardBatch) -> list[Verdict]:
        ((name, function),) = self._functions.items()
        columns = {key: [value] * len(batch) for key, value in batch.columns.items()}
        return [Verdict(value, {name: value}) for value in function(completions=batch.completions, **columns)]
