"""Completions of a file or of another run, by the token ids of their prompts."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from gvpo import notices
from gvpo.errors import DataError
from gvpo.rollout.collect import EncodedProblem
from gvpo.sampling.noise import noise_key
from gvpo.types import Completion, Group

SOURCE = "logged"
"""Source of the rows."""


class LoggedRows:
    """Completions that were logged; the run's own rewards score them together with the live rows.

    Args:
        groups: Groups with their rows, in the order of the file; groups of one prompt are joined.
        per_group: Maximum number of rows per prompt.
        seed: Random seed of the choice.
    """

    name = SOURCE

    def __init__(self, groups: Iterable[Group], per_group: int, *, seed: int) -> None:
        self.per_group, self._seed = per_group, seed
        self._rows: dict[tuple[int, ...], list[Completion]] = {}
        for group in groups:
            rows = [row for row in group.completions if row.finish_reason != "abort"]
            found = self._rows.setdefault(tuple(group.prompt), [])
            found += [dataclasses.replace(row, source=SOURCE, reward=None, version=None, versions=None) for row in rows]

    def check(self, items: Sequence[EncodedProblem]) -> None:
        """Compare the file's prompts with those of a run.

        Raises:
            DataError: If they have no prompt in common.

        Warns:
            GvpoWarning: If some prompts of the run have too few rows.
        """
        counts = [len(self._rows.get(tuple(item.prompt), [])) for item in items]
        if not any(counts):
            raise DataError(
                "no prompt of rollout.logged_path is a training prompt, as token ids; encode both with the same "
                "settings, or remove rollout.logged"
            )
        few = sum(count < self.per_group for count in counts)
        if few:
            notices.warn(
                f"rollout.logged_path has fewer than {self.per_group} completions for {few} of {len(items)} prompts; "
                "the missing ones are sampled live and counted in rows/logged_missing"
            )

    def rows(self, items: Sequence[EncodedProblem], names: Sequence[str], step: int) -> list[list[Completion]]:
        """Return rows of each prompt, a choice that depends on the seed, the step and the name of the group only."""
        return [self._chosen(item.prompt, name, step) for item, name in zip(items, names, strict=True)]

    def _chosen(self, prompt: tuple[int, ...], name: str, step: int) -> list[Completion]:
        known = self._rows.get(tuple(prompt), [])
        key = noise_key(self._seed, step, f"logged of {name}", 0)
        order = np.random.Generator(np.random.Philox(key=key)).permutation(len(known))
        return [known[place] for place in sorted(order[: self.per_group].tolist())]
