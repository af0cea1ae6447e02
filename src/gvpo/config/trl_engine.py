"""Conversion of TRL's options about vLLM to the settings of an engine; see `gvpo.config.from_trl`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gvpo.config.from_trl import Options, Settings

ARGUMENTS = {
    "vllm_gpu_memory_utilization": "gpu_memory_utilization",
    "vllm_max_model_length": "max_model_len",
    "vllm_model_impl": "model_impl",
}
"""Options of TRL with the argument of `vllm.LLM` that each sets."""
USUAL = {"vllm_model_impl": "vllm"}
"""Values that need no argument, because they change nothing."""


def engine(o: "Options") -> "Settings":
    """Yield the engine, and its options or the address of its server."""
    server = o["vllm_mode"] == "server"
    url = o["vllm_server_base_url"] or f"http://{_host(o['vllm_server_host'])}:{o['vllm_server_port'] or 8000}"
    arguments, sleeps = dict(_arguments(o)), bool(o["vllm_enable_sleep_mode"])
    several = (o["vllm_tensor_parallel_size"] or 1) > 1
    o["vllm_server_timeout"]  # how long TRL waits for the server to start
    if not o["use_vllm"]:
        return
    yield "sampling.engine", "server" if server else "vllm"
    if server:
        yield "sampling.server_urls", [url]
        o.lose("vllm_mode", "start `vllm serve` as `gvpo docs engines` says, since `trl vllm-serve` has other routes")
        return
    yield "sampling.engine_options", arguments
    if several:
        o.lose("vllm_tensor_parallel_size", "start `vllm serve` for several devices, and set sampling.server_urls")
    if sleeps:
        yield "sampling.engine_sleep", True


def _arguments(o: "Options") -> Iterator[tuple[str, Any]]:
    for name, argument in ARGUMENTS.items():
        value = o[name]
        if value is not None and value != USUAL.get(name):
            yield argument, value


def _host(name: str | None) -> str:
    """Return the host to connect to; 0.0.0.0 is where TRL's server listens by default."""
    return "localhost" if name in (None, "", "0.0.0.0") else str(name)


def weights(o: "Options", *, by_sequence: bool) -> "Settings":
    """Yield the cap of truncated importance weights, if TRL truncates them per token."""
    cap, larger = o["vllm_importance_sampling_cap"], o["vllm_importance_sampling_clip_max"]
    corrects, mode = o["vllm_importance_sampling_correction"], o["vllm_importance_sampling_mode"]
    if not o["use_vllm"]:
        return
    if by_sequence:
        if corrects:
            o.lose("vllm_importance_sampling_mode", "gspo has no weights for the engine")
    elif not corrects:
        o.lose("vllm_importance_sampling_correction", "rows of an engine always have weights; see objective.is_cap")
    elif mode == "token_truncate":
        if cap or larger:
            yield "objective.is_cap", cap or larger
    else:
        o.lose("vllm_importance_sampling_mode", "objective.is_cap truncates the weight of each token")
