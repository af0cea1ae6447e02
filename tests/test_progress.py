"""Progress of a run on terminals and elsewhere."""

import io
import re
import time

import pytest
from rich.console import Console

from gvpo import activity
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
    assert line.startswith("demo: step 1/10  under 0:54 left  reward 0.50  held-out 0.75  accuracy 0.25  KL 0.125  ")
    assert line.endswith("loss 1.235  length 12  tok/s 12,346\n")
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
    assert "step 92/100  1:00:00 left" in fitted(progress)  # 8 steps of 450 s


def test_start_up_and_the_first_step_do_not_count_once_there_is_another_step(clock: Clock):
    progress = StepProgress("demo", 10, console=console())
    assert "left" not in fitted(progress)
    clock.now += 300  # loading, compiling, an evaluation
    progress.update(1, LINE)
    assert "under 45:00 left" in fitted(progress)
    clock.now += 10
    progress.update(2, LINE)
    assert "1:20 left" in fitted(progress)


def test_work_that_finishes_in_bursts_is_predicted_by_its_mean(clock: Clock):
    progress = StepProgress("eval", 100, console=console(), steady=False)
    for done, seconds in ((10, 99), (20, 10), (21, 0), (22, 0), (30, 10)):
        clock.now += seconds
        progress.update(done, {})
    assert "1:10 left" in fitted(progress)  # 20 problems in 20 seconds after the first ones


def test_one_slow_step_does_not_change_the_time_left(clock: Clock):
    out = console()
    with StepProgress("demo", 6, console=out) as progress:
        for step, seconds in enumerate([20, 20, 900, 20], start=1):
            clock.now += seconds
            progress.update(step, LINE)
    assert "0:40 left" in fitted(progress)


def test_titles_and_messages_are_printed_verbatim():
    out = console()
    StepProgress("run[1]", 5, console=out).say("a [bold]path[/bold] 1/2")
    assert written(out) == "run[1]: a [bold]path[/bold] 1/2\n"


def test_a_terminal_has_a_bar_that_disappears():
    out = console(terminal=True)
    with StepProgress("demo", 2, console=out) as progress:
        progress.update(1, LINE)
        progress.update(2, LINE)
        out.print("a line that stays")
    assert "step 2/2" in written(out)
    assert "demo: step" not in written(out)


NAMED = {**LINE, "eval/accuracy": 0.75, "train/loss": -1.5}


def fitted(progress: StepProgress, width: int = 200) -> str:
    return progress.fitted(width)


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (79, "demo  step 7/200  2:40:50 left  ╌╌╌╌╌╌╌╌╌╌  reward 0.50  held-out 0.75"),
        (59, "demo  step 7/200  2:40:50 left  reward 0.50  held-out 0.75"),
        (40, "demo  step 7/200  2:40:50 left"),
        (20, "demo  step 7/200  2:"),
    ],
)
def test_a_narrow_terminal_keeps_name_step_and_time_left(clock: Clock, width: int, line: str):
    progress = StepProgress("demo", 200, console=console(terminal=True))
    for step in range(1, 8):
        clock.now += 50
        progress.update(step, NAMED)
    assert fitted(progress, width) == line


def test_a_long_name_is_shortened_in_its_middle(clock: Clock):
    progress = StepProgress("recipes-smollm2-a-very-long-name-seed-3", 200, console=console())
    assert fitted(progress, 79).startswith("recipes-smo…name-seed-3  step 0/200  ")


def test_the_line_of_a_terminal_never_wraps(clock: Clock):
    out = Console(file=io.StringIO(), force_terminal=True, width=60)
    with StepProgress("a-name-of-some-length", 200, console=out) as progress:
        clock.now += 50
        progress.update(7, NAMED)
    lines = re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written(out)))
    assert any("step 7/200" in line for line in lines)
    assert max(map(len, lines)) < 60


def test_what_is_done_within_a_step_is_shown(clock: Clock):
    progress = StepProgress("demo", 200, console=console(terminal=True))
    with progress, activity.phase("held-out evaluation"), activity.phase("sampling"):
        activity.count(12, 256, "rows", 1204)
        line = "demo  step 0/200  held-out evaluation  sampling 12/256 rows  1,204 tokens"
        assert fitted(progress, 79) == line
        assert fitted(progress, 60) == "demo  step 0/200  held-out evaluation  sampling 12/256 rows"
        assert fitted(progress, 40) == "demo  step 0/200  held-out evaluation"
    activity.count(1, 2)  # nobody shows it after the end


def test_without_a_terminal_work_within_a_step_has_a_line_after_ten_seconds(clock: Clock):
    out = console()
    with StepProgress("demo", 3, console=out), activity.phase("sampling"):
        for rows in range(6):
            clock.now += 4
            activity.count(rows, 32, "rows", 10 * rows)
    assert written(out).splitlines() == [
        "demo: step 0/3  sampling 2/32 rows  20 tokens",
        "demo: step 0/3  sampling 5/32 rows  50 tokens",
    ]


def test_the_unit_has_a_name_and_may_increase_in_large_steps(clock: Clock):
    out = console()
    with StepProgress("eval", 100, console=out, unit="problem") as progress:
        clock.now += 10
        progress.update(25, {})
    assert written(out) == "eval: problem 25/100  under 0:30 left\n"


def test_a_preparation_is_shown_until_the_first_progress_begins(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LINE_SECONDS", 0.05)
    out = console()
    monkeypatch.setattr(module, "error_console", lambda **_: out)
    with module.preparing("demo"), activity.phase("importing torch"):
        with module.preparing("demo"):  # an inner one adds nothing
            time.sleep(0.2)
        with StepProgress("demo", 3, console=out) as progress:
            time.sleep(0.1)
            progress.update(3, {})
    assert written(out).splitlines() == ["demo: importing torch", "demo: step 3/3  0:00 left"]


def test_a_short_preparation_prints_nothing_elsewhere_than_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    quiet, terminal = console(), console(terminal=True)
    monkeypatch.setattr(module, "error_console", lambda **_: quiet)
    with module.preparing("demo"):
        pass
    assert written(quiet) == ""
    monkeypatch.setattr(module, "error_console", lambda **_: terminal)
    with module.preparing("demo"), activity.phase("loading the model"):
        time.sleep(0.4)
    assert "demo  loading the model  0:00" in written(terminal)


def test_a_warning_ends_its_lines_between_words_only_on_a_terminal():
    text = "nothing was learned: " + "all 240 groups had equal rewards " * 4
    for terminal in (False, True):
        out = Console(file=io.StringIO(), force_terminal=terminal, width=60)
        StepProgress("demo", 5, console=out).warn(text)
        assert written(out).count("\n") == (3 if terminal else 1)
        assert written(out).split() == f"demo: warning: {text}".split()
