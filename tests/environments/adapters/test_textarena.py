"""Games of TextArena."""

import random

import pytest

from gvpo.environments import EnvironmentPool, Start, load_environment
from gvpo.environments.adapters.textarena import GAMES
from gvpo.errors import EpisodeError

pytest.importorskip("textarena")
MOVES = ["[1]", "[up]", "[0 0]", "[Hit]", "[2 1 3 4]", "hello", "[1]"]


def game(name="GuessTheNumber-v0", **options):
    return load_environment("textarena", {"game": name, **options}).make()


def played(name, seed, moves=MOVES):
    """Return what a game says to some moves, and its rewards."""
    environment = game(name)
    heard = [environment.reset(seed=seed)]
    for move in moves:
        turn = environment.step(move)
        heard.append((turn.say, turn.reward, turn.error))
        random.random()  # another episode in the same process
        if turn.done:
            break
    return heard


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "RushHour-v0" else []) for name in GAMES]
)
def test_a_game_runs_offline_and_is_repeated_from_its_seed(name):
    """These are the games that the documentation lists."""
    heard = played(name, 3)
    assert heard[0]
    assert heard == played(name, 3)
    assert not any("hello" in said for said, _, _ in heard[1:])


def test_the_policy_hears_only_what_is_new():
    environment = game(max_turns=5)
    assert "between 1 and 20 within 5 turns" in environment.reset(seed=3)
    number = environment._game.game_number
    assert environment.step(f"I try [{number - 1}]").say == "The target number is higher."
    assert environment.step("[20]").say == "The target number is lower."
    turn = environment.step(f"[{number}]")
    assert (turn.say, turn.reward, turn.done, turn.error) == ("", 1.0, True, "")


def test_a_second_invalid_move_in_a_row_loses():
    environment = game()
    assert environment.reset(seed=3)
    first, second = environment.step("hello"), environment.step("hello")
    assert "You attempted an invalid move" in first.say
    assert (first.done, first.error, second.done) == (False, first.say, True)
    assert "did not respond with valid" in second.error


def test_episodes_of_one_process_have_their_own_random_numbers():
    with EnvironmentPool(load_environment("textarena", {"game": "2048-v0"})) as pool:
        pool.reset([Start(name, 3) for name in "abc"])
        moves = ["[up]", "[left]", "[up]", "[right]"]
        said = [[pool.step({name: move})[name].say for name in "abc"] for move in moves]
    assert all(len(set(heard)) == 1 for heard in said)


def test_the_rules_can_be_left_out_of_the_prompt():
    assert game(opening=False).reset(seed=1) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "missing a required argument: 'game'; it accepts game, opening, partial_reward, settings"),
        ({"game": "GuesTheNumber-v0"}, "no game 'GuesTheNumber-v0'; did you mean 'GuessTheNumber-v0'"),
        ({"game": "zzz"}, "no game 'zzz'; games for one player are 2048-v0"),
        ({"game": "GuessTheNumber-v0", "turns": 5}, "cannot be made: TypeError: .*unexpected keyword argument 'turns'"),
    ],
)
def test_a_game_that_cannot_be_played(options, message):
    with pytest.raises(EpisodeError, match=message):
        load_environment("textarena", options)


def test_a_row_chooses_its_game():
    environment = game()
    environment.reset(seed=1, game_seed=5)
    chosen = environment._game.game_number
    assert [environment.reset(seed=5), environment._game.game_number][1] == chosen


@pytest.mark.parametrize(("partial", "paid", "worst"), [(True, True, -1.0), (False, False, 0.0)])
def test_a_game_that_is_not_won_may_pay_a_part(partial, paid, worst):
    spec = load_environment("textarena", {"game": "GuessTheNumber-v0", "partial_reward": partial, "max_turns": 0})
    environment = spec.make()
    environment.reset(seed=3)
    number = environment._game.game_number
    turn = environment.step(f"[{number + 1 if number < 20 else number - 1}]")
    assert (turn.done, bool(turn.reward), spec.worst) == (True, paid, worst)
