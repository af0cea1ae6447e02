"""Tests of LoRA: exact gradients, a base that never changes, saved and loaded adapters, invalid settings."""

import functools
import warnings

import peft
import pytest
import torch
from peft.utils import ModulesToSaveWrapper

from gvpo.errors import GvpoWarning, ModelError, RoundTripError
from gvpo.model import adapter_kinds, lora
from gvpo.model.model import load_model, save_model
from gvpo.model.round_trip import verify_round_trip
from gvpo.objectives import gvpo
from gvpo.update.group_backward import group_backward, score
from tests.fakes import byte_tokenizer, tiny_model
from tests.naive import double_precision, gradients, naive_update, random_groups, relative_error

OBJECTIVE = functools.partial(gvpo, beta=0.1)
IDS = torch.tensor([[5, 9, 30, 7, 7, 12]])
GROUPS = ((7, (5, 9, 3)), (4, (6, 6)))
TARGETS = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "all linear": {"target_modules": "all-linear"},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "dora": {"target_modules": ["q_proj"], "use_dora": True},
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved ends": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "saved embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "saved and tied": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "some tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 9]},
    "biases": {"target_modules": ["q_proj"], "bias": "all"},
    "rank-stabilised": {"target_modules": ["q_proj"], "use_rslora": True},
}
pytestmark = pytest.mark.filterwarnings("ignore:.*no tied modules were found")  # Llama's embeddings are not tied


def config(name="attention", **changes):
    return peft.LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, **TARGETS[name], **changes})


def adapted(name="attention", *, kind="llama", moved=True, dtype=torch.float32, **changes):
    """Return a model with an adapter. `moved` also gives the half that starts at zero random values."""
    model = tiny_model(kind, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GvpoWarning)
        lora.add_adapter(model, config(name, **changes))
    return move(model) if moved else model


def move(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in lora.trainable(model):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter))
    return model


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("budget", [4096, 1])
@pytest.mark.parametrize("name", TARGETS)
def test_gradients_equal_those_of_the_naive_loop(name, budget):
    model = adapted(name, dtype=torch.float64)
    for _, parameter in lora.trainable(model):
        parameter.data = parameter.data.double()
    groups = random_groups(GROUPS)
    with double_precision(model):
        true = naive_update(model, groups, OBJECTIVE)
        found = group_backward(model, groups, OBJECTIVE, tokens_per_microbatch=budget)
    assert float(found.loss) == pytest.approx(float(true.loss), rel=1e-9)
    assert relative_error(gradients(model), true.gradients) < 1e-9
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize(
    "changes",
    [
        {"trainable_token_indices": [5, 9]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    ],
    ids=str,
)
def test_gradients_of_tied_embeddings_equal_those_of_the_naive_loop(changes):
    model = adapted(kind="qwen2", dtype=torch.float64, **changes)
    for _, parameter in lora.trainable(model):
        parameter.data = parameter.data.double()
    groups = random_groups(GROUPS)
    with double_precision(model):
        true = naive_update(model, groups, OBJECTIVE)
        group_backward(model, groups, OBJECTIVE)
    assert relative_error(gradients(model), true.gradients) < 1e-9


@pytest.mark.parametrize("wrapped", [False, True])
def test_activations_may_be_recomputed(wrapped):
    groups = random_groups(GROUPS)
    model = move(peft.get_peft_model(tiny_model("llama"), config())) if wrapped else adapted()
    true = naive_update(model, groups, OBJECTIVE)
    lora.unwrapped(model).gradient_checkpointing_enable({"use_reentrant": False})
    group_backward(model, groups, OBJECTIVE)
    assert relative_error(gradients(model), true.gradients) < 1e-5


def test_experts_may_be_trained_too():
    model = adapted("attention", kind="qwen3_moe", target_parameters=["mlp.experts.gate_up_proj"])
    groups = random_groups(GROUPS)
    true = naive_update(model, groups, OBJECTIVE)
    group_backward(model, groups, OBJECTIVE)
    assert any("experts" in name for name in true.gradients)
    assert relative_error(gradients(model), true.gradients) < 1e-4


def test_a_users_peft_model_works_in_the_update():
    groups = random_groups(GROUPS)
    whole = peft.get_peft_model(tiny_model("llama"), config())
    move(whole)
    inner = lora.unwrapped(whole)
    for one, two in zip(score(whole, groups), score(inner, groups), strict=True):
        assert torch.equal(one.logprobs, two.logprobs)
    true = naive_update(whole, groups, OBJECTIVE)
    group_backward(whole, groups, OBJECTIVE)
    assert relative_error(gradients(whole), true.gradients) < 1e-5
    assert whole.merge_and_unload() is inner
    assert not lora.is_adapted(inner)


def test_the_adapter_can_be_disabled_exactly_and_restored():
    for name in TARGETS:
        base = logits(tiny_model("llama"))
        model = adapted(name)
        trained, on = [n for n, _ in lora.trainable(model)], logits(model)
        assert not torch.equal(on, base)
        with lora.adapter_off(model):
            assert torch.equal(logits(model), base), name
        assert torch.equal(logits(model), on), name
        assert [n for n, _ in lora.trainable(model)] == trained


@pytest.mark.parametrize(
    ("changes", "neutral"),
    [
        ({}, True),
        ({"init_lora_weights": "gaussian"}, True),
        ({"modules_to_save": ["lm_head"]}, True),
        ({"target_modules": ["embed_tokens"]}, True),
        ({"init_lora_weights": False}, False),
        ({"init_lora_weights": "pissa"}, False),
        ({"use_dora": True}, False),
        ({"bias": "all"}, True),
    ],
    ids=str,
)
def test_only_neutral_fresh_adapters_change_nothing(changes, neutral):
    model = adapted(moved=False, **changes)
    assert adapter_kinds.is_at_base(model) is neutral
    move(model)
    assert not adapter_kinds.is_at_base(model)


def test_trained_biases_are_not_disabled_with_the_adapter():
    model = adapted(kind="qwen2", moved=False, bias="all")
    assert not adapter_kinds.is_at_base(model)


def test_the_adapters_start_depends_only_on_its_seed():
    def start(seed):
        model = tiny_model("llama")
        torch.manual_seed(7)
        state = torch.get_rng_state()
        lora.add_adapter(model, config(), seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        return {name: p.detach() for name, p in lora.trainable(model)}

    one, same, other = start(0), start(0), start(1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", TARGETS)
def test_a_saved_adapter_is_loaded_by_peft_and_by_gvpo(name, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "base")
    model = load_model(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GvpoWarning)
        lora.add_adapter(model, config(name))
    move(model)
    save_model(model, byte_tokenizer(), tmp_path / "adapter")
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert files >= {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
    assert "model.safetensors" not in files
    verify_round_trip(model, byte_tokenizer(), tmp_path / "adapter")

    theirs = peft.PeftModel.from_pretrained(load_model(tmp_path / "base"), str(tmp_path / "adapter"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GvpoWarning)
        ours = load_model(tmp_path / "adapter")
    want = logits(model.eval())
    assert torch.equal(logits(theirs.eval()), want)
    assert torch.equal(logits(ours.eval()), want)
    assert [n for n, _ in lora.trainable(ours)] == [n for n, _ in lora.trainable(model)]


def test_an_adapter_of_peft_is_read(tmp_path):
    theirs = move(peft.get_peft_model(tiny_model("llama"), config("saved head")))
    theirs.save_pretrained(str(tmp_path))
    ours = tiny_model("llama")
    with pytest.warns(GvpoWarning, match="changes the model's head"):
        lora.load_adapter(ours, tmp_path)
    assert torch.equal(logits(ours), logits(theirs))


def test_the_error_names_what_a_round_trip_lost(tmp_path):
    model = adapted()
    save_model(model, byte_tokenizer(), tmp_path)
    move(model, seed=2)
    with pytest.raises(RoundTripError, match=r"is not the one in memory: .*lora_A\.weight differs"):
        verify_round_trip(model, byte_tokenizer(), tmp_path)


def test_frozen_half_precision_weights_stay_and_the_adapter_is_float32():
    model = adapted(dtype=torch.bfloat16, moved=False)
    assert {p.dtype for _, p in lora.trainable(model)} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    move(model)
    groups = random_groups(GROUPS)
    group_backward(model, groups, OBJECTIVE)
    assert all(p.grad is not None and p.grad.isfinite().all() for _, p in lora.trainable(model))


def test_the_adapter_is_described():
    assert lora.adapter_of(tiny_model("llama")) is None
    model = adapted("saved head")
    assert lora.adapter_of(model) == lora.Adapter("", 4, 8, ("lm_head", "q_proj"))
    assert sum(isinstance(module, ModulesToSaveWrapper) for module in model.modules()) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (config(lora_dropout=0.1), r"dropout 0\.1 and updates need exact forwards; set lora_dropout=0"),
        (config(target_modules=["q_prj"]), r"no layer 'q_prj' for LoRA; its linear layers are down_proj, gate_proj, "),
        (config(target_modules=["q_proj", "wv"]), "no layer 'wv'"),
        (config(target_modules=["input_layernorm"]), "does not fit the model: Target module .* is not supported"),
        (config(target_modules=r".*\.nothing"), "does not fit the model: Target modules .* not found"),
        (peft.IA3Config(task_type="CAUSAL_LM"), r"is IA3Config; only LoRA is supported: pass peft\.LoraConfig"),
        ({"r": 4}, "is dict; only LoRA is supported"),
    ],
    ids=["dropout", "misspelt", "one misspelt", "a norm", "a pattern", "another method", "no config"],
)
def test_errors_of_invalid_adapters_are_one_line(given, message):
    with pytest.raises(ModelError, match=message) as error:
        lora.add_adapter(tiny_model("llama"), given)
    assert "\n" not in str(error.value)


def test_a_second_adapter_is_rejected():
    with pytest.raises(ModelError, match="has an adapter already"):
        lora.add_adapter(adapted(), config())


def test_a_missing_peft_names_the_package_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ModelError, match=r"LoRA needs peft .*; pip install 'gvpo\[lora\]'"):
        lora.add_adapter(tiny_model("llama"), object())


def test_adapters_of_other_settings_or_models_are_rejected(tmp_path):
    save_model(adapted(), None, tmp_path)
    with pytest.raises(ModelError, match="has lora_alpha=8, the model's has 16"):
        lora.read_adapter(adapted(lora_alpha=16), tmp_path)
    with pytest.raises(ModelError, match="does not fit this model"):
        lora.read_adapter(adapted("all linear"), tmp_path)
    with pytest.raises(ModelError, match=r"does not fit this model: .*size mismatch"):
        lora.load_adapter(tiny_model("llama", hidden_size=64), tmp_path)
    with pytest.raises(ModelError, match="the model has no adapter"):
        lora.read_adapter(tiny_model("llama"), tmp_path)
    with pytest.raises(ModelError, match=r"there is no directory .*none' to load an adapter from; check the path"):
        lora.load_adapter(tiny_model("llama"), tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"there is no adapter in .*empty: it has no adapter_config\.json"):
        lora.load_adapter(tiny_model("llama"), tmp_path / "empty")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="cannot be read"):
        lora.load_adapter(tiny_model("llama"), tmp_path)
