"""Tests of features over HTTP with a local server: its faults, and the requests that it receives."""

import socket
import time

import pytest

from gvpo.errors import ConfigError, DataError
from gvpo.probe import endpoint
from gvpo.probe.endpoint import EndpointFeatures
from tests.probe.embedding_server import serving, vector

PROMPTS, TEXTS = [f"p{n}" for n in range(10)], [str(n) * n for n in range(10)]


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def features(server):
    return EndpointFeatures(server.url, "small", batch=3, concurrency=2, timeout=5)


def expected():
    return [pytest.approx(vector(f"{prompt}\n{text}")) for prompt, text in zip(PROMPTS, TEXTS, strict=True)]


def test_batches_are_returned_in_order(server, features):
    assert features(PROMPTS, TEXTS).tolist() == expected()
    assert sorted(len(request["input"]) for request in server.requests) == [1, 3, 3, 3]
    assert {(r["path"], r["model"], r["encoding_format"]) for r in server.requests} == {
        ("/v1/embeddings", "small", "float")
    }
    assert "dimensions" not in server.requests[0]
    assert all("Authorization" not in headers for headers in server.headers)


def test_key_dimensions_and_messages(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    made = EndpointFeatures(f"{server.url}/", "m", dimensions=2, key_variable="MY_KEY")
    made([[{"role": "user", "content": "hi"}]], ["there"])
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert server.requests[0]["dimensions"] == 2
    assert server.requests[0]["input"] == ["user: hi\nthere"]
    assert "secret" not in made.name
    server.faults.append((400, {}, "bad key secret"))
    made = EndpointFeatures(server.url, "m", key_variable="MY_KEY")
    with pytest.raises(DataError, match=r"bad key \*\*\*"):
        made(["p"], ["t"])


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_temporary_errors_are_retried(server, features, status):
    server.faults += [(status, {}, "busy")] * 3
    assert features(PROMPTS, TEXTS).tolist() == expected()
    assert len(server.requests) == 4 + 3


def test_retries_wait_as_long_as_the_server_asks(server, features):
    server.faults.append((429, {"Retry-After": "0.4"}, ""))
    started = time.monotonic()
    features(PROMPTS[:1], TEXTS[:1])
    assert time.monotonic() - started >= 0.4
    server.faults.append((429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, ""))
    features(PROMPTS[:1], TEXTS[:1])


def test_a_rejected_request_is_not_retried_and_its_reason_is_quoted(server, features, monkeypatch):
    server.faults.append((401, {}, '{"error": "no such key"}'))
    with pytest.raises(DataError, match=r'embeddings rejects the request: status 401: \{"error": "no such key"\}'):
        features(PROMPTS[:1], TEXTS[:1])
    assert len(server.requests) == 1


def test_the_deadline_ends_retries(server):
    server.faults += [(503, {}, "still busy")] * 100
    hasty = EndpointFeatures(server.url, "small", deadline=0.2)
    with pytest.raises(DataError, match=r"gave no embeddings in 0\.2 s: status 503: still busy; try again later"):
        hasty(["p"], ["t"])
    assert len(server.requests) > 1


def test_an_unreachable_server_raises():
    with socket.socket() as held:  # a port without a listener
        held.bind(("127.0.0.1", 0))
        nobody = EndpointFeatures(f"http://127.0.0.1:{held.getsockname()[1]}", "m", deadline=0.05)
        with pytest.raises(DataError, match=r"gave no embeddings in 0\.05 s: ConnectError"):
            nobody(["p"], ["t"])


def test_a_server_that_hangs_raises():
    with socket.socket() as silent:  # accepts connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        slow = EndpointFeatures(f"http://127.0.0.1:{silent.getsockname()[1]}", "m", timeout=0.1, deadline=0.1)
        with pytest.raises(DataError, match="ReadTimeout"):
            slow(["p"], ["t"])


@pytest.mark.parametrize("body", ["<html>", "{}", '{"data": [{"index": 0}]}', '{"data": [1]}'])
def test_an_invalid_response_raises(server, features, body):
    server.faults.append((200, {}, body))
    with pytest.raises(DataError, match="did not answer with embeddings"):
        features(PROMPTS[:1], TEXTS[:1])


def test_too_few_embeddings_raise(server, features):
    server.faults.append((200, {}, '{"data": [{"index": 0, "embedding": [1.0]}]}'))
    with pytest.raises(DataError, match="gave 1 embeddings for 2 texts"):
        features(PROMPTS[:2], TEXTS[:2])


def test_an_invalid_url_raises():
    with pytest.raises(ConfigError, match="'localhost:8000' is not a URL"):
        EndpointFeatures("localhost:8000", "m")
