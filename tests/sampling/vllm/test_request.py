"""Tests of requests to vLLM and their results, without vLLM."""

import json

import pytest

from gvpo.errors import ConfigError, DataError, EngineError, ModelError
from gvpo.model.endings import Ending
from gvpo.sampling import Request, SamplingParams
from gvpo.sampling.exclusion.spec import Exclusion
from gvpo.sampling.seeds import row_seed
from gvpo.sampling.vllm.request import RequestFormat
from tests.fakes import VOCABULARY, byte_tokenizer

EOS = 1
REQUEST = Request("a", (5, 6, 7))


def fmt(vocabulary: int = VOCABULARY, context: int | None = 16, **ending) -> RequestFormat:
    return RequestFormat(byte_tokenizer(), Ending((EOS,), EOS, **ending), vocabulary, context)


def test_each_parameter_is_explicit_and_plain():
    params = SamplingParams(group_size=4, max_tokens=8, temperature=0.7, top_p=0.9, top_k=5, stop_token_ids=(9, 4))
    assert fmt().parameters(REQUEST, params, seed=3, step=2, row=1) == {
        "n": 1,
        "seed": row_seed(3, 2, "a", 1),
        "max_tokens": 8,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.0,
        "stop_token_ids": [EOS, 4, 9],
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": False,
    }


def test_the_context_limits_the_tokens():
    params = SamplingParams(max_tokens=50)
    assert fmt(context=16).parameters(REQUEST, params, seed=0, step=0, row=0)["max_tokens"] == 13
    assert fmt(context=None).parameters(REQUEST, params, seed=0, step=0, row=0)["max_tokens"] == 50


def test_a_request_limits_its_own_tokens():
    short = Request("a", (5, 6, 7), max_tokens=4)
    for most, expected in ((50, 4), (4, 4), (2, 2)):
        assert fmt().parameters(short, SamplingParams(max_tokens=most), seed=0, step=0, row=0)["max_tokens"] == expected


def test_token_ids_without_a_token_are_impossible():
    fields = fmt(VOCABULARY + 2).parameters(REQUEST, SamplingParams(), seed=0, step=0, row=0)
    assert fields["logit_bias"] == {VOCABULARY: -100.0, VOCABULARY + 1: -100.0}
    json.dumps(fields)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (SamplingParams(exclusion=Exclusion(ban_tokens=(3,))), "sampling.allow and sampling.ban need the engine tran"),
        (SamplingParams(temperature=2.5), "temperature=2.5: vLLM samples with 0 .greedy. or from 0.01 to 2"),
        (SamplingParams(temperature=0.001), "temperature=0.001: vLLM"),
    ],
)
def test_parameters_that_vllm_would_change_or_ignore_are_refused(params: SamplingParams, message: str):
    with pytest.raises(ConfigError, match=message):
        fmt().check([REQUEST], params)


@pytest.mark.parametrize(
    ("requests", "error", "message"),
    [
        ([Request("a", ())], DataError, "'a' is empty"),
        ([Request("a", (3,) * 16)], DataError, "16 tokens and the model's context is 16"),
        ([Request("a", (VOCABULARY,))], ModelError, f"has token {VOCABULARY}"),
        ([REQUEST, REQUEST], DataError, "two requests have the same id"),
    ],
)
def test_bad_requests_are_refused(requests: list[Request], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        fmt().check(requests, SamplingParams())


def test_an_uncertain_end_warns_unless_tokens_are_named():
    with pytest.warns(UserWarning, match="no token ends"):
        fmt(doubt="no token ends an answer").check([REQUEST], SamplingParams())
    fmt(doubt="no token ends an answer").check([REQUEST], SamplingParams(stop_token_ids=(4,)))


@pytest.mark.parametrize("reason", ["stop", "length", "abort"])
def test_a_result_becomes_a_completion(reason: str):
    tokens = [*byte_tokenizer()("hi").input_ids, EOS]
    row = fmt().completion(REQUEST, tokens, [-1.0, -2.0, -0.5], reason, version=7)
    assert (row.tokens, row.text, row.finish_reason, row.version) == (tokens, "hi", reason, 7)
    assert row.sampler_logprobs == [-1.0, -2.0, -0.5]


def test_an_aborted_row_may_be_empty():
    assert fmt().completion(REQUEST, [], [], "abort").finish_reason == "abort"


@pytest.mark.parametrize(
    ("tokens", "logprobs", "reason", "message"),
    [
        ([5], [-1.0], "error", "reason 'error', which is not stop, length or abort"),
        ([5], [-1.0], None, "reason None"),
        ([5, 6], [-1.0], "stop", "2 tokens and 1 log-probs"),
        ([], [], "length", "0 tokens and 0 log-probs"),
        ([5], [float("nan")], "length", "not finite"),
    ],
)
def test_a_broken_result_is_an_error(tokens, logprobs, reason, message: str):
    with pytest.raises((EngineError, ModelError), match=message):
        fmt().completion(REQUEST, tokens, logprobs, reason)
