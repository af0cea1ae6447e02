"""Rewards for texts, choices and JSON as tables: one comment per family, including wrong answers that must score 0."""

import doctest
import importlib

import pytest

from gvpo.errors import RewardError
from gvpo.rewards import json_fields, json_format, json_match, multiple_choice, repetition_penalty, text_f1, text_match

TEXT = [
    # case, punctuation, articles, white space, composed letters
    ("The Eiffel Tower.", "eiffel tower", 1),
    ("eiffel-tower", "Eiffel Tower", 1),
    ("It's  \n fine!", "its fine", 1),
    ("Cafe\u0301", "Café", 1),
    ("U.S.A.", "USA", 1),
    ("1,000", "1000", 1),
    ("C++", "c++", 1),
    # the part that the completion marks as its answer
    ("<think>London? No.</think>Paris", "Paris", 1),
    ("I think <answer>London</answer>, no, <answer> Paris </answer>", "Paris", 1),
    ("So the answer is **Paris**.", "Paris", 1),
    ("\\boxed{Paris}", "Paris", 1),
    # one of several
    ("NYC", ["New York City", "NYC"], 1),
    ("Boston", ["New York City", "NYC"], 0),
    ("anything", [], 0),
    # only articles: compared unchanged
    ("The", "the", 1),
    ("a", "the", 0),
    ("?", "!", 0),
    # another text
    ("Paris, Texas", "Paris", 0),
    ("<think>Paris</think>London", "Paris", 0),
    ("<think>Paris", "Paris", 0),
    ("-5", "5", 0),
    ("−5", "-5", 1),
    ("3.5", "35", 0),
    ("C", "C++", 0),
    ("", "Paris", 0),
    ("", "", 0),
]


@pytest.mark.parametrize(("completion", "answer", "reward"), TEXT)
def test_text_match(completion, answer, reward):
    assert text_match(completions=[completion], answer=[answer]) == [reward]


def test_text_f1_equals_a_hand_computed_value():
    """Two of three words and two of two: 2 * 2 / (3 + 2)."""
    assert text_f1(completions=["tall Eiffel Tower"], answer=["the Eiffel Tower"]) == [0.8]
    assert text_f1(completions=["a tower tower", "x", ""], answer=["tower", "tower", "tower"]) == [2 / 3, 0.0, 0.0]
    assert text_f1(completions=["NYC"], answer=[["New York", "NYC"]]) == [1.0]


PLACES = ["Paris", "London", "Rome", "Berlin"]
ARC = {"label": ["1", "2", "3"], "text": ["ice", "water", "steam"]}
CHOICES = [
    # only a label, in its usual forms
    ("B", "B", None, 1),
    ("(B)", "B", None, 1),
    ("b", "B", None, 1),
    ("**B.**", "B", None, 1),
    ("\\boxed{B}", "B", None, 1),
    ("\\boxed{\\text{(B)}}", "B", None, 1),
    ("<answer>B</answer>", "B", None, 1),
    ("Answer: B", "B", None, 1),
    ("The correct answer is (B).", "B", None, 1),
    ("The answer is B because A is wrong.", "B", None, 1),
    ("A looks right at first.\n\nThe answer is B", "B", None, 1),
    ("Rome is out, Paris too.\nB", "B", None, 1),
    ("Option B", "B", None, 1),
    ("<think>The answer is A</think>B", "B", None, 1),
    # a label with its text, or only the text
    ("B) London", "B", PLACES, 1),
    ("(B) London", "B", PLACES, 1),
    ("The answer is London.", "B", PLACES, 1),
    ("london", "B", PLACES, 1),
    # the correct answer as position, label or text
    ("B", 1, PLACES, 1),
    ("A", 0, PLACES, 1),
    ("B", "London", PLACES, 1),
    ("B", "(b)", PLACES, 1),
    ("2", "2", ARC, 1),
    ("The answer is water", "2", ARC, 1),
    # another one
    ("A", "B", None, 0),
    ("The answer is (B). No: the answer is (C).", "B", None, 0),
    ("A", 1, PLACES, 0),
    ("London", "A", PLACES, 0),
    ("3", "2", ARC, 0),
    # two labels, or a label with the text of another one
    ("A or B", "A", None, 0),
    ("(A) and (B)", "A", None, 0),
    ("A/B", "A", None, 0),
    ("A, B", "A", None, 0),
    ("B) Paris", "B", PLACES, 0),
    ("B) Paris", "A", PLACES, 0),
    # a word and not a label
    ("A dog", "A", None, 0),
    ("I don't know", "I", None, 0),
    ("The answer is a mystery", "A", None, 0),
    ("Because", "B", None, 0),
    # a label that is not offered, or nothing
    ("E", "B", PLACES, 0),
    ("", "B", None, 0),
    ("<think>B", "B", None, 0),
]


@pytest.mark.parametrize(("completion", "answer", "choices", "reward"), CHOICES)
def test_multiple_choice(completion, answer, choices, reward):
    assert multiple_choice(completions=[completion], answer=[answer], choices=[choices]) == [reward]


def test_unusable_choices_are_an_error():
    with pytest.raises(ValueError, match="'E' is not one of the choices A, B, C, D"):
        multiple_choice(completions=["A"], answer=["E"], choices=[PLACES])
    with pytest.raises(ValueError, match="choices is neither"):
        multiple_choice(completions=["A"], answer=["A"], choices=["ABCD"])


JSON = [
    ('{"a": 1}', 1),
    (" [1, 2] \n", 1),
    ('```json\n{"a": 1}\n```', 1),
    ("```\n[]\n```", 1),
    ('<think>{"no"</think>{"a": 1}', 1),
    # not JSON, with other text, or a mere value
    ("{'a': 1}", 0),
    ('{"a": 1,}', 0),
    ('{"a": NaN}', 0),
    ('Here: {"a": 1}', 0),
    ('{"a": 1} done', 0),
    ('```json\n{"a": 1}\n```\nand\n```json\n{}\n```', 0),
    ("5", 0),
    ('"text"', 0),
    ("", 0),
    ("[" * 100_000, 0),
    ("[" + "9" * 5000 + "]", 0),
]


@pytest.mark.parametrize(("completion", "reward"), JSON, ids=lambda value: str(value)[:20])
def test_json_format(completion, reward):
    assert json_format(completions=[completion]) == [reward]


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ('{"a": 1, "b": [true, null]}', {"b": [True, None], "a": 1}, 1),
        ('{"a": 1.0}', '{"a": 1}', 1),
        ("5", 5, 1),
        ('"yes"', "yes", 1),
        ('{"a": true}', {"a": 1}, 0),
        ("1", True, 0),
        ("[1, 2]", [2, 1], 0),
        ("[1]", [1, 1], 0),
        ('{"a": 1}', {"a": 1, "b": 2}, 0),
        ("yes", "yes", 0),
        ("", None, None),
    ],
)
def test_json_match(completion, answer, reward):
    assert json_match(completions=[completion], answer=[answer]) == [reward]


def test_json_fields():
    judge = json_fields({"name": "text", "age": "integer | null"})
    texts = [
        '{"name": "Ada", "age": 36}',
        '{"name": "Ada", "age": null, "more": 1}',
        '{"name": "Ada", "age": true}',
        '{"name": 5}',
        "[]",
    ]
    assert judge(completions=texts) == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert json_fields({"name": "text"}, only=True)(completions=texts[:1]) == [0.0]
    with pytest.raises(RewardError, match="json_fields: age is 'int'; choose one of text, number"):
        json_fields({"age": "int"})
    with pytest.raises(RewardError, match="give the fields and their kinds"):
        json_fields({})


def test_repetition_penalty_equals_a_hand_computed_value():
    """Five bigrams of "a b a b a b", two of them different: 3/5 are repeated."""
    judge = repetition_penalty(2)
    assert judge(completions=["a b A b a b", "a b c", "a", ""]) == [pytest.approx(-0.6), 0.0, 0.0, 0.0]
    tokens = repetition_penalty(1, over="tokens", name="echo")
    assert tokens(completion_ids=[[7, 7, 7, 8], [], [1, 2]]) == [-0.5, 0.0, 0.0]
    assert tokens.__name__ == "echo"
    for options in ({"size": 0}, {"over": "letters"}):
        with pytest.raises(RewardError, match="repetition_penalty: "):
            repetition_penalty(**options)


@pytest.mark.parametrize("judge", [text_match, text_f1, json_match, multiple_choice])
def test_no_answer_abstains_and_messages_are_scored_by_their_text(judge):
    message = [{"role": "assistant", "content": '"B"' if judge is json_match else "B"}]
    assert judge(completions=["x", message], answer=[None, "B"]) == [None, 1.0]


@pytest.mark.parametrize("module", ["verifiers.json_format", "verifiers.repetition"])
def test_the_examples_in_docstrings_run(module):
    result = doctest.testmod(importlib.import_module(f"gvpo.rewards.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
