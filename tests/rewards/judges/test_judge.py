"""A language model as a judge, over HTTP to a real server on this machine."""

import asyncio
import socket
import threading
import time

import pytest

from gvpo import retries
from gvpo.errors import RewardError
from gvpo.rewards import RewardBatch, RewardPool, judge, load
from gvpo.rewards.judges.cache import RequestCache
from gvpo.rewards.judges.judge import fill, prompt_text
from tests.rewards.judges.judge_server import dripping, says, serving, slowly

KEY = "sk-secret-1234"
COMPRESSED = "http: answered in a compressed form that was not requested"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)


def by_length(number, body):
    """Give one point per letter of the answer."""
    completion = body["messages"][-1]["content"].rpartition("<answer>\n")[2].partition("\n</answer>")[0]
    return says(f"It has some letters.\nScore: {len(completion)}")


def ask(server, *texts, prompt="p", **options):
    made = judge(server.url, "m", **{"attempts": 3, **options})
    return made.verdicts(prompts=[prompt] * len(texts), completions=list(texts))


def rewards(verdicts):
    return [verdict.reward for verdict in verdicts]


# requests


def test_the_request_and_the_reward():
    with serving(by_length) as server:
        made = judge(server.url, "model-a", system="Be strict.", template="<answer>\n{completion}\n</answer>{prompt}")
        chat = [{"role": "user", "content": "Why?"}]
        assert made(prompts=[chat, chat], completions=["abc", [{"role": "assistant", "content": "abcde"}]]) == [
            0.3,
            0.5,
        ]
    body = next(body for body in server.bodies if "abcde" in str(body))
    assert body["path"] == "/v1/chat/completions"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("model-a", 0, 512)
    assert body["messages"] == [
        {"role": "system", "content": "Be strict."},
        {"role": "user", "content": "<answer>\nabcde\n</answer>user: Why?"},
    ]
    assert "Authorization" not in server.headers[0]


def test_templates_take_columns_once_and_leave_other_braces():
    values = {"completion": "{answer} {x}", "answer": 42, "prompt": "p"}
    assert fill('{completion} is {answer}? {"score": 1}', values) == '{answer} {x} is 42? {"score": 1}'
    assert fill("{completion}", {"completion": "\ud800"}) == "?"
    with pytest.raises(RewardError, match=r"names \{anwser\}, but only answer, completion, prompt exist"):
        fill("{anwser}", values)
    assert (
        prompt_text([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        == "user: a\n\nassistant: b"
    )


def test_a_column_that_no_group_has_is_found_before_any_request():
    with serving(by_length) as server:
        made = judge(server.url, "m", template="{completion} {answer}")
        with RewardPool({"judge": made}) as pool, pytest.raises(RewardError, match="'judge' needs a column 'answer'"):
            pool.require_columns([RewardBatch("p", ["a"])])
    assert server.bodies == []


# scores


@pytest.mark.parametrize(
    ("text", "options", "reward"),
    [
        ("Score: 7", {}, 0.7),
        ("Score: 2? No.\n**Score:** 10", {}, 1.0),
        ("score = 0", {}, 0.0),
        ("Score: 3.5/10", {}, 0.35),
        ("Rating [[4]]", {"pattern": r"\[\[(\d)\]\]", "lowest": 1, "highest": 5}, 0.75),
        ('{"why": "good", "score": 8}', {"key": "score"}, 0.8),
        ('```json\n{"score": "8"}\n```', {"key": "score"}, 0.8),
        ('I say {"score": 8}!', {"key": "score"}, 0.8),
        # no score, or one outside the scale
        ("Very good.", {}, None),
        ("Score: 11", {}, None),
        ("Score: -1", {}, None),
        ("Score: ten", {}, None),
        ('{"score": true}', {"key": "score"}, None),
        ('{"score": null}', {"key": "score"}, None),
        ('{"points": 8}', {"key": "score"}, None),
        ("8", {"key": "score"}, None),
        ("", {}, None),
        # a number is read completely, or not at all
        ("Score: 1e9", {}, None),
        ("Score: 1E-1", {}, 0.01),
        ("Score: 1e999999999", {}, None),
        ("Score: 1,000", {}, None),
        ("Score: 0x10", {}, None),
        ("Score: 8.", {}, 0.8),
        ("Score: 8, because 3 of 4 are right", {}, 0.8),
        ("Score: 10/10", {}, 1.0),
        ("Score: \u22125", {}, None),  # a typographic minus
        ("Score: nan", {}, None),
        ("Score: inf", {}, None),
        ("Score: " + "9" * 5000, {}, None),
        ('{"score": NaN}', {"key": "score"}, None),
        ('{"score": "nan"}', {"key": "score"}, None),
        ('{"score": 1e400}', {"key": "score"}, None),
        ('{"score": ' + "9" * 400 + "}", {"key": "score"}, None),
        ('{"score": ' + "9" * 5000 + "}", {"key": "score"}, None),
        ('{"score": [7]}', {"key": "score"}, None),
        ('{"score": {"score": 7}}', {"key": "score"}, None),
        # nested too deeply for a parser
        ("[" * 200_000, {"key": "score"}, None),
        ('{"score":' * 100_000, {"key": "score"}, None),
        ("[" * 200_000 + "Score: 7", {}, 0.7),
    ],
    ids=lambda value: str(value)[:30],
)
def test_scores(text, options, reward):
    assert judge("http://localhost/v1", "m", **options).scale.reward(text) == (
        None if reward is None else pytest.approx(reward)
    )


# failures


@pytest.mark.parametrize("status", [429, 500, 503])
def test_temporary_failures_are_retried(status):
    with serving(lambda number, body: says("Score: 5") if number == 2 else (status, "busy", {})) as server:
        assert rewards(ask(server, "a")) == [0.5]
    assert len(server.bodies) == 3


def test_the_delay_that_the_server_requests_is_kept():
    waits = iter([says("", 429, **{"Retry-After": "0.3"}), says("Score: 5")])
    with serving(lambda number, body: next(waits)) as server:
        (late,) = ask(server, "a", deadline=0.2)
        assert late.reason.startswith("timeout: gave no answer in 0.2 s; last: answered 429")


@pytest.mark.parametrize(
    ("reply", "asked", "reason"),
    [
        ((500, "oh\nno", {}), 3, "http: answered 500 (oh no) (3 attempts)"),
        ((400, "bad model", {}), 1, "http: answered 400 (bad model)"),
        ((401, f"no such key: {KEY}", {}), 1, "http: answered 401 (no such key: ***)"),
        ((302, "", {"Location": "/v2"}), 1, "http: answered 302 ()"),
        (says("I like it."), 3, "unreadable: gave no score (I like it.) (3 attempts)"),
        ((200, "<html>", {}), 3, "unreadable: gave no score (<html>) (3 attempts)"),
        ((200, {"choices": []}, {}), 3, 'unreadable: gave no score ({"choices": []}) (3 attempts)'),
        ((200, {"choices": {"0": 1}}, {}), 3, 'unreadable: gave no score ({"choices": {"0": 1}}) (3 attempts)'),
        ((200, "[" * 200_000, {}), 3, f"unreadable: gave no score ({'[' * 200}) (3 attempts)"),
        ((200, b"\xff\xfe{", {}), 3, "unreadable: gave no score (\ufffd\ufffd{) (3 attempts)"),
        ((200, b"\x1f\x8b", {"Content-Encoding": "gzip"}), 3, f"{COMPRESSED} (3 attempts)"),
        ((200, "x" * (5 << 20), {}), 3, "http: answered with more than 4 MiB (3 attempts)"),
        ((307, "", {"Location": "/v1/chat/completions"}), 1, "http: answered 307 ()"),
        ((429, "", {"Retry-After": "nan"}), 3, "http: answered 429 () (3 attempts)"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_row_without_a_score_has_a_reason_and_no_reward(monkeypatch, reply, asked, reason):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(lambda number, body: reply) as server:
        (verdict,) = ask(server, "a", api_key_env="JUDGE_KEY")
        assert (verdict.reward, verdict.reason) == (None, reason)
    assert len(server.bodies) == asked
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_a_missing_server_gives_a_reason():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        (verdict,) = judge(url, "m", attempts=2).verdicts(prompts=["p"], completions=["a"])
    assert verdict.reason.startswith("http: cannot be reached (ConnectError")
    assert verdict.reason.endswith("(2 attempts)")


def test_a_deadline_ends_a_slow_answer_and_the_others_have_theirs():
    def answer(number, body):
        return slowly(2.0 if "slow" in str(body) else 0.0, says("Score: 5"))(number, body)

    with serving(answer) as server:
        slow, quick = ask(server, "slow", "quick", deadline=0.4)
    assert (slow.reward, slow.reason) == (None, "timeout: gave no answer in 0.4 s")
    assert quick.reward == 0.5


def slow_parts():
    while True:
        time.sleep(0.05)
        yield b" "


def endless_parts():
    while True:
        yield b" " * (1 << 16)


def test_a_body_that_drips_ends_at_the_deadline_of_the_row():
    with dripping(slow_parts) as url:
        started = time.monotonic()
        (verdict,) = judge(url, "m", deadline=0.5).verdicts(prompts=["p"], completions=["a"])
        assert time.monotonic() - started < 5
    assert (verdict.reward, verdict.reason) == (None, "timeout: gave no answer in 0.5 s")


def test_a_body_without_end_is_not_read_to_its_end():
    with dripping(endless_parts) as url:
        (verdict,) = judge(url, "m", attempts=2, deadline=30.0).verdicts(prompts=["p"], completions=["a"])
    assert (verdict.reward, verdict.reason) == (None, "http: answered with more than 4 MiB (2 attempts)")


def test_after_eight_failures_and_no_success_the_rest_is_skipped():
    with serving(lambda number, body: (404, "no", {})) as server:
        verdicts = ask(server, *map(str, range(20)), concurrency=2)
    assert 8 <= len(server.bodies) <= 9
    assert verdicts[-1].reason == "http: failed on 8 rows and was not called again"
    assert all(verdict.reward is None and verdict.reason for verdict in verdicts)


# concurrency and cache


def test_requests_run_concurrently_up_to_the_limit():
    meeting = threading.Barrier(3, timeout=20)

    def answer(number, body):
        meeting.wait()
        return says("Score: 5")

    with serving(answer) as server:
        assert rewards(ask(server, *"abcdef", concurrency=3)) == [0.5] * 6
    assert server.most_at_once == 3


def test_equal_requests_are_made_once_and_the_cache_outlives_the_process(tmp_path):
    file = tmp_path / "deep/judge.sqlite"
    with serving(by_length) as server:
        assert rewards(ask(server, "a", "bb", "a", cache=file)) == [0.1, 0.2, 0.1]
        assert len(server.bodies) == 2
        assert rewards(ask(server, "bb", "ccc", cache=file)) == [0.2, 0.3]
        assert len(server.bodies) == 3
        ask(server, "bb", cache=file, parameters={"temperature": 1})
        ask(server, "bb", cache=file, prompt="another")
        assert len(server.bodies) == 5
        # the cache stores texts, not scores: another scale needs no request
        assert rewards(ask(server, "bb", cache=file, highest=4)) == [0.5]
        assert len(server.bodies) == 5


def test_unreadable_answers_are_not_cached(tmp_path):
    replies = iter(["no score", "no score", "no score", "Score: 5"])
    with serving(lambda number, body: says(next(replies))) as server:
        assert rewards(ask(server, "a", cache=tmp_path / "c")) == [None]
        assert rewards(ask(server, "a", cache=tmp_path / "c")) == [0.5]


def test_the_key_is_not_stored_anywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(by_length) as server:
        made = judge(server.url, "m", api_key_env="JUDGE_KEY", cache=tmp_path / "c")
        assert made(prompts=["p"], completions=["a"]) == [0.1]
    assert KEY not in repr(made)
    assert KEY not in str(vars(made))
    assert KEY.encode() not in (tmp_path / "c").read_bytes()


def test_a_corrupt_cache_is_a_one_line_error(tmp_path):
    (tmp_path / "c").write_text("not a database, whatever it was " * 40)
    with pytest.raises(RewardError, match="as a cache: file is not a database; remove it or name another file"):
        RequestCache(tmp_path / "c")
    (tmp_path / "file").write_text("")
    with pytest.raises(RewardError, match=r"cannot create .*file/x for the cache"):
        RequestCache(tmp_path / "file/x/c")


def test_it_works_inside_a_running_event_loop():
    async def notebook():
        return ask(server, "abc")

    with serving(by_length) as server:
        assert rewards(asyncio.run(notebook())) == [0.3]


# in a pool


def test_in_a_pool_it_works_with_other_rewards_and_starts_no_worker():
    def answer(number, body):
        return says("no score") if "bad" in str(body) else by_length(number, body)

    def length(completions, **_):
        return [float(len(text)) for text in completions]

    with serving(answer) as server:
        made = judge(server.url, "m", attempts=1, template="<answer>\n{completion}\n</answer> {answer}")
        functions = {"judge": made, "length": length, "logged": made}
        batches = [RewardBatch("p", ["a", "bad"], {"answer": 1}), RewardBatch("p", ["ccc"]), RewardBatch("p", [])]
        with RewardPool(functions, {"judge": 10.0, "length": 1.0, "logged": 0.0}, workers=1) as pool:
            (first, second), (third,), none = pool.score(batches)
            assert pool.first_failure.reason == "unreadable: judge gave no score (no score) (1 attempts)"
        assert (first.reward, first.parts) == (2.0, {"judge": 0.1, "length": 1.0, "logged": 0.1})
        assert (second.reward, second.reason) == (None, "unreadable: judge gave no score (no score) (1 attempts)")
        assert (third.reward, third.reason) == (
            None,
            "missing column: judge needs 'answer', which the data does not have",
        )
        assert none == []


def test_an_exception_of_a_local_reward_gives_a_reason():
    class Broken:
        def __call__(self, **_):
            return []

        def verdicts(self, completions, **_):
            raise ZeroDivisionError("by zero")

    with RewardPool({"broken": Broken()}) as pool:
        (verdicts,) = pool.score([RewardBatch("p", ["a", "b"])])
    assert [v.reason for v in verdicts] == ["exception: broken raised ZeroDivisionError: by zero"] * 2


# settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost:8000"}, "the judge's url is 'localhost:8000'; give a base such as"),
        ({"url": "http://localhost:99999"}, "the judge's url is 'http://localhost:99999'; give a base such as"),
        ({"template": "Rate it."}, r"the judge's template has no \{completion\}"),
        ({"pattern": "("}, "is not a regular expression"),
        ({"pattern": "score"}, "has 0 groups; it needs exactly one, the score"),
        ({"lowest": 1, "highest": 1}, "scores go from 1 to 1; put the lowest first"),
        ({"deadline": 0}, "the judge's deadline is 0; give a number above 0"),
        ({"attempts": 0}, "the judge's attempts is 0"),
        ({"api_key_env": "NO_SUCH_KEY"}, r"read from \$NO_SUCH_KEY, which is not set; export it"),
        ({"modell": "m"}, "options of the reward 'judge' do not fit: got an unexpected keyword argument 'modell'"),
    ],
)
def test_invalid_settings(options, message):
    with pytest.raises(RewardError, match=message):
        load("judge", {"url": "http://localhost/v1", "model": "m", **options})
