"""The forwards of a step: every forward is counted, and none repeats another."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from gvpo.rollout.usable import TrainingGroup, usable
from gvpo.training.learner import Learner
from gvpo.training.objective import build_objective
from gvpo.update.group_backward import score
from tests.training.toy import config, groups, model

pytestmark = pytest.mark.filterwarnings(
    "ignore:GVPO with objective.reference", "ignore:objective.kl_in_reward with reference"
)

ONE, SEVERAL, FEW = 8192, 16, 8
SCORE, PUSH, REFERENCE = "score", "push", "reference"


def learner(**settings: Any) -> Learner:
    config_ = config(**settings)
    return Learner(model(), build_objective(config_), config_)


@contextmanager
def counted(one: Learner) -> Iterator[list[str]]:
    """Record each forward as one of the policy with or without gradient, or of the reference. Self-checks run first."""
    seen: list[str] = []
    own = lambda *_: seen.append(PUSH if torch.is_grad_enabled() else SCORE)  # noqa: E731
    score(one.model, groups(1))
    hooks = [one.model.register_forward_pre_hook(own)]
    if one.reference is not None:
        score(one.reference.model, groups(1))
        hooks.append(one.reference.model.register_forward_pre_hook(lambda *_: seen.append(REFERENCE)))
    yield seen
    for hook in hooks:
        hook.remove()


def microbatches(batch: Sequence[TrainingGroup], budget: int) -> int:
    """Return the number of forwards of a score pass over a batch."""
    one = learner()
    with counted(one) as seen:
        score(one.model, [entry.group for entry in batch], tokens_per_microbatch=budget)
    return len(seen)


BATCH = usable(groups(), rewarded=True, at_least=2)
FIRST, LATER = [PUSH], [SCORE, PUSH]
"""An update whose coefficients are known in advance, and one that needs its log-probs first."""

CASES = [
    # settings, step -> the passes over the whole rollout, each as many forwards as there are micro-batches
    ({"objective": "gvpo", "reference": "previous"}, 1, FIRST),
    ({"objective": "gvpo", "reference": "previous"}, 2, FIRST),
    ({"objective": "gvpo", "reference": "previous", "passes": 2}, 2, [*FIRST, *LATER]),
    ({"objective": "grpo"}, 2, FIRST),
    ({"objective": "gspo"}, 2, FIRST),
    ({"objective": "dapo", "passes": 3}, 2, [*FIRST, *LATER, *LATER]),
    ({"objective": "gvpo", "reference": "initial"}, 1, FIRST),
    ({"objective": "gvpo", "reference": "initial"}, 2, [REFERENCE, *LATER]),
    ({"objective": "gvpo", "reference": "initial", "passes": 2}, 2, [REFERENCE, *LATER, *LATER]),
    ({"objective": "grpo", "reference": "initial", "kl_coef": 0.1}, 1, FIRST),
    ({"objective": "gvpo", "reference": "every:2"}, 1, FIRST),
    ({"objective": "gvpo", "reference": "every:2"}, 2, [REFERENCE, *LATER]),
    ({"objective": "gvpo", "reference": "every:2"}, 3, FIRST),
    ({"objective": "rloo", "reference": "initial", "kl_in_reward": 0.1}, 1, [SCORE, *FIRST]),
    ({"objective": "rloo", "reference": "initial", "kl_in_reward": 0.1}, 2, [REFERENCE, SCORE, *FIRST]),
    ({"objective": "rloo", "reference": "previous", "kl_in_reward": 0.1}, 2, [SCORE, *FIRST]),
    ({"objective": "sft", "reference": "previous"}, 2, FIRST),
]


def name(case: Any) -> str:
    return " ".join(str(value) for value in case.values()) if isinstance(case, dict) else ""


@pytest.mark.parametrize("budget", [ONE, SEVERAL], ids=["one micro-batch", "several"])
@pytest.mark.parametrize(("settings", "step", "passes"), CASES, ids=name)
def test_a_step_makes_the_forwards_that_it_needs_and_no_other(
    settings: dict[str, Any], step: int, passes: list[str], budget: int
):
    one = learner(**settings, tokens_per_microbatch=budget)
    count = microbatches(BATCH, budget)
    assert (count == 1) == (budget == ONE)
    if budget == ONE:  # one forward serves as its own score pass, except for the one that the rewards need
        merged = [now for now, after in zip(passes, [*passes[1:], ""], strict=True) if (now, after) != (SCORE, PUSH)]
        passes = passes if "kl_in_reward" in settings else merged
    with counted(one) as seen:
        one.learn(BATCH, step)
    assert seen == [kind for kind in passes for _ in range(count)]


@pytest.mark.parametrize("objective", ["gvpo", "grpo"])
def test_only_later_batches_of_a_rollout_are_scored_before_the_weights_move(objective: str):
    one = learner(objective=objective, reference="previous", groups_per_update=2, tokens_per_microbatch=FEW)
    first, second = (microbatches(batch, FEW) for batch in (BATCH[:2], BATCH[2:]))
    with counted(one) as seen:
        one.learn(BATCH, 2)
    assert seen == [SCORE] * second + [PUSH] * first + [SCORE] * second + [PUSH] * second


def test_in_the_first_step_one_pass_is_the_later_batches_old_and_reference_log_probs():
    one = learner(objective="grpo", reference="initial", kl_coef=0.1, groups_per_update=2)
    with counted(one) as seen:
        learned = one.learn(BATCH, 1)
    assert seen == [SCORE, PUSH, PUSH]
    for update in learned.updates:
        for row in (row for entry in update.groups for row in entry.group.completions):
            assert row.ref_logprobs is not None
            assert torch.equal(torch.as_tensor(row.ref_logprobs), torch.as_tensor(row.old_logprobs))


def test_supervised_updates_make_one_forward_per_micro_batch():
    one = learner(objective="sft", reference="previous", groups_per_update=1)
    with counted(one) as seen:
        one.learn(BATCH, 1)
    assert seen == [PUSH] * len(BATCH)


@pytest.mark.parametrize("settings", [{"objective": "gvpo"}, {"objective": "grpo", "kl_coef": 0.5}])
@pytest.mark.parametrize("budget", [ONE, SEVERAL])
def test_a_fresh_reference_gives_the_same_log_probs_as_its_own_pass(settings: dict[str, Any], budget: int):
    """Step 1 takes the reference's log-probs from the policy; step 2 computes them with the equal copy."""
    updates = []
    for step in (1, 2):
        one = learner(**settings, tokens_per_microbatch=budget)
        (update,) = one.learn(BATCH, step).updates
        updates.append(update)
    first, second = updates
    assert first.grad_norm == pytest.approx(second.grad_norm, rel=1e-5)
    rows = [[row for entry in update.groups for row in entry.group.completions] for update in updates]
    for one_row, other in zip(*rows, strict=True):
        assert torch.equal(torch.as_tensor(one_row.ref_logprobs), torch.as_tensor(other.ref_logprobs))
