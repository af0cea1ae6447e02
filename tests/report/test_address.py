"""The address of the page names the group that is shown: links open it, and the browser goes back and forward."""

import pytest

from gvpo.report import write_report
from gvpo.training.checkpoint.run_directory import RunDirectory
from tests.report.browser import CHROMIUM, Browser
from tests.report.test_page import chromium, prompt, row, status

__all__ = ["chromium"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the report's page is not opened")

ODD = "a/b+c=d&e#f %41 é“”<b>"
"""The id of a group with every character that an address treats specially."""


def step_rows(step: int, *groups: str) -> list:
    """Return groups of two completions; the later a group comes in the file, the more its rewards differ."""
    return [
        row(name, i, step, prompt=f"{step} {place}", reward=float(i * place))
        for place, name in enumerate(groups, start=1)
        for i in (0, 1)
    ]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Write a page of one run, and a page of two."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [RunDirectory.create(folder / name, config="{}") for name in ("first", "second run")]
    for run, groups in zip(runs, (["x", ODD, "x"], ["x", "y"]), strict=True):
        run.append_metrics({"step": 1, "reward/mean": 0.5, "own": 1.0})
        for step in (2, 4, 9):
            run.write_rollouts(step, step_rows(step, *groups))
    return write_report([runs[0].path], folder / "one.html"), write_report(
        [run.path for run in runs], folder / "two.html"
    )


def fragment(browser: Browser) -> str:
    return browser.evaluate("location.hash")


def at(browser: Browser, address: str) -> None:
    browser.wait(f"location.hash === {address!r}")


def notice(browser: Browser) -> str:
    return browser.texts(".notice")[0]


def in_view(browser: Browser, selector: str) -> bool:
    return browser.evaluate(
        f"(() => {{ const box = document.querySelector({selector!r}).getBoundingClientRect();"
        "return box.top >= 0 && box.top < innerHeight / 2; })()"
    )


def encoded(browser: Browser, text: str) -> str:
    """Return a text as the address contains it."""
    return browser.evaluate(f"encodeURIComponent({text!r})").replace("%2F", "/").replace("%2B", "+")


def test_a_step_without_groups_says_so(chromium, tmp_path):
    run = RunDirectory.create(tmp_path / "run", config="{}")
    run.write_rollouts(1, step_rows(1, "x"))
    run.write_rollouts(2, [])
    chromium.open(write_report([run.path], run.report_path), "#step=2&group=x")
    assert chromium.texts(".detail") == ["The rollout file of this step has no groups."]
    assert notice(chromium) == ""
    assert chromium.texts(".slide output") == ["2 (2 of 2)"]
    chromium.evaluate("document.getElementById('step').focus()")
    chromium.press("Home")
    at(chromium, "#step=1&group=x")
    prompt(chromium, "1 1")
    assert chromium.errors() == []


def test_a_page_without_an_address_shows_its_top_and_the_first_group(chromium, pages):
    chromium.open(pages[0])
    prompt(chromium, "2 3")
    assert fragment(chromium) == ""
    assert notice(chromium) == ""
    assert chromium.evaluate("scrollY") == 0


def test_a_group_that_is_chosen_is_in_the_address(chromium, pages):
    chromium.open(pages[0])
    chromium.click(".item:nth-child(2)")
    at(chromium, f"#step=2&group={encoded(chromium, ODD)}")
    chromium.click(".item:nth-child(3)")
    at(chromium, "#step=2&group=x")
    assert chromium.errors() == []


def test_a_link_opens_its_group(chromium, pages):
    chromium.open(pages[0], f"#step=9&group={encoded(chromium, ODD)}")
    prompt(chromium, "9 2")
    assert chromium.texts(".slide output") == ["9 (3 of 3)"]
    assert chromium.texts(".item[aria-selected=true] .excerpt") == ["9 2"]
    assert notice(chromium) == ""
    assert in_view(chromium, "#groups")
    assert chromium.errors() == []


def test_each_group_has_its_link(chromium, pages):
    """Also the second group of one id in a step."""
    chromium.open(pages[0], "#step=4&group=x")
    prompt(chromium, "4 1")
    (first,) = chromium.evaluate("[...document.querySelectorAll('.about-group a')].map((a) => a.getAttribute('href'))")
    assert first == "#step=4&group=x"
    chromium.open(pages[0], "#step=4&group=x&copy=2")
    prompt(chromium, "4 3")
    (second,) = chromium.evaluate("[...document.querySelectorAll('.about-group a')].map((a) => a.getAttribute('href'))")
    assert second == "#step=4&group=x&copy=2"


def test_back_and_forward(chromium, pages):
    chromium.open(pages[0])
    prompt(chromium, "2 3")
    chromium.click(".item:nth-child(2)")
    at(chromium, f"#step=2&group={encoded(chromium, ODD)}")
    chromium.evaluate("document.getElementById('step').focus()")
    chromium.press("End")
    at(chromium, "#step=9&group=x&copy=2")
    prompt(chromium, "9 3")
    chromium.evaluate("history.back()")
    prompt(chromium, "2 2")
    assert chromium.texts(".slide output") == ["2 (1 of 3)"]
    assert chromium.evaluate("document.getElementById('step').value") == "0"
    chromium.evaluate("history.back()")
    prompt(chromium, "2 3")
    assert fragment(chromium) == ""
    chromium.evaluate("history.go(2)")
    prompt(chromium, "9 3")
    assert fragment(chromium) == "#step=9&group=x&copy=2"
    assert chromium.errors() == []


def test_a_walk_through_the_list_is_one_step_of_the_history(chromium, pages):
    chromium.open(pages[0])
    chromium.evaluate("document.querySelector('.list').focus()")
    before = chromium.evaluate("history.length")
    chromium.press("ArrowDown", times=2)
    at(chromium, "#step=2&group=x")
    assert chromium.evaluate("history.length") == before + 1


def test_a_filter_that_hides_the_group_changes_the_address_and_adds_no_step(chromium, pages):
    chromium.open(pages[0], "#step=4&group=x")
    prompt(chromium, "4 1")
    before = chromium.evaluate("history.length")
    chromium.click("#search")
    chromium.type("4 3")
    at(chromium, "#step=4&group=x&copy=2")
    assert chromium.evaluate("history.length") == before


def test_a_link_to_a_group_that_the_controls_hide_releases_them(chromium, pages):
    chromium.open(pages[0])
    chromium.click("[data-filter=equal]")
    status(chromium, "0 of 3 groups")
    chromium.click("#search")
    chromium.type("nothing")
    chromium.evaluate("location.hash = '#step=4&group=x'")
    prompt(chromium, "4 1")
    status(chromium, "3 groups")
    assert chromium.evaluate("document.getElementById('search').value") == ""
    assert chromium.evaluate("document.querySelectorAll('.filters [aria-pressed=true]').length") == 0


def test_all_steps_keep_the_slider_at_the_group_that_is_shown(chromium, pages):
    chromium.open(pages[0])
    chromium.click("#all-steps")
    status(chromium, "9 groups")
    chromium.click(".item:nth-child(3)")
    at(chromium, "#step=9&group=x&copy=2")
    assert chromium.texts(".slide output") == ["9 (3 of 3)"]


@pytest.mark.parametrize(
    ("address", "says", "shows"),
    [
        ("#step=5&group=x", "no rollout file for step 5. The nearest step that has one, 4, is shown", "4 3"),
        ("#step=900", "no rollout file for step 900. The nearest step that has one, 9, is shown", "9 3"),
        ("#step=4&group=gone", "Step 4 has no group “gone”. The first group of the list is shown", "4 3"),
        ("#step=four&group=x", "the step “four”, which is not a number. Step 2 is shown", "2 3"),
        ("#group=gone", "no group “gone” in its rollout files. Step 2 is shown", "2 3"),
        ("#step=4&group=%zz<b>", "Step 4 has no group “%zz<b>”", "4 3"),
        ("#step=9&group=x&copy=7", "", "9 1"),
        ("#step=4", "", "4 3"),
        ("#group=x", "", "2 1"),
        ("#nonsense=1", "", "2 3"),
        ("#%", "", "2 3"),
    ],
)
def test_a_bad_link_says_what_is_not_there_and_shows_something(chromium, pages, address, says, shows):
    chromium.open(pages[0], address)
    prompt(chromium, shows)
    assert says in notice(chromium)
    assert bool(says) == bool(notice(chromium))
    assert chromium.errors() == []
    chromium.click(".item[aria-selected=false]")
    chromium.wait("document.querySelector('.notice').textContent === ''")


def test_links_name_the_run_where_there_are_several(chromium, pages):
    chromium.open(pages[1], "#run=second%20run&step=4&group=y")
    prompt(chromium, "4 2")
    pressed = "document.querySelector('.choice [aria-pressed=true]').textContent"
    assert chromium.evaluate(pressed) == "second run"
    chromium.click(".choice button:nth-child(1)")
    at(chromium, "#run=first&step=2&group=x&copy=2")
    prompt(chromium, "2 3")
    chromium.evaluate("history.back()")
    prompt(chromium, "4 2")
    assert chromium.evaluate(pressed) == "second run"
    chromium.open(pages[1], "#run=third&step=4&group=y")
    prompt(chromium, "2 3")
    assert notice(chromium) == "This page has no run “third”. The run “first” is shown."
    assert chromium.errors() == []


def test_the_contents_lead_to_every_section(chromium, pages):
    chromium.open(pages[0], "#step=9&group=x")
    links = chromium.evaluate(
        "[...document.querySelectorAll('.contents a')].map((a) => [a.textContent, a.getAttribute('href')])"
    )
    assert links == [
        ["Learning", "#learning"],
        ["Other metrics", "#other-metrics"],
        ["Groups", "#groups"],
        ["Totals", "#totals"],
        ["Settings", "#settings"],
    ]
    for index, (_, target) in enumerate(links, start=1):
        chromium.click(f".contents li:nth-child({index}) a")
        at(chromium, target)
        closed = f"document.querySelectorAll('{target} details:not([open])').length"
        chromium.wait(f"{closed} === 0")  # what is folded is opened
        if target == "#totals":  # nothing below it is high enough for it to reach the top
            chromium.evaluate("document.querySelector('#settings details').open = true")
            chromium.click(f".contents li:nth-child({index}) a")
        assert in_view(chromium, target)
    assert chromium.texts(".detail .prompt") == ["9 1"]  # the groups stay as they are


def test_a_link_to_a_section_opens_it(chromium, pages):
    chromium.open(pages[0], "#groups")
    assert in_view(chromium, "#groups")
    chromium.open(pages[0], "#settings")
    assert chromium.evaluate("document.querySelector('#settings details').open")
    assert not chromium.evaluate("document.querySelector('#other-metrics details').open")
    assert fragment(chromium) == "#settings"
