"""Files of scored groups: their state after a crash, and rejected settings."""

import json
from pathlib import Path

import pytest

from gvpo.errors import ConfigError, RunError
from gvpo.rollout.group_file import GroupFile

SETTINGS = {"model": "m", "n": 4, "temperature": 1.0}


def begun(path: Path) -> GroupFile:
    file = GroupFile(path / "out" / "groups.jsonl")
    file.begin(SETTINGS, resume=False)
    return file


def test_appended_groups_are_read_and_the_settings_are_in_the_same_folder(tmp_path: Path):
    file = begun(tmp_path)
    assert file.rows() == []
    file.append([{"id": "a", "rewards": [1.0, float("nan")]}])
    file.append([{"id": "b"}])
    assert file.rows() == [{"id": "a", "rewards": [1.0, None]}, {"id": "b"}]
    assert file.finished() == {"a", "b"}
    assert json.loads(file.settings_path.read_text()) == SETTINGS


def test_a_torn_line_is_removed_and_its_problem_is_not_done(tmp_path: Path):
    file = begun(tmp_path)
    file.append([{"id": "a"}, {"id": "b"}])
    with file.path.open("a") as torn:
        torn.write('{"id": "c", "rew')
    assert file.finished() == {"a", "b"}
    file.begin(SETTINGS, resume=True)
    file.append([{"id": "c"}])
    assert [row["id"] for row in file.rows()] == ["a", "b", "c"]


def test_an_existing_file_is_never_overwritten(tmp_path: Path):
    file = begun(tmp_path)
    file.append([{"id": "a"}])
    with pytest.raises(RunError, match="already exists; resume it with --resume"):
        file.begin(SETTINGS, resume=False)
    assert file.finished() == {"a"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 8}, "was created with n=4, not 8"),
        ({"temperature": 0.6}, "temperature=1.0, not 0.6"),
        ({"template": "r1"}, 'template=null, not "r1"'),
    ],
)
def test_error_names_the_changed_setting(tmp_path: Path, change: dict[str, object], message: str):
    file = begun(tmp_path)
    file.append([{"id": "a"}])
    with pytest.raises(RunError, match=message):
        file.check({**SETTINGS, **change}, resume=True)
    file.check(SETTINGS, resume=True)


def test_settings_without_a_groups_file_are_ignored(tmp_path: Path):
    file = begun(tmp_path)
    file.begin({**SETTINGS, "n": 8}, resume=False)
    assert json.loads(file.settings_path.read_text())["n"] == 8


def test_groups_without_settings_are_rejected(tmp_path: Path):
    file = begun(tmp_path)
    file.append([{"id": "a"}])
    file.settings_path.unlink()
    with pytest.raises(RunError, match=r"has no groups\.settings\.json next to it"):
        file.check(SETTINGS, resume=True)


def test_error_names_the_damaged_line(tmp_path: Path):
    file = begun(tmp_path)
    file.append([{"id": "a"}, {"id": "b"}, {"id": "a"}])
    with pytest.raises(RunError, match="line 3 has the id 'a' again"):
        file.rows()
    file.path.write_text('{"id": "a"}\n{"id"\n{"id": "c"}\n')
    with pytest.raises(RunError, match="line 2 is damaged; remove that line"):
        file.rows()


def test_only_json_lines(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"choose a name that ends in \.jsonl"):
        GroupFile(tmp_path / "groups.parquet")
