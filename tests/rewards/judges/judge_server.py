"""A real HTTP server on this machine that answers like an OpenAI-compatible endpoint, by a script."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any, dict[str, str]]
"""Status, body (text and bytes unchanged, anything else as JSON), headers."""


class JudgeServer:
    """Requests and answers of a server: `answer` receives the number of a request, from 0, and its body."""

    def __init__(self, answer: Callable[[int, dict[str, Any]], Reply]) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.url = ""

    def handle(self, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        with self.lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.headers.append(headers)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return self.answer(number, body)
        finally:
            with self.lock:
                self.at_once -= 1


def says(text: str, status: int = 200, **headers: str) -> Reply:
    """Return an answer with this text in the form of a chat endpoint."""
    return status, {"choices": [{"message": {"role": "assistant", "content": text}}]}, headers


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # the default of 5 resets connections when many arrive simultaneously


@contextmanager
def serving(answer: Callable[[int, dict[str, Any]], Reply]) -> Iterator[JudgeServer]:
    """Run a server on a free port within this context."""
    judge = JudgeServer(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, said, headers = judge.handle({"path": self.path, **body}, dict(self.headers))
            text = said if isinstance(said, str | bytes) else json.dumps(said)
            data = text.encode() if isinstance(text, str) else text
            try:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # the client has given up

        def log_message(self, *_: Any) -> None:
            """Print nothing, since pytest shows printed output."""

    server = _Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    judge.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()


def slowly(seconds: float, reply: Reply) -> Callable[[int, dict[str, Any]], Reply]:
    """Return a function that answers after a while."""

    def answer(number: int, body: dict[str, Any]) -> Reply:
        time.sleep(seconds)
        return reply

    return answer


@contextmanager
def dripping(parts: Callable[[], Iterator[bytes]], header: bytes = b"") -> Iterator[str]:
    """Run a server that sends the parts of a body while the client reads them; yield its address."""

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), client:
                client.recv(1 << 16)
                client.sendall(b"HTTP/1.1 200 OK\r\n" + header + b"Connection: close\r\n\r\n")
                for part in parts():
                    client.sendall(part)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        listener.shutdown(socket.SHUT_RDWR)
