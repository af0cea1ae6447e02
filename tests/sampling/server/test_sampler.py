"""Sampling from servers: rows, seeds, load, threads."""

import dataclasses
import threading
import time

import pytest

from gvpo import notices
from gvpo.errors import ConfigError, DataError, EngineError, GvpoWarning
from gvpo.sampling import Request, SamplingParams
from gvpo.sampling.seeds import row_seed
from gvpo.sampling.server.client import Servers
from tests.fakes import byte_tokenizer
from tests.sampling.server.fake_vllm import FakeVllm, serving, until
from tests.sampling.server.helpers import PARAMS, REQUESTS, expected, opened, tokens_of


def test_rows_have_the_tokens_that_their_seeds_fix_in_order() -> None:
    fake = FakeVllm()
    with serving(fake), opened(fake) as sampler:
        rows = sampler.sample(REQUESTS, PARAMS, seed=3, step=5)
    assert tokens_of(rows) == expected(REQUESTS, PARAMS, seed=3, step=5)
    row = rows[0][0]
    assert row.sampler_logprobs == [-token / 100 for token in row.tokens]
    assert (row.version, row.versions) == (None, None)
    assert {row.finish_reason for group in rows for row in group} == {"stop", "length"}
    tokenizer = byte_tokenizer()
    assert row.text == tokenizer.decode(row.tokens, skip_special_tokens=True)


def test_each_row_is_a_request_with_its_own_seed_and_explicit_parameters() -> None:
    fake = FakeVllm()
    with serving(fake), opened(fake) as sampler:
        sampler.sample(REQUESTS[:1], PARAMS, seed=0, step=1)
    bodies = fake.generated()
    assert {body["sampling_params"]["seed"] for body in bodies} == {row_seed(0, 1, "a", row) for row in range(4)}
    assert {body["sampling_params"]["n"] for body in bodies} == {1}
    assert {"top_p", "top_k", "min_p", "stop_token_ids"} <= bodies[0]["sampling_params"].keys()
    assert len({body["request_id"] for body in bodies}) == 4


def test_groups_are_yielded_when_they_are_finished() -> None:
    fake = FakeVllm()
    slow = threading.Event()

    def hook(fake: FakeVllm, path: str, body: dict) -> None:
        if body.get("token_ids") == list(REQUESTS[0].prompt):
            slow.wait(5)

    fake.hook = hook
    with serving(fake), opened(fake) as sampler:
        stream = sampler.stream(REQUESTS, PARAMS, seed=0, step=1)
        early = {next(stream)[0] for _ in REQUESTS[1:]}
        slow.set()
        last, rows = next(stream)
        assert next(stream, None) is None
    assert (early, last, len(rows)) == ({1, 2}, 0, 4)


def test_two_servers_share_the_load_and_give_the_same_rows_as_one() -> None:
    one, two = FakeVllm(), FakeVllm()
    one.holds = two.holds = True
    rows: list[list[list[int]]] = []
    with serving(one, two), opened(one, two, concurrency=3) as sampler:
        thread = threading.Thread(
            target=lambda: rows.extend(tokens_of(sampler.sample(REQUESTS, PARAMS, seed=3, step=5)))
        )
        thread.start()
        until(lambda: one.held == two.held == 3)
        assert (one.running, two.running) == (3, 3)  # no more than the limit
        one.go.set()
        two.go.set()
        thread.join()
    assert rows == expected(REQUESTS, PARAMS, seed=3, step=5)
    assert len(one.generated()) + len(two.generated()) == 12


def test_several_threads_sample_at_once() -> None:
    fake = FakeVllm(delay=0.001)
    found: dict[int, list] = {}
    with serving(fake), opened(fake) as sampler:

        def work(step: int) -> None:
            found[step] = sampler.sample(REQUESTS, PARAMS, seed=0, step=step)

        threads = [threading.Thread(target=work, args=(step,)) for step in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for step, rows in found.items():
        assert tokens_of(rows) == expected(REQUESTS, PARAMS, seed=0, step=step)
    assert fake.most_at_once > 4
    assert len(fake.generated()) == 4 * 12


def test_a_stream_that_is_dropped_cancels_its_requests() -> None:
    fake = FakeVllm(delay=0.005)
    with serving(fake), opened(fake, concurrency=2) as sampler:
        stream = sampler.stream(REQUESTS, PARAMS, seed=0, step=1)
        next(stream)
        stream.close()
        count = len(fake.generated())
        time.sleep(0.1)
        assert len(fake.generated()) <= count + 1
        assert len(sampler.sample(REQUESTS[:1], PARAMS, seed=0, step=2)[0]) == 4  # no server stays taken


def test_servers_whose_context_cuts_completions_are_a_warning_said_once() -> None:
    fake, said = FakeVllm(), []
    fake.context = 8
    with serving(fake), notices.handled(lambda message, _: said.append(message)), opened(fake) as sampler:
        sampler.check(REQUESTS, dataclasses.replace(PARAMS, max_tokens=5))
        assert not said
        for _ in range(2):
            sampler.check(REQUESTS, PARAMS)
    assert [message.partition(";")[0] for message in said] == [
        "the servers' context of 8 tokens cuts completions before sampling.max_tokens=6"
    ]


def test_the_context_of_the_servers_limits_completions() -> None:
    one, two = FakeVllm(), FakeVllm()
    one.context = 8
    with serving(one, two), opened(one, two) as sampler:
        with pytest.warns(GvpoWarning, match="cuts completions"):
            rows = sampler.sample(REQUESTS, SamplingParams(group_size=2, max_tokens=100), seed=0, step=1)
        assert max(len(row.tokens) for row in rows[0]) <= 8 - len(REQUESTS[0].prompt)
        with pytest.raises(DataError, match="leaves no room for a completion"):
            sampler.sample([Request("long", (5,) * 8)], PARAMS, seed=0, step=1)


def test_requests_that_cannot_be_sampled_are_refused_before_any_is_sent() -> None:
    fake = FakeVllm()
    with serving(fake), opened(fake) as sampler:
        with pytest.raises(DataError, match="same id"):
            sampler.sample([REQUESTS[0], REQUESTS[0]], PARAMS, seed=0, step=1)
        with pytest.raises(ConfigError, match="vLLM samples with 0"):
            sampler.sample(REQUESTS, SamplingParams(temperature=5.0), seed=0, step=1)
    assert not fake.generated()


def test_the_api_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "sk-secret")
    fake = FakeVllm()
    fake.hook = lambda fake, path, body: (401, {"error": "sk-secret is unknown"}, {}) if "generate" in path else None
    message = r"answered 401 .*\*\*\* is unknown.*server_api_key_env"
    with (
        serving(fake),
        opened(fake, api_key_env="A_KEY") as sampler,
        pytest.raises(EngineError, match=message) as caught,
    ):
        sampler.sample(REQUESTS, PARAMS, seed=0, step=1)
    assert "sk-secret" not in str(caught.value)
    assert set(fake.keys) == {"Bearer sk-secret"}


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ([], "needs servers; set sampling.server_urls"),
        (["localhost:8000"], "sampling.server_urls"),
        (["http://"], "sampling.server_urls"),
        (["http://[::1"], "not an address"),
        (["http://host:99999"], "not an address"),
        (["http://host:1?key=me:password"], "which a base address cannot have"),
        (["http://me:password@host:1"], "contains a password"),
        (["http://host:1", "http://host:1/"], "http://host:1 twice"),
        (["http://host:1", "http://host:1/v1"], "http://host:1 twice"),
    ],
)
def test_urls_that_cannot_work_are_refused(urls: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Servers(urls)
    assert "me:password" not in str(caught.value)


def test_a_key_that_is_not_set_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"\$A_KEY, which is not set"):
        Servers(["http://host:1"], "A_KEY")
