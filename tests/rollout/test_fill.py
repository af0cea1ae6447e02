"""Filling a groups file: in parts, resumed, and checked before it begins."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gvpo.errors import DataError, RewardError
from gvpo.rewards import RewardPool, exact_match
from gvpo.rollout import fill as module
from gvpo.rollout.collect import Rollout
from gvpo.rollout.fill import fill
from gvpo.rollout.group_file import GroupFile, records
from gvpo.sampling import SamplingParams
from gvpo.sampling.transformers import TransformersSampler
from gvpo.types import Completion, Group, Problem, Verdict
from tests.rollout.scripted import Scripted, asked
from tests.training.toy import encoded, model, share, tokenizer

NAMES = ["a", "b", "c", "d", "e"]
TWO = SamplingParams(group_size=2)


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    with RewardPool({"exact_match": exact_match}, workers=1) as pool:
        yield pool


def a_file(path: Path) -> GroupFile:
    file = GroupFile(path / "groups.jsonl")
    file.begin({}, resume=True)
    return file


def by_name(name: str, row: int) -> str:
    """Answer correctly in row 0; truncate row 1."""
    return name if row == 0 else "hm..."


def test_rows_have_everything_and_are_written_in_parts(tmp_path: Path, pool: RewardPool):
    file, sampler, parts = a_file(tmp_path), Scripted(by_name), []
    fill(file, asked(*NAMES), lambda: sampler, TWO, pool, at_once=2, watch=lambda rollout: parts.append(rollout))
    assert sampler.asked == [["a", "b"], ["c", "d"], ["e"]]
    assert [len(part.groups) for part in parts] == [2, 2, 1]
    first = file.rows()[0]
    assert first == {
        "answer": "a",
        "id": "a",
        "prompt": "a?",
        "completions": [[97], [104, 109, 46, 46, 46]],
        "texts": ["a", "hm..."],
        "rewards": [1.0, 0.0],
        "reward_parts": [{"exact_match": 1.0}, {"exact_match": 0.0}],
        "reasons": ["", ""],
        "finish_reasons": ["stop", "length"],
        "sources": ["live", "live"],
        "sampler_logprobs": [[-1.0], [-1.0] * 5],
    }


def test_it_resumes_where_it_stopped_and_a_finished_file_opens_no_sampler(tmp_path: Path, pool: RewardPool):
    class Stops(Scripted):
        def sample(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> list[list[Completion]]:
            if len(self.asked) == 2:
                raise KeyboardInterrupt
            return super().sample(requests, *args, **kwargs)

    file = a_file(tmp_path)
    with suppress(KeyboardInterrupt):
        fill(file, asked(*NAMES), lambda: Stops(by_name), TWO, pool, at_once=1)
    assert file.finished() == {"a", "b"}
    rest = Scripted(by_name)
    fill(file, asked(*NAMES), lambda: rest, TWO, pool, at_once=5)
    assert rest.asked == [["c", "d", "e"]]
    whole = a_file(tmp_path / "whole")
    fill(whole, asked(*NAMES), lambda: Scripted(by_name), TWO, pool)
    assert file.path.read_bytes() == whole.path.read_bytes()
    fill(file, asked(*NAMES), pytest.fail, TWO, pool)


class Streams(Scripted):
    """Yields its groups in reverse order, one per second, and is interrupted after some of them."""

    def __init__(self, clock: "Clock", *, most: int = 9) -> None:
        super().__init__(by_name)
        self.clock, self.most = clock, most

    def stream(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> Iterator[tuple[int, list[Completion]]]:
        found = self.sample(requests, *args, **kwargs)
        for place in reversed(range(len(requests))):
            if self.most == 0:
                raise KeyboardInterrupt
            self.most -= 1
            self.clock.now += 1.0
            yield place, found[place]


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_the_file_grows_as_groups_finish_and_a_resumed_file_is_the_same(
    tmp_path: Path, pool: RewardPool, monkeypatch: pytest.MonkeyPatch
):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    whole, file = a_file(tmp_path / "whole"), a_file(tmp_path)
    written: list[list[str]] = []
    fill(whole, asked(*NAMES), lambda: Streams(clock), TWO, pool, at_once=4, watch=lambda r: written.append(ids(r)))
    assert written == [["d", "c"], ["b", "a"], ["e"]]
    with suppress(KeyboardInterrupt):
        fill(file, asked(*NAMES), lambda: Streams(clock, most=3), TWO, pool, at_once=4)
    assert file.finished() == {"c", "d"}
    assert file.begun() == {"a", "b", "c", "d"}
    rest = Streams(clock)
    fill(file, asked(*NAMES), lambda: rest, TWO, pool, at_once=4)
    assert rest.asked == [["a", "b", "c", "d"], ["e"]]  # the same part again, for the same bits
    assert file.path.read_bytes() == whole.path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "groups.jsonl",
        "groups.settings.json",
    ]


def ids(rollout: Rollout) -> list[str]:
    return [group.id for group in rollout.groups]


def test_rewards_that_fail_in_the_first_groups_write_nothing_until_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def picky(completions: Any, answer: Any, **_: Any) -> list[float]:
        if answer != ["a", "a"]:
            raise OSError("no such service")
        return [1.0, 0.0]

    clock, file, written = Clock(), a_file(tmp_path), []
    monkeypatch.setattr(module, "time", clock)
    with RewardPool({"picky": picky}, workers=1) as pool:
        fill(file, asked(*NAMES), lambda: Streams(clock), TWO, pool, watch=lambda rollout: written.append(ids(rollout)))
        assert written == [["e", "d"], ["c", "b"], ["a"]]  # e, d, c and b fail, and are kept because a succeeds
        (tmp_path / "bad").mkdir()
        with pytest.raises(RewardError, match="no such service"):
            fill(a_file(tmp_path / "bad"), asked("b", "c", "d", "e"), lambda: Streams(clock), TWO, pool)
    assert (tmp_path / "bad" / "groups.jsonl").exists() is False


def test_splitting_the_work_does_not_change_the_samples(tmp_path: Path):
    params = SamplingParams(group_size=3, max_tokens=3)
    texts = []
    with RewardPool({"digits": share()}, workers=1) as pool:
        for size in (1, 4, 10):
            file = a_file(tmp_path / str(size))
            sampler = TransformersSampler(model(), tokenizer())
            fill(file, encoded(), lambda sampler=sampler: sampler, params, pool, seed=3, at_once=size)
            texts.append([row["texts"] for row in file.rows()])
    assert texts[0] == texts[1] == texts[2]
    assert len({tuple(row) for row in texts[0]}) > 1


def test_rewards_that_fail_on_everything_end_it_before_a_row_is_written(tmp_path: Path):
    def broken(completions: Any, **_: Any) -> list[float]:
        raise OSError("no such service")

    file = a_file(tmp_path)
    with RewardPool({"broken": broken}, workers=1) as pool, pytest.raises(RewardError, match="no such service"):
        fill(file, asked(*NAMES), lambda: Scripted(by_name), TWO, pool)
    assert file.rows() == []


def test_one_failure_is_a_row_without_a_reward_and_its_reason(tmp_path: Path):
    def odd(completions: Any, **_: Any) -> list[float | None]:
        return [float("nan") if text == "a" else None if text == "b" else 1.0 for text in completions]

    file = a_file(tmp_path)
    with RewardPool({"odd": odd}, workers=1) as pool:
        fill(file, asked("a", "b", "c"), lambda: Scripted(by_name), SamplingParams(group_size=1), pool)
    assert [row["rewards"] for row in file.rows()] == [[None], [None], [1.0]]
    assert [row["reasons"][0].partition(":")[0] for row in file.rows()] == ["nan", "abstained", ""]


def test_errors_are_found_before_sampling(tmp_path: Path, pool: RewardPool):
    file = a_file(tmp_path)
    with pytest.raises(DataError, match="two problems have the id 'a'"):
        fill(file, asked("a", "b", "a"), pytest.fail, TWO, pool)
    items = asked("a")
    bare = [type(items[0])(Problem("a?", "a"), (1,))]
    with pytest.raises(RewardError, match="needs a column 'answer'"):
        fill(file, bare, pytest.fail, TWO, pool)

    class Absent:
        def check_ready(self) -> None:
            raise RewardError("its package is not installed")

        def __call__(self, completions: Sequence[str], **_: Any) -> list[float]:
            return [0.0] * len(completions)

    with RewardPool({"absent": Absent()}, workers=1) as lacking, pytest.raises(RewardError, match="is not installed"):
        fill(file, items, pytest.fail, TWO, lacking)
    long = [type(items[0])(Problem("a?", "a", {"answer": "a"}), (1,) * 64)]
    policy = TransformersSampler(model(), tokenizer())  # its context is 64
    with pytest.raises(DataError, match="leaves no room for a completion"):
        fill(file, [*asked("b"), *long], lambda: policy, TWO, pool, at_once=1)
    assert file.rows() == []


def test_rows_have_texts_if_there_are_no_tokens_and_logprobs_are_optional():
    group = Group((1,), [Completion([], text="so", reward=1.0)], id="a")
    rollout = Rollout([group], [[Verdict(1.0)]], [Problem("?", "a")])
    (row,) = records(rollout, logprobs=False)
    assert row["completions"] == ["so"]
    assert "sampler_logprobs" not in row
