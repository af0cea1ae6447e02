"""The servers of a sampler: which of them is free, which one has failed, and its way back.

                    ┌── no connection, no answer to a probe, other weights ──▶ down
    ready ──────────┤                                                            │ reached, weights brought, probed
      ▲             └── new weights ──▶ updating ──▶ ready                        │
      └────────────────────────────────────────────────────────────────────────────┘

All methods run in the thread of the event loop, so that the state needs no locks.
"""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from gvpo import notices
from gvpo.errors import EngineError, GvpoWarning
from gvpo.retries import Again, Refused, backoff
from gvpo.sampling.server.answers import Weights
from gvpo.sampling.server.client import GENERATE, Client, Lost

QUIET, PROBE = 1 / 8, 1 / 4
"""Parts of the deadline: a server that has answered nothing for the first is probed, with the second as a deadline."""
KNOCK = 5.0
"""Maximum number of seconds for the first call to a server that was down."""
DRAIN_STEP = 0.01
"""Seconds between two looks at the rows in flight."""


class Target(Weights, Protocol):
    """The weights that all servers are to have."""

    @property
    def model(self) -> str | None:
        """Name of the adapter in requests; None is the base model."""
        ...

    @property
    def momentary(self) -> bool:
        """True if servers can get the weights only while they are published."""
        ...

    async def confirm(self, client: Client, seconds: float) -> bool:
        """Return whether a server has these weights, according to its own report, and samples from them."""
        ...

    async def bring(self, client: Client, seconds: float) -> None:
        """Give a server these weights.

        Raises:
            Again: If it failed; the server must not be used until another call succeeds.
            Refused: If it can never succeed.
        """
        ...


@dataclass(eq=False)
class Member:
    """A server and its state.

    Args:
        client: Calls of the server.
        lost: Future that is set when answers to the requests in flight are no longer expected.
        state: Whether new rows may be sent to it.
        in_flight: Number of rows that it is computing.
        heard: Time of its last answer.
        rests_until: Time until which it asks to wait.
        reason: Its last failure.
    """

    client: Client
    lost: "asyncio.Future[None]"
    state: Literal["ready", "updating", "down"] = "ready"
    in_flight: int = 0
    heard: float = 0.0
    rests_until: float = 0.0
    reason: str = ""
    is_probed: bool = False
    tasks: "set[asyncio.Task[None]]" = field(default_factory=set)


class Pool:
    """Servers that answer the same requests.

    Args:
        clients: Calls of each server.
        target: Weights that the servers have.
        concurrency: Maximum number of rows in flight per server.
        deadline: Seconds after which the absence of all servers is an error.
    """

    def __init__(self, clients: Sequence[Client], target: Target, *, concurrency: int, deadline: float) -> None:
        self._loop = asyncio.get_running_loop()
        self.members = [Member(client, self._loop.create_future()) for client in clients]
        self.target, self._concurrency, self._deadline = target, concurrency, deadline
        self._waiting: deque[asyncio.Future[Member]] = deque()
        self._down_since: float | None = None
        self._changed = asyncio.Event()
        self.on_air: Counter[Target] = Counter()
        """Number of rows in flight by the weights that they were sent to."""

    @property
    def urls(self) -> str:
        """Return the servers' URLs, for messages."""
        return ", ".join(member.client.url for member in self.members)

    async def take(self, *, first: bool = False) -> Member:
        """Wait for the usable server with the fewest rows in flight, and count one row more.

        Args:
            first: Whether the row goes before the rows that wait already.

        Raises:
            EngineError: If no server can be used until the deadline.
        """
        self._check_down()
        future: asyncio.Future[Member] = self._loop.create_future()
        (self._waiting.appendleft if first else self._waiting.append)(future)
        self._dispatch()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result())
            raise

    def release(self, member: Member) -> None:
        """Count one row less, and let the next one begin."""
        member.in_flight -= 1
        self._dispatch()

    async def attempt(self, member: Member, body: Mapping[str, Any]) -> Any:
        """Return a server's answer to a row.

        Raises:
            Again: If the attempt fails, or the server is lost.
            Refused: If the server rejects the request.
        """
        lost = member.lost
        call = asyncio.ensure_future(member.client.post(GENERATE, body, 2 * self._deadline))  # the row's deadline is
        try:  # shorter
            while not call.done():
                await asyncio.wait({call, lost}, timeout=QUIET * self._deadline, return_when=asyncio.FIRST_COMPLETED)
                self._watch(member, call, lost)
            member.heard = self._loop.time()
            return call.result()
        finally:
            call.cancel()

    def _watch(self, member: Member, call: "asyncio.Future[Any]", lost: "asyncio.Future[None]") -> None:
        """Raise an error if a server was lost during a call, and probe one that has answered nothing for a while."""
        if call.done():
            return
        if lost.done():
            raise Lost(member.reason)
        silent = self._loop.time() - member.heard
        if member.state == "updating" and silent >= (QUIET + PROBE) * self._deadline:
            member.reason = f"{member.client.url} did not finish its rows before an update for {silent:g} s"
            self._lose(member)  # a paused server answers no probe
        elif silent >= QUIET * self._deadline:
            self._suspect(member)

    def rest(self, member: Member, seconds: float, reason: str) -> None:
        """Send no new rows to a server for some time."""
        member.reason, member.rests_until = reason, self._loop.time() + seconds
        self._loop.call_later(seconds + 1e-3, self._dispatch)

    def doubt(self, member: Member, reason: str) -> None:
        """Send no new rows to a server before it is checked. Rows in flight continue, unless the check fails."""
        if member.state == "ready":
            self._fall(member, reason)

    async def switch(self, target: Target) -> None:
        """Give all servers new weights. On return, all usable servers have them, and there is at least one.

        Raises:
            EngineError: If a server rejects them, or no server has them before the deadline.
        """
        self.target = target
        if target.momentary:
            await asyncio.gather(*map(self._knock, self.members))
        ready = [member for member in self.members if member.state == "ready"]
        for member in ready:
            member.state = "updating"
        refused = await asyncio.gather(*(self._update(member) for member in ready))
        reasons = [str(error) for error in refused if error is not None]
        if reasons:
            raise EngineError("; ".join(reasons))
        await self._one_usable()

    async def _knock(self, member: Member) -> None:
        """Let a server that is down take part in an update if it can be reached."""
        if member.state != "down":
            return
        with contextlib.suppress(Again, Refused):
            await member.client.get("/health", min(KNOCK, PROBE * self._deadline))
            for task in member.tasks:
                task.cancel()
            self._rise(member)

    async def _one_usable(self) -> None:
        """Wait until a server can be used.

        Raises:
            EngineError: If there is none before the deadline.
        """
        while not any(member.state == "ready" for member in self.members):
            self._check_down()
            self._changed.clear()
            await self._changed.wait()

    async def _update(self, member: Member) -> Refused | None:
        """Bring the weights to a server; one that fails is down. Return the error of a server that rejects them."""
        try:
            await self.target.bring(member.client, self._deadline)
        except Refused as refused:
            self._drop(member, str(refused))  # without a way back, because the run ends
            return refused
        except Again as failed:
            self._fall(member, str(failed))
            self._lose(member)
        else:
            self._rise(member)
        return None

    async def drained(self) -> None:
        """Wait until all rows in flight were sent to the newest weights."""
        while any(target is not self.target for target in self.on_air):
            await asyncio.sleep(DRAIN_STEP)

    def landed(self, target: Target) -> None:
        """Count one row less of these weights."""
        self.on_air[target] -= 1
        if not self.on_air[target]:
            del self.on_air[target]

    async def each(self, call: Callable[[Client, float], Coroutine[Any, Any, None]]) -> None:
        """Make a call to each usable server."""
        usable = [member.client for member in self.members if member.state == "ready"]
        await asyncio.gather(*(call(client, PROBE * self._deadline) for client in usable))

    def _suspect(self, member: Member) -> None:
        """Probe a server that has answered nothing for a while."""
        if member.state == "ready" and not member.is_probed:
            member.is_probed = True
            self._spawn(member, self._probe_suspect(member))

    async def _probe_suspect(self, member: Member) -> None:
        try:
            await self._probe(member)
        except (Again, Refused) as failed:
            if member.state == "ready":
                self._fall(member, str(failed))
                self._lose(member)
        finally:
            member.is_probed = False

    async def _probe(self, member: Member) -> None:
        """Ask for one token, because /health of a server whose engine is stuck answers 200."""
        parameters = {"max_tokens": 1, "temperature": 0.0, "ignore_eos": True, "detokenize": False}
        model = {} if self.target.model is None else {"model": self.target.model}
        body = {"token_ids": [0], "sampling_params": parameters, **model}
        answer = await member.client.post(GENERATE, body, PROBE * self._deadline)
        try:
            (choice,) = answer["choices"]
            count = len(choice["token_ids"])
        except (LookupError, TypeError, ValueError):
            raise Lost(f"{member.client.url} does not answer a probe with a token") from None
        self.target.versions(answer, choice, count)
        member.heard = self._loop.time()

    def _drop(self, member: Member, reason: str) -> None:
        """Send no rows to a server. Without any server, all rows fail after the deadline."""
        member.state, member.reason = "down", reason
        if self._down_since is None and all(each.state == "down" for each in self.members):
            self._down_since = self._loop.time()
            self._loop.call_later(self._deadline + 1e-3, self._check_waiting)

    def _fall(self, member: Member, reason: str) -> None:
        """Drop a server until it answers with the right weights."""
        self._drop(member, reason)
        with contextlib.suppress(GvpoWarning):  # warnings may be errors, which are not for this thread
            notices.warn(f"{reason}; {member.client.url} is not used until it answers with the right weights")
        self._spawn(member, self._recover(member))

    def _lose(self, member: Member) -> None:
        """End the wait for the rows in flight, which are sent again."""
        if not member.lost.done():
            member.lost.set_result(None)

    def _rise(self, member: Member) -> None:
        member.state, member.heard = "ready", self._loop.time()
        if member.lost.done():
            member.lost = self._loop.create_future()
        self._down_since = None
        self._changed.set()
        self._dispatch()

    async def _recover(self, member: Member) -> None:
        """Check a server until it answers with the right weights; bring them if it has others."""
        attempt = 0
        while True:
            target = self.target
            try:
                if not await target.confirm(member.client, PROBE * self._deadline):
                    self._lose(member)
                    await target.bring(member.client, self._deadline)
                await self._probe(member)
                if target is self.target:
                    return self._rise(member)
            except (Again, Refused) as failed:
                member.reason = str(failed)
                self._lose(member)
                await asyncio.sleep(max(backoff(attempt), getattr(failed, "wait", 0.0)))
                attempt += 1

    def _spawn(self, member: Member, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        member.tasks.add(task)
        task.add_done_callback(member.tasks.discard)

    def _dispatch(self) -> None:
        """Give free servers to the rows that wait, in order."""
        while self._waiting:
            if self._waiting[0].done():
                self._waiting.popleft()
                continue
            free = min(self._free(), key=lambda member: member.in_flight, default=None)
            if free is None:
                return
            free.in_flight += 1
            self._waiting.popleft().set_result(free)

    def _free(self) -> Iterator[Member]:
        now = self._loop.time()
        for member in self.members:
            if member.state == "ready" and member.in_flight < self._concurrency and member.rests_until <= now:
                yield member

    def _check_waiting(self) -> None:
        """Raise the error of `_check_down` in all rows that wait."""
        self._changed.set()
        try:
            self._check_down()
        except EngineError as error:
            for future in self._waiting:
                if not future.done():
                    future.set_exception(error)

    def _check_down(self) -> None:
        """Raise an error if no server could be used for the deadline."""
        if self._down_since is not None and self._loop.time() - self._down_since >= self._deadline:
            reasons = "; ".join(dict.fromkeys(member.reason for member in self.members))
            raise EngineError(
                f"none of the servers {self.urls} could be used for {self._deadline:g} s ({reasons}); start them, then "
                "continue with --resume"
            )
