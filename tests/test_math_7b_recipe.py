"""recipes/math-7b: the script is valid, prints its commands, and works on a small model."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from gvpo.cli.shipped import find_recipe
from gvpo.config.recipe import load_config
from gvpo.model.model import save_model
from gvpo.rewards import REWARDS
from tests.fakes import byte_tokenizer, tiny_model

RECIPE = Path(__file__).parents[1] / "recipes" / "math-7b"
SCRIPT = RECIPE / "reproduce.sh"
REAL = Path(os.environ.get("GVPO_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
SMALL = [
    "train.prompts_per_step=4",
    "train.groups_per_update=2",
    "sampling.max_tokens=4",
    "eval.every=0",
    "data.eval_problems=2",
    "data.chat=plain",
    "model.compute_dtype=float32",
    "rewards.workers=1",
    "checkpoint.every=1",
    "checkpoint.verify=false",
]


def reproduce(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("OUT", "MODEL", "MATH", "GSM8K", "ARMS")}
    return subprocess.run(
        [str(SCRIPT), *arguments], cwd=cwd, env={**clean, **variables}, capture_output=True, text=True, timeout=120
    )


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"math_7b_{name}", RECIPE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def sources(directory: Path) -> dict[str, str]:
    """Write small files in the forms of GSM8K and MATH; one problem of MATH appears twice."""
    gsm8k = [{"question": f"{n}+1?", "answer": f"{n}+1=<<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"} for n in range(5)]
    math = [{"problem": f"${n}x=1$", "solution": f"So \\boxed{{\\frac{{1}}{{{n}}}}}."} for n in (2, 3, 4, 4)]
    for name, rows in (("gsm8k", gsm8k), ("math", math)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"GSM8K": str(directory / "gsm8k.jsonl"), "MATH": str(directory / "math.jsonl"), "PYTHON": sys.executable}


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_is_valid_bash():
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0
    assert os.access(SCRIPT, os.X_OK)


def test_a_dry_run_prints_every_stage_and_runs_none(tmp_path: Path):
    shown = reproduce("--dry-run", cwd=tmp_path, SEEDS="0 1", STEPS="7", SETTINGS="train.learning_rate=2e-6")
    assert shown.returncode == 0, shown.stderr
    trained = [line for line in shown.stdout.splitlines() if line.startswith("+ gvpo train")]
    assert [line.split()[4] for line in trained] == [
        f"run.dir=runs/math-7b/{arm}-seed-{seed}" for arm in ("gvpo", "grpo", "dr_grpo") for seed in (0, 1)
    ]
    assert all("train.steps=7" in line and "train.learning_rate=2e-6" in line for line in trained)
    assert "data.py --gsm8k openai/gsm8k:main" in shown.stdout
    assert "result.py runs/math-7b" in shown.stdout
    (evaluated,) = (line.replace("\\", "") for line in shown.stdout.splitlines() if line.startswith("+ gvpo eval"))
    assert evaluated.split()[3:10] == [
        "Qwen/Qwen2.5-Math-7B",
        *(f"runs/math-7b/{arm}-seed-{seed}" for arm in ("gvpo", "grpo", "dr_grpo") for seed in (0, 1)),
    ]
    assert "--benchmark aime24,amc,math500,minerva,olympiadbench --template auto --out runs/math-7b/eval" in evaluated
    assert list(tmp_path.iterdir()) == []


def test_the_cost_follows_its_formula(tmp_path: Path):
    shown = reproduce("cost", cwd=tmp_path, ARMS="gvpo grpo", SEEDS="0 1", STEPS="10", TOKENS_PER_SECOND="1000").stdout
    tokens = 2 * 2 * 10 * 1024 * 4 * 1024
    assert f"at most {tokens} completion tokens" in shown
    petaflop = int(next(line for line in shown.splitlines() if "PFLOP" in line).split()[3])
    assert petaflop == pytest.approx(12 * 7_615_616_512 * tokens / 1e15, rel=1e-3)
    assert f"at most {tokens // 1000 // 3600} device hours" in shown
    assert "122 GB" in shown


def test_it_trains_resumes_evaluates_and_collects_with_a_small_model(tmp_path: Path):
    save_model(tiny_model(), byte_tokenizer(), tmp_path / "model")
    variables = {**sources(tmp_path), "MODEL": "model", "ARMS": "gvpo", "STEPS": "1", "OUT": "out"}
    variables |= {"GVPO": f"{sys.executable} -m gvpo.cli.main", "SETTINGS": " ".join(SMALL)}
    (tmp_path / "out/data").mkdir(parents=True)
    made = module("data")
    problems = [made.gsm8k_row(row) for row in rows(tmp_path / "gsm8k.jsonl")]
    for name, part in zip(("train", "held-out"), made.split(problems, 1), strict=True):
        (tmp_path / f"out/data/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    rows_of_amc = [{"problem": f"{n}+1?", "answer": float(n + 1)} for n in range(2)]
    (tmp_path / "amc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of_amc))
    variables |= {
        "BENCHMARKS": "amc",
        "BENCHMARK_DATA": "amc=amc.jsonl",
        "EVAL": "sampling.max_tokens=4 rewards.workers=1",
    }
    first = reproduce("data", "train", "evaluate", "result", cwd=tmp_path, **variables)
    assert first.returncode == 0, first.stderr
    assert "data: out/data exists" in first.stdout
    assert "amc has 2 problems here and 83 in the papers" in first.stderr
    found = json.loads((tmp_path / "out/result.json").read_text())
    scores = {score["model"]: score["avg"]["mean"] for score in found["benchmarks"]["results"]}
    assert scores == {"model": 0.0, "out/gvpo-seed-0": 0.0}
    assert found["benchmarks"]["differences"][0]["difference"] == 0.0
    assert found["unfinished"] == []
    run = found["held_out"]["gvpo"]["0"]
    assert run["steps"] == 1
    assert run["accuracy_before"] == run["accuracy_after"] == 0.0
    again = reproduce("train", cwd=tmp_path, **variables)
    assert again.stdout.strip() == "train: out/gvpo-seed-0 has finished"
    (tmp_path / "out/gvpo-seed-0/summary.json").unlink()
    assert "--resume" in reproduce("--dry-run", "train", cwd=tmp_path, **variables).stdout


def test_the_data_stage_asks_for_boxed_answers_and_holds_out_some(tmp_path: Path):
    command = [sys.executable, str(RECIPE / "data.py"), "--held-out", "2", "--out", str(tmp_path / "data")]
    given = sources(tmp_path)
    subprocess.run([*command, "--gsm8k", given["GSM8K"], "--math", given["MATH"]], check=True, capture_output=True)
    train, held = rows(tmp_path / "data/train.jsonl"), rows(tmp_path / "data/held-out.jsonl")
    assert (len(train), len(held)) == (6, 2)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held}
    answers = {row["prompt"].partition("\n")[0]: row["answer"] for row in train + held}
    assert answers == {
        **{f"{n}+1?": str(n + 1) for n in range(5)},
        **{f"${n}x=1$": f"\\frac{{1}}{{{n}}}" for n in (2, 3, 4)},
    }
    assert all(row["prompt"].endswith("put the final answer in \\boxed{}.") for row in train)


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["trian"], {}, "there is no stage 'trian'; stages are cost data train evaluate result"),
        (["train"], {"ARMS": "ppo"}, "there is no arm 'ppo'; ARMS may contain gvpo grpo dr_grpo"),
        (["data"], {}, "set MATH to a file or Hub dataset ID"),
    ],
)
def test_error_about_invalid_arguments(tmp_path: Path, arguments: list[str], variables: dict[str, str], message: str):
    refused = reproduce(*arguments, cwd=tmp_path, **variables)
    assert refused.returncode == 2
    assert message in refused.stderr


def test_a_problem_without_an_answer_is_none():
    made = module("data")
    assert made.math_row({"problem": "Why?", "solution": "Because."}) is None
    assert made.math_row({"problem": "Why?", "answer": ""}) is None
    assert made.math_row({"problem": "2?", "answer": "2"})["answer"] == "2"


def test_the_settings_are_those_of_the_official_example():
    config = load_config(find_recipe("math-7b"))
    assert config.model_path == "Qwen/Qwen2.5-Math-7B"
    assert (config.prompts_per_step, config.groups_per_update, config.group_size, config.max_tokens) == (
        1024,
        256,
        4,
        1024,
    )
    assert (config.learning_rate, config.beta, config.reference, config.kl_in_reward) == (1e-6, 0.1, "previous", 0)


@pytest.mark.parametrize("arm", ["grpo", "dr_grpo"])
def test_the_other_arms_differ_only_in_the_objective(arm: str):
    ours, other = (load_config(find_recipe(name)).to_recipe() for name in ("math-7b", f"math-7b/{arm}"))
    assert [section for section, table in ours.items() if table != other[section]] == ["objective"]
    changed = {key for key, value in ours["objective"].items() if value != other["objective"][key]}
    assert changed == {"name", "beta", "reference"}  # these arms have no reference
    assert other["objective"]["reference"] == "auto"


@pytest.mark.skipif(
    not (REAL / "math_lvl3to5").is_dir(), reason="the real data are missing; set GVPO_TEST_DATA to their parent"
)
def test_real_problems_of_both_sources_have_answers_that_their_reward_accepts():
    made = module("data")
    real = {"gsm8k/train.jsonl": made.gsm8k_row, "math_lvl3to5/train.jsonl": made.math_row}
    for name, read in real.items():
        problems = [read(row) for row in rows(REAL / name)]
        assert problems.count(None) <= 2  # two of MATH's answers are empty
        answers = [row["answer"] for row in problems if row is not None][:500]
        judged = REWARDS["math_answer"](completions=[f"So \\boxed{{{answer}}}." for answer in answers], answer=answers)
        assert judged == [1.0] * len(answers), name
