"""Tests of hidden states as features: the layer, the token, and independence of the batch."""

import numpy as np
import pytest
import torch

from gvpo.errors import ConfigError, GvpoWarning, ModelError
from gvpo.model.fingerprints import fingerprint
from gvpo.model.hidden_states import hidden_states, resolve_layer
from gvpo.model.model import load_model, save_model
from gvpo.probe.hidden import HiddenFeatures
from tests.fakes import CHAT_TEMPLATE, byte_tokenizer, tiny_model

PROMPTS = ["2+2=", "name a colour: ", "2+2="]
TEXTS = ["4", "blue, or green", ""]


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", num_hidden_layers=3)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def states_of(model, ids):
    """Compute every layer's states of one row with a plain forward in eval mode."""
    with torch.no_grad():
        output = model.eval()(torch.tensor([ids]), output_hidden_states=True)
    return [layer[0].numpy() for layer in output.hidden_states]


def ids_of(tokenizer, prompt, text):
    return [*tokenizer(prompt).input_ids, *tokenizer(text, add_special_tokens=False).input_ids]


@pytest.mark.parametrize("layer", [0, 1, 2, 3, -1, -4])
def test_the_last_token_of_a_layer(model, tokenizer, layer):
    found = HiddenFeatures(model, tokenizer, layer=layer)(PROMPTS, TEXTS)
    for row, prompt, text in zip(found, PROMPTS, TEXTS, strict=True):
        assert row == pytest.approx(states_of(model, ids_of(tokenizer, prompt, text))[layer][-1], abs=1e-4)


def test_the_mean_over_the_completion_and_the_end_token(model, tokenizer):
    mean, end = (HiddenFeatures(model, tokenizer, layer=2, token=token)(PROMPTS, TEXTS) for token in ("mean", "end"))
    for row, (prompt, text) in enumerate(zip(PROMPTS, TEXTS, strict=True)):
        ids = ids_of(tokenizer, prompt, text)
        own = states_of(model, ids)[2][-len(text) or -1 :]  # a byte a token; without any, the prompt's last
        assert mean[row] == pytest.approx(own.mean(0), abs=1e-4)
        assert end[row] == pytest.approx(states_of(model, [*ids, tokenizer.eos_token_id])[2][-1], abs=1e-4)


@pytest.mark.parametrize("kind", ["qwen2", "gemma3", "qwen3_moe", "lfm2"])
def test_the_batch_does_not_matter(tokenizer, kind):
    model = tiny_model(kind)
    alone, together = (
        HiddenFeatures(model, tokenizer, tokens_per_batch=budget)(PROMPTS, TEXTS) for budget in (1, 1000)
    )
    assert together == pytest.approx(alone, abs=2e-4)


def test_the_default_layer_is_at_the_papers_depth(tokenizer):
    assert HiddenFeatures(tiny_model("llama", num_hidden_layers=32, vocab_size=259), tokenizer).layer == 26
    assert HiddenFeatures(tiny_model("llama", num_hidden_layers=2), tokenizer).layer == 2


def test_chat_prompts_go_through_the_template(model):
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    messages = [{"role": "user", "content": "hi"}]
    found = HiddenFeatures(model, tokenizer, layer=1)([messages, "hi"], ["yes", "yes"])
    text = "<bos>[user]hi\n[assistant]yes"
    assert found[0] == pytest.approx(
        states_of(model, tokenizer(text, add_special_tokens=False).input_ids)[1][-1], abs=1e-4
    )
    assert np.array_equal(found[0], found[1])


def test_a_text_over_the_context_is_truncated_at_its_beginning(tokenizer):
    model = tiny_model("llama", max_position_embeddings=8)
    features = HiddenFeatures(model, tokenizer, layer=1)
    with pytest.warns(GvpoWarning, match="1 of 2 texts are longer than the model's context of 8 tokens"):
        found = features(["a long prompt ", "a"], ["the end", "b"])
    assert found[0] == pytest.approx(states_of(model, list(tokenizer(" the end").input_ids))[1][-1], abs=1e-4)


def test_dropout_is_off_and_the_mode_is_kept(tokenizer):
    model = tiny_model("llama", attention_dropout=0.5).train()
    one, other = (HiddenFeatures(model, tokenizer)(PROMPTS, TEXTS) for _ in range(2))
    assert np.array_equal(one, other)
    assert model.training
    assert model.config.attention_dropout == 0.5


def test_the_name_changes_with_what_changes_features(tmp_path, tokenizer):
    model = tiny_model("llama")
    save_model(model, tokenizer, tmp_path / "somewhere")
    moved = load_model(tmp_path / "somewhere")
    assert fingerprint(moved, tokenizer) == fingerprint(model, tokenizer)
    others = [
        fingerprint(tiny_model("llama", seed=1), tokenizer),
        fingerprint(tiny_model("llama", rope_theta=5000.0), tokenizer),
        fingerprint(model, byte_tokenizer(CHAT_TEMPLATE)),
    ]
    assert len({fingerprint(model, tokenizer), *others}) == 4
    names = {
        HiddenFeatures(model, tokenizer, layer=layer, token=token).name for layer in (1, 2) for token in ("last", "end")
    }
    assert len(names) == 4


def test_error_explains_invalid_layers_and_tokens(model, tokenizer):
    with pytest.raises(ConfigError, match=r"layer 4 does not exist: this model has 0 \(embeddings\) to 3"):
        resolve_layer(model, 4)
    with pytest.raises(ConfigError, match="layer -5 does not exist"):
        HiddenFeatures(model, tokenizer, layer=-5)
    with pytest.raises(ConfigError, match="token is 'first'; use 'last', 'mean' or 'end'"):
        HiddenFeatures(model, tokenizer, token="first")
    with pytest.raises(ModelError, match="has token 259 and the model's vocabulary is 259"):
        hidden_states(model, [[1, 259]], 1)
    endless = byte_tokenizer()
    endless.eos_token = None
    with pytest.raises(ConfigError, match="the tokenizer has no end token"):
        HiddenFeatures(tiny_model(eos_token_id=None), endless, token="end")
