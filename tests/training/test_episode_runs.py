"""Every source and engine trains on the episodes that were sampled: `check_episodes` verifies all rows of a run."""

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from gvpo import Trainer, runfiles
from gvpo.config import TrainConfig
from gvpo.environments import EnvironmentPool
from gvpo.errors import ConfigError, RunError
from gvpo.runfiles import RolloutRow, read_rollouts, rollout_path
from gvpo.testing import EpisodeMismatch, check_episodes
from tests.fakes import turn_tokenizer
from tests.training import guessing, toy
from tests.training.engines import Concurrent, Engine, engines_of

SETTINGS: dict[str, Any] = {
    "environment_between": "{observation}5",
    "environment_max_turns": 4,
    "environment_workers": 1,
    "environment_turn_tokens": 6,
    "max_tokens": 30,
    "stop_token_ids": [3, 4, 5],
    "group_size": 4,
    "prompts_per_step": 4,
    "steps": 3,
    "learning_rate": 3e-3,
    "eval_problems": 3,
    "eval_samples": 2,
    "checkpoint_every": 1,
    "checkpoint_keep": 9,
    "checkpoint_verify": False,
}


def trained(path: Path, environment: Any = guessing.Moody, resume: bool = False, **settings: Any) -> Path:
    config = TrainConfig(run_dir=path, **{**SETTINGS, **settings})
    Trainer(
        toy.model(),
        None,
        config,
        guessing.ROWS,
        guessing.ROWS[:3],
        processing_class=toy.tokenizer(),
        environment=environment,
    ).train(resume=resume)
    return path


CASES: dict[str, tuple[type[Engine] | None, dict[str, Any]]] = {
    "transformers": (None, {}),
    "an engine without conversations": (Engine, {"sampling_engine": "vllm"}),
    "stale": (None, {"rollout_staleness": 1}),
    "reuse": (None, {"rollout_reuse": 2, "objective": "grpo"}),
    "asynchronous": (None, {"rollout_asynchronous": True, "rollout_max_staleness": 1}),
}
SLOW: dict[str, tuple[type[Engine] | None, dict[str, Any]]] = {
    "concurrent": (
        Concurrent,
        {
            "sampling_engine": "vllm",
            "rollout_asynchronous": True,
            "rollout_max_staleness": 2,
            "steps": 6,
        },
    ),
    "curriculum": (None, {"rollout_curriculum": "accuracy"}),
    "dead groups": (None, {"rollout_dead_groups": "replace", "objective": "gspo_token"}),
    "overlong": (None, {"overlong_completions": "mask", "objective": "grpo"}),
}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [*CASES.values(), *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW.values())],
    ids=[*CASES, *SLOW],
)
def test_rows_are_what_was_sampled_and_heard(tmp_path: Path, kind: type[Engine] | None, settings: dict[str, Any]):
    with engines_of(kind) if kind is not None else nullcontext():
        run = trained(tmp_path / "run", **settings)
    found = check_episodes(run, toy.tokenizer(), start=toy.model())
    reasons = {row.finish_reason for step in (1, 2) for row in read_rollouts(rollout_path(run, step))}
    assert {"stop", "length", "turns"} <= reasons
    assert found.heard > 20
    assert found.scored > found.own / 2
    assert found.turns > 1.3 * found.rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run without checkpoints, whose first rollout file the tests change."""
    return trained(tmp_path_factory.mktemp("checked") / "run", steps=1, eval_problems=0, checkpoint_every=0)


def with_turn(row: RolloutRow, number: int, **fields: Any) -> RolloutRow:
    turns = [dict(turn, **fields) if place == number else turn for place, turn in enumerate(row.turns)]
    return dataclasses.replace(row, turns=turns)


def replaced(values: Any, place: int, value: Any) -> list[Any]:
    return [value if at == place else each for at, each in enumerate(values)]


def heard_at(row: RolloutRow) -> int:
    return row.turns[0]["stop"]


MISTAKES = {
    "a mask that trains on what was heard": (
        lambda row: dataclasses.replace(row, mask=replaced(row.mask, heard_at(row), 1.0)),
        "its mask is",
    ),
    "a mask that leaves out a token": (
        lambda row: dataclasses.replace(row, mask=replaced(row.mask, 0, 0.0)),
        "its mask is",
    ),
    "turns with a gap": (lambda row: with_turn(row, 1, start=row.turns[1]["start"] + 1), "not one after the other"),
    "turns that end early": (lambda row: dataclasses.replace(row, turns=row.turns[:-1]), "not one after the other"),
    "another text of the policy": (lambda row: with_turn(row, 0, text="99"), "the text of turn 0 is '99'"),
    "another text of the environment": (
        lambda row: with_turn(row, 0, heard=[{"role": "user", "content": "77"}]),
        "the tokens after turn 0",
    ),
    "a token that was not heard": (
        lambda row: dataclasses.replace(row, tokens=replaced(row.tokens, heard_at(row), 9)),
        "the tokens after turn 0",
    ),
    "a token that was not sampled": (
        lambda row: dataclasses.replace(row, tokens=replaced(row.tokens, 0, (row.tokens[0] + 1) % 5)),
        "the text of turn 0",
    ),
    "log-probs of others": (
        lambda row: dataclasses.replace(row, sampler_logprobs=replaced(row.sampler_logprobs, 0, -9.0)),
        "log-probs of the policy's tokens differ",
    ),
    "log-probs of what was heard": (
        lambda row: dataclasses.replace(row, sampler_logprobs=replaced(row.sampler_logprobs, heard_at(row), -0.5)),
        "the sampler has log-probs of tokens that the environment said",
    ),
    "another reason": (lambda row: dataclasses.replace(row, finish_reason="length"), "it ended by 'length'"),
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.values(), ids=MISTAKES)
def test_the_check_finds_mistakes(run: Path, mistake: Any, message: str):
    path = rollout_path(run, 1)
    whole = path.read_bytes()
    rows = read_rollouts(path)
    place = next(number for number, row in enumerate(rows) if len(row.turns) > 1 and row.finish_reason != "length")
    try:
        runfiles.write_rollouts(path, replaced(rows, place, mistake(rows[place])))
        with pytest.raises(EpisodeMismatch, match=message) as caught:
            check_episodes(run, toy.tokenizer(), start=toy.model())
        assert f"step-000001.parquet, row {rows[place].group}/{rows[place].row}: " in str(caught.value)
    finally:
        path.write_bytes(whole)


def test_another_run_trains_on_stored_episodes_as_they_were(run: Path, tmp_path: Path):
    config = TrainConfig(
        run_dir=tmp_path / "offline",
        groups_data=str(run),
        steps=2,
        prompts_per_step=2,
        stop_token_ids=[3, 4, 5],
        eval_problems=0,
        checkpoint_every=0,
    )
    Trainer(toy.model(), None, config, processing_class=toy.tokenizer()).train()
    stored = {f"step-000001/{row.group}": [] for row in read_rollouts(rollout_path(run, 1))}
    for row in read_rollouts(rollout_path(run, 1)):
        stored[f"step-000001/{row.group}"].append((row.prompt_tokens, row.tokens, row.mask, row.reward))
    read = [row for step in (1, 2) for row in read_rollouts(rollout_path(tmp_path / "offline", step))]
    assert len(read) == 16
    for row in read:
        assert (row.prompt_tokens, row.tokens, row.mask, row.reward) == stored[row.group][row.row]
        assert row.turns
    assert any(row.weight for row in read)


def test_the_check_needs_episodes_and_a_tokenizer(tmp_path: Path):
    toy.trainer(tmp_path / "run", steps=1, checkpoint_every=0, held=[], eval_problems=0).train()
    with pytest.raises(ConfigError, match="has no rows with turns"):
        check_episodes(tmp_path / "run", toy.tokenizer())


@contextmanager
def interrupted(call: int) -> Iterator[None]:
    """Send Ctrl-C within a turn: in the environments' n-th call."""
    step, calls = EnvironmentPool.step, itertools.count(1)

    def stopping(pool: EnvironmentPool, texts: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return step(pool, texts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EnvironmentPool, "step", stopping)
        with suppress(KeyboardInterrupt):
            yield
            pytest.fail(f"the run has made fewer than {call} calls")


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"rollout_staleness": 1}, marks=pytest.mark.slow),
        {"rollout_reuse": 2, "objective": "grpo"},
    ],
    ids=["live", "stale", "reuse"],
)
def test_a_run_that_is_stopped_within_a_turn_resumes_with_equal_bits(tmp_path: Path, settings: dict[str, Any]):
    given = {**settings, "steps": 3, "eval_problems": 0}
    expected = trained(tmp_path / "unbroken", **given)
    with interrupted(6):
        trained(tmp_path / "broken", **given)
    assert runfiles.rollout_steps(tmp_path / "broken") != runfiles.rollout_steps(expected)
    trained(tmp_path / "broken", resume=True, **given)
    assert toy.lines(tmp_path / "broken") == toy.lines(expected)
    for step in runfiles.rollout_steps(expected):
        one, other = (read_rollouts(rollout_path(path, step)) for path in (tmp_path / "broken", expected))
        assert toy.without_times(one) == toy.without_times(other)
    last = "checkpoints/step-000003/model.safetensors"
    assert (tmp_path / "broken" / last).read_bytes() == (expected / last).read_bytes()


@pytest.mark.slow
def test_without_staleness_asynchronous_episodes_equal_synchronous_ones_bit_for_bit(tmp_path: Path):
    plain, background = (
        trained(tmp_path / name, **more)
        for name, more in (("plain", {}), ("background", {"rollout_asynchronous": True, "rollout_max_staleness": 0}))
    )
    assert toy.lines(plain) == toy.lines(background)
    for step in runfiles.rollout_steps(plain):
        one, other = (read_rollouts(rollout_path(path, step)) for path in (plain, background))
        assert toy.without_times(one) == toy.without_times(other)


def test_a_run_resumes_only_with_the_same_environment(tmp_path: Path):
    trained(tmp_path / "run", steps=1, eval_problems=0)
    with pytest.raises(RunError, match="was started with another environment"):
        trained(tmp_path / "run", guessing.Opening, steps=2, eval_problems=0, resume=True)
    with pytest.raises(RunError, match=r"was started with environment.max_turns=4, not 3"):
        trained(tmp_path / "run", steps=2, eval_problems=0, environment_max_turns=3, resume=True)
    trained(tmp_path / "run", steps=2, eval_problems=0, environment_timeout=3.0, environment_workers=2, resume=True)


TOOLS = (
    "{% for tool in tools or [] %}<{{ tool.function.name }}: {{ tool.function.description }}>{% endfor %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<turn>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ADD = '''
def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b
'''


def test_prompts_of_training_and_evaluation_describe_the_tools(tmp_path: Path):
    (tmp_path / "calls.py").write_text(ADD)
    words = turn_tokenizer()
    words.chat_template = TOOLS
    config = TrainConfig(
        run_dir=tmp_path / "run",
        environment_tools=[f"{tmp_path / 'calls.py'}:add"],
        environment_workers=1,
        reward_workers=1,
        max_tokens=8,
        group_size=2,
        prompts_per_step=2,
        steps=1,
        eval_problems=2,
        checkpoint_every=0,
    )
    rows = [{"prompt": "1+1", "answer": "2"}, {"prompt": "1+2", "answer": "3"}]
    model = toy.model(vocab_size=len(words), eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id)
    model.config.max_position_embeddings = 256
    Trainer(model, "exact_match", config, rows, rows, processing_class=words).train()
    for folder, step in ((runfiles.ROLLOUTS, 1), (runfiles.HELD_OUT, 0)):
        for row in read_rollouts(rollout_path(tmp_path / "run", step, folder)):
            assert row.prompt.startswith("<add: Add two numbers.>[user]1+")
            assert row.reward_parts["environment"] is None  # tools pay nothing
            assert len(row.turns) == 1
