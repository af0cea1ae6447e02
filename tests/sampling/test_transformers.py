"""Tests of the transformers sampler, against plain forwards of one row."""

import copy
from dataclasses import replace

import pytest
import torch

from gvpo import activity
from gvpo.errors import DataError, ModelError
from gvpo.sampling import Request, SamplingParams, StreamingSampler
from gvpo.sampling.noise import noise_key, uniforms
from gvpo.sampling.transformers import TransformersSampler, plan
from tests.fakes import CONFIGS, byte_tokenizer, tiny_model

PARAMS = SamplingParams(group_size=3, max_tokens=12)
REQUESTS = [
    Request(f"problem-{number}", tuple(5 + (7 * number + place) % 250 for place in range(length)))
    for number, length in enumerate((9, 3, 14, 9, 1, 11))
]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def endless():
    """Return a tokenizer without an end token: with `model_without_stops`, completions have the maximum length."""
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    return tokenizer


def model_without_stops(kind="qwen2", **config):
    return tiny_model(kind, eos_token_id=None, **config)


def sample(model, tokenizer, requests=REQUESTS, params=PARAMS, *, seed=0, step=4, budget=65_536):
    sampler = TransformersSampler(model, tokenizer, tokens_per_batch=budget)
    return sampler.sample(requests, params, seed=seed, step=step)


def tokens(groups):
    return [[list(row.tokens) for row in group] for group in groups]


@torch.no_grad()
def plain_logprobs(model, prompt, drawn, temperature=1.0):
    """Compute log-probs of a completion by one uncached forward of its row."""
    model = copy.deepcopy(model).train(False)
    logits = model(input_ids=torch.tensor([[*prompt, *drawn]])).logits[0, len(prompt) - 1 : -1]
    return (logits.double() / temperature).log_softmax(-1)[torch.arange(len(drawn)), torch.tensor(drawn)]


def spy_on_shapes(model):
    """Return a list that records the shape of input_ids of each later forward."""
    shapes = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return shapes


def test_a_stream_yields_the_groups_of_sample_as_they_finish(tokenizer):
    model = tiny_model()
    sampler = TransformersSampler(model, tokenizer)
    assert isinstance(sampler, StreamingSampler)
    params = replace(PARAMS, max_tokens=40)
    together = sampler.sample(REQUESTS, params, seed=0, step=4)
    counts, order, groups = [], [], {}
    with activity.shown(counts.append):
        for place, rows in sampler.stream(REQUESTS, params, seed=0, step=4):
            assert torch.is_grad_enabled()  # the caller's own work is not in sampling mode
            order.append(place)
            groups[place] = rows
    assert [groups[place] for place in range(len(REQUESTS))] == together
    longest = [max(len(row.tokens) for row in rows) for rows in together]
    assert [longest[place] for place in order] == sorted(longest)
    sampled = sum(len(row.tokens) for rows in together for row in rows)
    last = len(REQUESTS) * params.group_size
    assert (counts[-1].done, counts[-1].total, counts[-1].tokens) == (last, last, sampled)
    assert len(counts) == max(longest)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_batch_does_not_change_the_tokens(kind, tokenizer):
    model = tiny_model(kind)
    together = sample(model, tokenizer)
    assert len({tuple(row.tokens) for group in together for row in group}) > 9
    alone = [sample(model, tokenizer, [request])[0] for request in REQUESTS]
    backwards = sample(model, tokenizer, REQUESTS[::-1])[::-1]
    one_row_a_batch = sample(model, tokenizer, budget=1)
    some = sample(model, tokenizer, budget=200)
    for other in (alone, backwards, one_row_a_batch, some):
        assert tokens(other) == tokens(together)
        for group, expected in zip(other, together, strict=True):
            for row, same in zip(group, expected, strict=True):
                assert row.sampler_logprobs == pytest.approx(same.sampler_logprobs, abs=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_equal_those_of_a_plain_forward(kind, temperature, tokenizer):
    """The cases include sliding windows (8 tokens for mistral here) and rows that left the batch."""
    model = tiny_model(kind)
    params = SamplingParams(group_size=3, max_tokens=20, temperature=temperature)
    for request, group in zip(REQUESTS, sample(model, tokenizer, params=params), strict=True):
        for row in group:
            exact = plain_logprobs(model, request.prompt, row.tokens, temperature)
            assert row.sampler_logprobs == pytest.approx(exact.tolist(), abs=1e-5)


def test_rows_equal_those_of_a_naive_sampler_over_blocks_of_noise(endless):
    """The naive sampler uses one row, no cache, float64 sums and one forward per token. 70 tokens use two blocks."""
    model = model_without_stops()
    request = REQUESTS[0]
    rows = sample(model, endless, params=SamplingParams(2, 70, temperature=0.8), seed=3, step=8)[0]
    for number, row in enumerate(rows):
        noise = uniforms([noise_key(3, 8, request.id, number)], 0, 70)[0]
        drawn = list(request.prompt)
        for u in noise:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([drawn])).logits[0, -1]
            ends = (logits.double() / 0.8).softmax(-1).cumsum(-1)
            drawn.append(int((ends <= u * ends[-1]).sum()))
        assert drawn[len(request.prompt) :] == row.tokens


def test_greedy_selects_the_most_likely_token_of_a_plain_forward(endless):
    model = model_without_stops()
    params = SamplingParams(group_size=2, max_tokens=6, temperature=0.0)
    for request, group in zip(REQUESTS, sample(model, endless, params=params), strict=True):
        assert group[0].tokens == group[1].tokens
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*request.prompt, *group[0].tokens]])).logits[0]
        assert logits[len(request.prompt) - 1 : -1].argmax(-1).tolist() == group[0].tokens
        exact = plain_logprobs(model, request.prompt, group[0].tokens)
        assert group[0].sampler_logprobs == pytest.approx(exact.tolist(), abs=1e-5)


def test_first_tokens_follow_the_models_distribution(endless):
    """Chi-square with 15 degrees exceeds 37.7 in one case of 1,000; the seed is fixed."""
    model = model_without_stops(vocab_size=16)
    request = Request("only", (3, 9, 4))
    rows = sample(model, endless, [request], SamplingParams(group_size=4000, max_tokens=1))[0]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([request.prompt])).logits[0, -1].softmax(-1) * 4000
    counts = torch.bincount(torch.tensor([row.tokens[0] for row in rows]), minlength=16)
    assert float(((counts - expected) ** 2 / expected).sum()) < 37.7


def test_second_tokens_follow_the_distribution_after_the_first(endless):
    model = model_without_stops(vocab_size=8)
    request = Request("only", (3, 6, 4))
    rows = sample(model, endless, [request], SamplingParams(group_size=4000, max_tokens=2))[0]
    first = max(range(8), key=[row.tokens[0] for row in rows].count)
    seconds = torch.tensor([row.tokens[1] for row in rows if row.tokens[0] == first])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*request.prompt, first]])).logits[0, -1]
    expected = logits.softmax(-1) * len(seconds)
    assert len(seconds) > 400
    assert float(((torch.bincount(seconds, minlength=8) - expected) ** 2 / expected).sum()) < 24.3  # 7 degrees


def test_top_k_never_samples_outside(endless):
    model = model_without_stops()
    params = SamplingParams(group_size=20, max_tokens=4, top_k=2)
    for request, group in zip(REQUESTS[:2], sample(model, endless, REQUESTS[:2], params), strict=True):
        for row in group:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*request.prompt, *row.tokens]])).logits[0]
            best = logits[len(request.prompt) - 1 : -1].topk(2, dim=-1).indices
            assert all(token in pair for token, pair in zip(row.tokens, best.tolist(), strict=True))
            inside = logits[len(request.prompt) - 1 : -1].topk(2, dim=-1).values.log_softmax(-1)
            exact = inside[best == torch.tensor(row.tokens)[:, None]]
            assert row.sampler_logprobs == pytest.approx(exact.tolist(), abs=1e-5)


def test_a_prompt_is_computed_once_for_any_number_of_completions(endless):
    model = model_without_stops()
    shapes = spy_on_shapes(model)
    sample(model, endless)
    assert shapes[0] == (6, 14)
    assert shapes[1:] == [(18, 1)] * 11


def test_a_prompt_is_computed_once_if_its_rows_need_several_batches(endless):
    model = model_without_stops()
    shapes = spy_on_shapes(model)
    sample(model, endless, REQUESTS[:1], budget=2 * (9 + 12))
    assert shapes == [(1, 9)] + [(2, 1)] * 11 + [(1, 1)] * 11


def test_batches_respect_the_token_budget(endless):
    model = model_without_stops()
    shapes = spy_on_shapes(model)
    budget = 3 * 2 * (14 + 12)
    sample(model, endless, budget=budget)
    widths = [length for _, length in shapes if length > 1]
    rows = [count for count, length in shapes if length == 1]
    assert len([shape for shape in shapes if shape[1] > 1 or shape[0] < 3]) >= 2
    assert max(rows) * (max(widths) + 12) <= budget


def test_plan_uses_each_request_once_with_similar_lengths_together():
    batches = list(plan(REQUESTS, [12] * 6, 3, 3 * 2 * (14 + 12)))
    assert sorted(index for batch in batches for index in batch) == list(range(6))
    lengths = [len(REQUESTS[index].prompt) for batch in batches for index in batch]
    assert lengths == sorted(lengths)
    for batch in batches:
        assert len(batch) * 3 * (max(len(REQUESTS[index].prompt) for index in batch) + 12) <= 156


def test_finished_rows_leave_the_batch(endless):
    """Half of the vocabulary are stop tokens, so about half of the rows end after each token."""
    model = model_without_stops()
    shapes = spy_on_shapes(model)
    stops = tuple(range(0, 259, 2))
    sample(model, endless, params=SamplingParams(group_size=20, max_tokens=12, stop_token_ids=stops))
    decoded = [count for count, length in shapes[1:] if length == 1]
    assert decoded[0] <= 120
    assert decoded == sorted(decoded, reverse=True)
    assert decoded[-1] < decoded[0] / 4


def test_stop_tokens_end_a_completion_and_are_kept(endless):
    model = model_without_stops()
    stops = tuple(range(0, 259, 5))
    rows = [r for group in sample(model, endless, params=SamplingParams(8, 6, stop_token_ids=stops)) for r in group]
    free = [r for group in sample(model, endless, params=SamplingParams(8, 6)) for r in group]
    assert {row.finish_reason for row in rows} == {"stop", "length"}
    for row, longer in zip(rows, free, strict=True):
        stopped = [place for place, token in enumerate(longer.tokens) if token in stops]
        end = stopped[0] + 1 if stopped else 6
        assert row.tokens == longer.tokens[:end]
        assert row.finish_reason == ("stop" if stopped else "length")
        assert len(row.sampler_logprobs) == end
        assert longer.finish_reason == "length"


def test_several_end_tokens_of_the_generation_config_all_stop(endless):
    model = model_without_stops()
    free = sample(model, endless, params=SamplingParams(2, 6))[0][0].tokens
    for place in (1, 3):
        model.generation_config.eos_token_id = [258, free[place]]
        row = sample(model, endless, params=SamplingParams(2, 6))[0][0]
        assert row.tokens == free[: free.index(free[place]) + 1]
        assert row.finish_reason == "stop"


def test_a_stop_token_at_the_maximum_length_is_a_stop(endless):
    model = model_without_stops()
    free = sample(model, endless, params=SamplingParams(1, 5))[0][0].tokens
    last = free.index(free[-1])
    params = SamplingParams(1, last + 1, stop_token_ids=(free[-1],))
    assert sample(model, endless, params=params)[0][0].finish_reason == "stop"


def test_the_context_caps_a_completion(endless):
    model = model_without_stops(max_position_embeddings=16)
    groups = sample(model, endless)
    assert [len(group[0].tokens) for group in groups] == [7, 12, 2, 7, 12, 5]
    assert all(row.finish_reason == "length" for group in groups for row in group)


def test_completions_record_their_source(tokenizer):
    row = sample(tiny_model(), tokenizer, step=9)[0][0]
    assert (row.source, row.version, row.reward, row.ref_logprobs) == ("live", None, None, None)
    assert row.text == tokenizer.decode(row.tokens, skip_special_tokens=True)


def test_the_end_token_is_not_part_of_the_text(tokenizer):
    rows = sample(tiny_model(), tokenizer, params=SamplingParams(60, 12))[0]
    stopped = [row for row in rows if row.finish_reason == "stop"]
    assert stopped
    for row in stopped:
        assert row.tokens[-1] == tokenizer.eos_token_id
        assert row.text == tokenizer.decode(row.tokens[:-1])


@pytest.mark.parametrize("change", [{"seed": 1}, {"step": 5}])
def test_seed_and_step_change_the_tokens_and_repeat(change, tokenizer):
    model = tiny_model()
    assert tokens(sample(model, tokenizer, **change)) != tokens(sample(model, tokenizer))
    assert tokens(sample(model, tokenizer, **change)) == tokens(sample(model, tokenizer, **change))


def test_a_larger_group_starts_with_the_same_rows(tokenizer):
    model = tiny_model()
    larger = sample(model, tokenizer, params=SamplingParams(group_size=7, max_tokens=12))
    assert [group[:3] for group in tokens(larger)] == tokens(sample(model, tokenizer))


def test_torch_generators_are_unchanged(tokenizer):
    model = tiny_model()
    before = torch.get_rng_state()
    sample(model, tokenizer)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_models_modes_are_restored_and_dropout_is_off(tokenizer):
    model = tiny_model(attention_dropout=0.5).train()
    model.model.layers[0].eval()
    first = sample(model, tokenizer)
    assert model.training
    assert model.model.layers[1].self_attn.training
    assert not model.model.layers[0].self_attn.training
    assert tokens(first) == tokens(sample(tiny_model(), tokenizer))


def test_gradient_checkpointing_does_not_disable_the_cache(tokenizer):
    model = tiny_model().train()
    model.gradient_checkpointing_enable()
    assert tokens(sample(model, tokenizer)) == tokens(sample(tiny_model(), tokenizer))


def test_sampling_inside_autocast_uses_updated_weights(tokenizer):
    """Autocast caches casts of weights as long as its context is open, and does not notice the optimizer."""
    model, moved = tiny_model(seed=0), tiny_model(seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = tokens(sample(moved, tokenizer))
        model(input_ids=torch.tensor([[5, 6, 7]])).logits.float().sum().backward()
        model.load_state_dict(moved.state_dict())
        assert tokens(sample(model, tokenizer)) == expected


def test_training_inside_autocast_after_sampling_has_gradients(tokenizer):
    model = tiny_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sample(model, tokenizer)
        model(input_ids=torch.tensor([[5, 6, 7]])).logits.float().sum().backward()
    assert float(model.model.layers[0].mlp.up_proj.weight.grad.abs().sum()) > 0


def test_a_cache_that_cannot_be_repeated_falls_back_to_repeated_prompts(tokenizer, monkeypatch):
    model = tiny_model()
    expected = tokens(sample(model, tokenizer))

    def refuse(self, beam_idx):
        raise NotImplementedError

    monkeypatch.setattr("transformers.cache_utils.DynamicLayer.reorder_cache", refuse)
    shapes = spy_on_shapes(model)
    assert tokens(sample(model, tokenizer)) == expected
    assert shapes[:2] == [(6, 14), (18, 14)]


def test_the_error_names_a_model_without_a_cache(tokenizer, monkeypatch):
    model = tiny_model()
    plain = model.forward
    monkeypatch.setattr(model, "forward", lambda **kw: plain(**{**kw, "use_cache": False, "past_key_values": None}))
    with pytest.raises(ModelError, match="Qwen2ForCausalLM returns no key-value cache"):
        sample(model, tokenizer)


def test_a_missing_pad_token_changes_nothing(tokenizer):
    unpadded = byte_tokenizer()
    unpadded.pad_token = None
    model = tiny_model()
    assert tokens(sample(model, unpadded)) == tokens(sample(model, tokenizer))


def test_no_requests_give_no_groups(tokenizer):
    assert sample(tiny_model(), tokenizer, []) == []


@pytest.mark.parametrize(
    ("requests", "error", "message"),
    [
        ([Request("a", ())], DataError, "'a' is empty"),
        ([Request("a", (5,)), Request("a", (6,))], DataError, "same id"),
        ([Request("long", (5,) * 16)], DataError, "'long' has 16 tokens and the model's context is 16"),
        ([Request("far", (5, 259))], ModelError, "token 259"),
    ],
)
def test_the_error_names_invalid_requests(requests, error, message, tokenizer):
    with pytest.raises(error, match=message):
        sample(tiny_model(max_position_embeddings=16), tokenizer, requests)


def test_a_diverged_model_is_an_error(tokenizer):
    model = tiny_model()
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        sample(model, tokenizer)
