"""The token budget: measured on the device, halved when memory runs out, and the same after a resume."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from gvpo.errors import TrainingError
from gvpo.planning import devices
from gvpo.rollout.usable import usable
from gvpo.training import budget as module
from gvpo.training.allocator import keep_freed_memory, release
from gvpo.training.budget import Budget, find_budget
from gvpo.training.learner import Learner
from gvpo.training.objective import build_objective
from gvpo.types import Completion, Group
from gvpo.update.group_backward import score
from tests.training.toy import config, groups, lines, model, same, stopped_at, trainer, weights

pytestmark = pytest.mark.filterwarnings("ignore:GVPO with objective.reference")

CPU = torch.device("cpu")
MOST = 10
"""Number of tokens above which a cramped model runs out of memory; the longest row has fewer."""

GPU_WORDS = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU_WORDS = RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory")
BATCH = usable(groups(), rewarded=True, at_least=2)
LONG = usable(
    [
        Group([1, 2, 3], [Completion([(7 * i + j * j) % 11 for j in range(20 + i)], reward=float(i)) for i in range(4)])
        for _ in range(4)
    ],
    rewarded=True,
    at_least=2,
)
"""A batch long enough for another layout to give other bits."""
LONG_MOST = 30
ROWS = [Group([1, 2, 3], [Completion([4] * 7)] * 4)] * 4  # rows of 9 tokens


@pytest.fixture(autouse=True)
def _without_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip full collections, which take a third of a second; no large objects exist here."""
    monkeypatch.setattr(module, "release", lambda: None)


def learner(**settings: Any) -> Learner:
    config_ = config(**settings)
    one = Learner(model(), build_objective(config_), config_)
    score(one.model, groups(1))  # run the self-check of the fast paths first
    return one


@contextmanager
def cramped(
    policy: Any, most: int, error: Exception, *, spared: int = 0, backward: bool = False
) -> Iterator[list[int]]:
    """Let a model run out of memory above `most` tokens, after `spared` forwards; yield the sizes of its inputs."""
    seen: list[int] = []

    def forward(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        if inputs.get("use_cache") is not False:
            return  # the sampler's own forward
        seen.append(inputs["input_ids"].numel())
        if not backward and len(seen) > spared and seen[-1] > most:
            raise error

    def gradient(tensor: torch.Tensor) -> None:
        if len(seen) > spared and tensor.shape[:2].numel() > most:
            raise error

    def hidden(_: Any, __: Any, output: Any) -> None:
        if backward and output.requires_grad:
            output.register_hook(gradient)

    hooks = [
        policy.register_forward_pre_hook(forward, with_kwargs=True),
        policy.get_input_embeddings().register_forward_hook(hidden),
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def close(one: Learner, other: Learner, start: dict[str, torch.Tensor]) -> float:
    """Return the distance of two policies, as a fraction of the distance that one has moved."""
    ours, theirs = weights(one.model), weights(other.model)
    apart = sum(float((ours[name] - theirs[name]).square().sum()) for name in ours)
    moved = sum(float((theirs[name] - start[name]).square().sum()) for name in ours)
    assert moved > 0
    return float((apart / moved) ** 0.5)


@pytest.mark.parametrize("error", [GPU_WORDS, CPU_WORDS, MemoryError()], ids=["gpu", "cpu", "python"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(
    "settings",
    [{"objective": "gvpo"}, {"objective": "grpo", "groups_per_update": 2, "passes": 2}, {"objective": "sft"}],
    ids=["gvpo", "grpo", "sft"],
)
def test_an_update_that_ran_out_of_memory_is_repeated_in_smaller_pieces(
    error: Exception, backward: bool, settings: dict[str, Any]
):
    one, unhurt = learner(**settings), learner(**settings)
    start = weights(one.model)
    with cramped(one.model, MOST, error, backward=backward) as seen:
        for step in (1, 2):
            learned = one.learn(BATCH, step)
    for step in (1, 2):
        expected = unhurt.learn(BATCH, step)
    assert max(seen) > MOST
    assert seen[-1] <= MOST
    assert learned.budget == one.budget.tokens
    assert close(one, unhurt, start) < 1e-4
    assert [u.grad_norm for u in learned.updates] == pytest.approx([u.grad_norm for u in expected.updates], rel=1e-3)
    assert all(parameter.grad is None for parameter in one.model.parameters())
    notes = one.budget.take_notes()
    assert notes
    assert notes[-1].startswith(
        f"warning: out of memory in the update; train.tokens_per_microbatch is now {learned.budget}"
    )
    assert one.budget.take_notes() == []


def test_a_back_off_equals_a_run_that_had_the_smaller_budget_from_the_start():
    one = learner(objective="grpo", groups_per_update=2, passes=2)
    with cramped(one.model, LONG_MOST, CPU_WORDS):
        one.learn(LONG, 1)
    small = learner(objective="grpo", groups_per_update=2, passes=2, tokens_per_microbatch=one.budget.tokens)
    small.learn(LONG, 1)
    assert same(weights(one.model), weights(small.model))


@pytest.mark.parametrize("objective", ["grpo", "gspo"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_at_unchanged_weights_ratios_are_one_also_after_a_back_off(objective: str, dtype: str):
    """Old log-probs of the second batch are recomputed if the first batch's push runs out of memory."""
    settings = {"objective": objective, "groups_per_update": 2, "compute_dtype": dtype, "learning_rate": 1e-30}
    one = learner(**settings)
    with cramped(one.model, LONG_MOST, CPU_WORDS, spared=1) as seen:
        learned = one.learn(LONG, 1)
    assert seen[0] > LONG_MOST  # the old pass of the second batch, at the first budget
    assert seen[-1] <= LONG_MOST
    for update in learned.updates:
        assert float(update.output.metrics[f"{objective}/ratio_mean"]) == 1.0


def test_a_back_off_after_the_weights_moved_keeps_old_log_probs_that_differ_by_float_noise():
    """They cannot be recomputed. Compared with a run that had small batches from the start, only the order of sums
    differs."""
    settings = {"objective": "grpo", "groups_per_update": 2}
    one = learner(**settings)
    start = weights(one.model)
    with cramped(one.model, LONG_MOST, CPU_WORDS, spared=2):  # the old pass of the second batch and the first push
        late = one.learn(LONG, 1)
    small = learner(**settings, tokens_per_microbatch=one.budget.tokens)
    early = small.learn(LONG, 1)
    ratios = [float(learned.updates[1].output.metrics["grpo/ratio_mean"]) for learned in (late, early)]
    assert ratios[0] != 1.0
    assert ratios[0] == pytest.approx(ratios[1], abs=1e-6)
    assert close(one, small, start) < 1e-4


def test_an_error_is_raised_if_not_even_single_completions_fit():
    one = learner()
    start = weights(one.model)
    with cramped(one.model, 1, GPU_WORDS), pytest.raises(TrainingError, match=r"completion per forward.*checkpoint"):
        one.learn(BATCH, 1)
    assert same(weights(one.model), start)


def test_other_errors_are_not_retried():
    one = learner()
    with cramped(one.model, 1, RuntimeError("shapes differ")) as seen, pytest.raises(RuntimeError, match="shapes"):
        one.learn(BATCH, 1)
    assert len(seen) == 1


def test_halving_starts_at_the_used_tokens_and_ends_at_the_longest_row():
    tried: list[int] = []

    def work(tokens: int) -> None:
        tried.append(tokens)
        raise MemoryError

    forgotten: list[None] = []
    with pytest.raises(TrainingError, match="one completion per forward"):
        Budget(8192).attempt(work, ROWS, lambda: forgotten.append(None))
    assert tried == [8192, 72, 36, 18, 9]  # 16 rows of 9 tokens
    assert len(forgotten) == 4


def fake_memory(monkeypatch: pytest.MonkeyPatch, *, free: float, a: float = 0, b: float = 0, c: float = 0) -> list[int]:
    """Fake a device where t tokens need a + b t + c t^2 bytes; return the sizes that were tried."""
    tried: list[int] = []
    monkeypatch.setattr(module, "_free", lambda _: free)
    monkeypatch.setattr(module, "_watch", lambda _: lambda: a + b * tried[-1] + c * tried[-1] ** 2)
    return tried


def probe_into(tried: list[int], most: float = float("inf")) -> Any:
    def probe(of: Sequence[Group], tokens: int) -> None:
        tried.append(sum(len(g.prompt) + sum(len(row.tokens) - 1 for row in g.completions) for g in of))
        assert tried[-1] <= tokens
        if tokens > most:
            raise GPU_WORDS

    return probe


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"free": 1e12, "b": 1e6}, 8192),  # bounded by the largest useful budget
        ({"free": 1.25 * 5000e6, "b": 1e6}, 4096),
        ({"free": 1.25 * 4000e6, "b": 1e6}, 2048),
        ({"free": 1.25 * 6000e6, "a": 2000e6, "b": 1e6}, 2048),
        ({"free": 1.25 * 6000e6, "a": 2000e6, "b": 0.9e6}, 4096),
        ({"free": 1.25 * 5000e6, "b": 0.3e6, "c": 240}, 2048),  # a line through the last two would say 4096
        ({"free": 1.0, "b": 1e6}, 512),
    ],
)
def test_the_largest_budget_that_fits(monkeypatch: pytest.MonkeyPatch, sizes: dict[str, float], expected: int):
    tried = fake_memory(monkeypatch, **sizes)
    found = find_budget(probe_into(tried), ROWS, CPU)
    assert found.tokens == expected
    assert max(tried) <= 2048
    assert "GiB" in found.why


def test_memory_for_the_optimizer_is_left_free(monkeypatch: pytest.MonkeyPatch):
    sizes = {"free": 1.25 * 5000e6, "b": 1e6}
    assert find_budget(probe_into(fake_memory(monkeypatch, **sizes)), ROWS, CPU, owed=1500e6).tokens == 2048


def test_a_probe_that_runs_out_of_memory_is_as_good_as_a_measurement(monkeypatch: pytest.MonkeyPatch):
    for most, expected in ((256, 512), (1024, 1024)):
        tried = fake_memory(monkeypatch, free=1e12, b=1e6)
        assert find_budget(probe_into(tried, most), ROWS, CPU).tokens == expected


def test_a_budget_fits_the_longest_row(monkeypatch: pytest.MonkeyPatch):
    tried = fake_memory(monkeypatch, free=1.0, b=1e6)
    long = [*ROWS, Group([1] * 500, [Completion([2] * 700)])]
    assert find_budget(probe_into(tried), long, CPU).tokens == 2048


def test_the_default_is_used_if_memory_cannot_be_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_watch", lambda _: lambda: float("nan"))
    found = find_budget(lambda *_: None, ROWS, CPU)
    assert (found.tokens, found.why) == (8192, "memory cannot be measured on this device")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux")
def test_a_peak_counts_simultaneous_memory_even_if_freed_memory_is_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "release", release)
    keep_freed_memory()  # as the trainer does, for the rest of this process
    held = [torch.ones(2**22) for _ in range(16)]
    del held  # 256 MiB that a tensor could use without a new page

    def probe(groups: Sequence[Group], tokens: int) -> None:
        for _ in range(3):
            torch.ones(2**24).sum()

    point = module._measured(probe, module._Shape.of(ROWS), 512, CPU)
    assert point is not None
    assert 60e6 < point.peak < 120e6


def test_free_memory_obeys_the_container_and_the_address_space(monkeypatch: pytest.MonkeyPatch):
    assert 0 < devices.free_memory() <= devices.machine_memory()
    monkeypatch.setattr(devices, "_left_of_container", lambda: 1e6)
    assert devices.free_memory() == 1e6


def test_auto_finds_a_budget_and_leaves_no_gradient(tmp_path: Path):
    one, fixed = learner(tokens_per_microbatch="auto"), learner(tokens_per_microbatch=8192)
    assert one.budget.tokens is None
    assert one.learn([], 1).budget is None
    learned = one.learn(BATCH, 1)
    fixed.learn(BATCH, 1)
    assert learned.budget == 8192  # a toy fits into anything
    assert same(weights(one.model), weights(fixed.model))
    (note,) = one.budget.take_notes()
    assert note.startswith("train.tokens_per_microbatch = 8192 (about ")


def test_a_resumed_run_keeps_the_budget_that_was_found_or_backed_off_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = tmp_path / "run"
    settings: dict[str, Any] = {"tokens_per_microbatch": "auto", "checkpoint_every": 1, "eval_problems": 0}
    monkeypatch.setattr(module, "find_budget", None)
    monkeypatch.setattr("gvpo.training.learner.find_budget", lambda *_, **__: module.MeasuredBudget(16, "said so"))
    with stopped_at(2):
        trainer(run, **settings, held=None).train()
    state = json.loads((run / "checkpoints/step-000001/trainer/state.json").read_text())
    assert state["budget"] == {"asked": "auto", "tokens": 16}
    monkeypatch.setattr("gvpo.training.learner.find_budget", lambda *_, **__: pytest.fail("found again"))
    trainer(run, **settings, held=None).train(resume=True)
    assert [line["train/tokens_per_microbatch"] for line in lines(run)] == [16, 16, 16]


def test_a_changed_setting_overrides_the_checkpoint():
    budget = Budget(64)
    budget.restore({"asked": 8192, "tokens": 16})
    assert budget.tokens == 64
    budget.restore({"asked": 64, "tokens": 16})
    assert budget.tokens == 16
    budget.restore({})
    assert budget.tokens == 16


def test_a_back_off_is_printed_and_logged(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    policy = model()
    score(policy, groups(1))
    train = trainer(tmp_path / "run", policy=policy, held=None, eval_problems=0, reference="previous")
    with cramped(policy, MOST, CPU_WORDS):
        train.train()
    budgets = [line["train/tokens_per_microbatch"] for line in lines(tmp_path / "run")]
    assert max(budgets) < 2 * MOST
    assert "warning: out of memory in the update; train.tokens_per_microbatch is" in capfd.readouterr().err


REAL = """
import json, resource, sys, torch
sys.path.insert(0, {root!r})
from tests.training.test_budget import LARGE, large_learner, large_batch
one, batch = large_learner(), large_batch()
one.learn(batch, 1)
base = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (base + {room} * 2**20,) * 2)
updates = one.learn(batch, 2).updates
print(json.dumps([one.budget.tokens, updates[0].grad_norm, one.budget.take_notes()]))
"""

LARGE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "max_position_embeddings": 512}


def large_learner(**settings: Any) -> Learner:
    config_ = config(objective="rloo", reference="previous", **settings)
    return Learner(model(**LARGE), build_objective(config_), config_)


def large_batch() -> list[Any]:
    long = [
        Group([1, 2, 3], [Completion([(i + j) % 10 for j in range(200)], reward=float(i % 2)) for i in range(8)])
        for _ in range(4)
    ]
    return usable(long, rewarded=True, at_least=2)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the address space is limited as on Linux")
def test_real_lack_of_memory_on_a_cpu():
    """Under `ulimit -v` torch's own allocator fails in the middle of a forward or a backward."""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", REAL.format(root=root, room=200)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    tokens, norm, notes = json.loads(finished.stdout.splitlines()[-1])
    assert 200 < tokens < 8192
    assert "out of memory" in notes[0]
    one, batch = large_learner(), large_batch()
    expected = [one.learn(batch, step).updates[0].grad_norm for step in (1, 2)][-1]
    assert norm == pytest.approx(expected, rel=1e-4)
