"""The main use: `gvpo train demo` learns column addition. The short version is part of every test run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gvpo.cli.shipped import find_recipe

GVPO = [sys.executable, "-m", "gvpo.cli.main"]


def train(run: Path, recipe: str, *settings: str) -> dict[str, object]:
    """Run a recipe from the command line and return its summary."""
    subprocess.run([*GVPO, "train", recipe, f"run.dir={run}", *settings], check=True, timeout=1500)
    return json.loads((run / "summary.json").read_text())


@pytest.mark.timeout(600)
def test_a_short_demo_learns(tmp_path):
    run = tmp_path / "demo"
    summary = train(run, "demo", "train.steps=40", "eval.every=0", "eval.greedy=false", "rewards.workers=1")
    assert summary["steps"] == 40
    assert summary["accuracy_before"] < 0.65
    assert summary["accuracy_after"] > summary["accuracy_before"] + 0.2
    assert (run / "report.html").stat().st_size > 10_000
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 41


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demo_learns_on_every_seed(tmp_path, seed):
    summary = train(tmp_path / "demo", "demo", f"run.seed={seed}")
    assert summary["accuracy_after"] >= 0.8
    assert summary["accuracy_after"] - summary["accuracy_before"] >= 0.35


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_wheel_works_outside_the_clone(tmp_path):
    """Install only the wheel in an empty environment: it must contain recipes and report templates."""
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", root], check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "empty"], check=True)
    python = tmp_path / "empty/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", root / "constraints.txt", wheel], check=True)
    small = ["train.steps=3", "warm_start.steps=5", "data.eval_problems=20", "run.dir=run"]
    subprocess.run([tmp_path / "empty/bin/gvpo", "train", "demo", *small], check=True, cwd=tmp_path)
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 3
    assert (tmp_path / "run/report.html").exists()
    printed = subprocess.run(
        [tmp_path / "empty/bin/gvpo", "docs", "scaling"], check=True, cwd=tmp_path, stdout=subprocess.PIPE
    )
    assert printed.stdout == (root / "docs/guides/scaling.md").read_bytes()


def test_shipped_recipes_are_found_by_name():
    assert find_recipe("demo").name == "recipe.toml"
    assert find_recipe("demo/rloo").name == "rloo.toml"
