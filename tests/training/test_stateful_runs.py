"""Runs with rewards on whole batches, with a state, and in the trainer's process; killed and resumed exactly."""

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gvpo
from gvpo.errors import RewardError
from gvpo.runfiles import read_rollouts, rollout_path
from tests.training.forks import Forks, forks
from tests.training.rank_jobs import online_run
from tests.training.stateful import Novelty
from tests.training.toy import lines, model, noticed, same, trainer, weights
from tests.training.world import world

NO_EVAL: dict[str, Any] = {"held": [], "eval_problems": 0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forks(tmp_path_factory.mktemp("forks")) as started:
        yield started


def test_a_killed_run_with_a_stateful_reward_resumes_exactly(server: Forks, tmp_path: Path):
    for name in ("unbroken", "killed"):
        child = server.start("stateful", str(tmp_path / name))
        if name == "killed":
            child.wait_for(tmp_path / name / "checkpoints/step-000002/README.md")
            child.send(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
            child = server.start("stateful", str(tmp_path / name))
        assert child.wait() == 0, child.output()
    unbroken, killed = (tmp_path / name for name in ("unbroken", "killed"))
    assert lines(killed) == lines(unbroken)
    last = f"checkpoints/step-{lines(unbroken)[-1]['step']:06d}/model.safetensors"
    assert (killed / last).read_bytes() == (unbroken / last).read_bytes()
    assert read_rollouts(rollout_path(killed, 4)) == read_rollouts(rollout_path(unbroken, 4))
    seen = [line["reward/Novelty"] for line in lines(unbroken) if "reward/Novelty" in line]
    assert seen[-1] < seen[0]  # the same texts come again


def test_evaluation_does_not_change_the_state(tmp_path: Path):
    found = []
    for every in (1, 0):
        policy = model()
        trainer(tmp_path / str(every), rewards=[Novelty()], policy=policy, eval_every=every).train()
        found.append(([line["reward/Novelty"] for line in lines(tmp_path / str(every))[1:]], weights(policy)))
    assert found[0][0] == found[1][0]
    assert same(found[0][1], found[1][1])


@gvpo.reward(stateful=True)
class Counting:
    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def __call__(self, completions: Any, **_: Any) -> list[float]:
        self.seen.update(completions)
        return [1.0 / self.seen[text] for text in completions]


def test_a_run_warns_once_of_a_state_that_cannot_be_stored(tmp_path: Path):
    with noticed("reward 'Counting' keeps a state and has no state_dict and load_state_dict, so a resumed run") as said:
        trainer(tmp_path, rewards=Counting(), steps=1, **NO_EVAL).train()
    assert sum("keeps a state" in message for message in said) == 1


class Judge:
    def __init__(self) -> None:
        self.lock, self.calls = threading.Lock(), 0

    def judge(self, completions: Any, digit: Any, **_: Any) -> list[float]:
        with self.lock:
            self.calls += 1
        return [text.count(one) / 3 for text, one in zip(completions, digit, strict=True)]


def test_a_method_of_an_object_with_a_lock_runs_in_the_trainers_process(tmp_path: Path):
    judge = Judge()
    with noticed(
        r"reward 'judge' cannot be sent to a worker process \(TypeError: cannot pickle .* object\), so it runs"
    ):
        trainer(tmp_path, rewards=judge.judge, steps=2, **NO_EVAL).train()
    assert judge.calls == 2  # once per step, on the rows of all groups
    assert all(line["rows/failed"] == 0 for line in lines(tmp_path))


def test_a_class_is_not_a_reward():
    with pytest.raises(RewardError, match=r"the reward 'Counting' is a class; pass an instance, Counting\(\)"):
        trainer(None, rewards=Counting, **NO_EVAL)


def test_on_two_ranks_a_stateful_reward_scores_the_rows_of_both_in_order(tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    online_run(one, rewards=[Novelty()], steps=2)
    world(2, tmp_path, online_run, two, rewards=[Novelty()], steps=2)
    assert [line["reward/Novelty"] for line in lines(one)[1:]] == [line["reward/Novelty"] for line in lines(two)[1:]]
