"""The pool with well-behaved rewards: TRL's arguments, weights, order, and values that are not numbers."""

import doctest
import importlib
import math
import os
import subprocess
import sys
import time
from fractions import Fraction

import numpy as np
import pytest

from gvpo.errors import DataError, RewardError
from gvpo.rewards import RewardBatch, RewardPool, no_value
from tests.rewards.pool import attackers


def score(functions, batch, **options):
    """Return the verdicts of one group."""
    with RewardPool(functions, workers=1, **options) as pool:
        (verdicts,) = pool.score([batch])
    return verdicts


def returning(values):
    """Return a reward (a closure) that returns `values` for any arguments."""
    return lambda completions, **_: values


# Arguments


def test_columns_and_prompts_are_repeated_for_each_row():
    def check(prompts, completions, completion_ids, answer, tags):
        assert prompts == ["p"] * 2
        assert completions == ["a", "b"]
        assert completion_ids == [[1, 2], [3]]
        assert answer == ["42"] * 2
        assert tags == [["x", "y"]] * 2
        return [1.0, 2.0]

    batch = RewardBatch("p", ["a", "b"], {"answer": "42", "tags": ["x", "y"], "unused": object}, [(1, 2), (3,)])
    assert [verdict.reward for verdict in score({"check": check}, batch)] == [1.0, 2.0]


def test_a_function_with_kwargs_receives_every_column():
    def names(**arguments):
        return [",".join(sorted(arguments)) == "answer,completions,prompts"]

    assert score({"names": names}, RewardBatch("p", ["a"], {"answer": 1}))[0].reward == 1.0


def test_prompts_and_completions_may_be_messages():
    def check(prompts, completions, **_):
        return [prompts == [[{"role": "user", "content": "hi"}]] and completions[0][0]["content"] == "hello"]

    batch = RewardBatch([{"role": "user", "content": "hi"}], [[{"role": "assistant", "content": "hello"}]])
    assert score({"check": check}, batch)[0].reward == 1.0


def test_the_error_names_a_column_that_no_group_has():
    def judge(completions, answer):
        return [0.0]

    with (
        RewardPool({"judge": judge}) as pool,
        pytest.raises(RewardError, match=r"'judge' needs a column 'answer' .*\(columns: solution\)"),
    ):
        pool.score([RewardBatch("p", ["a"], {"solution": "4"})])


def test_a_column_that_one_group_lacks_costs_that_group_its_reward():
    def judge(completions, answer):
        return [1.0]

    with RewardPool({"judge": judge}) as pool:
        (with_it,), (without,) = pool.score([RewardBatch("p", ["a"], {"answer": 1}), RewardBatch("p", ["a"])])
    assert (with_it.reward, without.reward) == (1.0, None)
    assert without.reason == "missing column: judge needs 'answer', which the data does not have"


def test_token_ids_must_fit_the_completions():
    with pytest.raises(DataError, match="1 completion_ids for 2 completions"):
        RewardBatch("p", ["a", "b"], {}, [[1]])


# Values


@pytest.mark.parametrize(
    ("returned", "reward", "reason"),
    [
        # numbers
        ([1], 1.0, ""),
        ([True], 1.0, ""),
        ((0.5,), 0.5, ""),
        ([Fraction(1, 4)], 0.25, ""),
        (np.array([0.5], dtype=np.float32), 0.5, ""),
        ([np.float64(0.5)], 0.5, ""),
        # not numbers
        ([None], None, "abstained: every reward function returned None"),
        ([math.nan], None, "nan: f returned nan"),
        ([-math.inf], None, "infinite: f returned -inf"),
        ([10**400], None, "infinite: f returned inf"),
        (["1.0"], None, "wrong type: f returned a str instead of a number or None"),
        ([[1.0]], None, "wrong type: f returned a list instead of a number or None"),
        ([1j], None, "wrong type: f returned a complex instead of a number or None"),
        # not a list of one value per row
        ([1.0, 2.0], None, "wrong length: f returned 2 values for 1 completions"),
        ([], None, "wrong length: f returned 0 values for 1 completions"),
        (1.0, None, "wrong type: f returned a float; return a list of one number or None per completion"),
        (None, None, "wrong type: f returned None; return a list of one number or None per completion"),
        ("1", None, "wrong type: f returned a str; return a list of one number or None per completion"),
        ({"a": 1}, None, "wrong type: f returned a dict; return a list of one number or None per completion"),
    ],
    ids=repr,
)
def test_what_a_reward_may_return(returned, reward, reason):
    (verdict,) = score({"f": returning(returned)}, RewardBatch("p", ["a"]))
    assert (verdict.reward, verdict.reason) == (reward, reason)


def test_a_bad_value_costs_its_row_and_a_bad_list_all_rows():
    rows = RewardBatch("p", ["a", "b", "c"])
    assert [v.reward for v in score({"f": returning([1.0, math.nan, "x"])}, rows)] == [1.0, None, None]
    assert [v.reward for v in score({"f": returning([1.0, 2.0])}, rows)] == [None] * 3


def test_async_rewards_keep_one_event_loop():
    state = {}

    async def same_loop(completions, **_):
        import asyncio

        await asyncio.sleep(0)
        first = state.setdefault("loop", asyncio.get_running_loop())
        return [float(first is asyncio.get_running_loop())] * len(completions)

    with RewardPool({"later": attackers.length_later, "same": same_loop}, workers=1) as pool:
        groups = pool.score([RewardBatch("p", ["a", "bb"]), RewardBatch("p", ["ccc"])])
    assert [[verdict.parts for verdict in group] for group in groups] == [
        [{"later": 1.0, "same": 1.0}, {"later": 2.0, "same": 1.0}],
        [{"later": 3.0, "same": 1.0}],
    ]


def test_an_async_reward_that_hangs_ends_at_its_deadline():
    async def hang(completions, **_):
        import asyncio

        await asyncio.sleep(600)

    assert score({"f": hang}, RewardBatch("p", ["a"]), timeout=0.3)[0].reason == "timeout: f gave no answer in 0.3 s"


# Weights


def test_the_reward_is_the_weighted_sum_of_those_that_did_not_abstain():
    functions = {"a": returning([1.0, None]), "b": returning([2.0, 4.0]), "logged": returning([100.0, 100.0])}
    first, second = score(functions, RewardBatch("p", ["x", "y"]), weights={"a": 1.0, "b": 0.25, "logged": 0.0})
    assert (first.reward, first.parts) == (1.5, {"a": 1.0, "b": 2.0, "logged": 100.0})
    assert (second.reward, second.parts) == (1.0, {"a": None, "b": 4.0, "logged": 100.0})


def test_a_failure_decides_only_with_a_weight():
    functions = {"a": returning([1.0]), "b": returning([math.nan])}
    assert score(functions, RewardBatch("p", ["x"]))[0].reason == "nan: b returned nan"
    logged = score(functions, RewardBatch("p", ["x"]), weights={"a": 2.0, "b": 0.0})[0]
    assert (logged.reward, logged.parts, logged.reason) == (2.0, {"a": 1.0, "b": None}, "")


def test_a_row_on_which_every_weighted_function_abstains_has_no_reward():
    functions = {"a": returning([None]), "logged": returning([1.0])}
    (verdict,) = score(functions, RewardBatch("p", ["x"]), weights={"a": 1.0, "logged": 0.0})
    assert (verdict.reward, verdict.reason) == (None, "abstained: every reward function returned None")


def test_a_reward_may_give_the_reason_for_a_row_without_a_value():
    """The row then has no reward even if another reward has a value for it; the next call starts from scratch."""

    def judges(completions, **_):
        if len(completions) > 1:
            no_value(1, "its tests are empty; write some")
        return [1.0, None][: len(completions)]

    with RewardPool({"judges": judges, "other": returning_ones}, workers=1) as pool:
        (first,), (second,) = pool.score([RewardBatch("p", ["x", "y"])]), pool.score([RewardBatch("p", ["x"])])
    assert [verdict.reward for verdict in [*first, *second]] == [2.0, None, 2.0]
    assert first[1].reason == "unscorable: judges cannot score the row: its tests are empty; write some"


def returning_ones(completions, **_):
    return [1.0] * len(completions)


def test_a_sum_that_overflows_gives_no_reward():
    functions = {"a": returning([1e308]), "b": returning([1e308])}
    (verdict,) = score(functions, RewardBatch("p", ["x"]), weights={"a": 1.0, "b": 1.0})
    assert (verdict.reward, verdict.reason) == (None, "infinite: the weighted sum of the rewards is too large")


@pytest.mark.parametrize(
    ("functions", "options", "message"),
    [
        ({}, {}, "no reward functions"),
        ({"a": len}, {"weights": {"b": 1.0}}, "no weight for the reward 'a'"),
        ({"a": len}, {"weights": {"a": 1.0, "b": 1.0}}, "a weight for 'b', which is not one of the rewards: a"),
        ({"a": len}, {"weights": {"a": math.nan}}, "weight of the reward 'a' is nan"),
        ({"a": len}, {"weights": {"a": 0.0}}, "weight of every reward is 0"),
        ({"a": 1.0}, {}, "reward 'a' is a float; give a function"),
        ({"a": len}, {"workers": 0}, "at least one worker, not 0"),
        ({"a": len}, {"timeout": 0}, "seconds above 0, not 0"),
    ],
)
def test_invalid_settings(functions, options, message):
    with pytest.raises(RewardError, match=message):
        RewardPool(functions, **options)


# Order, several workers, the surrounding program


def test_verdicts_are_in_the_order_of_the_batches():
    def slow_first(completions, **_):
        time.sleep(0.05 if completions[0] == "0" else 0.0)
        return [float(text) for text in completions]

    batches = [RewardBatch("p", [str(10 * group + row) for row in range(3)]) for group in range(8)]
    batches[0] = RewardBatch("p", ["0", "1", "2"])
    with RewardPool({"slow": slow_first}, workers=3) as pool:
        rewards = [[verdict.reward for verdict in group] for group in pool.score(batches)]
    assert rewards == [[10.0 * group + row for row in range(3)] for group in range(8)]


def test_workers_run_at_the_same_time(tmp_path):
    """Each call waits until the other one is running too."""

    def meet(completions, **_):
        (tmp_path / completions[0]).touch()
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        return [1.0]

    with RewardPool({"meet": meet}, workers=2, timeout=30.0) as pool:
        verdicts = pool.score([RewardBatch("p", ["a"]), RewardBatch("p", ["b"])])
    assert [group[0].reward for group in verdicts] == [1.0, 1.0]


def test_workers_stay_warm_and_a_closed_pool_starts_new_ones():
    batch = RewardBatch("p", ["a"])
    with RewardPool({"pid": attackers.report_pid}, workers=1) as pool:
        first, second = pool.score([batch])[0][0].reward, pool.score([batch])[0][0].reward
        pool.close()
        third = pool.score([batch])[0][0].reward
    assert first == second != third
    assert first != os.getpid()


def test_large_messages_pass():
    text = "é" * 2_000_000
    batch = RewardBatch("p", [text] * 3)
    assert [v.reward for v in score({"f": lambda completions, **_: map(len, completions)}, batch)] == [2_000_000.0] * 3


def test_empty_groups_and_no_groups():
    with RewardPool({"f": returning([1.0])}) as pool:
        assert pool.score([]) == []
        assert [len(group) for group in pool.score([RewardBatch("p", []), RewardBatch("p", ["a"])])] == [0, 1]


class Interrupts:
    """An interrupt (Ctrl-C) at the moment when this is sent to a worker."""

    def __reduce__(self):
        raise KeyboardInterrupt


def test_an_interrupt_leaves_a_pool_that_works():
    fine, hangs, interrupts = (RewardBatch("p", ["fine"]), RewardBatch("p", ["bad"]), Interrupts())
    with RewardPool({"f": attackers.hang}, workers=2, timeout=30.0) as pool:
        with pytest.raises(KeyboardInterrupt):
            pool.score([hangs, RewardBatch("p", ["fine"], {"column": interrupts})])
        assert pool.score([fine])[0][0].reward == 1.0


def test_the_first_failure_belongs_to_the_latest_scoring():
    with RewardPool({"raises": attackers.raise_}) as pool:
        assert pool.first_failure is None
        pool.score([RewardBatch("p", ["fine"]), RewardBatch("p", ["bad"])])
        assert pool.first_failure.reason == "exception: raises raised ValueError: no digit in this text"
        pool.score([RewardBatch("p", ["fine"])])
        assert pool.first_failure is None


def sizes(completions, **_):
    """Return the number of completions of the call, plus 10 per preparation of the worker."""
    return [len(completions) + 10 * PREPARED] * len(completions)


def prepare():
    global PREPARED
    PREPARED += 1


PREPARED = 0
sizes.row_by_row, sizes.prepare = True, prepare


def test_a_function_may_request_one_call_per_completion_and_a_preparation():
    batch = RewardBatch("p", ["a", "b", "c"])
    assert [verdict.reward for verdict in score({"sizes": sizes}, batch)] == [11.0] * 3


def test_a_function_with_one_call_per_completion_is_never_given_up():
    def hang(completions, **_):
        time.sleep(0 if completions == ["fine"] else 60)
        return [1.0]

    hang.row_by_row = True
    verdicts = score({"hang": hang}, RewardBatch("p", [*["late"] * 9, "fine"]), timeout=0.2)
    assert [verdict.reward for verdict in verdicts] == [None] * 9 + [1.0]


SCRIPT = """
import dataclasses
from gvpo.rewards import RewardBatch, RewardPool, no_value

print("imported as", __name__)
SCALE = 3.0

@dataclasses.dataclass
class Judge:
    bonus: float

    def __call__(self, completions, **_):
        return [helper(text) + self.bonus for text in completions]

def helper(text):
    return SCALE * len(text)

with RewardPool({"judge": Judge(0.5), "plain": lambda completions, **_: [0.0] * len(completions)}) as pool:
    print(pool.score([RewardBatch("p", ["ab"])])[0][0].reward)
"""


def test_functions_of_a_script_need_no_main_guard(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "imported as __main__\n6.5\n"
    assert done.stderr == ""


@pytest.mark.parametrize("module", ["verifiers.format", "verifiers.length", "pool.pool"])
def test_the_examples_in_docstrings_run(module):
    result = doctest.testmod(importlib.import_module(f"gvpo.rewards.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
