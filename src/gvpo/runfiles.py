"""The files of a run directory: their names, formats, readers and safe writers.

    <run>/config.json  environment.json  summary.json  metrics.jsonl
          rollouts/step-000010.parquet  held-out/step-000010.parquet
          checkpoints/step-000100/  report.html

Depends on JSON, JSON lines and Parquet, and not on models, training or reports. The trainer writes through
`gvpo.training.checkpoint.run_directory`, the report reads through this module, and both use the formats defined here.
Every key and column is explained in docs/reference/run-directory.md.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from gvpo.errors import RunError, one_line
from gvpo.types import FinishReason, FloatSequence

CONFIG = "config.json"
ENVIRONMENT = "environment.json"
INPUTS = "inputs.json"
SUMMARY = "summary.json"
METRICS = "metrics.jsonl"
ROLLOUTS = "rollouts"
HELD_OUT = "held-out"
CHECKPOINTS = "checkpoints"
GROUPS = "groups.jsonl"
REFERENCE = "reference"
REPORT = "report.html"

NONFINITE = "nonfinite"
"""Key of a metrics line that names the values that were NaN or infinite: `{"train/loss": "nan"}`."""


@dataclass(frozen=True)
class RolloutRow:
    """One completion in a rollout file; C is its number of tokens.

    Args:
        step: Training step that used it.
        group: ID of its group.
        row: Position in the group, from 0.
        prompt: Text of the prompt as the model saw it.
        prompt_tokens: Token ids of the prompt.
        text: The decoded completion.
        tokens: C token ids, including the stop token.
        reward: Weighted sum of the rewards; None if it has none.
        reward_parts: Value of each reward function by name.
        reason: Reason for a missing reward, or for a function's worst reward (`Verdict`); "" otherwise.
        weight: Minus the mean over scored tokens of d loss / d logprobs; positive pushes the completion up. None if the
            row was not trained on.
        implicit_reward: beta * sum(logprobs - ref_logprobs), in units of the reward; None without a reference.
        logprobs: C log-probs (nats) under the policy that was updated; this and the following are None if absent.
        ref_logprobs: C log-probs under the reference.
        old_logprobs: C log-probs under the policy at the start of the rollout.
        sampler_logprobs: C log-probs that the sampler reported.
        entropy: C entropies (nats) of the policy's next-token distributions.
        mask: C values, 1 on scored tokens; None is all ones.
        finish_reason: Reason for its end.
        source: Origin of the completion; see `Completion.source`.
        version: Number of completed training steps of the policy that sampled it; None if no policy of the run did.
        token_versions: C versions, one per token, of a row that was sampled while the policy changed; None for others.
        turns: Turns of an episode, as mappings with the fields of `gvpo.types.EpisodeTurn` and the turn's `weight`; []
            for other rows.
        opening: Text that an environment added to the prompt; "" for other rows.
        age: Number of training steps from that policy to the one that the step trained; None if it was not trained on.
        columns: Other columns of the problem.
    """

    step: int
    group: str
    row: int
    prompt: str
    prompt_tokens: Sequence[int]
    text: str
    tokens: Sequence[int]
    reward: float | None = None
    reward_parts: Mapping[str, float | None] = field(default_factory=dict)
    reason: str = ""
    weight: float | None = None
    implicit_reward: float | None = None
    logprobs: FloatSequence | None = None
    ref_logprobs: FloatSequence | None = None
    old_logprobs: FloatSequence | None = None
    sampler_logprobs: FloatSequence | None = None
    entropy: FloatSequence | None = None
    mask: FloatSequence | None = None
    finish_reason: FinishReason = "stop"
    source: str = "live"
    version: int | None = None
    token_versions: Sequence[int] | None = None
    turns: Sequence[Mapping[str, Any]] = field(default_factory=list)
    opening: str = ""
    age: int | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


_ARROW_TYPES = {
    **dict.fromkeys(("step", "row", "version", "age"), "int64"),
    **dict.fromkeys(
        ("group", "prompt", "text", "reward_parts", "reason", "finish_reason", "source", "turns", "opening", "columns"),
        "string",
    ),
    **dict.fromkeys(("reward", "weight", "implicit_reward"), "float64"),
    **dict.fromkeys(("prompt_tokens", "tokens", "token_versions"), "list<int32>"),
    **dict.fromkeys(
        ("logprobs", "ref_logprobs", "old_logprobs", "sampler_logprobs", "entropy", "mask"), "list<float32>"
    ),
}
_JSON_COLUMNS = ("reward_parts", "turns", "columns")

ROLLOUT_SCHEMA = 2
"""Version of the columns of rollout files. It is in a file's metadata; a file without one has version 1.

In version 1, `version` was the step that sampled the row, 0 for rows that no step sampled, and there was no `age`.
"""
_SCHEMA_KEY = b"gvpo.rollout_schema"


def step_name(step: int) -> str:
    """Return the name of a step's rollout file and checkpoint directory, such as `step-000010`."""
    return f"step-{step:06d}"


def rollout_path(run: Path, step: int, folder: str = ROLLOUTS) -> Path:
    """Return the path of a step's rollout file, or with the folder HELD_OUT that of an evaluation after that step."""
    return run / folder / f"{step_name(step)}.parquet"


def rollout_steps(run: Path, folder: str = ROLLOUTS) -> list[int]:
    """Return the steps with a finished rollout file, or with the folder HELD_OUT with an evaluation, ascending."""
    names = (path.stem.removeprefix("step-") for path in (run / folder).glob("step-*.parquet"))
    return sorted(int(name) for name in names if name.isdecimal())


def is_run(path: Path) -> bool:
    """Return whether a directory contains a run, finished or not."""
    return any((path / name).exists() for name in (CONFIG, METRICS, SUMMARY, ROLLOUTS, CHECKPOINTS, REFERENCE))


# Writing uses a temporary file that is flushed and renamed: after a crash, readers see the old file or the new one.


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` in one atomic step, and create its parent directories.

    Raises:
        RunError: If the disk is full, or the directory is missing or not writable. An old file at `path` is intact.
    """
    beside = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise cannot_write(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write text as `write_bytes` does, in UTF-8."""
    write_bytes(path, text.encode("utf-8", errors="replace"))  # replaces lone surrogates


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an indented JSON object as `write_bytes` does; NaN and infinities become null."""
    write_text(path, to_json(value, indent=2) + "\n")


def append(path: Path, data: bytes) -> None:
    """Append `data` to a file in an existing directory, create the file if needed, and flush it to disk.

    Raises:
        RunError: If the disk is full, or the directory is missing or not writable. Part of `data` may be written.
    """
    try:
        is_new = not path.exists()
        with path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            _sync_directory(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def require_writable(path: Path, *, advice: str = "name another place") -> None:
    """Raise RunError if a file could not be written at the end of long work; write nothing.

    Raises:
        RunError: If it is a directory, or its nearest existing parent is not a directory or is read-only.
    """
    place = next(above for above in path.absolute().parents if above.exists())
    what = "is not a directory" if not place.is_dir() else "" if os.access(place, os.W_OK | os.X_OK) else "is read-only"
    if path.is_dir():
        place, what = path, "is a directory"
    if what:
        raise RunError(f"cannot write {path}: {place} {what}; {advice}")


def _sync_directory(directory: Path) -> None:
    """Make a rename in `directory` durable; do nothing on systems that cannot open a directory."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cannot_write(path: Path, error: OSError) -> RunError:
    """Return the error for a write that the system rejected."""
    return RunError(f"cannot write {path}: {error.strerror}; make room or fix the directory, then use --resume")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Return valid JSON for any value: NaN and infinities are null, arrays lists, unknown objects their text."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """Return `value` in JSON's own types."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | set) and not isinstance(value, bytes | bytearray):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # scalars and arrays of numpy and torch
        return _plain(value.tolist())
    return str(value)


# Reading


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object, or {} if there is no such file.

    Raises:
        RunError: If the file exists and is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"cannot read {path}: {error}; restore it or remove it") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} is not a JSON object; restore it or remove it")
    return value


def metrics_line(values: Mapping[str, Any]) -> str:
    """Return a line of metrics.jsonl with its newline; NaN and infinities are null and listed under `nonfinite`."""
    plain = {key: value.item() if hasattr(value, "item") else value for key, value in values.items()}
    bad = {key: str(value) for key, value in plain.items() if isinstance(value, float) and not math.isfinite(value)}
    return to_json({**plain, NONFINITE: bad} if bad else plain) + "\n"


def _parsed_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yield (raw line, parsed line) of a JSON-lines file; None for an incomplete line or one that is not an object."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}; check the directory and its permissions") from error
    for line in lines:
        try:
            value = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            value = None
        yield line, value if isinstance(value, dict) else None


def read_lines(path: Path, remedy: str = "remove that line") -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file in order, without an incomplete last line (a crash); [] without a file.

    Args:
        path: The file.
        remedy: Advice in the error.

    Raises:
        RunError: If a line before the last cannot be read.
    """
    parsed = list(_parsed_lines(path))
    for number, (_, value) in enumerate(parsed[:-1], start=1):
        if value is None:
            raise RunError(f"{path} line {number} is damaged; {remedy}")
    return [value for _, value in parsed if value is not None]


def cut_torn_line(path: Path) -> None:
    """Remove the last line of a JSON-lines file if it is incomplete, so that more can be appended."""
    parsed = list(_parsed_lines(path))
    if parsed and parsed[-1][1] is None:
        write_bytes(path, b"".join(line for line, _ in parsed[:-1]))


_REMEDY = "remove that line, or resume from a checkpoint before it"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file; see `read_lines`."""
    return read_lines(path, _REMEDY)


def truncate_metrics(path: Path, step: int) -> None:
    """Keep the lines up to and including `step`, byte for byte, and remove the rest, also incomplete lines.

    Raises:
        RunError: If a line up to that of `step` is damaged; the file is then unchanged.
    """
    parsed = list(_parsed_lines(path))
    steps = [_step_of(value) for _, value in parsed]
    kept = next((place for place in range(len(parsed), 0, -1) if 0 <= steps[place - 1] <= step), 0)
    last = steps[kept - 1] if kept else -1
    whole = kept if last == step else kept + 1  # the line after the kept ones may be the damaged line of `step`
    for number, found in enumerate(steps[:whole], start=1):
        if found < 0 <= step:
            raise RunError(f"{path} line {number} is damaged; {_REMEDY}")
    if kept < len(parsed):
        write_bytes(path, b"".join(line for line, _ in parsed[:kept]))


def _step_of(line: Mapping[str, Any] | None) -> int:
    """Return the step of a parsed line of metrics, or -1 if the line is damaged."""
    step = -1 if line is None else line.get("step", 0)
    return step if isinstance(step, int) else -1


def write_rollouts(path: Path, rows: Sequence[RolloutRow]) -> None:
    """Write a step's completions as Parquet, one row each, to a temporary file that is then renamed.

    Raises:
        RunError: If the file cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    columns = {name: [_cell(name, getattr(row, name)) for row in rows] for name in _ARROW_TYPES}
    buffer = pa.BufferOutputStream()
    table = pa.table(columns, schema=_schema())
    parquet.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    write_bytes(path, buffer.getvalue().to_pybytes())


def read_rollouts(path: Path, columns: Sequence[str] | None = None) -> list[RolloutRow]:
    """Return the rows of a rollout file; `columns` limits them to some columns and the identifying ones.

    Raises:
        RunError: If the file is missing or is not a rollout file.
    """
    required = [f.name for f in fields(RolloutRow)] if columns is None else [*_IDENTITY, *columns]
    return [_row(record) for record in rollout_table(path, required).to_pylist()]


def rollout_table(path: Path, columns: Sequence[str]) -> Any:
    """Return some columns of a rollout file as a `pyarrow.Table`, which is faster for many rows.

    Raises:
        RunError: If the file is missing or is not a rollout file.
    """
    import pyarrow as pa
    from pyarrow import parquet

    names = [name for name in _ARROW_TYPES if name in columns]
    read = [*names, "version"] if "age" in names and "version" not in names else names
    try:
        there = [name for name in parquet.read_schema(path).names if name in read]
        table = parquet.read_table(path, columns=there, use_threads=False, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise RunError(
            f"cannot read rollouts {path}: {one_line(error)}; remove the file; the run does not need it"
        ) from error
    if _schema_version(path, table.schema.metadata or {}) == 1:
        table = _with_versions(table)
    if "token_versions" in names and "token_versions" not in table.column_names:  # of an earlier gvpo
        table = table.append_column("token_versions", pa.nulls(len(table), pa.list_(pa.int32())))
    for name, value in (("turns", "[]"), ("opening", "")):
        if name in names and name not in table.column_names:
            table = table.append_column(name, pa.array([value] * len(table), pa.string()))
    if missing := set(names) - set(table.column_names):
        raise RunError(f"{path} is not a rollout file: it has no column {sorted(missing)[0]!r}")
    return table.select(names)


def _with_versions(table: Any) -> Any:
    """Return rows of a file of version 1 with today's `version` and `age`: a row was sampled by the step's policy."""
    from pyarrow import compute

    if "version" not in table.column_names:
        return table
    steps = table["version"]
    steps = compute.if_else(compute.greater(steps, 0), steps, None)
    table = table.set_column(table.column_names.index("version"), "version", compute.subtract(steps, 1))
    if "age" in table.column_names:
        table = table.drop_columns("age")
    return table.append_column("age", compute.multiply(steps, 0))


_IDENTITY = ("step", "group", "row", "prompt", "prompt_tokens", "text", "tokens")


def _schema() -> Any:
    import pyarrow as pa

    types = {
        "int64": pa.int64(),
        "float64": pa.float64(),
        "string": pa.string(),
        "list<int32>": pa.list_(pa.int32()),
        "list<float32>": pa.list_(pa.float32()),
    }
    columns = [(name, types[kind]) for name, kind in _ARROW_TYPES.items()]
    return pa.schema(columns, metadata={_SCHEMA_KEY: str(ROLLOUT_SCHEMA).encode()})


def _schema_version(path: Path, metadata: Mapping[bytes, bytes]) -> int:
    """Return the version of a file's columns.

    Raises:
        RunError: If this version of gvpo does not know it.
    """
    version = metadata.get(_SCHEMA_KEY, b"1").decode(errors="replace")
    if not version.isdecimal() or int(version) > ROLLOUT_SCHEMA:
        raise RunError(
            f"{path} has version {version} of the rollout files, but this gvpo reads versions up to {ROLLOUT_SCHEMA}; "
            "read it with the version of gvpo that wrote it, or a newer one"
        )
    return int(version)


def _cell(name: str, value: Any) -> Any:
    """Return a field's value in the form in which the file stores it."""
    value = to_json(value) if name in _JSON_COLUMNS else value
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode("utf-8")
    return value.tolist() if hasattr(value, "tolist") else value


def _row(record: Mapping[str, Any]) -> RolloutRow:
    decoded = {name: json.loads(record[name]) for name in _JSON_COLUMNS if name in record}
    return RolloutRow(**{**record, **decoded})
