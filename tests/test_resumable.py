"""Files that grow: their contents after a crash, and the settings with which they resume."""

import json
from pathlib import Path

import pytest

from gvpo.errors import RunError
from gvpo.resumable import ResumableFile

SETTINGS = {"model": "m", "n": 4}


def file_in(directory: Path, where: str) -> ResumableFile:
    beside = directory / "rows.settings.json" if where == "beside" else None
    return ResumableFile(directory / "rows.jsonl", beside, remedy="choose another name")


@pytest.mark.parametrize("where", ["beside", "first line"])
def test_rows_are_appended_and_read(where: str, tmp_path: Path):
    file = file_in(tmp_path, where)
    file.check(SETTINGS, resume=False)
    assert file.rows() == []
    file.begin(SETTINGS, resume=False)
    file.append([{"id": 1, "text": "a\ud800"}])
    file.append([{"id": 2, "value": float("nan")}])
    assert file.rows() == [{"id": 1, "text": "a?"}, {"id": 2, "value": None}]


@pytest.mark.parametrize("where", ["beside", "first line"])
def test_an_incomplete_row_is_removed_before_the_next_one(where: str, tmp_path: Path):
    file = file_in(tmp_path, where)
    file.begin(SETTINGS, resume=False)
    file.append([{"id": 1}])
    with file.path.open("a") as torn:
        torn.write('{"id": 2, "te')
    assert file.rows() == [{"id": 1}]
    file.begin(SETTINGS, resume=True)
    file.append([{"id": 2}])
    assert file.rows() == [{"id": 1}, {"id": 2}]


@pytest.mark.parametrize("where", ["beside", "first line"])
def test_error_about_other_settings_names_them_and_nothing_is_written(where: str, tmp_path: Path):
    file = file_in(tmp_path, where)
    file.begin(SETTINGS, resume=False)
    file.append([{"id": 1}])
    before = file.path.read_bytes()
    for changed, message in (
        ({"n": 8}, "was created with n=4, not 8; use the same settings, or choose another name"),
        ({"top_k": 2}, "was created with top_k=null, not 2"),
    ):
        with pytest.raises(RunError, match=message):
            file.begin({**SETTINGS, **changed}, resume=True)
    with pytest.raises(RunError, match="already exists; resume it with --resume, or choose another name"):
        file.begin(SETTINGS, resume=False)
    assert file.path.read_bytes() == before


@pytest.mark.parametrize(
    ("where", "message"), [("beside", "has no rows.settings.json next to it"), ("first line", "has no settings in its")]
)
def test_error_about_rows_of_unknown_origin(where: str, message: str, tmp_path: Path):
    file = file_in(tmp_path, where)
    file.path.touch()
    with pytest.raises(RunError, match=message.replace(".", r"\.")):
        file.check(SETTINGS, resume=True)


def test_settings_are_where_they_belong(tmp_path: Path):
    for where in ("beside", "first line"):
        (tmp_path / where).mkdir()
        file_in(tmp_path / where, where).begin(SETTINGS, resume=False)
    assert json.loads((tmp_path / "beside" / "rows.settings.json").read_text()) == SETTINGS
    assert json.loads((tmp_path / "first line" / "rows.jsonl").read_text()) == SETTINGS
