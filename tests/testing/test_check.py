"""`check_gvpo_gradient` accepts GVPO, and gives each mistaken trainer the name of its mistake.

The trainers here are written as their authors would: with autograd and their own loops, not with the code of the check.
"""

from functools import partial
from pathlib import Path

import pytest
import torch

from gvpo import Completion, Group, group_backward
from gvpo.errors import ConfigError, ObjectiveError, ShapeError
from gvpo.objectives import dr_grpo, grpo, gvpo, gvpo_weights
from gvpo.testing import MISTAKES, GradientMismatch, check_gvpo_gradient, random_groups
from tests.fakes import tiny_model

BETA = 0.1
K = 4


def grouped(values):
    """Return values, [B], as [groups, K]: the default groups are alike."""
    return values.view(-1, K)


def weights_of(logprobs, ref_logprobs, rewards, mask, *, means=None):
    """Return w, [groups, K], with gradient through the log-probs."""
    ratios = grouped(((logprobs - ref_logprobs) * mask).sum(1))
    means = ratios.mean(1, keepdim=True) if means is None else means
    rewards = grouped(rewards)
    return rewards - rewards.mean(1, keepdim=True) - BETA * (ratios - means)


def linear(weights, logprobs, mask):
    """Return the loss whose gradient is GVPO's if the weights are."""
    sums = grouped((logprobs * mask).sum(1))
    return -BETA / (K - 1) * (weights * sums).sum(1).mean()


def right(logprobs, *, ref_logprobs, rewards, mask):
    return linear(weights_of(logprobs.detach(), ref_logprobs, rewards, mask), logprobs, mask)


def wrong_sign(logprobs, *, ref_logprobs, rewards, mask):
    return -right(logprobs, ref_logprobs=ref_logprobs, rewards=rewards, mask=mask)


def sum_over_groups(logprobs, *, ref_logprobs, rewards, mask):
    return 3 * right(logprobs, ref_logprobs=ref_logprobs, rewards=rewards, mask=mask)


def attached(logprobs, *, ref_logprobs, rewards, mask):
    return linear(weights_of(logprobs, ref_logprobs, rewards, mask), logprobs, mask)


def std_of_rewards(logprobs, *, ref_logprobs, rewards, mask):
    """Normalize as TRL does by default."""
    scores = grouped(rewards)
    scaled = (scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + 1e-4)
    return linear(weights_of(logprobs.detach(), ref_logprobs, scaled.flatten(), mask), logprobs, mask)


def std_of_weights(logprobs, *, ref_logprobs, rewards, mask):
    weights = weights_of(logprobs.detach(), ref_logprobs, rewards, mask)
    return linear(weights / (weights.std(1, keepdim=True, unbiased=False) + 1e-6), logprobs, mask)


def clipped_weights(logprobs, *, ref_logprobs, rewards, mask):
    weights = weights_of(logprobs.detach(), ref_logprobs, rewards, mask).clamp(-0.5, 0.5)
    return linear(weights, logprobs, mask)


def clipped_rewards(logprobs, *, ref_logprobs, rewards, mask):
    scores = grouped(rewards)
    clipped = (scores - scores.mean(1, keepdim=True)).clamp(-0.4, 0.4)
    pull = weights_of(logprobs.detach(), ref_logprobs, torch.zeros_like(rewards), mask)
    return linear(clipped + pull, logprobs, mask)


def surrogate(logprobs, *, ref_logprobs, old_logprobs, rewards, mask, clip=None):
    weights = weights_of(logprobs.detach(), ref_logprobs, rewards, mask).flatten()[:, None]
    ratio = (logprobs - old_logprobs).exp()
    gain = ratio * weights
    if clip:
        gain = torch.minimum(gain, ratio.clamp(1 - clip, 1 + clip) * weights)
    return -BETA / (K - 1) * (gain * mask).sum() / (len(rewards) / K)


def micro_batches(logprobs, *, ref_logprobs, rewards, mask, group, size=2, per_batch=False):
    """Run GVPO on micro-batches of `size` rows, each with its own means, and add or average the losses."""
    losses = []
    for start in range(0, len(rewards), size):
        rows = slice(start, start + size)
        part = {"ref_logprobs": ref_logprobs[rows], "rewards": rewards[rows], "mask": mask[rows]}
        if per_batch:
            part["group"] = group[rows]
            losses.append(gvpo(logprobs[rows], beta=BETA, **part).loss)
            continue
        ratios = ((logprobs[rows].detach() - part["ref_logprobs"]) * part["mask"]).sum(1)
        values = part["rewards"] - BETA * ratios
        losses.append(-BETA / (K - 1) / 3 * ((values - values.mean()) * (logprobs[rows] * part["mask"]).sum(1)).sum())
    return torch.stack(losses).mean() if per_batch else torch.stack(losses).sum()


def two_ranks(logprobs, *, ref_logprobs, rewards, mask, group):
    """Give each of two ranks every second row, and average their gradients."""
    losses = []
    for rank in range(2):
        part = [tensor[rank::2] for tensor in (logprobs, ref_logprobs, rewards, mask, group)]
        losses.append(gvpo(part[0], ref_logprobs=part[1], rewards=part[2], mask=part[3], group=part[4], beta=BETA).loss)
    return torch.stack(losses).mean()


def batch_mean(logprobs, *, ref_logprobs, rewards, mask):
    values = rewards - BETA * ((logprobs.detach() - ref_logprobs) * mask).sum(1)
    return linear(grouped(values - values.mean()), logprobs, mask)


def stale_means(logprobs, *, ref_logprobs, old_logprobs, rewards, mask):
    means = grouped(((old_logprobs - ref_logprobs) * mask).sum(1)).mean(1, keepdim=True)
    return linear(weights_of(logprobs.detach(), ref_logprobs, rewards, mask, means=means), logprobs, mask)


def kl_in_reward(logprobs, *, ref_logprobs, old_logprobs, rewards, mask):
    """Write the KL into the advantages when the rows are sampled, as the first update's recipe does."""
    return linear(weights_of(old_logprobs, ref_logprobs, rewards, mask), logprobs, mask)


def kl_loss(logprobs, *, ref_logprobs, rewards, mask, kind="k1", coefficient=0.05):
    scores = grouped(rewards)
    gap = logprobs - ref_logprobs
    kl = {"k1": gap, "k2": gap.square() / 2, "k3": (-gap).exp() - 1 + gap}[kind]
    return linear(scores - scores.mean(1, keepdim=True), logprobs, mask) + coefficient * (kl * mask).sum(1).mean()


def no_reference(logprobs, *, rewards, mask):
    scores = grouped(rewards)
    return linear(scores - scores.mean(1, keepdim=True), logprobs, mask)


def unmasked(logprobs, *, ref_logprobs, rewards, mask, ratios=True, loss=True):
    ones = torch.ones_like(mask)
    weights = weights_of(logprobs.detach(), ref_logprobs, rewards, ones if ratios else mask)
    return linear(weights, logprobs, ones if loss else mask)


def mean_over_tokens(logprobs, *, ref_logprobs, rewards, mask):
    weights = weights_of(logprobs.detach(), ref_logprobs, rewards, mask)
    return linear(weights, logprobs, mask / mask.sum(1, keepdim=True))


def mean_log_ratio(logprobs, *, ref_logprobs, rewards, mask):
    weights = weights_of(logprobs.detach(), ref_logprobs, rewards, mask / mask.sum(1, keepdim=True))
    return linear(weights, logprobs, mask)


def last_rows_dropped(logprobs, *, ref_logprobs, rewards, mask, group):
    """Drop the last incomplete batch, as a data loader does: 2 rows of the last group."""
    rows = slice(0, 10)
    return gvpo(
        logprobs[rows], ref_logprobs=ref_logprobs[rows], rewards=rewards[rows], mask=mask[rows], group=group[rows],
        beta=BETA,
    ).loss  # fmt: skip


def half_step(logprobs, *, ref_logprobs, rewards, mask):
    """Compute weights over whole groups, and put half of the rows into this optimizer step."""
    step = torch.tensor([1.0, 1.0, 0.0, 0.0] * 3)[:, None]
    weights = weights_of(logprobs.detach(), ref_logprobs, rewards, mask)
    return linear(weights, logprobs, mask * step)


def unequal_groups(logprobs, *, ref_logprobs, rewards, mask, group):
    weights = gvpo_weights(logprobs, ref_logprobs=ref_logprobs, rewards=rewards, mask=mask, group=group, beta=BETA)
    return -BETA * (weights * (logprobs * mask).sum(1)).mean()


def one_row_each(logprobs, *, ref_logprobs, rewards, mask):
    values = rewards - BETA * ((logprobs.detach() - ref_logprobs) * mask).sum(1)
    return ((values - values) * (logprobs * mask).sum(1)).sum()


WRONG = {
    "sign": [wrong_sign],
    "scale": [sum_over_groups],
    "weights_not_detached": [attached],
    "std_normalized": [std_of_rewards, std_of_weights],
    "clipped_weights": [clipped_weights, clipped_rewards],
    "importance_ratio": [surrogate, partial(surrogate, clip=0.2)],
    "micro_batch_means": [micro_batches, partial(micro_batches, per_batch=True), two_ranks, batch_mean],
    "stale_means": [stale_means],
    "stale_log_ratios": [kl_in_reward],
    "kl_loss_term": [kl_loss, partial(kl_loss, kind="k2"), partial(kl_loss, kind="k3", coefficient=0.01)],
    "reference_ignored": [no_reference],
    "masked_tokens": [unmasked, partial(unmasked, loss=False), partial(unmasked, ratios=False)],
    "length_normalized": [mean_over_tokens, mean_log_ratio],
    "cut_group": [last_rows_dropped, half_step],
    "no_gradient": [one_row_each],
}
CASES = [(name, each) for name, trainers in WRONG.items() for each in trainers]


IDS = [f"{name}-{getattr(each, 'func', each).__name__}-{index}" for index, (name, each) in enumerate(CASES)]


def test_the_exact_gradient_passes_as_a_loss_as_coefficients_and_as_an_objective():
    def coefficients(logprobs, **keywords):
        leaf = logprobs.requires_grad_()
        return torch.autograd.grad(right(leaf, **keywords), leaf)[0]

    def by_rows(logprobs, *, ref_logprobs, rewards, mask):
        return coefficients(logprobs, ref_logprobs=ref_logprobs, rewards=rewards, mask=mask)

    for exact in (right, by_rows, partial(gvpo, beta=BETA)):
        result = check_gvpo_gradient(exact, beta=BETA)
        assert result.error < 1e-12
        assert result.scale == 1.0


def test_a_factor_is_allowed_only_on_request():
    assert check_gvpo_gradient(sum_over_groups, beta=BETA, scale=None).scale == 3.0
    assert check_gvpo_gradient(sum_over_groups, beta=BETA, scale=3.0).error < 1e-12
    for wrong in (wrong_sign, attached):
        with pytest.raises(GradientMismatch):
            check_gvpo_gradient(wrong, beta=BETA, scale=None)


@pytest.mark.parametrize(("name", "trainer"), CASES, ids=IDS)
def test_each_mistake_is_found_by_its_name(name, trainer):
    for seed in range(2):
        with pytest.raises(GradientMismatch) as caught:
            check_gvpo_gradient(trainer, beta=BETA, groups=random_groups(BETA, seed=seed))
        assert caught.value.mistake == name, (seed, caught.value)
        assert MISTAKES[name] in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("trainer", [attached, std_of_rewards, stale_means, mean_log_ratio])
def test_a_mistake_is_found_under_a_constant_factor(trainer):
    def half(logprobs, *, ref_logprobs, old_logprobs, rewards, mask):
        old = {"old_logprobs": old_logprobs} if trainer is stale_means else {}
        return trainer(logprobs, ref_logprobs=ref_logprobs, rewards=rewards, mask=mask, **old) / 2

    (name,) = [name for name, each in CASES if each is trainer]
    with pytest.raises(GradientMismatch, match=r"the whole times 0\.5") as caught:
        check_gvpo_gradient(half, beta=BETA, scale=None)
    assert caught.value.mistake == name, caught.value


def test_groups_of_different_sizes_need_different_factors():
    groups = random_groups(BETA, sizes=(2, 4, 3))
    with pytest.raises(GradientMismatch) as caught:
        check_gvpo_gradient(unequal_groups, beta=BETA, groups=groups, scale=None)
    assert caught.value.mistake == "group_weights"
    assert check_gvpo_gradient(partial(gvpo, beta=BETA), beta=BETA, groups=groups).error < 1e-12
    assert {name for name, _ in CASES} | {"group_weights"} == set(MISTAKES)


def test_an_unknown_mistake_names_the_worst_row():
    def swapped(logprobs, *, ref_logprobs, rewards, mask):
        return right(logprobs, ref_logprobs=ref_logprobs, rewards=rewards.roll(1).square(), mask=mask)

    with pytest.raises(GradientMismatch, match=r"no known mistake \(row \d+ has weight") as caught:
        check_gvpo_gradient(swapped, beta=BETA)
    assert caught.value.mistake is None


def naive_backward(model, groups, loss=right):
    """Run a trainer that pads its rows, with one forward pass of all rows."""
    rows = [(group, row, index) for index, group in enumerate(groups) for row in group.completions]
    longest = max(len(row.tokens) for _, row, _ in rows)

    def table(values):
        return torch.tensor([[*each, *[0.0] * (longest - len(each))] for each in values], dtype=torch.float64)

    ids = torch.tensor([[*group.prompt, *row.tokens, *[0] * (longest - len(row.tokens))] for group, row, _ in rows])
    start = len(groups[0].prompt)
    scores = model(input_ids=ids).logits[:, start - 1 : -1].log_softmax(-1)
    logprobs = scores.gather(2, ids[:, start:, None]).squeeze(2)
    loss(
        logprobs,
        ref_logprobs=table([row.ref_logprobs for _, row, _ in rows]),
        rewards=torch.tensor([row.reward for _, row, _ in rows], dtype=torch.float64),
        mask=table([row.mask for _, row, _ in rows]),
    ).backward()


@pytest.fixture(scope="module")
def model():
    return tiny_model().double()


def test_a_whole_backward_pass_is_compared(model):
    assert check_gvpo_gradient(backward=naive_backward, model=model, beta=BETA, tolerance=1e-9).scale == 1.0

    def update(model, groups):
        group_backward(model, groups, partial(gvpo, beta=BETA), tokens_per_microbatch=32)

    assert check_gvpo_gradient(backward=update, model=model, beta=BETA, tolerance=1e-7).scale == 1.0
    assert all(each.grad is None for each in model.parameters())


@pytest.mark.parametrize(
    ("name", "trainer"),
    [
        ("sign", wrong_sign),
        ("weights_not_detached", attached),
        ("std_normalized", std_of_rewards),
        ("clipped_weights", clipped_weights),
        ("kl_loss_term", kl_loss),
        ("masked_tokens", unmasked),
        ("length_normalized", mean_over_tokens),
        ("cut_group", half_step),
    ],
)
def test_a_mistake_in_a_backward_pass_is_named(model, name, trainer):
    # Without padding, which a trainer that counts all tokens counts as well.
    groups = random_groups(BETA, model, length=4 if trainer is unmasked else 6)
    with pytest.raises(GradientMismatch) as caught:
        check_gvpo_gradient(backward=partial(naive_backward, loss=trainer), model=model, beta=BETA, groups=groups)
    assert caught.value.mistake == name, caught.value


def test_other_objectives_are_not_gvpo():
    for objective in (grpo, dr_grpo):
        wrong = partial(objective, max_length=8) if objective is dr_grpo else objective
        with pytest.raises(GradientMismatch):
            check_gvpo_gradient(wrong, beta=BETA, scale=None)


def test_wrong_use_is_refused(model):
    with pytest.raises(ConfigError, match="either coefficients or backward"):
        check_gvpo_gradient(beta=BETA)
    with pytest.raises(ConfigError, match="needs a model"):
        check_gvpo_gradient(backward=naive_backward, beta=BETA)
    with pytest.raises(ShapeError, match=r"returned shape \(12,\)"):
        check_gvpo_gradient(lambda logprobs: logprobs.sum(1), beta=BETA)
    with pytest.raises(ObjectiveError, match="returned None"):
        check_gvpo_gradient(lambda logprobs: None, beta=BETA)
    row = Completion([1, 2], reward=1.0, ref_logprobs=[0.0, 0.0])
    with pytest.raises(ObjectiveError, match="group 0 has one"):
        check_gvpo_gradient(partial(gvpo, beta=BETA), beta=BETA, groups=[Group([1], [row])])


def test_the_guide_explains_each_mistake():
    page = (Path(__file__).parents[2] / "docs/guides/any-trainer.md").read_text(encoding="utf-8")
    assert [name for name in MISTAKES if f"`{name}`" not in page] == []
