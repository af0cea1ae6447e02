"""Weights for servers from GPU to GPU, by vLLM's own classes for trainers.

It has not been run: it needs a GPU, and an environment with trainer and vLLM. Its parts that need neither are tested
with stand-ins for vLLM's classes.

    nccl    one NCCL group per server, of this process and the server's workers; start it with
            --weight-transfer-config '{"backend": "nccl"}'
    ipc     memory that both processes of one GPU map; start it with --weight-transfer-config '{"backend": "ipc"}' and
            VLLM_ALLOW_INSECURE_SERIALIZATION=1
"""

import asyncio
import socket
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from gvpo.errors import ConfigError, one_line
from gvpo.retries import Again, Refused
from gvpo.sampling.server.client import Client, Lost

if TYPE_CHECKING:
    from torch import Tensor


class GpuTransport:
    """Sends each publication with vLLM's `TrainerWeightTransferEngine` of a backend, one engine per server.

    The weights can be read only during an update of the sampler. A server that was down then gets them with the next
    update, and is not used before.

    Args:
        kind: Backend of vLLM.

    Raises:
        ConfigError: If vllm is not installed.
    """

    momentary = True

    def __init__(self, kind: Literal["nccl", "ipc"]) -> None:
        try:
            import vllm.distributed.weight_transfer  # noqa: F401
        except ImportError:
            raise ConfigError(
                f"sampling.weight_transfer={kind!r} needs vllm in the trainer's environment; install it with "
                "pip install 'gvpo[vllm]', or set it to 'file'"
            ) from None
        self._kind = kind
        self._engines: dict[str, Any] = {}
        self._source: StateSource | None = None
        self._threads = ThreadPoolExecutor(1, "gvpo weights")  # one, because all servers read the same GPU's memory

    def store(self, weights: "Iterable[tuple[str, Tensor]]") -> None:
        """Let the next calls of `send` read these weights."""
        self._source = StateSource(weights)

    async def send(self, client: Client, label: str, seconds: float) -> None:
        """Implement `Transport.send`.

        Raises:
            Lost: If it failed, or the weights of the latest update can no longer be read.
        """
        if self._source is None:
            raise Lost(f"{client.url} was not reachable in the last update, and gets weights with the next one")
        control = ControlPlane(client, label, seconds, asyncio.get_running_loop())
        workers = 0 if self._kind == "ipc" else await _workers(client, seconds)
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._send, client.url, control, workers)
        try:
            async with asyncio.timeout(seconds):
                await work
        except (Again, Refused):
            raise
        except Exception as error:  # NCCL, CUDA and vLLM have no common class of errors
            self._engines.pop(client.url, None)
            raise Lost(f"{client.url} did not receive the weights by {self._kind} ({one_line(error)})") from error

    def forget(self) -> None:
        """End the access to the weights, which the trainer now changes."""
        self._source = None

    def close(self) -> None:
        """Release the connections."""
        for engine in self._engines.values():
            engine.shutdown()
        self._threads.shutdown(wait=False)

    def _send(self, url: str, control: "ControlPlane", workers: int) -> None:
        """Send the weights, after the first time without another handshake."""
        engine = self._engines.get(url)
        if engine is None:
            engine = self._engines[url] = _engine(self._kind, url, control, self._source, workers)
        engine.client, engine.source = control, self._source
        engine.send_weights()


class StateSource:
    """The entries of a state dict in the form of vLLM's `WeightSource`.

    vLLM's own `ModuleSource` yields `named_parameters()`, which lacks a tied head.

    Args:
        weights: Names and complete tensors.
    """

    def __init__(self, weights: "Iterable[tuple[str, Tensor]]") -> None:
        self._weights = [(name, tensor.detach()) for name, tensor in weights]

    def metadata(self) -> list[Any]:
        """Return name, dtype and shape of each entry, as vLLM's `ParamMeta`."""
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self._weights]

    def __iter__(self) -> "Iterator[tuple[str, Tensor]]":
        return iter(self._weights)


class ControlPlane:
    """The calls of one update, in the form of vLLM's `VLLMWeightSyncClient`, which a thread makes.

    Args:
        client: Calls of the server.
        label: Name of the weights.
        seconds: Deadline per call.
        loop: Event loop of the client.
    """

    def __init__(self, client: Client, label: str, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        self._client, self._label, self._seconds, self._loop = client, label, seconds, loop

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Begin the connection."""
        self._post("/init_weight_transfer_engine", {"init_info": dict(init_info)})

    def start_weight_update(self) -> None:
        """Begin an update."""
        self._post("/start_weight_update", None)

    def update_weights(self, update_info: Any) -> None:
        """Let the workers receive weights. IPC handles are pickled, as vLLM's own HTTP client does it."""
        from vllm.distributed.weight_transfer.clients import _json_safe_update_payload

        self._post("/update_weights", {"update_info": _json_safe_update_payload(update_info)})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End an update, and name the weights."""
        self._post("/finish_weight_update", {"weight_version": weight_version or self._label})

    def _post(self, path: str, body: Mapping[str, Any] | None) -> None:
        asyncio.run_coroutine_threadsafe(self._client.post(path, body, self._seconds), self._loop).result()


async def _workers(client: Client, seconds: float) -> int:
    answer = await client.get("/get_world_size", seconds)
    try:
        return int(answer["world_size"])
    except (LookupError, TypeError, ValueError):
        raise Lost(f"{client.url} does not report its number of workers") from None


def _engine(kind: str, url: str, control: ControlPlane, source: StateSource | None, workers: int) -> Any:
    """Return vLLM's engine for a server, after the handshake."""
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    if kind == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        info: Any = IPCTrainerInitInfo(rank=0)
    else:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        address, port = rendezvous(url)
        info = NCCLTrainerInitInfo(master_address=address, master_port=port, world_size=workers + 1, rank=0)
    return WeightTransferTrainerFactory.trainer_init(info, client=control, source=source)


def rendezvous(url: str) -> tuple[str, int]:
    """Return this machine's address on the way to a server, and a free port there."""
    parts = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect((parts.hostname, parts.port or 80))  # a datagram socket sends nothing here
        address = str(way.getsockname()[0])
    with socket.create_server((address, 0)) as free:
        return address, int(free.getsockname()[1])
