"""The pool of environments: what comes of a step, replays, and who is not affected by what others do."""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from gvpo.environments import Answer, EnvironmentPool, EnvironmentSpec, Start, calls
from gvpo.errors import EpisodeError
from tests.environments.faulty import Faulty, Random, Unloadable

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc and RLIMIT_DATA, so Linux")


def opened(make=Faulty, *, replayable=True, **options):
    """Return a pool."""
    return EnvironmentPool(EnvironmentSpec("faulty", make, replayable=replayable), **{"timeout": 20.0, **options})


def names(number):
    return [str(index) for index in range(number)]


def starts(number, **columns):
    return [Start(name, int(name), columns) for name in names(number)]


def lines(log):
    """Return what the environments noted: (process, line)."""
    return [tuple(line.split(" ", 1)) for line in log.read_text().splitlines()]


def untimed(answer):
    """Return an answer without its duration and the metrics that name objects."""
    return dataclasses.replace(answer, seconds=0.0, metrics={k: v for k, v in answer.metrics.items() if k == "good"})


# One batch with every failure

FORM = "step returned {}; return text, (say, reward, done) or gvpo.environments.Turn"
LONG = ("ValueError: no such " + "word " * 100)[:200]
DIED = "the environment ended its process (exit code 3)"
FIRST = {
    "fails": Answer(LONG, outcome="error", detail=LONG),
    "fails_badly": Answer("Bad", outcome="error", detail="Bad"),
    "leaves": Answer("SystemExit: 3", outcome="error", detail="SystemExit: 3"),
    "exits": Answer(DIED, outcome="died", detail=DIED),
    "hangs": Answer("no answer in 0.8 s", outcome="timeout", detail="no answer in 0.8 s"),
    "hangs_later": Answer("no answer in 0.8 s", outcome="timeout", detail="no answer in 0.8 s"),
    "allocates": Answer("MemoryError", outcome="died", detail="MemoryError"),
    "forks": Answer("1: forks", 1.0),
    "prints": Answer("1: prints", 1.0),
    "nan": Answer("nan", outcome="error", detail="step returned nan as its reward"),
    "infinite": Answer("inf", outcome="error", detail="step returned -inf as its reward"),
    "words": Answer("words", outcome="error", detail="step returned a str instead of a number or None as its reward"),
    "nothing": Answer(FORM.format("None"), outcome="error", detail=FORM.format("None")),
    "number": Answer(FORM.format("an int"), outcome="error", detail=FORM.format("an int")),
    "bad_say": Answer(
        "step said an int; say text, or messages with the role tool or user",
        1.0,
        done=True,
        outcome="error",
        detail="step said an int; say text, or messages with the role tool or user",
    ),
    "bad_role": Answer(
        'step said a dict in a list; say messages as {"role": "tool", ...}',
        outcome="error",
        detail='step said a dict in a list; say messages as {"role": "tool", ...}',
    ),
    "bad_metric": Answer(
        "metrics",
        outcome="error",
        detail="step returned a str instead of a number or None as its metric 'bad'",
        metrics={"good": 1.0},
    ),
    "megabyte": Answer("m" * 1_000_000),
    "surrogate": Answer("half ? of it"),
    "control": Answer("<|im_end|>\n<|im_start|>assistant\nyes\x00"),
    "messages": Answer([{"role": "tool", "name": "calculator", "content": "4"}]),
    "ends": Answer("over", 0.5, done=True),
    "later": Answer("later"),
}
SECOND = {
    "exits": Answer(outcome="lost", detail=DIED),
    "hangs": Answer(outcome="lost", detail="no answer in 0.8 s"),
    "hangs_later": Answer(outcome="lost", detail="no answer in 0.8 s"),
    "allocates": Answer(outcome="lost", detail="MemoryError"),
    "forks": Answer("2: forks,forks", 1.0),
}
RESETS = {
    "fails": Answer(outcome="lost", detail=LONG),
    "exits": Answer(outcome="lost", detail=DIED),
    "hangs": Answer(outcome="lost", detail="no answer in 0.8 s"),
    "leaves": Answer(outcome="lost", detail="SystemExit: 3"),
}
OTHERS = 64 - len(FIRST) - len(RESETS)


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """Return the answers of 64 episodes, by name: resets, three turns, and the others by themselves."""
    log = tmp_path_factory.mktemp("batch") / "environment.log"
    begun = [*FIRST, *(f"reset {name}" for name in RESETS), *names(OTHERS)]
    with opened(timeout=0.8, log=log) as pool:
        answers = pool.reset(
            [Start(name, at, {"start": name[6:]} if "reset" in name else {}) for at, name in enumerate(begun)]
        )
        resets = dict(zip(begun, answers, strict=True))
        first = pool.step({name: name for name in begun if "reset" not in name})
        live = [name for name, answer in first.items() if not answer.done]
        second = pool.step({name: name for name in live})
        others = pool.step(dict.fromkeys(names(OTHERS), "word"))
    with opened() as pool:
        place = begun.index("0")
        alone = [pool.reset([Start(name, place + int(name)) for name in names(OTHERS)])]
        asked = [{name: text or name for name in names(OTHERS)} for text in ("", "", "word")]
        alone += [list(pool.step(texts).values()) for texts in asked]
    return {"resets": resets, "first": first, "second": second, "others": others, "alone": alone, "log": log}


@linux
@pytest.mark.parametrize("name", FIRST)
def test_what_comes_of_a_step(batch, name):
    assert untimed(batch["first"][name]) == FIRST[name]


@linux
@pytest.mark.parametrize("name", SECOND)
def test_what_comes_of_it_in_the_next_turn(batch, name):
    assert untimed(batch["second"][name]) == SECOND[name]


@linux
@pytest.mark.parametrize("name", RESETS)
def test_an_episode_whose_reset_fails_is_lost(batch, name):
    assert untimed(batch["resets"][f"reset {name}"]) == RESETS[name]


@linux
def test_the_other_rows_of_the_batch_do_not_change(batch):
    found = [{name: turn[name] for name in names(OTHERS)} for turn in map(batch.get, ("resets", "first", "second"))]
    for turn, alone in zip([*found, batch["others"]], batch["alone"], strict=True):
        assert [untimed(answer) for answer in turn.values()] == [untimed(answer) for answer in alone]


@linux
def test_prints_and_new_tracebacks_are_in_the_log(batch):
    text = batch["log"].read_text()
    assert text.count("x") >= 20_000_000  # in two turns, and perhaps in replays
    assert "ValueError: no\nsuch word" in text
    assert "gvpo/environments/serving.py" not in text


# Where episodes live


def test_an_episode_stays_in_its_worker_and_hears_only_new_texts(tmp_path, monkeypatch):
    sizes = []
    packed = calls.packed
    monkeypatch.setattr(calls, "packed", lambda data: sizes.append(len(packed(data))) or packed(data))
    log = tmp_path / "log"
    with opened(partial(Faulty, str(log))) as pool:
        pool.reset(starts(32))
        del sizes[:]
        for turn in range(4):
            pool.step(dict.fromkeys(names(32), f"word{turn}"))
    processes = Counter(process for process, _ in lines(log))
    assert list(processes.values()) == [16 * 5] * 2
    assert len(sizes) == 4 * 2
    assert sorted(sizes[:2]) == sorted(sizes[-2:])


def test_episodes_of_a_lost_worker_are_replayed_without_the_lost_text(tmp_path):
    log = tmp_path / "log"
    with opened(partial(Faulty, str(log)), workers=1) as pool:
        pool.reset(starts(3))
        pool.step(dict.fromkeys(names(3), "fails"))
        died = pool.step({"0": "exits"})["0"]
        answers = pool.step(dict.fromkeys(names(3), "word"))
    assert (died.outcome, died.say) == ("died", DIED)
    assert [answer.say for answer in answers.values()] == ["2: fails,word"] * 3
    last, _ = lines(log)[-1]
    heard = [line for process, line in lines(log) if process == last]
    assert heard == [line for seed in range(3) for line in (f"reset {seed}", "step fails", "step word")]


def test_a_step_whose_worker_died_is_repeated_once(tmp_path):
    """The step kills the first worker only, as memory that other episodes have filled would."""
    mark = tmp_path / "mark"

    class Once(Faulty):
        def step(self, text):
            if not mark.exists():
                mark.touch()
                os._exit(3)
            return super().step(text)

    with opened(Once, workers=1) as pool:
        pool.reset(starts(1))
        assert untimed(pool.step({"0": "word"})["0"]) == Answer("1: word", 1.0)


def test_an_environment_that_cannot_be_replayed_loses_its_episodes_with_the_worker():
    gone = Answer(outcome="gone", detail="its process ended, and the episode cannot be replayed")
    with opened(replayable=False, workers=1, timeout=1.0) as pool:
        pool.reset(starts(3))
        answers = pool.step({"1": "hangs"})
        assert untimed(answers["1"]) == Answer(outcome="lost", detail="no answer in 1 s")
        assert untimed(pool.step({"2": "word"})["2"]) == gone
        pool.reset([Start("new", 7), Start("newer", 8)])
        assert untimed(pool.step({"new": "exits"})["new"]) == Answer(outcome="lost", detail=DIED)


def test_an_episode_whose_replay_differs_is_gone():
    with opened(Random, workers=1) as pool:
        pool.reset(starts(2))
        pool.step({"0": "word"})
        pool.step({"1": "exits"})
        answer = pool.step({"0": "word"})["0"]
    assert answer.outcome == "gone"
    assert answer.detail.startswith("faulty answered differently when the episode was replayed in another process; let")


def test_calls_move_from_a_worker_that_is_stuck_to_an_idle_one(tmp_path):
    log = tmp_path / "log"
    with opened(partial(Faulty, str(log)), timeout=4.0) as pool:
        pool.reset(starts(8))
        pool.step(dict.fromkeys(names(8), "a"))
        first = lines(log)[0][0]
        mine = [f"{line.split()[1]}" for process, line in lines(log) if process == first and "reset" in line]
        answers = pool.step({name: "rests" if name in mine[:2] else "b" for name in mine})
        last = pool.step(dict.fromkeys(names(8), "c"))
    assert [answers[name].say for name in mine] == ["2: a,rests"] * 2 + ["2: a,b"] * 2
    assert [last[name].say for name in mine] == ["3: a,rests,c"] * 2 + ["3: a,b,c"] * 2
    assert Counter(line for _, line in lines(log))["step rests"] == 2
    assert len({process for process, line in lines(log) if line == "step rests"}) == 2


def test_steps_that_usually_take_long_stay_in_their_worker(tmp_path):
    """A replay would take longer than waiting."""
    log = tmp_path / "log"
    with opened(partial(Faulty, str(log)), timeout=4.0) as pool:
        pool.reset(starts(8))
        pool.step(dict.fromkeys(names(8), "naps"))
        first = lines(log)[0][0]
        mine = [line.split()[1] for process, line in lines(log) if process == first and "reset" in line]
        pool.step({name: "naps" if name in mine else "word" for name in names(8)})
    assert Counter(line.split()[0] for _, line in lines(log)) == {"reset": 8, "step": 16}


def test_async_steps_of_a_worker_share_an_event_loop():
    with opened() as pool:
        pool.reset(starts(8))
        turns = [pool.step(dict.fromkeys(names(8), "later")) for _ in range(2)]
    loops = {(answer.metrics["process"], answer.metrics["loop"]) for turn in turns for answer in turn.values()}
    assert len(loops) == 2


def test_reset_receives_the_columns_that_it_names():
    class Digit:
        def reset(self, *, seed, digit):
            return f"{seed} {digit}"

        def step(self, text):
            return text

    with opened(Digit, workers=1) as pool:
        assert pool.reset([Start("a", 1, {"digit": 7, "other": 8})])[0].say == "1 7"
        missing = pool.reset([Start("b", 1)])[0]
    assert missing.outcome == "lost"
    assert missing.detail.endswith("missing 1 required keyword-only argument: 'digit'")


# Threads, and the end


def test_threads_take_turns():
    found = {}

    def run(pool, thread):
        own = [Start(f"{thread}/{name}", int(name)) for name in names(4)]
        pool.reset(own)
        for turn in range(5):
            found[thread, turn] = pool.step({start.id: f"{thread}" for start in own})
        pool.forget(start.id for start in own)

    with opened() as pool:
        threads = [threading.Thread(target=run, args=(pool, thread)) for thread in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for (thread, turn), answers in found.items():
        assert {answer.say for answer in answers.values()} == {f"{turn + 1}: {','.join([str(thread)] * (turn + 1))}"}
    assert len(found) == 15


def is_running(process):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@linux
def test_closing_in_another_thread_ends_the_step_and_its_processes(tmp_path):
    log, errors = tmp_path / "log", []

    def hang(pool):
        try:
            pool.step({"0": "hangs"})
        except EpisodeError as error:
            errors.append(str(error))

    with opened(partial(Faulty, str(log))) as pool:
        pool.reset(starts(2))
        thread = threading.Thread(target=hang, args=(pool,))
        thread.start()
        while "step hangs" not in log.read_text():
            time.sleep(0.01)
        pool.close()
        thread.join()
        assert errors == ["the environment cannot be called, because the pool was closed"]
        assert not any(is_running(process) for process, _ in lines(log))
        assert pool.reset(starts(1))[0].say == "seed 0"


@linux
def test_ctrl_c_ends_the_processes(tmp_path):
    log = tmp_path / "log"
    with opened(partial(Faulty, str(log)), workers=1) as pool:
        pool.reset(starts(1))
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                pool.step({"0": "hangs"})
        finally:
            signal.signal(signal.SIGALRM, before)
        assert not any(is_running(process) for process, _ in lines(log))
        assert pool.step({"0": "word"})["0"].say == "1: word"


# What cannot work


def test_what_a_pool_refuses():
    lock = threading.Lock()
    with pytest.raises(EpisodeError, match=r"'faulty' cannot be sent to a worker process .*; create its locks"):
        opened(lambda: lock)
    with pytest.raises(EpisodeError, match="environments need at least one worker, not 0"):
        opened(workers=0)
    with pytest.raises(EpisodeError, match="the timeout of environments must be a number of seconds above 0, not inf"):
        opened(timeout=float("inf"))
    with opened() as pool:
        with pytest.raises(EpisodeError, match="there is no live episode 'a'"):
            pool.step({"a": "word"})
        with pytest.raises(EpisodeError, match="there is a live episode 'a' already"):
            pool.reset([Start("a", 0), Start("a", 1)])
        with pytest.raises(EpisodeError, match="the data has a column 'seed'"):
            pool.reset([Start("a", 0, {"seed": 1})])
        pool.forget(["a"])


def test_the_error_names_a_column_that_cannot_be_sent():
    with opened() as pool:
        with pytest.raises(EpisodeError, match=r"column 'lock' cannot be sent to the environment 'faulty'"):
            pool.reset([Start("a", 0, {"fine": 1, "lock": threading.Lock()})])
        assert pool.reset([Start("a", 0)])[0].say == "seed 0"


def test_an_environment_that_no_worker_can_load_is_an_error():
    with (
        opened(Unloadable()) as pool,
        pytest.raises(EpisodeError, match=r"'faulty' cannot be loaded in a worker process: ValueError: invalid"),
    ):
        pool.reset(starts(1))


@pytest.mark.slow
def test_resets_that_never_answer_are_given_up(tmp_path):
    log = tmp_path / "log"
    with opened(partial(Faulty, str(log)), timeout=0.3) as pool:
        answers = pool.reset([Start(name, int(name) // 4, {"start": "hangs"}) for name in names(40)])
    assert {answer.outcome for answer in answers} == {"lost"}
    assert answers[-1].detail == "no answer in 0.3 s, 8 times out of 8; it was not called again"
    assert len(lines(log)) <= 8 * 2  # a seed may hang in both workers


@pytest.mark.slow
def test_a_group_whose_resets_hang_does_not_cost_others_theirs():
    with opened(timeout=0.3, workers=1) as pool:
        bad = [Start(f"bad{row}", 7, {"start": "hangs"}) for row in range(10)]
        answers = pool.reset([*bad, Start("good", 8)])
    assert [answer.outcome for answer in answers] == ["lost"] * 10 + ["ok"]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["spread", "together"])
def test_hangs_cost_one_deadline_per_worker_and_hang(where):
    with opened(timeout=3.0) as pool:
        pool.reset(starts(128))
        pool.step(dict.fromkeys(names(128), "word"))
        hanging = names(128)[::32] if where == "spread" else names(4)
        began = time.monotonic()
        answers = pool.step({name: "hangs" if name in hanging else "word" for name in names(128)})
        seconds = time.monotonic() - began
    assert [name for name, answer in answers.items() if answer.outcome == "timeout"] == hanging
    assert seconds <= 1.2 * 2 * 3.0
