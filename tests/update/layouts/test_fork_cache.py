"""Tests of prompts shared by forking a cache: the supported models, and that calls do not change the result."""

import warnings
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, Mamba2Config, MambaConfig, PreTrainedModel
from transformers.cache_utils import LinearAttentionLayer

from gvpo.errors import ModelError
from gvpo.objectives import gvpo, sft
from gvpo.update.choose_path import FastPathWarning, choose_path
from gvpo.update.forward import Path, token_scores
from gvpo.update.group_backward import group_backward
from gvpo.update.layouts.fork_cache import prompt_gradient
from gvpo.update.layouts.forked import Forked
from gvpo.update.layouts.packed import Rows
from tests.fakes import RECURRENT, VOCABULARY, tiny_model
from tests.naive import double_precision, gradients, naive_scores, naive_update, random_groups, relative_error

GROUPS = random_groups([(7, (5, 9, 1)), (12, (3, 41, 2, 6)), (7, (4, 2)), (1, (30, 2)), (12, (0, 8, 8))])
CPU = torch.device("cpu")
_MAMBA = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}


def mamba2() -> PreTrainedModel:
    """Return a model without attention, with a cache under another name."""
    torch.manual_seed(0)
    config = Mamba2Config(**_MAMBA, num_heads=8, head_dim=8, n_groups=2, chunk_size=16)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64).train()


def mamba() -> PreTrainedModel:
    """Return a model whose layers start from zero in every call of more than one token, for any cache."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(MambaConfig(**_MAMBA)).train()


@pytest.mark.parametrize("layout", [Forked(0), Forked(10**6)])
@pytest.mark.parametrize("kind", [*RECURRENT, "gemma3", "mistral"])
def test_log_probs_and_gradients_equal_the_naive_ones_for_any_split(kind: str, layout: Forked):
    model, path = tiny_model(kind, dtype=torch.float64), Path(layout, fused=True)
    rows = [(group, row) for group in GROUPS for row in group.completions]
    found = torch.zeros(len(rows), 41, dtype=torch.float64)
    with double_precision(model):
        for microbatch in layout.cut(GROUPS, 10**6):
            calls = layout.lay_out(microbatch, CPU)
            scores = token_scores(model, calls, path)
            (scores.logprobs * (1 + calls.token)).sum().backward()
            found[calls.row, calls.token] = scores.logprobs.detach()
        forked = gradients(model)
        model.zero_grad()
        true = pad_sequence([naive_scores(model, group, row, 1.0)[0] for group, row in rows], batch_first=True)
        (true * torch.arange(1, 42)).sum().backward()
    torch.testing.assert_close(found, true.detach(), rtol=0, atol=1e-10)
    assert relative_error(forked, gradients(model)) < 1e-10


def test_the_prompt_is_computed_once():
    model = tiny_model("lfm2")
    choose_path(model)
    seen = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    group_backward(model, random_groups([(200, (7, 7, 7))]), gvpo, prefix_sharing="on", on_policy=True)
    hook.remove()
    assert seen == [(1, 200), (3, 6)]


def test_auto_forks_only_if_that_is_cheaper():
    model = tiny_model("lfm2")
    assert choose_path(model).layout == Forked()
    for sizes, shapes in {(200, (7, 7)): [(1, 200), (2, 6)], (200, (7,)): [(1, 206)], (5, (7, 7)): [(2, 11)]}.items():
        seen: list[Any] = []
        hook = model.get_input_embeddings().register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append(inputs[0].shape)
        )
        group_backward(model, random_groups([sizes]), sft)
        hook.remove()
        assert seen == shapes


def test_a_model_without_attention_is_exact():
    model = mamba2()
    with double_precision(model):
        true = naive_update(model, GROUPS, gvpo)
        output = group_backward(model, GROUPS, gvpo, prefix_sharing="on", tokens_per_microbatch=80)
    assert output.loss.item() == pytest.approx(true.loss.item(), rel=1e-10)
    assert relative_error(gradients(model), true.gradients) < 1e-10


@pytest.mark.parametrize("fused", [True, False])
def test_one_token_completions_are_predicted_only_by_the_prompt(fused: bool):
    model, groups = tiny_model("lfm2", dtype=torch.float64), random_groups([(5, (1, 1))])
    path = Path(Forked(), fused)
    (microbatch,) = path.layout.cut(groups, 100)
    calls = path.layout.lay_out(microbatch, CPU)
    scores = token_scores(model, calls, path, coefficients=torch.ones(2, dtype=torch.float64))
    true = [naive_scores(model, groups[0], row, 1.0)[0] for row in groups[0].completions]
    torch.testing.assert_close(scores.logprobs, torch.cat(true).detach(), rtol=0, atol=1e-10)
    assert scores.weighted is not None
    scores.weighted.backward()
    found = gradients(model)
    model.zero_grad()
    torch.cat(true).sum().backward()
    assert relative_error(found, gradients(model)) < 1e-6


def test_a_model_that_forgets_its_state_is_detected():
    model = mamba()
    with pytest.warns(FastPathWarning, match="forked prompts not used: log-probs differ by up to"):
        assert choose_path(model) == Path(Rows(), fused=True)
    with pytest.raises(ModelError, match=r"layers of type linear_attention, and its cache cannot be forked: log-probs"):
        choose_path(model, "on")


@pytest.mark.parametrize("scale", [1.0, 1 / 12])  # 1/12: the weights of a random model, almost uniform
@pytest.mark.parametrize(
    ("kind", "update"),
    [("lfm2", "update_conv_state"), ("falcon_h1", "update_recurrent_state"), ("qwen3_next", "update_recurrent_state")],
)
def test_a_state_that_loses_its_gradient_is_detected(
    kind: str, update: str, scale: float, monkeypatch: pytest.MonkeyPatch
):
    kept = getattr(LinearAttentionLayer, update)

    def cut_off(layer: LinearAttentionLayer, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        full: Tensor = kept(layer, states, *args, **kwargs)
        for stored in (layer.conv_states, layer.recurrent_states):
            stored.update({key: None if value is None else value.detach() for key, value in stored.items()})
        return full

    monkeypatch.setattr(LinearAttentionLayer, update, cut_off)
    model = tiny_model(kind)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale if parameter.ndim > 1 else 1.0)
    with pytest.warns(FastPathWarning, match="forked prompts not used: the prompt's gradient differs by"):
        assert choose_path(model) == Path(Rows(), fused=True)


def test_the_prompts_gradient_equals_that_of_the_embedding():
    model, size = tiny_model("llama", dtype=torch.float64), 4
    ids = torch.arange(10, 17)[None]

    def logprobs() -> Tensor:
        return model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]

    chosen = torch.tensor([False, True, True, True, True, True])
    found = prompt_gradient(model.get_input_embeddings(), size, logprobs, chosen)
    weights = torch.linspace(-1.0, 2.0, 5, dtype=torch.float64)
    (weights * logprobs()[chosen]).sum().backward()
    torch.testing.assert_close(found, model.model.embed_tokens.weight.grad[10:14])  # llama's head is not tied


@pytest.mark.parametrize("kind", sorted(RECURRENT))
def test_the_check_changes_nothing_and_needs_no_trained_embedding(kind: str):
    model = tiny_model(kind)
    model.get_input_embeddings().requires_grad_(False)
    before = torch.get_rng_state()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        assert choose_path(model) == Path(Forked(), fused=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", sorted(RECURRENT))
def test_float_noise_is_not_a_disagreement(kind: str, dtype: torch.dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_path(tiny_model(kind, dtype=dtype)).layout == Forked()


def test_gradient_checkpointing_keeps_no_cache_so_prompts_are_repeated():
    model = tiny_model("lfm2", dtype=torch.float64)
    true = naive_update(model, GROUPS, gvpo)
    assert choose_path(model).layout == Forked()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert choose_path(model) == Path(Rows(), fused=True)
    with pytest.raises(ModelError, match="keep no cache under gradient checkpointing"):
        choose_path(model, "on")
    group_backward(model, GROUPS, gvpo)
    assert relative_error(gradients(model), true.gradients) < 1e-6
    model.gradient_checkpointing_disable()
    assert choose_path(model).layout == Forked()


def test_a_model_that_returns_no_cache_is_rejected():
    model = tiny_model("lfm2")
    inner = model.model.forward
    model.model.forward = lambda *args, **kwargs: inner(*args, **{**kwargs, "use_cache": False})
    with pytest.warns(FastPathWarning, match="the model returns no cache of transformers"):
        assert choose_path(model).layout == Rows()


@pytest.fixture
def one_rank(tmp_path: FilePath) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_hooks_of_wrappers_are_called_and_the_gradient_is_the_same(wrapper: str):
    plain, wrapped = tiny_model("qwen3_next"), tiny_model("qwen3_next")
    group_backward(plain, GROUPS, gvpo, prefix_sharing="on", tokens_per_microbatch=80)
    model: nn.Module = wrapped
    if wrapper == "ddp":
        model = DistributedDataParallel(wrapped)
    else:
        mesh = dist.init_device_mesh("cpu", (1,))
        for layer in wrapped.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(wrapped, mesh=mesh)
    assert choose_path(model).layout == Forked()
    group_backward(model, GROUPS, gvpo, prefix_sharing="on", tokens_per_microbatch=80)
    found = {
        name: getattr(value, "full_tensor", lambda value=value: value)() for name, value in gradients(wrapped).items()
    }
    assert relative_error(found, gradients(plain)) < 1e-4
