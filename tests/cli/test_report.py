import argparse

import pytest

from gvpo.cli import report
from tests.report.synthetic import make_run


def call(*words) -> int:
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    return report.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def demo(tmp_path):
    return make_run(tmp_path / "demo", steps=3)


def test_the_report_of_one_run_is_in_its_directory(demo, capsys):
    assert call(demo) == 0
    assert "<h1>demo</h1>" in (demo / "report.html").read_text()
    assert capsys.readouterr().out == f"wrote {demo / 'report.html'}\n"


def test_the_report_of_several_runs_is_in_the_current_directory(demo, tmp_path, monkeypatch, capsys):
    other = make_run(tmp_path / "other", steps=3)
    monkeypatch.chdir(tmp_path)
    assert call(demo, other) == 0
    assert "<h1>2 runs</h1>" in (tmp_path / "report.html").read_text()
    assert not (demo / "report.html").exists()
    assert capsys.readouterr().out == "wrote report.html\n"


def test_out_and_figure(demo, tmp_path, capsys):
    page, figure = tmp_path / "deep" / "page.html", tmp_path / "curves.svg"
    assert call(demo, "--out", page, "--figure", figure) == 0
    assert page.read_text().startswith("<!doctype html>")
    assert figure.read_text().startswith("<svg")
    assert capsys.readouterr().out.splitlines() == [f"wrote {page}", f"wrote {figure}"]
