"""Test doubles that need no download: a byte tokenizer and two-layer models of real architectures."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma3TextConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>")
VOCABULARY = len(SPECIAL_TOKENS) + 256
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


TURN_TEMPLATE = CHAT_TEMPLATE.replace("\n{% endfor %}", "<turn>\n{% endfor %}")
"""A template in which turns end with a special token, as in Gemma's and Phi-3's."""


def turn_tokenizer() -> PreTrainedTokenizerFast:
    """Return a `byte_tokenizer` with a special token <turn>, which its template writes after each message."""
    tokenizer = byte_tokenizer(TURN_TEMPLATE)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    return tokenizer


def byte_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte, after <pad>=0, <eos>=1, <bos>=2."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        chat_template=chat_template,
    )


_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}

CONFIGS: dict[str, PreTrainedConfig] = {
    "qwen2": Qwen2Config(**_SMALL, tie_word_embeddings=True),
    "llama": LlamaConfig(**_SMALL, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**_SMALL, head_dim=8, tie_word_embeddings=True),
    "mistral": MistralConfig(**_SMALL, sliding_window=8),
    "qwen3_moe": Qwen3MoeConfig(
        **_SMALL, head_dim=8, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1
    ),
    "gemma3": Gemma3TextConfig(
        **_SMALL, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    ),
}

RECURRENT: dict[str, PreTrainedConfig] = {
    "qwen3_next": Qwen3NextConfig(
        **{**_SMALL, "num_hidden_layers": 4},
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        mlp_only_layers=[0, 1, 2, 3],
    ),
    "falcon_h1": FalconH1Config(
        **_SMALL, head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=16
    ),
    "lfm2": Lfm2Config(**_SMALL, layer_types=["conv", "full_attention"]),
}
"""Models with states (linear attention, a state space model, convolutions) that also have full attention."""


MIXTURES: dict[str, PreTrainedConfig] = {
    "qwen3_moe": CONFIGS["qwen3_moe"],
    "qwen2_moe": Qwen2MoeConfig(
        **_SMALL, moe_intermediate_size=32, shared_expert_intermediate_size=32, num_experts=4, num_experts_per_tok=2
    ),
    "mixtral": MixtralConfig(**_SMALL, num_local_experts=4, num_experts_per_tok=2, router_jitter_noise=0.1),
    "olmoe": OlmoeConfig(**_SMALL, num_experts=4, num_experts_per_tok=2),
    "qwen3_next_moe": Qwen3NextConfig(
        **{
            **RECURRENT["qwen3_next"].to_diff_dict(),
            "mlp_only_layers": [],
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        }
    ),
}
"""Mixtures of experts whose routers choose 2 of 4."""


def tiny_model(
    kind: str = "qwen2", *, dtype: torch.dtype = torch.float32, seed: int = 0, **config: object
) -> PreTrainedModel:
    """Return a random model of one of `CONFIGS`, with weights so large that its distributions are far from uniform.

    Experts are computed by the plain loop, the only implementation that also works in float64.
    """
    torch.manual_seed(seed)
    template = {**CONFIGS, **RECURRENT, **MIXTURES}[kind]
    settings = type(template)(**{**template.to_diff_dict(), **config})
    experts = {"experts_implementation": "eager"} if hasattr(settings, "num_experts_per_tok") else {}
    model = AutoModelForCausalLM.from_config(settings, dtype=dtype, **experts)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(12.0)
    return model.train()
