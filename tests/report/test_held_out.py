"""Held-out answers before and after training, and completions of several turns."""

import json
from pathlib import Path
from typing import Any

import pytest

from gvpo.report import write_report
from gvpo.report.data import load_run
from gvpo.report.held_out import compared, held_out
from gvpo.runfiles import HELD_OUT, RolloutRow
from gvpo.training.checkpoint.run_directory import RunDirectory
from tests.report.browser import CHROMIUM, Browser
from tests.report.test_page import byte_tokenizer

HOSTILE = "</pre><img src=x onerror=alert(1)>"


def answer(problem: str, index: int, text: str, reward: float | None, **changes: Any) -> RolloutRow:
    shared = {"prompt": f"Question: {problem}?", "prompt_tokens": [1], "tokens": [1, 2, 3], "columns": {"answer": "7"}}
    return RolloutRow(step=0, group=problem, row=index, text=text, reward=reward, **{**shared, **changes})


def evaluation(first: float, second: float | None, third: float, text: str) -> list[RolloutRow]:
    return [
        answer("a", 0, f"{text} a, sampled", 1.0),
        answer("a", 1, f"{text} a, sampled again", 0.0),
        answer("a", 2, f"{text} a, greedy", first, source="greedy"),
        answer("b", 0, f"{text} b", second, reason="timeout" if second is None else ""),
        answer("c", 0, f"{text} c {HOSTILE}", third),
    ]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory.create(tmp_path / "run", config="{}")
    run.write_rollouts(0, evaluation(0.0, None, 0.5, "before"), HELD_OUT)
    run.write_rollouts(10, evaluation(0.5, 0.5, 0.5, "between"), HELD_OUT)
    return run


def finished(run: RunDirectory) -> RunDirectory:
    run.write_rollouts(20, evaluation(1.0, 0.0, 0.5, "after"), HELD_OUT)
    return run


def test_problems_are_compared_by_their_greedy_answer_or_the_first_sampled_one(run):
    a, b, c = compared(load_run(finished(run).path), 0, 20)
    assert (a.before.shown.text, a.after.shown.text) == ("before a, greedy", "after a, greedy")
    assert (a.before.mean, a.before.count) == (0.5, 2)
    assert (b.before.shown.text, b.after.shown.text) == ("before b", "after b")
    assert [each.outcome for each in (a, b, c)] == ["better", "better", "same"]  # no reward is the lowest


def test_the_page_shows_the_first_and_the_last_evaluation_side_by_side(run):
    html = held_out([load_run(finished(run).path)])
    assert html.count("before training") == html.count("after step 20") == 3
    assert "between" not in html
    assert "all <b>3</b>" in html
    assert "the reward rose <b>2</b>" in html
    assert ">a</pre>" in html  # without the words that all prompts share
    assert "2 sampled answers: reward 0.5" in html
    assert "<img" not in html


def test_answers_that_do_not_fit_are_counted(run, monkeypatch):
    monkeypatch.setattr("gvpo.report.held_out.TEXT_CHARACTERS", 60)
    html = held_out([load_run(finished(run).path)])
    assert html.count("<article") == 1
    assert "2 more are in run/held-out/." in html


def test_a_run_that_was_evaluated_once_has_no_such_section(tmp_path):
    run = RunDirectory.create(tmp_path / "once", config="{}")
    run.write_rollouts(0, evaluation(0.0, 0.0, 0.0, "before"), HELD_OUT)
    assert held_out([load_run(run.path)]) == ""
    page = write_report([run.path], tmp_path / "page.html").read_text()
    assert 'href="#held-out-answers"' not in page


def test_a_damaged_evaluation_is_left_out_with_a_warning(run):
    path = finished(run).path / HELD_OUT / "step-000020.parquet"
    path.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="step-000020"):
        assert held_out([load_run(run.path)]) == ""


TOLD, LAST = " told ", "end"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RunDirectory.create(tmp_path_factory.mktemp("runs") / "run", config="{}")
    byte_tokenizer().save(str(run.path / "tokenizer.json"))
    (run.path / "config.json").write_text(json.dumps({"model": {"path": str(run.path)}}))
    run.write_rollouts(0, evaluation(0.0, 0.0, 1.0, "before"), HELD_OUT)
    run.write_rollouts(20, evaluation(1.0, 0.0, 0.5, "after"), HELD_OUT)
    text = f"call{TOLD}{LAST}"
    mask = [1.0] * len("call") + [0.0] * len(TOLD) + [1.0] * len(LAST)
    turns = [
        RolloutRow(1, "g", i, "p", [1], text, [*text.encode()], reward=i, mask=mask, logprobs=[-1.0] * len(text))
        for i in (0, 1)
    ]
    plain = RolloutRow(1, "g", 2, "p", [1], text, [*text.encode()], reward=2.0, logprobs=[-1.0] * len(text))
    run.write_rollouts(1, [*turns, plain])
    return write_report([run.path], run.report_path)


@pytest.fixture
def browser(page: Path, tmp_path: Path):
    with Browser(tmp_path / "profile") as browser:
        browser.look()
        browser.open(page)
        yield browser
        assert browser.errors() == []


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the report's page is not opened")
def test_the_filter_and_the_turns_in_a_browser(browser):
    shown = "[...document.querySelectorAll('.compared')].map((each) => each.offsetParent !== null)"
    assert browser.evaluate(shown) == [True, True, True]
    browser.click("input[value=worse]")
    assert browser.evaluate(shown) == [False, False, True]
    assert browser.texts("#viewer .said b") == ["turn 1", "told", "turn 2"] * 2  # the third completion has no mask
    said = ["turn 1call", f"told{TOLD}", f"turn 2{LAST}"]
    assert browser.texts("#viewer .said") == said * 2
    browser.choose("colour tokens by", "logprobs")
    browser.wait("document.querySelectorAll('#viewer .said .token').length > 0")
    assert browser.texts("#viewer .said") == said * 2
