"""With a coin that the environment hides, the minimiser of GVPO depends on the sampler; without it, it does not.

Two turns of two actions. In between the environment shows a coin: a hidden one, or one that follows from the first
action. As in test_gvpo_learns, a sampler of fractions n / N is one group in which an episode appears n times.
"""

import itertools

import pytest
import torch

from gvpo.objectives import gvpo

BETA = 0.5
HIDDEN = tuple(itertools.product((0, 1), (0, 1), (0, 1)))
"""Episodes (first action, coin, second action) with a hidden coin."""
FIXED = tuple(each for each in HIDDEN if each[0] == each[1])
"""Episodes in which the coin is the first action."""
REWARDS = {each: float(value) for each, value in zip(HIDDEN, (0.0, 0.3, 2.0, -1.0, 1.0, 0.4, -0.5, 0.2), strict=True)}
SAMPLERS = {"even": lambda first, second: 3, "uneven": lambda first, second: 1 if first == second else 5}
"""How often a sampler draws two actions."""


def logprobs_of(table, episodes):
    """[n, 2] log-probs of the actions: row 0 of the table is turn 1, the others turn 2 by what was seen."""
    chosen = table.log_softmax(dim=1)
    return torch.stack(
        [torch.stack([chosen[0, first], chosen[1 + 2 * first + coin, second]]) for first, coin, second in episodes]
    )


REFERENCE = torch.randn(5, 2, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def minimiser(episodes, sampler, *, one_coin_per_group=False):
    """Return the probabilities of the actions where GVPO's loss is smallest, and the loss there."""
    counts = [SAMPLERS[sampler](first, second) for first, _, second in episodes]
    rows = torch.repeat_interleave(torch.arange(len(episodes)), torch.tensor(counts))
    reference = logprobs_of(REFERENCE, episodes)[rows]
    rewards = torch.tensor([REWARDS[each] for each in episodes], dtype=torch.float64)[rows]
    coins = torch.tensor([coin for _, coin, _ in episodes])[rows]
    rest = {"group": coins if one_coin_per_group else torch.zeros_like(coins), "mask": torch.ones(len(rows), 2)}
    table = torch.zeros(5, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([table], max_iter=300, tolerance_grad=1e-12, tolerance_change=1e-16,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = gvpo(logprobs_of(table, episodes)[rows], ref_logprobs=reference, rewards=rewards, beta=BETA, **rest).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    seen = sorted({0, *(1 + 2 * first + coin for first, coin, _ in episodes)})
    return table.detach().softmax(dim=1)[seen], float(closure().detach())


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_without_a_coin_the_minimiser_is_the_optimum_whoever_samples(sampler):
    found, loss = minimiser(FIXED, sampler)
    rewards = torch.tensor([REWARDS[each] for each in FIXED], dtype=torch.float64)
    optimum = (logprobs_of(REFERENCE, FIXED).sum(dim=1) + rewards / BETA).softmax(dim=0).reshape(2, 2)
    assert loss < 1e-12
    torch.testing.assert_close(found[0], optimum.sum(dim=1))
    torch.testing.assert_close(found[1:], optimum / optimum.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("one_coin_per_group", [False, True])
def test_with_a_hidden_coin_it_depends_on_the_sampler(one_coin_per_group):
    # A seed that all rows of a group share does not help, unless the prompt shows it.
    found = [minimiser(HIDDEN, sampler, one_coin_per_group=one_coin_per_group) for sampler in SAMPLERS]
    (even, loss), (uneven, _) = found
    assert loss > 0.01  # the log-ratio of an episode cannot follow the reward, whatever the policy is
    assert (even - uneven).abs().max() > 0.05
