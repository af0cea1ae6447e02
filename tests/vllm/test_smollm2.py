"""Tests of vLLM in this process on a pretrained model, SmolLM2-135M, whose embeddings are tied."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gvpo.model.model import load_model
from gvpo.model.tokenizer import load_tokenizer
from gvpo.sampling import Request, SamplingParams
from gvpo.sampling.engines import EngineOptions
from gvpo.sampling.transformers import TransformersSampler
from gvpo.sampling.vllm.engine import VllmSampler, open_for_training
from tests.vllm.compare import MARKS, assert_greedy, logprobs, own, pretrained, rows, shift, tokens

pytestmark = MARKS
SYNCS = int(os.environ.get("GVPO_TEST_SYNCS", "4"))
"""Number of updates; each takes some 20 seconds on one core."""
QUESTIONS = ("What is {} plus {}?", "Write one sentence about the number {}{}.", "Name {} animals and {} plants.")


@pytest.fixture(scope="module")
def smollm2() -> Iterator[tuple[TransformersSampler, VllmSampler, list[Request]]]:
    path = pretrained()
    model, tokenizer = load_model(path, dtype=torch.float32).eval(), load_tokenizer(path)
    sampler = own(model, tokenizer, ending=None)
    engine = open_for_training(model, tokenizer, sampler.ending, EngineOptions(dtype="float32"))
    engine.update(model.state_dict().items(), 0)
    asked = [QUESTIONS[number % 3].format(number, number + 5) for number in range(32)]
    yield sampler, engine, [Request(f"p{number}", prompt(tokenizer, text)) for number, text in enumerate(asked)]
    engine.close()


def prompt(tokenizer: Any, text: str) -> tuple[int, ...]:
    shown = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
    )
    return tuple(tokenizer(shown, add_special_tokens=False).input_ids)


def test_after_each_update_the_greedy_outputs_are_those_of_the_model(
    smollm2: tuple[TransformersSampler, VllmSampler, list[Request]],
):
    sampler, engine, requests = smollm2
    origin = {name: value.clone() for name, value in sampler.model.named_parameters()}
    before = tokens(rows(engine, requests))
    for sync in range(1, SYNCS + 1):
        shift(sampler.model, origin, sync, scale=0.03)
        engine.update(sampler.model.state_dict().items(), sync)
        found = rows(engine, requests)
        assert sum(one != other for one, other in zip(tokens(found), before, strict=True)) >= 16
        assert_greedy(sampler.model, requests, found, rows(sampler, requests))
        before = tokens(found)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_the_model(
    smollm2: tuple[TransformersSampler, VllmSampler, list[Request]], temperature: float
):
    sampler, engine, requests = smollm2
    sampler.model.load_state_dict(load_model(pretrained(), dtype=torch.float32).state_dict())  # another test moves them
    engine.update(sampler.model.state_dict().items(), SYNCS + 1)
    params = SamplingParams(group_size=2, max_tokens=32, temperature=temperature)
    for request, group in zip(requests[:8], engine.sample(requests[:8], params, seed=0, step=0), strict=True):
        for row in group:
            wanted = logprobs(sampler.model, request, row, temperature)
            torch.testing.assert_close(torch.tensor(row.sampler_logprobs), wanted, atol=1e-4, rtol=0)
