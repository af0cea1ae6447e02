"""Runs whose groups contain given rows: metrics, rollout files, exact resumption, ranks."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gvpo import retries, runfiles
from gvpo.errors import ConfigError, DataError, RunError
from gvpo.rewards import RewardPool
from gvpo.rollout.collect import Rollout
from gvpo.rollout.given.expert import FILE
from gvpo.sampling import Request, SamplingParams
from gvpo.sampling.noise import noise_key
from gvpo.sampling.transformers import TransformersSampler
from gvpo.types import Completion, Group, Verdict
from tests.rewards.judges.judge_server import JudgeServer, Reply, serving
from tests.training.by_hand import QUIET, ByHand
from tests.training.rank_jobs import online_run
from tests.training.toy import DIGITS, lines, model, noticed, same, share, stopped_at, tokenizer, trainer, weights
from tests.training.world import world

SETTINGS: dict[str, Any] = {
    "steps": 6,
    "prompts_per_step": 4,
    "group_size": 5,
    "checkpoint_every": 2,
    "rollouts_every": 1,
    "eval_problems": 0,
    "rollout_history": 2,
    "rollout_max_age": 4,
    "rollout_capacity": 12,
}
KEY = "sk-secret-1234"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.001)


def answers(number: int, body: dict[str, Any]) -> Reply:
    """Return the right digit three times, or once; a request has the same answer whenever it comes."""
    text = body["prompt"] * (3 if body["seed"] % 2 else 1)
    return 200, {"choices": [{"text": text, "finish_reason": "stop"}]}, {}


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with serving(answers) as made:
        yield made


def logged(path: Path) -> str:
    """Write completions of eight of the ten prompts, without rewards."""
    rows = [{"prompt": digit, "completions": [digit, digit * 2, "0"]} for digit in DIGITS[:8]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def every_source(server: JudgeServer, directory: Path) -> dict[str, Any]:
    return {
        **SETTINGS,
        "rollout_logged": 1,
        "rollout_logged_path": logged(directory / "logged.jsonl"),
        "rollout_expert": 1,
        "rollout_expert_url": server.url,
        "rollout_expert_model": "big",
    }


def run(path: Path, settings: dict[str, Any], *, resume: bool = False) -> dict[str, torch.Tensor]:
    policy = model()
    trainer(path, policy=policy, held=[], **settings).train(resume=resume)
    return weights(policy)


def test_metrics_and_rollout_files_say_where_rows_come_from(tmp_path: Path, server: JudgeServer):
    with noticed("fewer than 1 completions for 2 of 10 prompts"):
        run(tmp_path / "run", settings := every_source(server, tmp_path))
    for line in lines(tmp_path / "run")[1:]:
        rows = runfiles.read_rollouts(runfiles.rollout_path(tmp_path / "run", line["step"]))
        counts = Counter(row.source for row in rows)
        assert len(rows) == 20
        assert {name: line[f"rows/{name}"] for name in counts} == {n: count / 20 for n, count in counts.items()}
        assert line["rows/history_missing"] == 8 - counts["history"]
        assert (line["rows/logged_missing"], line["rows/expert_missing"]) == (4 - counts["logged"], 0)
        assert counts["live"] == 4 + line["rows/history_missing"] + line["rows/logged_missing"]
        ages = [row.age for row in rows if row.source in ("live", "history")]
        assert line["tokens/sampled"] == sum(len(row.tokens) for row in rows if row.source == "live")
        assert line["age/max"] == max(ages) <= 4
        assert {row.version for row in rows if row.source in ("logged", "expert")} <= {None}
        assert [row.reward for row in rows] == [row.text.count(row.prompt) / 3 for row in rows]
        order = {"history": 0, "logged": 1, "expert": 2, "live": 3}
        places = [(row.group, order[row.source]) for row in rows]
        assert places == sorted(places, key=lambda place: ([row.group for row in rows].index(place[0]), place[1]))
    assert counts["history"] > 0
    text = (tmp_path / "logged.jsonl").read_text()
    (tmp_path / "logged.jsonl").write_text(text.replace('"11"', '"1"'))
    with noticed(), pytest.raises(RunError, match="another set of logged completions"):
        run(tmp_path / "run", {**settings, "steps": 8}, resume=True)


def test_a_run_with_history_and_logged_rows_equals_a_script_that_keeps_rows_by_hand(tmp_path: Path):
    settings = {"group_size": 5, "learning_rate": 0.03, "rollout_history": 2, "rollout_logged": 1}
    settings |= {"steps": 5, "prompts_per_step": 5}  # no prompt occurs twice in a step
    policy, given = model(), {**settings, "rollout_logged_path": logged(tmp_path / "logged.jsonl")}
    with noticed():
        trainer(tmp_path / "run", policy=policy, **given, **QUIET).train()
    with RewardPool({"digits": share()}, workers=1) as pool:
        script, kept = ByHand(pool, **settings, rollout_logged_path="x.jsonl"), dict[str, list[tuple[Any, Any]]]()
        for step in range(1, 6):
            script.train(_by_hand(script, kept, step), step)
    assert lines(tmp_path / "run") == script.lines
    assert same(weights(policy), script.versions[-1])
    assert script.lines[-1]["rows/history"] > 0


def _by_hand(script: ByHand, kept: dict[str, list[tuple[Any, Any]]], step: int) -> Rollout:
    """Return the groups of a step, of which the live rows are sampled for groups that need equally many together."""
    items = script.order.at(step)
    file = {name: [row for row in LOGGED_ROWS if row[0] == name] for name in DIGITS}
    found: dict[str, tuple[list[Any], list[Any]]] = {}
    for item in items:
        name = item.problem.id
        own = noise_key(script.config.seed, step, f"logged of {name}", 0)
        order = np.random.Generator(np.random.Philox(key=own)).permutation(len(file[name]))
        words = [file[name][place][1] for place in order[:1]]
        old = [(dataclasses.replace(row, source="history"), verdict) for row, verdict in kept.get(name, [])]
        found[name] = old, [written(text) for text in words]
    sampler = TransformersSampler(script.learner.model, tokenizer())
    groups, verdicts, fresh = {}, {}, {}
    for count in range(2, 6):
        same_size = [item for item in items if 5 - sum(map(len, found[item.problem.id])) == count]
        requests = [Request(item.problem.id, item.prompt) for item in same_size]
        params = SamplingParams(count, script.config.max_tokens)
        sampled = sampler.sample(requests, params, seed=script.config.seed, step=step)
        for item, drawn in zip(same_size, sampled, strict=True):
            name = item.problem.id
            old, new = found[name]
            live = [dataclasses.replace(row, version=step - 1) for row in drawn]
            parts = [(row.text or "").count(name) / 3 for row in (*new, *live)]
            judged = [Verdict(part, {"digits": part}) for part in parts]
            scored = [dataclasses.replace(row, reward=part) for row, part in zip((*new, *live), parts, strict=True)]
            groups[name] = Group(
                item.prompt, [*(row for row, _ in old), *scored], id=name, columns=item.problem.columns
            )
            verdicts[name] = [*(verdict for _, verdict in old), *judged]
            fresh[name] = list(zip(scored, judged, strict=True))[len(new) :]
    missing = {
        "rows/history_missing": sum(2 - len(old) for old, _ in found.values()),
        "rows/logged_missing": sum(1 - len(new) for _, new in found.values()),
    }
    for name, rows in fresh.items():
        kept[name] = [*rows, *kept.get(name, [])][:2]
    names = [item.problem.id for item in items]
    return Rollout(
        [groups[name] for name in names],
        [verdicts[name] for name in names],
        [item.problem for item in items],
        metrics=missing,
    )


LOGGED_ROWS = [(digit, text) for digit in DIGITS[:8] for text in (digit, digit * 2, "0")]


def written(text: str) -> Completion:
    tokens = [*tokenizer()(text).input_ids, tokenizer().eos_token_id]
    return Completion(tokens, text=text, source="logged")


def test_a_run_that_was_stopped_resumes_with_equal_bits(tmp_path: Path, server: JudgeServer):
    settings = every_source(server, tmp_path)
    with noticed():
        end = run(tmp_path / "unbroken", settings)
        asked = len(server.bodies)
        with stopped_at(4):
            run(tmp_path / "stopped", settings)
        again = run(tmp_path / "stopped", settings, resume=True)
    assert same(again, end)
    assert lines(tmp_path / "stopped") == lines(tmp_path / "unbroken")
    for step in range(1, 7):
        one, two = (
            runfiles.read_rollouts(runfiles.rollout_path(tmp_path / name, step)) for name in ("unbroken", "stopped")
        )
        assert one == two
    assert (asked, len(server.bodies)) == (24, 48)  # the steps after the checkpoint were not asked for again


def test_reused_groups_with_history_are_dropped_when_a_row_is_too_old(tmp_path: Path):
    run(tmp_path, {**SETTINGS, "steps": 8, "rollout_reuse": 2, "rollout_capacity": None})
    found = lines(tmp_path)[1:]
    assert max(line["age/max"] for line in found) == 4
    assert max(line["rows/history"] for line in found) > 0
    assert sum(line["groups/evicted"] for line in found) > 0


def test_a_run_whose_expert_failed_resumes_with_equal_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EXPERT_KEY", KEY)
    broken = [False]

    def reply(number: int, body: dict[str, Any]) -> Reply:
        return (503, f"no {KEY}", {}) if broken[0] and number >= 35 else answers(number, body)

    with serving(reply) as server, noticed():
        settings = {**every_source(server, tmp_path), "rollout_expert_api_key_env": "EXPERT_KEY"}
        end = run(tmp_path / "unbroken", settings)
        broken[0] = True
        with pytest.raises(
            RunError, match=r"the expert at .* answered 503 \(no \*\*\*\).* resume with --resume"
        ) as error:
            run(tmp_path / "failed", settings)
        assert KEY not in str(error.value)
        broken[0] = False
        moved = {**settings, "rollout_expert_url": server.url.replace("127.0.0.1", "localhost")}
        assert same(run(tmp_path / "failed", moved, resume=True), end)
        assert len({json.dumps(body, sort_keys=True) for body in server.bodies}) == 24
    assert lines(tmp_path / "failed") == lines(tmp_path / "unbroken")
    files = [path for path in (tmp_path / "failed").rglob("*") if path.is_file()]
    assert (tmp_path / "failed" / FILE) in files
    assert not any(KEY.encode() in path.read_bytes() for path in files)


def test_two_ranks_have_the_same_groups_as_one(tmp_path: Path, server: JudgeServer):
    settings = {**every_source(server, tmp_path), "held": [], "steps": 4}
    with noticed():
        online_run(tmp_path / "one", **settings)
    world(2, tmp_path, online_run, tmp_path / "two", **settings)
    assert len(server.bodies) == 32  # only the first rank asks
    for step in range(1, 5):
        one, two = (runfiles.read_rollouts(runfiles.rollout_path(tmp_path / name, step)) for name in ("one", "two"))
        assert [(row.group, row.source, row.version, row.tokens, row.reward) for row in one] == [
            (row.group, row.source, row.version, row.tokens, row.reward) for row in two
        ]


def test_an_objective_with_ratios_uses_recorded_log_probs_of_history(tmp_path: Path):
    run(tmp_path / "run", {**SETTINGS, "objective": "grpo"})
    rows = runfiles.read_rollouts(runfiles.rollout_path(tmp_path / "run", 6))
    old = [row for row in rows if row.source == "history"]
    assert old
    assert all(row.old_logprobs == pytest.approx(row.sampler_logprobs, abs=1e-6) for row in old)
    assert all(row.old_logprobs != pytest.approx(row.logprobs, abs=1e-6) for row in old)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"steps": 2}, ConfigError, "rollout.history needs prompts that occur again, but 2 steps use 8 of 10 prompts"),
        (
            {"steps": 4, "rollout_reuse": 2, "rollout_max_age": None, "rollout_capacity": None},
            ConfigError,
            "4 steps use 10 of 10 prompts once: set data.train_problems below 10, or more train.steps",
        ),
        ({"rollout_history": 0, "rollout_logged": 1, "rollout_logged_path": "no.jsonl"}, DataError, "no file no.jsonl"),
        (
            {"rollout_history": 0, "rollout_expert": 1, "rollout_expert_url": "x", "rollout_expert_model": "m"},
            ConfigError,
            "rollout.expert_url .*'x'",
        ),
    ],
)
def test_what_needs_data_is_refused_before_anything_is_written(
    tmp_path: Path, settings: dict[str, Any], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        run(tmp_path / "run", {**SETTINGS, **settings})
    assert not (tmp_path / "run").exists()


def test_logged_text_without_log_probs_is_refused_for_ratios_and_so_is_a_foreign_file(tmp_path: Path):
    settings = {
        **SETTINGS,
        "rollout_history": 0,
        "rollout_logged": 1,
        "rollout_logged_path": logged(tmp_path / "l.jsonl"),
    }
    with noticed(), pytest.raises(DataError, match=r"grpo needs the log-probs .* has no `sampler_logprobs`; add"):
        run(tmp_path / "run", {**settings, "objective": "grpo"})
    (tmp_path / "l.jsonl").write_text(json.dumps({"answer": "01"}))
    with noticed(), pytest.raises(DataError, match=r"rollout\.logged_path=.*l\.jsonl: row 1 has no `prompt`"):
        run(tmp_path / "run", settings)
    (tmp_path / "l.jsonl").write_text(json.dumps({"prompt": "01", "completions": ["1"]}))
    with pytest.raises(DataError, match=r"no prompt of rollout\.logged_path is a training prompt"):
        run(tmp_path / "run", settings)


def test_a_run_directory_gives_logged_rows_with_their_log_probs(tmp_path: Path):
    run(tmp_path / "first", {**SETTINGS, "rollout_history": 0, "rollout_max_age": None, "rollout_capacity": None})
    settings = {**SETTINGS, "rollout_history": 0, "rollout_logged": 2, "rollout_logged_path": str(tmp_path / "first")}
    with noticed():
        run(tmp_path / "second", {**settings, "objective": "grpo", "seed": 1})
    rows = runfiles.read_rollouts(runfiles.rollout_path(tmp_path / "second", 1))
    given = [row for row in rows if row.source == "logged"]
    first = [
        (row.prompt, row.tokens)
        for step in range(1, 7)
        for row in runfiles.read_rollouts(runfiles.rollout_path(tmp_path / "first", step))
    ]
    assert len(given) == 8
    assert all((row.prompt, row.tokens) in first for row in given)
    assert all(row.old_logprobs == row.sampler_logprobs for row in given)
