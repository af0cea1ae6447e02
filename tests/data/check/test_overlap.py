"""Tests of containment against a search that compares all pairs of texts."""

import random
from collections import Counter

import pytest

from gvpo.data.check.overlap import Containment, counted, grams, jaccard


def texts(seed, count):
    """Return random texts of few words, some of which contain parts of others."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        text = [rng.choice("abcd") for _ in range(rng.randrange(0, 14))]
        if made and rng.random() < 0.5:
            other = rng.choice(made)
            start = rng.randrange(len(other) + 1)
            text = other[start : start + rng.randrange(len(other) + 1)] + text[:3]
        made.append(text)
    return [grams(text, 3) for text in made]


@pytest.mark.parametrize("share", [0.1, 0.34, 0.5, 2 / 3, 0.7, 0.99, 1.0])
def test_search_agrees_with_comparing_all_pairs(share):
    for seed in range(5):
        held, searched = texts(seed, 60), texts(100 + seed, 60)
        index = Containment(counted([*held, *searched]), share)
        assert [index.add(text) for text in held] == list(range(60))
        for text in searched:
            by_pairs = [(n, len(each & text) / len(each)) for n, each in enumerate(held) if each]
            assert index.search(text) == [(number, found) for number, found in by_pairs if found >= share]


def test_gram_frequencies_do_not_change_the_result():
    held, searched = texts(0, 40), texts(1, 40)
    informed, ignorant = Containment(counted(held), 0.5), Containment(Counter(), 0.5)
    for text in held:
        informed.add(text)
        ignorant.add(text)
    assert any(informed.search(text) for text in searched)
    assert all(informed.search(text) == ignorant.search(text) for text in searched)


def test_grams_match_hand_computed_values():
    assert grams(("a", "b", "c", "b"), 2) == {("a", "b"), ("b", "c"), ("c", "b")}
    assert grams(("a", "b"), 3) == {("a", "b")}
    assert grams((), 3) == frozenset()


def test_jaccard_matches_hand_computed_values():
    left, right = grams(("a", "b", "c"), 2), grams(("b", "c", "d"), 2)
    assert jaccard(left, right) == 1 / 3
    assert jaccard(left, left) == 1
    assert jaccard(frozenset(), frozenset()) == 0
