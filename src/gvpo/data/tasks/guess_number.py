"""TextArena's GuessTheNumber: find a hidden number from the answers "higher" and "lower".

The prompts are all the same; the column `game_seed` decides the number, and the environment `textarena` reads it. Even
seeds are for training, odd ones are held out.

Demonstrations guess at random within the limits that they heard, and sometimes anywhere. A model that is warm-started
on them knows the form, and often needs too many guesses.
"""

import random
from collections.abc import Iterator

from gvpo.data.tasks.base import Split, Task, check_split, checked_options
from gvpo.errors import ConfigError
from gvpo.types import Problem

NAME = "guess_number"
PROMPT = "Guess the number."
HIGHER, LOWER = "The target number is higher.", "The target number is lower."
"""Answers of TextArena's game."""


@checked_options(NAME)
def problems(
    split: Split, count: int, seed: int, *, prompt: str = PROMPT, largest: int = 20, guesses: int = 5, wild: float = 0.5
) -> list[Problem]:
    """Generate games with different seeds.

    Args:
        split: "train" or "eval".
        count: Number of games.
        seed: Random seed of the choice.
        prompt: The prompt.
        largest: See `demonstrations`.
        guesses: See `demonstrations`.
        wild: See `demonstrations`.

    Returns:
        Problems with the column `game_seed`.
    """
    check_split(NAME, split)
    rng = random.Random(f"{NAME}/{split}/{seed}")
    seeds = rng.sample(range(2**30), count)
    return [_problem(prompt, 2 * each + (split == "eval")) for each in seeds]


@checked_options(NAME)
def demonstrations(
    count: int, seed: int, *, prompt: str = PROMPT, largest: int = 20, guesses: int = 5, wild: float = 0.5
) -> list[tuple[Problem, tuple[str, ...]]]:
    """Generate games that a careless player plays.

    Args:
        count: Number of games.
        seed: Random seed of the numbers and of the guesses.
        prompt: The prompt.
        largest: Largest number; the smallest is 1.
        guesses: Maximum number of guesses.
        wild: Probability per guess that it ignores the answers so far.

    Returns:
        Problems with dialogues: guesses such as "[7]" and the game's answers, alternately.
    """
    if largest < guesses or guesses < 1 or not 0 <= wild <= 1:
        raise ConfigError(f"the task {NAME!r} needs guesses from 1 to largest, and wild between 0 and 1")
    rng = random.Random(f"{NAME}/demonstrations/{seed}")
    return [
        (_problem(prompt, 2 * rng.randrange(2**30)), tuple(_played(rng, largest, guesses, wild))) for _ in range(count)
    ]


def _played(rng: random.Random, largest: int, guesses: int, wild: float) -> Iterator[str]:
    """Yield the guesses and answers of a game."""
    number, low, high = rng.randint(1, largest), 1, largest
    left = set(range(1, largest + 1))
    for turn in range(guesses):
        sensible = [each for each in left if low <= each <= high]
        guess = rng.choice(sorted(left) if rng.random() < wild else sensible)
        left.discard(guess)
        yield f"[{guess}]"
        if guess == number or turn == guesses - 1:
            return
        yield HIGHER if guess < number else LOWER
        low, high = (max(low, guess + 1), high) if guess < number else (low, min(high, guess - 1))


def _problem(prompt: str, game_seed: int) -> Problem:
    return Problem(prompt, f"{NAME}/{game_seed}", {"game_seed": game_seed})


GUESS_NUMBER = Task(
    NAME, "", problems, demonstrations, summary="generated: seeds of TextArena's GuessTheNumber, for its environment"
)
