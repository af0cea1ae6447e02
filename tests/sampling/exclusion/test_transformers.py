"""Tests of exclusion in transformers' `generate`, and of scored completions, by enumeration of a real model."""

import itertools
import math

import pytest
import torch

from gvpo.errors import ConfigError, DataError
from gvpo.sampling.exclusion import (
    ExclusionLogitsProcessor,
    compile_exclusion,
    parse_exclusion,
    score_allowed,
    sequence_weights,
)
from gvpo.sampling.exclusion.spec import Exclusion
from tests.fakes import byte_tokenizer, tiny_model

PROMPT = [10, 70, 30]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model().eval()


def generate(model, processor, *, rows=4, prompt=PROMPT, **settings):
    torch.manual_seed(0)
    ids = torch.tensor([prompt] * rows)
    settings = {"do_sample": True, "max_new_tokens": 8, "top_k": 0, "pad_token_id": 0, **settings}
    return model.generate(ids, attention_mask=torch.ones_like(ids), logits_processor=[processor], **settings)


def completions(sequences, prompt=PROMPT):
    """Return the rows without the prompt and the tokens after the end."""
    rows = [row[len(prompt) :] for row in sequences.tolist()]
    return [row[: row.index(1) + 1] if 1 in row else row for row in rows]


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.3}, {"do_sample": False}, {"num_beams": 3}]
)
def test_generate_writes_only_what_is_allowed(settings, model, tokenizer):
    exclusion = compile_exclusion(parse_exclusion("[a-m가-힣]", "text:ab"), model, tokenizer)
    sequences = generate(model, ExclusionLogitsProcessor(exclusion), max_new_tokens=12, **settings)
    for row in completions(sequences):
        text = tokenizer.decode(row, skip_special_tokens=True).rstrip("\ufffd")  # truncated within a character
        assert all("a" <= letter <= "m" or "가" <= letter <= "힣" for letter in text)
        assert "ab" not in text


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sums_equal_those_of_plain_forwards(temperature, model, tokenizer):
    exclusion = compile_exclusion(parse_exclusion("ascii", "[a-m]"), model, tokenizer)
    processor = ExclusionLogitsProcessor(exclusion, temperature=temperature)
    sequences = generate(model, processor, rows=30, temperature=temperature, max_new_tokens=20)
    rows = completions(sequences)
    assert len(set(map(len, rows))) > 2, "some should end early"
    for row, found in zip(rows, processor.log_allowed(sequences).tolist(), strict=True):
        assert found < -0.1
        assert score_allowed(model, PROMPT, row, exclusion, temperature=temperature) == pytest.approx(found, abs=1e-3)


def test_penalties_come_before_and_change_nothing_among_the_allowed(model, tokenizer):
    """A repetition penalty on logits, then the mask, equals the mask, then the penalty. P is the penalized model."""
    exclusion = compile_exclusion(parse_exclusion("ascii"), model, tokenizer)
    processor = ExclusionLogitsProcessor(exclusion)
    output = generate(
        model, processor, rows=1, repetition_penalty=1.7, return_dict_in_generate=True, output_scores=True,
        output_logits=True, max_new_tokens=1,
    )  # fmt: skip
    scores, raw = output.scores[0][0], output.logits[0][0]
    penalised = raw.clone()
    for token in PROMPT:
        penalised[token] = raw[token] / 1.7 if raw[token] > 0 else raw[token] * 1.7
    allowed = torch.from_numpy(exclusion.allowed(exclusion.start))
    assert torch.equal(scores[allowed], penalised[allowed])
    p = penalised.double().softmax(-1)[allowed].sum()
    assert processor.log_allowed(output.sequences)[0] == pytest.approx(math.log(p), abs=1e-5)


def test_prompts_of_different_lengths_keep_their_own_states(model, tokenizer):
    """Prompts are left-padded, as generate expects. Tokens of one row do not affect another row."""
    exclusion = compile_exclusion(parse_exclusion(["text:xyxyxy", "text:yxyxyx"]), model, tokenizer)
    ids = torch.tensor([[0, 0, 10], [9, 10, 11]])
    mask = (ids != 0).long()
    processor = ExclusionLogitsProcessor(exclusion)
    sequences = model.generate(ids, attention_mask=mask, logits_processor=[processor], max_new_tokens=10, top_k=0,
                               do_sample=True, pad_token_id=0)  # fmt: skip
    texts = [tokenizer.decode(row[3:], skip_special_tokens=True) for row in sequences]
    assert set(texts) <= {"xyxyxy", "yxyxyx"}


def test_one_processor_serves_one_call_after_another(model, tokenizer):
    exclusion = compile_exclusion(parse_exclusion("regex:[0-9]{3}") if has_llguidance() else
                                  parse_exclusion([f"text:{n:03}" for n in range(1000)]), model, tokenizer)  # fmt: skip
    processor = ExclusionLogitsProcessor(exclusion)
    for prompt in (PROMPT, [5, *PROMPT], PROMPT[:2]):
        sequences = generate(model, processor, prompt=prompt)
        assert all(tokenizer.decode(row[:-1]).isdecimal() and len(row) == 4 for row in completions(sequences, prompt))
        assert processor.log_allowed(sequences).shape == (4,)
    with pytest.raises(DataError, match="score_allowed"):
        processor.log_allowed(torch.tensor([[1, 2, 3]]))


def has_llguidance():
    try:
        import llguidance  # noqa: F401
    except ImportError:
        return False
    return True


def test_weighted_samples_estimate_what_rejection_would_give(model, tokenizer):
    """With two tokens of text on a real model, the mean weight is P(good), and weighted frequencies are given good.

    Bounds are five standard errors of 20,000 samples.
    """
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "abc"]
    exclusion = compile_exclusion(Exclusion(allow_tokens=tuple(letters), ban_strings=("ab", "cc")), model, tokenizer)
    exact = {}
    with torch.no_grad():
        first = model(torch.tensor([PROMPT])).logits[0, -1].softmax(-1)
        second = model(torch.tensor([[*PROMPT, token] for token in letters])).logits[:, -1].softmax(-1)
    for (i, one), (_, two) in itertools.product(enumerate(letters), repeat=2):
        exact[one, two] = float(first[one] * second[i, two])
    bad = {(letters[0], letters[1]), (letters[2], letters[2])}
    ended = float(first[1])
    p_good = sum(p for pair, p in exact.items() if pair not in bad) + ended + float(first[letters] @ second[:, 1])
    processor = ExclusionLogitsProcessor(exclusion)
    sequences = generate(model, processor, rows=20_000, max_new_tokens=2)
    sums = processor.log_allowed(sequences)
    weights = sums.exp()
    error = float(weights.std()) / math.sqrt(len(weights))
    assert error < 0.05 * p_good
    assert float(weights.mean()) == pytest.approx(p_good, abs=5 * error)
    normalised = sequence_weights(sums)
    drawn = torch.tensor(completions_of_two(sequences))
    pair = max((pair for pair in exact if pair not in bad), key=exact.__getitem__)
    hit = (drawn == torch.tensor(pair)).all(-1).double()
    share = float((normalised * hit).mean())
    expected = exact[pair] / p_good
    assert share == pytest.approx(expected, abs=5 * float((normalised * (hit - expected)).std()) / math.sqrt(len(hit)))


def completions_of_two(sequences):
    return sequences[:, len(PROMPT) :].tolist()


def test_a_completion_with_a_banned_token_has_no_probability(model, tokenizer):
    exclusion = compile_exclusion(parse_exclusion(ban="text:a"), model, tokenizer)
    a = tokenizer.convert_tokens_to_ids("a")
    assert score_allowed(model, PROMPT, [5, a, 6], exclusion) == -math.inf
    ended = score_allowed(model, PROMPT, [5, 1], exclusion)
    assert ended == score_allowed(model, PROMPT, [5, 1, a, a], exclusion)


def test_unsatisfiable_exclusions_are_reported_before_sampling(model, tokenizer):
    with pytest.raises(ConfigError, match="token 999 and the model has 259 tokens"):
        compile_exclusion(parse_exclusion("token:999"), model, tokenizer)
    with pytest.raises(ConfigError, match="no token at all"):
        compile_exclusion(parse_exclusion("text:a", ["text:a"]), model, tokenizer)
