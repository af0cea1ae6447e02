"""Objectives with ratios per token converge to a policy that depends on a frozen sampler: exact sums on a table.

A weight per token leaves out how likely the tokens before it are, and the tokens after it are the sampler's. So the
expected gradient is that of a policy which chooses one token at each prefix and leaves the rest to the sampler: its
optimum takes, at each prefix, the token with the best expected reward under the sampler. On the policy's own samples
the optimum is the completion with the largest reward.
"""

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gvpo.objectives import ObjectiveOutput, cispo, rloo
from tests.objectives.tabular import COMPLETIONS, END, LONGEST, MASK, VOCABULARY, TabularPolicy

REWARDS = torch.zeros(len(COMPLETIONS), dtype=torch.float64)
for _row, _tokens in enumerate(COMPLETIONS):
    REWARDS[_row] = {1: -1.0, 2: 0.5}.get(_tokens[0], 0.0)
REWARDS[COMPLETIONS.index((1, 1, 1))] = 1.0  # the best completion begins like the worst ones
BEST = (1, 1, 1)


def fond_of(token: int, strength: float) -> TabularPolicy:
    """Return a policy that prefers a token at every prefix."""
    policy = TabularPolicy(scale=0.0)
    with torch.no_grad():
        policy.logits[:, token] += strength
    return policy


SAMPLERS = {"uniform": TabularPolicy(scale=0.0), "stale": TabularPolicy(seed=3, scale=0.5), "expert": fond_of(1, 3.0)}


def greedy_under(sampler: Tensor) -> tuple[int, ...]:
    """Return the completion that takes the best token at each prefix if the sampler [15] continues."""
    chance, prefix = sampler.sum(1).exp(), ()
    while (not prefix or prefix[-1] != END) and len(prefix) < LONGEST:
        after = {token: torch.tensor([c[: len(prefix) + 1] == (*prefix, token) for c in COMPLETIONS])
                 for token in range(VOCABULARY)}  # fmt: skip
        values = {token: (chance * REWARDS)[rows].sum() / chance[rows].sum() for token, rows in after.items()}
        prefix = (*prefix, max(values, key=values.__getitem__))
    return prefix


def tis(logprobs: Tensor, *, sampler: Tensor, **rest: Tensor) -> ObjectiveOutput:
    """Weigh tokens by truncated ratios to the sampler; the old log-probs are the policy's."""
    return rloo(logprobs, old_logprobs=logprobs, is_cap=1e6, sampler_logprobs=sampler, **rest)


def unclipped(logprobs: Tensor, *, sampler: Tensor, **rest: Tensor) -> ObjectiveOutput:
    return cispo(logprobs, old_logprobs=sampler, clip_high=math.inf, reduction="constant", max_length=1, **rest)


def unweighted(logprobs: Tensor, *, sampler: Tensor, **rest: Tensor) -> ObjectiveOutput:
    return rloo(logprobs, old_logprobs=logprobs, **rest)


def likeliest(
    objective: Callable[..., ObjectiveOutput], sampler: Tensor | None, start: TabularPolicy
) -> tuple[int, ...]:
    """Follow the expected gradient over the sampler's rows, by default over the policy's own; return the mode."""
    optimizer = torch.optim.Adam([start.logits], lr=0.1)
    rest = {"rewards": REWARDS, "group": torch.zeros(len(COMPLETIONS), dtype=torch.int64), "mask": MASK}
    for _ in range(200):
        logprobs = start.logprobs()
        own = logprobs.detach() if sampler is None else sampler
        chance = own.sum(1).exp()
        # One row per completion, weighted by its probability: the loss is a mean over rows.
        advantages = len(COMPLETIONS) * (chance * (REWARDS - chance @ REWARDS))[:, None].expand(-1, LONGEST)
        optimizer.zero_grad()
        objective(logprobs, sampler=own, advantages=advantages, **rest).loss.backward()
        optimizer.step()
    return COMPLETIONS[int(start.log_distribution().argmax())]


weighted = pytest.mark.parametrize("objective", [tis, unclipped], ids=["is_cap", "cispo"])


@weighted
@pytest.mark.parametrize("name", SAMPLERS)
def test_off_policy_the_optimum_is_greedy_under_the_sampler(objective, name):
    sampler = SAMPLERS[name].logprobs().detach()
    assert likeliest(objective, sampler, TabularPolicy(seed=1, scale=0.3)) == greedy_under(sampler)


def test_so_it_depends_on_the_sampler():
    found = {name: greedy_under(sampler.logprobs().detach()) for name, sampler in SAMPLERS.items()}
    assert found["expert"] == BEST
    assert found["uniform"][0] == 2
    assert found["uniform"] != BEST


@weighted
def test_on_own_samples_the_optimum_is_the_largest_reward(objective):
    assert likeliest(objective, None, fond_of(1, 1.5)) == BEST


def test_without_weights_a_frequent_token_wins_over_a_better_one():
    # The sampler is fond of 0, whose advantage is small and positive; a weight per token takes its frequency out.
    sampler = fond_of(END, 2.0).logprobs().detach()
    assert greedy_under(sampler)[0] == 2
    assert likeliest(tis, sampler, TabularPolicy(scale=0.0))[0] == 2
    assert likeliest(unweighted, sampler, TabularPolicy(scale=0.0))[0] == END


@pytest.mark.parametrize("cap", [0.25, 0.5])
def test_a_cap_makes_the_weights_of_rare_tokens_too_small(cap):
    # With a cap below all ratios all weights are equal, so they have no effect but a factor.
    sampler, policy = SAMPLERS["uniform"].logprobs().detach(), TabularPolicy(seed=1, scale=0.1)
    rest = {"rewards": REWARDS, "group": torch.zeros(len(COMPLETIONS), dtype=torch.int64), "mask": MASK}

    def slope(objective):
        return torch.autograd.grad(objective(policy.logprobs(), **rest).loss, policy.logits)[0]

    own = policy.logprobs().detach()
    assert ((own - sampler).exp()[MASK != 0] > 0.5).all()
    capped = slope(functools.partial(rloo, old_logprobs=own, is_cap=cap, sampler_logprobs=sampler))
    torch.testing.assert_close(capped, cap * slope(functools.partial(rloo, old_logprobs=own)))
