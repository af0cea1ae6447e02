"""Tests that PEFT, with an adapter on the base that it names, builds the model in memory, before training."""

import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from gvpo.errors import GvpoWarning, RoundTripError
from gvpo.model import lora
from gvpo.model.fingerprints import base_fingerprint
from gvpo.model.merge import merge_adapter
from gvpo.model.model import load_model, next_logprobs, save_model
from gvpo.model.round_trip import rehearse_adapter, verify_round_trip, warn_of_nameless_base
from tests.fakes import byte_tokenizer, tiny_model
from tests.model.test_lora import TARGETS, config, move

IDS = [5, 9, 30, 7, 7, 12]
pytestmark = pytest.mark.filterwarnings(
    "ignore::gvpo.errors.GvpoWarning", "ignore:.*tie", "ignore:.*no tied modules were found"
)


def base(path: Path, kind: str = "llama", **kwargs):
    """Save a base and load it as a user does."""
    save_model(tiny_model(kind), byte_tokenizer(), path / "base")
    return AutoModelForCausalLM.from_pretrained(path / "base", **{"dtype": torch.float32, **kwargs})


def loaded(model, directory: Path, dtype=torch.float32):
    """Yield the ways in which a user loads an adapter, with the resulting models."""
    named = json.loads((directory / "adapter_config.json").read_text())["base_model_name_or_path"]
    whole = AutoModelForCausalLM.from_pretrained(named, dtype=dtype)
    yield "PeftModel", peft.PeftModel.from_pretrained(whole, str(directory)).get_base_model()
    yield "AutoPeft", peft.AutoPeftModelForCausalLM.from_pretrained(str(directory), dtype=dtype).get_base_model()
    yield "gvpo", load_model(directory, dtype=dtype)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("name", TARGETS)
def test_every_way_of_loading_gives_the_model_in_memory(name, kind, tmp_path):
    """Llama's embeddings are separate, Qwen2's are tied."""
    model = base(tmp_path, kind)
    lora.add_adapter(model, config(name))
    start = {key: value.clone() for key, value in model.state_dict().items()}
    rehearse_adapter(model, byte_tokenizer())
    assert all(torch.equal(value, start[key]) for key, value in model.state_dict().items())  # restored
    save_model(move(model), byte_tokenizer(), tmp_path / "adapter")
    verify_round_trip(model, byte_tokenizer(), tmp_path / "adapter")
    want = next_logprobs(model.eval(), IDS)
    for way, found in loaded(model, tmp_path / "adapter"):
        assert torch.equal(next_logprobs(found.eval(), IDS), want), way


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"init_lora_weights": "pissa"}),
        ("llama", {"init_lora_weights": "olora"}),
        ("llama", {"layers_to_transform": [1]}),
        ("llama", {"layer_replication": [[0, 2], [1, 2]]}),
        ("llama", {"modules_to_save": ["norm"]}),
        ("llama", {"task_type": None}),
        ("qwen3_moe", {"target_parameters": ["mlp.experts.gate_up_proj"]}),
    ],
    ids=str,
)
def test_other_kinds_of_adapters_survive(kind, changes, tmp_path):
    model = base(tmp_path, kind)
    lora.add_adapter(model, config(**changes))
    rehearse_adapter(model, byte_tokenizer())
    save_model(move(model), byte_tokenizer(), tmp_path / "adapter")
    want = next_logprobs(model.eval(), IDS)
    for way, found in loaded(model, tmp_path / "adapter"):
        assert (next_logprobs(found.eval(), IDS) - want).abs().max() < 1e-4, way


def resized(model):
    model.resize_token_embeddings(261)


def padded(model):
    model.resize_token_embeddings(320)


@torch.no_grad()
def edited(model):
    model.model.layers[0].mlp.up_proj.weight[3] += 0.01


@torch.no_grad()
def new_row(model):
    """Change one row of the embedding, which may occur in no text."""
    model.model.embed_tokens.weight[200] += 0.5


def rounded(model):
    model.to(torch.bfloat16).to(torch.float32)


def cast(model):
    model.to(torch.bfloat16)


def rotated(model):
    """Change a buffer, which is not a weight and in no file."""
    model.model.rotary_emb.inv_freq *= 0.5


def merged(model):
    peft.get_peft_model(model, config(init_lora_weights=False)).merge_and_unload()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (resized, r"has 259 tokens and the model in memory 261.*save_pretrained"),
        (padded, r"has 259 tokens and the model in memory 320.*save_pretrained"),
        (
            edited,
            r"in memory is not .*base, .* model\.layers\.0\.mlp\.up_proj\.weight differs; save the model in memory",
        ),
        (new_row, r"model\.embed_tokens\.weight differs; save"),
        (rounded, r"model\.embed_tokens\.weight differs; save"),
        (cast, r"cast to bfloat16, its model\.rotary_emb\.inv_freq too.*from_pretrained\(\.\.\., dtype=\.\.\.\)"),
        (rotated, r"model\.rotary_emb\.inv_freq differs; save"),
        (merged, r"model\.layers\.0\.self_attn\.q_proj\.weight differs; save"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
@pytest.mark.parametrize("changes", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}], ids=["plain", "saved ends"])
def test_a_base_that_was_changed_in_memory_is_rejected_before_training(change, message, changes, tmp_path):
    model = base(tmp_path)
    change(model)
    lora.add_adapter(model, config(**changes))
    with pytest.raises(RoundTripError, match=message) as error:
        rehearse_adapter(model, byte_tokenizer())
    assert "\n" not in str(error.value)


def test_the_suggested_fix_works(tmp_path):
    model = base(tmp_path)
    resized(model)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<x>", "<y>"])
    save_model(model, tokenizer, tmp_path / "resized")
    again = load_model(tmp_path / "resized")
    lora.add_adapter(again, config(modules_to_save=["embed_tokens", "lm_head"]))
    rehearse_adapter(again, tokenizer)
    save_model(move(again), tokenizer, tmp_path / "adapter")
    want = next_logprobs(again.eval(), [5, 259, 260])
    for way, found in loaded(again, tmp_path / "adapter"):
        assert torch.equal(next_logprobs(found.eval(), [5, 259, 260]), want), way
    whole = load_model(merge_adapter(tmp_path / "adapter", tmp_path / "out"))
    assert (next_logprobs(whole, [5, 259, 260]) - want).abs().max() < 1e-4


def test_saved_modules_on_a_base_in_half_precision_are_rounded(tmp_path):
    model = base(tmp_path, dtype=torch.bfloat16)
    lora.add_adapter(model, config(modules_to_save=["lm_head", "embed_tokens"]))
    rehearse_adapter(model, byte_tokenizer())


def test_a_base_in_half_precision_must_load_in_it(tmp_path):
    model = base(tmp_path, dtype=torch.bfloat16)
    lora.add_adapter(model, config())
    rehearse_adapter(model, byte_tokenizer())
    save_model(move(model), byte_tokenizer(), tmp_path / "adapter")
    want = next_logprobs(model.eval(), IDS)
    for way, found in loaded(model, tmp_path / "adapter", torch.bfloat16):
        assert torch.equal(next_logprobs(found.eval(), IDS), want), way


def test_a_start_that_peft_does_not_repeat_is_rejected(tmp_path):
    model = base(tmp_path)
    lora.add_adapter(model, config(init_lora_weights="pissa_niter_4"))
    with pytest.raises(
        RoundTripError, match=r"init_lora_weights='pissa_niter_4' changes the base model, and PEFT does"
    ):
        rehearse_adapter(model, byte_tokenizer())


def test_one_of_several_adapters_is_saved_with_the_name_of_its_base(tmp_path):
    whole = peft.get_peft_model(base(tmp_path), config(init_lora_weights=False))
    whole.add_adapter("other", config(target_modules=["v_proj"]))
    whole.set_adapter("other")
    model = lora.unwrapped(whole)
    rehearse_adapter(model, byte_tokenizer())
    save_model(move(model), byte_tokenizer(), tmp_path / "adapter")
    want = next_logprobs(model.eval(), IDS)
    for way, found in loaded(model, tmp_path / "adapter"):
        assert torch.equal(next_logprobs(found.eval(), IDS), want), way


def test_the_error_names_a_base_that_does_not_load(tmp_path):
    model = base(tmp_path)
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    lora.add_adapter(model, config())
    with pytest.raises(
        RoundTripError, match=r"would name a base model that does not load: there is no directory .*base"
    ):
        rehearse_adapter(model, byte_tokenizer())


def test_a_relative_base_is_found_from_any_directory(tmp_path, monkeypatch):
    base(tmp_path)
    monkeypatch.chdir(tmp_path)
    model = load_model("base")
    lora.add_adapter(model, config())
    save_model(move(model), byte_tokenizer(), tmp_path / "adapter")
    monkeypatch.chdir("/")
    for way, found in loaded(model, tmp_path / "adapter"):
        assert torch.equal(next_logprobs(found.eval(), IDS), next_logprobs(model.eval(), IDS)), way


def test_the_revision_of_a_base_on_the_hub_is_loaded(tmp_path, monkeypatch):
    """Create a cache with two revisions of one model, in the layout of the Hub's own library."""
    for revision, seed in (("a" * 40, 0), ("b" * 40, 1)):
        tiny_model("llama", seed=seed).save_pretrained(tmp_path / "models--me--base/snapshots" / revision)
    (tmp_path / "models--me--base/refs").mkdir()
    (tmp_path / "models--me--base/refs/main").write_text("b" * 40)
    for name, value in (("HF_HUB_CACHE", str(tmp_path)), ("HF_HUB_OFFLINE", True)):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    model = AutoModelForCausalLM.from_pretrained("me/base", revision="a" * 40, dtype=torch.float32)
    lora.add_adapter(model, config())
    with pytest.raises(RoundTripError, match=r"differs; .* or give the revision .* LoraConfig\(revision=\.\.\.\)"):
        rehearse_adapter(model, byte_tokenizer())
    model = AutoModelForCausalLM.from_pretrained("me/base", revision="a" * 40, dtype=torch.float32)
    lora.add_adapter(model, config(revision="a" * 40))
    rehearse_adapter(model, byte_tokenizer())
    save_model(move(model), byte_tokenizer(), tmp_path / "adapter")
    want = next_logprobs(model.eval(), IDS)
    assert torch.equal(next_logprobs(load_model(tmp_path / "adapter").eval(), IDS), want)
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"), dtype=torch.float32)
    assert torch.equal(next_logprobs(theirs.get_base_model().eval(), IDS), want)


def test_the_commit_of_a_base_on_the_hub_is_recorded(tmp_path, monkeypatch):
    """The latest revision changes later, and an adapter still names the one that it was trained on."""
    for revision, seed in (("a" * 40, 0), ("b" * 40, 1)):
        tiny_model("llama", seed=seed).save_pretrained(tmp_path / "models--me--base/snapshots" / revision)
    (tmp_path / "models--me--base/refs").mkdir()
    main = tmp_path / "models--me--base/refs/main"
    main.write_text("a" * 40)
    for name, value in (("HF_HUB_CACHE", str(tmp_path)), ("HF_HUB_OFFLINE", True)):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    model = load_model("me/base")
    lora.add_adapter(model, config())
    save_model(move(model), byte_tokenizer(), tmp_path / "adapter")
    assert lora.base_of(tmp_path / "adapter") == ("me/base", "a" * 40)
    assert lora.adapter_of(model).revision == "a" * 40
    main.write_text("b" * 40)
    verify_round_trip(model, byte_tokenizer(), tmp_path / "adapter")
    want = next_logprobs(model.eval(), IDS)
    assert torch.equal(next_logprobs(load_model(tmp_path / "adapter").eval(), IDS), want)
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"), dtype=torch.float32)
    assert torch.equal(next_logprobs(theirs.get_base_model().eval(), IDS), want)


@pytest.mark.filterwarnings("error:the weight files")
def test_loading_an_adapter_warns_if_its_base_changed_on_disk(tmp_path):
    model = base(tmp_path)
    lora.add_adapter(model, config())
    save_model(tiny_model("llama", seed=1), byte_tokenizer(), tmp_path / "base")  # after loading, so it is not recorded
    save_model(move(model), byte_tokenizer(), tmp_path / "adapter")
    with pytest.warns(GvpoWarning, match="are not those that the adapter in .* was trained on"):
        load_model(tmp_path / "adapter")
    with pytest.warns(GvpoWarning, match="are not those that the adapter in .* was trained on"):
        merge_adapter(tmp_path / "adapter", tmp_path / "out")
    save_model(tiny_model("llama"), byte_tokenizer(), tmp_path / "elsewhere")
    merge_adapter(tmp_path / "adapter", tmp_path / "moved", base=tmp_path / "elsewhere")  # same weights, no warning
    save_model(tiny_model("llama"), byte_tokenizer(), tmp_path / "base")
    again = load_model(tmp_path / "adapter")
    save_model(again, byte_tokenizer(), tmp_path / "again")
    load_model(tmp_path / "again")


def test_a_base_without_a_name_gives_a_warning():
    model = tiny_model("llama")
    warn_of_nameless_base(model)  # no adapter
    lora.add_adapter(model, config())
    with pytest.warns(GvpoWarning, match="was not loaded from anywhere, so its adapter cannot name it"):
        warn_of_nameless_base(model)


def test_a_fingerprint_covers_only_the_base(tmp_path):
    def fingerprint(change=None, **changes):
        model = base(tmp_path)
        if change is not None:
            change(model)
        lora.add_adapter(model, config(**changes))
        return model, base_fingerprint(model)

    model, plain = fingerprint()
    assert base_fingerprint(move(model)) == plain
    assert fingerprint(edited)[1] != plain
    assert fingerprint(new_row)[1] != plain
    assert fingerprint(resized)[1] != plain
    assert base_fingerprint(tiny_model("llama")) == ""
