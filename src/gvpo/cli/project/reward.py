"""The reward of the project. A call receives all completions of one prompt; TRL's reward functions work unchanged."""

from typing import Any


def reward(prompts: list[str], completions: list[str], answer: list[str], **columns: Any) -> list[float | None]:
    """Return 1 for each correct answer and 0 for others.

    Args:
        prompts: The prompt, once per completion.
        completions: The texts that the model wrote.
        answer: Column `answer` of the data, one value per completion. To receive another column, add its name.
        columns: The other columns.

    Returns:
        One reward per completion; None abstains. A completion counts as correct if its reward is above 0.5.
    """
    return [float(text.strip() == right) for text, right in zip(completions, answer, strict=True)]
