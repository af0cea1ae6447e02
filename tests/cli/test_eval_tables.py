"""The tables of `gvpo eval` at several widths."""

import pytest

from gvpo.cli.eval_tables import print_scores

FIRST, SECOND = "models/smollm2-135m-instruct", "runs/recipes-smollm2-gvpo-lora-seed-1"
SUMMARY = {
    "results": [
        {
            "benchmark": benchmark,
            "model": model,
            "problems": 500,
            "samples": 8,
            "avg": {"mean": 0.1234, "interval": [0.11, 0.14]},
            "pass_at": {"8": {"mean": 0.3, "interval": [0.2, 0.4]}},
            "maj_at": {"8": {"mean": 0.3, "interval": [0.2, 0.4]}},
            "length": 1234.5,
            "truncated": 0.1,
            "failed": 0,
        }
        for benchmark in ("math500", "olympiadbench")
        for model in (FIRST, SECOND)
    ],
    "averages": [{"model": model, "benchmarks": 2, "mean": 0.2, "interval": [0.1, 0.3]} for model in (FIRST, SECOND)],
    "differences": [
        {
            "benchmark": "olympiadbench",
            "first": SECOND,
            "second": FIRST,
            "difference": 0.02,
            "interval": [-0.01, 0.05],
            "problems": 500,
            "problems_needed": 1234,
        }
    ],
}


@pytest.mark.parametrize(("width", "names"), [(80, ("A", "B")), (150, (FIRST, SECOND))])
def test_no_table_breaks_a_word(
    width: int, names: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", str(width))
    print_scores(SUMMARY)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    words = shown.replace("│", " ").replace("┃", " ").split()
    assert words.count("olympiadbench") == 2 + 2 + 2 + 1
    assert words.count("1234") == 4 + 1
    assert [words.count(name) for name in names] == [2 + 2 + 2 + 1 + 1 + (width == 80)] * 2
    assert [words.count(name) > 0 for name in (FIRST, SECOND)] == [True, True]
    assert ("A  " + FIRST in shown) == (width == 80)
