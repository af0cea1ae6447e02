"""Tests of Routing Replay: the routers' choices are recorded, and recorded choices are forced, bit by bit."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DeepseekV3Config

from gvpo.errors import ConfigError, MissingInput, ModelError
from gvpo.model.model import checkpoint_activations
from gvpo.objectives import gspo, gvpo
from gvpo.types import Completion, Group
from gvpo.update.experts.routers import routers_of
from gvpo.update.group_backward import TokenLogprobs, group_backward, score
from tests.fakes import MIXTURES, tiny_model
from tests.naive import double_precision, gradients, naive_scores, random_groups, relative_error

GROUPS = random_groups([(7, (5, 9, 1)), (1, (4, 2)), (12, (3, 11, 2, 6))])
SMALL, LARGE = 30, 10**6
PLAIN = sorted(MIXTURES.keys() - {"qwen3_next_moe"})
LAYOUTS = [(kind, sharing) for kind in PLAIN for sharing in ("on", "off")] + [("qwen3_next_moe", "on")]


def rows_of(groups: Sequence[Group]) -> list[tuple[Group, Completion]]:
    return [(group, row) for group in groups for row in group.completions]


def with_old(scored: Sequence[TokenLogprobs]) -> list[Group]:
    """Return GROUPS with these log-probs and experts as those of the old policy."""
    remaining = iter(scored)

    def changed(row: Completion) -> Completion:
        old = next(remaining)
        return dataclasses.replace(row, old_logprobs=old.logprobs, experts=old.experts)

    return [Group(group.prompt, [changed(row) for row in group.completions]) for group in GROUPS]


def moved(model: nn.Module, by: float = 0.3) -> None:
    """Change every weight by a fraction of itself."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + by * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def naive_choice(model: Any, group: Group, row: Completion, logits: list[Tensor]) -> Tensor:
    """Return [layers, P + C - 1, k] from the routers' logits of a single row."""
    return torch.stack([each.softmax(-1).topk(2).indices for each in logits])


@contextmanager
def watched_logits(model: nn.Module) -> Iterator[list[Tensor]]:
    """Return the logits of each router, layer by layer, in a plain forward pass."""
    seen: list[Tensor] = []
    hooks = [router.register_forward_hook(lambda _m, _i, out: seen.append(out[0])) for router in routers_of(model)]
    yield seen
    for hook in hooks:
        hook.remove()


@contextmanager
def forced_by_hand(model: Any, experts: Tensor) -> Iterator[None]:
    """Replace each router by a few lines with given experts [layers, N, k]: softmax, gather, normalize."""

    def route(router: Any, chosen: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = torch.nn.functional.linear(hidden.reshape(-1, hidden.shape[-1]), router.weight)
        weights = logits.softmax(-1).gather(-1, chosen)
        return logits, weights / weights.sum(-1, keepdim=True), chosen

    routers = routers_of(model)
    for router, chosen in zip(routers, experts, strict=True):
        router.forward = functools.partial(route, router, chosen)
    yield
    for router in routers:
        del router.forward


@pytest.mark.parametrize("kind", sorted(MIXTURES))
def test_every_layers_router_is_found(kind: str):
    model = tiny_model(kind)
    assert len(routers_of(model)) == model.config.num_hidden_layers


@pytest.mark.parametrize("budget", [SMALL, LARGE])
@pytest.mark.parametrize(("kind", "sharing"), LAYOUTS)
def test_the_recorded_experts_equal_those_of_each_row_by_itself(kind: str, sharing: Any, budget: int):
    model = tiny_model(kind, dtype=torch.float64)
    settings: dict[str, Any] = {"tokens_per_microbatch": budget, "prefix_sharing": sharing}
    with double_precision(model):
        scored = score(model, GROUPS, routing="watch", **settings)
        plain = score(model, GROUPS, **settings)
    for (group, row), found, expected in zip(rows_of(GROUPS), scored, plain, strict=True):
        with watched_logits(model) as logits, torch.no_grad(), double_precision(model):
            model.eval()(input_ids=torch.tensor([[*group.prompt, *row.tokens]]))
        chosen = torch.stack([each.topk(2).indices for each in logits])[:, : len(group.prompt) + len(row.tokens) - 1]
        assert found.experts is not None
        recorded = torch.cat([found.experts.prompt, found.experts.own], dim=1)
        assert torch.equal(recorded, chosen.to(torch.int16))
        assert torch.equal(found.logprobs, expected.logprobs)  # watching changes nothing
        assert expected.experts is None
    assert not any("forward" in vars(router) for router in routers_of(model))


PRECISIONS: dict[str, tuple[torch.dtype, Callable[[], Any]]] = {
    "float32": (torch.float32, nullcontext),
    "autocast": (torch.float32, functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("precision", sorted(PRECISIONS))
@pytest.mark.parametrize("budget", [SMALL, LARGE])
@pytest.mark.parametrize(("kind", "sharing"), LAYOUTS)
def test_at_unchanged_weights_every_ratio_is_exactly_one(kind: str, sharing: Any, budget: int, precision: str):
    dtype, autocast = PRECISIONS[precision]
    model = tiny_model(kind, dtype=dtype)
    settings: dict[str, Any] = {"tokens_per_microbatch": budget, "prefix_sharing": sharing, "temperature": 0.9}
    with autocast():
        scored = score(model, GROUPS, routing="watch", **settings)
        groups = with_old(scored)
        output = group_backward(model, groups, gspo, routing="replay", **settings)
        free = group_backward(model, groups, gspo, **settings)
    assert output.metrics["gspo/ratio_mean"].item() == 1.0
    assert output.metrics["gspo/clip_fraction"].item() == 0.0
    assert output.metrics["moe/changed"].item() == 0.0
    for before, row, other in zip(scored, output.rows, free.rows, strict=True):
        assert torch.equal(before.logprobs, row.logprobs)
        assert torch.equal(row.coefficients, other.coefficients)


@pytest.mark.parametrize("budget", [SMALL, LARGE])
@pytest.mark.parametrize("sharing", ["on", "off"])
def test_replay_forces_the_old_experts_with_the_new_weights(sharing: Any, budget: int):
    model = tiny_model("mixtral", dtype=torch.float64)
    settings: dict[str, Any] = {"tokens_per_microbatch": budget, "prefix_sharing": sharing}
    with double_precision(model):
        groups = with_old(score(model, GROUPS, routing="watch", **settings))
        moved(model)
        output = group_backward(model, groups, gvpo, routing="replay", **settings)
        watched = group_backward(model, groups, gvpo, routing="watch", **settings)
        for (group, row), found, free in zip(rows_of(groups), output.rows, watched.rows, strict=True):
            kept = torch.cat([row.experts.prompt, row.experts.own], dim=1).long()
            last = torch.zeros(kept.shape[0], 1, kept.shape[2], dtype=torch.int64)  # its output is not used
            with forced_by_hand(model.eval(), torch.cat([kept, last], dim=1)), torch.no_grad():
                expected, _ = naive_scores(model, group, row, 1.0)
            torch.testing.assert_close(found.logprobs, expected, rtol=1e-10, atol=1e-10)
            with torch.no_grad():
                torch.testing.assert_close(free.logprobs, naive_scores(model, group, row, 1.0)[0], rtol=0, atol=1e-10)
    assert output.metrics["moe/changed"] > 0.02
    assert any(
        float((a.logprobs - b.logprobs).abs().max()) > 1e-3 for a, b in zip(output.rows, watched.rows, strict=True)
    )


def test_the_gradient_of_a_replay_equals_the_naive_one():
    model = tiny_model("qwen3_moe", dtype=torch.float64, norm_topk_prob=True)

    def mean(logprobs: Tensor, *, mask: Tensor) -> Any:
        from gvpo.objectives import ObjectiveOutput

        return ObjectiveOutput(-(logprobs * mask).sum(), {})

    with double_precision(model):
        groups = with_old(score(model, GROUPS, routing="watch"))
        moved(model)
        group_backward(model, groups, mean, routing="replay", tokens_per_microbatch=SMALL)
        found = gradients(model)
        model.zero_grad()
        for group, row in rows_of(groups):
            kept = torch.cat([row.experts.prompt, row.experts.own], dim=1).long()
            last = torch.zeros(kept.shape[0], 1, kept.shape[2], dtype=torch.int64)
            with forced_by_hand(model, torch.cat([kept, last], dim=1)):
                logprobs, _ = naive_scores(model, group, row, 1.0)
                (-(logprobs * torch.tensor(row.mask)).sum()).backward()
    assert relative_error(found, gradients(model)) < 1e-10


def test_another_budget_replays_the_same_experts():
    model = tiny_model("qwen3_moe", dtype=torch.float64)
    with double_precision(model):
        groups = with_old(score(model, GROUPS, routing="watch", tokens_per_microbatch=SMALL, prefix_sharing="off"))
        moved(model)
        one, other = (
            group_backward(model, groups, gspo, routing="replay", tokens_per_microbatch=budget, prefix_sharing="on")
            for budget in (SMALL, LARGE)
        )
    for a, b in zip(one.rows, other.rows, strict=True):
        torch.testing.assert_close(a.logprobs, b.logprobs, rtol=1e-10, atol=1e-10)
    assert one.metrics["moe/changed"].item() == pytest.approx(other.metrics["moe/changed"].item())


def test_the_fraction_of_changed_experts_equals_that_of_a_loop():
    model = tiny_model("qwen3_moe", dtype=torch.float64)
    with double_precision(model):
        before = score(model, GROUPS, routing="watch")
        groups = with_old(before)
        moved(model)
        output = group_backward(model, groups, gvpo, routing="watch", tokens_per_microbatch=SMALL)
    changed = total = 0
    for (_, row), old, new in zip(rows_of(GROUPS), before, output.rows, strict=True):
        assert old.experts is not None
        assert new.experts is not None
        one, two = (torch.cat([each.prompt[:, -1:], each.own], dim=1) for each in (old.experts, new.experts))
        for layer in range(one.shape[0]):
            for token in range(len(row.tokens)):
                if row.mask is None or row.mask[token]:
                    kept = set(one[layer, token].tolist()) & set(two[layer, token].tolist())
                    changed, total = changed + 2 - len(kept), total + 2
    assert total > 100
    assert output.metrics["moe/changed"].item() == pytest.approx(changed / total)
    assert 0.02 < changed / total < 0.9


@pytest.mark.parametrize("sharing", ["on", "off"])
def test_completions_share_the_routing_of_a_shared_prompt(sharing: Any):
    scored = score(tiny_model("qwen3_moe"), GROUPS, routing="watch", prefix_sharing=sharing)
    prompts = {id(each.experts.prompt) for each in scored if each.experts is not None}
    assert len(prompts) == (len(GROUPS) if sharing == "on" else len(scored))


@pytest.mark.parametrize("budget", [SMALL, LARGE])
def test_recomputed_layers_are_forced_again(budget: int):
    settings: dict[str, Any] = {"routing": "replay", "router_aux_coef": 0.1, "tokens_per_microbatch": budget}
    policy = tiny_model("qwen3_moe", dtype=torch.float64)
    groups = with_old(score(policy, GROUPS, routing="watch"))
    moved(policy)
    group_backward(policy, groups, gvpo, **settings)
    expected = gradients(policy)
    policy.zero_grad()
    checkpoint_activations(policy)
    group_backward(policy, groups, gvpo, **settings)
    assert relative_error(gradients(policy), expected) < 1e-12


def test_rows_without_tokens_have_no_experts_and_need_none():
    model = tiny_model("qwen3_moe")
    rows = [
        Completion([], 1.0, ref_logprobs=[]),
        Completion([5, 6], 0.0, ref_logprobs=[-1.0, -2.0]),
        Completion([7], 0.5, ref_logprobs=[-1.0]),
    ]
    scored = score(model, [Group([4, 3], rows)], routing="watch")
    assert scored[0].experts is None
    assert scored[1].experts is not None
    assert scored[2].experts is not None
    assert (scored[1].experts.own.shape[1], scored[2].experts.own.shape[1]) == (1, 0)
    group = Group([4, 3], [dataclasses.replace(r, experts=s.experts) for r, s in zip(rows, scored, strict=True)])
    assert group_backward(model, [group], gvpo, routing="replay").loss.isfinite()


def test_on_policy_experts_are_recorded_instead_of_replayed():
    output = group_backward(tiny_model("qwen3_moe"), GROUPS, gvpo, routing="replay", on_policy=True)
    assert all(row.experts is not None for row in output.rows)


def test_errors_name_the_problem():
    model = tiny_model("qwen3_moe")
    with pytest.raises(MissingInput, match=r"routing='replay' and 9 of 9 completions have no experts"):
        group_backward(model, GROUPS, gvpo, routing="replay")
    half = [*with_old(score(model, GROUPS, routing="watch"))[:1], *GROUPS[1:]]
    with pytest.raises(MissingInput, match="6 of 9 completions have no experts"):
        group_backward(model, half, gvpo, routing="replay", on_policy=True)
    with pytest.raises(ConfigError, match="routing is 'again'; use 'free', 'watch' or 'replay'"):
        score(model, GROUPS, routing="again")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="router_aux_coef is -1"):
        group_backward(model, GROUPS, gvpo, router_aux_coef=-1)
    with pytest.raises(ModelError, match="LlamaForCausalLM has no supported router of a mixture of experts"):
        score(tiny_model("llama"), GROUPS, routing="watch")


def test_the_error_names_an_unsupported_router():
    config = DeepseekV3Config(
        vocab_size=259, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, n_routed_experts=4, n_group=2, topk_group=1,
        num_experts_per_tok=2, first_k_dense_replace=0, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=16, max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match="so its choice can be neither recorded nor replayed"):
        score(model, GROUPS, routing="watch")
