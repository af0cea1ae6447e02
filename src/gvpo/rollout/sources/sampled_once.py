"""Groups that the starting policy samples once."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gvpo.data import load_records, write_groups
from gvpo.errors import RewardError, RunError
from gvpo.rollout.collect import Rollout, failures, stamped
from gvpo.rollout.group_file import records
from gvpo.rollout.offline import Records
from gvpo.rollout.sources.base import StatelessSource
from gvpo.rollout.usable import MAX_FAILED_SHARE
from gvpo.update.distributed import ranks


class SampledOnceSource(StatelessSource):
    """Groups that the run's starting policy samples once; they are stored in a file, and the run trains on that file.

    Args:
        path: File in the form that `data.groups` reads.
        live: Source whose first rollout is sampled.
        read: Function from rows of the file to the source to train from.
        resumed: Whether the file may exist from an earlier session.
    """

    def __init__(
        self, path: Path, live: StatelessSource, read: Callable[[Records], StatelessSource], *, resumed: bool
    ) -> None:
        self._path, self._live, self._read, self._resumed = path, live, read, resumed
        self._source: StatelessSource | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the live source, whose rewards evaluate."""
        return self._live.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of the live source."""
        self._live.load_state_dict(state)

    def rollout(self, step: int) -> Rollout:
        """Return the groups of this step, which are sampled now if it is the first. Their rows have version 0.

        Raises:
            RewardError: If most rewards failed.
            RunError: If a file already exists that this run did not write.
        """
        if self._source is None:
            if not ranks.on_first(self._path.exists):
                self._sample()
            elif not self._resumed:
                raise RunError(f"{self._path} already exists; train on it with data.groups, or choose another run.dir")
            self._source = self._read(load_records(self._path))
        return stamped(self._source.rollout(step), 0)

    def _sample(self) -> None:
        rollout = self._live.rollout(1)
        verdicts = [verdict for group in rollout.verdicts for verdict in group]
        if sum(verdict.reward is None for verdict in verdicts) > MAX_FAILED_SHARE * len(verdicts):
            raise RewardError(f"most rewards of the sampled groups failed: {failures(rollout)}")
        ranks.on_first(lambda: write_groups(self._path, records(rollout)))
        self._resumed = True
