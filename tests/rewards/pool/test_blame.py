"""Blame for a failed call: the completion if a harmless one succeeds in its place, otherwise no completion."""

import re
import time

import pytest

from gvpo.errors import DataError
from gvpo.rewards import REWARDS, RewardBatch, RewardPool, json_fields, regex_format, repetition_penalty
from gvpo.rewards.base import blames_text
from gvpo.rewards.sandbox.isolation import isolation_problem
from tests.rewards.pool import attackers
from tests.rewards.pool.test_attacks import linux


def judge(function, completions, *, columns=None, **options):
    """Return the verdicts of one group."""
    with RewardPool({"f": function}, **{"timeout": 5.0, "workers": 1, **options}) as pool:
        (verdicts,) = pool.score([RewardBatch("prompt", completions, columns or {})])
    return verdicts


def declared(function, worst=0.0, control="", *, row_by_row=False):
    """Return an attacker function that scores text, declared like gvpo's own verifiers."""

    def judges(completions, **columns):
        return function(completions=completions, **columns)

    judges.row_by_row = row_by_row
    return blames_text(judges, worst, control)


@pytest.mark.parametrize("row_by_row", [False, True])
@pytest.mark.parametrize(
    ("function", "kind", "options"),
    [
        (attackers.hang, "timeout", {"timeout": 0.6}),
        (attackers.hang_in_c, "timeout", {"timeout": 0.6}),
        (attackers.die, "died", {}),
        (attackers.raise_, "exception", {}),
        (attackers.leave, "exception", {}),
        pytest.param(attackers.eat_memory, "exception", {"memory_limit": 400_000_000}, marks=linux),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_completion_that_causes_a_failure_gets_the_worst_value_with_a_reason(function, kind, options, row_by_row):
    rows = ["fine", "bad", "well", "bad"]
    verdicts = judge(declared(function, -0.5, row_by_row=row_by_row), rows, **options)
    assert [(v.reward, v.parts["f"]) for v in verdicts] == [(1.0, 1.0), (-0.5, -0.5)] * 2
    assert [re.sub(" f .*", "", v.reason) for v in verdicts] == ["", f"paid worst: {kind}:"] * 2


@pytest.mark.parametrize("row_by_row", [False, True])
def test_the_row_has_no_reward_if_a_harmless_completion_fails_too(row_by_row):
    def hangs_on_its_column(completions, answer):
        time.sleep(60 if answer[0] == "bad" else 0)
        return [1.0] * len(completions)

    hangs_on_its_column.row_by_row = row_by_row
    verdicts = judge(blames_text(hangs_on_its_column), ["a", "b"], columns={"answer": "bad"}, timeout=0.4)
    reason = "timeout: f gave no answer in 0.4 s, as on a harmless completion of this row"
    assert [(v.reward, v.reason) for v in verdicts] == [(None, reason)] * 2


def test_a_row_has_no_reward_if_a_users_function_fails():
    verdicts = judge(attackers.hang, ["fine", "bad"], timeout=0.4)
    assert [(v.reward, v.reason) for v in verdicts] == [(1.0, ""), (None, "timeout: f gave no answer in 0.4 s")]


def test_an_error_of_gvpo_is_not_blamed_on_the_completion():
    def states(completions, **_):
        if "bad" in completions:
            raise DataError("the column is empty; fill it")
        return [1.0] * len(completions)

    verdicts = judge(blames_text(states), ["fine", "bad"])
    assert [v.reward for v in verdicts] == [1.0, None]
    assert verdicts[1].reason.startswith("exception: f raised gvpo.errors.DataError: the column is empty")


def test_the_control_is_a_completion_of_the_same_row_and_form():
    seen = []

    def notes(completions, answer, completion_ids):
        text = completions[0][0]["content"]
        if text == "control":
            assert (completions, answer, completion_ids) == ([[{"role": "assistant", "content": "control"}]], [7], [[]])
        elif text == "bad":
            raise ValueError
        return [1.0] * len(completions)

    del seen
    messages = [[{"role": "assistant", "content": text}] for text in ("bad", "fine")]
    batch = RewardBatch([{"role": "user", "content": "hi"}], messages, {"answer": 7}, [[1], [2, 3]])
    with RewardPool({"f": blames_text(notes, 0.25, "control")}, workers=1) as pool:
        (verdicts,) = pool.score([batch])
    assert [v.reward for v in verdicts] == [0.25, 1.0]


def test_a_group_has_one_control_call(tmp_path):
    def counts(completions, **_):
        with (tmp_path / "controls").open("a") as file:
            file.write("x" * completions.count(""))
        if "bad" in completions:
            raise ValueError
        return [1.0] * len(completions)

    assert [v.reward for v in judge(blames_text(counts), ["bad"] * 9 + ["fine"])] == [0.0] * 9 + [1.0]
    assert (tmp_path / "controls").read_text() == "x"


def test_a_slow_row_costs_the_other_rows_nothing():
    """Together the rows take longer than a call may; each has its own deadline."""

    def slow(completions, **_):
        time.sleep(60 if completions == ["bad"] else 0.3)
        return [1.0]

    slow.row_by_row = True
    started = time.monotonic()
    verdicts = judge(blames_text(slow), ["a", "b", "bad", "c", "d"], timeout=1.0)
    assert [v.reward for v in verdicts] == [1.0, 1.0, 0.0, 1.0, 1.0]
    assert time.monotonic() - started < 10


def test_the_row_that_hangs_is_found_after_quick_ones():
    """Quick rows are answered together; the row in progress gets the blame, not the first without an answer."""

    def hangs(completions, **_):
        if completions == ["bad"]:
            time.sleep(60)
        return [float(len(completions[0]))]

    hangs.row_by_row = True
    rows = [str(10**n) for n in range(6)]
    verdicts = judge(blames_text(hangs), [*rows, "bad", *rows, "bad"], timeout=0.5)
    assert [v.reward for v in verdicts] == [*map(len, rows), 0.0, *map(len, rows), 0.0]


# A worker that has run out of memory


def test_a_worker_is_replaced_after_a_memory_error_and_the_call_repeated():
    """The memory that earlier calls have filled is not the fault of this call."""

    def fills(completions, **_):
        hoard.append(0)
        if len(hoard) > 2:
            raise MemoryError
        return [1.0] * len(completions)

    hoard = []
    batches = [RewardBatch("p", ["a"]) for _ in range(7)]
    with RewardPool({"f": fills}, workers=1) as pool:
        assert [(v.reward, v.reason) for (v,) in pool.score(batches)] == [(1.0, "")] * 7


def test_a_row_that_never_fits_is_repeated_once():
    def never(completions, **_):
        raise MemoryError

    (verdict,) = judge(never, ["a"])
    assert (verdict.reward, verdict.reason) == (None, "exception: f raised MemoryError")


# A spare worker


def slow_to_start():
    time.sleep(1.5)


def test_a_spare_worker_is_ready_when_a_late_one_is_killed():
    def hangs(completions, **_):
        time.sleep(60 if completions == ["bad"] else 0)
        return [time.time()]

    hangs.row_by_row, hangs.prepare = True, slow_to_start
    with RewardPool({"f": hangs}, workers=1, timeout=5.0) as pool:
        before, bad, after = pool.score([RewardBatch("p", ["fine", "bad", "fine"])])[0]
    assert bad.reward is None
    assert 5.0 <= after.reward - before.reward < 6.4  # without the spare worker the start takes 1.5 s more


# gvpo's own rewards


def test_every_reward_that_reads_text_declares_its_worst_value():
    silent = {name for name, reward in REWARDS.items() if not hasattr(reward, "worst")}
    assert silent == {"token_cost"}
    made = [json_fields({"a": "text"}), regex_format("a"), repetition_penalty(2)]
    assert [reward.worst for reward in made] == [0.0, 0.0, -1.0]


def test_a_pattern_that_backtracks_without_end_is_blamed_on_the_completion():
    pattern = regex_format("(a+)+")
    assert re.fullmatch("(a+)+", "aa")
    verdicts = judge(pattern, ["aaa", "a" * 40 + "b", "b"], timeout=0.6)
    assert [v.reward for v in verdicts] == [1.0, 0.0, 0.0]


BOMBS = [
    r"\boxed{9^{9^{9^9}}}",
    r"\boxed{9^{9^9}}",
    r"\boxed{1e999999999}",
    r"\boxed{10^{999999999}}",
    r"\boxed{\frac{1}{10^{-999999999}}}",
    r"\boxed{" + "x=" * 500 + "1}",
    r"\boxed{(10^9)!}",
    r"\boxed{((((10!)!)!)!)!}",
    r"\boxed{2^{2^{2^{2^{2^2}}}}}",
    r"\boxed{\sum_{n=1}^{10^{12}} \frac{1}{n}}",
    r"\boxed{\int_0^1 \sin(\exp(\exp(\exp(x^x)))) dx}",
    r"\boxed{" + "{" * 3000 + "1" + "}" * 3000 + "}",
    r"\boxed{" + r"\sqrt{" * 200 + "2" + "}" * 200 + "}",
    r"\boxed{" + "9" * 100_000 + "}",
    r"\boxed{(x+y+z)^{5000}}",
    r"\boxed{" + ",".join(map(str, range(3000))) + "}",
]


@pytest.mark.parametrize("bombs", [BOMBS[:6:2], pytest.param(BOMBS, marks=pytest.mark.slow)], ids=["some", "all"])
def test_bombs_cost_a_mathematical_answer_its_reward(bombs):
    pytest.importorskip("mpmath")
    with RewardPool({"math_answer": REWARDS["math_answer"]}, workers=1, timeout=3.0) as pool:
        (verdicts,) = pool.score([RewardBatch("p", [*bombs, r"\boxed{7}"], {"answer": "7"})])
    assert [(v.reward, v.reason) for v in verdicts] == [(0.0, "")] * len(bombs) + [(1.0, "")]


@pytest.mark.parametrize(
    ("gold", "reason"),
    [
        *[(gold, "too large to compute") for gold in ("9^{9^{9^9}}", "x = 2**10**10", "(10^9)!", "1e999999999")],
        *[("9" * 20_000, "has 20000 characters, and at most 4000 are read"), ("so " * 2000, "in a box")],
        *[(gold, "the answer is empty") for gold in ("", " ", r"\boxed{}", "$$", "We find it.\n#### ")],
    ],
)
def test_no_completion_is_scored_with_an_unreadable_reference_answer(gold, reason):
    pytest.importorskip("mpmath")
    with RewardPool({"math_answer": REWARDS["math_answer"]}, workers=1) as pool:
        (verdicts,) = pool.score([RewardBatch("p", [r"\boxed{7}", "no idea", gold], {"answer": gold})])
    assert {v.reward for v in verdicts} == {None}
    assert verdicts[0].reason.startswith("unscorable: math_answer cannot score the row: the answer")
    assert reason in verdicts[0].reason


@pytest.mark.parametrize(
    "gold", ["12:00", "05:00", "1:2", r"\infty", "100!", "2^{2008}", "10^{100}", r"\sqrt{-1}", "x=5", "0"]
)
def test_a_reference_answer_that_is_large_or_has_no_value_is_scored(gold):
    pytest.importorskip("mpmath")
    assert [
        v.reward for v in judge(REWARDS["math_answer"], [rf"\boxed{{{gold}}}", "no idea"], columns={"answer": gold})
    ] == [1, 0]


@pytest.mark.parametrize("name", ["number_match", "gsm8k", "boxed_answer", "text_match", "json_match", "exact_match"])
def test_bombs_cost_the_other_verifiers_nothing_but_the_reward(name):
    bombs = [*BOMBS, "#### 1e999999999", "1e-999999999", "[" * 200_000, '{"a":' * 100_000, "9" * 1_000_000, "1/0"]
    with RewardPool({name: REWARDS[name]}, workers=1, timeout=5.0) as pool:
        (verdicts,) = pool.score([RewardBatch("p", bombs, {"answer": "7"})])
    assert {(v.reward, v.reason) for v in verdicts} == {(0.0, "")}


SLEEPS = "import time\ntime.sleep({})\n"
ADDS = "print(sum(map(int, input().split())))"
SUMS = [{"input": f"{n} 1", "output": str(n + 1)} for n in range(40)]
FUNCTION = "def add(a, b):\n    {}return a + b"


@pytest.mark.skipif(bool(isolation_problem()), reason=f"code cannot be isolated: {isolation_problem()}")
@pytest.mark.parametrize(
    ("tests", "slow", "right"),
    [
        # a program that sleeps in each test, and passes all of them
        (SUMS, SLEEPS.format(1.5) + ADDS, ADDS),
        # functions that sleep, when they are called and when they are defined
        ("assert add(1, 2) == 3", FUNCTION.format("import time; time.sleep(99); "), FUNCTION.format("")),
        ("assert add(1, 2) == 3", SLEEPS.format(99) + FUNCTION.format(""), FUNCTION.format("")),
    ],
)
def test_code_that_sleeps_gets_the_worst_value_and_other_rows_do_not(tests, slow, right):
    tests = tests[:6] if isinstance(tests, list) else tests
    with RewardPool({"code_tests": REWARDS["code_tests"]}, workers=2, timeout=8.0) as pool:
        (verdicts,) = pool.score([RewardBatch("p", [slow, right, slow, "pass"], {"tests": tests})])
    assert [(v.reward, v.reason) for v in verdicts] == [(0.0, ""), (1.0, ""), (0.0, ""), (0.0, "")]


@pytest.mark.skipif(bool(isolation_problem()), reason=f"code cannot be isolated: {isolation_problem()}")
def test_too_many_tests_for_the_time_are_not_blamed_on_the_completion():
    with RewardPool({"code_tests": REWARDS["code_tests"]}, workers=1, timeout=2.0) as pool:
        (verdicts,) = pool.score([RewardBatch("p", [ADDS, "print(0)"], {"tests": SUMS})])
    assert [v.reward for v in verdicts] == [None, 0.0]
    assert "40 tests need more time than a completion has; increase rewards.timeout" in verdicts[0].reason


@pytest.mark.skipif(bool(isolation_problem()), reason=f"code cannot be isolated: {isolation_problem()}")
def test_tests_that_never_end_are_not_blamed_on_the_completion():
    tests = "while True:\n    pass\nassert add(1, 2) == 3"
    with RewardPool({"code_tests": REWARDS["code_tests"]}, workers=1, timeout=8.0) as pool:
        (verdicts,) = pool.score([RewardBatch("p", [FUNCTION.format("")], {"tests": tests})])
    assert verdicts[0].reward is None
    assert "the tests do not end for an empty program" in verdicts[0].reason
