"""Tests of the feature store: features are computed once, stored completely and read in parts."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from gvpo.errors import DataError, RunError
from gvpo.probe.features import embed_all
from gvpo.probe.store import MAPPED, FeatureStore, key_of

PROMPTS = ["a", "b", "a", [{"role": "user", "content": "b"}], "a"]
TEXTS = ["1", "1", "2", "1", "1"]  # the last is the first again


class Counting:
    """Features that differ for each prompt and text, with a count of computations."""

    def __init__(self, width=3):
        self.seen, self.calls, self.width = [], [], width

    def __call__(self, prompts, texts):
        self.calls.append(len(texts))
        self.seen += list(zip(map(str, prompts), texts, strict=True))
        return [[len(str(prompt)), int(text), 0.1][: self.width] for prompt, text in zip(prompts, texts, strict=True)]


def stored(tmp_path, embed, prompts=PROMPTS, texts=TEXTS, name="way", **options):
    return embed_all(embed, prompts, texts, store=FeatureStore(tmp_path, name), **options)


def everything(features):
    return features[np.arange(features.shape[0])]


def test_each_text_is_computed_once_in_chunks_and_in_order(tmp_path):
    embed = Counting()
    features = stored(tmp_path, embed, chunk=3)
    assert embed.calls == [3, 1]
    assert features.shape == (5, 3)
    assert everything(features)[:, 1].tolist() == [1, 1, 2, 1, 1]
    assert features[np.array([4, 2])].tolist() == everything(features)[[4, 2]].tolist()
    assert everything(features).dtype == np.float32


def test_features_are_the_same_without_a_store(tmp_path):
    assert np.array_equal(embed_all(Counting(), PROMPTS, TEXTS, chunk=2), everything(stored(tmp_path, Counting())))


def test_stored_features_are_not_computed_again(tmp_path):
    stored(tmp_path, Counting(), PROMPTS[:2], TEXTS[:2])
    later, told = Counting(), []
    features = stored(tmp_path, later, progress=lambda done, total: told.append((done, total)))
    assert later.seen == [("a", "2"), (str(PROMPTS[3]), "1")]
    assert told == [(2, 2)]
    assert everything(features)[:, 0].tolist() == [1, 1, 1, len(str(PROMPTS[3])), 1]


def test_a_crash_loses_only_the_current_chunk(tmp_path):
    def dies(prompts, texts):
        if "2" in texts:
            raise KeyboardInterrupt
        return Counting()(prompts, texts)

    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path, dies, chunk=1)
    later = Counting()
    stored(tmp_path, later, chunk=1)
    assert later.seen == [("a", "2"), (str(PROMPTS[3]), "1")]


def test_other_sources_have_other_features(tmp_path):
    stored(tmp_path, Counting())
    other = Counting(width=2)
    assert stored(tmp_path, other, name="another").shape == (5, 2)
    assert other.calls == [4]


def test_two_processes_share_a_directory(tmp_path):
    """Neither process reads the other's new chunks; equal chunks are one file, and a later process finds all."""
    one, other = FeatureStore(tmp_path, "way"), FeatureStore(tmp_path, "way")
    embed_all(Counting(), PROMPTS, TEXTS, store=one)
    embed_all(Counting(), PROMPTS, TEXTS, store=other)
    embed_all(Counting(), ["new"], ["7"], store=other)
    later = Counting()
    assert len(list(tmp_path.rglob("chunk-*.npy"))) == 2
    assert stored(tmp_path, later, [*PROMPTS, "new"], [*TEXTS, "7"]).shape == (6, 3)
    assert later.calls == []


def test_error_names_a_corrupt_chunk(tmp_path):
    stored(tmp_path, Counting())
    (chunk,) = tmp_path.rglob("chunk-*.npy")
    chunk.write_bytes(chunk.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"chunk-\w+\.npy is corrupt; remove it"):
        FeatureStore(tmp_path, "way")
    chunk.write_bytes(b"")
    with pytest.raises(DataError, match="is corrupt"):
        FeatureStore(tmp_path, "way")
    np.save(chunk, np.zeros(3))
    with pytest.raises(DataError, match="is corrupt"):
        FeatureStore(tmp_path, "way")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted there")
def test_few_chunks_are_open_at_a_time(tmp_path):
    """Limit the mapped chunks, because each is an open file and a process can have only some hundreds."""
    count = MAPPED + 50
    before = len(list(Path("/proc/self/fd").iterdir()))
    features = stored(tmp_path, Counting(), ["a"] * count, [str(row) for row in range(count)], chunk=1)
    assert everything(features)[:, 1].tolist() == list(range(count))
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= MAPPED


def test_too_many_open_files_do_not_count_as_corruption(tmp_path, monkeypatch):
    stored(tmp_path, Counting())

    def refuse(*args, **options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(RunError, match=r"cannot read .*chunk-\w+\.npy: Too many open files"):
        FeatureStore(tmp_path, "way")


def test_a_directory_that_is_a_file_raises(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write"):
        FeatureStore(tmp_path / "file", "way")


def test_features_of_another_width_raise(tmp_path):
    stored(tmp_path, Counting())
    with pytest.raises(DataError, match="features have 2 numbers and those in"):
        stored(tmp_path, Counting(width=2), ["new"], ["1"])
    widths = iter((3, 2))
    with pytest.raises(DataError, match="of 2 numbers after some of 3"):
        embed_all(lambda prompts, texts: np.zeros((1, next(widths))), ["a", "b"], ["1", "1"], chunk=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0, 2.0], "shape .2,. for 2 texts"),
        ([[1.0]], "shape .1, 1. for 2 texts"),
        ([[], []], "shape .2, 0. for 2 texts"),
        ([[1.0], [np.nan]], "the features of '2' after 'q' are not finite"),
        ([[np.inf], [1.0]], "the features of '1' after 'p' are not finite"),
    ],
)
def test_error_explains_invalid_features(given, message):
    with pytest.raises(DataError, match=message):
        embed_all(lambda prompts, texts: given, ["p", "q"], ["1", "2"])


def test_an_empty_list_of_texts_raises():
    with pytest.raises(DataError, match="nothing to embed"):
        embed_all(Counting(), [], [])


def test_keys_distinguish_prompt_and_completion():
    pairs = [("ab", "c"), ("a", "bc"), ("", "abc"), ([{"role": "user", "content": "ab"}], "c")]
    assert len({key_of(*pair) for pair in pairs}) == len(pairs)
