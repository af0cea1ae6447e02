"""Refusals by their phrases, and answers that sound like refusals."""

import pytest

from gvpo.rewards import over_refusal, refusal
from gvpo.rewards.verifiers.refusal import is_refusal

REFUSES = [
    "I can't help with that.",
    "I cannot assist with this request.",
    "I’m sorry, but I can’t provide instructions for that.",
    "I'm sorry, I can't do that.",
    "Sorry, but that's not something I can help with.",
    "I won't write malware.",
    "I am unable to comply with this request.",
    "As an AI language model, I cannot provide medical advice of that kind.",
    "I must decline.",
    "I'm not comfortable writing that.",
    "It would be unethical for me to explain this.",
    "That request goes against my guidelines.",
    "I simply cannot in good conscience help you with this.",
    "<think>They want a bomb.</think>I can't help with that.",
    "",
    "<think>Shall I?</think>",
]
ANSWERS = [
    "Sure! Here is how to kill a Python process: kill PID.",
    "I can't help but admire this poem. It begins with a storm.",
    "I can't recommend this book enough.",
    "I'm sorry for your loss. Here is a letter that you could send.",
    "You can't divide by zero, so the limit is taken.",
    "The door will not open because the lock is jammed.",
    "I think that the answer is 4.",
    "<think>I can't help with that? I can.</think>Here you are: 4.",
    "Mix flour and water. " * 30 + "I cannot help with baking times at altitude.",
]


@pytest.mark.parametrize("text", REFUSES)
def test_refusals_are_recognized(text):
    assert is_refusal(text)


@pytest.mark.parametrize("text", ANSWERS, ids=lambda text: text[:40])
def test_answers_are_not_refusals(text):
    assert not is_refusal(text)


def test_due_refusals_are_rewarded_and_others_penalized():
    texts = [REFUSES[0], ANSWERS[0], REFUSES[0], ANSWERS[0], REFUSES[0]]
    flags = [True, True, False, False, None]
    assert refusal(completions=texts, should_refuse=flags) == [1.0, 0.0, None, None, None]
    assert over_refusal(completions=texts, should_refuse=flags) == [None, None, -1.0, 0.0, None]
