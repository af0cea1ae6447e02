"""Tests of an adapter merged into its base: the same log-probs, in a directory like that of any other model."""

import json
import os
import warnings
from pathlib import Path

import pytest
import torch

from gvpo.errors import GvpoWarning, ModelError, RoundTripError
from gvpo.model import lora
from gvpo.model.merge import merge_adapter
from gvpo.model.model import load_model, next_logprobs, save_model
from gvpo.model.round_trip import LOGPROB_TOLERANCE, token_ids
from gvpo.model.tokenizer import load_tokenizer
from tests.fakes import byte_tokenizer, tiny_model
from tests.model.test_lora import TARGETS, config, move

IDS = [5, 9, 30, 7, 7, 12]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*tie_word_embeddings",
    "ignore:.*tied",
    "ignore:.*no tied modules were found",
    "ignore:.*lora_bias=True. was passed",
)  # peft, of tied ends


def stored(path, name="attention", kind="llama", **changes):
    """Save a trained adapter in `path / "adapter"`, its base in `path / "base"`, and return its log-probs."""
    save_model(tiny_model(kind), byte_tokenizer(), path / "base")
    model = load_model(path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GvpoWarning)
        lora.add_adapter(model, config(name, **changes))
    save_model(move(model), byte_tokenizer(), path / "adapter")
    return next_logprobs(model, IDS)


@pytest.mark.filterwarnings("ignore::gvpo.errors.GvpoWarning")
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("name", TARGETS)
def test_the_merged_model_equals_base_and_adapter(name, kind, tmp_path):
    """Llama's embeddings are separate, Qwen2's are tied. There an adapter on one of them unties them."""
    want = stored(tmp_path, name, kind)
    assert merge_adapter(tmp_path / "adapter", tmp_path / "out") == tmp_path / "out"
    whole = load_model(tmp_path / "out")
    assert not lora.is_adapted(whole)
    difference = (next_logprobs(whole, IDS) - want).abs().max()
    assert difference < LOGPROB_TOLERANCE
    assert (next_logprobs(load_model(tmp_path / "base"), IDS) - want).abs().max() > 100 * LOGPROB_TOLERANCE
    assert load_tokenizer(tmp_path / "out")("2+2").input_ids == byte_tokenizer()("2+2").input_ids


def test_the_merged_model_may_go_to_an_empty_working_directory(tmp_path, monkeypatch):
    stored(tmp_path)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    merge_adapter(tmp_path / "adapter", ".")
    assert load_model(tmp_path / "out")
    assert not list(tmp_path.glob(".*"))


def test_experts_are_merged(tmp_path):
    want = stored(tmp_path, kind="qwen3_moe", target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
    merge_adapter(tmp_path / "adapter", tmp_path / "out")
    assert (next_logprobs(load_model(tmp_path / "out"), IDS) - want).abs().max() < LOGPROB_TOLERANCE


def test_the_base_may_have_moved(tmp_path):
    want = stored(tmp_path)
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"no directory .*base"):
        merge_adapter(tmp_path / "adapter", tmp_path / "out")
    merge_adapter(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "elsewhere")
    assert (next_logprobs(load_model(tmp_path / "out"), IDS) - want).abs().max() < LOGPROB_TOLERANCE


def test_a_wrong_merge_is_found(tmp_path, monkeypatch):
    stored(tmp_path)
    monkeypatch.setattr("peft.tuners.lora.layer.Linear.merge", lambda self, **_: None)
    with pytest.raises(
        RoundTripError, match=r"other log-probs than base and adapter, by up to .*; no files were written"
    ):
        merge_adapter(tmp_path / "adapter", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


def test_a_merge_that_cannot_be_written_leaves_no_files(tmp_path, monkeypatch):
    stored(tmp_path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(ModelError, match="No space left on device"):
        merge_adapter(tmp_path / "adapter", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_bias": True}, "cannot be merged: .* base layer has no bias; use the adapter itself"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "repeats layers, which share weights and cannot be merged"),
    ],
    ids=str,
)
def test_adapters_without_a_merged_form_are_rejected(tmp_path, changes, message):
    stored(tmp_path, **changes)
    with pytest.raises(ModelError, match=message):
        merge_adapter(tmp_path / "adapter", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


def test_the_noise_of_float32_is_measured(tmp_path):
    """The model's weights are so large that rounding exceeds the fixed tolerance."""
    save_model(tiny_model("llama"), byte_tokenizer(), tmp_path / "base")
    model = load_model(tmp_path / "base")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name or "lm_head" in name:
                parameter.mul_(30.0)
    save_model(model, byte_tokenizer(), tmp_path / "base")
    lora.add_adapter(model, config("all linear"))
    want = next_logprobs(move(model), IDS)
    save_model(model, byte_tokenizer(), tmp_path / "adapter")
    difference = (next_logprobs(load_model(merge_adapter(tmp_path / "adapter", tmp_path / "out")), IDS) - want).abs()
    assert difference.max() > LOGPROB_TOLERANCE


SMOLLM2 = Path(os.environ.get("GVPO_TEST_SMOLLM2", ""))


@pytest.mark.slow
@pytest.mark.skipif(not (SMOLLM2 / "config.json").is_file(), reason="GVPO_TEST_SMOLLM2 names no SmolLM2-135M-Instruct")
def test_a_real_model_is_merged(tmp_path):
    """Compare log-probs of ordinary text up to 1e-3 nats, which is rounding, and greedy tokens exactly."""
    model = load_model(SMOLLM2)
    lora.add_adapter(model, config("all linear", r=16, lora_alpha=32))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in lora.trainable(model):
            parameter.copy_(0.01 * torch.randn(parameter.shape, generator=generator))
    tokenizer = load_tokenizer(SMOLLM2)
    save_model(model, tokenizer, tmp_path / "adapter")
    whole = load_model(merge_adapter(tmp_path / "adapter", tmp_path / "out"))
    ids = token_ids(tokenizer)
    want = next_logprobs(model, ids)
    with lora.adapter_off(model):
        assert (next_logprobs(model, ids) - want).abs().max() > 0.1
    assert (next_logprobs(whole, ids) - want).abs().max() < 1e-3
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    greedy = [each.eval().generate(**prompt, max_new_tokens=20, do_sample=False).tolist() for each in (model, whole)]
    assert greedy[0] == greedy[1]


def test_errors_of_merges_are_one_line(tmp_path):
    stored(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    with pytest.raises(ModelError, match="taken is not empty; give a new directory"):
        merge_adapter(tmp_path / "adapter", tmp_path / "taken")
    with pytest.raises(ModelError, match="is an adapter too; give a complete model as base"):
        merge_adapter(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "adapter")
    with pytest.raises(ModelError, match="there is no adapter in"):
        merge_adapter(tmp_path / "base", tmp_path / "out")
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": ""}))
    with pytest.raises(ModelError, match="does not name its base model; give it with --base"):
        merge_adapter(tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()
