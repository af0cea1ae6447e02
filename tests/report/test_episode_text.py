"""An example episode on a terminal of 80 columns."""

import dataclasses

from gvpo.report.episode_text import example
from gvpo.types import Completion, EpisodeTurn

TOOL = [{"role": "tool", "content": "14"}]
RIGHT = Completion(
    [1, 2, 3, 4],
    mask=[1, 1, 0, 1],
    text="2*7;14=14.",
    turns=(
        EpisodeTurn(0, 2, 3, "2*7;", TOOL, reward=0.25, seconds=0.0021),
        EpisodeTurn(3, 4, 4, "=14.", reward=1.0, seconds=0.001),
    ),
)
WRONG = Completion(
    [1, 2],
    mask=[1, 1],
    text="2*;",
    turns=(EpisodeTurn(0, 2, 2, "2*;", [{"role": "tool", "content": "?"}], outcome="error", detail="E", seconds=9.0),),
    finish_reason="turns",
)


def record(*rows, rewards):
    turns = [[dataclasses.asdict(turn) for turn in row.turns] for row in rows]
    return {
        "id": "p1",
        "rewards": rewards,
        "finish_reasons": [row.finish_reason for row in rows],
        **({"episode_turns": turns} if any(turns) else {}),
    }


def test_the_best_episode_is_shown_turn_by_turn():
    assert example([record(WRONG, RIGHT, rewards=[0.0, 1.25])]).split("\n") == [
        "an episode of p1 (completion 2 of 2): reward 1.25, 2 turns, ended by 'stop'",
        "  model        2*7;                                                  reward 0.25",
        "  tool         14                                                           2 ms",
        "  model        =14.                                                     reward 1",
    ]


def test_failures_are_named_and_long_or_hostile_text_stays_in_its_place():
    said = "\x1b[2J" + "word " * 200 + "\n" * 30
    shouting = dataclasses.replace(WRONG.turns[0], heard=[{"role": "a very long role", "content": said}])
    long = dataclasses.replace(WRONG, turns=(shouting,) * 20)
    lines = example([record(long, rewards=[None])]).split("\n")
    assert lines[0] == "an episode of p1 (completion 1 of 1): no reward, 20 turns, ended by 'turns'"
    assert lines[2].startswith("  a very long  [error]  [2Jword word")
    assert lines[2].endswith("9 s")
    assert lines[-1] == "  8 more turns"
    assert len(lines) == 2 + 12 * (1 + 8)
    assert all(len(line) <= 80 and line.isprintable() for line in lines)


def test_groups_without_episodes_have_no_example():
    assert example([record(Completion([1], text="a"), rewards=[1.0])]) is None
