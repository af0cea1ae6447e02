"""Tests of vLLM in this process on small models: weights, log-probs, noise, adapters."""

import dataclasses
import random
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from gvpo.errors import ConfigError, ModelError
from gvpo.model import lora
from gvpo.model.model import save_model
from gvpo.sampling import Request, SamplingParams, StreamingSampler, UpdatableSampler
from gvpo.sampling.base import AdapterSampler
from gvpo.sampling.engines import open_engine
from gvpo.sampling.vllm.engine import VllmSampler
from tests.fakes import VOCABULARY, byte_tokenizer, tiny_model
from tests.vllm.compare import (
    ENDLESS,
    MARKS,
    OPTIONS,
    SMALL,
    assert_greedy,
    logprobs,
    opened,
    own,
    rows,
    shift,
    small_model,
    small_requests,
    tokens,
)

pytestmark = MARKS
SYNCS = 20
DRAWN = SamplingParams(group_size=4, max_tokens=24)
REQUESTS = small_requests()


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Any, VllmSampler]]:
    """Yield a model and an engine with its weights."""
    model = small_model(tied=request.param)
    sampler = opened(model)
    sampler.update(model.state_dict().items(), 0)
    yield model, sampler
    sampler.close()


def test_after_each_of_20_updates_the_greedy_outputs_are_those_of_the_model(pair: tuple[Any, VllmSampler]):
    model, sampler = pair
    origin = {name: value.clone() for name, value in model.state_dict().items()}
    before = tokens(rows(sampler, REQUESTS))
    for sync in range(1, SYNCS + 1):
        shift(model, origin, sync, scale=0.1)
        sampler.update(model.state_dict().items(), sync)
        found = rows(sampler, REQUESTS)
        assert sum(one != other for one, other in zip(tokens(found), before, strict=True)) >= 16
        assert_greedy(model, REQUESTS, found, rows(own(model), REQUESTS))
        assert {row.version for row in found} == {sync}
        assert {len(row.tokens) for row in found} == {64}
        before = tokens(found)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_the_model(pair: tuple[Any, VllmSampler], temperature: float):
    model, sampler = pair
    params = dataclasses.replace(DRAWN, temperature=temperature)
    for request, group in zip(REQUESTS, sampler.sample(REQUESTS, params, seed=0, step=0), strict=True):
        for row in group:
            wanted = logprobs(model, request, row, temperature)
            torch.testing.assert_close(torch.tensor(row.sampler_logprobs), wanted, atol=1e-4, rtol=0)


def test_weights_are_complete_or_refused_and_the_old_ones_stay(pair: tuple[Any, VllmSampler]):
    model, sampler = pair
    before = tokens(rows(sampler, REQUESTS[:4]))
    shorter = {name: value * 2 for name, value in model.state_dict().items() if name != "lm_head.weight"}
    with pytest.raises(ModelError, match="weights are missing, such as lm_head"):
        sampler.update(shorter.items(), 99)
    with pytest.raises(ModelError, match="has no weight extra"):
        sampler.update({**model.state_dict(), "extra": torch.zeros(1)}.items(), 99)
    assert tokens(rows(sampler, REQUESTS[:4])) == before
    assert sampler.version != 99


def test_a_row_depends_on_its_seed_step_id_and_number_only(pair: tuple[Any, VllmSampler]):
    _, sampler = pair
    whole = sampler.sample(REQUESTS, DRAWN, seed=3, step=7)
    again = sampler.sample(REQUESTS[::-1][:9], dataclasses.replace(DRAWN, group_size=2), seed=3, step=7)
    assert [tokens(group) for group in again] == [tokens(group[:2]) for group in whole[::-1][:9]]
    other = sampler.sample(REQUESTS, DRAWN, seed=3, step=8)
    assert not any(row in tokens(one) for one, two in zip(whole, other, strict=True) for row in tokens(two))


def test_no_two_rows_share_noise(pair: tuple[Any, VllmSampler]):
    _, sampler = pair
    same = [Request(f"copy {number}", REQUESTS[0].prompt) for number in range(32)]
    drawn = [tuple(row.tokens) for row in chain(*sampler.sample(same, DRAWN, seed=0, step=0))]
    assert len(set(drawn)) == len(drawn) == 128


def test_it_keeps_the_promises_of_the_protocols(pair: tuple[Any, VllmSampler]):
    _, sampler = pair
    assert isinstance(sampler, StreamingSampler)
    assert isinstance(sampler, UpdatableSampler)
    assert isinstance(sampler, AdapterSampler)
    streamed = dict(sampler.stream(REQUESTS, DRAWN, seed=0, step=0))
    assert [streamed[place] for place in range(len(REQUESTS))] == sampler.sample(REQUESTS, DRAWN, seed=0, step=0)


def test_a_stream_that_is_left_early_leaves_nothing_behind(pair: tuple[Any, VllmSampler]):
    model, sampler = pair
    groups = sampler.stream(REQUESTS, DRAWN, seed=0, step=0)
    next(groups)
    groups.close()
    assert not sampler.llm.llm_engine.has_unfinished_requests()
    sampler.update(model.state_dict().items(), 50)
    assert {row.version for row in rows(sampler, REQUESTS[:2], DRAWN)} == {50}


def test_a_cached_prompt_is_computed_again_with_new_weights(pair: tuple[Any, VllmSampler]):
    """The cache has blocks of 128 tokens on a CPU, so only a long prompt shows a cache that was not dropped."""
    model, sampler = pair
    long = [Request("long", tuple(3 + number * 7 % 250 for number in range(150)))]
    rows(sampler, long)
    shift(model, {name: value.clone() for name, value in model.state_dict().items()}, 77, scale=0.2)
    sampler.update(model.state_dict().items(), 60)
    assert_greedy(model, long, rows(sampler, long), rows(own(model), long))


def test_stop_tokens_and_the_context_end_a_completion(pair: tuple[Any, VllmSampler]):
    _, sampler = pair
    half = tuple(range(VOCABULARY // 2))
    drawn = rows(sampler, REQUESTS, dataclasses.replace(DRAWN, stop_token_ids=half))
    assert all((row.finish_reason == "stop") == (row.tokens[-1] in half) for row in drawn)
    assert all(token not in half for row in drawn for token in row.tokens[:-1])
    (row,) = rows(sampler, [Request("long", (5,) * 250)], dataclasses.replace(DRAWN, group_size=1))
    assert (len(row.tokens), row.finish_reason) == (6, "length")


@pytest.mark.parametrize("cut", [{"top_k": 5}, {"top_p": 0.8}])
def test_a_truncated_distribution_is_that_of_the_transformers_engine(pair: tuple[Any, VllmSampler], cut: Any):
    """Compare log-probs over a prompt with the same tokens, which the other engine draws often enough."""
    model, sampler = pair
    params = SamplingParams(group_size=200, max_tokens=1, **cut)
    theirs, ours = (
        {row.tokens[0]: row.sampler_logprobs[0] for row in rows(each, REQUESTS[:1], params)}
        for each in (sampler, own(model))
    )
    shared = theirs.keys() & ours.keys()
    assert len(shared) >= 2
    assert all(abs(theirs[token] - ours[token]) < 1e-4 for token in shared)


def test_exclusions_are_refused(pair: tuple[Any, VllmSampler]):
    from gvpo.sampling.exclusion.spec import Exclusion

    with pytest.raises(ConfigError, match="need the engine transformers"):
        rows(pair[1], REQUESTS, SamplingParams(exclusion=Exclusion(ban_tokens=(5,))))


def test_opening_an_engine_leaves_the_process_as_it_was():
    policy = small_model()
    random.seed(5)
    before, number = torch.get_rng_state(), random.getstate()
    opened(policy).close()
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == number
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)


def test_token_ids_that_the_tokenizer_does_not_have_are_never_sampled():
    model = small_model(tied=False, vocab_size=VOCABULARY + 60)
    sampler = opened(model)
    sampler.update(model.state_dict().items(), 0)
    drawn = rows(sampler, REQUESTS, DRAWN)
    assert max(token for row in drawn for token in row.tokens) < VOCABULARY
    assert_greedy(model, REQUESTS, rows(sampler, REQUESTS), rows(own(model), REQUESTS))
    for request, row in zip(REQUESTS, sampler.sample(REQUESTS, DRAWN, seed=0, step=0), strict=True):
        wanted = logprobs(model, request, row[0], 1.0)
        torch.testing.assert_close(torch.tensor(row[0].sampler_logprobs), wanted, atol=1e-4, rtol=0)
    sampler.close()


def test_more_prompts_than_a_batch_has_room_for():
    """With chunked prefill, a seeded request whose prompt is computed in two parts ends vLLM's engine on a CPU."""
    model = small_model()
    options = dataclasses.replace(
        OPTIONS, engine_options={**OPTIONS.engine_options, "max_num_batched_tokens": 256, "max_model_len": 256}
    )
    sampler = opened(model, options)
    sampler.update(model.state_dict().items(), 0)
    long = [Request(f"p{number}", (3 + number,) * 100) for number in range(8)]
    assert len(rows(sampler, long, DRAWN)) == 32
    sampler.close()


def test_adapters_are_served_without_merging(tmp_path: Path):
    model = small_model(seed=2)
    lora.add_adapter(model, LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False))
    sampler = opened(model.eval())
    before: list[list[int]] = []
    for version in range(1, 5):
        with torch.no_grad():
            for number, (_, parameter) in enumerate(lora.trainable(model)):
                noise = torch.Generator().manual_seed(100 * version + number)
                parameter.copy_(torch.randn(parameter.shape, generator=noise) * 0.1)
        directory = tmp_path / str(version)
        lora.save_adapter(model, directory)
        sampler.update_adapter(directory, version)
        for file in directory.iterdir():
            file.unlink()  # vLLM has read it
        found = rows(sampler, REQUESTS)
        assert_greedy(model, REQUESTS, found, rows(own(model), REQUESTS))
        assert sum(one != other for one, other in zip(tokens(found), before, strict=False)) >= 16 * (version > 1)
        assert {row.version for row in found} == {version}
        before = tokens(found)
    sampler.close()


def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path):
    model, wide = (small_model(seed=2) for _ in range(2))
    config = {"lora_alpha": 8, "target_modules": "all-linear"}
    lora.add_adapter(model, LoraConfig(r=4, **config))
    lora.add_adapter(wide, LoraConfig(r=32, **config))
    sampler = opened(model)
    lora.save_adapter(wide, tmp_path)
    with pytest.raises(ModelError, match=r"vLLM did not load the adapter in .*rank"):
        sampler.update_adapter(tmp_path, 1)
    sampler.close()


def test_a_stored_model_is_opened_by_name(tmp_path: Path):
    model = small_model(seed=4)
    save_model(model, byte_tokenizer(), tmp_path)
    sampler = open_engine("vllm", str(tmp_path), byte_tokenizer(), OPTIONS)
    assert isinstance(sampler, VllmSampler)
    found, wanted = rows(sampler, REQUESTS), rows(own(model, ending=None), REQUESTS)
    assert_greedy(model, REQUESTS, found, wanted)
    assert [row.finish_reason for row in found] == [row.finish_reason for row in wanted]
    assert found[0].version is None
    assert sampler.form.ending != ENDLESS
    sampler.close()


def test_an_unknown_option_is_named():
    options = dataclasses.replace(OPTIONS, engine_options={"max_model_length": 5})
    with pytest.raises(ConfigError, match=r"sampling.engine_options: .*max_model_length"):
        opened(small_model(), options)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_other_architectures_are_updated(kind: str):
    model = tiny_model(kind, **SMALL).eval()
    sampler = opened(model)
    sampler.update(model.state_dict().items(), 0)
    assert_greedy(model, REQUESTS, rows(sampler, REQUESTS), rows(own(model), REQUESTS))
    sampler.close()


def test_vllm_does_not_replace_the_experts_of_a_mixture_on_a_cpu(tmp_path: Path):
    """If this fails, vLLM has learned it, and `require_replaceable` can go."""
    model = tiny_model("qwen3_moe", **SMALL).eval()
    with pytest.raises(ModelError, match="mixture of experts"):
        opened(model)
    save_model(model, byte_tokenizer(), tmp_path)
    sampler = open_engine("vllm", str(tmp_path), byte_tokenizer(), OPTIONS)
    assert isinstance(sampler, VllmSampler)
    plain = own(model, ending=None)
    assert_greedy(model, REQUESTS, rows(sampler, REQUESTS), rows(plain, REQUESTS))
    sampler.update(model.state_dict().items(), 1)
    assert tokens(rows(sampler, REQUESTS)) != tokens(rows(plain, REQUESTS))
    sampler.close()
