"""Progress of commands that sample and score problems: a bar on a terminal, lines elsewhere."""

import contextlib
import time
from collections.abc import Iterator

from gvpo.progress import StepProgress
from gvpo.rollout.collect import Rollout
from gvpo.rollout.fill import Watch


@contextlib.contextmanager
def watching(title: str, total: int, done: int) -> Iterator[Watch]:
    """Show the number of finished problems, their mean reward and length, and the speed, on standard error.

    Args:
        title: Title of the bar.
        total: Number of all problems.
        done: Number of problems that were finished before.

    Yields:
        The function that `rollout.fill` calls after each write.
    """
    with StepProgress(title, total, done, unit="problem", steady=False) as progress:
        counts = {"problems": done, "rows": 0, "tokens": 0, "rewarded": 0}
        reward, began = 0.0, time.perf_counter()

        def watch(rollout: Rollout) -> None:
            nonlocal reward
            rows = [row for group in rollout.groups for row in group.completions]
            rewards = [row.reward for row in rows if row.reward is not None]
            reward += sum(rewards)
            tokens = sum(len(row.tokens) for row in rows)
            new = {"problems": len(rollout.groups), "rows": len(rows), "tokens": tokens, "rewarded": len(rewards)}
            for name, more in new.items():
                counts[name] += more
            line = {"reward/mean": reward / max(1, counts["rewarded"])}
            if counts["tokens"]:
                line["length/mean"] = counts["tokens"] / counts["rows"]
                line["tokens/per_second"] = counts["tokens"] / (time.perf_counter() - began)
            progress.update(counts["problems"], line)

        yield watch
