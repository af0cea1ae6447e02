"""The first calls: servers that are missing, are something else, or serve another model."""

import threading
from pathlib import Path
from typing import Any

import pytest

from gvpo import notices, retries
from gvpo.errors import ConfigError, EngineError
from gvpo.sampling.server import greeting
from tests.fakes import byte_tokenizer
from tests.sampling.server.fake_vllm import FakeVllm, Reply, serving
from tests.sampling.server.helpers import PARAMS, REQUESTS, expected, opened, tokens_of


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)


def refused(message: str, *fakes: FakeVllm, error: type[Exception] = EngineError, **given: Any) -> None:
    with serving(*fakes), pytest.raises(error, match=message), opened(*fakes, **given):
        pass


def test_a_server_that_cannot_be_reached_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greeting, "LONGEST", 0.3)
    fake = FakeVllm()
    with serving(fake):
        fake.kill()
        with (
            pytest.raises(EngineError, match=rf"{fake.url} cannot be reached .*for 0.3 s; start the server"),
            opened(fake),
        ):
            pass


def test_a_server_that_is_still_starting_is_waited_for() -> None:
    fake = FakeVllm()
    with serving(fake):
        fake.kill()
        threading.Timer(0.1, fake.start).start()
        with opened(fake) as sampler:
            assert tokens_of(sampler.sample(REQUESTS, PARAMS, seed=0, step=1)) == expected(
                REQUESTS, PARAMS, seed=0, step=1
            )


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((404, b"<html>", {}), "answered 404 to /v1/models .*not a vLLM server"),
        ((405, b"", {}), "not a vLLM server"),
        ((200, b"<html>hello</html>", {}), "does not answer like a vLLM server"),
        ((200, {"data": []}, {}), "does not answer like a vLLM server"),
        ((302, b"", {"Location": "/login"}), "answered 302 to /v1/models"),
        ((401, {"error": "Unauthorized"}, {}), "sampling.server_api_key_env"),
    ],
)
def test_something_that_is_not_a_vllm_server_is_an_error_at_once(reply: Reply, message: str) -> None:
    fake = FakeVllm()
    fake.hook = lambda _, path, body: reply if path == "/v1/models" else None
    refused(message, fake)
    assert len(fake.calls) == 1


def test_servers_with_different_models_are_an_error() -> None:
    one, two = FakeVllm(), FakeVllm()
    two.name = "other"
    refused("serves 'tiny' and http.* serves 'other'", one, two, error=ConfigError)


def test_a_server_with_another_tokenizer_is_an_error_unless_it_gets_the_weights() -> None:
    fake = FakeVllm()
    fake.tokenizer = byte_tokenizer()
    fake.tokenizer.add_tokens(["Gvpo"])
    refused("with another tokenizer .*--skip-tokenizer-init", fake, error=ConfigError, model="tiny")
    found: list[str] = []
    with serving(fake), notices.handled(lambda message, _: found.append(message)), opened(fake) as sampler:
        assert sampler.sample(REQUESTS, PARAMS, seed=0, step=1)
    assert len(found) == 1
    assert "only token ids are sent" in found[0]


def test_a_server_without_a_tokenizer_is_used() -> None:
    fake = FakeVllm()
    fake.hook = lambda _, path, body: (501, {"error": "no tokenizer"}, {}) if path == "/tokenize" else None
    with serving(fake), opened(fake) as sampler:
        assert sampler.sample(REQUESTS, PARAMS, seed=0, step=1)


def test_a_model_with_another_name_is_a_warning() -> None:
    fake = FakeVllm()
    found: list[str] = []
    with serving(fake), notices.handled(lambda message, _: found.append(message)):
        with opened(fake, model="/somewhere/tiny"):
            pass
        assert not found
        with opened(fake, model="/somewhere/large"):
            pass
    assert len(found) == 1
    assert "serves 'tiny', and the model is '/somewhere/large'" in found[0]


def test_a_server_that_was_left_paused_is_an_error_unless_it_gets_weights(tmp_path: Path) -> None:
    fake = FakeVllm()
    with serving(fake):
        fake.pausing = "wait"
        with pytest.raises(EngineError, match="is paused"), opened(fake, model="tiny"):
            pass
        with opened(fake, transfer_dir=tmp_path):
            pass
