"""Loading from the Hub: an unreachable Hub costs little time and prints nothing, and cached files still load."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest

from gvpo import hub
from gvpo.hub import from_hub, may_be_hub_id
from gvpo.model.model import save_model
from tests.fakes import byte_tokenizer, tiny_model

REFUSING = "http://127.0.0.1:9"  # the discard port, on which no program listens

LOADS = """
import json, time
from gvpo.model.runtime import hub_config
from gvpo.model.model import load_model
from gvpo.model.tokenizer import load_tokenizer
from gvpo.data import load_records
import datasets

for load in (load_tokenizer, load_model, hub_config, load_records):
    for name in ("owner/cached", "owner/missing"):
        began = time.perf_counter()
        try:
            outcome = type(load(name)).__name__
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        print(json.dumps([load.__name__, name, outcome, time.perf_counter() - began]))
"""


def fill_cache(home: Path) -> None:
    """Write a model and a dataset into the cache in the libraries' layout."""
    repository = home / "hub/models--owner--cached"
    save_model(tiny_model(), byte_tokenizer(), repository / "snapshots/0123")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123")
    rows = datasets.Dataset.from_list([{"prompt": "1"}])
    place = home / "datasets/owner___cached/default/0.0.0/0123"
    place.mkdir(parents=True)
    info = {
        "builder_name": "json",
        "dataset_name": "cached",
        "config_name": "default",
        "version": {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0},
        "features": rows.features.to_dict(),
        "splits": {"train": {"name": "train", "num_bytes": 1, "num_examples": 1, "dataset_name": "cached"}},
    }
    (place / "dataset_info.json").write_text(json.dumps(info))
    with datasets.arrow_writer.ArrowWriter(path=str(place / "cached-train.arrow"), features=rows.features) as writer:
        writer.write({"prompt": "1"})
        writer.finalize()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[tuple[str, str], tuple[str, float]], str]:
    """Return the result of each loader for each name with its seconds, and everything that was printed."""
    home = tmp_path_factory.mktemp("home")
    fill_cache(home)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment = {**kept, "HF_HOME": str(home), "HF_ENDPOINT": REFUSING}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADS], env=environment, capture_output=True, text=True, check=True
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {(load, name): (outcome, seconds) for load, name, outcome, seconds in found}, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("load", "expected"),
    [
        ("load_tokenizer", "ModelError: there is no directory 'owner/missing', and no tokenizer of that name"),
        ("load_model", "ModelError: there is no directory 'owner/missing', and no model of that name"),
        ("hub_config", "ModelError: there is no directory owner/missing, and no configuration of that name"),
        ("load_records", "DataError: 'owner/missing' is neither a file nor a dataset that can be loaded"),
    ],
)
def test_an_unreachable_hub_costs_little_time(loaded: Any, load: str, expected: str):
    outcome, seconds = loaded[0][load, "owner/missing"]
    assert outcome.startswith(expected)
    assert seconds < 10  # 23 to 46 with the libraries' own retries


@pytest.mark.slow
@pytest.mark.parametrize("load", ["load_tokenizer", "load_model", "hub_config", "load_records"])
def test_cached_files_load_without_the_hub(loaded: Any, load: str):
    outcome, seconds = loaded[0][load, "owner/cached"]
    assert "Error" not in outcome
    assert seconds < 10


@pytest.mark.slow
def test_an_unreachable_hub_prints_nothing(loaded: Any):
    assert "Retry" not in loaded[1]
    assert "thrown while requesting" not in loaded[1]


@pytest.fixture
def answering() -> Iterator[str]:
    """Yield the address of a server that responds but has no files."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        server.RequestHandlerClass.log_message = lambda *_: None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def offline() -> tuple[bool, bool]:
    return huggingface_hub.is_offline_mode(), datasets.config.HF_HUB_OFFLINE


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("online")
def test_a_hub_that_responds_is_used(answering: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", answering)
    with from_hub("owner/name"):
        assert offline() == (False, False)


@pytest.mark.usefixtures("online")
def test_only_the_cache_is_used_within_the_context(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", REFUSING)
    with from_hub("owner/name"):
        assert offline() == (True, True)
    assert offline() == (False, False)


@pytest.mark.usefixtures("online")
def test_an_error_within_the_context_restores_the_switches(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", REFUSING)
    with pytest.raises(KeyError), from_hub("owner/name"):
        raise KeyError
    assert offline() == (False, False)


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("path", [".", "src", "/nowhere/at/all", "./nowhere", "a/b/c"])
def test_the_hub_is_not_contacted_for_local_paths(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "src").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_answers", lambda: pytest.fail("the Hub was contacted"))
    with from_hub(path):
        assert offline() == (False, False)


@pytest.mark.parametrize(("path", "may"), [("gpt2", True), ("owner/name", True), ("", False), ("~/models", False)])
def test_the_form_of_hub_ids(path: str, may: bool):
    assert may_be_hub_id(path) is may
