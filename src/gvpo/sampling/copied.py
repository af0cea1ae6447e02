"""Sampling from a copy of the policy, so that the policy can be trained at the same time.

policy ──update(weights, version)──▶ copy ──▶ completions with that version
"""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gvpo.errors import ModelError
from gvpo.model import endings
from gvpo.sampling.base import Request, SamplingParams
from gvpo.sampling.transformers import TransformersSampler
from gvpo.sampling.turns import Turns
from gvpo.types import Completion


class CopiedSampler(TransformersSampler):
    """Samples from its own copy of a policy. Its methods may be called from any thread; the threads take turns.

    Args:
        policy: Model to copy. Weights that are not trained, such as those under a LoRA adapter, are shared and not
            copied.
        tokenizer: Tokenizer of the model.
        dtype: Dtype of the copied weights; None for the policy's own. Weights of another dtype are never shared.
        autocast: Function that returns the context of mixed precision in which the copy is computed. It is entered in
            the thread that samples, because torch's contexts concern one thread only.
        tokens_per_batch: Maximum number of tokens in the cache at any time; see `TransformersSampler`.
        ending: Tokens that end a completion; see `TransformersSampler`.

    Attributes:
        version: Number of completed training steps of the policy with the copied weights.
    """

    shares_model = False
    concurrent = False

    def __init__(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        dtype: torch.dtype | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
        tokens_per_batch: int = 65_536,
        ending: endings.Ending | None = None,
    ) -> None:
        super().__init__(_copy(policy, dtype), tokenizer, tokens_per_batch=tokens_per_batch, ending=ending)
        self.version = 0
        self._autocast, self._turns = autocast, Turns()

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> list[list[Completion]]:
        """Sample completions with the version of the last update; see `TransformersSampler.sample`."""
        found = dict(self.stream(requests, params, seed=seed, step=step))
        return [found[index] for index in range(len(requests))]

    def stream(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield each group as soon as it is finished; no update begins before the last one, or `close()`."""
        with self._turns.sampling():
            groups = super().stream(requests, params, seed=seed, step=step)
            while True:
                with self._autocast():  # not while the caller works on a group
                    found = next(groups, None)
                if found is None:
                    return
                place, rows = found
                yield place, [dataclasses.replace(row, version=self.version) for row in rows]

    @contextlib.contextmanager
    def at_work(self) -> Iterator[int | None]:
        """Yield the version of the weights, in a context in which no update begins."""
        with self._turns.sampling(), self._autocast(), super().at_work():
            yield self.version

    @torch.no_grad()
    def update(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy the policy's weights in place, after the sampling in progress; see `UpdatableSampler.update`.

        Raises:
            ModelError: If a name is unknown or missing, or if a shape differs.
        """
        own = self.model.state_dict()
        missing = set(own)
        with self._turns.updating():
            for name, tensor in weights:
                if name not in own or own[name].shape != tensor.shape:
                    raise ModelError(
                        f"the sampler's copy of the policy has no weight {name} of shape {[*tensor.shape]}"
                    )
                if own[name].data_ptr() != tensor.data_ptr():
                    own[name].copy_(tensor)
                missing.discard(name)
            if missing:
                raise ModelError(f"an update of the sampler's copy of the policy lacks the weight {min(missing)}")
            self.version = version


def _copy(policy: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """Return a copy in eval mode that shares the weights that are not trained.

    The others still require a gradient, because autocast casts them only once then. They are sampled without one.
    """
    shared = {
        id(weight): weight for weight in policy.parameters() if not weight.requires_grad and _keeps(weight, dtype)
    }
    twin: PreTrainedModel = copy.deepcopy(policy, dict(shared)).train(False)
    for weight in twin.parameters():  # buffers stay as they are; rotary frequencies need their precision
        if not _keeps(weight, dtype):
            weight.data = weight.data.to(dtype)
    return twin


def _keeps(weight: Tensor, dtype: torch.dtype | None) -> bool:
    """Return whether a weight keeps its dtype."""
    return dtype is None or weight.dtype == dtype or not weight.is_floating_point()
