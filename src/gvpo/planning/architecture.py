"""A decoder's sizes and parameter count, computed from only its config.json.

    H hidden   I intermediate   A heads   K key-value heads   D head size   V vocabulary   E experts

All decoders share the formulas: attention H x (2A + 2K) D, a gated MLP 3 H I (or E of them and a router), a few
vectors. Properties that are not in config.json because the model class fixes them (biases, norms) are in a table by
model type.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gvpo.errors import ModelError
from gvpo.model_config import logits_are_linear, why_not_shared

Config = Mapping[str, Any]

_OTHER_NAMES = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "num_layers"),
    "num_attention_heads": ("n_head", "num_heads"),
    "intermediate_size": ("n_inner", "ffn_dim"),
    "max_position_embeddings": ("n_positions", "n_ctx"),
    "num_experts": ("num_local_experts", "n_routed_experts"),
}
_FULL_EXPERTS = ("mixtral", "olmoe")
"""Types whose experts have the size `intermediate_size`, regardless of other sizes in the configuration."""


@dataclass(frozen=True)
class _Traits:
    """Properties that a model class fixes.

    Args:
        qkv_bias: Whether queries, keys and values have biases, unless the configuration sets it.
        all_biases: Whether every linear layer has a bias.
        norms: Number of norms of [H] per layer.
        norm_vectors: Number of vectors per norm: 2 if it has a bias.
        head_norm: "each" for norms of [D] on queries and keys; "whole" for norms of [A D] and [K D]; "" for no norms.
        gated: Whether the MLP has a gate.
        positions: Whether positions are learned.
    """

    qkv_bias: bool = False
    all_biases: bool = False
    norms: int = 2
    norm_vectors: int = 1
    head_norm: str = ""
    gated: bool = True
    positions: bool = False


_TRAITS = {
    "gemma": _Traits(),
    "gemma2": _Traits(norms=4),
    "gemma3_text": _Traits(norms=4, head_norm="each"),
    "gpt2": _Traits(all_biases=True, norm_vectors=2, gated=False, positions=True),
    "granite": _Traits(),
    "llama": _Traits(),
    "mistral": _Traits(),
    "mixtral": _Traits(),
    "olmo2": _Traits(head_norm="whole"),
    "olmoe": _Traits(head_norm="whole"),
    "phi3": _Traits(),
    "qwen2": _Traits(qkv_bias=True),
    "qwen2_moe": _Traits(qkv_bias=True),
    "qwen3": _Traits(head_norm="each"),
    "qwen3_moe": _Traits(head_norm="each"),
    "smollm3": _Traits(),
}


@dataclass(frozen=True)
class Architecture:
    """A decoder's sizes.

    Args:
        kind: Model type.
        layers: Number of layers.
        hidden: H.
        query: A D, the width of the queries.
        key: K D, the width of the keys and of the values.
        intermediate: I of a dense layer's MLP.
        vocabulary: V.
        context: Maximum number of positions; None if the configuration does not state it.
        tied: Whether the head is the embedding.
        norms: Number of norms of the hidden states per layer.
        head_norm: Whether queries and keys have norms.
        gated: Whether the MLP has a gate.
        experts: E, the number of experts per layer; 0 for a dense model.
        active_experts: Number of experts per token.
        expert_intermediate: I of an expert.
        shared_intermediate: Sum of I over the experts that process every token.
        parameters: Number of all parameters, tied ones counted once.
        layer_parameters: Number of parameters per layer.
        shares_prompts: Whether the update can compute a group's prompt once.
        fused_head: Whether the update can work without the full logits.
        softcapped: Whether logits go through a tanh.
        notes: Assumptions about the model.
    """

    kind: str
    layers: int
    hidden: int
    query: int
    key: int
    intermediate: int
    vocabulary: int
    context: int | None
    tied: bool
    norms: int
    head_norm: bool
    gated: bool
    experts: int
    active_experts: int
    expert_intermediate: int
    shared_intermediate: int
    parameters: int
    layer_parameters: int
    shares_prompts: bool
    fused_head: bool
    softcapped: bool
    notes: tuple[str, ...] = ()

    @property
    def active_layer_parameters(self) -> int:
        """Number of a layer's parameters that a token uses."""
        idle = (self.experts - self.active_experts) * 3 * self.hidden * self.expert_intermediate
        return self.layer_parameters - max(0, idle)

    @property
    def adapted_features(self) -> int:
        """Sum of inputs and outputs over the linear layers of a layer that an adapter changes; experts have none."""
        attention = 2 * (self.hidden + self.query) + 2 * (self.hidden + self.key)
        inner = self.shared_intermediate if self.experts else self.intermediate
        return attention + (3 if self.gated else 2) * (self.hidden + inner) * bool(inner)

    def adapter_parameters(self, rank: int) -> int:
        """Return the number of parameters of an adapter on every linear layer except the head."""
        return rank * self.layers * self.adapted_features

    @property
    def head(self) -> int:
        """Number of parameters of the head, V H."""
        return self.vocabulary * self.hidden

    @property
    def largest(self) -> int:
        """Number of elements of the largest single parameter; experts are stacked into one."""
        stacked = self.experts * 2 * self.hidden * self.expert_intermediate
        return max(self.head, self.hidden * self.intermediate, stacked)


def read_architecture(config: Config) -> Architecture:
    """Read the sizes from a model's configuration.

    Args:
        config: Content of config.json. Only the language part of a vision-language model is read.

    Raises:
        ModelError: If a size that every decoder has is missing.
    """
    text = config.get("text_config")
    notes = []
    if isinstance(text, Mapping):
        notes.append("the plan includes only the language part of the model")
        config = {"tie_word_embeddings": config.get("tie_word_embeddings", True), **text}
    kind = str(config.get("model_type", ""))
    if kind not in _TRAITS:
        notes.append(f"the model type {kind!r} is unknown; the plan assumes a Llama-like decoder")
    return _architecture(config, kind, _TRAITS.get(kind, _Traits()), notes)


def _architecture(config: Config, kind: str, traits: _Traits, notes: list[str]) -> Architecture:
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    head_dim = _number(config, "head_dim") or hidden // heads
    keys = (_number(config, "num_key_value_heads") or heads) * head_dim
    experts = _experts(config, kind)
    intermediate = _number(config, "intermediate_size") or 4 * hidden
    shape = {"hidden": hidden, "query": heads * head_dim, "key": keys, "intermediate": intermediate}
    layer = _layer_parameters(config, traits, experts, head_dim, **shape)
    layers, vocabulary = _size(config, "num_hidden_layers"), _size(config, "vocab_size")
    context = _number(config, "max_position_embeddings") or None
    tied = bool(config.get("tie_word_embeddings", kind == "gpt2"))
    extra = hidden * ((context or 0) * traits.positions + traits.norm_vectors)
    return Architecture(
        kind=kind,
        layers=layers,
        vocabulary=vocabulary,
        context=context,
        tied=tied,
        norms=traits.norms,
        head_norm=bool(traits.head_norm),
        gated=traits.gated,
        parameters=layers * layer + vocabulary * hidden * (1 if tied else 2) + extra,
        layer_parameters=layer,
        shares_prompts=not why_not_shared(config),
        fused_head=logits_are_linear(config),
        softcapped=bool(config.get("final_logit_softcapping")),
        notes=tuple(notes),
        **shape,
        **experts,
    )


def _experts(config: Config, kind: str) -> dict[str, int]:
    count = _number(config, "num_experts")
    if count == 0:
        return dict.fromkeys(("experts", "active_experts", "expert_intermediate", "shared_intermediate"), 0)
    size = (kind not in _FULL_EXPERTS and _number(config, "moe_intermediate_size")) or _size(
        config, "intermediate_size"
    )
    return {
        "experts": count,
        "active_experts": _number(config, "num_experts_per_tok") or 1,
        "expert_intermediate": size,
        "shared_intermediate": _number(config, "shared_expert_intermediate_size"),
    }


def _layer_parameters(
    config: Config,
    traits: _Traits,
    experts: Mapping[str, int],
    head_dim: int,
    *,
    hidden: int,
    query: int,
    key: int,
    intermediate: int,
) -> int:
    """Count the parameters of one layer. If only some layers have experts, count all layers as if they had them."""
    attention = hidden * (2 * query + 2 * key)
    head_norms = {"each": 2 * head_dim, "whole": query + key, "": 0}[traits.head_norm]
    norms = traits.norms * traits.norm_vectors * hidden + head_norms
    biases = 0
    if traits.all_biases or config.get("attention_bias", False):
        biases += query + 2 * key + hidden
    elif config.get("qkv_bias", traits.qkv_bias):
        biases += query + 2 * key
    if traits.all_biases or config.get("mlp_bias", False):
        biases += intermediate * (2 if traits.gated else 1) + hidden
    if experts["experts"] == 0:
        return attention + norms + biases + (3 if traits.gated else 2) * hidden * intermediate
    routed = (
        experts["experts"] * hidden * (3 * experts["expert_intermediate"] + 1)
    )  # each expert with its row of the router
    shared = 3 * hidden * experts["shared_intermediate"] + (hidden if experts["shared_intermediate"] else 0)
    return attention + norms + biases + routed + shared


def _number(config: Config, name: str) -> int:
    """Return the size under any of its names, or 0 if the configuration does not have it."""
    value = next((config[key] for key in (name, *_OTHER_NAMES.get(name, ())) if config.get(key) is not None), 0)
    return value if isinstance(value, int) else 0


def _size(config: Config, name: str) -> int:
    value = _number(config, name)
    if value <= 0:
        raise ModelError(f"the model's configuration has no {name}, so its sizes are unknown; give a causal decoder")
    return value
