"""Benchmark of asynchronous training: a sampler that sleeps as long as an update takes, with and without overlap.

    python benchmarks/overlap.py --steps 20 --rounds 3 --seconds 2

The sampler stands for servers on other machines: it returns random tokens after the duration of the last update, and
several threads may call it. Both runs of a round train the same small model on groups of the same size, one with
rollout.asynchronous and one without. With `--seconds`, an update sleeps until it has taken so long, as it does while an
accelerator computes; then the load of the machine has little influence. Without any other work, the ratio of the
wall-clock times would be 0.5.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gvpo import TrainConfig, Trainer, load_model
from gvpo.model.fresh_tokenizer import fresh_tokenizer
from gvpo.runfiles import read_metrics
from gvpo.sampling import Request, SamplingParams
from gvpo.training.engine import open as engines
from gvpo.training.learner import Learner
from gvpo.types import Completion

TOKENIZER = fresh_tokenizer(list("0123456789"))
INIT = {
    "architecture": "qwen2",
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "vocab_size": len(TOKENIZER),
    "eos_token_id": TOKENIZER.eos_token_id,
    "pad_token_id": TOKENIZER.pad_token_id,
}
ROWS = [{"prompt": f"{number}", "answer": str(number % 10)} for number in range(1000)]


class Sleeping:
    """A sampler that takes as long as the last update took."""

    shares_model, concurrent = False, True
    latency = 0.0

    def __init__(self, *_: Any) -> None:
        self.version = 0

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> list[list[Completion]]:
        """Return random tokens after a pause."""
        version = self.version
        time.sleep(Sleeping.latency)
        dice = random.Random(f"{seed} {step}")
        return [[_row(dice, params.max_tokens, version) for _ in range(params.group_size)] for _ in requests]

    def update(self, weights: Iterable[Any], version: int) -> None:
        """Note the version; random tokens need no weights."""
        self.version = version


def _row(dice: random.Random, length: int, version: int) -> Completion:
    tokens = [dice.randrange(10) for _ in range(length)]
    text = TOKENIZER.decode(tokens)
    return Completion(tokens, sampler_logprobs=[-2.3] * length, text=text, finish_reason="length", version=version)


def share(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
    """Return the fraction of characters that are the answer."""
    return [text.count(one) / len(text) for text, one in zip(completions, answer, strict=True)]


def measure(steps: int, *, overlaps: bool) -> list[dict[str, float]]:
    """Return the metrics lines of one run."""
    with tempfile.TemporaryDirectory() as directory:
        args = TrainConfig(
            run_dir=Path(directory) / "run",
            steps=steps,
            prompts_per_step=8,
            group_size=4,
            max_tokens=32,
            reference="initial",
            reward_workers=1,
            eval_problems=0,
            rollouts_every=0,
            checkpoint_every=0,
            checkpoint_verify=False,
            sampling_engine="server",
            sampling_server_urls=["http://localhost:1"],
            sampling_check=False,
            rollout_asynchronous=overlaps,
        )
        Trainer(load_model(None, init=INIT), share, args=args, train_dataset=ROWS, processing_class=TOKENIZER).train()
        return read_metrics(Path(directory) / "run/metrics.jsonl")


def total(lines: Sequence[dict[str, float]], *phases: str) -> float:
    """Return the seconds of some phases of all steps."""
    return sum(line.get(f"seconds/{phase}", 0.0) for line in lines for phase in phases)


def with_latency(least: float) -> None:
    """Let updates take at least `least` seconds, and the sampler as long as the last one; open it as the engine."""
    learn = Learner.learn

    def timed(learner: Learner, *words: Any) -> Any:
        began = time.perf_counter()
        found = learn(learner, *words)
        time.sleep(max(0.0, least - (time.perf_counter() - began)))
        Sleeping.latency = time.perf_counter() - began
        return found

    Learner.learn = timed  # type: ignore[method-assign, assignment]
    engines.OPENERS["server"] = "__main__:Sleeping"


def main() -> None:
    """Print both times of each round, and the median of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="steps per run")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of one run of each kind")
    parser.add_argument("--seconds", type=float, default=0.0, help="least duration of an update, in seconds")
    asked = parser.parse_args()
    with_latency(asked.seconds)
    measure(3, overlaps=False)  # it warms up, and measures the first latency
    ratios = []
    for number in range(asked.rounds):
        plain, overlapped = (measure(asked.steps, overlaps=overlaps) for overlaps in (False, True))
        ratios.append(total(overlapped, "total") / total(plain, "total"))
        print(
            f"round {number + 1}: {asked.steps} steps synchronous {total(plain, 'total'):.1f} s (sampling "
            f"{total(plain, 'sampling'):.1f} s), "
            f"asynchronous {total(overlapped, 'total'):.1f} s, age at most "
            f"{max(line['age/max'] for line in overlapped):.0f}, ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(f"median of the ratios {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
