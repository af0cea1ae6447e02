"""Pushing to the Hub, tested against a local server."""

import base64
import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import gvpo
from gvpo import runfiles
from gvpo.errors import ConfigError, GvpoWarning, RunError
from gvpo.model.model import save_model
from gvpo.training.checkpoint.publish import push_to_hub
from gvpo.training.trainer import Trainer
from tests.training.toy import model, noticed, tokenizer, trainer

NO_EVAL: dict[str, Any] = {"held": [], "eval_problems": 0, "steps": 1}


def account(role: str = "write", *, orgs: Sequence[str] = ()) -> dict[str, Any]:
    """Return the Hub's answer about a token."""
    return {
        "type": "user",
        "name": "me",
        "orgs": [{"name": name} for name in orgs],
        "auth": {"type": "access_token", "accessToken": {"role": role}},
    }


class Hub(ThreadingHTTPServer):
    """The parts of the Hub that an upload of small files needs; it records what it receives."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.refuses = False
        self.account: dict[str, Any] | None = account()
        self.status = 404
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.refuses:
            self.answer({"error": "you may not write here"}, status=403)
        elif self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            self.answer({"url": f"{self.server.address}/me/model", "name": "me/model"})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            self.commit([json.loads(line) for line in body.splitlines()])
        else:  # the check of the card's metadata
            self.answer({"warnings": [], "errors": []})

    def do_GET(self) -> None:
        if self.path == "/api/whoami-v2" and self.server.account is not None:
            self.answer(self.server.account)
        else:
            self.answer({"error": "not this token"}, status=self.server.status)

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["key"] == "file":
                self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        page = f"{self.server.address}/me/model/commit/{'0' * 40}"
        self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": page, "hookOutput": ""})

    def answer(self, value: Any, status: int = 200) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    made = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: made(endpoint=server.address, token=token))
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def without_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)


def test_a_run_pushes_its_final_model_tokenizer_and_card_and_nothing_else(tmp_path: Path, hub: Hub):
    summary = trainer(tmp_path, push_to_hub="me/model", **NO_EVAL).train()
    model = Path(summary["model"])
    own = {str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()}
    assert set(hub.files) == {name for name in own if not name.startswith("trainer/")}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(hub.files)
    assert all(content == (model / name).read_bytes() for name, content in hub.files.items())
    assert [(repo["name"], repo["organization"]) for repo in hub.made] == [("model", "me")]
    assert "private" in json.dumps(hub.made)
    assert "Bearer hf_of_a_test" in hub.tokens
    assert summary["hub"] == f"{hub.address}/me/model"
    assert runfiles.read_json(tmp_path / "summary.json")["hub"] == summary["hub"]


@pytest.mark.parametrize(
    ("known", "repository", "message"),
    [
        (account("read"), "me/model", "the token is read-only"),
        (account("write"), "them/model", "the token can write for me, not for them"),
        (account("write", orgs=["us"]), "them/model", "the token can write for me, us, not for them"),
        (None, "me/model", "the Hub does not accept the token"),
    ],
)
def test_a_push_that_will_fail_is_rejected_before_training(
    tmp_path: Path, hub: Hub, known: dict[str, Any] | None, repository: str, message: str
):
    hub.account, hub.status = known, 401
    for start in (Trainer.check, Trainer.train):
        with pytest.raises(ConfigError, match=message):
            start(trainer(tmp_path / "run", push_to_hub=repository, **NO_EVAL))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("known", [account("write", orgs=["them"]), account("fineGrained")])
def test_accounts_with_write_access_are_accepted(tmp_path: Path, hub: Hub, known: dict[str, Any]):
    hub.account = known
    trainer(tmp_path / "run", push_to_hub="them/model", **NO_EVAL).check()


def test_a_hub_that_does_not_answer_at_the_start_causes_a_warning(tmp_path: Path, hub: Hub):
    hub.account, hub.status = None, 503
    with noticed("does not confirm that me/model can be pushed"):
        trainer(tmp_path / "run", push_to_hub="me/model", **NO_EVAL).train()


@pytest.mark.filterwarnings("ignore:the base model was not loaded from anywhere")
def test_an_adapter_is_pushed_without_its_base(tmp_path: Path, hub: Hub):
    trainer(tmp_path, push_to_hub="me/model", lora_rank=2, **NO_EVAL).train()
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(hub.files)
    assert not any(name.startswith(("trainer/", "model")) for name in hub.files)
    assert b"library_name: peft" in hub.files["README.md"]


def test_a_run_directory_or_a_checkpoint_is_pushed_later(tmp_path: Path, hub: Hub):
    summary = trainer(tmp_path, checkpoint_every=1, **{**NO_EVAL, "steps": 2}).train()
    gvpo.push_to_hub(tmp_path, "me/model", private=False, token="hf_other")
    assert b"step 2" in hub.files["README.md"]
    gvpo.push_to_hub(Path(summary["model"]).with_name("step-000001"), "me/model", token="hf_other")
    assert b"step 1" in hub.files["README.md"]
    assert hub.tokens == {"Bearer hf_other"}


def test_a_failed_push_does_not_lose_the_run(tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]):
    hub.refuses = True
    summary = trainer(tmp_path, push_to_hub="me/model", **NO_EVAL).train()
    assert summary["hub"] is None
    assert Path(summary["model"], "model.safetensors").is_file()
    said = capsys.readouterr().err
    assert "cannot push" in said
    assert "push it later: gvpo.push_to_hub(" in said
    with pytest.raises(RunError, match=r"cannot push .* to me/model: .*403") as caught:
        push_to_hub(tmp_path, "me/model")
    assert "\n" not in str(caught.value)


def test_without_a_token_the_run_does_not_begin(tmp_path: Path, without_token: None):
    with pytest.raises(ConfigError, match="pushing to the Hub needs a token: run `hf auth login`, or set HF_TOKEN"):
        trainer(tmp_path / "run", push_to_hub="me/model", **NO_EVAL)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["model", "a/b/c", "me/mo del", "me/--x"])
def test_an_invalid_repository_name_is_an_error(tmp_path: Path, name: str):
    with pytest.raises(ConfigError, match=r"checkpoint\.push_to_hub="):
        trainer(tmp_path, push_to_hub=name, **NO_EVAL)


def test_offline_and_push_exclude_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
        trainer(tmp_path, push_to_hub="me/model", **NO_EVAL)


def test_a_directory_without_a_model_is_not_pushed(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RunError, match="has no checkpoint; set"):
        push_to_hub(tmp_path, "me/model", token="hf_x")
    with pytest.raises(RunError, match="there is no model in"):
        push_to_hub(tmp_path / "checkpoints", "me/model", token="hf_x")


def test_a_pushed_adapter_contains_no_local_paths(tmp_path: Path, hub: Hub):
    save_model(model(), tokenizer(), tmp_path / "base")
    checkpoint = trainer(tmp_path / "run", policy=tmp_path / "base", lora_rank=2, **NO_EVAL).train()["model"]
    with pytest.warns(GvpoWarning, match="the uploaded adapter calls it 'base' and others cannot load it"):
        push_to_hub(checkpoint, "me/adapter")
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(hub.files)
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == "base"
    assert not [name for name, content in hub.files.items() if str(tmp_path).encode() in content]
    named = json.loads((Path(checkpoint) / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(tmp_path / "base")  # the local copy still loads as before
