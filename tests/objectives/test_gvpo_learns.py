"""Where GVPO settles, on a policy small enough to be exact: 15 completions of 1 to 3 tokens, no sampling noise.

A sampling distribution mu of small fractions n_y / N is one group of N rows in which completion y stands n_y times: its
GVPO loss is the population loss under mu times N/(N-1). A distribution of any other kind is the set of all pairs
(y, y'), weighted by mu(y) mu(y'): the expectation over groups of two.
"""

import functools

import pytest
import torch

from gvpo.objectives import gvpo, gvpo_weights
from tests.objectives.tabular import COMPLETIONS, MASK, TabularPolicy, divergence, optimum

BETA = 0.5
COUNT = len(COMPLETIONS)
REWARDS = torch.randn(COUNT, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
REFERENCE = TabularPolicy(seed=1).logprobs().detach()
OPTIMUM = optimum(REFERENCE.sum(dim=1), REWARDS, BETA)
START = divergence(REFERENCE.sum(dim=1), OPTIMUM)


def group_of(counts):
    """Return a group in which completion y appears counts[y] times: its row numbers and the tensors of `gvpo`."""
    rows = torch.repeat_interleave(torch.arange(COUNT), torch.as_tensor(counts))
    return rows, {
        "ref_logprobs": REFERENCE[rows],
        "rewards": REWARDS[rows],
        "group": torch.zeros(len(rows), dtype=torch.int64),
        "mask": MASK[rows],
    }


def minimise(policy, loss, iterations=600):
    """To machine precision, by L-BFGS."""
    optimizer = torch.optim.LBFGS([policy.logits], max_iter=iterations, tolerance_grad=1e-11, tolerance_change=1e-16,
                                  history_size=30, line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        optimizer.zero_grad()
        value = loss(policy.logprobs())
        value.backward()
        return value

    optimizer.step(closure)
    return policy


def stale_counts():
    """Return a distribution of 200 rows that covers everything and is neither the policy's nor the reference's."""
    other = TabularPolicy(seed=5).log_distribution().detach().exp()
    return (1 + (185 * other).round()).long()


SAMPLERS = {
    "uniform": torch.ones(COUNT, dtype=torch.int64),
    "stale": stale_counts(),
    "mixed": stale_counts() + 10,
}


def test_the_optimum_differs_from_the_start_and_from_the_rewards():
    assert START > 0.5
    assert divergence(OPTIMUM, (REWARDS / BETA).log_softmax(dim=0)) > 0.1


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_it_reaches_the_optimum_from_any_sampler_with_full_support(sampler):
    rows, inputs = group_of(SAMPLERS[sampler])
    policy = minimise(TabularPolicy(seed=2), lambda logprobs: gvpo(logprobs[rows], **inputs, beta=BETA).loss)
    assert divergence(policy.log_distribution().detach(), OPTIMUM) < 1e-10


def pair_inputs():
    """Return every ordered pair of completions as a group of two."""
    first, second = torch.meshgrid(torch.arange(COUNT), torch.arange(COUNT), indexing="ij")
    rows = torch.stack([first, second], dim=-1).reshape(-1)
    group = torch.arange(COUNT * COUNT).repeat_interleave(2)
    return rows, {"ref_logprobs": REFERENCE[rows], "rewards": REWARDS[rows], "group": group, "mask": MASK[rows]}


PAIR_ROWS, PAIRS = pair_inputs()


def expected_loss(policy, share_of_policy, other):
    """Return a surrogate with GVPO's expected gradient for groups of two from a mixture of the policy and `other`."""
    logprobs = policy.logprobs()
    sampled = share_of_policy * logprobs.detach().sum(dim=1).exp() + (1 - share_of_policy) * other
    chance = torch.outer(sampled, sampled).reshape(-1).repeat_interleave(2)
    weights = gvpo_weights(logprobs[PAIR_ROWS], **PAIRS, beta=BETA)
    return -BETA * (chance * weights * logprobs[PAIR_ROWS].sum(dim=1)).sum()


@pytest.mark.parametrize(("name", "share_of_policy"), [("on-policy", 1.0), ("half live, half stale", 0.5)])
def test_it_reaches_the_optimum_from_the_live_policy(name, share_of_policy):
    policy = TabularPolicy(seed=2)
    stale = SAMPLERS["stale"] / SAMPLERS["stale"].sum()
    optimizer = torch.optim.Adam([policy.logits], lr=0.05, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=700)
    for _ in range(700):
        optimizer.zero_grad()
        expected_loss(policy, share_of_policy, stale).backward()
        optimizer.step()
        schedule.step()
    assert divergence(policy.log_distribution().detach(), OPTIMUM) < 1e-5 * START


def test_the_pair_surrogate_has_the_population_gradient():
    # Under the uniform distribution both ways of being exact must agree, up to N/(N-1) of the one big group.
    policy = TabularPolicy(seed=2)
    expected_loss(policy, 0.0, torch.full((COUNT,), 1 / COUNT, dtype=torch.float64)).backward()
    by_pairs = policy.logits.grad.clone()
    policy.logits.grad = None
    rows, inputs = group_of(SAMPLERS["uniform"])
    gvpo(policy.logprobs()[rows], **inputs, beta=BETA).loss.backward()
    torch.testing.assert_close(by_pairs, policy.logits.grad * (COUNT - 1) / COUNT)


def test_undetached_weights_settle_at_the_square_root_instead():
    # -sum w_i log pi(y_i), differentiated through w too, settles where 2 beta log pi = R + beta log pi' + constant.
    def undetached(logprobs):
        policy, ratio = logprobs.sum(dim=1), (logprobs - REFERENCE).sum(dim=1)
        weights = REWARDS - REWARDS.mean() - BETA * (ratio - ratio.mean())
        return -(weights * policy).sum() / (COUNT - 1)

    settled = minimise(TabularPolicy(seed=2), undetached).log_distribution().detach()
    square_root = ((REFERENCE.sum(dim=1) + REWARDS / BETA) / 2).log_softmax(dim=0)
    assert divergence(settled, square_root) < 1e-8
    assert divergence(settled, OPTIMUM) > 0.1


def test_a_sampler_without_full_support_does_not_reach_the_optimum():
    # The five most likely completions of the reference, as with top-k: correct among themselves, and nothing else.
    counts = torch.zeros(COUNT, dtype=torch.int64)
    kept = REFERENCE.sum(dim=1).topk(5).indices
    counts[kept] = 1
    rows, inputs = group_of(counts)
    policy = minimise(TabularPolicy(seed=2), lambda logprobs: gvpo(logprobs[rows], **inputs, beta=BETA).loss)
    settled = policy.log_distribution().detach()
    assert gvpo(policy.logprobs()[rows], **inputs, beta=BETA).loss.item() < 1e-10
    assert divergence(settled, OPTIMUM) > 0.1
    assert divergence(settled[kept].log_softmax(dim=0), OPTIMUM[kept].log_softmax(dim=0)) < 1e-8


def test_means_over_tokens_in_place_of_sums_have_another_optimum():
    # What length normalisation would do: completions here have 1 to 3 tokens.
    rows, inputs = group_of(SAMPLERS["uniform"])
    lengths = MASK.sum(dim=1, keepdim=True)
    normalised = {**inputs, "ref_logprobs": inputs["ref_logprobs"] / lengths}
    policy = minimise(
        TabularPolicy(seed=2), lambda logprobs: gvpo((logprobs / lengths)[rows], **normalised, beta=BETA).loss
    )
    assert divergence(OPTIMUM, policy.log_distribution().detach()) > 0.1


def test_two_prompts_keep_their_own_constants():
    # log Z(x) cancels within each group: a constant on one prompt's rewards moves neither optimum.
    rows, inputs = group_of(SAMPLERS["uniform"])
    twice = {key: torch.cat([value, value]) for key, value in inputs.items()}
    twice["group"] = torch.tensor([0, 1]).repeat_interleave(COUNT)
    twice["rewards"] = inputs["rewards"].repeat(2) + torch.tensor([4.0, -3.0]).double().repeat_interleave(COUNT)
    loss = functools.partial(gvpo, **twice, beta=BETA)
    policy = minimise(TabularPolicy(seed=2), lambda logprobs: loss(torch.cat([logprobs[rows], logprobs[rows]])).loss)
    assert divergence(policy.log_distribution().detach(), OPTIMUM) < 1e-10
