"""A real HTTP server on this machine that speaks as much of vLLM's API as gvpo uses, and fails when it is told to.

It samples from a table (tokens are a hash of seed, place and weights) or from a `TransformersSampler`, reads weights
and adapters from the files that it is given, and keeps their versions, as vLLM 0.32 does.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from safetensors.torch import load_file

from gvpo.sampling import Request, SamplingParams
from gvpo.sampling.transformers import TransformersSampler
from tests.fakes import VOCABULARY, byte_tokenizer

Reply = tuple[int, Any, dict[str, str]]
"""Status, body (bytes unchanged, anything else as JSON), headers."""
Hook = Callable[["FakeVllm", str, dict[str, Any]], "Reply | None"]
"""Function that may answer a call in place of the server; it gets the path and the body."""

GENERATE = "/inference/v1/generate"
DROP = -1
"""Status of a reply that closes the connection instead."""


class Model(Protocol):
    """The source of a server's rows."""

    def load(self, path: Path | None) -> None:
        """Take the weights of a file, or the starting ones."""

    def rows(self, prompt: list[int], parameters: Mapping[str, Any], adapter: str) -> tuple[list[int], list[float]]:
        """Return tokens and log-probs; the adapter is a directory, or ""."""


class Table:
    """Tokens that are a hash of seed, place and weights; every eighth is the end."""

    weights = 0.0

    def load(self, path: Path | None) -> None:
        self.weights = 0.0 if path is None else float(load_file(path)["bias"])

    def rows(self, prompt: list[int], parameters: Mapping[str, Any], adapter: str) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        weights = float(load_file(Path(adapter, "adapter_model.safetensors"))["bias"]) if adapter else self.weights
        while len(tokens) < parameters["max_tokens"] and not (tokens and tokens[-1] in parameters["stop_token_ids"]):
            tokens.append(table_token(parameters.get("seed"), len(tokens), prompt, weights))
        return tokens, [-token / 100 for token in tokens]


def table_token(seed: int | None, place: int, prompt: list[int], weights: float) -> int:
    """Return the token of a `Table`."""
    drawn = hashlib.blake2b(json.dumps([seed, place, prompt, weights]).encode(), digest_size=4).digest()
    return 1 if drawn[0] < 32 else 3 + drawn[1] % 250


class Sampled:
    """Tokens from a `TransformersSampler`, with the weights of the files."""

    def __init__(self, sampler: TransformersSampler) -> None:
        self._sampler, self._lock = sampler, threading.Lock()
        self._start = {name: tensor.clone() for name, tensor in sampler.model.state_dict().items()}

    def load(self, path: Path | None) -> None:
        with self._lock:
            self._sampler.model.load_state_dict(self._start if path is None else load_file(path), strict=True)

    def rows(self, prompt: list[int], parameters: Mapping[str, Any], adapter: str) -> tuple[list[int], list[float]]:
        names = ("max_tokens", "temperature", "top_p", "top_k")
        params = SamplingParams(group_size=1, **{name: parameters[name] for name in names if name in parameters})
        request = Request(str(parameters.get("seed")), tuple(prompt))
        with self._lock:
            ((row,),) = self._sampler.sample([request], params, seed=0, step=0)
        return list(row.tokens), [float(value) for value in row.sampler_logprobs]


class FakeVllm:
    """State of a server, and what it was asked.

    Args:
        model: What it samples from.
        delay: Seconds per token.
    """

    def __init__(self, model: Model | None = None, *, delay: float = 0.0) -> None:
        self.model, self.delay = model or Table(), delay
        self.context, self.name, self.tokenizer = 512, "tiny", byte_tokenizer()
        self.hook: Hook | None = None
        self.stalled = threading.Event()
        """While it is set, the engine is stuck, and /health answers 200."""
        self.holds, self.held, self.go = False, 0, threading.Event()
        """True if rows wait for `go` after their first token, and the number of rows that wait."""
        self.lock, self.changed = threading.RLock(), threading.Condition()
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.keys: list[str | None] = []
        self.most_at_once = 0
        self.url, self._server, self._port = "", None, 0
        self._reset()

    def _reset(self) -> None:
        self.label, self.path = "default", None
        self.model.load(None)
        self.adapters: dict[str, str] = {}
        self.pausing = ""
        self.running = self.updating = 0
        self.epoch = getattr(self, "epoch", 0) + 1

    def start(self) -> "FakeVllm":
        """Listen, on the same port as before, with the starting weights."""
        self._reset()
        self._server = _Server(("127.0.0.1", self._port), _handler(self))
        self._port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self._port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def kill(self) -> None:
        """End as `kill -9` does: connections are reset, and weights are lost."""
        if self._server is not None:
            server, self._server = self._server, None
            server.shutdown()
            server.server_close()
            self.epoch += 1
            for connection in list(server.connections):
                with suppress(OSError):
                    connection.shutdown(2)

    def hold(self, rows: int, work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
        """Start some work in a thread, and return when this number of rows wait; its result is appended to the list."""
        self.holds, found = True, []
        thread = threading.Thread(target=lambda: found.append(work()))
        thread.start()
        until(lambda: self.held >= rows)
        return thread, found

    def paths(self, start: str = "") -> list[str]:
        """Return the paths of the calls, without those of sampling."""
        return [path for path, _ in self.calls if path != GENERATE and path.startswith(start)]

    def generated(self) -> list[dict[str, Any]]:
        """Return the bodies of the requests for rows, without probes."""
        return [body for path, body in self.calls if path == GENERATE and "request_id" in body]

    def handle(self, path: str, body: dict[str, Any]) -> Reply:
        """Answer a call."""
        with self.lock:
            self.calls.append((path, body))
        reply = None if self.hook is None else self.hook(self, path, body)
        if reply is not None:
            return reply
        while self.stalled.is_set() and path == GENERATE:
            time.sleep(0.005)
        parts = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        method = getattr(self, "do_" + parts.path.strip("/").replace("/", "_"), None)
        return (404, {"detail": "Not Found"}, {}) if method is None else method({**body, **query})

    def do_health(self, body: dict[str, Any]) -> Reply:
        return 200, b"", {}

    def do_v1_models(self, body: dict[str, Any]) -> Reply:
        cards = [{"id": self.name, "root": self.name, "max_model_len": self.context}]
        return 200, {"data": [*cards, *({"id": name, "parent": self.name} for name in self.adapters)]}, {}

    def do_tokenize(self, body: dict[str, Any]) -> Reply:
        return 200, {"tokens": self.tokenizer.encode(body["prompt"], add_special_tokens=False)}, {}

    def do_weight_info(self, body: dict[str, Any]) -> Reply:
        return 200, {"weight_version": self.label}, {}

    def do_pause(self, body: dict[str, Any]) -> Reply:
        with self.changed:
            self.pausing = body.get("mode", "abort")
            self.changed.notify_all()
            while self.pausing == "wait" and self.running:
                self.changed.wait(0.05)
        return 200, {"status": "paused"}, {}

    def do_is_paused(self, body: dict[str, Any]) -> Reply:
        return 200, {"is_paused": bool(self.pausing)}, {}

    def do_resume(self, body: dict[str, Any]) -> Reply:
        with self.changed:
            self.pausing = ""
            self.changed.notify_all()
        return 200, {"status": "resumed"}, {}

    def do_init_weight_transfer_engine(self, body: dict[str, Any]) -> Reply:
        return 200, {}, {}

    def do_start_weight_update(self, body: dict[str, Any]) -> Reply:
        if self.updating:
            return 500, {"error": "a weight update is already active"}, {}
        self.updating = 1
        return 200, {}, {}

    def do_update_weights(self, body: dict[str, Any]) -> Reply:
        if not self.updating:
            return 500, {"error": "start_weight_update must be called before update_weights."}, {}
        self.path = Path(body["update_info"]["path"])
        self.model.load(self.path)
        return 200, {}, {}

    def do_finish_weight_update(self, body: dict[str, Any]) -> Reply:
        if not self.updating:
            return 500, {"error": "finish_weight_update called without a matching start_weight_update."}, {}
        self.updating = 0
        self.label = body.get("weight_version", self.label)
        return 200, {}, {}

    def do_reset_prefix_cache(self, body: dict[str, Any]) -> Reply:
        return 200, {"success": not self.running or body.get("reset_running_requests") == "true"}, {}

    def do_v1_load_lora_adapter(self, body: dict[str, Any]) -> Reply:
        if body["lora_name"] in self.adapters:
            return 400, {"error": {"message": "has already been loaded"}}, {}
        if not Path(body["lora_path"]).is_dir():
            return 404, {"error": {"message": "no adapter found"}}, {}
        self.adapters[body["lora_name"]] = body["lora_path"]
        return 200, b"Success", {}

    def do_v1_unload_lora_adapter(self, body: dict[str, Any]) -> Reply:
        found = self.adapters.pop(body["lora_name"], None)
        return (404, {"error": {"message": "cannot be found"}}, {}) if found is None else (200, b"Success", {})

    def do_inference_v1_generate(self, body: dict[str, Any]) -> Reply:
        parameters = {"stop_token_ids": [], "seed": None, **body["sampling_params"]}
        model = body.get("model")
        if model is not None and model not in self.adapters:
            return 404, {"error": {"message": f"The model `{model}` does not exist."}}, {}
        if max(body["token_ids"]) >= VOCABULARY:
            return 400, {"error": {"message": f"Token id {max(body['token_ids'])} is out of vocabulary"}}, {}
        with self.changed:
            while self.pausing in ("wait", "keep", "abort"):
                self.changed.wait(0.05)
            self.running += 1
            epoch = self.epoch
            self.most_at_once = max(self.most_at_once, self.running)
        try:
            choice = self._choice(body["token_ids"], parameters, self.adapters.get(model or "", ""))
        finally:
            with self.changed:
                self.running -= epoch == self.epoch
                self.changed.notify_all()
        name = f"generate-tokens-{body.get('request_id', 'none')}"
        return 200, {"request_id": name, "model": model or self.name, "choices": [choice]}, {}

    def _choice(self, prompt: list[int], parameters: dict[str, Any], adapter: str) -> dict[str, Any]:
        """Sample token by token, so that weights can change between tokens."""
        tokens: list[int] = []
        logprobs: list[float] = []
        labels: list[str] = []
        drawn, values, reason = [], [], ""
        epoch = self.epoch
        while not reason:
            with self.changed:
                while self.pausing == "keep":
                    self.changed.wait(0.05)
                if self.pausing == "abort" or self.epoch != epoch:
                    reason = "abort"
                    break
                if not labels or labels[-1] != self.label:  # new weights continue the row
                    rest = {**parameters, "max_tokens": parameters["max_tokens"] - len(tokens)}
                    drawn, values = self.model.rows([*prompt, *tokens], rest, adapter)
                tokens.append(drawn.pop(0))
                logprobs.append(values.pop(0))
                labels.append(self.label)
            reason = _end(tokens, parameters)
            time.sleep(self.delay)
            if self.holds and len(tokens) == 1 and not reason:
                with self.lock:
                    self.held += 1
                self.go.wait(10)
        content = [{"token_id": t, "logprob": v, "rank": 1} for t, v in zip(tokens, logprobs, strict=True)]
        return {
            "index": 0,
            "token_ids": tokens,
            "logprobs": {"content": content},
            "finish_reason": reason,
            "weight_versions": list(_spans(labels)),
        }


def _end(tokens: list[int], parameters: Mapping[str, Any]) -> str:
    if tokens[-1] in parameters["stop_token_ids"]:
        return "stop"
    return "length" if len(tokens) == parameters["max_tokens"] else ""


def _spans(labels: list[str]) -> Iterator[dict[str, Any]]:
    start = 0
    for end in range(1, len(labels) + 1):
        if end == len(labels) or labels[end] != labels[start]:
            yield {"version": labels[start], "start": start, "end": end}
            start = end


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, and fail after 10 seconds."""
    for _ in range(10_000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("the condition did not become true")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    allow_reuse_address = True

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.connections: set[Any] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)


def _handler(fake: FakeVllm) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # headers and body are written separately

        def do_GET(self) -> None:
            fake.keys.append(self.headers.get("Authorization"))
            self._reply(fake.handle(self.path, {}))

        def do_POST(self) -> None:
            fake.keys.append(self.headers.get("Authorization"))
            said = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._reply(fake.handle(self.path, json.loads(said or b"{}") or {}))

        def _reply(self, reply: Reply) -> None:
            status, said, headers = reply
            data = said if isinstance(said, bytes) else json.dumps(said).encode()
            try:
                if status == DROP:
                    self.close_connection = True
                    self.connection.shutdown(2)
                    return
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                self.close_connection = True  # the client has given up, or the server was killed

        def log_message(self, *_: Any) -> None:
            """Print nothing, since pytest shows printed output."""

    return Handler


@contextmanager
def serving(*fakes: FakeVllm) -> Iterator[list[str]]:
    """Run servers on free ports within this context; yield their URLs."""
    try:
        yield [fake.start().url for fake in fakes]
    finally:
        for fake in fakes:
            fake.stalled.clear()
            fake.kill()
