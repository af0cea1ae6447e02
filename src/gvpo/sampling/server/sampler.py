"""Sampling with vLLM servers over HTTP.

rows of all requests ──seed per row──▶ free server ──▶ answer ──▶ group complete? ──▶ yielded
▲    │ failed: another server, or the same after it was checked
└────┘
"""

import asyncio
import contextlib
import dataclasses
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
from transformers import AutoConfig

from gvpo import notices
from gvpo.errors import ConfigError, EngineError
from gvpo.hub import from_hub
from gvpo.model import endings, lora
from gvpo.model.generation_config import stored_generation_config
from gvpo.retries import secret
from gvpo.sampling.base import Request, SamplingParams
from gvpo.sampling.decode import Tally
from gvpo.sampling.engines import EngineOptions
from gvpo.sampling.limits import most_tokens
from gvpo.sampling.server.answers import Ask
from gvpo.sampling.server.client import Client, Servers
from gvpo.sampling.server.event_loop import EventLoop
from gvpo.sampling.server.file_transport import FileTransport
from gvpo.sampling.server.greeting import greet
from gvpo.sampling.server.pool import Pool
from gvpo.sampling.server.rows import RowSampler
from gvpo.sampling.server.transfer import Labels, PublishedAdapter, PublishedWeights, Transport
from gvpo.sampling.server.weights import OwnWeights
from gvpo.sampling.vllm.request import RequestFormat
from gvpo.types import Completion

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LAST_CALL = 5.0
"""Maximum number of seconds to remove an adapter at the end."""
Finished = tuple[int, int, "Future[Completion]"]
"""Position of a request, number of a row, and its result."""


class ServerSampler:
    """Samples completions from vLLM servers that serve the same model.

    Several threads may sample at once. A row that fails is sent again, to another server if there is one; its seed
    fixes its tokens, so that the result does not depend on which server answers.

    Before the first update, rows come from the weights with which the servers were started, and have no version.

    Args:
        servers: Addresses of the servers, and limits.
        form: Format of requests and results. The context is limited to that of the servers.
        model: Directory or Hub ID of the model that the servers are to serve; another name there is a warning. None if
            they get their weights by `update`.
        transport: Function that opens the way of new weights, before the first update; None if there are no updates.
        in_flight_updates: Whether unfinished rows continue with new weights; otherwise an update waits for them.

    Raises:
        EngineError: If a server cannot be reached, or is not a vLLM server.
        ConfigError: If servers have different models, or another tokenizer.
    """

    concurrent = True
    shares_model = False

    def __init__(
        self,
        servers: Servers,
        form: RequestFormat,
        *,
        model: str | None = None,
        transport: Callable[[], Transport] | None = None,
        in_flight_updates: bool = False,
    ) -> None:
        self._servers, self._events = servers, EventLoop()
        self._open_transport, self._in_flight = transport, in_flight_updates
        self._labels, self._updating = Labels(), threading.Lock()
        self._transport: Transport | None = None
        self._adapter: PublishedAdapter | None = None
        kept = servers.concurrency * len(servers.urls)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=kept)
        self._http = httpx2.AsyncClient(limits=limits, timeout=None)
        try:
            self._events.run(self._connect(form, model))
        except BaseException:
            self.close()
            raise

    async def _connect(self, form: RequestFormat, model: str | None) -> None:
        key = secret(self._servers.api_key_env)
        clients = [Client(url, self._http, key) for url in self._servers.urls]
        context = await greet(clients, model, form.tokenizer, self._servers.deadline)
        least = min((each for each in (context, form.context) if each is not None), default=None)
        self._form = dataclasses.replace(form, context=least)
        self._is_shorter = least is not None and least != form.context  # until that was said
        s = self._servers
        self._pool = Pool(clients, OwnWeights(), concurrency=s.concurrency, deadline=s.deadline)
        self._rows = RowSampler(self._pool, self._form, s.deadline)

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> list[list[Completion]]:
        """Sample `params.group_size` completions for each request; see `Sampler.sample`.

        Raises:
            DataError: If a prompt is empty or leaves no room in the model's context, or if ids are not distinct.
            ConfigError: If vLLM does not support `params`.
            EngineError: If the servers fail, or do not answer before the deadline.
            ModelError: If log-probs are not finite.
        """
        found = dict(self.stream(requests, params, seed=seed, step=step))
        return [found[place] for place in range(len(requests))]

    def stream(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield each group of `sample` as soon as it is finished; see `StreamingSampler.stream`.

        Raises:
            GvpoError: In the cases of `sample`.
        """
        self.check(requests, params)
        finished: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        futures: list[Future[Completion]] = []
        try:
            for place, request in enumerate(requests):
                for row in range(params.group_size):
                    parameters = self._form.parameters(request, params, seed=seed, step=step, row=row)
                    futures.append(self._events.start(self._rows.sample(Ask(request, row, parameters))))
                    futures[-1].add_done_callback(partial(_put, finished, place, row))
            yield from _groups(finished, len(requests), params.group_size)
        finally:
            for future in futures:
                future.cancel()

    @property
    def rows_at_once(self) -> int:
        """Return the number of rows from which larger batches no longer increase the speed much."""
        return 2 * self._servers.concurrency * len(self._servers.urls)

    def check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        """Raise the errors of requests and parameters that vLLM cannot process; see `RequestFormat.check`."""
        self._form.check(requests, params)
        longest = max(
            (len(each.prompt) + most_tokens(each, params.max_tokens) for each in requests), default=params.max_tokens
        )
        if self._is_shorter and self._form.context is not None and longest > self._form.context:
            self._is_shorter = False
            notices.warn(
                f"the servers' context of {self._form.context} tokens cuts completions before sampling.max_tokens="
                f"{params.max_tokens}; start them with a larger --max-model-len, or lower it"
            )

    def update(self, weights: "Iterable[tuple[str, Tensor]]", version: int) -> None:
        """Give new weights to all servers, at the same time; see `UpdatableSampler.update`.

        A server that cannot be reached gets them before it is used again.

        Raises:
            EngineError: If a server rejects the weights, or no server has them before the deadline.
        """
        with self._updating:
            transport = self._opened_transport()
            transport.store(weights)
            target = PublishedWeights(self._labels, version, transport, in_flight=self._in_flight)
            self._events.run(self._pool.switch(target))
            transport.forget()

    def update_adapter(self, directory: str | Path, version: int | None) -> None:
        """Sample from an adapter on the servers' base model; see `AdapterSampler.update_adapter`.

        On return, no row in flight uses an older adapter.

        Args:
            directory: Adapter in PEFT's format, in a directory that the servers can read.
            version: Number of completed training steps of the policy with this adapter; None outside of training.

        Raises:
            EngineError: If a server rejects the adapter, or no server has it before the deadline.
        """
        with self._updating:
            older, self._adapter = self._adapter, PublishedAdapter(self._labels, version, Path(directory))
            self._events.run(self._pool.switch(self._adapter))
            self._events.run(self._pool.drained())
            if older is not None:
                self._events.run(self._pool.each(older.unload))

    def _opened_transport(self) -> Transport:
        if self._transport is None:
            if self._open_transport is None:
                raise ConfigError("these servers keep their own weights; open the sampler with a transport of weights")
            self._transport = self._open_transport()
        return self._transport

    def close(self) -> None:
        """End all requests and connections, and delete the files of weights. The servers continue, without adapter."""
        if self._adapter is not None and self._events.is_open:
            self._events.run(self._leave(self._adapter))
        self._events.close(self._http.aclose())
        if self._transport is not None:
            self._transport.close()

    async def _leave(self, adapter: PublishedAdapter) -> None:
        """Remove an adapter from the servers that answer soon."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_CALL):
                await self._pool.each(adapter.unload)


def _put(finished: "queue.SimpleQueue[Finished]", place: int, row: int, done: "Future[Completion]") -> None:
    finished.put((place, row, done))


def _groups(finished: "queue.SimpleQueue[Finished]", count: int, size: int) -> Iterator[tuple[int, list[Completion]]]:
    """Yield the groups whose rows are all finished. Each row is counted once, by its position."""
    rows: list[dict[int, Completion]] = [{} for _ in range(count)]
    tally = Tally(count * size)
    for _ in range(count * size):
        place, row, done = finished.get()
        try:
            rows[place][row] = done.result()
        except CancelledError:
            raise EngineError("the sampler of the servers was closed while it was sampling") from None
        tally.add(1, len(rows[place][row].tokens))
        if len(rows[place]) == size:
            yield place, [rows[place].pop(each) for each in range(size)]


def open_sampler(model: str, tokenizer: "PreTrainedTokenizerBase", options: EngineOptions) -> ServerSampler:
    """Return a sampler of servers that serve a model, or the base of an adapter. `ENGINES` refers to this function.

    Raises:
        ConfigError: If the servers' URLs cannot work, or the servers have another tokenizer.
        EngineError: If a server cannot be reached, or is not a vLLM server.
        ModelError: If the model's configuration cannot be read.
    """
    servers = Servers.of(options)
    base = lora.base_of(model)[0] if lora.is_adapter(model) else model
    with from_hub(base):
        config = AutoConfig.from_pretrained(base)
    end = endings.ending(tokenizer, stored_generation_config(model) or stored_generation_config(base))
    sampler = ServerSampler(servers, _form(tokenizer, end, config), model=base)
    if base != model:
        sampler.update_adapter(model, None)
    return sampler


def open_for_training(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", ending: endings.Ending, options: EngineOptions
) -> ServerSampler:
    """Return a sampler of servers for a policy. The policy's weights are not there before an update.

    Args:
        model: The policy.
        tokenizer: Its tokenizer.
        ending: Tokens that end a completion.
        options: Options of the engine.

    Raises:
        ConfigError: If the servers' URLs cannot work, or the servers have another tokenizer.
        EngineError: If a server cannot be reached, or is not a vLLM server.
    """
    return ServerSampler(
        Servers.of(options),
        _form(tokenizer, ending, model.config),
        transport=transport_of(options, model.device.type),
        in_flight_updates=options.in_flight_updates,
    )


def transport_of(options: EngineOptions, device: str) -> Callable[[], Transport]:
    """Return the function that opens the transport of the options.

    Args:
        options: Options of the engine.
        device: Type of the policy's device.
    """
    kind = options.weight_transfer
    if kind == "auto":
        kind = "nccl" if device == "cuda" else "file"
    if kind == "file":
        return partial(FileTransport, options.transfer_dir)
    from gvpo.sampling.server.gpu_transport import GpuTransport

    return partial(GpuTransport, kind)


def _form(tokenizer: "PreTrainedTokenizerBase", ending: endings.Ending, config: Any) -> RequestFormat:
    text = config.get_text_config()
    return RequestFormat(tokenizer, ending, int(text.vocab_size), getattr(text, "max_position_embeddings", None))
