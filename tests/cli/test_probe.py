"""`gvpo probe fit | eval | select`: from scored groups to choices, on a model and on an endpoint."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from gvpo.cli.main import main
from gvpo.cli.probe import LOSSES
from gvpo.errors import ModelError
from gvpo.model.model import save_model
from gvpo.probe import losses
from gvpo.probe.hidden import HiddenFeatures
from gvpo.probe.qprobe import QProbe
from tests.probe.embedding_server import serving
from tests.training.toy import model, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:AutoTokenizer loads")  # as Qwen2Tokenizer; the file takes precedence

FAST = ["--learning-rate", "3e-2", "--epochs", "60", "--batch", "100"]


def groups(count: int, seed: int, size: int = 8) -> list[dict[str, Any]]:
    """Return groups of three digits after a digit; a completion is correct if its last digit is even."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        texts = ["".join(map(str, rng.integers(0, 10, size=3))) for _ in range(size)]
        rows.append(
            {
                "prompt": str(rng.integers(0, 10)),
                "completions": texts,
                "rewards": [float(int(text[-1]) % 2 == 0) for text in texts],
            }
        )
    return rows


def write(path: str, rows: list[dict[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Create a model, groups for fitting and held-out groups."""
    monkeypatch.chdir(tmp_path)
    save_model(model(), tokenizer(), "model")
    write("train.jsonl", groups(40, 0))
    write("held-out.jsonl", groups(30, 1))


def fit(*words: str) -> int:
    return main(["probe", "fit", "train.jsonl", "--model", "model", "--out", "p.safetensors", *FAST, *words])


def test_the_losses_in_its_help_exist():
    assert tuple(losses.LOSSES) == LOSSES


@pytest.mark.usefixtures("_place")
def test_the_model_may_be_a_run():
    Path("run/checkpoints").mkdir(parents=True)
    Path("model").rename("run/checkpoints/step-000002")
    words = ["probe", "fit", "train.jsonl", "--model", "run", "--out", "p.safetensors", "--epochs", "1"]
    assert main(words) == 0
    assert main(["probe", "eval", "p.safetensors", "held-out.jsonl", "--model", "run"]) == 0


@pytest.mark.usefixtures("_place")
def test_from_groups_to_choices(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    assert fit("--loss", "bce", "--layer", "1", "--token", "last", "--standardize") == 0
    said = capsys.readouterr()
    assert "bce: 320 completions of 40 prompts, 32 features; loss" in said.out
    assert said.out.endswith("wrote p.safetensors\n")
    assert "fitting: step 60/60" in said.err
    metadata = QProbe.load("p.safetensors").metadata
    assert metadata["features"].items() >= {"model": "model", "layer": 1, "token": "last", "endpoint": None}.items()
    assert metadata["fit"].items() >= {"loss": "bce", "epochs": 60, "standardize": True, "prompts": 40}.items()

    words = ["probe", "eval", "p.safetensors", "held-out.jsonl", "--beta", "0,0.5"]
    assert main([*words, "--out", "eval.json", "--figure", "eval.svg"]) == 0
    said = capsys.readouterr()
    assert "expected reward over 30 prompts" in said.out
    assert "beta 0: gain over random at k = 8: 0." in said.out
    result = json.loads(Path("eval.json").read_text())
    assert result["ks"] == [1, 2, 4, 8]
    assert result["arms"]["random"]["mean"][-1] == pytest.approx(0.5, abs=0.1)
    assert result["arms"]["beta 0"]["mean"][-1] > 0.9  # the last digit can be read from its state
    assert result["arms"]["beta 0"]["gain_low"][-1] > 0.3
    root = ElementTree.fromstring(Path("eval.svg").read_text())
    assert len(root.findall(".//*[@class='area band c1']")) == 1

    monkeypatch.setattr(HiddenFeatures, "__call__", None)  # all features are in the cache
    assert main(["probe", "select", "p.safetensors", "held-out.jsonl", "--beta", "0", "--out", "chosen.jsonl"]) == 0
    chosen = read("chosen.jsonl")
    assert [row["completions"] for row in chosen] == [row["completions"] for row in read("held-out.jsonl")]
    assert all(row["selected"] == row["completions"][row["selected_index"]] for row in chosen)
    assert all(row["scores"][row["selected_index"]] == max(row["scores"]) for row in chosen)
    assert sum(row["rewards"][row["selected_index"]] for row in chosen) / 30 == pytest.approx(
        result["arms"]["beta 0"]["mean"][-1]
    )


@pytest.mark.usefixtures("_place")
def test_select_draws_from_the_probes_model():
    assert fit() == 0
    write("prompts.jsonl", [{"prompt": str(digit), "note": "kept"} for digit in range(5)])
    words = ["probe", "select", "p.safetensors", "prompts.jsonl", "--draw", "6", "sampling.max_tokens=3"]
    assert main([*words, "--out", "a.jsonl"]) == 0
    assert main([*words, "--out", "b.jsonl"]) == 0
    assert main([*words, "--out", "c.jsonl", "run.seed=1"]) == 0
    rows = read("a.jsonl")
    assert [len(row["completions"]) for row in rows] == [6] * 5
    assert all(row["selected"] in row["completions"] and row["note"] == "kept" for row in rows)
    assert all(sum(row["weights"]) == pytest.approx(1) for row in rows)
    assert rows == read("b.jsonl")
    assert [row["completions"] for row in rows] != [row["completions"] for row in read("c.jsonl")]


@pytest.mark.usefixtures("_place")
def test_preference_pairs_by_an_endpoint(capsys: pytest.CaptureFixture[str]):
    """More digits after the line break are preferred, and the server's vectors count them."""
    pairs = [{"prompt": "p", "chosen": "1" * (2 + n % 3), "rejected": "1" * (n % 2)} for n in range(30)]
    write("train.jsonl", [{**pair, "id": str(n)} for n, pair in enumerate(pairs)])
    with serving() as server:
        assert fit("--loss", "preferences", "--endpoint", server.url) == 0
        asked = len(server.requests)
        assert main(["probe", "eval", "p.safetensors", "train.jsonl", "--beta", "0"]) == 0
        assert main(["probe", "select", "p.safetensors", "train.jsonl", "--draw", "2", "--out", "x.jsonl"]) == 2
        assert len(server.requests) == asked
    assert QProbe.load("p.safetensors").metadata["features"]["endpoint"] == server.url
    said = capsys.readouterr()
    assert "1.000 (1.000 to 1.000)" in said.out
    assert "--draw needs a local model" in said.err


@pytest.mark.usefixtures("_place")
def test_an_interrupted_fit_resumes_with_its_stored_features(monkeypatch: pytest.MonkeyPatch):
    compute, calls = HiddenFeatures.__call__, []

    def interrupted(self: HiddenFeatures, prompts: Any, texts: Any) -> Any:
        calls.append(len(texts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compute(self, prompts, texts)

    monkeypatch.setattr(HiddenFeatures, "__call__", interrupted)
    write("train.jsonl", groups(60, 0))
    assert fit() == 130
    assert fit() == 0
    assert len(calls) == 3
    assert calls[1] == calls[2] < calls[0]


@pytest.mark.usefixtures("_place")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["probe", "fit", "gone.jsonl", "--model", "model", "--out", "x"], "there is no file gone.jsonl"),
        (["probe", "fit", "train.jsonl", "--model", "./gone", "--out", "x"], "there is no directory './gone'"),
        (["probe", "fit", "train.jsonl", "--model", "model", "--out", "x", "--layer", "9"], "layer 9 does not exist"),
        (["probe", "fit", "train.jsonl", "--model", "m", "--endpoint", "x", "--out", "x"], "'x' is not a URL"),
        (
            ["probe", "eval", "p", "train.jsonl", "sampling.max_tokens=3"],
            "gvpo probe eval does not read sampling.max_to",
        ),
        (
            ["probe", "fit", "train.jsonl", "--model", "model", "--out", "x", "train.tokens_per_microbatch=auto"],
            "is for",
        ),
        (["probe", "eval", "gone.safetensors", "train.jsonl"], "there is no probe gone.safetensors"),
        (["probe", "eval", "train.jsonl", "train.jsonl"], "the probe train.jsonl is corrupt"),
    ],
)
def test_error_about_impossible_arguments_is_one_line_with_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(words) == 2
    *warnings, error = capsys.readouterr().err.splitlines()
    assert all(line.startswith("gvpo: warning: AutoTokenizer loads") for line in warnings)
    assert error.startswith("gvpo: error: ")
    assert message in error


@pytest.mark.usefixtures("_place")
def test_errors_about_another_model_and_bad_numbers(capsys: pytest.CaptureFixture[str]):
    assert fit("--epochs", "1") == 0
    save_model(model(seed=1), tokenizer(), "other")
    write("short.jsonl", [{"prompt": "1", "completions": ["1"], "rewards": [None]}])
    for words, message in (
        (["held-out.jsonl", "--model", "other"], "the model other is not the one that the probe was fitted on"),
        (["held-out.jsonl", "--beta", "-1"], "beta is -1.0; use 0 (the best) or more"),
        (["held-out.jsonl", "--k", "9"], "no prompt has as many rewarded completions as the largest k"),
        (["short.jsonl"], "no completion has a reward"),
    ):
        assert main(["probe", "eval", "p.safetensors", *words]) == 2
        assert message in capsys.readouterr().err
    QProbe(np.zeros(32, dtype=np.float32)).save("bare.safetensors")
    assert main(["probe", "eval", "bare.safetensors", "held-out.jsonl"]) == 2
    assert "does not say where its features come from" in capsys.readouterr().err
    with pytest.raises(ModelError):
        main(["probe", "eval", "gone.safetensors", "held-out.jsonl", "--debug"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--loss", "ce"], "argument --loss: invalid choice: 'ce' (choose from"),
        (["--token", "2"], "argument --token: invalid choice: '2' (choose from"),
        (["--dimensions", "0"], "argument --dimensions: '0' is not a whole number of at least 1"),
    ],
)
def test_flags_of_fit_are_checked(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        fit(*words)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"gvpo: error: {message}")


@pytest.mark.parametrize(
    ("word", "message"),
    [("0,x", "'0,x' is not a list of numbers such as 1,8"), ("", "'' is not a list of numbers such as 1,8")],
)
def test_beta_is_a_list_of_numbers(word: str, message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["probe", "eval", "p", "groups.jsonl", "--beta", word])
    assert capsys.readouterr().err == f"gvpo: error: argument --beta: {message}; see gvpo probe eval --help\n"


def test_error_about_a_missing_action(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(["probe"])
    assert stopped.value.code == 2
    assert "ACTION is missing, for example: gvpo probe fit" in capsys.readouterr().err
