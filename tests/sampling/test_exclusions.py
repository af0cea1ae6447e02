"""Tests of the sampler with an exclusion: its completions and extras, and independence of batches."""

import math

import pytest
import torch

from gvpo.errors import ConfigError
from gvpo.sampling import Request, SamplingParams, support_warning
from gvpo.sampling.exclusion import compile_exclusion, parse_exclusion, score_allowed
from gvpo.sampling.transformers import TransformersSampler
from tests.fakes import byte_tokenizer, tiny_model

REQUESTS = [Request(f"problem-{number}", tuple(range(5 + number, 9 + 3 * number))) for number in range(4)]
LETTERS = parse_exclusion("[a-m가-힣]", "text:ab")


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def draw(model, tokenizer, requests=REQUESTS, budget=65_536, **settings):
    params = SamplingParams(**{"group_size": 6, "max_tokens": 12, "exclusion": LETTERS, **settings})
    return TransformersSampler(model, tokenizer, tokens_per_batch=budget).sample(requests, params, seed=0, step=1)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.5, "temperature": 2.0}])
def test_completions_contain_only_what_is_allowed(settings, tokenizer):
    groups = draw(tiny_model(), tokenizer, **settings)
    rows = [row for group in groups for row in group]
    assert len({row.text for row in rows}) > 3
    for row in rows:
        text = row.text.rstrip("\ufffd") if row.finish_reason == "length" else row.text
        assert all("a" <= letter <= "m" or "가" <= letter <= "힣" for letter in text)
        assert "ab" not in text


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_log_probs_are_of_the_allowed_tokens_and_sums_equal_those_of_plain_forwards(temperature, tokenizer):
    model = tiny_model()
    exclusion = compile_exclusion(LETTERS, model, tokenizer)
    groups = draw(model, tokenizer, temperature=temperature)
    model.train(False)
    for request, group in zip(REQUESTS, groups, strict=True):
        for row in group:
            ids = torch.tensor([[*request.prompt, *row.tokens]])
            with torch.no_grad():
                logits = model(ids).logits[0, len(request.prompt) - 1 : -1].double() / (temperature or 1.0)
            plain = logits.log_softmax(-1)[torch.arange(len(row.tokens)), torch.tensor(row.tokens)]
            total = score_allowed(model, request.prompt, row.tokens, exclusion, temperature=temperature)
            assert sum(row.sampler_logprobs) == pytest.approx(float(plain.sum()) - total, abs=1e-3)
            assert all(own >= full - 1e-5 for own, full in zip(row.sampler_logprobs, plain.tolist(), strict=True))
            assert row.extras["log_allowed"] == pytest.approx(total, abs=1e-3)
            assert total < -0.1


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.6, "temperature": 1.5}])
def test_the_probabilities_of_all_first_tokens_sum_to_one(settings, tokenizer):
    """An exclusion with top-k and top-p leaves few tokens, and 400 draws contain each of them."""
    few = {"exclusion": parse_exclusion("[a-d]"), "max_tokens": 1, "group_size": 400, **settings}
    (rows,) = draw(tiny_model(), tokenizer, REQUESTS[:1], **few)
    own = {row.tokens[0]: row.sampler_logprobs[0] for row in rows}
    assert 1 < len(own) <= 5
    assert sum(math.exp(value) for value in own.values()) == pytest.approx(1, abs=1e-5)


def test_batches_change_nothing_even_if_rows_leave_them(tokenizer):
    model = tiny_model()
    together = draw(model, tokenizer)
    assert len({len(row.tokens) for group in together for row in group}) > 3, "rows end at different times"
    for other in (draw(model, tokenizer, budget=1), draw(model, tokenizer, REQUESTS[::-1])[::-1]):
        for group, expected in zip(other, together, strict=True):
            assert [row.tokens for row in group] == [row.tokens for row in expected]
            sums = [row.extras["log_allowed"] for row in expected]
            assert [row.extras["log_allowed"] for row in group] == pytest.approx(sums, abs=1e-4)


def test_without_an_exclusion_extras_are_empty(tokenizer):
    free = draw(tiny_model(), tokenizer, exclusion=parse_exclusion())
    assert all(row.extras == {} for group in free for row in group)


def test_a_row_at_a_dead_end_is_ended_with_weight_zero(tokenizer):
    """ "xy" must follow "x" and may not."""
    groups = draw(tiny_model(), tokenizer, exclusion=parse_exclusion(["text:xyz", "text:q"], "text:xy"), group_size=40)
    rows = [row for group in groups for row in group]
    assert {row.text for row in rows} == {"x", "q"}
    for row in rows:
        assert row.finish_reason == "stop"
        assert (row.extras["log_allowed"] == -math.inf) == (row.text == "x")
        assert all(math.isfinite(value) for value in row.sampler_logprobs)


def test_an_unsatisfiable_exclusion_is_found_before_sampling(tokenizer):
    sampler = TransformersSampler(tiny_model(), tokenizer)
    params = SamplingParams(exclusion=parse_exclusion("text:a", "text:a"))
    with pytest.raises(ConfigError, match="no token at all"):
        sampler.exclusion(params)
    assert sampler.exclusion(SamplingParams()) is None
    assert sampler.exclusion(SamplingParams(exclusion=LETTERS)) is sampler.exclusion(SamplingParams(exclusion=LETTERS))


def test_an_exclusion_gives_a_support_warning():
    assert "an exclusion (sampling.allow, sampling.ban)" in (support_warning(SamplingParams(exclusion=LETTERS)) or "")
