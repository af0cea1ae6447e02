"""The examples run, and their models learn."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_run_here_or_with_the_guide_for_users_of_trl():
    known = {"custom_reward", "minimal", "trl_original", "trl_port"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == known


def test_minimal_learns_on_one_page(capsys: pytest.CaptureFixture[str]):
    minimal = example("minimal")
    assert minimal.main() > 0.3  # chance is 0.08
    assert capsys.readouterr().out.count("step") == 6


def test_a_custom_reward_is_learned(tmp_path: Path):
    summary = example("custom_reward").main(tmp_path / "run")
    assert summary["steps"] == 60
    assert summary["accuracy_after"] > summary["accuracy_before"] + 0.3  # on seeds 0, 1, 2 it rises by 0.45 to 0.75
    assert (tmp_path / "run/metrics.jsonl").is_file()


def test_rising():
    rising = example("custom_reward").rising
    assert rising(["?"] * 4, ["1234", "4321", "1213", "7"]) == [1.0, 0.0, pytest.approx(2 / 3), None]
