"""Rewards on whole batches and with a state: called in order by one worker, stored, and restored after a failure."""

import os
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest

import gvpo
from gvpo.errors import RewardError
from gvpo.rewards import InProcessReward, RewardBatch, RewardPool
from gvpo.rewards.identity import identity
from tests.rewards.pool import attackers

GROUPS = [RewardBatch("p", ["a", "bb"], {"answer": 1}), RewardBatch("q", ["ccc"], {"answer": 2})]


@gvpo.reward(batch=True)
def centred(prompts: Any, completions: Any, answer: Any, **_: Any) -> list[float]:
    assert prompts == ["p", "p", "q"]
    assert answer == [1, 1, 2]
    lengths = [len(text) for text in completions]
    return [length - sum(lengths) / len(lengths) for length in lengths]


@gvpo.reward(stateful=True)
class Novelty:
    """A reward of 1 over the number of times that a text was seen; some texts make it fail after a change of state."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.seen: Counter[str] = Counter()

    def __call__(self, completions: Any, **_: Any) -> list[float]:
        values = []
        for text in completions:
            self.seen[text] += 1
            values.append(self.scale / self.seen[text])
            if text == "hang":
                time.sleep(60)
            if text == "raise":
                raise ValueError("no")
            if text == "exit":
                os._exit(3)
        return values[1:] if "wrong" in completions else values

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "sum": np.array([sum(self.seen.values())])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]
        assert state["sum"] == sum(self.seen.values())


@gvpo.reward(batch=True, stateful=True)
class Forgetful:
    """A reward that counts its calls and has no methods for its state."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, completions: Any, **_: Any) -> list[float]:
        self.calls += 1
        if "exit" in completions:
            os._exit(3)
        return [float(self.calls)] * len(completions)


def rewards(verdicts: Any) -> list[list[float | None]]:
    return [[verdict.reward for verdict in group] for group in verdicts]


def texts(*groups: str) -> list[RewardBatch]:
    """Return one group per word list."""
    return [RewardBatch("p", group.split()) for group in groups]


def test_a_batch_reward_sees_all_rows_of_a_step_in_one_call():
    with RewardPool({"centred": centred, "one": lambda completions, **_: [1.0] * len(completions)}) as pool:
        assert rewards(pool.score(GROUPS)) == [[0.0, 1.0], [2.0]]
        assert pool.score([]) == []


def test_a_group_without_the_columns_is_left_out_of_the_batch():
    def counts(completions, answer):
        return [float(len(completions))] * len(completions)

    with RewardPool({"counts": gvpo.reward(counts, batch=True)}) as pool:
        found = pool.score([*GROUPS, RewardBatch("r", ["x"])])
    assert rewards(found) == [[3.0, 3.0], [3.0], [None]]
    assert found[2][0].reason == "missing column: counts needs 'answer', which the data does not have"


def test_a_state_is_kept_in_the_order_of_the_groups_between_scorings():
    with RewardPool({"novelty": Novelty()}, workers=3) as pool:
        assert rewards(pool.score(texts("a b", "a", "b a"))) == [[1, 1], [1 / 2], [1 / 2, 1 / 3]]
        assert rewards(pool.score(texts("a"))) == [[1 / 4]]
        with pool.unchanged():
            assert rewards(pool.score(texts("a a"))) == [[1 / 5, 1 / 6]]
        assert rewards(pool.score(texts("a"))) == [[1 / 5]]


def test_another_pool_continues_from_a_stored_state():
    with RewardPool({"novelty": Novelty()}) as pool:
        pool.score(texts("a b", "a"))
        state = pool.state_dict()
        wanted = rewards(pool.score(texts("b a")))
    with RewardPool({"novelty": Novelty()}) as other:
        other.load_state_dict(state)
        assert rewards(other.score(texts("b a"))) == wanted
        other.load_state_dict({})
        assert rewards(other.score(texts("b a"))) == [[1, 1]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hang", "timeout: novelty gave no answer in 1 s"),
        ("raise", "exception: novelty raised ValueError: no"),
        ("exit", "died: novelty ended its process (exit code 3)"),
        ("wrong", "wrong length: novelty returned 1 values for 2 completions"),
    ],
)
def test_a_call_that_fails_leaves_the_state_as_it_was_before(text: str, reason: str):
    with RewardPool({"novelty": Novelty()}, timeout=1.0) as pool:
        before, failed, after = pool.score(texts("a", f"a {text}", "a"))
        assert [verdict.reward for verdict in (*before, *after)] == [1.0, 1 / 2]
        assert {verdict.reason for verdict in failed} == {f"{reason}; its state is that before the call"}
        assert rewards(pool.score(texts("a"))) == [[1 / 3]]


def test_without_methods_a_state_lives_as_long_as_its_worker():
    with RewardPool({"forgetful": Forgetful()}) as pool:
        assert rewards(pool.score(texts("a b", "c"))) == [[1, 1], [1]]
        assert rewards(pool.score(texts("a"))) == [[2]]
        ((failed,),) = pool.score(texts("exit"))
        assert failed.reason == "died: forgetful ended its process (exit code 3); its state is lost"
        assert rewards(pool.score(texts("a"))) == [[1]]
        assert pool.state_dict() == {}


def test_a_state_contains_only_plain_values():
    class Other(Novelty):
        def state_dict(self):
            return {"thread": threading.Thread}

    message = r"reward 'other' cannot be used: its state_dict\(\) contains a threading.Thread, which cannot be stored"
    with RewardPool({"other": Other()}) as pool, pytest.raises(RewardError, match=message):
        pool.score(texts("a"))


def test_an_object_or_an_imported_class_may_be_declared_where_it_is_used(monkeypatch: pytest.MonkeyPatch):
    declared = gvpo.reward(attackers.Counting(), stateful=True)
    monkeypatch.setattr(attackers.Counting, "gvpo_stateful", True, raising=False)  # as by gvpo.reward(Counting)
    for counting in (declared, attackers.Counting()):
        with RewardPool({"counting": counting}) as pool:
            assert rewards(pool.score(texts("a", "b"))) == [[1], [2]]
            with pool.unchanged():
                assert rewards(pool.score(texts("a"))) == [[3]]
            assert rewards(pool.score(texts("a"))) == [[3]]


def test_a_declared_method_is_a_reward():
    class Judge:
        def judge(self, completions, **_):
            return [float(len(completions))] * len(completions)

    with RewardPool({"judge": gvpo.reward(Judge().judge, batch=True)}) as pool:
        assert rewards(pool.score(texts("a b", "c"))) == [[3, 3], [3]]


def test_the_fingerprint_covers_what_decides_rewards_but_not_the_state():
    used = Novelty()
    used(["a"])
    assert identity(Novelty()) == identity(used)
    assert identity(Novelty()) != identity(Novelty(2.0))


# in the trainer's process


class Locked(Novelty):
    """A reward that no other process can receive."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def test_in_this_process_a_function_is_called_once_with_its_state():
    with RewardPool({"locked": InProcessReward("locked", Locked())}) as pool:
        assert rewards(pool.score(texts("a b", "a"))) == [[1, 1], [1 / 2]]
        state = pool.state_dict()
        with pool.unchanged():
            assert rewards(pool.score(texts("a"))) == [[1 / 3]]
        ((failed,),) = pool.score(texts("raise"))
        assert failed.reason == "exception: locked raised ValueError: no"
        assert pool.state_dict() == state
        assert rewards(pool.score(texts("raise"[:1], "a"))) == [[1], [1 / 3]]
        assert [each.reason for each in pool.score(texts("wrong a"))[0]] == [
            "wrong length: locked returned 1 values for 2 completions"
        ] * 2


def test_in_this_process_coroutines_share_a_loop():
    import asyncio

    loops = []

    async def slow(completions, **_):
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        return [1.0] * len(completions)

    with RewardPool({"slow": InProcessReward("slow", slow)}) as pool:
        assert [rewards(pool.score(texts("a"))) for _ in range(2)] == [[[1.0]]] * 2
    assert loops[0] is loops[1]
