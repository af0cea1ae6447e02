"""Engines with weights of their own for the tests of runs."""

import dataclasses
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from gvpo import lazy
from gvpo.errors import EngineError
from gvpo.sampling.base import Request, SamplingParams
from gvpo.sampling.engines import EngineOptions
from gvpo.sampling.transformers import TransformersSampler
from gvpo.sampling.turns import Turns
from gvpo.training.engine import open as opening
from gvpo.types import Completion
from tests.training.toy import model


class Engine:
    """An engine with its own weights, which are random until the first update."""

    shares_model = False

    def __init__(self, policy: Any, words: Any, ending: Any, options: EngineOptions) -> None:
        self.sampler = TransformersSampler(model(seed=7), words, ending=ending)
        self.options, self.versions, self.closed = options, [], False

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> list[list[Completion]]:
        return self.sampler.sample(requests, params, seed=seed, step=step)

    def update(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        found = dict(weights)
        self.sampler.model.load_state_dict(found, strict=True)
        self.versions.append(version)

    def close(self) -> None:
        self.closed = True


class Failing(Engine):
    """An engine that fails in step 3."""

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> list[list[Completion]]:
        if step == 3:
            raise EngineError("the engine is out of order")
        return super().sample(requests, params, seed=seed, step=step)


class Concurrent(Engine):
    """An engine that several threads may call; each call takes a random time."""

    concurrent = True

    def __init__(self, policy: Any, words: Any, ending: Any, options: EngineOptions) -> None:
        super().__init__(policy, words, ending, options)
        self.turns, self.version = Turns(), 0

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> list[list[Completion]]:
        time.sleep(random.uniform(0, 0.02))
        with self.turns.sampling():
            groups = super().sample(requests, params, seed=seed, step=step)
            return [[dataclasses.replace(row, version=self.version) for row in rows] for rows in groups]

    def update(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        with self.turns.updating():
            super().update(weights, version)
            self.version = version


class Broken(Engine):
    """An engine that drops the updates, as one does whose weights are those of another model."""

    def update(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.versions.append(version)


class Half(Engine):
    """An engine whose weights are bfloat16."""

    def __init__(self, policy: Any, words: Any, ending: Any, options: EngineOptions) -> None:
        super().__init__(policy, words, ending, options)
        self.sampler.model.to(torch.bfloat16)


@contextmanager
def engines_of(kind: type[Engine]) -> Iterator[list[Engine]]:
    """Let runs with an engine open one of this kind, and yield the list of those opened."""
    found: list[Engine] = []

    def create(*given: Any) -> Engine:
        found.append(kind(*given))
        return found[-1]

    named = lazy.named
    openers = {name: name for name in opening.OPENERS}
    with (
        patch.dict(opening.OPENERS, openers),
        patch.object(opening.lazy, "named", lambda name: create if name in openers else named(name)),
    ):
        yield found
