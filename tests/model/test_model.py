"""Tests of models: loading, random ones, saving, round trips, and disabled noise."""

import functools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gvpo.errors import ModelError, RoundTripError
from gvpo.model.model import load_model, no_dropout, save_model
from gvpo.model.round_trip import verify_round_trip
from gvpo.model.tokenizer import TokenizerWarning, load_tokenizer
from tests.fakes import CHAT_TEMPLATE, CONFIGS, MIXTURES, RECURRENT, byte_tokenizer, tiny_model

INIT = {
    "architecture": "qwen2",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
IDS = torch.tensor([[5, 9, 30, 7, 7, 12]])


def logits(model):
    with torch.no_grad(), no_dropout(model):
        return model(input_ids=IDS).logits


# load and save


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_saved_model_can_be_loaded(kind, tmp_path):
    model = tiny_model(kind)
    save_model(model, byte_tokenizer(), tmp_path)
    torch.testing.assert_close(logits(load_model(tmp_path)), logits(model), atol=1e-6, rtol=0)
    assert {path.name for path in tmp_path.iterdir()} >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    }


def test_a_bfloat16_checkpoint_loads_as_float32(tmp_path):
    model = tiny_model("qwen2", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight.float())


def test_the_attention_implementation_is_the_requested_one(tmp_path):
    tiny_model("qwen2").save_pretrained(tmp_path)
    assert load_model(tmp_path, attention="eager").config._attn_implementation == "eager"
    assert load_model(tmp_path).config._attn_implementation == "sdpa"


def test_several_end_tokens_survive_saving(tmp_path):
    model = tiny_model("qwen2")
    model.generation_config.eos_token_id = [1, 7]
    save_model(model, None, tmp_path)
    assert load_model(tmp_path).generation_config.eos_token_id == [1, 7]


def test_the_error_names_a_directory_without_a_model(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_model(tmp_path)


def test_the_error_for_a_missing_model_suggests_a_fix(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"there is no directory .*missing' to load a model from; check the path"):
        load_model(tmp_path / "missing")


def test_the_error_names_a_directory_without_weights(tmp_path):
    CONFIGS["qwen2"].save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"cannot load the model in .*no file named model.safetensors"):
        load_model(tmp_path)


def test_missing_weights_are_an_error_and_not_random(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights .*lm_head\.weight"):
        load_model(tmp_path)


def test_the_error_names_a_model_that_generates_no_text(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ModelError, match="is not a causal language model; give a decoder"):
        load_model(tmp_path)


# randomly initialized models


def test_the_seed_determines_a_random_model_and_torch_generators_are_unchanged():
    before = torch.get_rng_state()
    one, same, other = (load_model(init=INIT, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(logits(one), logits(same))
    assert not torch.equal(logits(one), logits(other))
    assert {parameter.dtype for parameter in one.parameters()} == {torch.float32}


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen3", "gpt2"])
def test_a_random_model_has_no_token_ids_of_another_tokenizer(architecture):
    """Llama's default config says that token 2 ends a text; in the user's tokenizer it may be a digit."""
    init = {"architecture": architecture, "vocab_size": 40, "num_hidden_layers": 1}
    sizes = {"hidden_size": 16, "num_attention_heads": 2}
    model = load_model(init=init | sizes)
    assert (model.config.eos_token_id, model.generation_config.eos_token_id) == (None, None)
    assert load_model(init=init | sizes | {"eos_token_id": 7}).generation_config.eos_token_id == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "qwen22"}, "did you mean 'qwen2'"),
        ({"architecture": "vit"}, "is not a causal language model"),
        ({"hiden_size": 8}, "init.hiden_size .* did you mean 'hidden_size'"),
        ({"hidden_size": "wide"}, "not a valid qwen2 config"),
    ],
)
def test_the_error_names_an_invalid_init(change, message):
    with pytest.raises(ModelError, match=message):
        load_model(init=INIT | change)


def test_path_and_init_exclude_each_other(tmp_path):
    with pytest.raises(ModelError, match="not both"):
        load_model(tmp_path, init=INIT)
    with pytest.raises(ModelError, match="or none"):
        load_model()


# round trips


def test_a_custom_tokenizer_of_a_qwen2_model_survives(tmp_path):
    model, tokenizer = tiny_model("qwen2"), byte_tokenizer(CHAT_TEMPLATE)
    save_model(model, tokenizer, tmp_path)
    with pytest.warns(TokenizerWarning):
        verify_round_trip(model, tokenizer, tmp_path, ["12+34=46", "cafe\u0301"])
    assert model.training


def test_changed_weights_are_rejected(tmp_path):
    model, tokenizer = tiny_model("llama"), byte_tokenizer()
    save_model(model, tokenizer, tmp_path)
    with torch.no_grad():
        model.lm_head.weight[9] += 1e-2
    with pytest.raises(RoundTripError, match="other log-probs"):
        verify_round_trip(model, tokenizer, tmp_path, ["12+34=46"])
    verify_round_trip(None, tokenizer, tmp_path, ["12+34=46"])


class Lowering(type(byte_tokenizer())):
    """A user's subclass, whose Python code is not in the files that it saves."""

    def _encode_plus(self, text, *args, **kwargs):
        return super()._encode_plus(text.lower(), *args, **kwargs)


def test_the_error_names_a_tokenizer_that_cannot_be_saved(tmp_path):
    tokenizer = Lowering(tokenizer_object=byte_tokenizer().backend_tokenizer, eos_token="<eos>", pad_token="<pad>")
    save_model(tiny_model("llama"), tokenizer, tmp_path)
    with pytest.raises(RoundTripError, match=r"changes when it is loaded again: .*gives \d+ tokens"):
        verify_round_trip(None, tokenizer, tmp_path)


def test_a_difference_only_on_real_texts_is_found(tmp_path):
    tokenizer = byte_tokenizer()
    save_model(tiny_model("llama"), tokenizer, tmp_path)
    tokenizer.add_tokens(["zebra"])
    verify_round_trip(None, tokenizer, tmp_path, ["no such animal"])
    with pytest.raises(RoundTripError, match="zebra"):
        verify_round_trip(None, tokenizer, tmp_path, ["a zebra"])


def test_saved_files_load_with_the_tokenizer_loader(tmp_path):
    save_model(tiny_model("llama"), byte_tokenizer(), tmp_path)
    assert load_tokenizer(tmp_path)("12+34").input_ids == byte_tokenizer()("12+34").input_ids


def test_errors_of_saving_are_model_errors(tmp_path):
    file = tmp_path / "taken"
    file.write_text("")
    with pytest.raises(ModelError, match="cannot save the model"):
        save_model(tiny_model("qwen2"), byte_tokenizer(), file / "below")


# noise


def test_no_dropout_makes_forwards_repeatable_and_restores_values():
    model = tiny_model("qwen2", attention_dropout=0.5).train()
    with torch.no_grad():
        noisy = [model(input_ids=IDS).logits for _ in range(2)]
        with no_dropout(model):
            assert model.training
            silent = [model(input_ids=IDS).logits for _ in range(2)]
    assert not torch.equal(*noisy)
    assert torch.equal(*silent)
    assert torch.equal(silent[0], logits(tiny_model("qwen2")))
    assert [layer.self_attn.attention_dropout for layer in model.model.layers] == [0.5, 0.5]
    assert model.config.attention_dropout == 0.5


def test_no_dropout_covers_modules_and_configs_read_in_each_forward():
    """GPT-2 has dropout modules; Falcon reads `config.hidden_dropout` in each forward."""
    gpt2 = load_model(init={"architecture": "gpt2", "vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2}).train()
    small = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    falcon = load_model(init={"architecture": "falcon", "hidden_dropout": 0.5, **small}).train()
    for model in (gpt2, falcon):
        with torch.no_grad():
            assert not torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)
        assert torch.equal(logits(model), logits(model))
    assert gpt2.transformer.drop.p == 0.1
    assert falcon.config.hidden_dropout == 0.5


def phimoe(**config):
    """PhiMoE, in whose router the size of the jitter is also part of evaluation."""
    small = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.3, "input_jitter_noise": 0.1}
    return load_model(
        init={"architecture": "phimoe", "vocab_size": 40, "num_hidden_layers": 2, **small, **experts, **config}
    )


def dbrx():
    attention = {"kv_n_heads": 2, "rope_theta": 10_000.0, "attn_pdrop": 0.0, "clip_qkv": 8.0}
    experts = {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "moe_jitter_eps": 0.3}
    size = {"vocab_size": 40, "d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 64, "resid_pdrop": 0.2}
    return load_model(init={"architecture": "dbrx", "attn_config": attention, "ffn_config": experts, **size})


ARCHITECTURES = {kind: functools.partial(tiny_model, kind) for kind in {**CONFIGS, **RECURRENT, **MIXTURES}}
ARCHITECTURES |= {
    "phimoe": phimoe,
    "dbrx": dbrx,
    "phimoe with dropout": functools.partial(phimoe, attention_dropout=0.5),
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_no_dropout_gives_train_mode_the_logits_of_eval_mode_and_changes_nothing_in_eval_mode(kind):
    model = ARCHITECTURES[kind]()
    with torch.no_grad():
        expected = model.eval()(input_ids=IDS).logits
    assert torch.equal(logits(model.eval()), expected)
    model.train()
    before = [(module, module.training, dict(vars(module))) for module in model.modules()]
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model), expected)
    for module, training, attributes in before:
        assert module.training is training
        assert vars(module).keys() == attributes.keys()


def test_phimoes_jitter_affects_its_evaluation():
    """A model whose jitter is set to 0 would therefore be another model."""
    with torch.no_grad():
        one, other = (phimoe(router_jitter_noise=size).eval()(input_ids=IDS).logits for size in (0.3, 0.0))
    assert not torch.equal(one, other)


def test_values_are_restored_after_an_error():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3))

    with pytest.raises(KeyError, match=r"0\.0"), no_dropout(module):
        raise KeyError(module[1].p)
    assert module[1].p == 0.3


def test_lora_dropout_is_an_error_with_a_remedy():
    layer = nn.Module()
    layer.lora_dropout = nn.ModuleDict({"default": nn.Dropout(0.05)})
    with pytest.raises(ModelError, match="lora_dropout=0"), no_dropout(nn.Sequential(layer)):
        pass
    layer.lora_dropout["default"].p = 0.0
    with no_dropout(nn.Sequential(layer)):
        pass
