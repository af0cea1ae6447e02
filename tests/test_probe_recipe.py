"""recipes/probe: each script works on small input, and a probe can be fitted on its output."""

import importlib.util
import json
import os
import random
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gvpo.cli.main import main
from gvpo.data import is_comparison
from gvpo.rewards import code_tests, gsm8k
from gvpo.rewards.sandbox.isolation import isolation_problem

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("GVPO_TEST_DATA", ROOT.parent / "shared" / "data")) / "mbpp" / "mbpp.jsonl"
isolated = pytest.mark.skipif(bool(isolation_problem()), reason=f"code cannot be isolated: {isolation_problem()}")
pytestmark = pytest.mark.filterwarnings("ignore:AutoTokenizer loads", "ignore::gvpo.errors.GvpoWarning")
MBPP = [
    {
        "task_id": number,
        "text": f"Write a function that adds {number} to the larger of two numbers.",
        "code": f"def larger(a, b):\r\n    best = a if a > b else b\r\n    return best + {number}",
        "test_list": [f"assert larger(2, 5) == {5 + number}", f"assert larger(9, 1) == {9 + number}"],
        "test_setup_code": "",
    }
    for number in (11, 12, 601, 602, 603)
]


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"probe_{name}", ROOT / "recipes" / "probe" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def fit_and_evaluate(place: Path) -> dict[str, Any]:
    """Fit and evaluate with the recipe's commands."""
    probe = str(place / "probe.safetensors")
    fitting = ["--standardize", "--learning-rate", "1e-2", "--epochs", "5"]
    assert (
        main(["probe", "fit", str(place / "train.jsonl"), "--model", str(place / "model"), "--out", probe, *fitting])
        == 0
    )
    assert main(["probe", "eval", probe, str(place / "held-out.jsonl"), "--out", str(place / "eval.json")]) == 0
    found: dict[str, Any] = json.loads((place / "eval.json").read_text())
    return found


def test_word_problems_are_solved_as_written_and_held_out_by_their_numbers():
    words = module("word_problems")
    train, held_out = (words.problems(300, 0, held_out=held_out) for held_out in (False, True))
    assert gsm8k([one.columns["solution"] for one in train], [one.columns["answer"] for one in train]) == [1.0] * 300
    numbers = [{tuple(re.findall(r"\d+", one.prompt)) for one in part} for part in (train, held_out)]
    assert not numbers[0] & numbers[1]
    tokenizer = words.fresh_tokenizer(words.VOCABULARY)
    ids = tokenizer([one.prompt + one.columns["solution"] for one in train]).input_ids
    assert all(tokenizer.unk_token_id not in row for row in ids)
    assert max(map(len, ids)) < 96


def test_careless_solutions_stop_after_the_first_step():
    words = module("word_problems")
    for careless, share in ((0.0, 1.0), (1.0, 0.0)):
        answers = [one.columns["answer"] for one in words.problems(50, 0, held_out=False)]
        written = [row["completion"] for row in words.demonstrations(50, 0, careless)]
        right = sum(filter(None, gsm8k(written, answers))) / 50
        assert right == share  # at least two items are lost, so none is correct by accident
        assert all(text.count("=") == (1 if careless else 2) for text in written)


def test_word_problems_end_to_end(tmp_path: Path):
    small = ["--steps", "3", "--demonstrations", "200", "--train", "6", "--held-out", "4", "--k", "4"]
    module("word_problems").main(["--out", str(tmp_path), *small])
    groups = rows(tmp_path / "train.jsonl")
    assert [len(group["completions"]) for group in groups] == [4] * 6
    assert all(is_comparison(group) for group in groups)
    assert set(groups[0]["rewards"]) <= {0.0, 1.0}
    assert fit_and_evaluate(tmp_path)["prompts"] == 4


def test_altered_programs_are_valid_and_different():
    mbpp = module("mbpp")
    source = MBPP[0]["code"]
    found = mbpp.candidates(source, 6, random.Random(0))
    assert len(set(found)) == 6
    assert found == mbpp.candidates(source, 6, random.Random(0))
    assert mbpp.candidates("def f(x):\n    pass", 6, random.Random(0)) == ["def f(x):\n    pass"]
    for program in found:
        compile(program, "candidate", "exec")


@isolated
def test_mbpp_end_to_end(tmp_path: Path):
    """The sandbox decides: some altered programs fail, and the reference passes."""
    (tmp_path / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MBPP))
    small = ["--k", "4", "--workers", "1", "--model-steps", "1"]
    means = module("mbpp").main(["--data", str(tmp_path / "mbpp.jsonl"), "--out", str(tmp_path), *small])
    assert all(0.25 <= mean < 1 for mean in means.values())
    group = rows(tmp_path / "train.jsonl")[0]
    tests = [row["test_list"] for row in MBPP if row["text"] in group["prompt"]]
    assert group["rewards"] == code_tests(group["completions"], tests * 4)
    assert fit_and_evaluate(tmp_path)["prompts"] == 2


@isolated
@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_file(), reason="MBPP is missing; set GVPO_TEST_DATA to its parent")
def test_real_mbpp_end_to_end(tmp_path: Path):
    small = ["--train", "12", "--held-out", "8", "--k", "4", "--model-steps", "5"]
    means = module("mbpp").main(["--data", str(REAL), "--out", str(tmp_path), *small])
    assert all(0.25 < mean < 0.9 for mean in means.values())
    found = fit_and_evaluate(tmp_path)
    assert (found["prompts"] + found["left_out"], found["arms"]["best"]["mean"][-1]) == (8, pytest.approx(1, abs=0.13))
