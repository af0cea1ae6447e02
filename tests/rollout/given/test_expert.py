"""Completions of an expert, from a real server on this machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gvpo import notices, retries
from gvpo.config import TrainConfig
from gvpo.errors import RewardError, RunError
from gvpo.model.endings import ending
from gvpo.rollout.collect import EncodedProblem
from gvpo.rollout.given.expert import FILE, ExpertRows, Reencoder, expert_endpoint
from gvpo.types import Problem
from tests.fakes import CHAT_TEMPLATE, byte_tokenizer
from tests.rewards.judges.judge_server import JudgeServer, Reply, says, serving, slowly

KEY = "sk-secret-1234"
EOS = byte_tokenizer().eos_token_id


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.001)


@pytest.fixture(autouse=True)
def said() -> Iterator[list[str]]:
    found: list[str] = []
    with notices.handled(lambda message, _: found.append(message)):
        yield found


def text(words: str, finish_reason: str = "stop") -> Reply:
    """Return an answer in the form of a completions endpoint."""
    return 200, {"choices": [{"text": words, "finish_reason": finish_reason}]}, {}


def expert(server: JudgeServer, directory: Path, *, template: str | None = None, **settings: Any) -> ExpertRows:
    """Return the rows of an expert, two per prompt, for a policy with a byte tokenizer and a context of 40 tokens."""
    given = {"rollout_expert": 2, "rollout_expert_url": server.url, "rollout_expert_model": "big", "max_tokens": 8}
    config = TrainConfig(**{**given, **settings})
    tokenizer = byte_tokenizer(template)
    reencoder = Reencoder(tokenizer, ending(tokenizer, None), config.max_tokens, 40)
    return ExpertRows(expert_endpoint(config), config, reencoder, directory, templates=template is not None)


def items(*prompts: Any) -> list[EncodedProblem]:
    return [EncodedProblem(Problem(prompt, f"p{place}"), (2, 5)) for place, prompt in enumerate(prompts)]


def names(asked: list[EncodedProblem]) -> list[str]:
    return [item.problem.id for item in asked]


def rows(source: ExpertRows, *prompts: Any, step: int = 1) -> list[list[str | None]]:
    asked = items(*prompts)
    return [[row.text for row in found] for found in source.rows(asked, names(asked), step)]


def test_the_answers_are_rows_of_the_policy(tmp_path: Path):
    with serving(lambda number, body: text(f"{body['prompt']}!")) as server:
        source, asked = expert(server, tmp_path, temperature=0.7, top_p=0.9), items("a", "bc")
        found = source.rows(asked, names(asked), 3)
    assert [[row.text for row in each] for each in found] == [["a!", "a!"], ["bc!", "bc!"]]
    row = found[1][0]
    assert list(row.tokens) == [*byte_tokenizer()("bc!").input_ids, EOS]
    assert (row.source, row.version, row.reward, row.sampler_logprobs, row.finish_reason) == (
        "expert",
        None,
        None,
        None,
        "stop",
    )
    body = server.bodies[0]
    assert (body["path"], body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == (
        "/v1/completions", "big", 0.7, 0.9, 8,
    )  # fmt: skip
    assert len({body["seed"] for body in server.bodies}) == 4


def test_a_seed_depends_on_the_run_the_step_the_prompt_and_the_row(tmp_path: Path):
    with serving(lambda number, body: text("x")) as server:
        for directory, seed, step in (("a", 0, 1), ("b", 0, 1), ("c", 0, 2), ("d", 1, 1)):
            (tmp_path / directory).mkdir()
            rows(expert(server, tmp_path / directory, seed=seed), "p", "q", step=step)
    seeds = [{body["seed"] for body in server.bodies[4 * part : 4 * part + 4]} for part in range(4)]
    assert seeds[0] == seeds[1]
    assert len(set.union(*seeds)) == 12


@pytest.mark.parametrize(
    ("template", "settings", "prompt", "sent"),
    [
        (None, {}, "Why?", "Why?"),
        (CHAT_TEMPLATE, {}, "Why?", [{"role": "user", "content": "Why?"}]),
        (CHAT_TEMPLATE, {"chat": "plain"}, "Why?", "Why?"),
        (
            CHAT_TEMPLATE,
            {"system_prompt": "Be brief."},
            [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}],
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
        ),
    ],
)
def test_the_expert_reads_the_prompt_as_the_policy_does(
    tmp_path: Path, template: str | None, settings: dict[str, Any], prompt: Any, sent: Any
):
    with serving(lambda number, body: text("x") if "prompt" in body else says("x")) as server:
        assert rows(expert(server, tmp_path, template=template, **settings), prompt) == [["x", "x"]]
    body = server.bodies[0]
    assert body.get("prompt", body.get("messages")) == sent
    assert body["path"] == ("/v1/completions" if isinstance(sent, str) else "/v1/chat/completions")


@pytest.mark.parametrize(
    ("reply", "tokens", "reason"),
    [
        (text("abc", "length"), "abc", "length"),
        (text("abc", "content_filter"), "abc", "length"),
        (text("abcdefg"), "abcdefg", "stop"),  # with the end token these are 8
        (text("abcdefgh"), "abcdefgh", "length"),
        (text("abcdefghij"), "abcdefgh", "length"),
    ],
)
def test_answers_without_an_end_and_long_ones_have_none(tmp_path: Path, reply: Reply, tokens: str, reason: str):
    with serving(lambda number, body: reply) as server:
        ((row, _),) = expert(server, tmp_path).rows(items("p"), ["p"], 1)
    assert list(row.tokens) == [*byte_tokenizer()(tokens).input_ids, *([EOS] if reason == "stop" else [])]
    assert (row.finish_reason, row.text) == (reason, tokens)


def test_answers_leave_room_in_the_context(tmp_path: Path):
    with serving(lambda number, body: text("a" * 50)) as server:
        ((row, _),) = expert(server, tmp_path, max_tokens=100).rows(items("p"), ["p"], 1)
    assert len(row.tokens) == 38


@pytest.mark.parametrize("answer", ["ab<eos>", "<pad>", "", "\ud800x", None, 3])
def test_answers_that_do_not_round_trip_are_left_out(tmp_path: Path, said: list[str], answer: Any):
    def reply(number: int, body: dict[str, Any]) -> Reply:
        return text(answer) if body["prompt"] == "bad" else text("good")

    with serving(reply) as server:
        assert rows(expert(server, tmp_path), "bad", "fine") == [[], ["good", "good"]]
        count = len(server.bodies)
        assert rows(expert(server, tmp_path), "bad", "fine") == [[], ["good", "good"]]  # what is left out is kept too
        assert len(server.bodies) == count
    assert "an answer of the expert is left out" in said[0]


def test_a_request_that_is_rejected_is_one_row_but_not_if_all_are(tmp_path: Path):
    def reply(number: int, body: dict[str, Any]) -> Reply:
        return (400, "filtered", {}) if body["prompt"] == "rude" else text("good")

    with serving(reply) as server:
        assert rows(expert(server, tmp_path), "fine", "rude") == [["good", "good"], []]
        with pytest.raises(RunError, match=r"expert_url answered 400 \(filtered\); 0 of 2 answers"):
            rows(expert(server, tmp_path), "rude", step=2)


def test_a_resumed_run_asks_only_what_is_missing(tmp_path: Path):
    broken = [True]

    def reply(number: int, body: dict[str, Any]) -> Reply:
        if body["prompt"] == "b" and broken[0]:
            return 500, f"no {KEY}", {}
        return text(f"{body['prompt']} {number}")

    with serving(reply) as server:
        with pytest.raises(
            RunError,
            match=r"the expert at rollout\.expert_url answered 500 .* \(5 attempts\); 2 of 4 answers .* --resume",
        ):
            rows(expert(server, tmp_path), "a", "b")
        kept = rows(expert(server, tmp_path), "a")
        broken[0] = False
        asked = len(server.bodies)
        first, second = rows(expert(server, tmp_path), "a", "b")
        assert len(server.bodies) == asked + 2
        assert [first] == kept
        assert rows(expert(server, tmp_path), "a", "b") == [first, second]
        assert len(server.bodies) == asked + 2


def test_a_slow_endpoint_is_an_error_after_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gvpo.rollout.given.expert.DEADLINE", 0.1)
    with (
        serving(slowly(0.5, text("x"))) as server,
        pytest.raises(RunError, match=r"expert_url gave no answer in 0\.1 s; 0 of 2 answers"),
    ):
        rows(expert(server, tmp_path), "a")


def test_a_broken_form_and_no_server_are_errors(tmp_path: Path):
    with serving(lambda number, body: (200, "<html>", {})) as server:
        with pytest.raises(RunError, match=r"expert_url gave no text \(<html>\) \(5 attempts\)"):
            rows(expert(server, tmp_path), "a")
        source = expert(server, tmp_path)
    with pytest.raises(RunError, match="cannot be reached"):
        rows(source, "b")


def test_the_key_is_sent_and_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EXPERT_KEY", KEY)
    with serving(lambda number, body: text("x")) as server:
        rows(expert(server, tmp_path, rollout_expert_api_key_env="EXPERT_KEY"), "a")
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert KEY.encode() not in (tmp_path / FILE).read_bytes()
    monkeypatch.setenv("EXPERT_KEY", "")
    with pytest.raises(RewardError, match=r"the expert's key is read from \$EXPERT_KEY, which is not set"):
        expert(server, tmp_path, rollout_expert_api_key_env="EXPERT_KEY")


def test_an_invalid_url_names_the_expert(tmp_path: Path):
    with pytest.raises(RewardError, match="the expert's url is 'here'"):
        expert_endpoint(TrainConfig(rollout_expert_url="here"))
