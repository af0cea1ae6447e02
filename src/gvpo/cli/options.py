"""Arguments that `eval` and `generate` share."""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gvpo import runfiles
from gvpo.errors import ConfigError

if TYPE_CHECKING:
    from gvpo.evaluation.jobs import PoolOptions
    from gvpo.sampling.engines import EngineOptions

INTERRUPTED = 130
"""The exit code of work that Ctrl-C has stopped."""


def add_sampling(parser: argparse.ArgumentParser, *, samples: str) -> None:
    """How completions are drawn; `samples` describes --n."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--n", type=int, metavar="N", help=samples)
    group.add_argument("--max-tokens", type=int, metavar="N", help="tokens a completion at most")
    group.add_argument("--temperature", type=float, metavar="T", help="0 is greedy")
    group.add_argument("--top-p", type=float, metavar="P", help="draw from the most likely tokens of this probability")
    group.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from the K most likely tokens")
    group.add_argument("--seed", type=int, default=0, help="of the sampling noise (default: 0)")
    group.add_argument("--at-once", type=int, metavar="N", help="problems between two writes: what a crash can cost")


def check_sampling(options: argparse.Namespace) -> None:
    """Refuse numbers that `add_sampling` has read and that would sample nothing.

    Raises:
        ConfigError: one is below 1.
    """
    for name in ("n", "max_tokens", "at_once"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: give at least 1")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Who samples, and in which precision."""
    group = parser.add_argument_group("engine")
    group.add_argument("--engine", default="transformers", metavar="NAME", help="who samples (default: transformers)")
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="default auto: bfloat16 on a GPU, float32 elsewhere",
    )
    group.add_argument(
        "--tokens-per-batch", type=int, default=65_536, metavar="N", help="tokens in the cache at once (default: 65536)"
    )


def add_pool(parser: argparse.ArgumentParser) -> None:
    """How rewards are run."""
    group = parser.add_argument_group("rewards")
    cores = min(8, os.cpu_count() or 1)
    group.add_argument("--workers", type=int, default=cores, metavar="N", help=f"processes (default here: {cores})")
    group.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="of a call (default: 10)")


def engine_options(options: argparse.Namespace) -> "EngineOptions":
    """What `add_engine` has read."""
    from gvpo.sampling.engines import EngineOptions

    return EngineOptions(options.dtype, options.tokens_per_batch)


def pool_options(options: argparse.Namespace) -> "PoolOptions":
    """What `add_pool` has read."""
    from gvpo.evaluation.jobs import PoolOptions

    return PoolOptions(options.workers, options.timeout)


def model_path(name: str) -> str:
    """A model's directory or hub id; of a run, its newest checkpoint.

    Raises:
        RunError: the run has no checkpoint.
    """
    if not (Path(name) / runfiles.CHECKPOINTS).is_dir():
        return name
    from gvpo.training.checkpoint.publish import checkpoint_in

    return str(checkpoint_in(name))


def going_on(command: str) -> int:
    """Say how to go on after Ctrl-C, and the exit code."""
    words = [word for word in sys.argv[1:] if word != "--resume"]
    again = shlex.join(["gvpo", *(words if words[:1] == [command] else [command, "..."]), "--resume"])
    print(f"gvpo: stopped; go on with: {again}", file=sys.stderr)
    return INTERRUPTED
