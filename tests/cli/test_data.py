"""`gvpo data check`: its output, its files and its exit code."""

import json
from pathlib import Path

import pytest

from gvpo.cli.main import main
from gvpo.evaluation.benchmarks import BENCHMARKS
from tests.fakes import byte_tokenizer

ROWS = [
    {"prompt": "What is 2+3?", "answer": "5"},
    {"prompt": "What is 2 + 3 ?", "answer": "5", "note": "é"},
    {"prompt": "What is 4+4?", "answer": "\\boxed{8"},
    {"prompt": "", "answer": "1"},
    {"prompt": "How much is 9+9, and why is that?", "answer": "18"},
    {"prompt": "What is 1+1?", "answer": "2"},
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a directory with a dataset, one without findings and a benchmark."""
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "clean.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    (tmp_path / "bench.json").write_text(json.dumps([{"problem": "What is $1+1$?", "answer": "2"}]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def one_line(shown: str) -> str:
    return " ".join(shown.split())


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_findings_are_shown_and_the_clean_rows_are_written(place: Path, capsys: pytest.CaptureFixture[str]):
    before = (place / "train.jsonl").read_bytes()
    words = ["train.jsonl", "--against", "bench.json", "rewards.funcs=boxed_answer"]
    assert main(["data", "check", *words, "--json", "found.json", "--write", "out/kept.jsonl"]) == 1
    shown = capsys.readouterr().out
    assert "contamination 1 train.jsonl row 6: the same words as bench.json row 1, the same answer" in one_line(shown)
    assert "too long not checked: give --tokenizer and --context" in one_line(shown)
    assert "6 rows, 1 of benchmarks; 2 rows without a finding" in shown
    report = json.loads((place / "found.json").read_text())
    assert [(each["kind"], each["place"]["row"]) for each in report["findings"]] == [
        ("no prompt", 4),
        ("duplicate", 2),
        ("contamination", 6),
        ("unscorable", 3),
    ]
    assert lines(place / "out/kept.jsonl") == [ROWS[0], ROWS[4]]
    assert (place / "train.jsonl").read_bytes() == before


def test_exit_code_0_without_findings(place: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "check", "clean.jsonl", "rewards.funcs=boxed_answer"]) == 0
    assert "1 rows, 0 of benchmarks; 1 rows without a finding" in capsys.readouterr().out


def test_every_given_reward_is_tested_on_wrong_answers(place: Path, capsys: pytest.CaptureFixture[str]):
    (place / "lax.py").write_text("def lax(completions, **_):\n    return [1.0] * len(completions)\n")
    assert main(["data", "check", "clean.jsonl", 'rewards.funcs=["boxed_answer", "lax.py:lax"]']) == 1
    shown = one_line(capsys.readouterr().out)
    assert 'wrong answer paid 1 clean.jsonl row 1: lax.py:lax pays 1 for an empty completion and "no idea"' in shown


def test_only_json_on_the_terminal(place: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "check", "train.jsonl", "clean.jsonl", "--json", "-"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == 7
    assert [each["place"] for each in report["findings"]] == [
        {"data": "train.jsonl", "row": 4},
        {"data": "train.jsonl", "row": 2},
        {"data": "clean.jsonl", "row": 1},
    ]


def test_tokens_are_counted_as_in_training(place: Path, capsys: pytest.CaptureFixture[str]):
    byte_tokenizer().save_pretrained("tokenizer")
    words = ["train.jsonl", "--tokenizer", "tokenizer", "--context", "20"]
    assert main(["data", "check", *words, "--json", "found.json"]) == 1
    assert "too long 1 train.jsonl row 5: 33 tokens" in one_line(capsys.readouterr().out)
    report = json.loads((place / "found.json").read_text())
    assert report["lengths"]["tokens"] == {"p0": 12, "p10": 12, "p50": 12, "p90": 33, "p99": 33, "p100": 33}


def test_benchmarks_may_be_separated_by_commas(place: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "check", "clean.jsonl", "--against", "bench.json,clean.jsonl"]) == 1
    assert "1 rows, 2 of benchmarks; 0 rows without a finding" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("missing.jsonl", "there is no file missing.jsonl"),
        ("clean.jsonl --against missing.jsonl", "there is no file missing.jsonl"),
        ("clean.jsonl --write train.jsonl", "train.jsonl already exists; choose another name, existing files are not"),
        ("train.jsonl --write train.jsonl", "train.jsonl already exists; choose another name"),
        ("clean.jsonl --json bench.json", "bench.json already exists"),
        ("clean.jsonl --write kept.json", "choose a name that ends in .jsonl instead of kept.json"),
        ("clean.jsonl --write a.jsonl --json a.jsonl", "--write and --json both name a.jsonl"),
        ("clean.jsonl rewards.funcs=boxed_anser", "there is no reward 'boxed_anser'; did you mean 'boxed_answer'?"),
        ("clean.jsonl rewards.funcs=gsm8k rewards.timeout=0", "rewards.timeout=0: Input should be greater than 0"),
        ("clean.jsonl --context 100", "--context counts tokens; name the model with --tokenizer"),
        ("clean.jsonl --context 0 --tokenizer x", "--context is a number of tokens above 0, not 0"),
        ("clean.jsonl --similarity 1.5", "--similarity is a fraction above 0 and at most 1, not 1.5"),
        ("clean.jsonl --tokenizer ./nowhere", "there is no directory './nowhere' to load a tokenizer from"),
        ("clean.jsonl data.prompt_column=question", "no prompt column 'question': its columns are 'prompt', 'answer'"),
        (
            "clean.jsonl rewards.funcs=code_tests",
            "reward 'code_tests' needs a column 'tests' that the data does not have",
        ),
    ],
)
def test_error_about_bad_input_is_one_line_with_exit_code_2(
    place: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
):
    before = {file.name: file.read_bytes() for file in place.iterdir()}
    assert main(["data", "check", *words.split()]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("gvpo: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert {file.name: file.read_bytes() for file in place.iterdir()} == before


def test_error_about_an_unknown_action_names_it(place: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(["data", "chek", "clean.jsonl"])
    assert stopped.value.code == 2
    assert "invalid choice: 'chek'" in capsys.readouterr().err


def test_the_name_of_a_benchmark_refers_to_its_dataset_on_the_hub(place: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def rows(data: str, **options: object) -> list[object]:
        asked.append(data)
        return []

    monkeypatch.setattr("gvpo.data.check.read_rows", rows)
    main(["data", "check", "clean.jsonl", "--against", "math500,bench.json,aime24"])
    assert asked == ["clean.jsonl", BENCHMARKS["math500"].hub_id, "bench.json", BENCHMARKS["aime24"].hub_id]
