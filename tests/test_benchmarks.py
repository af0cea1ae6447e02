"""The benchmarks compare equal work: both sides of each have the same gradient, and the work is counted correctly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gvpo import Completion, Group, load_model

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
DIFFERENCE = """
import json, sys, warnings
warnings.simplefilter("ignore")
from update_cases import Bench, Shape
bench = Bench.of(Shape(24, (6, 40, 17, 33), vocabulary=512, groups=2), *sys.argv[1:])
print(json.dumps(bench.differences()["difference"]))
"""


@pytest.fixture
def benchmarks(monkeypatch):
    """Make the benchmarks' modules importable."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "dtype", "allowed"),
    [
        ("known", "float32", 2e-6),
        ("unknown", "float32", 2e-6),
        ("score-push", "float32", 2e-6),
        ("rollout", "float32", 2e-4),  # movement of weights, which are rounded at each step
        ("known", "bfloat16", 2e-2),
        ("score", "float32", 2e-6),
    ],
)
def test_both_sides_give_the_same_gradient(case, dtype, allowed):
    """Compare with TRL's own loss, each in a separate process, since accelerate fixes the precision of a process."""
    pytest.importorskip("trl")
    command = [sys.executable, "-c", DIFFERENCE, case, dtype]
    finished = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=True)
    assert 0 < float(finished.stdout.splitlines()[-1]) < allowed


def test_work_counts_each_prompt_once_and_no_siblings(benchmarks):
    from matmul_bound import Work

    groups = [Group([1] * 5, [Completion([2] * 3), Completion([2])])]
    seen = sum(range(1, 6)) + (6 + 7 + 8) + 6  # of the prompt, the first completion, the second
    assert Work.of(groups) == Work(tokens=5 + 3 + 1, scored=4, pairs=seen)


def test_flops_are_six_per_weight_and_token(benchmarks):
    from matmul_bound import Passes, Work, flops

    from tests.fakes import tiny_model

    model = tiny_model("qwen2")
    config, work = model.config, Work(tokens=10, scored=4, pairs=0)
    head = config.vocab_size * config.hidden_size
    linear = sum(m.weight.numel() for m in model.model.modules() if type(m).__name__ == "Linear")
    assert flops(model, work, Passes()) == 6 * linear * 10 + 6 * head * 4
    assert flops(model, work, Passes(head_again=1)) == 6 * linear * 10 + 8 * head * 4
    assert flops(model, work, Passes(forward=1)) == 8 * linear * 10 + 8 * head * 4


def test_completions_of_the_ragged_task_have_a_hundred_tokens_on_average(benchmarks, tmp_path):
    from step_tasks import RAGGED_MEAN, RAGGED_VOCABULARY, TASKS

    TASKS["ragged"].make_model(tmp_path)
    model = load_model(str(tmp_path))
    words = torch.randint(RAGGED_VOCABULARY, (2, 200), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ends = model(words).logits.softmax(-1)[..., model.config.eos_token_id]
    assert ends.min() > 0.9 / RAGGED_MEAN
    assert ends.max() < 1.1 / RAGGED_MEAN


def test_a_collapse_and_its_warning_are_dated_in_updates(benchmarks):
    from collapse import Outcome, detectors, threshold

    def run(best, rewards, name="short-0"):
        steps = [
            {"train/updates": 4, "seconds/sampling": 1.0, "offpolicy/logratio_best": value, "eval/reward": reward}
            for value, reward in zip(best, rewards, strict=True)
        ]
        return Outcome((name, "reuse", "grpo", 1e-3), [{"eval/reward": 0.5}, *steps])

    bad, good = run([0.0, -1.0, -3.0, -3.0], [0.5, 0.5, 0.45, 0.3]), run([0.0, 0.2, -0.4, 0.0], [0.6, 0.7, 0.3, 0.45])
    assert (bad.collapsed, bad.fallen_after(), bad.warned_after()) == (True, 16, 12)  # means of two steps: -.5, then -2
    assert (good.collapsed, good.fallen_after(), good.warned_after()) == (False, 12, None)
    assert (bad.lowest("offpolicy/logratio_best"), good.lowest("offpolicy/logratio_best")) == (-3.0, -0.2)
    assert threshold([bad, good], "offpolicy/logratio_best") == -1.6
    assert list(detectors([bad, good]))[-1] == "| the warning | 1 of 1, false 0 of 1 |"


def test_ratios_are_computed_per_pair(benchmarks):
    from measure import ratio

    assert ratio({"slow": [2.0, 9.0, 4.0], "fast": [1.0, 3.0, 4.0]}, "slow", "fast") == {
        "median": 2.0,
        "min": 1.0,
        "max": 3.0,
    }


def test_the_peak_does_not_count_freed_memory(benchmarks):
    """Allocate two 64 MiB blocks one after the other, in a process that returns freed memory."""
    code = """
from measure import peak_above
def work():
    for _ in range(2):
        block = bytearray(64 * 2**20)
        block[::4096] = b"1" * len(block[::4096])
        del block
print(peak_above(work))
"""
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=BENCHMARKS, env=environment, capture_output=True, text=True, check=True)
    assert 60 < float(found.stdout) < 80


@pytest.mark.slow
def test_the_gpu_benchmark_runs_and_the_update_is_exact(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- gpu -->\n<!-- /gpu -->\n")
    command = [sys.executable, "gpu.py", "--device", "cpu", "--tiny", "--repeats", "1", "--page", str(page)]
    subprocess.run(command, cwd=BENCHMARKS, check=True)  # fails if the update is not exact
    assert "| qwen3_moe |" in page.read_text()


def test_equal_implementations_of_exclusion_have_equal_distributions(benchmarks):
    """Compare each implementation's scores on the same logits, also those that differ according to the page."""
    import exclusion as bench

    logits = 4 * torch.randn(50, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    allowed = torch.arange(20).remainder(3).ne(0).expand(50, -1)
    step = bench.Step(torch.arange(6).expand(50, -1), logits, allowed)
    found = {}
    for setting, implementations in bench.CASES:
        reference = bench.first(step, setting).softmax(-1)
        for name, how in implementations.items():
            found[setting.name, name] = float((how(step, setting).softmax(-1).nan_to_num() - reference).abs().max())
    same = {key for key, distance in found.items() if distance < 1e-12}
    cut, penalised = (setting.name for setting, _ in bench.CASES[1:])
    assert {name for setting, name in found if (setting, name) not in same} == {
        *("logit bias -5", "probabilities passed on as logits", "-inf after top-k and top-p", "log Q, then penalty")
    }
    assert (bench.CASES[0][0].name, "-inf after top-k and top-p") in same
    assert found[cut, "-inf after top-k and top-p"] > 0.1
    assert found[penalised, "log Q, then penalty"] > 0.1


def test_a_grid_is_extended_beyond_its_best_end(benchmarks):
    from off_policy import extension

    assert [extension(best, (3e-5, 1e-4, 3e-4)) for best in (3e-5, 1e-4, 3e-4)] == [9e-6, None, 9e-4]
    assert [extension(best, (1.0, 2.0, 5.0)) for best in (1.0, 5.0)] == [0.5, 10.0]


def test_tuning_reads_finished_runs_and_reports_what_is_missing(benchmarks, tmp_path):
    """The rate 1e-4 is best at the default beta; at this rate, beta .4 is better, and beta .8 beyond it is not."""
    from off_policy import Missing, Study
    from off_policy_arms import Arm

    accuracies = {(0.2, 3e-5): 0.5, (0.2, 1e-4): 0.7, (0.2, 3e-4): 0.6, (0.1, 1e-4): 0.6, (0.4, 1e-4): 0.8}
    arm = Arm({"objective": "gvpo", "beta": 0.2}, ("beta",), (0.1, 0.2, 0.4))
    study = Study(tmp_path, trains=False)

    def finish(beta, rate, accuracy):
        settings = {"beta": beta, "learning_rate": rate, "objective": "gvpo"}
        line = {"key": json.dumps(["offline", settings, 0]), "sampled": accuracy}
        with (tmp_path / "results.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    for (beta, rate), accuracy in accuracies.items():
        finish(beta, rate, accuracy)
    with pytest.raises(Missing, match=r"0\.8"):
        study.tuned("offline", arm, [0])
    finish(0.8, 1e-4, 0.75)
    assert study.tuned("offline", arm, [0]) == {"objective": "gvpo", "beta": 0.4, "learning_rate": 1e-4}


def test_the_interval_of_paired_differences_contains_their_mean_and_shrinks_with_their_spread(benchmarks):
    from off_policy import interval

    assert interval([0.1] * 5) == pytest.approx((0.1, 0.1))
    low, high = interval([0.0, 0.2] * 5)
    assert 0.03 < low < 0.1 < high < 0.17  # 0.1 plus and minus 1.96 * 0.1 / sqrt(10)
    assert interval([-0.4, 0.6] * 5)[0] < 0 < interval([-0.4, 0.6] * 5)[1]


def test_the_table_of_the_calculator_has_every_seed_and_an_interval_over_all_problems(benchmarks):
    from calculator import table

    spent = {"processor_seconds": 30.0, "seconds": 60.0}
    runs = [
        {"arm": "gvpo", "seed": seed, "before": [0.0, 0.0], "after": scores, **spent}
        for seed, scores in [(1, [1.0, 0.0]), (0, [1.0, 1.0])]
    ]
    *_, row = table(runs, ["gvpo", "grpo"])
    assert row.startswith("| gvpo | 2 | 0.000, 0.000 | 1.000, 0.500 | 0.750 |"), "arms without runs have no row"
    assert row.endswith("| 30 | 60 |")
