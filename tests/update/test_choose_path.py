"""Tests of the choice of a model's path, and that an incorrect fast path is detected."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoConfig,
    PreTrainedModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gvpo.errors import ConfigError, ModelError
from gvpo.update import forward
from gvpo.update.attention.tree_attention import TREES
from gvpo.update.choose_path import FastPathWarning, choose_path, length_limit
from gvpo.update.forward import Path, token_scores
from gvpo.update.head import TokenScores, head_logprobs
from gvpo.update.layouts.forest import Forest, Tree
from gvpo.update.layouts.forked import Forked
from gvpo.update.layouts.packed import Rows, Trees
from tests.fakes import CONFIGS, tiny_model
from tests.naive import naive_scores, random_groups

SIZES = [(11, (5, 9, 1)), (1, (4, 2)), (6, (3,))]


def error_of(model: PreTrainedModel, path: Path, *, temperature: float = 1.0) -> float:
    """Return the difference of a path's log-probs from one row per forward pass with full logits."""
    groups = random_groups(SIZES)
    true = torch.cat([naive_scores(model, group, row, temperature)[0] for group in groups for row in group.completions])
    found = torch.full((len([r for g in groups for r in g.completions]), 9), torch.nan, dtype=true.dtype)
    for microbatch in path.layout.cut(groups, 40):
        calls = path.layout.lay_out(microbatch, torch.device("cpu"))
        with path.layout.attention(model):
            found[calls.row, calls.token] = token_scores(model, calls, path, temperature=temperature).logprobs
    return float((found[~found.isnan()] - true).abs().max())


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_dense_models_share_prompts(kind: str):
    model = tiny_model(kind)
    assert choose_path(model) == Path(Trees(), fused=True)
    assert choose_path(model, "off") == Path(Rows(), fused=True)


@pytest.mark.parametrize("path", [Path(layout, fused) for layout in (Trees(), Rows()) for fused in (True, False)])
def test_every_path_gives_the_plain_log_probs(path: Path):
    with torch.no_grad():
        assert error_of(tiny_model("llama", dtype=torch.float64), path, temperature=0.7) < 1e-6


def gemma3(**settings: Any) -> PreTrainedModel:
    """Return a model in which every second layer has a window of 4 tokens."""
    small: dict[str, Any] = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    kinds = ["sliding_attention", "full_attention"]
    small |= {"num_attention_heads": 2, "head_dim": 8, "num_key_value_heads": 1, "layer_types": kinds}
    return AutoModelForCausalLM.from_config(Gemma3TextConfig(**small, sliding_window=4, **settings)).double()


def test_sliding_windows_share_too():
    for model in (tiny_model("mistral", dtype=torch.float64), gemma3()):
        path = choose_path(model, "on")
        assert path == Path(Trees(), fused=True)
        with torch.no_grad():
            assert error_of(model, path) < 1e-5


def test_a_window_that_is_not_passed_to_the_attention_does_not_share(monkeypatch: pytest.MonkeyPatch):
    # The self-check's rows are shorter than the window: their log-probs would agree.
    model = tiny_model("mistral", sliding_window=100)
    attend = ALL_ATTENTION_FUNCTIONS[TREES]

    def forgetful(*args: Any, sliding_window: int | None, **others: Any) -> Any:
        return attend(*args, **others)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, TREES, forgetful)
    with pytest.warns(FastPathWarning, match="sliding window of 100 tokens passed None to its attention"):
        assert choose_path(model).layout == Forked()


def test_other_layer_types_do_not_share():
    model = gemma3()
    model.config.layer_types = ["full_attention", "chunked_attention"]
    assert Trees().why_not(model) == "it has layers of type chunked_attention"


def test_local_attention_by_another_name_does_not_share():
    # The window is longer than the self-check's rows, so only the configuration shows it.
    config = GPTNeoConfig(
        vocab_size=50,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    assert "its attention is local (attention_types, window_size)" in Trees().why_not(model)
    assert choose_path(model).layout == Forked()


def test_stretching_rotary_embeddings_report_their_original_length():
    stretched = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert length_limit(tiny_model("llama", max_position_embeddings=24, rope_parameters=stretched)) == 24
    long = {"rope_type": "longrope", "original_max_position_embeddings": 16, "factor": 2.0, "rope_theta": 1e4}
    long |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    assert length_limit(tiny_model("llama", rope_parameters=long)) == 16
    assert length_limit(tiny_model("llama")) is None


def test_eager_attention_shares_too():
    model = tiny_model("llama", dtype=torch.float64)
    model.set_attn_implementation("eager")
    path = choose_path(model)
    assert path.layout == Trees()
    with torch.no_grad():
        assert error_of(model, path) < 1e-6


def test_an_unknown_setting_is_rejected():
    with pytest.raises(ConfigError, match="prefix_sharing is 'yes'"):
        choose_path(tiny_model(), "yes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "extra"),
    [(CohereConfig, {"logit_scale": 0.25}), (Gemma2Config, {"final_logit_softcapping": 2.0, "head_dim": 8})],
)
def test_models_that_change_their_logits_use_them(settings: Any, extra: dict[str, Any]):
    small: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = settings(**small, num_attention_heads=2, num_key_value_heads=1, pad_token_id=0, **extra)
    model = AutoModelForCausalLM.from_config(config)
    assert not choose_path(model).fused


class DoctoredHead(nn.Module):
    """A model whose logits are changed after its head without a trace in its configuration."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.inner, self.config = model, model.config

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.get_output_embeddings()

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def forward(self, **inputs: Any) -> Any:
        output = self.inner(**inputs)
        output.logits = 3.0 * torch.tanh(output.logits / 3.0)
        return output


def test_a_hidden_change_of_the_logits_is_detected_with_one_warning():
    model = DoctoredHead(tiny_model("llama"))
    with pytest.warns(FastPathWarning, match="head without logits not used: log-probs differ by up to"):
        path = choose_path(model)
    assert path == Path(Trees(), fused=False)
    assert choose_path(model) == path  # and no second warning: warnings are errors here


def ignore_trees(model: PreTrainedModel) -> None:
    """Make every attention layer causal over its whole lane, regardless of its arguments."""
    for layer in model.model.layers:
        attend = layer.self_attn.forward

        def causal(*args: Any, attend: Any = attend, **kwargs: Any) -> Any:
            if trees := kwargs.get(TREES):
                whole = Tree(0, sum(each.prompt + sum(each.rows) for each in trees.trees), ())
                kwargs[TREES] = Forest((whole,))
            return attend(*args, **kwargs)

        layer.self_attn.forward = causal


@pytest.mark.parametrize("scale", [1.0, 1 / 12])  # 1/12: the weights of a random model, almost uniform
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_that_ignores_the_trees_falls_back_with_a_warning(scale: float, dtype: torch.dtype):
    model = tiny_model("llama", dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale if parameter.ndim > 1 else 1.0)
    ignore_trees(model)
    with pytest.warns(FastPathWarning, match="shared prompts not used: log-probs differ"):
        path = choose_path(model)
    assert path == Path(Forked(), fused=True)  # its own attention does not support trees
    model.gradient_checkpointing_enable()
    with pytest.raises(ModelError, match=r"log-probs differ .* and its cache .* use 'auto' or 'off'"):
        choose_path(model, "on")


def test_a_model_that_ignores_positions_falls_back():
    model = tiny_model("qwen2")
    rotate = model.model.rotary_emb.forward
    model.model.rotary_emb.forward = lambda x, position_ids: rotate(
        x, torch.arange(position_ids.shape[-1])[None].expand_as(position_ids)
    )
    with pytest.warns(FastPathWarning, match="(shared|forked) prompts not used"):
        assert choose_path(model).layout == Rows()


def test_a_model_that_fails_on_the_fast_path_falls_back():
    model = tiny_model("llama")
    inner = model.model.forward

    def picky(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        if attention_mask is not None and attention_mask.ndim == 4:
            raise ValueError("only 2D masks here")
        return inner(*args, attention_mask=attention_mask, **kwargs)

    model.model.forward = picky
    with pytest.warns(FastPathWarning, match="shared prompts not used: .*only 2D masks here"):
        assert choose_path(model).layout == Forked()


def test_running_out_of_memory_in_the_check_does_not_decide_the_path():
    model = tiny_model("llama")
    inner = model.model.forward

    def hungry(*args: Any, **kwargs: Any) -> Any:
        if TREES in kwargs:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(*args, **kwargs)

    model.model.forward = hungry
    with pytest.raises(torch.OutOfMemoryError):
        choose_path(model)
    model.model.forward = inner
    assert choose_path(model).layout == Trees()


def test_a_model_that_keeps_keywords_from_its_attention_falls_back():
    model = tiny_model("llama")
    inner = model.model.forward
    model.model.forward = lambda *args, gvpo_trees=None, **kwargs: inner(*args, **kwargs)
    with pytest.warns(FastPathWarning, match="does not pass keywords on to its attention"):
        assert choose_path(model).layout == Forked()


def test_the_models_own_attention_is_restored():
    model = tiny_model("llama")
    with choose_path(model).layout.attention(model):
        assert model.config._attn_implementation == TREES
    assert model.config._attn_implementation == "sdpa"
    ids = torch.arange(10)[None]
    assert model(input_ids=ids).logits.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_float_noise_is_not_a_disagreement(kind: str, dtype: torch.dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose_path(tiny_model(kind, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_fused_head_multiplies_in_autocasts_dtype(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    seen = []

    def spy(*args: Any, **kwargs: Any) -> TokenScores:
        seen.append(kwargs["dtype"])
        return head_logprobs(*args, **kwargs)

    monkeypatch.setattr(forward, "head_logprobs", spy)
    model, path = tiny_model("llama", dtype=dtype), Path(Trees(), fused=True)
    (microbatch,) = path.layout.cut(random_groups(SIZES[:1]), 100)
    calls = path.layout.lay_out(microbatch, torch.device("cpu"))
    with path.layout.attention(model):
        token_scores(model, calls, path)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            token_scores(model, calls, path)
    inside = torch.float64 if dtype == torch.float64 else torch.bfloat16
    assert seen == [dtype, inside]


def test_checking_leaves_the_random_state_the_mode_and_the_head_unchanged():
    model = tiny_model("llama").eval()
    before = torch.get_rng_state()
    choose_path(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    assert "forward" not in vars(model.get_output_embeddings())
    assert all(parameter.grad is None for parameter in model.parameters())
