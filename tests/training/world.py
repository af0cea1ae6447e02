"""Ranks as gloo processes, forked from a server that has imported everything, so that a world starts in a second."""

import multiprocessing
import os
import pickle
import traceback
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PRELOADED = ["tests.training.rank_jobs", "gvpo.cli.main", "gvpo.cli.train", "gvpo.training.warm_start"]
SECONDS = 120.0
"""Timeout of a rank that waits for another, and of the test that waits for a rank."""


@dataclass(frozen=True)
class End:
    """The end of a rank.

    Args:
        code: Exit code; minus a signal's number if a signal ended it.
        result: Result of its job.
        error: The error's class and message, and its traceback.
    """

    code: int
    result: Any
    error: tuple[str, str, str] | None


def world(count: int, directory: Path, job: Callable[..., Any], *words: Any, **named: Any) -> list[Any]:
    """Return the result of each rank's `job(*words)`; an error of a rank is raised here."""
    ends = run_world(count, directory, job, *words, **named)
    for end in ends:
        assert end.error is None, end.error[2]
        assert end.code == 0
    return [end.result for end in ends]


def run_world(count: int, directory: Path, job: Callable[..., Any], *words: Any, **named: Any) -> list[End]:
    """Run a job, a function of a module, on each of `count` ranks, and wait for all."""
    os.environ.update({"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    place = directory / f"world-{uuid.uuid4().hex}"
    place.mkdir(parents=True)
    processes = [context.Process(target=_run, args=(rank, count, place, job, words, named)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
    _end(processes)
    return [_told(place / str(rank), process.exitcode) for rank, process in enumerate(processes)]


def _end(processes: Sequence[Any]) -> None:
    """End processes that hang; they return no result."""
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()


def _told(file: Path, code: int | None) -> End:
    result, error = pickle.loads(file.read_bytes()) if file.exists() else (None, None)
    return End(code if code is not None else -1, result, error)


def _run(
    rank: int, count: int, place: Path, job: Callable[..., Any], words: Sequence[Any], named: dict[str, Any]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{place}/store", rank=rank, world_size=count, timeout=timedelta(seconds=SECONDS)
    )
    result, error = None, None
    try:
        result = job(*words, **named)
    except BaseException as raised:
        error = (type(raised).__name__, str(raised), traceback.format_exc())
    (place / str(rank)).write_bytes(pickle.dumps((result, error)))
    if error is None:  # after an error the other ranks are abandoned, as by a program that ends
        dist.destroy_process_group()
