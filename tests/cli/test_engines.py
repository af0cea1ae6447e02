"""`--engine` of generate, eval and probe select: the engine is opened with the settings of the command line."""

import json
from pathlib import Path
from typing import Any

import pytest

from gvpo.cli.main import main
from gvpo.model.model import save_model
from gvpo.sampling.engines import ENGINES, EngineOptions
from gvpo.sampling.transformers import TransformersSampler
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


def test_generate(opened: list[Any]):
    words = ["generate", "start", "--engine", "recorded", "--prompts", "prompts.jsonl", "--out", "groups.jsonl"]
    assert main([*words, "rewards.funcs=judge.py:long", "rewards.workers=1", *SETTINGS]) == 0
    check(*opened[0])
    assert json.loads(Path("groups.jsonl").read_text().splitlines()[0])["completions"]


def test_eval_closes_it(opened: list[Any]):
    words = ["eval", "start", "--engine", "recorded", "--benchmark", "prompts.jsonl", "--template", "plain"]
    assert main([*words, "--out", "results", "rewards.funcs=judge.py:long", "rewards.workers=1", *SETTINGS]) == 0
    check(*opened[0])
    assert opened[1:] == ["closed"]


def test_probe_select_draws_with_it(opened: list[Any]):
    rows = [{"prompt": digit, "completions": ["1", "23"], "rewards": [0.0, 1.0]} for digit in "0123456789"]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fit = ["probe", "fit", "train.jsonl", "--model", "start", "--out", "p.safetensors", "--epochs", "2"]
    assert main(fit) == 0
    words = ["probe", "select", "p.safetensors", "prompts.jsonl", "--draw", "2", "--out", "x.jsonl"]
    assert main([*words, "--engine", "recorded", *SETTINGS]) == 0
    check(*opened[0])
