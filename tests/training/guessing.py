"""The smallest environment: guess the digit of the prompt, within a few turns."""

from typing import Any

from tests.training.toy import DIGITS

ROWS = [{"prompt": digit, "digit": digit} for digit in DIGITS]


class Guess:
    """Says whether the first digit of a turn is too low (0), too high (1) or right."""

    def reset(self, *, digit: str, seed: int, **_: Any) -> None:
        self.digit = int(digit)

    def step(self, text: str) -> tuple[str, float, bool]:
        guess = int(text[:1] or "0")
        return ("1" if guess > self.digit else "0", float(guess == self.digit), guess == self.digit)
