"""A sampler with chosen delays and versions, which several threads may call, and a pool without processes."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gvpo.rewards import RewardBatch
from gvpo.sampling import Request, SamplingParams
from gvpo.types import Completion, Verdict

PARAMS = SamplingParams(group_size=2, max_tokens=3)


class Slow:
    """Yields groups after `delay(step, prompt id)` seconds each, the quickest first, and knows its version."""

    shares_model = False

    def __init__(self, delay: Callable[[int, str], float] = lambda step, name: 0.0, *, concurrent: bool = True) -> None:
        self.delay, self.concurrent, self.version = delay, concurrent, 0
        self.asked: dict[int, list[str]] = {}
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def _counted(self, number: int) -> Iterator[None]:
        with self._lock:
            self.at_once += number
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield
        finally:
            with self._lock:
                self.at_once -= number

    def stream(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> Iterator[tuple[int, list[Completion]]]:
        self.asked.setdefault(step, []).extend(request.id for request in requests)
        version, began = self.version, time.monotonic()
        delays = [self.delay(step, request.id) for request in requests]
        with self._counted(1):
            for place in sorted(range(len(requests)), key=lambda place: delays[place]):
                time.sleep(max(0.0, began + delays[place] - time.monotonic()))
                text = f"{step} {requests[place].id}"
                row = Completion([1], text=text, version=version, sampler_logprobs=[-1.0])
                yield place, [row] * params.group_size

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> list[list[Completion]]:
        found = dict(self.stream(requests, params, seed=seed, step=step))
        return [found[place] for place in range(len(requests))]


class Pool:
    """A pool that rewards each row with 1 after a delay, and remembers the sizes of its scorings."""

    first_failure = None

    def __init__(self, delay: float = 0.0, *, scores_rollouts: bool = False) -> None:
        self.delay, self.scores_rollouts, self.scores_batches = delay, scores_rollouts, scores_rollouts
        self.sizes: list[int] = []

    def score(self, batches: Sequence[RewardBatch]) -> list[list[Verdict]]:
        self.sizes.append(len(batches))
        time.sleep(self.delay)
        return [[Verdict(1.0, {"one": 1.0})] * len(batch) for batch in batches]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, states: Any) -> None:
        assert states == {}
