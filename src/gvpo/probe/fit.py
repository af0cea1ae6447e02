"""Fit of a probe with minibatch Adam on features that are read a batch at a time.

    features [N, D] (memory or disk), group [N], rewards [N] ──blocks──▶ batches ──Adam──▶ QProbe

The same features, rewards and settings give the same probe, bit for bit on one machine.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gvpo.errors import ConfigError, DataError
from gvpo.probe.features import Progress
from gvpo.probe.losses import LOSSES
from gvpo.probe.qprobe import QProbe
from gvpo.probe.store import Features

Rows = NDArray[np.int64]
_READ = 8192
"""Number of rows of features that are read at a time for their mean and standard deviation."""


@dataclass(frozen=True)
class FitSettings:
    """Settings of a fit. The defaults are the paper's.

    Args:
        loss: A key of `losses.LOSSES`.
        learning_rate: Constant learning rate of Adam. A step moves a weight by about this much.
        epochs: Number of passes over the data.
        batch: Number of completions per step; blocks of w completions give batch / w blocks per step.
        samples: Number of completions per block of the policy gradient.
        beta: Temperature of the policy gradient's softmax during training.
        standardize: Fit on features of mean 0 and variance 1, and convert the probe to the same function of the raw
            features. It is not in the paper; it makes the learning rate independent of the features' scale.
        seed: Random seed of the order of the data and the composition of blocks.

    Raises:
        ConfigError: If a value is invalid.
    """

    loss: str = "mse"
    learning_rate: float = 5e-5
    epochs: int = 150
    batch: int = 1000
    samples: int = 10
    beta: float = 1.0
    standardize: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for ok, message in (
            (self.loss in LOSSES, f"loss {self.loss!r} does not exist; choose one of {', '.join(LOSSES)}"),
            (0 < self.learning_rate < np.inf, f"learning_rate={self.learning_rate}: use a number above 0"),
            (self.epochs >= 1, f"epochs={self.epochs}: go through the data at least once"),
            (self.batch >= 1, f"batch={self.batch}: use at least 1"),
            (self.samples >= 2, f"samples={self.samples}: the policy gradient compares at least 2"),
            (0 < self.beta < np.inf, f"beta={self.beta}: training needs one above 0"),
            (self.seed >= 0, f"seed={self.seed}: use 0 or more"),
        ):
            if not ok:
                raise ConfigError(message)


@dataclass(frozen=True)
class FitResult:
    """A probe, and the mean loss of each epoch that had blocks to compare."""

    probe: QProbe
    losses: Sequence[float]


def fit_probe(
    features: Features,
    group: Sequence[int] | Rows,
    rewards: Sequence[float | None],
    settings: FitSettings | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Fit a probe, starting from zero weights.

    Args:
        features: [N, D], an array or rows on disk.
        group: [N] number of each row's prompt.
        rewards: [N]; rows whose reward is None are skipped.
        settings: Settings of the fit; default: the paper's.
        metadata: Metadata to store with the probe, in addition to the settings.
        progress: Function that is called with the number of finished epochs.

    Raises:
        DataError: If lengths differ, the loss cannot use the rewards, or there are no completions to compare.
    """
    settings = FitSettings() if settings is None else settings
    values = np.array([np.nan if reward is None else reward for reward in rewards], dtype=np.float64)
    owners = np.asarray(group, dtype=np.int64)
    _check(features, owners, values, settings)
    rated = np.flatnonzero(~np.isnan(values))
    _check_comparable(owners[rated], values[rated], settings)
    mean, spread = _scale(features, rated) if settings.standardize else (np.zeros(1), np.ones(1))
    learner = _Learner(features, values, (mean, spread), settings)
    losses = []
    for epoch in range(1, settings.epochs + 1):
        blocks = _blocks(rated, owners, values, settings, epoch)
        if len(blocks):  # pairs are chosen again in each epoch, and with few data all may have equal rewards
            losses.append(learner.epoch(blocks))
        if progress is not None:
            progress(epoch, settings.epochs)
    if not losses:
        raise DataError(f"{settings.loss} drew no pair of unequal rewards in {settings.epochs} epochs; use more")
    facts = {**dataclasses.asdict(settings), "rows": len(rated), "prompts": len(np.unique(owners[rated]))}
    weight, bias = learner.on_raw_features()
    return FitResult(QProbe(weight, bias, {**(metadata or {}), "fit": facts, "last_loss": losses[-1]}), losses)


class _Learner:
    """Weights, their optimizer and the training data."""

    def __init__(
        self,
        features: Features,
        rewards: NDArray[np.float64],
        scale: tuple[NDArray[np.float64], NDArray[np.float64]],
        settings: FitSettings,
    ) -> None:
        self._features, self._rewards, self._scale, self._settings = features, rewards, scale, settings
        self._weight = torch.zeros(features.shape[1], requires_grad=True)
        self._bias = torch.zeros(1, requires_grad=True)
        self._optimizer = torch.optim.Adam([self._weight, self._bias], lr=settings.learning_rate)
        self._loss: Callable[..., Tensor] = LOSSES[settings.loss].value

    def epoch(self, blocks: Rows) -> float:
        """Go through some blocks, [n, w] row numbers with -1 for none, and return the mean loss."""
        size = max(1, self._settings.batch // blocks.shape[1])
        total = 0.0
        for start in range(0, len(blocks), size):
            batch = blocks[start : start + size]
            total += self._step(batch) * len(batch)
        return total / len(blocks)

    def _step(self, batch: Rows) -> float:
        rows = np.maximum(batch, 0)
        mean, spread = self._scale
        x = torch.from_numpy(((self._features[rows.ravel()] - mean) / spread).astype(np.float32))
        q = (x @ self._weight + self._bias).view(batch.shape)
        rewards = torch.from_numpy(self._rewards[rows].astype(np.float32))
        loss = self._loss(q, rewards, torch.from_numpy(batch >= 0), beta=self._settings.beta)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return float(loss.detach())

    def on_raw_features(self) -> tuple[NDArray[np.float32], float]:
        """Return the same function of features that are not standardized."""
        mean, spread = self._scale
        weight = self._weight.detach().double().numpy() / spread
        bias = float(self._bias.detach()[0]) - float(np.sum(weight * mean))
        return weight.astype(np.float32), bias


def _blocks(rated: Rows, group: Rows, rewards: NDArray[np.float64], settings: FitSettings, epoch: int) -> Rows:
    """Return the blocks of an epoch in the order of their steps: [n, w] row numbers, -1 for none.

    Each prompt's completions are shuffled and split into blocks, so a completion is in at most one block per epoch. A
    block that compares needs two completions; with few data an epoch may have no pair of unequal rewards.
    """
    rng = np.random.default_rng([settings.seed, epoch])
    loss = LOSSES[settings.loss]
    width = settings.samples if loss.width is None else loss.width
    order = rated[np.lexsort((rng.random(len(rated)), group[rated]))]
    begins = np.r_[True, group[order][1:] != group[order][:-1]]
    first = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    column = (np.arange(len(order)) - first) % width
    block = np.cumsum(column == 0) - 1
    blocks = np.full((block[-1] + 1, width), -1, dtype=np.int64)
    blocks[block, column] = order
    if width > 1:
        blocks = blocks[blocks[:, 1] >= 0]
    if loss.unequal:
        blocks = blocks[rewards[blocks[:, 0]] != rewards[blocks[:, 1]]]
    return rng.permutation(blocks)


def _scale(features: Features, rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and the standard deviation of each feature; the latter is 1 for constant features."""
    chunks = [rows[start : start + _READ] for start in range(0, len(rows), _READ)]
    mean = sum(_sums(features, chunk) for chunk in chunks) / len(rows)
    variance = sum(_sums(features, chunk, mean) for chunk in chunks) / len(rows)
    spread = np.sqrt(variance)
    return mean, np.where(spread > 1e-6 * np.abs(mean) + 1e-12, spread, 1.0)


def _sums(features: Features, rows: Rows, mean: Any = None) -> Any:
    """Return [D] sums over some rows: of the features, or of the squared differences from `mean` if it is given."""
    x = np.asarray(features[rows], dtype=np.float64)
    return x.sum(axis=0) if mean is None else ((x - mean) ** 2).sum(axis=0)


def _check(features: Features, group: Rows, rewards: NDArray[np.float64], settings: FitSettings) -> None:
    if len(features.shape) != 2 or not features.shape[0] == len(group) == len(rewards):
        raise DataError(
            f"features of shape {tuple(features.shape)}, {len(group)} prompts' numbers and {len(rewards)} rewards do "
            "not fit; give one row, one number and one reward per completion"
        )
    known = rewards[~np.isnan(rewards)]
    if not len(known):
        raise DataError("no completion has a reward; give `rewards` to fit a probe")
    if LOSSES[settings.loss].unit and (known.min() < 0 or known.max() > 1):
        raise DataError(f"bce needs rewards from 0 to 1 and there are {known.min():g} to {known.max():g}; use mse")


def _check_comparable(group: Rows, rewards: NDArray[np.float64], settings: FitSettings) -> None:
    """Raise DataError unless a prompt has two completions to compare."""
    loss = LOSSES[settings.loss]
    told_apart = rewards if loss.unequal else np.arange(len(group))
    prompts = np.unique(np.stack([group, told_apart], axis=1), axis=0)[:, 0]
    if loss.width != 1 and len(np.unique(prompts)) == len(prompts):
        raise DataError(
            f"{settings.loss} compares completions of a prompt and found none to compare: no prompt has two with a "
            "reward, or rewards never differ"
        )
