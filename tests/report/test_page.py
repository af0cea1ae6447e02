"""The page as a reader meets it: opened in a headless Chromium, with a mouse and a keyboard."""

from functools import partial

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gvpo.report import write_report
from gvpo.report.data import load_run
from gvpo.report.tokens import byte_alphabet
from gvpo.report.viewer import viewer_data
from gvpo.runfiles import RolloutRow
from gvpo.training.checkpoint.run_directory import RunDirectory
from tests.report.browser import CHROMIUM, Browser
from tests.report.synthetic import chain, make_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the report's page is not opened")

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028<!--"
RIGHT, WRONG = chain(489, 636), chain(489, 636, {1})
STOP = 256


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer whose token b is byte b, and whose token 256 is the stop token."""
    tokenizer = Tokenizer(models.BPE(vocab=byte_alphabet(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    return tokenizer


def row(group: str, index: int, step: int = 1, text: str = "text", **changes) -> RolloutRow:
    tokens = [*text.encode(), STOP]
    base = {"prompt": f"{group}=", "prompt_tokens": [1], "tokens": tokens, "logprobs": [-0.001] * len(tokens)}
    return RolloutRow(step=step, group=group, row=index, text=text, **{**base, **changes})


def first_step() -> list[RolloutRow]:
    odd = [-0.001] * 8 + [-3.0]
    return [
        row("dead", 0, reward=1.0, weight=0.0),
        row("dead", 1, reward=1.0, weight=0.0),
        row(
            "sum",
            0,
            text=RIGHT,
            reward=1.0,
            weight=0.02,
            implicit_reward=0.1,
            version=0,
            age=0,
            columns={"answer": "1125"},
        ),
        row("sum", 1, text=WRONG, reward=0.0, weight=-0.01, implicit_reward=-0.1, reward_parts={"boxed": 0.0}),
        row("sum", 2, text=HOSTILE, reason="timeout", finish_reason="length", source=HOSTILE),
        row("mild", 0, text="é🙂ab", reward=0.5, weight=0.01, logprobs=odd, ref_logprobs=[-1.0] * 9),
        row("mild", 1, text="needle", reward=0.25, weight=-0.01, tokens=[1, 2], logprobs=[-6.0, -0.001], mask=[1, 0]),
    ]


def later_step(step: int) -> list[RolloutRow]:
    return [
        row(f"{step}/{group}", i, step, reward=float(i), finish_reason="length") for group in range(3) for i in (0, 1)
    ]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = RunDirectory.create(tmp_path_factory.mktemp("runs") / "run", config="{}")
    run.append_metrics({"step": 1, "reward/mean": 0.5})
    run.append_metrics({"step": 2, "reward/mean": 0.75})
    run.checkpoint_path(2).mkdir(parents=True)
    byte_tokenizer().save(str(run.checkpoint_path(2) / "tokenizer.json"))
    run.write_rollouts(1, first_step())
    for step in (2, 3, 4):
        run.write_rollouts(step, later_step(step))
    return write_report([run.path], run.report_path)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        browser.look()
        yield browser


@pytest.fixture
def browser(chromium, page):
    chromium.call("Page.navigate", url="about:blank")
    chromium.open(page)
    yield chromium
    assert chromium.errors() == []


def listed(browser: Browser) -> list[str]:
    return browser.texts(".excerpt")


def status(browser: Browser, text: str) -> None:
    """Wait until the line above the list says so."""
    browser.wait(f"document.querySelector('.status').textContent === {text!r}")


def prompt(browser: Browser, text: str) -> None:
    browser.wait(f"document.querySelector('.detail .prompt')?.textContent === {text!r}")


def attribute(browser: Browser, selector: str, name: str) -> list[str]:
    return browser.evaluate(f"[...document.querySelectorAll({selector!r})].map((node) => node.getAttribute({name!r}))")


def test_the_page_loads_nothing_but_itself(browser, page):
    assert browser.requests() == [page.resolve().as_uri()]


def test_groups_whose_rewards_differ_come_first(browser):
    status(browser, "3 groups")
    assert listed(browser) == ["sum=", "mild=", "dead="]
    assert browser.texts(".filters button") == ["rewards differ 2", "rewards equal 1", "truncated 1", "failed 1"]
    assert browser.texts(".brief") == [
        "mean 0.5 · 1 failed · 1 truncated",
        "mean 0.375",
        "mean 1 · rewards equal",
    ]
    assert browser.texts(".cells span") == ["3 completions", "2 completions", "2 completions"]


def test_a_group_shows_all_that_is_known_of_its_completions(browser):
    assert browser.texts(".row .reward") == ["1", "0", "no reward"]
    assert browser.texts(".row .weight") == ["+2.00", "\u22121.00", "not trained on"]
    assert attribute(browser, ".push i", "class") == ["up", "down"]
    assert attribute(browser, ".push i", "style") == ["width: 50%;", "width: 25%;"]
    assert browser.texts(".row mark") == ["8+3+0=11"]  # the forgotten carry
    assert browser.texts(".about-group .column") == ["answer 1125"]
    facts = browser.texts(".facts")
    assert facts[0] == f"implicit reward +0.100{len(RIGHT) + 1} tokensstoplive, version 0, age 0"
    assert facts[1].startswith("boxed 0implicit reward \u22120.100")
    assert facts[2].endswith("truncatedtimeout")


def test_hostile_text_stays_text(browser):
    assert browser.texts(".row .text")[2] == HOSTILE
    assert HOSTILE in browser.texts(".facts")[2]
    browser.choose("colour tokens by", "logprobs")
    browser.wait("document.querySelectorAll('.text .token').length > 0")
    assert browser.texts(".row .text")[2] == HOSTILE
    assert browser.evaluate("document.querySelectorAll('img').length") == 0


def test_filters_narrow_the_list_and_can_be_released(browser):
    browser.click("[data-filter=equal]")
    status(browser, "1 of 3 groups")
    assert listed(browser) == ["dead="]
    prompt(browser, "dead=")
    assert browser.texts(".tag") == ["all rewards are equal"]
    browser.click("[data-filter=failed]")
    status(browser, "0 of 3 groups")
    assert "turn off a filter" in browser.texts(".detail")[0]
    browser.click("[data-filter=equal]")
    status(browser, "1 of 3 groups")
    prompt(browser, "sum=")
    browser.click("[data-filter=failed]")
    status(browser, "3 groups")


def test_sorting_groups_and_completions(browser):
    browser.choose("sort groups by", "mean")
    browser.wait("document.querySelector('.excerpt').textContent === 'dead='")
    assert listed(browser) == ["dead=", "sum=", "mild="]
    browser.click(".turn")
    browser.wait("document.querySelector('.excerpt').textContent === 'mild='")
    assert listed(browser) == ["mild=", "sum=", "dead="]
    prompt(browser, "sum=")  # what is looked at stays
    browser.choose("sort completions by", "length")
    browser.wait("document.querySelector('.row').ariaLabel === 'completion 3'")
    browser.choose("sort completions by", "weight")
    browser.wait("document.querySelector('.row').ariaLabel === 'completion 1'")
    assert attribute(browser, ".row", "aria-label") == ["completion 1", "completion 2", "completion 3"]


def test_search_looks_into_completions_of_all_steps(browser):
    browser.click("#search")
    browser.type("NEEDLE")
    status(browser, "1 of 3 groups")
    prompt(browser, "mild=")
    browser.evaluate("document.getElementById('search').value = ''")
    browser.type("3/")
    status(browser, "0 of 3 groups")
    browser.click("#all-steps")
    status(browser, "3 of 12 groups")
    assert browser.evaluate("document.querySelector('.slide').parentNode.className") == "bar wide"
    assert listed(browser) == ["3/0=", "3/1=", "3/2="]
    assert browser.texts(".brief")[0].startswith("step 3")


def test_reasons_are_searched_too(browser):
    browser.click("#search")
    browser.type("timeout")
    status(browser, "1 of 3 groups")


def test_the_slider_goes_through_every_rollout_file(browser):
    assert browser.texts(".slide output") == ["1 (1 of 4)"]
    browser.evaluate("document.getElementById('step').focus()")
    browser.press("ArrowRight", times=2)
    prompt(browser, "3/0=")
    assert browser.texts(".slide output") == ["3 (3 of 4)"]
    assert attribute(browser, "#step", "aria-valuetext") == ["step 3"]
    browser.press("End")
    prompt(browser, "4/0=")
    browser.click("#all-steps")
    status(browser, "12 groups")
    browser.evaluate("document.getElementById('step').focus()")
    browser.press("Home")
    status(browser, "3 groups")  # the slider leaves "all steps"


def test_the_keyboard_walks_the_list(browser):
    browser.evaluate("document.querySelector('.list').focus()")
    before = browser.evaluate("scrollY")
    browser.press("ArrowDown")
    prompt(browser, "mild=")
    assert browser.evaluate("scrollY") == before  # the page stays where it is
    assert attribute(browser, ".item", "aria-selected") == ["false", "true", "false"]
    assert attribute(browser, ".list", "aria-activedescendant") == ["item-1"]
    browser.press("End")
    prompt(browser, "dead=")
    browser.press("ArrowDown")
    browser.press("Home")
    prompt(browser, "sum=")
    browser.click(".item:nth-child(3)")
    prompt(browser, "dead=")


def test_tab_reaches_every_control(browser):
    browser.evaluate("document.getElementById('step').focus()")
    reached = []
    for _ in range(12):
        reached.append(
            browser.evaluate(
                "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
            )
        )
        browser.press("Tab")
    assert reached[:3] == ["step", "all-steps", "search"]
    assert reached.count("SELECT") == 3
    assert reached[-1] == "list"


def test_tokens_are_coloured(browser):
    browser.click(".item:nth-child(2)")
    prompt(browser, "mild=")
    browser.choose("colour tokens by", "logprobs")
    browser.wait("document.querySelectorAll('.text .token').length > 0")
    first, second = browser.evaluate(
        "[...document.querySelectorAll('.text')].map((text) => [...text.querySelectorAll('.token')].map("
        "(node) => [node.textContent, node.className, node.title]))"
    )
    # two bytes of e acute, four of the face, a, b, the stop token
    assert [text for text, _, _ in first] == ["", "é", "", "", "", "🙂", "a", "b", ""]
    assert first[1][1:] == ["token", "token 2: log-prob -0.001 (p = 0.999)"]
    assert first[8][1:] == ["token q4 blank", "token 9: log-prob -3.000 (p = 0.04979)"]
    # a row whose tokens are not its text: the text as it is, and a strip
    assert [(text, kind) for text, kind, _ in second] == [("", "token q6 blank"), ("", "token blank unscored")]
    assert browser.texts(".text")[1] == "needle"


def test_ratios_are_coloured_where_there_is_a_reference(browser):
    browser.choose("colour tokens by", "ratios")
    browser.wait("document.querySelector('.detail .empty') !== null")
    assert browser.texts(".detail .empty") == ["The rollout file has no log-ratio to the reference for this group."]
    browser.click(".item:nth-child(2)")
    browser.wait("document.querySelectorAll('.text .token').length > 0")
    titles, kinds = (attribute(browser, ".text .token", name) for name in ("title", "class"))
    assert (kinds[1], titles[1]) == ("token up3", "token 2: log-ratio +0.999")
    assert (kinds[8], titles[8]) == ("token down4 blank", "token 9: log-ratio \u22122.000")
    browser.choose("colour tokens by", "")
    browser.wait("document.querySelectorAll('.text .token').length === 0")


def hover(browser: Browser, share: float) -> None:
    """Move the mouse over the first chart, to a share of its width."""
    place = browser.evaluate(
        "(() => { const svg = document.querySelector('.chart svg'); svg.scrollIntoView({block: 'center'});"
        "const box = svg.getBoundingClientRect();"
        f"return [box.x + box.width * {share}, box.y + box.height / 2]; }})()"
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])


def places(browser: Browser) -> list[list[float]]:
    """Return left, top, width and height of the charts, legends and headings of the page."""
    return browser.evaluate(
        "[...document.querySelectorAll('h2, .chart, .keys, .keys li, .keys b, svg, #groups')].map((node) => {"
        "const box = node.getBoundingClientRect(); return [box.x, box.y + scrollY, box.width, box.height]; })"
    )


def test_the_pointer_shows_the_values_of_a_curve(browser):
    assert browser.texts(".chart .keys b")[0] == "0.75"
    hover(browser, 0.15)
    assert browser.texts(".chart .keys b")[0] == "0.5"
    assert browser.texts(".chart.hover .cursor text") == ["1"]
    ends = browser.evaluate("document.querySelector('.chart svg').dataset.y.split(' ').map(Number)")
    height = ends[2] + (0.5 - ends[0]) / (ends[1] - ends[0]) * (ends[3] - ends[2])
    assert attribute(browser, ".chart.hover .cursor circle", "cx") == ["46"]
    assert float(attribute(browser, ".chart.hover .cursor circle", "cy")[0]) == pytest.approx(height, abs=0.01)
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert browser.texts(".chart .keys b")[0] == "0.75"
    assert browser.texts(".chart.hover") == []


def test_nothing_moves_under_the_pointer(chromium, tmp_path):
    paths = [make_run(tmp_path / name, steps=60, seed=seed) for seed, name in enumerate("ab")]
    for runs in (paths[:1], paths):
        page = write_report(runs, tmp_path / "all.html")
        for width in (600, 1280):
            chromium.look(width=width)
            chromium.open(page)
            hover(chromium, 0.5)  # scrolls there
            chromium.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
            before = places(chromium)
            for share in (0.12, 0.3, 0.5, 0.7, 0.97):
                hover(chromium, share)
                assert len(chromium.texts(".chart.hover")) > 10
                assert places(chromium) == before
    chromium.look()


def test_runs_can_be_changed(chromium, tmp_path):
    paths = [make_run(tmp_path / name, steps=4, rollouts_every=2, seed=seed) for seed, name in enumerate("ab")]
    empty = RunDirectory.create(tmp_path / "empty", config="{}")
    chromium.open(write_report([*paths, empty.path], tmp_path / "all.html"))
    before = chromium.texts(".detail .prompt")
    chromium.click(".choice button:nth-child(2)")
    chromium.wait(f"![null, undefined, {before[0]!r}].includes(document.querySelector('.detail .prompt')?.textContent)")
    assert attribute(chromium, ".choice button", "aria-pressed") == ["false", "true", "false"]
    chromium.click(".choice button:nth-child(3)")
    chromium.wait("document.querySelector('#viewer .empty')?.textContent === 'The run has written no rollouts.'")
    assert chromium.errors() == []


def test_the_page_tells_what_was_left_out(chromium, tmp_path, monkeypatch):
    run = RunDirectory.create(tmp_path / "run", config="{}")
    for step in (2, 3, 4):
        run.write_rollouts(step, later_step(step))
    size = len(viewer_data([load_run(run.path)])["text-0-0"])
    little = partial(viewer_data, text_bytes=int(2.5 * size), token_bytes=0)  # the first and the last step
    monkeypatch.setattr("gvpo.report.page.viewer_data", little)
    chromium.open(write_report([run.path], run.report_path))
    chromium.choose("colour tokens by", "logprobs")
    chromium.wait("document.querySelector('.detail .empty') !== null")
    assert "tokens of this group were left out" in chromium.texts(".detail .empty")[0]
    chromium.evaluate("document.getElementById('step').focus()")
    chromium.press("ArrowRight")
    chromium.wait("document.querySelector('.detail .empty')?.textContent.includes('texts')")
    assert chromium.texts(".detail .empty")[0].endswith("They are in run/rollouts/step-000003.parquet.")
    assert chromium.texts(".row .reward") == ["0", "1"]
    chromium.click("#search")
    chromium.type("text")
    status(chromium, "0 of 3 groups; texts that were left out of the page were not searched")
    assert chromium.errors() == []


def test_only_what_is_in_view_is_in_the_page(chromium, tmp_path):
    run = RunDirectory.create(tmp_path / "run", config="{}")
    run.write_rollouts(1, [row(f"g{group}", i, reward=float(i)) for group in range(1500) for i in (0, 1)])
    chromium.open(write_report([run.path], run.report_path))
    status(chromium, "1,500 groups")
    assert chromium.evaluate("document.querySelectorAll('.item').length") < 40
    chromium.evaluate("document.querySelector('.list').focus()")
    chromium.press("End")
    prompt(chromium, "g1499=")
    assert listed(chromium)[-1] == "g1499="
    assert chromium.evaluate("document.querySelectorAll('.item').length") < 40


@pytest.mark.parametrize(
    ("size", "counted"),
    [(1, "1 completion"), (16, "16 completions"), (64, "64 completions"), (200, "64 of 200 shown")],
)
def test_a_group_of_any_size_is_shown_whole(chromium, tmp_path, size, counted):
    """The list has a square per completion, or says how many of them have one; the group has a card per completion."""
    run = RunDirectory.create(tmp_path / "run", config="{}")
    rows = [
        row("g", i, reward=float(i % 2) if i % 3 else None, reason="" if i % 3 else "timeout", finish_reason="length")
        for i in range(size)
    ]
    run.write_rollouts(1, rows)
    page = write_report([run.path], run.report_path)
    for width in (600, 1280):
        chromium.look(width=width)
        chromium.open(page)
        chromium.click("#all-steps")
        chromium.wait("document.querySelector('.brief').textContent.startsWith('step 1')")
        cut = chromium.evaluate(
            "[...document.querySelectorAll('.item, .item *')].filter((node) => node.scrollWidth > node.clientWidth + 1"
            " && getComputedStyle(node).display !== 'inline').map((node) => node.className)"
        )
        assert cut == []
        squares = chromium.evaluate(
            "(() => { const room = document.querySelector('.item').getBoundingClientRect();"
            "const boxes = [...document.querySelectorAll('.cells i')].map((node) => node.getBoundingClientRect());"
            "const seen = (box) => box.width >= 2 && box.left >= room.left && box.right <= room.right;"
            "return boxes.filter(seen).length; })()"
        )
        assert squares == min(size, 64)
        assert chromium.texts(".cells span") == [counted]
        assert len(chromium.texts(".row")) == size
    chromium.look()


def test_nothing_moves_when_the_slider_changes_the_counts(chromium, tmp_path):
    run = RunDirectory.create(tmp_path / "run", config="{}")
    for step, groups in ((1, 9), (2, 12)):
        run.write_rollouts(
            step, [row(f"g{group}", i, step, reward=float(i)) for group in range(groups) for i in (0, 1)]
        )
    chromium.open(write_report([run.path], run.report_path))
    width = "document.querySelector('.filters').getBoundingClientRect().width"
    status(chromium, "9 groups")
    before = chromium.evaluate(width)
    chromium.evaluate("document.getElementById('step').focus()")
    chromium.press("End")
    status(chromium, "12 groups")
    assert chromium.evaluate(width) == before


def test_a_list_that_scrolls_keeps_the_nodes_that_stay_in_view(chromium, tmp_path):
    """A click that is under way on an entry must not lose it."""
    run = RunDirectory.create(tmp_path / "run", config="{}")
    run.write_rollouts(1, [row(f"g{group:03d}", i, reward=float(i)) for group in range(200) for i in (0, 1)])
    chromium.open(write_report([run.path], run.report_path))
    kept = chromium.evaluate(
        "(async () => { const list = document.querySelector('.list'); const node = document.getElementById('item-5');"
        "list.scrollTop = 200; await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));"
        "return node === document.getElementById('item-5'); })()"
    )
    assert kept
    for top in (5000, 4700, 0, 13000):
        chromium.evaluate(
            f"(async () => {{ document.querySelector('.list').scrollTop = {top};"
            "await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))); })()"
        )
        names = listed(chromium)
        assert names == sorted(names)
        assert f"g{min(top // 68 + 2, 199):03d}=" in names


@pytest.mark.parametrize("width", [320, 700, 1280])
def test_nothing_sticks_out_sideways(chromium, page, width):
    chromium.look(width=width, height=800)
    chromium.open(page)
    assert chromium.evaluate("document.documentElement.scrollWidth") == width
    chromium.look()
