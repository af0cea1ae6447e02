"""The tables that compare runs: settings that differ, and totals."""

import json
import re
from pathlib import Path
from typing import Any

from gvpo.report.comparison import differing_settings, duration, totals
from gvpo.report.data import Run, load_run
from gvpo.runfiles import read_json, write_json
from gvpo.training.checkpoint.run_directory import RunDirectory


def run(path: Path, config: dict[str, Any], *lines: dict[str, Any], **environment: Any) -> Run:
    made = RunDirectory.create(path, config=json.dumps(config))
    for line in lines:
        made.append_metrics(line)
    facts = read_json(path / "environment.json") | environment
    write_json(path / "environment.json", facts)
    return load_run(path)


def cells(table: str) -> list[list[str]]:
    return [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]


def test_settings_and_versions_that_differ_are_listed(tmp_path):
    packages = {"torch": "2.9"}
    a = {"run": {"dir": "a", "seed": 0}, "objective": {"name": "gvpo", "beta": 0.1}, "rewards": {"funcs": ["x"]}}
    b = {"run": {"dir": "b", "seed": 0}, "objective": {"name": "rloo", "beta": None}, "rewards": {"funcs": ["x", "y"]}}
    one = run(tmp_path / "one", a, packages=packages)
    two = run(tmp_path / "two", b, packages={"torch": "2.10"})
    assert cells(differing_settings([one, two])) == [
        ["settings that differ", "one", "two"],
        ["objective.name", "gvpo", "rloo"],
        ["objective.beta", "0.1", ""],
        ["rewards.funcs", "[&quot;x&quot;]", "[&quot;x&quot;, &quot;y&quot;]"],
        ["torch", "2.9", "2.10"],
    ]
    assert differing_settings([one]) == ""
    assert differing_settings([one, one]) == ""


def test_totals_are_sums_over_the_steps(tmp_path):
    evaluation = {"step": 0, "seconds/evaluating": 30.0}
    steps = [
        {
            "tokens/sampled": 600,
            "length/mean": 20.0,
            "tokens/prompt": 90,
            "tokens/trained": 1200,
            "seconds/total": 50.0,
        },
        {
            "tokens/sampled": 640,
            "length/mean": 20.0,
            "tokens/prompt": 90,
            "tokens/trained": 1280,
            "seconds/total": 100.0,
        },
    ]
    lines = [{"step": 1 + number, "seconds/sampling": 40.0, **line} for number, line in enumerate(steps)]
    found = run(tmp_path / "run", {}, evaluation, *lines, ranks=2)
    assert cells(totals([found], price_per_hour=10.0)) == [
        ["total", "run"],
        ["completions", "62"],
        ["completion tokens", "1,240"],
        ["prompt tokens", "180"],
        ["trained tokens, counted per update", "2,480"],
        ["time sampling", "1 min 20 s"],
        ["time evaluating", "30 s"],
        ["time of all steps and evaluations", "3 min 00 s"],
        ["completion tokens per second of training", "8"],
        ["processes", "2"],
        ["cost at 10 per process and hour", "1.00"],
    ]
    assert "cost" not in totals([found])


def test_durations_are_words():
    assert [duration(each) for each in (0, 0.25, 7, 61, 3720)] == ["", "0.25 s", "7 s", "1 min 01 s", "1 h 02 min"]
