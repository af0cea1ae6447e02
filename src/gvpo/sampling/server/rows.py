"""One row from its first request to its completion.

    take a server ──▶ send ──▶ read ──▶ completion
          ▲             └── failed, partial, aborted, of other weights ──┐
          └──────────────────────────────────────────────────────────────┘   until the deadline

A row is sent again without changing the result, because its seed fixes its tokens. Only one of its answers is read.
"""

import asyncio
import itertools

from gvpo.errors import EngineError
from gvpo.retries import Again, Refused, backoff
from gvpo.sampling.server.answers import Aborted, Ask, Stale, Unreadable, read
from gvpo.sampling.server.client import Busy, Lost, Missing
from gvpo.sampling.server.pool import Member, Pool
from gvpo.sampling.vllm.request import RequestFormat
from gvpo.types import Completion

MOST_UNREADABLE = 4
"""Number of unreadable answers to a row that end the run: its seed is fixed, so the next one would be the same."""

_numbers = itertools.count()


class RowSampler:
    """Samples rows from the servers of a pool.

    Args:
        pool: The servers.
        form: Format of requests and results.
        deadline: Seconds per row from its first request, including all attempts.
    """

    def __init__(self, pool: Pool, form: RequestFormat, deadline: float) -> None:
        self._pool, self._form, self._deadline = pool, form, deadline

    async def sample(self, ask: Ask) -> Completion:
        """Return the completion of a row.

        Returns:
            The completion. It is a fragment with the finish reason "abort" if the engine gave up each attempt before
            the deadline.

        Raises:
            EngineError: If there is no completion before the deadline, or the servers' answers cannot be used.
            ModelError: If the log-probs are not finite.
        """
        row = _Row(self._pool, self._form, ask)
        member = await self._pool.take()
        try:
            async with asyncio.timeout(self._deadline):
                return await row.completed(member)
        except TimeoutError:
            if row.fragment is not None:
                return row.fragment
            raise EngineError(
                f"a row of {ask.request.id!r} was not finished in {self._deadline:g} s by {self._pool.urls} (last: "
                f"{row.last or 'no answer'}); raise sampling.server_deadline, or check the servers, then continue with "
                "--resume"
            ) from None


class _Row:
    """Attempts of one row."""

    def __init__(self, pool: Pool, form: RequestFormat, ask: Ask) -> None:
        self._pool, self._form, self._ask = pool, form, ask
        self.fragment: Completion | None = None
        self.last = ""
        self._unreadable = self._failed = 0
        self._pause = 0.0

    async def completed(self, member: Member) -> Completion:
        """Send the row, to this server first, until there is a completion."""
        while True:
            try:
                row = await self._once(member)
            finally:
                self._pool.release(member)
            if row is not None:
                return row
            await asyncio.sleep(self._pause)
            self._failed += 1
            member = await self._pool.take(first=True)

    async def _once(self, member: Member) -> Completion | None:
        """Send the row to a server. Return None after a failure, which is then known to the pool."""
        target, name = self._pool.target, f"gvpo-{next(_numbers)}"
        self._pool.on_air[target] += 1
        try:
            answer = await self._pool.attempt(member, self._ask.body(name, target.model))
            return read(answer, self._ask, name, self._form, target)
        except Missing as missing:
            if target.model is None:
                raise EngineError(str(missing)) from None
            self._judge(member, Lost(str(missing)))  # a server that was restarted has no adapter
        except Refused as refused:
            raise EngineError(str(refused)) from None
        except Again as failed:
            self._judge(member, failed)
        finally:
            self._pool.landed(target)
        return None

    def _judge(self, member: Member, failed: Again) -> None:
        """Decide what a failure says about the server, and how long the row waits.

        Raises:
            EngineError: If answers to this row cannot be read, again and again.
        """
        self.last, self._pause = str(failed), 0.0
        if isinstance(failed, Busy):
            self._pool.rest(member, max(failed.wait, backoff(self._failed)), str(failed))
        elif isinstance(failed, Lost | Stale):
            self._pool.doubt(member, str(failed))
        else:
            self._pause = backoff(self._failed)
            self.fragment = failed.row if isinstance(failed, Aborted) else self.fragment
            self._unreadable += isinstance(failed, Unreadable)
        if self._unreadable >= MOST_UNREADABLE:
            raise EngineError(
                f"{member.client.url} answers a row of {self._ask.request.id!r} with something else, "
                f"{self._unreadable} times: {self.last}"
            )
