"""Episodes in the report: turn by turn in the groups and in the held-out answers, and filters for what went wrong."""

import base64
import gzip
import json
from pathlib import Path
from typing import get_args

import pytest

from gvpo.report import write_report
from gvpo.report.data import load_run
from gvpo.report.episodes import OUTCOMES, bubbles, episode_facts, shown_turns
from gvpo.report.groups import read_step, run_index, text_blocks
from gvpo.report.held_out import held_out
from gvpo.report.viewer import viewer_data
from gvpo.runfiles import RolloutRow
from gvpo.training.checkpoint.run_directory import RunDirectory
from gvpo.types import TurnOutcome
from tests.report import calculator
from tests.report.browser import CHROMIUM, Browser
from tests.report.test_page import byte_tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = calculator.make_run(tmp_path_factory.mktemp("runs") / "run")
    byte_tokenizer().save(str(run.path / "tokenizer.json"))
    (run.path / "config.json").write_text(json.dumps({"model": {"path": str(run.path)}}))
    return run


def test_facts_of_episodes_are_columns(run):
    found = load_run(run.path)
    facts = run_index(found, [read_step(found, 1)])["episodes"]
    assert facts == {
        "turns": [3, 3, 2, 4, 1, 1],
        "peak": [0.011, 0.009, 0.012, 0.002, None, None],
        "error": [0, 1, 0, 0, 0, 0],
        "timeout": [0, 0, 1, 0, 0, 0],
        "gone": [0] * 6,
    }
    assert episode_facts(["[]", "[]"]) is None
    assert episode_facts(['[{"outcome": "died"}, {"outcome": "lost"}]', "[]"])["gone"] == [2, 0]


def test_turns_have_what_a_card_shows(run):
    found = load_run(run.path)
    (block,) = text_blocks(found, read_step(found, 1), None)
    first, second, _ = block["episodes"][1]
    assert first == {
        "at": [0, 4, 5],
        "own": "4-2;",
        "heard": [["tool", "2"]],
        "reward": 0.25,
        "weight": -0.003,
        "outcome": "",
        "detail": "",
        "time": "2 ms",
    }
    assert (second["outcome"], second["detail"]) == ("error", "SyntaxError")
    assert shown_turns([{"outcome": "none"}])[0]["outcome"] == "not asked: the turn was cut"
    times = [turn["time"] for turn in shown_turns([{"seconds": s} for s in (0, 2e-5, 0.25, 10.01, None)])]
    assert times == ["", "< 1 ms", "250 ms", "10 s", ""]
    assert shown_turns([{"heard": [{"role": "user", "content": "higher"}]}])[0]["heard"] == [["environment", "higher"]]


def test_runs_without_episodes_have_none(tmp_path):
    run = RunDirectory.create(tmp_path / "run", config="{}")
    run.write_rollouts(1, [RolloutRow(1, "g", 0, "p", [1], "text", [2])])
    packed = viewer_data([load_run(run.path)])
    read = {name: json.loads(gzip.decompress(base64.b64decode(text))) for name, text in packed.items()}
    assert read["index-0"]["episodes"] is None
    assert read["text-0-0"]["episodes"] == [None]


def test_held_out_episodes_are_shown_turn_by_turn(run):
    page = held_out([load_run(run.path)])
    assert '<b><span>turn 1</span><span class="chip">reward 0.25</span></b>4-2;</div>' in page
    assert '<div class="said heard"><b><span>tool</span><small>2 ms</small></b>2</div>' in page
    assert '<span class="warn">error</span>' in page
    assert calculator.HOSTILE not in page


def test_every_outcome_has_words():
    assert {*OUTCOMES} == {*get_args(TurnOutcome)} - {"ok"}


def test_an_outcome_without_words_of_the_environment_is_shown():
    cut = {"text": "4-", "outcome": "none"}
    lost = {"text": "4-2;", "outcome": "lost", "detail": "its process ended"}
    assert "not asked: the turn was cut" in bubbles([cut])
    assert '<b><span>environment</span><span class="warn">failed</span></b>its process ended' in bubbles([lost])
    assert "heard" not in bubbles([{"text": "=4."}])


@pytest.fixture
def browser(run: RunDirectory, tmp_path: Path):
    with Browser(tmp_path / "profile") as browser:
        browser.look()
        browser.open(write_report([run.path], run.report_path))
        yield browser
        assert browser.errors() == []


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the report's page is not opened")
def test_a_reader_sees_turns_and_finds_what_went_wrong(browser):
    first = "#viewer article:first-child .said"
    assert browser.texts(f"{first} b > span:first-child") == ["turn 1", "tool", "turn 2", "tool", "turn 3"]
    assert browser.texts(f"{first} .chip") == ["reward 0.25", "reward 0.25", "reward 1"]
    assert browser.texts(f"{first} small") == ["2 ms", "2 ms"]
    bars = browser.evaluate(f"[...document.querySelectorAll('{first} .push i')].map((bar) => bar.style.width)")
    assert [float(bar.rstrip("%")) for bar in bars] == pytest.approx([45.8333, 33.3333, 20.8333], abs=1e-3)
    wrong = "#viewer article:nth-child(2)"
    assert browser.texts(f"{wrong} .said .warn") == ["error"]
    assert browser.texts(f"{wrong} mark") == ["2*;"]  # the first turn that the best episode does not have
    assert calculator.HOSTILE in browser.texts(f"{wrong} .said.heard")[1]
    places = "['.own', '.heard'].map((kind) => document.querySelector('#viewer .said' + kind).getBoundingClientRect())"
    own, heard = browser.evaluate(f"{places}.map((box) => box.left)")
    assert heard > own + 20
    buttons = {name: f"button[data-filter={name}]" for name in ("error", "timeout", "gone", "limited")}
    assert browser.texts(".filters button") == [
        *("rewards differ 1", "rewards equal 1", "truncated 0", "failed 0"),
        *("tool error 1", "time-out 1", "environment failed 0", "ended by turns 1"),
    ]
    for name in ("error", "timeout", "limited"):
        browser.click(buttons[name])
    assert browser.texts("#viewer .item .excerpt") == ["4-2*7?"]
    browser.click(buttons["gone"])
    assert browser.texts("#viewer .item .excerpt") == []
    browser.click(buttons["gone"])
    browser.choose("colour tokens by", "logprobs")
    browser.wait("document.querySelectorAll('#viewer .said .token').length > 0")
    assert browser.texts(f"{first} .token.unscored") == ["2", "1", "4"]
    assert "".join(browser.texts(f"{first} .token")) == "4-2;22*7;14=14."
    for name in ("error", "timeout", "limited"):
        browser.click(buttons[name])
    browser.click("#viewer .item:nth-child(2)")
    browser.wait("document.querySelectorAll('#viewer .strip .token').length > 0")
    assert browser.texts("#viewer .said") == ["turn 1reward 1=6."] * 2
    assert len(browser.texts("#viewer article:nth-child(2) .strip .token")) == 3  # its tokens have no place in the text
