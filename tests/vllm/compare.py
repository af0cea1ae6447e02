"""Comparison of vLLM's completions with those of gvpo's sampler on the same model."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from gvpo.model.endings import Ending
from gvpo.model.known_tokens import missing_tokens
from gvpo.sampling import Request, SamplingParams
from gvpo.sampling.engines import EngineOptions
from gvpo.sampling.transformers import TransformersSampler
from gvpo.sampling.vllm.engine import VllmSampler, open_for_training
from gvpo.types import Completion
from tests.fakes import VOCABULARY, byte_tokenizer, tiny_model

MARKS = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]
SMOLLM2 = os.environ.get("GVPO_TEST_SMOLLM2")

ENDLESS = Ending((), None)
"""No token ends a completion, so each has its maximum length."""

SMALL = {"hidden_size": 128, "max_position_embeddings": 256, "head_dim": 32}
"""Settings of a small model with heads of 32, the smallest size that vLLM's attention on CPUs supports."""

OPTIONS = EngineOptions(dtype="float32", engine_options={"kv_cache_memory_bytes": 2**28})
GREEDY = SamplingParams(group_size=1, max_tokens=64, temperature=0.0)
TIE = 1e-4
"""Difference of the two largest logits up to which rounding may choose the other token."""


def small_model(*, tied: bool = True, seed: int = 0, **settings: Any) -> Any:
    """Return a random model that vLLM can run."""
    return tiny_model("qwen2", seed=seed, tie_word_embeddings=tied, **{**SMALL, **settings}).eval()


def small_requests(count: int = 32) -> list[Request]:
    """Return prompts of random bytes, of different lengths."""
    random = torch.Generator().manual_seed(1)
    lengths = [4 + number % 9 for number in range(count)]
    tokens = [torch.randint(3, VOCABULARY, (length,), generator=random).tolist() for length in lengths]
    return [Request(f"p{number}", tuple(prompt)) for number, prompt in enumerate(tokens)]


def opened(model: Any, options: EngineOptions = OPTIONS) -> VllmSampler:
    """Return an engine for a small model, without its weights."""
    return open_for_training(model, byte_tokenizer(), ENDLESS, options)


def own(model: Any, tokenizer: Any = None, ending: Ending | None = ENDLESS) -> TransformersSampler:
    """Return gvpo's sampler of the model itself."""
    return TransformersSampler(model, tokenizer or byte_tokenizer(), ending=ending)


def rows(sampler: Any, requests: Sequence[Request], params: SamplingParams = GREEDY, **key: int) -> list[Completion]:
    """Return the rows of all requests."""
    found = sampler.sample(requests, params, **{"seed": 0, "step": 0, **key})
    return [row for group in found for row in group]


def tokens(found: Sequence[Completion]) -> list[list[int]]:
    """Return the tokens of each row."""
    return [list(row.tokens) for row in found]


def assert_greedy(model: Any, requests: Sequence[Request], found: Sequence[Completion], wanted: Sequence[Completion]):
    """Check that greedy rows are equal. They may part where the two best logits of the model are within `TIE`."""
    for request, one, other in zip(requests, found, wanted, strict=True):
        if list(one.tokens) != list(other.tokens):
            pairs = zip(one.tokens, other.tokens, strict=False)
            place = next(place for place, (a, b) in enumerate(pairs) if a != b)
            best = next_logits(model, [*request.prompt, *one.tokens[:place]]).topk(2)
            assert {one.tokens[place], other.tokens[place]} == {*best.indices.tolist()}, request.id
            assert float(best.values[0] - best.values[1]) <= TIE, (request.id, place, best)


@torch.no_grad()
def next_logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Return the logits of the token after `ids`."""
    return model(torch.tensor([list(ids)])).logits[0, -1]


@torch.no_grad()
def logprobs(model: Any, request: Request, row: Completion, temperature: float) -> torch.Tensor:
    """Return the log-probs of a row under the model at a temperature, over the tokenizer's tokens, by one forward."""
    ids = torch.tensor([[*request.prompt, *row.tokens]])
    logits = model(ids).logits[0, len(request.prompt) - 1 : -1]
    missing = missing_tokens(model)
    scores = (logits if missing is None else missing.hidden(logits)) / temperature
    return scores.log_softmax(-1).gather(-1, torch.tensor(row.tokens)[:, None])[:, 0]


@torch.no_grad()
def shift(model: Any, origin: dict[str, torch.Tensor], seed: int, scale: float) -> None:
    """Set the weights to those of `origin` plus noise, relative to the standard deviation of each matrix."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=random) * origin[name].std() if parameter.ndim > 1 else 0.0
        parameter.copy_(origin[name] + scale * noise)


def pretrained() -> Path:
    """Return the directory of SmolLM2-135M, or skip the test."""
    if SMOLLM2 is None:
        pytest.skip("GVPO_TEST_SMOLLM2 does not name a directory with SmolLM2-135M")
    return Path(SMOLLM2)
