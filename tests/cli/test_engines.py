"""The engine of generate, eval and probe select: it is opened with the settings of the command line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gvpo.cli.main import main
from gvpo.model.model import save_model
from gvpo.sampling.engines import ENGINES, EngineOptions
from gvpo.sampling.transformers import TransformersSampler
from tests.sampling.server.fake_vllm import FakeVllm, Sampled, serving
from tests.training.toy import ROWS, model, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:AutoTokenizer loads")
SETTINGS = ["sampling.max_tokens=3", "sampling.engine_options.max_model_len=64", "sampling.server_urls=http://a:8000"]


class Recorded(TransformersSampler):
    """The transformers engine under another name, which records how it was opened and closed."""

    opened: list[Any]

    def close(self) -> None:
        self.opened.append("closed")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    found: list[Any] = []

    def create(path: str, words: Any, options: EngineOptions) -> Recorded:
        found.append((path, options))
        sampler = Recorded(model(), words)
        sampler.opened = found
        return sampler

    monkeypatch.setattr("tests.cli.test_engines.create", create, raising=False)
    monkeypatch.setitem(ENGINES, "recorded", "tests.cli.test_engines:create")
    monkeypatch.chdir(tmp_path)
    save_model(model(), tokenizer(), "start")
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Path("judge.py").write_text("def long(completions, **_):\n    return [float(len(text)) for text in completions]\n")
    return found


def check(path: str, options: EngineOptions) -> None:
    assert path == "start"
    assert options.engine_options == {"max_model_len": 64}
    assert list(options.server_urls) == ["http://a:8000"]


def test_generate_closes_it(opened: list[Any]):
    words = ["generate", "start", "--engine", "recorded", "--prompts", "prompts.jsonl", "--out", "groups.jsonl"]
    assert main([*words, "rewards.funcs=judge.py:long", "rewards.workers=1", *SETTINGS]) == 0
    check(*opened[0])
    assert opened[1:] == ["closed"]
    assert json.loads(Path("groups.jsonl").read_text().splitlines()[0])["completions"]


def test_eval_closes_it(opened: list[Any]):
    words = ["eval", "start", "--engine", "recorded", "--benchmark", "prompts.jsonl", "--template", "plain"]
    assert main([*words, "--out", "results", "rewards.funcs=judge.py:long", "rewards.workers=1", *SETTINGS]) == 0
    check(*opened[0])
    assert opened[1:] == ["closed"]


def test_probe_select_draws_with_it_and_closes_it(opened: list[Any]):
    rows = [{"prompt": digit, "completions": ["1", "23"], "rewards": [0.0, 1.0]} for digit in "0123456789"]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fit = ["probe", "fit", "train.jsonl", "--model", "start", "--out", "p.safetensors", "--epochs", "2"]
    assert main(fit) == 0
    words = ["probe", "select", "p.safetensors", "prompts.jsonl", "--draw", "2", "--out", "x.jsonl"]
    assert main([*words, "--engine", "recorded", *SETTINGS]) == 0
    check(*opened[0])
    assert opened[1:] == ["closed"]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVllm]:
    """Run a server of the model `start`, and be in a directory with the model."""
    monkeypatch.chdir(tmp_path)
    save_model(model(), tokenizer(), "start")
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Path("judge.py").write_text("def long(completions, **_):\n    return [float(len(text)) for text in completions]\n")
    served = FakeVllm(Sampled(TransformersSampler(model(), tokenizer())))
    served.name, served.tokenizer = "/models/start", tokenizer()
    with serving(served):
        yield served


GENERATE = ["generate", "start", "--prompts", "prompts.jsonl", "rewards.funcs=judge.py:long", "rewards.workers=1"]
EVAL = ["eval", "start", "--benchmark", "prompts.jsonl", "--template", "plain", "rewards.funcs=judge.py:long"]


@pytest.mark.parametrize("engine", [["--engine", "server"], ["sampling.engine=server"]])
def test_servers_generate_groups_of_their_model(fake: FakeVllm, engine: list[str]):
    words = [*GENERATE, "--out", "groups.jsonl", "sampling.max_tokens=4", "sampling.group_size=2"]
    assert main([*words, *engine, f"sampling.server_urls={fake.url}"]) == 0
    rows = [json.loads(line) for line in Path("groups.jsonl").read_text().splitlines()]
    assert len(rows) == len(ROWS)
    assert len(fake.generated()) == 2 * len(ROWS)
    assert all(
        len(logprobs) == len(tokens)
        for row in rows
        for logprobs, tokens in zip(row["sampler_logprobs"], row["completions"], strict=True)
    )
    assert main([*words, *engine, f"sampling.server_urls={fake.url}", "--resume"]) == 0
    assert len(fake.generated()) == 2 * len(ROWS)  # nothing is sampled again


def test_servers_evaluate_their_model_as_the_model_in_this_process(fake: FakeVllm):
    greedy = ["sampling.temperature=0", "sampling.max_tokens=4", "rewards.workers=1"]
    assert main([*EVAL, *greedy, "--out", "here"]) == 0
    assert main([*EVAL, *greedy, "--out", "there", "--engine", "server", f"sampling.server_urls={fake.url}"]) == 0
    assert fake.generated()
    (here,), (there,) = (list(Path(name).rglob("prompts.jsonl")) for name in ("here", "there"))
    texts = [sorted(str(json.loads(line)["texts"]) for line in path.read_text().splitlines()) for path in (here, there)]
    assert texts[0] == texts[1]


def test_servers_draw_for_a_probe(fake: FakeVllm):
    rows = [{"prompt": digit, "completions": ["1", "23"], "rewards": [0.0, 1.0]} for digit in "0123456789"]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["probe", "fit", "train.jsonl", "--model", "start", "--out", "p.safetensors", "--epochs", "2"]) == 0
    words = ["probe", "select", "p.safetensors", "prompts.jsonl", "--draw", "2", "--out", "x.jsonl"]
    assert main([*words, "sampling.engine=server", f"sampling.server_urls={fake.url}", "sampling.max_tokens=3"]) == 0
    assert len(fake.generated()) == 2 * len(ROWS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "server"], "set sampling.server_urls = ['http://localhost:8000']"),
        (["--engine", "server", "sampling.server_urls=[]"], "set sampling.server_urls"),
        (["--engine", "server", "sampling.server_urls=localhost:8000"], "'localhost:8000', which is not an address"),
        (["--engine", "server", "sampling.server_urls=http://me:secret@host:1"], "contains a password"),
        (["--engine", "server", 'sampling.server_urls=["http://a:1", "http://a:1/v1"]'], "http://a:1 twice"),
        (["--engine", "server", "sampling.server_urls=[http://a:1]"], "in a shell, write a list as"),
        (["--engine", "vllm", "sampling.engine=server"], "--engine vllm and sampling.engine=server are different"),
        (["sampling.server_urls=http://a:1"], "sampling.server_urls is for the engine server, not for transformers"),
        (["--engine", "server", "sampling.engine_options={a = 1}"], "is for the engine vllm, not for server"),
        (
            ["--engine", "server", "sampling.server_urls=http://a:1", "sampling.server_api_key_env=NO_SUCH_KEY"],
            "$NO_SUCH_KEY, which is not set",
        ),
    ],
)
@pytest.mark.parametrize("command", [[*GENERATE, "--out", "groups.jsonl"], [*EVAL, "--out", "results"]])
def test_settings_of_servers_that_cannot_work_are_refused_before_a_model_is_loaded(
    command: list[str], words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Path("judge.py").write_text("def long(completions, **_):\n    return [0.0 for _ in completions]\n")
    Path("start").mkdir()  # without a model
    Path("start/config.json").write_text("{}")
    assert main([*command, *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "secret" not in said
    assert len(said.strip().splitlines()) == 1


def test_a_server_that_cannot_be_reached_is_an_error_of_one_line(
    fake: FakeVllm, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gvpo.sampling.server.greeting.LONGEST", 0.2)
    fake.kill()
    assert main([*GENERATE, "--out", "groups.jsonl", "--engine", "server", f"sampling.server_urls={fake.url}"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert f"{fake.url} cannot be reached" in said[-1]
    assert "gvpo docs servers" in said[-1]
