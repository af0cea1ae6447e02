"""What is good. One call has all completions of one prompt; TRL's reward functions work here unchanged."""

from typing import Any


def reward(prompts: list[str], completions: list[str], answer: list[str], **columns: Any) -> list[float | None]:
    """1 for the right answer, else 0.

    Args:
        prompts: the prompt, once for each completion.
        completions: what the model wrote.
        answer: the data's column of that name, one value a completion. Name any column to get it.
        columns: the other columns.

    Returns:
        One reward a completion; None abstains. A completion counts as right if its reward is above 0.5.
    """
    return [float(text.strip() == right) for text, right in zip(completions, answer, strict=True)]
