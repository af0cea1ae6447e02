"""The section [sampling] of a recipe: how completions are sampled, and which engine samples them."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gvpo.config.section import Section


class SamplingConfig(Section):
    """[sampling] Sampling of completions."""

    group_size: int = Field(default=8, ge=1, description="Number of completions per prompt, k")
    max_tokens: int = Field(default=512, ge=1, description="Maximum number of tokens per completion")
    temperature: float = Field(default=1.0, gt=0, description="Temperature of sampling and of all log-probs")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Total probability of the most likely tokens to sample from; 1: all tokens"
    )
    top_k: int = Field(default=0, ge=0, description="Number of most likely tokens to sample from; 0: all tokens")
    stop_token_ids: list[int] = Field(default_factory=list, description="Additional token ids that end a completion")
    sampling_allow: list[str] = Field(
        default_factory=list,
        description="Characters and strings that completions may consist of; see `gvpo docs decoding`",
    )
    sampling_ban: list[str] = Field(
        default_factory=list, description="Characters and strings that must not appear in completions"
    )
    tokens_per_batch: int = Field(
        default=65_536, ge=1, description="Maximum number of tokens in the sampler's cache at any time"
    )
    sampling_engine: Literal["transformers", "vllm", "server"] = Field(
        default="transformers",
        description="Engine that samples; transformers: the trainer's own model, or a copy of it; vllm: vLLM in the "
        "trainer's process; server: the vLLM servers of sampling.server_urls",
    )
    sampling_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Dtype of the engine's own weights; with engine transformers, another dtype than the trainer's "
        "makes a copy of the model; auto: model.compute_dtype",
    )
    sampling_check: bool = Field(
        default=True,
        description="Compare some greedy completions of the engine with those of the trainer's model at the start",
    )
    sampling_engine_options: dict[str, Any] = Field(
        default_factory=dict,
        description="Arguments of vllm.LLM for engine vllm, such as {gpu_memory_utilization = 0.4}",
    )
    sampling_engine_sleep: bool = Field(
        default=False,
        description="Release the memory of engine vllm while the policy is updated, if both share a GPU",
    )
    sampling_server_urls: list[str] = Field(
        default_factory=list,
        description="Base URLs of the vLLM servers of engine server, such as http://localhost:8000",
    )
    sampling_server_api_key_env: str | None = Field(
        default=None, description="Environment variable with the API key of sampling.server_urls"
    )
    sampling_server_deadline: float = Field(
        default=600.0, gt=0, description="Timeout per completion in seconds, including all retries on any server"
    )
    sampling_server_concurrency: int = Field(
        default=256, ge=1, description="Maximum number of concurrent completions per server"
    )
    sampling_weight_transfer: Literal["auto", "file", "nccl", "ipc"] = Field(
        default="auto",
        description="Transport of weights to the servers; file: a file in sampling.transfer_dir; nccl: from GPU to "
        "GPU; ipc: between processes on one GPU; auto: nccl if the policy is on a GPU, otherwise file",
    )
    sampling_transfer_dir: Path | None = Field(
        default=None,
        description="Directory that trainer and servers share, for weights and adapters; default: /dev/shm, or the "
        "directory of temporary files",
    )
    sampling_in_flight_updates: bool = Field(
        default=False,
        description="Continue unfinished completions with new weights, instead of waiting for them before an update",
    )
