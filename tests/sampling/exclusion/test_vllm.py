"""Tests of the same exclusion in vLLM's engine, against transformers. Skipped if vLLM is not installed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gvpo.model.model import load_model
from gvpo.sampling.exclusion import ExclusionLogitsProcessor, compile_exclusion, parse_exclusion
from tests.fakes import byte_tokenizer, tiny_model
from tests.sampling.exclusion.vllm_job import CHOICES, LETTERS, PROMPTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Save a model with heads of 32, the smallest size that vLLM's attention on CPUs supports."""
    path = tmp_path_factory.mktemp("model")
    tiny_model("qwen2", hidden_size=128, seed=3).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def found(directory):
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, str(ROOT / "tests/sampling/exclusion/vllm_job.py"), str(directory)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=560)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def model(directory):
    return load_model(directory).eval()


def letters(model):
    return compile_exclusion(parse_exclusion(**LETTERS), model, byte_tokenizer())


def text(row):
    return byte_tokenizer().decode(row["tokens"], skip_special_tokens=True)


@torch.no_grad()
def log_q(model, exclusion, prompt, tokens, temperature):
    """Compute the masked softmax of plain forwards."""
    logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1] / temperature
    state, values = exclusion.start, []
    for token, row in zip(tokens, logits, strict=True):
        allowed = torch.from_numpy(exclusion.allowed(state))
        values.append(float(row.masked_fill(~allowed, -torch.inf).log_softmax(-1)[token]))
        state = exclusion.advance(state, token)
    return values


@pytest.mark.parametrize("case", ["greedy", "sampled", "cut", "penalised"])
def test_only_what_is_allowed_is_written(found, case):
    for row in found[case]:
        assert "ab" not in text(row)
        assert text(row) == "" or (text(row).isascii() and text(row).isalpha() and text(row).islower())
    assert any(text(row) for row in found[case])


def test_sampling_distribution_is_the_masked_softmax_at_the_temperature(found, model):
    exclusion = letters(model)
    for prompt, row in zip(PROMPTS, found["sampled"], strict=True):
        assert row["logprobs"] == pytest.approx(log_q(model, exclusion, prompt, row["tokens"], 0.7), abs=1e-3)


@pytest.mark.parametrize(("case", "penalty"), [("greedy", 1.0), ("penalised", 1.7)])
def test_greedy_completions_equal_those_of_transformers(found, model, case, penalty):
    for prompt, row in zip(PROMPTS, found[case], strict=True):
        ids = torch.tensor([prompt])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=0,
            repetition_penalty=penalty, logits_processor=[ExclusionLogitsProcessor(letters(model))],
        )  # fmt: skip
        assert output[0, len(prompt) :].tolist() == row["tokens"]


def test_top_k_chooses_among_the_allowed(found, model):
    """Two tokens remain at each step. Their probabilities are those of the two most likely allowed tokens."""
    exclusion = letters(model)
    with torch.no_grad():
        for prompt, row in zip(PROMPTS, found["cut"], strict=True):
            logits = model(torch.tensor([[*prompt, *row["tokens"]]])).logits[0, len(prompt) - 1 : -1]
            state = exclusion.start
            for token, scores, logprob in zip(row["tokens"], logits, row["logprobs"], strict=True):
                allowed = torch.from_numpy(exclusion.allowed(state))
                best = scores.masked_fill(~allowed, -torch.inf).topk(2)
                assert token in best.indices
                expected = best.values.log_softmax(-1)[best.indices.tolist().index(token)]
                assert logprob == pytest.approx(float(expected), abs=1e-3)
                state = exclusion.advance(state, token)


def test_completions_are_one_of_the_choices_and_end(found):
    assert {f"text:{text(row)}" for row in found["choices"]} <= set(CHOICES["allow"])
    assert all(row["tokens"][-1] == 1 for row in found["choices"])


def test_concurrent_requests_keep_their_own_exclusion(found):
    assert found["mixed"][0] == found["free"][0]["tokens"][: len(found["mixed"][0])]
    assert found["mixed"][1:] == [row["tokens"] for row in found["greedy"][1:]]


def test_a_wrong_exclusion_is_rejected_and_the_engine_keeps_running(found):
    assert "no characters called 'Klingon'" in found["refused"]
    assert found["after"] == found["free"]
