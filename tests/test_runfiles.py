import errno
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from gvpo import runfiles
from gvpo.errors import RunError
from gvpo.runfiles import RolloutRow


def strict(text: str) -> object:
    """Return JSON as other programs read it, without NaN or Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


# Writable paths


def test_an_unwritable_path_is_detected_without_writing(tmp_path, monkeypatch):
    runfiles.require_writable(tmp_path / "a/b/file.json")
    (tmp_path / "file").write_text("")
    runfiles.require_writable(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(RunError, match=r"cannot write .*/file/x: .*/file is not a directory; name another place"):
        runfiles.require_writable(tmp_path / "file/x")
    with pytest.raises(RunError, match=r"is a directory; name another place"):
        runfiles.require_writable(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # because the superuser may write everywhere
    with pytest.raises(RunError, match=r"is read-only; choose another"):
        runfiles.require_writable(tmp_path / "a/b/file.json", advice="choose another")


# Metrics lines


def test_non_finite_metrics_are_null_and_listed():
    line = runfiles.metrics_line({"step": 3, "train/loss": math.nan, "train/grad_norm": -math.inf, "entropy": 0.5})
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert strict(line) == {
        "step": 3,
        "train/loss": None,
        "train/grad_norm": None,
        "entropy": 0.5,
        "nonfinite": {"train/loss": "nan", "train/grad_norm": "-inf"},
    }


def test_numpy_scalars_become_numbers():
    assert strict(runfiles.metrics_line({"step": np.int64(2), "x": np.float64("inf"), "y": np.float32(0.5)})) == {
        "step": 2,
        "x": None,
        "y": 0.5,
        "nonfinite": {"x": "inf"},
    }


def test_a_finite_line_has_no_list():
    assert runfiles.metrics_line({"step": 1}) == '{"step": 1}\n'


def test_json_of_odd_values_is_valid():
    value = {"a": [1.0, math.nan, (2, {"b": math.inf})], 3: np.array([1, 2]), "path": os, "text": 'é"\n', "yes": True}
    assert strict(runfiles.to_json(value)) == {
        "a": [1.0, None, [2, {"b": None}]],
        "3": [1, 2],
        "path": str(os),
        "text": 'é"\n',
        "yes": True,
    }


@pytest.mark.parametrize(
    "torn",
    [
        '{"step": 3, "lo',  # the process died in the middle of a line
        '{"step": 3}',  # ... just before its newline
        "\0\0\0\0\n",  # ... and the file system filled it with zeros
    ],
)
def test_an_incomplete_last_line_is_skipped_and_removed(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n' + torn)
    assert runfiles.read_metrics(path) == [{"step": 1}, {"step": 2}]
    runfiles.truncate_metrics(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_error_about_damage_in_the_middle_names_the_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnot json\n{"step": 3}\n')
    with pytest.raises(RunError, match="line 2 is damaged"):
        runfiles.read_metrics(path)


@pytest.mark.parametrize(
    ("lines", "step", "damaged"),
    [
        ('{"step": 1}\nnot json\n{"step": 3}\n{"step": 4}\n', 3, 2),  # a line before the checkpoint
        ('{"step": 1}\n\0\0\0\0\n{"step": 3}\n', 3, 2),  # ... that was never written
        ('{"step": 1}\n{"step": "2"}\n{"step": 3}\n', 3, 2),  # ... of something else
        ('{"step": 1}\n{"step": 2}\n{"st\n{"step": 4}\n', 3, 3),  # the line of the checkpoint itself
        ('{"step": 1}\n{"step": 2}\n{"st', 3, 3),
        ("[" * 100_000 + '\n{"step": 2}\n', 2, 1),
    ],
)
def test_error_about_damage_before_the_checkpoint_names_the_line_and_nothing_is_removed(tmp_path, lines, step, damaged):
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines)
    with pytest.raises(RunError, match=f"metrics.jsonl line {damaged} is damaged; remove that line"):
        runfiles.truncate_metrics(path, step)
    assert path.read_text() == lines


@pytest.mark.parametrize("step", [-1, 2])
def test_damage_after_the_checkpoint_is_removed(tmp_path, step):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\nnot json\n{"step": 4}\n')
    runfiles.truncate_metrics(path, step)
    assert path.read_text() == ('{"step": 1}\n{"step": 2}\n' if step == 2 else "")


def test_truncation_keeps_bytes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":1,  "x": 0.10}\n{"step": 2}\n{"step": 3}\n')
    runfiles.truncate_metrics(path, 1)
    assert path.read_text() == '{"step":1,  "x": 0.10}\n'


def test_truncation_to_nothing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n')
    runfiles.truncate_metrics(path, -1)
    assert path.read_text() == ""


def test_missing_files_read_as_empty(tmp_path):
    assert runfiles.read_metrics(tmp_path / "metrics.jsonl") == []
    assert runfiles.read_json(tmp_path / "summary.json") == {}
    assert runfiles.rollout_steps(tmp_path) == []


@pytest.mark.parametrize("text", ["{", "[1]", "\0"])
def test_error_about_damaged_json_names_the_file(tmp_path, text):
    path = tmp_path / "summary.json"
    path.write_text(text)
    with pytest.raises(RunError, match=r"summary\.json"):
        runfiles.read_json(path)


# Safe writes


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.replace"])
def test_a_failed_write_keeps_the_old_file_and_no_partial_one(tmp_path, monkeypatch, failing):
    path = tmp_path / "summary.json"
    runfiles.write_json(path, {"steps": 1})
    monkeypatch.setattr(failing, full_disk)
    with pytest.raises(RunError, match="No space left on device"):
        runfiles.write_json(path, {"steps": 2})
    assert runfiles.read_json(path) == {"steps": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_write_into_a_file_as_directory_is_a_run_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        runfiles.write_text(tmp_path / "file" / "x.json", "{}")


def test_data_is_on_disk_before_the_rename(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda handle: (calls.append("fsync"), fsync(handle)))
    monkeypatch.setattr("pathlib.Path.replace", lambda self, target: (calls.append("rename"), replace(self, target)))
    runfiles.write_text(tmp_path / "a", "x")
    assert calls == ["fsync", "rename", "fsync"]  # the file, its name, the directory


# Rollouts

ROW = RolloutRow(
    step=10,
    group="train/7",
    row=0,
    prompt="489+636=",
    prompt_tokens=[1, 2],
    text="9+6+0=15\n\\boxed{1125}",
    tokens=[3, 4, 5],
    reward=1.0,
    reward_parts={"boxed": 1.0, "format": None},
    weight=-0.25,
    implicit_reward=0.125,
    logprobs=[-0.5, -0.25, 0.0],
    ref_logprobs=np.array([-1.0, -0.5, -0.125], dtype=np.float32),
    entropy=[0.5, 0.25, 0.0],
    mask=[1, 1, 0],
    finish_reason="length",
    source="demonstration",
    version=8,
    token_versions=[8, 8, 9],
    age=1,
    columns={"answer": "1125", "levels": [1, 2]},
)
FAILED = RolloutRow(
    step=10, group="train/7", row=1, prompt="p", prompt_tokens=[1], text="", tokens=[], reason="timeout"
)


def test_rollouts_round_trip(tmp_path):
    path = runfiles.rollout_path(tmp_path, 10)
    runfiles.write_rollouts(path, [ROW, FAILED])
    first, second = runfiles.read_rollouts(path)
    assert first == RolloutRow(**{**vars(ROW), "ref_logprobs": [-1.0, -0.5, -0.125], "mask": [1.0, 1.0, 0.0]})
    assert second == FAILED
    assert path.relative_to(tmp_path).as_posix() == "rollouts/step-000010.parquet"
    assert runfiles.rollout_steps(tmp_path) == [10]


def test_rollout_file_has_the_documented_schema(tmp_path):
    from pyarrow import parquet

    path = tmp_path / "step-000001.parquet"
    runfiles.write_rollouts(path, [FAILED])
    types = {field.name: str(field.type) for field in parquet.read_schema(path)}
    assert types.keys() == vars(FAILED).keys()
    assert types["reward"] == "double"
    assert types["reward_parts"] == types["columns"] == "string"
    assert types["tokens"] == "list<element: int32>"
    assert types["sampler_logprobs"] == "list<element: float>"


def test_a_file_without_a_schema_version_has_the_first_and_a_newer_one_is_an_error(tmp_path):
    from pyarrow import parquet

    path = tmp_path / "step-000001.parquet"
    runfiles.write_rollouts(path, [ROW])
    table = parquet.read_table(path)
    assert table.schema.metadata[b"gvpo.rollout_schema"] == b"2"
    parquet.write_table(table.replace_schema_metadata(None), path)
    assert runfiles.read_rollouts(path)[0].text == ROW.text
    for version in ("3", "next"):
        parquet.write_table(table.replace_schema_metadata({"gvpo.rollout_schema": version}), path)
        with pytest.raises(
            RunError, match=f"has version {version} of the rollout files, but this gvpo reads .* up to 2"
        ):
            runfiles.rollout_table(path, ["reward"])


def test_a_file_of_an_earlier_gvpo_has_no_versions_of_tokens(tmp_path):
    from pyarrow import parquet

    path = tmp_path / "step-000001.parquet"
    runfiles.write_rollouts(path, [ROW])
    parquet.write_table(parquet.read_table(path).drop_columns("token_versions"), path)
    assert runfiles.read_rollouts(path)[0] == RolloutRow(
        **{**vars(runfiles.read_rollouts(path)[0]), "token_versions": None}
    )
    assert runfiles.rollout_table(path, ["version", "token_versions"]).to_pylist() == [
        {"version": 8, "token_versions": None}
    ]


def test_a_file_of_an_earlier_gvpo_has_no_episodes(tmp_path):
    from pyarrow import parquet

    path = tmp_path / "step-000001.parquet"
    runfiles.write_rollouts(path, [RolloutRow(**{**vars(ROW), "turns": [{"start": 0}], "opening": "Guess."})])
    parquet.write_table(parquet.read_table(path).drop_columns(["turns", "opening"]), path)
    (found,) = runfiles.read_rollouts(path)
    assert (found.turns, found.opening) == ([], "")


def test_a_file_of_the_first_version_has_todays_versions_and_ages(tmp_path):
    """It contained the step that sampled a row, or 0, and no ages."""
    from pyarrow import parquet

    path = tmp_path / "step-000010.parquet"
    written = [RolloutRow(**{**vars(ROW), "version": version}) for version in (10, 0)]
    runfiles.write_rollouts(path, written)
    table = parquet.read_table(path).drop_columns("age")
    parquet.write_table(table.replace_schema_metadata({"gvpo.rollout_schema": "1"}), path)
    assert [(row.version, row.age) for row in runfiles.read_rollouts(path)] == [(9, 0), (None, None)]
    assert runfiles.rollout_table(path, ["reward", "age"]).to_pydict() == {"reward": [1.0, 1.0], "age": [0, None]}
    assert runfiles.rollout_table(path, ["reward"]).column_names == ["reward"]


def test_some_columns(tmp_path):
    path = tmp_path / "step-000001.parquet"
    runfiles.write_rollouts(path, [ROW])
    (row,) = runfiles.read_rollouts(path, ["reward"])
    assert (row.reward, row.text, row.logprobs, row.weight) == (1.0, ROW.text, None, None)


def test_a_file_without_rows(tmp_path):
    path = tmp_path / "step-000001.parquet"
    runfiles.write_rollouts(path, [])
    assert runfiles.read_rollouts(path) == []


def test_text_that_is_not_unicode_is_kept_as_far_as_possible(tmp_path):
    path = tmp_path / "step-000001.parquet"
    runfiles.write_rollouts(path, [RolloutRow(**{**vars(FAILED), "text": "a\udc80b"})])
    assert runfiles.read_rollouts(path)[0].text == "a?b"


def test_error_about_a_file_that_is_not_a_rollout_file_names_it(tmp_path):
    path = tmp_path / "step-000001.parquet"
    with pytest.raises(RunError, match="step-000001"):
        runfiles.read_rollouts(path)
    path.write_bytes(b"PAR1 truncated")
    with pytest.raises(RunError, match="step-000001"):
        runfiles.read_rollouts(path)


def test_unfinished_rollout_file_does_not_count(tmp_path):
    runfiles.write_rollouts(runfiles.rollout_path(tmp_path, 2), [FAILED])
    (tmp_path / "rollouts" / ".step-000003.parquet.tmp").write_bytes(b"half")
    assert runfiles.rollout_steps(tmp_path) == [2]


def test_import_is_light():
    code = "import gvpo.runfiles, sys; print([m for m in ('torch', 'transformers', 'pyarrow') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
