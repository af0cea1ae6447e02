"""Tests of votes, a benchmark's numbers, differences, averages and response files."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from gvpo.errors import ConfigError, DataError
from gvpo.evaluation.benchmarks import BENCHMARKS
from gvpo.evaluation.protocol import EvalProtocol
from gvpo.evaluation.responses import Responses
from gvpo.evaluation.results import Result, averages, compare, judged, summary
from gvpo.evaluation.votes import VOTES, math_vote
from gvpo.sampling import Request, SamplingParams
from gvpo.types import Problem


@pytest.mark.parametrize(
    ("texts", "same"),
    [
        # one vote
        ([r"\boxed{\frac12}", r"\boxed{0.5}", r"so \boxed{1/2}.", "<answer> 1/2 </answer>"], True),
        ([r"\boxed{58,500}", r"\boxed{58500\text{ m}}", r"\boxed{x=58500}"], True),
        ([r"\boxed{\dfrac{x}{2}}", r"\boxed{ \frac{x}{2} }"], True),
        ([r"\boxed{(3, \frac{\pi}{2})}", r"\boxed{\left(3,\frac{\pi}{2}\right)}"], True),
        # two votes
        ([r"\boxed{1}", r"\boxed{2}"], False),
        ([r"\boxed{x+1}", r"\boxed{1+x}"], False),  # formulas are not compared by value
        ([r"\boxed{(1,2)}", r"\boxed{(2,1)}"], False),
    ],
)
def test_equal_votes_are_the_same_number_or_the_same_text(texts: list[str], same: bool):
    assert (len({math_vote(text) for text in texts}) == 1) is same
    assert None not in map(math_vote, texts)


def test_a_completion_without_an_answer_has_no_vote():
    assert [math_vote(text) for text in ("hm", r"\boxed{}", r"\boxed{1", "")] == [None] * 4
    assert VOTES["gsm8k"]("1 + 1 = 2\n#### 2") == Fraction(2)
    assert VOTES["gsm8k"]("none") is None
    assert "code_tests" not in VOTES


def row(name: str, *samples: tuple[str, float | None, int], reward: str = "exact_match", **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "completions": [[0] * length for *_, length in samples],
        "texts": [text for text, *_ in samples],
        "rewards": [value for _, value, _ in samples],
        "reward_parts": [{reward: value} for _, value, _ in samples],
        "reasons": ["" if value is not None else "timeout: slow" for _, value, _ in samples],
        "finish_reasons": ["length" if text.endswith("...") else "stop" for text, *_ in samples],
        **more,
    }


ROWS = [
    row("a", ("x", 1.0, 2), ("x", 1.0, 2), ("y", 0.0, 2), ("y...", 0.0, 10)),
    row("b", ("x", 0.0, 4), ("z", 0.0, 4), ("z", 0.0, 4), ("q", None, 4)),
]


def result(rows: list[dict[str, Any]], model: str = "m", benchmark: str = "b", **settings: Any) -> Result:
    return Result(model, benchmark, [judged(each, "exact_match") for each in rows], **settings)


def test_numbers_of_a_benchmark():
    values = result(ROWS).values
    assert (values["problems"], values["samples"]) == (2, 4)
    assert values["avg"]["mean"] == pytest.approx((0.5 + 0.0) / 2)
    low, high = values["avg"]["interval"]
    assert 0 <= low <= 0.25 <= high <= 0.5
    assert {k: found["mean"] for k, found in values["pass_at"].items()} == pytest.approx(
        {"1": 0.25, "2": (1 - 1 / 6) / 2, "4": 0.5}
    )
    assert values["maj_at"]["4"]["mean"] == pytest.approx((1 + 0) / 2)  # x in a, z in b
    assert values["length"] == pytest.approx((2 + 2 + 2 + 10 + 16) / 8)
    assert values["truncated"] == pytest.approx(1 / 8)
    assert values["failed"] == 1


def test_which_k_are_counted():
    assert result(ROWS, ks=[1, 3, 8]).passes == result(ROWS, ks=[1, 3, 8]).majorities == [1, 3]
    assert (result(ROWS).passes, result(ROWS).majorities) == ([1, 2, 4], [4])
    three = [row("a", *[("x", 1.0, 1)] * 3)]
    assert result(three).passes == [1, 2, 3]
    fewer = [*three, row("b", ("x", 1.0, 1))]  # a file may contain fewer responses for one problem
    assert result(fewer).passes == [1]


def test_programs_have_no_votes_and_texts_have_no_length():
    texts = row("a", ("x", 1.0, 1), reward="code_tests", completions=["x"])
    values = Result("m", "b", [judged(texts, "code_tests")]).values
    assert values["maj_at"] == {"1": None}
    assert values["length"] is None


def test_models_are_compared_on_the_problems_of_both():
    better = [row("b", ("x", 1.0, 1)), row("a", ("x", 1.0, 1)), row("c", ("x", 0.0, 1))]
    (found,) = compare([result(ROWS, "base"), result(better, "new"), result(ROWS, "base", "another")])
    assert (found.first, found.second, found.benchmark) == ("new", "base", "b")
    assert found.difference.mean == pytest.approx((1 + 0.5) / 2)
    assert found.difference.problems == 2
    assert found.values["settled"] is False  # two problems never settle a difference


def test_models_without_a_common_problem_are_not_compared():
    other = [row("z", ("x", 1.0, 1))]
    assert compare([result(ROWS, "base"), result(other, "new")]) == []


def test_every_benchmark_has_the_same_weight_in_an_average():
    many = [row(str(n), ("x", float(n % 4 == 0), 1)) for n in range(40)]
    (found,) = averages([result(ROWS), result(many, benchmark="c")])
    assert found["mean"] == pytest.approx((0.25 + 0.25) / 2)
    assert found["interval"][0] < 0.25 < found["interval"][1]
    assert averages([result(ROWS)]) == []
    (certain,) = averages([result(ROWS), result(many[:1], benchmark="c")])
    assert certain["interval"] is None
    assert set(summary([result(ROWS)])) == {"results", "differences", "averages"}


# Protocol


def test_one_sample_is_greedy_and_several_are_not():
    math500, aime = BENCHMARKS["math500"], BENCHMARKS["aime24"]
    assert EvalProtocol().params(math500) == SamplingParams(1, 3072, temperature=0.0)
    assert EvalProtocol().params(aime) == SamplingParams(32, 3072, temperature=0.6, top_p=0.95)
    own = EvalProtocol(samples=4, max_tokens=9, temperature=1.0, top_k=5).params(aime)
    assert own == SamplingParams(4, 9, temperature=1.0, top_k=5)
    with pytest.raises(ConfigError, match="32 samples at temperature 0 are identical"):
        EvalProtocol(temperature=0.0).params(aime)


def test_a_limit_chooses_the_same_problems_for_every_model():
    problems = [Problem("?", str(number)) for number in range(100)]
    chosen = EvalProtocol(limit=10).chosen(problems)
    assert chosen == EvalProtocol(limit=10, samples=3).chosen(problems)
    assert chosen == sorted(chosen, key=lambda problem: int(problem.id))
    assert chosen != problems[:10]
    assert chosen != EvalProtocol(limit=10, seed=1).chosen(problems)
    assert EvalProtocol(limit=100).chosen(problems) == problems


# Responses

PROBLEMS = [Problem("?", "a"), Problem("?", "b")]


def texts(rows: list[dict[str, Any]]) -> list[list[str | None]]:
    sampler = Responses.of_rows(rows, PROBLEMS, "f.jsonl")
    drawn = sampler.sample([Request("a", (0,)), Request("b", (0,))], SamplingParams(), seed=0, step=0)
    return [[completion.text for completion in completions] for completions in drawn]


@pytest.mark.parametrize(
    "rows",
    [
        [{"response": "1"}, {"response": "2"}],
        [{"responses": ["1"]}, {"responses": ["2"]}],
        [{"id": "b", "completion": "2"}, {"id": "a", "completion": "1"}, {"id": "c", "completion": "3"}],
        [{"id": "a", "completions": [[5]], "texts": ["1"]}, {"id": "b", "completions": [[6, 7]], "texts": ["2"]}],
    ],
)
def test_responses_by_id_or_in_order(rows: list[dict[str, Any]]):
    assert texts(rows) == [["1"], ["2"]]


def test_tokens_and_finish_reasons_of_responses_are_kept():
    rows = [
        {"id": "a", "completions": [[5, 6]], "texts": ["1"], "finish_reasons": ["length"]},
        {"id": "b", "response": "2"},
    ]
    sampler = Responses.of_rows(rows, PROBLEMS, "f.jsonl")
    ((first,), (second,)) = sampler.sample([Request("a", (0,)), Request("b", (0,))], SamplingParams(), seed=0, step=0)
    assert (list(first.tokens), first.finish_reason) == ([5, 6], "length")
    assert (list(second.tokens), second.finish_reason) == ([], "stop")
    assert sampler.most == 1
    assert sampler.fingerprint() != Responses.of_rows([{"response": "1"}] * 2, PROBLEMS, "f").fingerprint()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"response": "1"}], "has 1 rows for 2 problems"),
        ([{"id": "a", "response": "1"}], r"has no row with the id 'b' \(1 are missing\)"),
        ([{"answer": "1"}, {"response": "2"}], "row 1 has no responses"),
        ([{"responses": []}, {"response": "2"}], "row 1: `completions` is empty"),
        ([{"response": 3}, {"response": "2"}], "row 1: a completion is '3'; give text"),
        ([{"responses": ["1"], "finish_reasons": []}, {"response": "2"}], None),
        (
            [{"responses": ["1"], "finish_reasons": ["stop", "stop"]}, {"response": "2"}],
            "`finish_reasons` has 2 values for 1 completions",
        ),
    ],
)
def test_error_explains_invalid_responses(rows: list[dict[str, Any]], message: str | None):
    if message is None:
        assert texts(rows) == [["1"], ["2"]]  # an empty list counts as missing
        return
    with pytest.raises(DataError, match=message):
        texts(rows)


def test_reference_answers_from_a_list_and_from_a_solution(tmp_path: Path):
    from gvpo.evaluation.benchmarks import gold_response

    assert (
        gold_response(BENCHMARKS["olympiadbench"], Problem("?", "a", {"answer": ["$1$", "$2$"]})) == r"\boxed{$1$, $2$}"
    )
    gsm8k = Problem("?", "a", {"answer": "7", "solution": "3+4=7\n#### 7"})
    assert gold_response(BENCHMARKS["gsm8k"], gsm8k) == r"\boxed{7}"
