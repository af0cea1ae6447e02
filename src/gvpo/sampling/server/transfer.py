"""New weights for servers, by vLLM's weight-transfer API, and adapters.

    pause ──▶ start ──▶ update ──▶ finish(label) ──▶ reset the prefix cache ──▶ resume ──▶ does it report the label?

Every publication has a label, which vLLM returns with every answer. An answer with another label is not used, so a
server that was restarted with its starting weights, or that missed an update, cannot contribute a row.
"""

import contextlib
import itertools
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gvpo.retries import Again, Refused
from gvpo.sampling.server.answers import Stale
from gvpo.sampling.server.client import Client, Failed, Lost
from gvpo.sampling.server.weights import spans

if TYPE_CHECKING:
    from torch import Tensor


class Transport(Protocol):
    """The way of the weights to the workers of a server.

    Attributes:
        momentary: Whether the weights can be sent only before `forget`.
    """

    momentary: bool

    def store(self, weights: "Iterable[tuple[str, Tensor]]") -> None:
        """Take the weights of a publication."""
        ...

    async def send(self, client: Client, label: str, seconds: float) -> None:
        """Send the weights of the latest publication to a server that is paused, and name them.

        Raises:
            Again: If it failed.
            Refused: If the server does not accept these weights.
        """
        ...

    def forget(self) -> None:
        """Drop what is no longer needed when the usable servers have the latest weights."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class Labels:
    """Labels of the publications of a session. The labels of another session are unknown."""

    def __init__(self) -> None:
        self._session, self._numbers = uuid.uuid4().hex[:8], itertools.count(1)
        self._known: dict[str, tuple[int, int | None]] = {}

    def new(self, version: int | None) -> str:
        """Return the label of the next publication."""
        number = next(self._numbers)
        label = f"gvpo-{self._session}-{number}" + ("" if version is None else f"-step-{version}")
        self._known[label] = (number, version)
        return label

    def version(self, label: str, oldest: str) -> int | None:
        """Return the version of a label.

        Raises:
            Stale: If the label is unknown, or older than another one.
        """
        number, version = self._known.get(label, (0, None))
        if number < self._known[oldest][0]:
            raise Stale(f"an answer comes from the weights {label!r}, and those of the run are {oldest!r}")
        return version


class PublishedWeights:
    """The weights of a publication, as a target of the servers.

    Args:
        labels: Labels of the session.
        version: Number of completed training steps of the policy with these weights.
        transport: Way of the weights.
        in_flight: Whether unfinished rows continue with the new weights; otherwise an update waits for them.
    """

    model: str | None = None

    def __init__(self, labels: Labels, version: int, transport: Transport, *, in_flight: bool) -> None:
        self.label = labels.new(version)
        self._labels, self._transport, self._in_flight = labels, transport, in_flight
        self.momentary = transport.momentary

    async def confirm(self, client: Client, seconds: float) -> bool:
        """Return whether a server reports the label of these weights; then it continues if it was paused."""
        answer = await client.get("/weight_info", seconds)
        if not isinstance(answer, Mapping) or answer.get("weight_version") != self.label:
            return False
        await client.post("/resume", None, seconds)
        return True

    async def bring(self, client: Client, seconds: float) -> None:
        """Implement `Target.bring`. A server that fails stays paused, so that partial weights sample nothing."""
        await client.post(f"/pause?mode={'keep' if self._in_flight else 'wait'}", None, seconds)
        try:
            await self._transport.send(client, self.label, seconds)
            await self._reset_cache(client, seconds)
        except Again:
            await _quietly(client, "/pause?mode=abort", seconds)
            raise
        except Refused:
            await _quietly(client, "/resume", seconds)
            raise
        if not await self.confirm(client, seconds):
            raise Lost(f"{client.url} does not report the weights {self.label!r} after an update")

    async def _reset_cache(self, client: Client, seconds: float) -> None:
        """Drop the cached prompts, which the older weights have computed; unfinished rows are then computed again."""
        query = "?reset_running_requests=true" if self._in_flight else ""
        answer = await client.post(f"/reset_prefix_cache{query}", None, seconds)
        if isinstance(answer, Mapping) and not answer.get("success", True):
            raise Lost(f"{client.url} could not reset its prefix cache")

    def versions(self, answer: Mapping[str, Any], choice: Mapping[str, Any], count: int) -> Sequence[int] | None:
        """Return the version of each token.

        Raises:
            Stale: If a token comes from unknown or older weights.
        """
        found: list[int] = []
        for label, start, end in spans(choice, count):
            version = self._labels.version(label, self.label)
            found += [0 if version is None else version] * (end - start)
        if len(found) != count:
            raise Stale("an answer does not say which weights it comes from; the server must be vLLM 0.32 or newer")
        return found


class PublishedAdapter:
    """An adapter on the servers' base model, under a new name for each publication.

    Args:
        labels: Labels of the session.
        version: Number of completed training steps of the policy with this adapter; None outside of training.
        directory: Adapter in PEFT's format, in a directory that the servers can read.
    """

    momentary = False

    def __init__(self, labels: Labels, version: int | None, directory: Path) -> None:
        self.model: str | None = labels.new(version)
        self._name, self._version, self._directory = self.model, version, str(directory.resolve())

    async def confirm(self, client: Client, seconds: float) -> bool:
        """Return whether a server has the adapter."""
        answer = await client.get("/v1/models", seconds)
        cards = answer.get("data") if isinstance(answer, Mapping) else None
        return any(isinstance(card, Mapping) and card.get("id") == self._name for card in cards or ())

    async def bring(self, client: Client, seconds: float) -> None:
        """Implement `Target.bring`. Rows in flight continue with their own adapter."""
        body = {"lora_name": self._name, "lora_path": self._directory}
        try:
            await client.post("/v1/load_lora_adapter", body, seconds)
        except Failed as failed:
            raise await _refusal(client, failed, seconds) from None

    async def unload(self, client: Client, seconds: float) -> None:
        """Remove the adapter from a server, if it has it."""
        await _quietly(client, "/v1/unload_lora_adapter", seconds, {"lora_name": self._name})

    def versions(self, answer: Mapping[str, Any], choice: Mapping[str, Any], count: int) -> Sequence[int] | None:
        """Return the version of each token, or None outside of training.

        Raises:
            Stale: If the answer comes from another adapter, or from the base model.
        """
        if answer.get("model") != self._name:
            raise Stale(f"an answer comes from {answer.get('model')!r}, and the adapter of the run is {self._name!r}")
        return None if self._version is None else [self._version] * count


async def update_from(client: Client, info: Mapping[str, Any], label: str, seconds: float) -> None:
    """Update a paused server with vLLM's calls, from information that its backend reads.

    Raises:
        Again: If a call failed.
        Refused: If the server does not accept the weights.
    """
    await client.post("/init_weight_transfer_engine", {"init_info": {}}, seconds)
    await _start(client, seconds)
    try:
        await client.post("/update_weights", {"update_info": dict(info)}, seconds)
    except Failed as failed:
        raise await _refusal(client, failed, seconds) from None
    await client.post("/finish_weight_update", {"weight_version": label}, seconds)


async def _start(client: Client, seconds: float) -> None:
    """Start an update. One that was interrupted is ended first, because vLLM allows only one."""
    try:
        await client.post("/start_weight_update", None, seconds)
    except Failed:
        await _quietly(client, "/finish_weight_update", seconds)
        await client.post("/start_weight_update", None, seconds)


async def _refusal(client: Client, failed: Failed, seconds: float) -> Again | Refused:
    """Return a failure of a server, as a refusal if the server works: another attempt would fail too."""
    try:
        await client.get("/health", seconds)
    except (Again, Refused):
        return failed
    return Refused(
        f"{failed}; serve the model that is trained, set sampling.transfer_dir to a directory that the server can "
        "read, and look into its log"
    )


async def _quietly(client: Client, path: str, seconds: float, body: Mapping[str, Any] | None = None) -> None:
    """Make a call whose failure changes nothing."""
    with contextlib.suppress(Again, Refused):
        await client.post(path, body, seconds)
