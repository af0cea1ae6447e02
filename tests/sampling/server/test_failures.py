"""Rows of servers that fail are sent again until an answer is right, or one error says what to do."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from safetensors.torch import save_file

from gvpo import notices, retries
from gvpo.errors import EngineError
from gvpo.sampling import SamplingParams
from gvpo.sampling.server import pool
from tests.sampling.server.fake_vllm import DROP, GENERATE, FakeVllm, Hook, Reply, serving, until
from tests.sampling.server.helpers import PARAMS, REQUESTS, expected, opened, tokens_of

BROKEN_JSON = b'{"choices": [{"token_ids": [5, 6'


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(pool, "QUIET", 0.01)
    monkeypatch.setattr(pool, "PROBE", 0.03)


def weights(value: float) -> list[tuple[str, torch.Tensor]]:
    return [("bias", torch.tensor(value))]


def rows_of(sampler: Any, step: int = 1) -> list[list[list[int]]]:
    return tokens_of(sampler.sample(REQUESTS, PARAMS, seed=0, step=step))


def right(step: int = 1, weights: float = 0.0) -> list[list[list[int]]]:
    return expected(REQUESTS, PARAMS, seed=0, step=step, weights=weights)


def answering(change: Callable[[dict[str, Any]], Any], times: int = 1) -> Hook:
    """Return a hook that changes the first answers to each row."""
    seen: Counter[int] = Counter()

    def hook(fake: FakeVllm, path: str, body: dict[str, Any]) -> Reply | None:
        if path != GENERATE or "request_id" not in body:
            return None
        seed = body["sampling_params"]["seed"]
        seen[seed] += 1
        if seen[seed] > times:
            return None
        status, answer, headers = fake.do_inference_v1_generate(body)
        changed = change(answer)
        return changed if isinstance(changed, tuple) else (status, changed, headers)

    return hook


def choice(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    """Return a change of fields of the only choice; functions get the old value."""

    def change(answer: dict[str, Any]) -> Any:
        found = answer["choices"][0]
        new = {name: value(found[name]) if callable(value) else value for name, value in fields.items()}
        return {**answer, "choices": [{**found, **new}]}

    return change


def logprob(value: float | None) -> Callable[[dict[str, Any]], Any]:
    return lambda content: {"content": [*content["content"][:-1], {**content["content"][-1], "logprob": value}]}


UNREADABLE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "malformed JSON": lambda answer: BROKEN_JSON,
    "empty": lambda answer: b"",
    "a list": lambda answer: [answer],
    "no choice": lambda answer: {**answer, "choices": []},
    "two choices": lambda answer: {**answer, "choices": answer["choices"] * 2},
    "the answer to another request": lambda answer: {**answer, "request_id": "generate-tokens-gvpo-1000000"},
    "no log-probs": choice(logprobs=None),
    "a log-prob too few": choice(logprobs=lambda old: {"content": old["content"][:-1]}),
    "log-probs of other tokens": choice(logprobs=lambda old: {"content": [{"token_id": 0, "logprob": -1.0}]}),
    "nan": choice(logprobs=logprob(float("nan"))),
    "null": choice(logprobs=logprob(None)),
    "the log-prob that vLLM writes for nan": choice(logprobs=logprob(-9999.0)),
    "tokens outside the vocabulary": choice(
        token_ids=[99999], logprobs={"content": [{"token_id": 99999, "logprob": -1.0}]}
    ),
    "a negative token": choice(token_ids=[-1], logprobs={"content": [{"token_id": -1, "logprob": -1.0}]}),
    "tokens as text": choice(token_ids=["5"], logprobs={"content": [{"token_id": "5", "logprob": -1.0}]}),
    "no tokens": choice(token_ids=[], logprobs={"content": []}),
    "partial tokens that claim to be whole": choice(
        token_ids=[5, 6], logprobs={"content": [{"token_id": t, "logprob": -1.0} for t in (5, 6)]}
    ),
    "an unknown reason": choice(finish_reason="repetition"),
    "no reason": choice(finish_reason=None),
    "no versions of weights": choice(weight_versions=None),
    "aborted": choice(finish_reason="abort"),
    "aborted before the first token": choice(finish_reason="abort", token_ids=[], logprobs={"content": []}),
    "status 500": lambda answer: (500, {"error": "EngineCore encountered an issue."}, {}),
    "status 502": lambda answer: (502, b"bad gateway", {}),
    "no answer": lambda answer: (DROP, b"", {}),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_answer_that_cannot_be_used_is_asked_for_again(kind: str, tmp_path: Path) -> None:
    fake = FakeVllm()
    with serving(fake), opened(fake, transfer_dir=tmp_path) as sampler:
        sampler.update(weights(1.0), 3)
        fake.hook = answering(UNREADABLE[kind])
        rows = sampler.sample(REQUESTS[:1], PARAMS, seed=0, step=1)
    assert tokens_of(rows) == right(weights=1.0)[:1]
    assert {(row.version, row.finish_reason == "abort") for row in rows[0]} == {(3, False)}
    assert len(fake.generated()) >= 8  # each of the 4 rows was sent again


def test_answers_that_can_never_be_used_end_with_an_error_that_quotes_the_reason() -> None:
    fake = FakeVllm()
    fake.hook = answering(choice(logprobs=logprob(float("nan"))), times=1000)
    with (
        serving(fake),
        opened(fake) as sampler,
        pytest.raises(EngineError, match=r"http://127.0.0.1:\d+ .*4 times.*log-prob that is not finite"),
    ):
        rows_of(sampler)


def test_rows_that_are_always_aborted_are_returned_as_fragments_at_the_deadline() -> None:
    fake = FakeVllm()
    fake.hook = answering(choice(finish_reason="abort"), times=10**6)
    with serving(fake), opened(fake, deadline=0.3) as sampler:
        ((row,),) = sampler.sample(REQUESTS[:1], SamplingParams(group_size=1, max_tokens=6), seed=0, step=1)
    assert row.finish_reason == "abort"
    assert len(fake.generated()) > 2


@pytest.mark.parametrize(
    ("status", "said", "message"),
    [
        (400, "Token id 1000000 is out of vocabulary", r"answered 400 .*out of vocabulary.*serves the model"),
        (403, "Scale-out endpoints are disabled. Restart vllm serve", "--enable-scale-out"),
        (404, "Not Found", "not a vLLM server"),
        (422, "Field required", r"answered 422 .*Field required"),
    ],
)
def test_a_request_that_is_refused_is_an_error_at_once(status: int, said: str, message: str) -> None:
    fake = FakeVllm()
    fake.hook = lambda _, path, body: (status, {"error": {"message": said}}, {}) if path == GENERATE else None
    with (
        serving(fake),
        opened(fake) as sampler,
        pytest.raises(EngineError, match=message),
    ):
        sampler.sample(REQUESTS[:1], SamplingParams(group_size=1, max_tokens=8), seed=0, step=1)
    assert len(fake.generated()) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_rests_as_long_as_it_asks_and_others_work(status: int) -> None:
    busy, free = FakeVllm(), FakeVllm()
    times: list[float] = []

    def hook(fake: FakeVllm, path: str, body: dict[str, Any]) -> Reply | None:
        if path != GENERATE:
            return None
        times.append(time.monotonic())
        return (status, {"error": "too many"}, {"Retry-After": "0.3"}) if len(times) == 1 else None

    busy.hook = hook
    with serving(busy, free), opened(busy, free, concurrency=1) as sampler:
        assert rows_of(sampler) == right()
        until(lambda: rows_of(sampler, 2) == right(2) and len(times) > 1)
    assert times[1] - times[0] >= 0.3
    assert len(free.generated()) > 6


def test_a_server_that_answers_late_is_asked_once_per_row() -> None:
    fake = FakeVllm()

    def hook(fake: FakeVllm, path: str, body: dict[str, Any]) -> None:
        if "request_id" in body:
            time.sleep(0.25)  # longer than the time after which a probe is sent

    fake.hook = hook
    with serving(fake), opened(fake, deadline=10.0) as sampler:
        assert rows_of(sampler) == right()
    assert len(fake.generated()) == 12
    assert len([path for path, body in fake.calls if path == GENERATE]) > 12  # with probes


def test_a_server_that_stalls_while_health_says_200_loses_its_rows_to_another() -> None:
    stalls, works = FakeVllm(), FakeVllm()
    with serving(stalls, works), opened(stalls, works, deadline=10.0) as sampler:
        stalls.stalled.set()
        assert httpx2.get(f"{stalls.url}/health").status_code == 200
        assert rows_of(sampler) == right()
        lost = len(stalls.generated())
        assert lost >= 4
        assert rows_of(sampler, 2) == right(2)
        assert len(stalls.generated()) == lost  # it gets no rows before it answers a probe
        stalls.stalled.clear()
        until(lambda: rows_of(sampler, 3) == right(3) and len(stalls.generated()) > lost)


def test_a_stall_of_the_only_server_that_ends_before_the_deadline_loses_nothing() -> None:
    fake = FakeVllm()
    with serving(fake), opened(fake, deadline=10.0) as sampler:
        fake.stalled.set()
        threading.Timer(0.5, fake.stalled.clear).start()
        assert rows_of(sampler) == right()


def test_a_stall_of_all_servers_is_an_error_that_names_them() -> None:
    one, two = FakeVllm(), FakeVllm()
    with serving(one, two) as urls, opened(one, two, deadline=0.4) as sampler:
        one.stalled.set()
        two.stalled.set()
        with pytest.raises(EngineError, match=r"--resume") as caught:
            rows_of(sampler)
    assert all(url in str(caught.value) for url in urls)


def test_servers_that_are_all_down_are_an_error_that_names_them_after_the_deadline() -> None:
    one, two = FakeVllm(), FakeVllm()
    with serving(one, two) as urls, opened(one, two, deadline=0.4) as sampler:
        one.kill()
        two.kill()
        with pytest.raises(EngineError, match=r"0.4 s.*cannot be reached.*--resume") as caught:
            rows_of(sampler)
        with pytest.raises(EngineError, match="cannot be reached"):
            rows_of(sampler)
    assert all(url in str(caught.value) for url in urls)


def test_one_server_that_is_down_is_not_missed_but_noticed() -> None:
    one, two = FakeVllm(), FakeVllm()
    said: list[str] = []
    with serving(one, two), opened(one, two) as sampler, notices.handled(lambda message, _: said.append(message)):
        one.kill()
        assert rows_of(sampler) == right()
    assert any(f"{one.url} is not used until it answers with the right weights" in message for message in said)


def test_closing_a_sampler_ends_what_other_threads_sample() -> None:
    fake = FakeVllm()
    with serving(fake), opened(fake) as sampler:
        failures: list[str] = []

        def sample() -> None:
            with pytest.raises(EngineError, match="was closed") as caught:
                rows_of(sampler)
            failures.append(str(caught.value))

        sampling, _ = fake.hold(1, sample)
        sampler.close()
        sampling.join(5)
        assert failures
        fake.go.set()


def test_a_server_that_is_killed_and_restarted_gets_the_weights_before_any_row(tmp_path: Path) -> None:
    fake = FakeVllm()
    with serving(fake), opened(fake, transfer_dir=tmp_path) as sampler:
        sampler.update(weights(1.0), 6)
        unfinished = sum(len(tokens) > 1 for group in right(weights=1.0) for tokens in group)
        sampling, rows = fake.hold(unfinished, lambda: sampler.sample(REQUESTS, PARAMS, seed=0, step=1))
        fake.kill()
        fake.go.set()
        fake.holds = False
        fake.calls.clear()
        fake.start()
        sampling.join()
    assert tokens_of(rows[0]) == right(weights=1.0)
    assert {row.version for group in rows[0] for row in group} == {6}
    paths = [path for path, body in fake.calls if path != GENERATE or "request_id" in body]
    assert GENERATE not in paths[: paths.index("/resume")]


def test_a_restart_that_no_request_noticed_is_found_in_the_answers(tmp_path: Path) -> None:
    fake = FakeVllm()
    with serving(fake), opened(fake, transfer_dir=tmp_path) as sampler:
        sampler.update(weights(1.0), 0)
        fake.label, fake.path = "default", None
        fake.model.load(None)
        assert rows_of(sampler) == right(weights=1.0)


def test_weights_of_an_older_session_with_the_same_step_are_not_accepted(tmp_path: Path) -> None:
    fake = FakeVllm()
    with serving(fake), opened(fake, transfer_dir=tmp_path) as earlier, opened(fake, transfer_dir=tmp_path) as sampler:
        sampler.update(weights(1.0), 5)
        earlier.update(weights(2.0), 5)
        assert rows_of(sampler) == right(weights=1.0)


def test_a_server_that_missed_an_update_is_not_used_before_it_has_it(tmp_path: Path) -> None:
    misses, works = FakeVllm(), FakeVllm()
    with serving(misses, works), opened(misses, works, transfer_dir=tmp_path) as sampler:
        sampler.update(weights(1.0), 0)
        misses.hook = lambda _, path, body: (DROP, b"", {})
        sampler.update(weights(2.0), 1)
        assert rows_of(sampler) == right(weights=2.0)
        misses.hook = None
        until(lambda: rows_of(sampler) == right(weights=2.0) and misses.label == works.label)
        assert rows_of(sampler, 2) == right(2, weights=2.0)


def test_a_stall_in_an_update_costs_no_rows(tmp_path: Path) -> None:
    stalls, works = FakeVllm(), FakeVllm()
    with serving(stalls, works), opened(stalls, works, transfer_dir=tmp_path, deadline=10.0) as sampler:
        sampler.update(weights(1.0), 0)
        sampling, rows = stalls.hold(2, lambda: sampler.sample(REQUESTS, PARAMS, seed=0, step=1))
        updating = threading.Thread(target=sampler.update, args=(weights(2.0), 1))
        updating.start()
        until(lambda: stalls.pausing == "wait")
        sampling.join()  # the other server has sampled all rows, while this one never ends
        stalls.go.set()
        updating.join()
        assert rows_of(sampler, 2) == right(2, weights=2.0)
    for place, group in enumerate(rows[0]):
        for row, completion in enumerate(group):
            assert list(completion.tokens) == right(weights=completion.version + 1.0)[place][row]


def test_an_update_that_reaches_no_server_is_an_error_after_the_deadline(tmp_path: Path) -> None:
    fake = FakeVllm()
    with serving(fake), opened(fake, transfer_dir=tmp_path, deadline=0.3) as sampler:
        fake.kill()
        with pytest.raises(EngineError, match=r"cannot be reached.*--resume"):
            sampler.update(weights(1.0), 0)


def test_an_update_waits_for_a_server_that_comes_back(tmp_path: Path) -> None:
    fake = FakeVllm()
    with serving(fake), opened(fake, transfer_dir=tmp_path) as sampler:
        fake.kill()
        threading.Timer(0.1, fake.start).start()
        sampler.update(weights(1.0), 0)
        assert rows_of(sampler) == right(weights=1.0)


def test_a_failure_in_the_middle_of_an_update_is_repeated(tmp_path: Path) -> None:
    fake, dropped = FakeVllm(), []

    def hook(fake: FakeVllm, path: str, body: dict[str, Any]) -> Reply | None:
        if path in dropped or not path.startswith(("/update", "/finish", "/reset", "/resume")):
            return None
        dropped.append(path)
        return DROP, b"", {}

    fake.hook = hook
    with serving(fake), opened(fake, transfer_dir=tmp_path) as sampler:
        sampler.update(weights(1.0), 0)
        assert rows_of(sampler) == right(weights=1.0)
    assert dropped == ["/update_weights", "/finish_weight_update", "/reset_prefix_cache", "/resume"]


def test_a_restarted_server_gets_the_adapter_again(tmp_path: Path) -> None:
    fake = FakeVllm()
    save_file({"bias": torch.tensor(1.0)}, tmp_path / "adapter_model.safetensors")
    with serving(fake), opened(fake) as sampler:
        sampler.update_adapter(tmp_path, 2)
        fake.kill()
        fake.start()
        rows = sampler.sample(REQUESTS, PARAMS, seed=0, step=1)
    assert tokens_of(rows) == right(weights=1.0)
    assert {row.version for group in rows for row in group} == {2}


def test_servers_with_different_weights_of_their_own_are_an_error() -> None:
    one, two = FakeVllm(), FakeVllm()
    with serving(one, two), opened(one, two, concurrency=1) as sampler:
        two.label = "step-40"
        with pytest.raises(EngineError, match=r"some answers come from the weights '.*restart all servers"):
            rows_of(sampler)


def test_nothing_is_lost_or_sampled_twice_when_everything_fails_now_and_then(tmp_path: Path) -> None:
    """Real threads sample from two servers that fail at random, and that get new weights meanwhile."""
    noise = random.Random(0)
    kinds = list(UNREADABLE.values())

    def hook(fake: FakeVllm, path: str, body: dict[str, Any]) -> Reply | None:
        if path != GENERATE:
            return (DROP, b"", {}) if noise.random() < 0.02 else None
        if noise.random() > 0.15:
            return None
        status, answer, headers = fake.do_inference_v1_generate(body)
        if status != 200:
            return None
        changed = noise.choice(kinds)(answer)
        return changed if isinstance(changed, tuple) else (status, changed, headers)

    one, two = FakeVllm(), FakeVllm()
    found: dict[int, Any] = {}
    with serving(one, two), opened(one, two, transfer_dir=tmp_path, deadline=30.0, concurrency=8) as sampler:
        sampler.update(weights(0.0), 0)
        one.hook = two.hook = hook
        threads = [
            threading.Thread(target=lambda step=step: found.update({step: list(stream_of(sampler, step))}))
            for step in range(1, 5)
        ]
        for thread in threads:
            thread.start()
        for version in range(1, 4):
            sampler.update(weights(float(version)), version)
        for thread in threads:
            thread.join()
    for step in range(1, 5):
        groups = dict(found[step])
        assert len(found[step]) == len(groups) == 3  # each group once
        for place, rows in groups.items():
            for row, completion in enumerate(rows):
                value = float(completion.version)
                assert list(completion.tokens) == right(step, value)[place][row]


def stream_of(sampler: Any, step: int) -> Iterator[tuple[int, Any]]:
    return sampler.stream(REQUESTS, PARAMS, seed=0, step=step)
