"""An adapter merged into its base: the same log-probs, in a directory like any other model's."""

import json
import warnings

import pytest

from gvpo.errors import GvpoWarning, ModelError, RoundTripError
from gvpo.policy import lora
from gvpo.policy.merge import merge_adapter
from gvpo.policy.model import LOGPROB_TOLERANCE, load_model, next_logprobs, save_model
from gvpo.policy.tokenizer import load_tokenizer
from tests.fakes import byte_tokenizer, tiny_model
from tests.policy.test_lora import TARGETS, config, move

IDS = [5, 9, 30, 7, 7, 12]
pytestmark = pytest.mark.filterwarnings("ignore:.*tie_word_embeddings", "ignore:.*tied")  # peft, of tied ends


def stored(path, name="attention", kind="llama", **changes):
    """A trained adapter in `path / "adapter"`, its base in `path / "base"`; and its log-probs."""
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
def test_the_merged_model_is_base_and_adapter(name, kind, tmp_path):
    """Llama's ends are apart, Qwen2's are tied: there an adapter on one of them unties them."""
    want = stored(tmp_path, name, kind)
    assert merge_adapter(tmp_path / "adapter", tmp_path / "out") == tmp_path / "out"
    whole = load_model(tmp_path / "out")
    assert not lora.is_adapted(whole)
    difference = (next_logprobs(whole, IDS) - want).abs().max()
    assert difference < LOGPROB_TOLERANCE
    assert (next_logprobs(load_model(tmp_path / "base"), IDS) - want).abs().max() > 100 * LOGPROB_TOLERANCE
    assert load_tokenizer(tmp_path / "out")("2+2").input_ids == byte_tokenizer()("2+2").input_ids


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


def test_a_merge_that_went_wrong_is_found(tmp_path, monkeypatch):
    stored(tmp_path)
    monkeypatch.setattr("peft.tuners.lora.layer.Linear.merge", lambda self, **_: None)
    with pytest.raises(RoundTripError, match="gives other log-probs, by up to"):
        merge_adapter(tmp_path / "adapter", tmp_path / "out")


def test_what_cannot_be_merged_is_one_line(tmp_path):
    stored(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    with pytest.raises(ModelError, match="taken is taken; give a new directory"):
        merge_adapter(tmp_path / "adapter", tmp_path / "taken")
    with pytest.raises(ModelError, match="is an adapter, too; give a whole model as base"):
        merge_adapter(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "adapter")
    with pytest.raises(ModelError, match="there is no adapter in"):
        merge_adapter(tmp_path / "base", tmp_path / "out")
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": ""}))
    with pytest.raises(ModelError, match="does not name its base model; give it with --base"):
        merge_adapter(tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()
