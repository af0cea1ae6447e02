"""`gvpo eval`: from arguments to tables, with small models and with the reference answers of the real benchmarks."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gvpo.cli.main import main
from gvpo.evaluation.benchmarks import BENCHMARKS
from gvpo.model.model import save_model
from gvpo.rewards.sandbox.isolation import isolation_problem
from gvpo.sampling.transformers import TransformersSampler
from tests.fakes import CHAT_TEMPLATE, byte_tokenizer, tiny_model
from tests.training.toy import DIGITS, model, tokenizer, trainer

pytestmark = pytest.mark.filterwarnings("ignore:AutoTokenizer loads")

REAL = Path(os.environ.get("GVPO_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
real = pytest.mark.skipif(
    not (REAL / "aime24").is_dir(), reason="the real data are not here; GVPO_TEST_DATA names them"
)
isolated = pytest.mark.skipif(bool(isolation_problem()), reason=f"code cannot be isolated: {isolation_problem()}")
NEXT = dict(zip(DIGITS, DIGITS[1:] + DIGITS[0], strict=True))
MATHS = "aime24,amc,math500,minerva,olympiadbench,gsm8k"
CHECK = ["--data", str(REAL), "--check", "rewards.workers=2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a directory with a random model, a copy trained to continue digits, and a benchmark of ten digits."""
    directory = tmp_path_factory.mktemp("eval")
    save_model(model(), tokenizer(), directory / "base")
    taught = model()
    rows = [{"prompt": digit, "completion": NEXT[digit]} for digit in DIGITS]
    settings = {"objective": "sft", "steps": 40, "prompts_per_step": 10, "learning_rate": 1e-2}
    trainer(directory / "run", rewards=(), policy=taught, data=rows, held=None, **settings).train()
    save_model(taught, tokenizer(), directory / "taught")
    benchmark = "".join(json.dumps({"prompt": digit, "answer": NEXT[digit], "id": digit}) + "\n" for digit in DIGITS)
    (directory / "digits.jsonl").write_text(benchmark)
    return directory


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "160")


OWN = ["--benchmark", "digits.jsonl", "rewards.funcs=exact_match", "sampling.max_tokens=3", "rewards.workers=1"]


def summary(out: str) -> dict[str, Any]:
    return json.loads((Path(out) / "summary.json").read_text())


def test_two_models_side_by_side(capsys: pytest.CaptureFixture[str]):
    words = ["eval", "base", "taught", *OWN, "eval.samples=4", "--k", "1,4", "sampling.temperature=1", "--out", "pair"]
    assert main(words) == 0
    base, taught = summary("pair")["results"]
    assert (base["model"], taught["model"], taught["benchmark"]) == ("base", "taught", "digits")
    asked = summary("pair")["settings"]
    assert [(one["name"], one["template"], one["group_size"]) for one in asked] == [
        (n, "plain", 4) for n in ("base", "taught")
    ]
    assert base["avg"]["mean"] < 0.3
    assert taught["avg"]["mean"] > 0.8
    assert (taught["problems"], taught["samples"], taught["failed"]) == (10, 4, 0)
    assert set(taught["pass_at"]) == set(taught["maj_at"]) == {"1", "4"}
    assert taught["pass_at"]["4"]["mean"] >= taught["pass_at"]["1"]["mean"] == pytest.approx(taught["avg"]["mean"])
    assert 1 <= taught["length"] <= 3
    (difference,) = summary("pair")["differences"]
    assert (difference["first"], difference["second"], difference["settled"]) == ("taught", "base", True)
    assert difference["difference"] == pytest.approx(taught["avg"]["mean"] - base["avg"]["mean"])
    assert difference["problems_needed"] <= 10
    shown = capsys.readouterr()
    assert "paired differences in avg@n, in points" in shown.out
    assert f"{100 * taught['avg']['mean']:.1f}" in shown.out
    assert "taught digits: problem 10/10" in shown.err
    rows = [json.loads(line) for line in Path("pair/taught/digits.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == list(DIGITS)
    assert all(len(row["texts"]) == len(row["completions"]) == 4 for row in rows)


def test_one_sample_is_greedy(capsys: pytest.CaptureFixture[str]):
    assert main(["eval", "taught", *OWN, "--out", "greedy"]) == 0
    (found,) = summary("greedy")["results"]
    assert found["avg"]["mean"] == 1.0
    assert found["avg"]["interval"] == pytest.approx([0.025**0.1, 1.0])
    assert summary("greedy")["differences"] == []
    assert "of several samples" not in capsys.readouterr().out


def test_it_resumes_and_accepts_another_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    words = ["eval", "base", *OWN, "eval.samples=2", "--out", "broken", "--save-every", "3"]
    stream = TransformersSampler.stream
    calls: list[int] = []

    def stops(self: TransformersSampler, requests: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(requests))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return stream(self, requests, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TransformersSampler, "stream", stops)
        assert main(words) == 130
    assert "stopped; resume with: gvpo eval" in capsys.readouterr().err
    assert calls == [3, 3, 3]
    half = Path("broken/base/digits.jsonl").read_text()
    assert len(half.splitlines()) == 6
    assert main(words) == 2
    assert "already exists; resume it with --resume" in capsys.readouterr().err
    assert main([*words, "--resume", "run.seed=1"]) == 2
    assert "was created with seed=0, not 1" in capsys.readouterr().err
    assert main([*words, "taught", "--resume"]) == 0
    assert Path("broken/base/digits.jsonl").read_text().startswith(half)
    assert main(["eval", "base", *OWN, "eval.samples=2", "--out", "whole"]) == 0
    assert Path("broken/base/digits.jsonl").read_bytes() == Path("whole/base/digits.jsonl").read_bytes()
    assert len(summary("broken")["results"]) == 2


def test_a_model_that_was_trained_in_the_meantime_is_another_model(place: Path, capsys: pytest.CaptureFixture[str]):
    save_model(model(), tokenizer(), place / "moving")
    assert main(["eval", "moving", *OWN, "--out", "moved"]) == 0
    save_model(model(seed=1), tokenizer(), place / "moving")
    assert main(["eval", "moving", *OWN, "--out", "moved", "--resume"]) == 2
    assert "was created with weights=" in capsys.readouterr().err


def test_a_run_stands_for_its_latest_checkpoint_and_responses_need_no_model():
    assert main(["eval", "run", *OWN, "--out", "of-run"]) == 0
    assert summary("of-run")["results"][0]["avg"]["mean"] == 1.0
    assert main(["eval", "--responses", "of-run/run", *OWN, "--out", "again"]) == 0
    (again,) = summary("again")["results"]
    (first,) = summary("of-run")["results"]
    assert {**again, "model": ""} == {**first, "model": ""}
    wrong = "".join(json.dumps({"response": "7"}) + "\n" for _ in DIGITS)
    Path("wrong.jsonl").write_text(wrong)
    assert main(["eval", "--responses", "wrong.jsonl", *OWN, "--out", "of-file"]) == 0
    assert summary("of-file")["results"][0]["avg"]["mean"] == pytest.approx(0.1)


@real
def test_a_chat_model_on_real_questions(place: Path):
    """Use three templates and two benchmarks: prompts are built, sampled, scored and truncated."""
    chatty = byte_tokenizer(CHAT_TEMPLATE)
    save_model(tiny_model("llama", max_position_embeddings=4096), chatty, place / "chatty")
    for template, names in (("auto", "math500,gsm8k"), ("qwen-math", "gsm8k"), ("r1", "gsm8k")):
        words = [
            "eval",
            "chatty",
            "--benchmark",
            names,
            "--data",
            str(REAL),
            "--limit",
            "2",
            "rewards.workers=1",
        ]
        assert main([*words, "--template", template, "sampling.max_tokens=4", "eval.samples=2", "--out", template]) == 0
        for found in summary(template)["results"]:
            assert (found["problems"], found["samples"], found["avg"]["mean"]) == (2, 2, 0.0)
            assert found["length"] <= 4
            assert found["truncated"] > 0
    (average,) = summary("auto")["averages"]
    assert (average["mean"], average["benchmarks"]) == (0.0, 2)
    first = json.loads(Path("auto/chatty/math500.jsonl").read_text().splitlines()[0])
    assert first["prompt"][0]["role"] == "user"


@real
@pytest.mark.parametrize("names", [MATHS, pytest.param("mbpp,humaneval", marks=isolated)])
def test_reference_answers_are_correct_and_wrong_answers_are_not(names: str, tmp_path: Path):
    pytest.importorskip("mpmath")
    assert main(["eval", "--benchmark", names, *CHECK, "--limit", "6", "--out", str(tmp_path / "out")]) == 0
    means = {(r["model"], r["benchmark"]): r["avg"]["mean"] for r in summary(str(tmp_path / "out"))["results"]}
    assert set(means) == {(model, name) for model in ("golds", "wrong") for name in names.split(",")}
    assert means == {key: float(key[0] == "golds") for key in means}


@real
@isolated
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_reference_answer_of_every_benchmark(tmp_path: Path):
    pytest.importorskip("mpmath")
    assert main(["eval", "--benchmark", ",".join(BENCHMARKS), *CHECK, "--out", str(tmp_path / "out")]) == 0
    for found in summary(str(tmp_path / "out"))["results"]:
        if found["model"] == "wrong":
            assert found["avg"]["mean"] == 0.0
        else:
            assert found["avg"]["mean"] >= (0.995 if found["benchmark"] in MATHS.split(",") else 0.99)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--benchmark", "aime"], "there is nothing to evaluate: pass a MODEL, --responses FILE or --check"),
        (["base", "--benchmark", "aime"], "there is no benchmark 'aime'; did you mean 'aime24'?"),
        (["base", "--benchmark", "digits.jsonl"], "name its reward: rewards.funcs=NAME"),
        (["base", *OWN, 'rewards.funcs=["exact_match", "gsm8k"]'], "rewards.funcs has 2 rewards"),
        (
            ["base", *OWN, "data.groups=x"],
            "gvpo eval does not read data.groups; it reads run.seed, model.compute_dtype",
        ),
        (["base", *OWN, "temprature=1"], "unknown setting 'temprature'; did you mean 'sampling.temperature'?"),
        (["base", *OWN, "sampling.top_p=2"], "sampling.top_p=2: Input should be less than or equal to 1"),
        (["base", "--benchmark", ",", *OWN[2:]], "--benchmark is empty; pass a benchmark, or a file"),
        (["base", *OWN, "eval.samples=0"], "eval.samples=0: Input should be greater than or equal to 1"),
        (
            ["base", *OWN, "--data", "digit=x.jsonl"],
            "--data digit=... does not name a benchmark; did you mean 'digits'?",
        ),
        (["base", "--benchmark", "gsm8k", *OWN[2:]], "gsm8k is scored by gsm8k; remove it"),
        (
            ["base", *OWN[:2], "rewards.funcs=length_penalty"],
            "the reward 'length_penalty' needs options, which gvpo eval does not support",
        ),
        (
            ["base", *OWN[:2], "rewards.funcs=reward_model"],
            "the reward 'reward_model' needs options, which gvpo eval does not support",
        ),
        (["base", "base", *OWN], "base is listed twice; list each once"),
        (["base", "./base", *OWN], "base and ./base would both write never/base/digits.jsonl"),
        (["base", *OWN, "--engine", "vlm"], "there is no engine 'vlm'"),
        (["base", *OWN, "eval.samples=2", "sampling.temperature=0"], "2 samples at temperature 0 are identical"),
        (["base", *OWN, "--template", "qwen-math"], "the template 'qwen-math' does not fit digits; use chat or plain"),
        (["base", *OWN, "--template", "chat"], "the prompt needs a chat template and the tokenizer has none"),
        (
            ["base", *OWN, "--examples", "digits.jsonl"],
            "digits.jsonl row 1 has no text `prompt` or no text `completion`",
        ),
        (["--responses", "none.jsonl", *OWN], "there is no file none.jsonl"),
        (["--responses", ".", *OWN, "rewards.funcs=number_match"], None),
        (["--check", *OWN], "digits is your own benchmark, so its correct answers are not known"),
        (["nowhere/at/all", *OWN], "there is no directory 'nowhere/at/all'"),
    ],
)
def test_error_about_impossible_arguments_is_one_line(
    words: list[str], message: str | None, capsys: pytest.CaptureFixture[str]
):
    code = main(["eval", *words, "--out", "never"])
    shown = capsys.readouterr().err
    if message is None:  # the directory has digits.jsonl, which contains no responses
        message = "digits.jsonl row 1 has no responses"
    *warnings, error = shown.splitlines()
    assert all(line.startswith("gvpo: warning: AutoTokenizer loads") for line in warnings), shown
    assert (code, error.startswith("gvpo: error: ")) == (2, True)
    assert message in error
    assert not Path("never").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--k", "one"], "argument --k: 'one' is not a whole number of at least 1; see gvpo eval --help"),
        (["--k", "1,0"], "argument --k: '0' is not a whole number of at least 1"),
        (["--limit", "0"], "argument --limit: '0' is not a whole number of at least 1"),
        (["--save-every", "-1"], "argument --save-every: '-1' is not a whole number of at least 1"),
    ],
)
def test_counts_in_flags_are_at_least_1(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["eval", "base", *OWN, *words])
    shown = capsys.readouterr().err
    assert (ended.value.code, shown.count("\n")) == (2, 1)
    assert shown.startswith(f"gvpo: error: {message}")
