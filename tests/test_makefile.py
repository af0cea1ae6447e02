"""The Makefile: each target installs what it needs, says so, and hands PIP_ARGS to pip."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def commands(target: str, tmp_path: Path, *words: str) -> str:
    """Return what make would run in a clone without a .venv."""
    finished = subprocess.run(
        ["make", "--no-print-directory", "-n", target, f"VENV={tmp_path / 'venv'}", *words],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},  # of an outer make
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return finished.stdout


def test_the_demo_installs_only_what_it_needs(tmp_path: Path):
    shown = commands("demo", tmp_path)
    assert "-c constraints.txt  -e .\n" in shown
    assert "[dev" not in shown
    assert shown.rstrip().endswith("gvpo train demo")


def test_the_tests_add_the_rest(tmp_path: Path):
    shown = commands("test", tmp_path)
    assert shown.index("-e .\n") < shown.index("-e '.[dev]'") < shown.index("-m pytest")


@pytest.mark.parametrize("target", ["demo", "test", "docs-site", "bench-step"])
def test_pip_gets_the_arguments_of_the_user_and_is_not_silent(target: str, tmp_path: Path):
    shown = commands(target, tmp_path, "PIP_ARGS=--extra-index-url https://example.org/cpu")
    installs = [line for line in shown.splitlines() if "pip install" in line]
    assert installs
    assert all("-c constraints.txt --extra-index-url https://example.org/cpu -e" in line for line in installs)
    assert not any("--quiet" in line for line in installs)


def test_each_stage_of_the_demo_is_announced(tmp_path: Path):
    stages = [line for line in commands("demo", tmp_path).splitlines() if line.startswith('echo "==')]
    assert len(stages) == 3
    assert "to download" in stages[1]
    assert "minutes" in stages[2]


def test_the_environment_with_vllm_leaves_out_what_does_not_load(tmp_path: Path):
    shown = commands("test-vllm", tmp_path, f"VLLM={tmp_path / 'vllm'}")
    assert shown.index("tools/vllm/install.sh") < shown.index("-m pytest tests/vllm")
    left_out = {
        line.split(";")[0] for line in (ROOT / "tools/vllm/override.txt").read_text().splitlines() if ";" in line
    }
    assert left_out == {"torchaudio", "torchvision", "torchcodec"}


def test_the_environment_with_verl_gets_gvpo_without_what_it_needs(tmp_path: Path):
    shown = commands("test-verl", tmp_path, f"VERL={tmp_path / 'verl'}")
    steps = [
        shown.index(words) for words in ("verl[verl-core]==0.9.1", "--no-deps -e .", "tests/integrations/test_verl.py")
    ]
    assert steps == sorted(steps)


def test_the_constraints_with_vllm_are_the_tested_versions_except_numpys():
    own, vllm = (
        {line for line in (ROOT / name).read_text().splitlines() if "==" in line}
        for name in ("constraints.txt", "tools/vllm/constraints.txt")
    )
    assert {line.partition("==")[0] for line in own ^ vllm} == {"numpy"}
