"""Games of TextArena for one player (`pip install 'gvpo[textarena]'`)."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

from gvpo.environments.base import EnvironmentSpec, Turn
from gvpo.errors import EpisodeError
from gvpo.nearest import did_you_mean

GAMES = (
    "2048-v0",
    "Bandit-v0",
    "Blackjack-v0",
    "Crosswords-v0",
    "FifteenPuzzle-v0",
    "FrozenLake-v0",
    "GuessTheNumber-v0",
    "LightsOut-v0",
    "LogicPuzzle-v0",
    "Mastermind-v0",
    "Minesweeper-v0",
    "PegJump-v0",
    "RushHour-v0",
    "Secretary-v0",
    "Set-v0",
    "Sokoban-v0",
    "Sudoku-v0",
    "ThreeCardMonte-v0",
    "TowerOfHanoi-v0",
)
"""Games that run with one player, without downloads or services, and that can be repeated from their seed.

Countdown, Cryptarithm and Slitherlink are not among them, since they return text as the reward of an invalid move.
Games of words need the words of NLTK, which are a download.
"""


class TextArenaGame:
    """A game of TextArena. The policy does not hear its own moves again, which TextArena's observations repeat.

    The reward is that of the game, at its end. An invalid move is told to the policy and counts as its mistake; the
    game decides how many it allows. Games draw from Python's global random numbers, so each episode has its own state.

    Args:
        game: Name of the game, such as "GuessTheNumber-v0".
        opening: Whether the game's rules are added to the prompt.
        partial_reward: Whether a game that is not won pays what TextArena gives for it, instead of 0.
        settings: Arguments of the game, such as max_turns.
    """

    def __init__(self, game: str, opening: bool, partial_reward: bool, settings: dict[str, Any]) -> None:
        import textarena

        raw = f"{game}-raw"  # without the wrappers that add the whole history
        self._game = textarena.make(raw if raw in textarena.envs.registration.ENV_REGISTRY else game, **settings)
        self._opening, self._partial = opening, partial_reward
        self._admin = textarena.ObservationType.GAME_ADMIN

    def reset(self, *, seed: int, game_seed: int | None = None, **_: Any) -> str | None:
        """Begin the game of the row's `game_seed`, or of the seed; return its rules and its first position."""
        seed = seed if game_seed is None else game_seed
        self._random = random.Random(seed).getstate()
        with self._own_random():
            self._game.reset(num_players=1, seed=seed)
        opening = self._heard()[0]
        return opening if self._opening else None

    def step(self, text: str) -> Turn:
        """Make a move."""
        with self._own_random():
            done, _ = self._game.step(text)
        heard, mistake = self._heard()
        if not done:
            return Turn(heard, error=mistake)
        rewards, players = self._game.close()  # by player
        player: dict[str, Any] = players[0]
        mistake = str(player.get("reason")) if player.get("invalid_move") else ""
        return Turn(heard, self._reward((rewards or {}).get(0)), done=True, error=mistake)

    def _reward(self, given: Any) -> float | None:
        reward = float(given) if isinstance(given, int | float) else None
        return reward if self._partial else float(reward is not None and reward >= 1)

    def _heard(self) -> tuple[str, str]:
        """Return what the game said since the last call, and what it said about an invalid move."""
        _, said = self._game.get_observation()
        own = [(text, kind) for sender, text, kind in said if sender == -1]
        return "\n".join(text for text, _ in own), "\n".join(text for text, kind in own if kind == self._admin)

    @contextmanager
    def _own_random(self) -> Iterator[None]:
        before = random.getstate()
        random.setstate(self._random)
        try:
            yield
        finally:
            self._random = random.getstate()
            random.setstate(before)


def textarena(game: str, opening: bool = True, partial_reward: bool = True, **settings: Any) -> EnvironmentSpec:
    """Return a game of TextArena.

    Args:
        game: Name of the game, such as "GuessTheNumber-v0".
        opening: Whether the game's rules and its first position are added to the prompt.
        partial_reward: Whether a game that is not won pays what TextArena gives for it, such as the closeness of the
            last guess, instead of 0.
        settings: Arguments of the game, such as max_turns.

    Raises:
        EpisodeError: If TextArena is not installed, has no such game, or the game does not accept the settings.
    """
    if find_spec("textarena") is None:
        raise EpisodeError("the environment 'textarena' needs TextArena; run pip install 'gvpo[textarena]'")
    import textarena as arena

    known = [name for name in arena.envs.registration.ENV_REGISTRY if not name.endswith(("-raw", "-train"))]
    if game not in known:
        near = did_you_mean(game, known, f"games for one player are {', '.join(GAMES)}")
        raise EpisodeError(f"TextArena has no game {game!r}{near}")
    make = partial(TextArenaGame, game, opening, partial_reward, settings)
    try:
        make()
    except Exception as error:
        raise EpisodeError(f"the game {game!r} of TextArena cannot be made: {type(error).__name__}: {error}") from error
    return EnvironmentSpec(f"textarena {game}", make, worst=-1.0 if partial_reward else 0.0)
