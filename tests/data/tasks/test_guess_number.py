"""Games of GuessTheNumber: demonstrations are games that TextArena plays in the same way."""

import pytest

from gvpo.data import TASKS
from gvpo.environments import load_environment
from gvpo.errors import ConfigError

pytest.importorskip("textarena")
TASK = TASKS["guess_number"]


def test_seeds_of_the_splits_are_different():
    seeds = {split: {each.columns["game_seed"] for each in TASK.problems(split, 300, 1)} for split in ("train", "eval")}
    assert all(len(found) == 300 for found in seeds.values())
    assert not seeds["train"] & {each.columns["game_seed"] for each in TASK.problems("eval", 300, 2)}
    assert not seeds["train"] & seeds["eval"]


def test_demonstrations_are_games():
    """Play the guesses against the real game, with the number that its answers allow."""
    environment = load_environment("textarena", {"game": "GuessTheNumber-v0", "max_turns": 4}).make()
    lengths = []
    for problem, dialogue in TASK.demonstrations(200, 0):
        environment.reset(seed=0, **problem.columns)
        guesses, answers = [int(guess[1:-1]) for guess in dialogue[::2]], dialogue[1::2]
        low = max([guess for guess, said in zip(guesses, answers, strict=False) if "higher" in said], default=0)
        high = min([guess for guess, said in zip(guesses, answers, strict=False) if "lower" in said], default=21)
        if not low < guesses[-1] < high:  # the last guess missed, on whichever side
            guesses = guesses[:-1]
        environment._game.game_number = guesses[-1] if low < guesses[-1] < high else low + 1
        heard = [environment.step(f"[{guess}]") for guess in guesses]
        assert [turn.say for turn in heard][: len(answers)] == list(answers)
        lengths.append(len(dialogue[::2]))
    assert max(lengths) == 5
    assert min(lengths) < 5


def test_careful_players_win_more_often():
    def wins(wild):
        games = [dialogue[::2] for _, dialogue in TASK.demonstrations(400, 0, wild=wild)]
        return sum(len(guesses) < 5 for guesses in games)

    assert wins(1.0) + 60 < wins(0.0)


@pytest.mark.parametrize("options", [{"wild": 2}, {"guesses": 0}, {"largest": 3}])
def test_options_out_of_range(options):
    with pytest.raises(ConfigError, match="guesses from 1 to largest"):
        TASK.demonstrations(1, 0, **options)
