import base64
import gzip
import json
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gvpo.errors import RunError
from gvpo.report import write_figure, write_report
from gvpo.report.asset_files import SCRIPTS, asset
from gvpo.report.charts import sections
from gvpo.report.data import load_run
from gvpo.report.page import embed
from gvpo.runfiles import RolloutRow
from gvpo.training.checkpoint.run_directory import RunDirectory
from tests.report.synthetic import CONFIG, chain, make_run

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028<!--"


class Page(HTMLParser):
    """The tags of a page, and the text of its data block."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1] == ("script", {"type": "application/json", "id": "data"}):
            self.data += data

    @property
    def json(self):
        return json.loads(self.data)


def unpack(html: str, name: str):
    """Return the JSON in a packed block of the page."""
    (text,) = re.findall(rf'<script type="text/plain" id="{name}">(.*?)</script>', html)
    return json.loads(gzip.decompress(base64.b64decode(text)))


def render(*runs: Path) -> str:
    out = runs[0] / "report.html"
    assert write_report(runs, out) == out
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "demo")


def row(step: int = 1, index: int = 0, **changes) -> RolloutRow:
    base = {"group": "g", "prompt": "p", "prompt_tokens": [1], "text": "t", "tokens": [2, 3]}
    return RolloutRow(step=step, row=index, **{**base, **changes})


def test_the_synthetic_chains_are_right():
    assert chain(489, 636) == "9+6+0=15\n8+3+1=12\n4+6+1=11\n\\boxed{1125}"
    assert chain(489, 636, {1}) == "9+6+0=15\n8+3+0=11\n4+6+1=11\n\\boxed{1115}"


def test_the_header_shows_the_settings_and_the_result(demo):
    html = render(demo)
    header = html[html.index("<header>") : html.index("</header>")]
    assert "<h1>demo</h1>" in header
    for text in ("gvpo β 0.1", "reference every:10", "qwen2 with random weights", "34% → 84.5%", "<b>200</b>", "47 s"):
        assert text in header


def test_the_header_tells_pairs_from_problems(tmp_path):
    """Accuracy is that of held-out pairs if a run has no held-out problems, also before it has finished."""
    pairs, both = (RunDirectory.create(tmp_path / name, config="{}") for name in ("pairs", "both"))
    for run, more in ((pairs, {}), (both, {"eval/reward": 0.5})):
        for step, value in ((0, 0.5), (4, 0.75)):
            run.append_metrics({"step": step, "eval/accuracy": value, "eval/pair_accuracy": value, **more})
    assert "<b>50% → 75%</b><span>held-out pairs ranked correctly" in render(pairs.path)
    assert "<b>50% → 75%</b><span>held-out accuracy, sampled" in render(both.path)


def test_the_page_has_the_curves(demo):
    page = Page(render(demo))
    labels = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    for title in ("Accuracy", "Reward", "KL to the reference", "Time per step", "Gradient norm"):
        assert title in labels
    charts = page.json["charts"]
    assert len(charts) == len(labels)
    accuracy = charts[labels.index("Accuracy")]
    assert accuracy["series"][1]["x"] == list(range(20, 201, 20))


def test_charts_have_titles_and_keep_the_keys_of_their_metrics_as_captions(demo):
    page = render(demo)
    titles = re.findall(r"<figcaption[^>]*>(.*?) <", page)
    captions = re.findall(r'<code class="metrics" title="(.*?)">(.*?)</code>', page)
    assert len(titles) == len(captions) == page.count("<svg ")
    assert not [title for title in titles if "/" in title or "_" in title]
    assert captions[titles.index("Accuracy")] == ("accuracy, eval/accuracy, eval/accuracy_greedy",) * 2
    assert captions[titles.index("Gradient norm")] == ("train/grad_norm",) * 2


def test_the_page_has_every_group_of_every_rollout_file(demo):
    html = render(demo)
    index = unpack(html, "index-0")
    assert index["steps"] == [1, 50, 100, 150, 200]
    assert index["groups"] == [16] * 5
    block = unpack(html, "text-0-2")  # each step is small enough for one block
    assert index["blocks"] == [16] * 5
    a, b = map(int, re.findall(r"\d+", block["prompts"][3]))
    assert index["excerpts"][35] == block["prompts"][3]
    assert block["columns"][3] == {"answer": str(a + b)}
    for row, text in enumerate(block["texts"][24:32], start=35 * 8):
        assert index["reward"][row] == float(text == chain(a, b))
        assert index["length"][row] == len(text) + 1
        assert index["parts"]["format"][row] == 1.0
        assert index["weight"][row] is not None


def test_the_page_is_self_contained(demo):
    html = render(demo)
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*(?!["']?\s*#)\S+""", html.split('id="data"')[0])
    assert not re.search(r"https?://|@import|<link|<iframe", html)
    assert "default-src 'none'" in html


def test_hostile_text_stays_text(tmp_path):
    run = RunDirectory.create(tmp_path / "<b>run", config=json.dumps({"objective": {"name": HOSTILE}}))
    run.append_metrics({"step": 1, HOSTILE: 1.0, "reward/mean": 0.5})
    run.write_rollouts(
        1,
        [row(prompt=HOSTILE, text=HOSTILE, group=HOSTILE, source=HOSTILE, reason=HOSTILE, columns={HOSTILE: HOSTILE})],
    )
    html = render(run.path)
    assert "<h1>&lt;b&gt;run</h1>" in html
    page = Page(html)
    tags = [tag for tag, _ in page.tags]
    assert "img" not in tags
    assert tags.count("script") == 5  # the charts' data; index, texts and tokens; the script
    assert unpack(html, "text-0-0") == {
        "prompts": [HOSTILE], "columns": [{HOSTILE: HOSTILE}], "texts": [HOSTILE], "turns": [None], "episodes": [None]
    }  # fmt: skip
    assert unpack(html, "index-0")["coded"]["reason"]["names"] == [HOSTILE]


def test_embedded_json_cannot_end_its_script():
    text = embed({"a": HOSTILE})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": HOSTILE}


def test_scripts_only_make_text_nodes():
    script = "".join(asset(name) for name in SCRIPTS)
    assert "createElement" in script
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


def test_several_runs_are_overlaid(tmp_path):
    a = make_run(tmp_path / "x" / "demo", steps=20, rollouts_every=10)
    b = make_run(tmp_path / "y" / "demo", steps=20, seed=1, finished=False)
    html = render(a, b)
    assert "2 runs" in html
    assert "x/demo" in html  # equal names are told apart
    assert "20, not finished" in html
    page = Page(html)
    assert page.json["runs"] == [unpack(html, f"index-{i}")["name"] for i in range(2)] == ["x/demo", "y/demo"]
    assert all(len(chart["series"]) % 2 == 0 for chart in page.json["charts"])  # each metric once per run


# Runs that are unfinished or damaged


def started(run: RunDirectory) -> None:
    """Leave a run in which nothing has happened yet."""


def evaluated(run: RunDirectory) -> None:
    run.append_metrics({"step": 0, "eval/accuracy": 0.34})


def one_step(run: RunDirectory) -> None:
    run.append_metrics({"step": 1, "train/loss": float("nan"), "reward/mean": 0.0, "entropy": 0.0})


def torn(run: RunDirectory) -> None:
    run.append_metrics({"step": 1, "train/loss": 0.1})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 2')


def supervised(run: RunDirectory) -> None:
    run.append_metrics({"step": 1, "train/loss": 0.1})
    run.write_rollouts(1, [row(weight=0.5)])


def failed_rows(run: RunDirectory) -> None:
    rows = [row(index=i, reason="timeout", reward_parts={"a": None}, finish_reason="length") for i in range(2)]
    run.write_rollouts(1, rows)


def empty_rollout(run: RunDirectory) -> None:
    run.write_rollouts(1, [])


def no_environment(run: RunDirectory) -> None:
    (run.path / "environment.json").unlink()
    (run.path / "config.json").unlink()


def odd_summary(run: RunDirectory) -> None:
    run.write_summary({"accuracy_before": None, "accuracy_after": None, "seconds": None})


DEGENERATE = [
    started, evaluated, one_step, torn, supervised, failed_rows, empty_rollout, no_environment, odd_summary
]  # fmt: skip


@pytest.mark.parametrize("happen", DEGENERATE, ids=lambda happen: happen.__name__)
def test_degenerate_runs_render(tmp_path, happen):
    run = RunDirectory.create(tmp_path / "run", config=json.dumps(CONFIG))
    happen(run)
    html = render(run.path)
    assert unpack(html, "index-0")["name"] == "run"
    assert "nan" not in re.sub(r"finance", "", html[html.index("<main>") : html.index("<script")]).lower()
    if happen is started:
        assert "No metrics yet." in html
        assert "of 200, not finished" in html
    if happen is failed_rows:
        assert unpack(html, "index-0")["coded"]["reason"] == {"names": ["timeout"], "codes": [0, 0]}


def test_a_path_that_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not a run directory"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(RunError, match="at least one run"):
        write_report([], tmp_path / "report.html")


def test_long_runs_stay_small(tmp_path):
    run = RunDirectory.create(tmp_path / "run", config="{}")
    run.metrics_path.write_text("".join(f'{{"step": {i}, "entropy": {i % 7}}}\n' for i in range(20_000)))
    began = time.perf_counter()
    assert len(render(run.path)) < 300_000
    assert time.perf_counter() - began < 5


def test_report_needs_no_torch():
    code = (
        "import gvpo.report, sys; print(sorted({'torch', 'transformers', 'tokenizers', 'pyarrow'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# The figure


def test_figure_is_a_standalone_svg(demo, tmp_path):
    out = write_figure([demo], tmp_path / "figure.svg")
    text = out.read_text()
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in text
    titles = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text") if node.get("class") == "title"]
    assert titles == ["Reward", "Accuracy"]
    names = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text") if node.get("class") == "name"]
    assert names == ["training", "held-out", "training, sampled", "held-out, sampled", "held-out, greedy"]


def test_figure_legends_stay_inside(demo, tmp_path):
    other = make_run(tmp_path / "a-rather-long-name-of-a-run", steps=5)
    root = ET.fromstring(write_figure([demo, other], tmp_path / "f.svg", ["accuracy"]).read_text())
    names = [node for node in root.iter("{http://www.w3.org/2000/svg}text") if node.get("class") == "name"]
    assert len({node.get("y") for node in names}) > 1
    assert all(float(node.get("x")) + 6.3 * len(node.text) < 440 + 24 for node in names)


def test_figure_of_missing_metrics_is_refused(demo, tmp_path):
    with pytest.raises(RunError, match="none of the metrics nothing/here"):
        write_figure([demo], tmp_path / "f.svg", ["nothing/here"])


def test_warnings_about_the_metrics_are_at_the_top(tmp_path):
    """An unfinished run has them too; with several runs they name the run."""
    falling = {"step": 1, "train/updates": 8, "offpolicy/logratio_best": -4.2, "seconds/sampling": 1.0}
    good, bad = (RunDirectory.create(tmp_path / name, config=json.dumps(CONFIG)) for name in ("good", "bad"))
    good.append_metrics({**falling, "offpolicy/logratio_best": 0.2})
    bad.append_metrics(falling)
    assert 'class="warning"' not in render(good.path)
    assert "<b>Warning</b> step 1: the best answers become less likely" in render(bad.path)
    assert render(good.path, bad.path).count("<b>Warning</b> bad: step 1: the best answers") == 1


def test_the_optimum_and_the_log_ratio_share_a_chart(tmp_path):
    run = RunDirectory.create(tmp_path / "run", config=json.dumps(CONFIG))
    run.append_metrics({"step": 1, "gvpo/logratio_mean": -2.0, "gvpo/logratio_optimum": -4.9, "offpolicy/ess": 0.5})
    charts = {chart.title: chart for chart in sections([load_run(run.path)])["Objective"]}
    assert {one.name: list(one.points) for one in charts["Log-ratio to the reference"].series} == {
        "all completions": [(1.0, -2.0)],
        "optimum": [(1.0, -4.9)],
    }
    assert list(charts["Effective sample size"].series[0].points) == [(1.0, 0.5)]
