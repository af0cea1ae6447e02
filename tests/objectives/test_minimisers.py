"""Tests of the number of minimisers of DPO, EPA and GVPO on one table policy, from the same comparisons.

A policy over n answers to one prompt has n logits, one of which is free by itself. The losses here depend only on
differences of logits and are convex in them, so if pi* = pi' exp(R / beta) / Z is a minimiser, all other minimisers are
in the plane through it along which the Hessian is flat. Its dimension is n - 1 - rank.
"""

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from gvpo.objectives import dpo_rows, epa_rows, gvpo

BETA = 0.5
REFERENCE = torch.tensor([0.4, -0.7, 0.1, 0.9, -0.2], dtype=torch.float64).log_softmax(0)
REWARDS = torch.tensor([1.0, 0.2, -0.5, 0.7, 0.0], dtype=torch.float64)
ANSWERS = len(REWARDS)
OPTIMUM = REFERENCE + REWARDS / BETA

Comparisons = Sequence[tuple[int, ...]]
DISCONNECTED: Comparisons = [(0, 1), (2, 3, 4)]
CONNECTED: Comparisons = [(0, 1), (1, 2), (2, 3), (3, 4)]
FULL: Comparisons = [(0, 1, 2, 3, 4)]


def rows(logits: Tensor, answers: Sequence[int]) -> dict[str, Tensor]:
    """Return one group of answers, one token each."""
    return {
        "logprobs": logits.log_softmax(0)[list(answers), None],
        "ref_logprobs": REFERENCE[list(answers), None],
        "group": torch.zeros(len(answers), dtype=torch.int64),
        "mask": torch.ones(len(answers), 1),
    }


def gvpo_loss(logits: Tensor, compared: Comparisons, *, sharp: float = 1.0) -> Tensor:
    losses = [gvpo(**rows(logits, group), rewards=sharp * REWARDS[list(group)], beta=BETA).loss for group in compared]
    return torch.stack(losses).sum()


def epa_loss(
    logits: Tensor,
    compared: Comparisons,
    *,
    sharp: float = 1.0,
    weak: Sequence[int] = (),
    rewards: Tensor = REWARDS,
) -> Tensor:
    """Return the expectation over the positive, sampled from softmax(sharp * R) of the compared answers."""
    total = logits.new_zeros(())
    for group in compared:
        for chosen, share in zip(group, (sharp * rewards[list(group)]).softmax(0), strict=True):
            strong = [answer for answer in group if answer != chosen]
            role = ("chosen", *["strong"] * len(strong), *["weak"] * len(weak))
            total = total + share * epa_rows(**rows(logits, [chosen, *strong, *weak]), role=role, beta=BETA).loss
    return total


def dpo_loss(logits: Tensor, compared: Comparisons, *, sharp: float = 1.0) -> Tensor:
    """Return the expectation over Bradley-Terry labels of every pair of the compared answers."""
    total = logits.new_zeros(())
    for pair in (pair for group in compared for pair in itertools.combinations(group, 2)):
        for better, share in zip((pair, pair[::-1]), (sharp * REWARDS[list(pair)]).softmax(0), strict=True):
            total = total + share * dpo_rows(**rows(logits, better), role=("chosen", "strong"), beta=BETA).loss
    return total


LOSSES = {"dpo": dpo_loss, "epa": epa_loss, "gvpo": gvpo_loss}
every = pytest.mark.parametrize("name", LOSSES)


def slope(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    leaf = at.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf), leaf)
    return found


def dimension(loss: Callable[[Tensor], Tensor], at: Tensor) -> int:
    """Return the dimension of the plane on which the Hessian is flat, except for the shift of all logits."""
    hessian = torch.autograd.functional.hessian(loss, at)
    values = torch.linalg.eigvalsh(hessian)
    assert values.min() > -1e-12
    return ANSWERS - 1 - int((values > 1e-6).sum())


@every
@pytest.mark.parametrize(
    ("compared", "expected"), [(DISCONNECTED, 1), (CONNECTED, 0), (FULL, 0)], ids=["disconnected", "connected", "full"]
)
def test_the_optimum_is_a_minimiser_and_connected_comparisons_make_it_the_only_one(name, compared, expected):
    def loss(logits):
        return LOSSES[name](logits, compared)

    assert slope(loss, OPTIMUM).abs().max() < 1e-12
    assert dimension(loss, OPTIMUM) == expected


@every
def test_between_disconnected_answers_the_minimisers_disagree_as_much_as_one_likes(name):
    shift = torch.tensor([5.0, 5.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    least, moved = (LOSSES[name](OPTIMUM + by, DISCONNECTED) for by in (0 * shift, shift))
    assert moved.item() == pytest.approx(least.item(), abs=1e-9)
    assert LOSSES[name](OPTIMUM + shift, CONNECTED) > LOSSES[name](OPTIMUM, CONNECTED) + 0.01


@every
def test_an_answer_that_is_never_seen_is_free(name):
    """A finite file never covers the reference."""

    def loss(logits):
        return LOSSES[name](logits, [(0, 1, 2, 3)])

    assert slope(loss, OPTIMUM).abs().max() < 1e-12
    assert dimension(loss, OPTIMUM) == 1


@pytest.mark.parametrize("name", ["dpo", "epa"])
@pytest.mark.parametrize("compared", [CONNECTED, FULL], ids=["connected", "full"])
def test_separable_labels_have_no_minimiser(name, compared):
    """The better answer always wins: growing margins lower the loss to 0, which no policy attains."""

    def loss(logits):
        return LOSSES[name](logits, compared, sharp=1e6)

    far = [loss(REFERENCE + scale * REWARDS).item() for scale in (1, 10, 100, 1000)]
    assert far == sorted(far, reverse=True)
    assert min(far[:-1]) > 0
    assert far[-1] < 1e-9
    for at in (REFERENCE, OPTIMUM, REFERENCE + 5 * REWARDS):
        assert slope(loss, at).abs().max() > 1e-4


def test_gvpo_has_one_finite_minimiser_for_all_labels():
    """It fits rewards, not who wins: ten times the rewards move the one minimiser, and it stays finite."""

    def loss(logits):
        return gvpo_loss(logits, CONNECTED, sharp=10.0)

    at = REFERENCE + 10 * REWARDS / BETA
    assert slope(loss, at).abs().max() < 1e-12
    assert dimension(loss, at) == 0


def test_weak_negatives_tie_disconnected_answers_but_lose_always():
    """Answer 4 is another prompt's: at most one minimiser is left, and it is not attained, since the weak one goes down
    for ever. Without it the groups stay free of each other, and answer 4 of both."""
    compared = [(0, 1), (2, 3)]

    def without(logits):
        return epa_loss(logits, compared)

    def loss(logits):
        return epa_loss(logits, compared, weak=[4])

    down = -torch.eye(ANSWERS, dtype=torch.float64)[4]
    assert dimension(without, OPTIMUM) == 2
    for at in (REFERENCE, OPTIMUM, OPTIMUM + 3 * down):
        assert dimension(loss, at) == 0
        assert slope(loss, at) @ down < 0
    infimum = without(OPTIMUM)
    gaps = [(loss(OPTIMUM + far * down) - infimum).item() for far in (0.0, 20.0, 60.0)]
    assert gaps == sorted(gaps, reverse=True)
    assert 0 < gaps[-1] < 1e-9


@pytest.mark.parametrize(
    "compared", [[(0, 1), (1, 2), (2, 3)], [(0, 1, 2, 3)]], ids=["connected", "all of the prompt's answers"]
)
def test_a_weak_negative_leaves_connected_comparisons_without_a_minimiser(compared):
    """Strong negatives alone have pi* (answer 4 aside). The weak one only adds loss, which falls with its log-ratio."""

    def loss(logits):
        return epa_loss(logits, compared, weak=[4])

    down = -torch.eye(ANSWERS, dtype=torch.float64)[4]
    infimum = epa_loss(OPTIMUM, compared)
    assert dimension(loss, OPTIMUM) == 0
    gaps = [(loss(OPTIMUM + far * down) - infimum).item() for far in (0.0, 20.0, 60.0)]
    assert gaps == sorted(gaps, reverse=True)
    assert 0 < gaps[-1] < 1e-9
    for far in (0.0, 20.0):
        at = OPTIMUM + far * down
        assert slope(loss, at) @ down < 0
    assert slope(loss, OPTIMUM + 100 * down)[:4].abs().max() < 1e-12  # the others tend to pi*


@pytest.mark.parametrize("compared", [CONNECTED, FULL], ids=["connected", "full"])
def test_a_weak_negative_that_is_compared_too_has_one_minimiser_and_it_is_not_the_optimum(compared):
    """Every answer is compared, so each is the positive at times and the weak one cannot go down for ever."""

    def loss(logits):
        return epa_loss(logits, compared, weak=[4])

    at = newton(loss, OPTIMUM)
    assert slope(loss, at).abs().max() < 1e-10
    assert dimension(loss, at) == 0
    shift = at - OPTIMUM
    assert shift[4] - shift[:4].mean() < -0.1


@pytest.mark.parametrize(
    "compared", [DISCONNECTED, CONNECTED, FULL, [(0, 1, 2, 3)]], ids=["disconnected", "connected", "full", "apart"]
)
def test_separable_labels_have_no_minimiser_with_weak_negatives_either(compared):
    """Answer 4 is never the best of those that it is compared with here, and it is the weak negative of all."""
    rewards = REWARDS.clone()
    rewards[4] = -1.0

    def loss(logits):
        return epa_loss(logits, compared, sharp=1e6, weak=[4], rewards=rewards)

    far = [loss(REFERENCE + scale * rewards).item() for scale in (1, 10, 100, 1000)]
    assert far == sorted(far, reverse=True)
    assert min(far[:2]) > 0  # from there on it is rounded off
    assert far[-1] < 1e-9
    for at in (REFERENCE, OPTIMUM, REFERENCE + 5 * rewards):
        assert slope(loss, at).abs().max() > 1e-4


def newton(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Return the minimiser of a convex loss near enough to `start`, keeping the shift of all logits."""
    at = start.clone()
    for _ in range(50):
        hessian = torch.autograd.functional.hessian(loss, at)
        at = at - torch.linalg.pinv(hessian, rtol=1e-12, hermitian=True) @ slope(loss, at)
    return at
