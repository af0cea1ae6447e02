"""Tests of the fit: convergence, reproducibility and invalid input."""

import dataclasses

import numpy as np
import pytest
import torch

from gvpo.errors import ConfigError, DataError
from gvpo.probe.features import embed_all
from gvpo.probe.fit import FitSettings, _blocks, fit_probe
from gvpo.probe.losses import LOSSES
from gvpo.probe.store import FeatureStore

FAST = {"learning_rate": 3e-2, "epochs": 60, "batch": 64}
RNG = np.random.default_rng(7)
N, D, SIZE = 400, 6, 8
X = RNG.normal(size=(N, D)).astype(np.float32)
GROUP = np.repeat(np.arange(N // SIZE), SIZE)
TRUE = np.array([1.0, -2.0, 0.5, 0.0, 0.0, 1.5])
RIGHT = (RNG.random(N) < 1 / (1 + np.exp(-X @ TRUE))).astype(float)


def settings(loss="mse", **changes):
    return FitSettings(**{"loss": loss, **FAST, **changes})


def test_the_defaults_are_the_papers():
    paper = {"learning_rate": 5e-5, "epochs": 150, "batch": 1000, "samples": 10, "beta": 1.0, "standardize": False}
    assert dataclasses.asdict(FitSettings()) == {"loss": "mse", **paper, "seed": 0}


def test_mse_is_least_squares():
    rewards = X @ TRUE + 0.3
    probe = fit_probe(X, GROUP, rewards.tolist(), settings(epochs=300)).probe
    assert probe.weight == pytest.approx(TRUE, abs=2e-2)
    assert probe.bias == pytest.approx(0.3, abs=2e-2)


def test_bce_is_logistic_regression():
    """Expect a zero gradient of the loss over all data at the end."""
    probe = fit_probe(X, GROUP, RIGHT.tolist(), settings("bce", epochs=500, batch=N)).probe
    error = 1 / (1 + np.exp(-probe(X))) - RIGHT
    assert np.abs(X.T @ error / N).max() < 1e-3
    assert abs(error.mean()) < 1e-3


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_finds_the_direction(loss):
    probe = fit_probe(X, GROUP, RIGHT.tolist(), settings(loss)).probe
    cosine = probe.weight @ TRUE / np.linalg.norm(probe.weight) / np.linalg.norm(TRUE)
    assert cosine > 0.93
    assert fit_probe(X, GROUP, (1 - RIGHT).tolist(), settings(loss)).probe.weight @ TRUE < 0


@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_seed_gives_the_same_probe_and_another_another(loss):
    fits = [fit_probe(X, GROUP, RIGHT.tolist(), settings(loss, epochs=3, seed=seed)) for seed in (4, 4, 5)]
    assert np.array_equal(fits[0].probe.weight, fits[1].probe.weight)
    assert fits[0].losses == fits[1].losses
    assert not np.array_equal(fits[0].probe.weight, fits[2].probe.weight)


def test_features_on_disk_give_the_same_probe_as_in_memory(tmp_path):
    texts = [str(row) for row in range(N)]
    rows = lambda prompts, names: X[[int(name) for name in names]]  # noqa: E731
    stored = embed_all(rows, ["?"] * N, texts, store=FeatureStore(tmp_path, "x"), chunk=30)
    assert not isinstance(stored, np.ndarray)
    one, other = (fit_probe(x, GROUP, RIGHT.tolist(), settings(epochs=2, standardize=True)).probe for x in (X, stored))
    assert np.array_equal(one.weight, other.weight)
    assert one.bias == other.bias


class Watched:
    """Features that record how many rows are read at a time."""

    shape = X.shape

    def __init__(self):
        self.most = 0

    def __getitem__(self, rows):
        self.most = max(self.most, len(rows))
        return X[rows]


@pytest.mark.parametrize("loss", LOSSES)
def test_no_more_than_a_batch_is_read_at_once(loss):
    features = Watched()
    fit_probe(features, GROUP, RIGHT.tolist(), settings(loss, epochs=1, batch=48))
    assert 0 < features.most <= 48


def test_standardizing_does_not_change_the_fitted_function():
    """Expect the same function for any scale and offset of the features, as a probe of the raw features."""
    mean, spread = X.mean(0), X.std(0)
    odd = (X * np.array([100, 1e-3, 1, 1, 5, 1]) + 7).astype(np.float32)
    plain = fit_probe((X - mean) / spread, GROUP, RIGHT.tolist(), settings("bce")).probe
    raw = fit_probe(odd, GROUP, RIGHT.tolist(), settings("bce", standardize=True)).probe
    assert raw(odd) == pytest.approx(plain((X - mean) / spread), abs=2e-2)


def test_a_constant_feature_does_not_divide_by_zero():
    constant = np.concatenate([X, np.full((N, 1), 3.3, dtype=np.float32)], axis=1)
    probe = fit_probe(constant, GROUP, RIGHT.tolist(), settings(standardize=True, epochs=2)).probe
    assert np.isfinite(probe.weight).all()
    assert abs(probe.weight[-1]) < 1


def test_rows_without_a_reward_are_skipped():
    rewards = [None if row % 3 == 0 else value for row, value in enumerate(RIGHT)]
    kept = np.array([row % 3 != 0 for row in range(N)])
    spoiled = X.copy()
    spoiled[~kept] = np.nan
    found = fit_probe(spoiled, GROUP, rewards, settings(epochs=2)).probe
    assert np.isfinite(found.weight).all()
    assert found.metadata["fit"]["rows"] == kept.sum()


def test_blocks_are_of_one_prompt_and_use_each_row_at_most_once():
    group = np.array([3] * 7 + [1] + [2] * 4)
    rewards = np.arange(12) % 2.0
    blocks = _blocks(np.arange(12), group, rewards, settings("policy_gradient", samples=3), 1)
    used = blocks[blocks >= 0]
    assert len(set(used)) == len(used)
    assert all(len({int(group[row]) for row in block if row >= 0}) == 1 for block in blocks)
    assert sorted((block >= 0).sum() for block in blocks) == [
        3,
        3,
        3,
    ]  # 7 = 3 + 3 + 1 and 4 = 3 + 1: ones are no choice
    assert 7 not in used  # the only row of its group


def test_pairs_differ_in_reward_and_change_in_each_epoch():
    rewards = np.array([0.0, 1.0, 1.0, 2.0] * 10)
    group = np.repeat(np.arange(10), 4)
    epochs = [_blocks(np.arange(40), group, rewards, settings("preferences"), epoch) for epoch in (1, 2)]
    assert all((rewards[pairs[:, 0]] != rewards[pairs[:, 1]]).all() for pairs in epochs)
    assert {tuple(sorted(pair)) for pair in epochs[0]} != {tuple(sorted(pair)) for pair in epochs[1]}


def test_an_epoch_without_an_unequal_pair_is_skipped():
    """Choose one pair per epoch from three completions, two of which have equal rewards."""
    group, rewards = np.zeros(3, dtype=np.int64), [1.0, 0.0, 0.0]

    def draws(seed, epochs):
        found = settings("preferences", seed=seed)
        return [len(_blocks(np.arange(3), group, np.array(rewards), found, epoch)) for epoch in range(1, epochs + 1)]

    drawn = sum(draws(0, 30))
    assert 0 < drawn < 30
    assert len(fit_probe(X[:3], group, rewards, settings("preferences", epochs=30)).losses) == drawn
    unlucky = next(seed for seed in range(100) if draws(seed, 1) == [0])
    with pytest.raises(DataError, match="drew no pair of unequal rewards in 1 epochs; use more"):
        fit_probe(X[:3], group, rewards, settings("preferences", epochs=1, seed=unlucky))


def test_every_row_is_used_by_losses_on_single_completions():
    blocks = _blocks(np.arange(N), GROUP, RIGHT, settings(), 3)
    assert sorted(blocks.ravel()) == list(range(N))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "msee"}, "loss 'msee' does not exist; choose one of mse, bce, policy_gradient, preferences"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: use a number above 0"),
        ({"epochs": 0}, "go through the data at least once"),
        ({"batch": 0}, "batch=0"),
        ({"samples": 1}, "the policy gradient compares at least 2"),
        ({"beta": 0.0}, "training needs one above 0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_error_explains_invalid_settings(change, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        FitSettings(**change)


@pytest.mark.parametrize(
    ("group", "rewards", "loss", "message"),
    [
        ([0, 0], [1.0, 0.0, 1.0], "mse", "do not fit; give one row, one number and one reward per completion"),
        ([0, 0, 1], [None] * 3, "mse", "no completion has a reward"),
        ([0, 0, 1], [1.0, 2.0, 0.0], "bce", "bce needs rewards from 0 to 1 and there are 0 to 2; use mse"),
        ([0, 1, 2], [1.0, 0.0, 1.0], "policy_gradient", "no prompt has two with a reward"),
        ([0, 0, 0], [1.0, 1.0, 1.0], "preferences", "rewards never differ"),
    ],
)
def test_error_explains_data_that_cannot_be_fitted(group, rewards, loss, message):
    with pytest.raises(DataError, match=message):
        fit_probe(X[:3], group, rewards, settings(loss))


def test_progress_counts_epochs():
    told = []
    fit_probe(X, GROUP, RIGHT.tolist(), settings(epochs=2), progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]


def test_the_global_generator_of_torch_is_not_changed():
    before = torch.random.get_rng_state()
    fit_probe(X, GROUP, RIGHT.tolist(), settings(epochs=1))
    assert torch.equal(before, torch.random.get_rng_state())
