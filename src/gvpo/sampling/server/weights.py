"""The weights that servers have, and how the answers to rows name them."""

from collections.abc import Mapping, Sequence
from typing import Any

from gvpo.errors import EngineError
from gvpo.sampling.server.client import Client


class OwnWeights:
    """The weights with which the servers were started, which all of them have in common. They have no versions."""

    model: str | None = None
    momentary = False

    def __init__(self) -> None:
        self._label: str | None = None

    async def confirm(self, client: Client, seconds: float) -> bool:
        """Implement `Target.confirm`: they are not brought."""
        return True

    async def bring(self, client: Client, seconds: float) -> None:
        """Implement `Target.bring`."""

    def versions(self, answer: Mapping[str, Any], choice: Mapping[str, Any], count: int) -> Sequence[int] | None:
        """Return None.

        Raises:
            EngineError: If answers come from different weights, such as those of a run that has updated one server.
        """
        for label, _, _ in spans(choice, count):
            self._label = label if self._label is None else self._label
            if label != self._label:
                raise EngineError(
                    f"some answers come from the weights {self._label!r} and some from {label!r}; a server was "
                    "restarted, or updated by another program; restart all servers with the same model, then continue "
                    "with --resume"
                )
        return None


def spans(choice: Mapping[str, Any], count: int) -> list[tuple[str, int, int]]:
    """Return label of the weights, first token and end of each part of an answer; empty if it has none."""
    parts = choice.get("weight_versions") or ()
    found = [(str(part["version"]), int(part["start"]), min(int(part["end"]), count)) for part in parts]
    return [(label, start, end) for label, start, end in found if start < end]
