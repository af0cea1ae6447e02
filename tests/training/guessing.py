"""The smallest environment: guess the digit of the prompt, within a few turns. Workers import it without torch."""

import time
from collections.abc import Sequence
from typing import Any

ROWS = [{"prompt": digit, "digit": digit} for digit in "0123456789"]


class Guess:
    """Says whether the first digit of a turn is too low (0), too high (1) or right."""

    def reset(self, *, digit: str, seed: int, **_: Any) -> None:
        self.digit = int(digit)

    def step(self, text: str) -> tuple[str, float, bool]:
        guess = int(text[:1] or "0")
        return ("1" if guess > self.digit else "0", float(guess == self.digit), guess == self.digit)


class Slow(Guess):
    """Takes its time, so that a run is often killed within a turn."""

    def step(self, text: str) -> tuple[str, float, bool]:
        time.sleep(0.003)
        return super().step(text)


class Opening(Guess):
    """Adds a digit to the prompt, and cannot begin for the digit 0."""

    def reset(self, *, digit: str, seed: int, **_: Any) -> str:
        super().reset(digit=digit, seed=seed)
        if digit == "0":
            raise RuntimeError("no zero")
        return str(seed % 10)


class Moody(Guess):
    """Opens with a digit, cannot begin for the digit 0, and raises, ends or says much as the guess asks for."""

    def reset(self, *, digit: str, seed: int, **_: Any) -> str:
        super().reset(digit=digit, seed=seed)
        if digit == "0":
            raise RuntimeError("no zero")
        return str(seed % 10)

    def step(self, text: str) -> Any:
        if text.startswith("1"):
            raise ValueError("one")
        if text.startswith("2"):
            return "", 0.5, True
        if text.startswith("3"):
            return "1234567890" * 2
        return super().step(text)


def of_turns(completions: Sequence[str], turns: Any, **_: Any) -> list[float]:
    """Pay for each turn, so that the turns are required."""
    return [float(len(each)) for each in turns]
