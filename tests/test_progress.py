"""Progress of a run on terminals and elsewhere."""

import io

import pytest
from rich.console import Console

from gvpo import progress as module
from gvpo.progress import StepProgress

LINE = {
    "train/loss": 1.23456,
    "reward/mean": 0.5,
    "accuracy": 0.25,
    "kl/reference": 0.125,
    "length/mean": 12.0,
    "tokens/per_second": 12345.6,
}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(module, "time", one)
    return one


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=200)


def written(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def test_a_line_has_the_most_important_numbers(clock: Clock):
    out = console()
    with StepProgress("demo", 10, console=out) as progress:
        clock.now += 6
        progress.update(1, {**LINE, "eval/accuracy": 0.75})
    line = written(out)
    assert line.startswith("demo: step 1/10  loss 1.235  reward 0.50  accuracy 0.25  KL 0.125  length 12  tok/s 12,346")
    assert line.endswith("held-out 0.75  0:54 left\n")
    assert line.count("\n") == 1


def test_the_last_held_out_accuracy_stays_in_view(clock: Clock):
    out = console()
    with StepProgress("demo", 3, console=out) as progress:
        progress.update(1, {"eval/accuracy": 0.5})
        clock.now += 60
        progress.update(2, LINE)
    assert "held-out 0.50" in written(out).splitlines()[-1]


def test_lines_without_a_terminal_are_rare_but_the_last_step_has_one(clock: Clock):
    out = console()
    with StepProgress("demo", 5, console=out) as progress:
        for step in range(1, 6):
            clock.now += 4
            progress.update(step, LINE)
    assert [line.split()[2] for line in written(out).splitlines()] == ["1/5", "4/5", "5/5"]


def test_the_time_left_of_a_resumed_run_counts_the_steps_of_this_session(clock: Clock):
    out = console()
    with StepProgress("demo", 100, done=90, console=out) as progress:
        for step in (91, 92):
            clock.now += 450
            progress.update(step, LINE)
    assert written(out).endswith("1:00:00 left\n")  # 8 steps of 450 s


def test_one_slow_step_does_not_change_the_time_left(clock: Clock):
    out = console()
    with StepProgress("demo", 6, console=out) as progress:
        for step, seconds in enumerate([20, 20, 900, 20], start=1):
            clock.now += seconds
            progress.update(step, LINE)
    assert written(out).endswith("0:40 left\n")


def test_titles_and_messages_are_printed_verbatim():
    out = console()
    StepProgress("run[1]", 5, console=out).say("a [bold]path[/bold] 1/2")
    assert written(out) == "run[1]: a [bold]path[/bold] 1/2\n"


def test_a_terminal_has_a_bar_that_disappears():
    out = console(terminal=True)
    with StepProgress("demo", 2, console=out) as progress:
        progress.update(1, LINE)
        progress.update(2, LINE)
    assert "2/2" in written(out)
    assert "step 2/2" not in written(out)


def test_the_unit_has_a_name_and_may_increase_in_large_steps(clock: Clock):
    out = console()
    with StepProgress("eval", 100, console=out, unit="problem") as progress:
        clock.now += 10
        progress.update(25, {})
    assert written(out) == "eval: problem 25/100  0:30 left\n"
