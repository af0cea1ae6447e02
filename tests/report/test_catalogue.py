import re
from pathlib import Path

import pytest

from gvpo.report.catalogue import SPECS, metrics_of, spec_for, specs_of

DOCS = Path(__file__).parents[2] / "docs"
NOT_CHARTS = {"groups/total", "seconds/total"}


def documented() -> list[str]:
    """Return the keys in the first column of the tables that document metrics, with an example for NAME."""
    pages = [DOCS / "reference/run-directory.md", *sorted((DOCS / "reference/objectives").glob("*.md"))]
    lines = [line for page in pages for line in page.read_text().splitlines() if line.startswith("| `")]
    keys = [key for line in lines for key in re.findall(r"`([a-z_]+/[\w]+)`", line.split("|")[1])]
    return sorted({key.replace("NAME", "boxed_answer") for key in keys} - NOT_CHARTS)


def test_the_documents_name_metrics():
    assert {"train/loss", "gvpo/certificate", "dpo/margin", "multiplier/boxed_answer"} < set(documented())
    assert len(documented()) > 60


@pytest.mark.parametrize("key", documented())
def test_every_documented_metric_has_a_title_and_a_unit(key):
    for one in (key, f"{key}/last"):
        spec = spec_for(one)
        assert metrics_of(spec, [one]).keys() == {one}
        assert spec in SPECS
        assert spec.unit
        assert "/" not in spec.title


def test_each_metric_has_one_chart():
    keys = [key for spec in SPECS for key in spec.metrics]
    assert len(keys) == len(set(keys))
    titles = [spec.title for spec in SPECS]
    assert len(titles) == len(set(titles))
    found = [spec.title for spec in specs_of(documented())]
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("key", "title"),
    [
        ("tries_per_step", "Tries per step"),
        ("grpo/ratio_of_ratios", "GRPO: ratio of ratios"),
        ("my_objective/temperature", "my objective: temperature"),
        ("my_objective/temperature/last", "my objective: temperature, last update"),
        ("_", "_"),
        ("/", "/"),
    ],
)
def test_unknown_metrics_have_their_words_as_title(key, title):
    spec = spec_for(key)
    assert spec.title.strip(": ") == title.strip(": ")
    assert list(spec.metrics) == [key]


def test_a_star_leaves_to_a_chart_what_it_names():
    keys = ["reward/mean", "reward/std", "reward/format", "poft/margin", "dpo/margin", "eval/accuracy", "dpo/accuracy"]
    shown = {spec.title: list(metrics_of(spec, keys)) for spec in SPECS if metrics_of(spec, keys)}
    assert shown == {
        "Accuracy": ["eval/accuracy"],
        "Reward": ["reward/mean"],
        "Reward functions": ["reward/format"],
        "Training pairs ranked correctly": ["dpo/accuracy"],
        "Margin over the aligned models": ["poft/margin"],
        "Margin on training pairs": ["dpo/margin"],
        "Spread of the reward": ["reward/std"],
    }


def test_objectives_that_share_a_chart_are_told_apart():
    spec = spec_for("grpo/ratio_mean")
    assert metrics_of(spec, ["grpo/ratio_mean"]) == {"grpo/ratio_mean": "ratio"}
    both = metrics_of(spec, ["grpo/ratio_mean", "gspo/ratio_mean"])
    assert both == {"grpo/ratio_mean": "GRPO, ratio", "gspo/ratio_mean": "GSPO, ratio"}


def test_values_of_the_last_update_come_last():
    order = [spec.title for spec in specs_of(["train/loss/last", "own", "train/loss", "reward/a", "reward/mean"])]
    assert order == ["Reward", "Loss", "Loss, last update", "Own"]  # a single reward function is the reward
