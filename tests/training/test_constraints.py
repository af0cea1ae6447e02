"""Segments and costs on their way from a rollout to the objective; multipliers through a run and its checkpoints."""

from pathlib import Path
from typing import Any

import pytest

from gvpo.errors import ConfigError, RewardError
from gvpo.rollout.collect import Rollout
from gvpo.training.checkpoint.files import load
from gvpo.training.constraints import Constraints, segments, with_inputs
from gvpo.types import Completion, Group, Problem, Verdict
from tests.training.toy import config, lines, model, same, stopped_at, tokenizer, trainer, weights

COSTS: dict[str, Any] = {"objective": "constrained_grpo", "reference": "previous", "costs": {"other": 0.3}}


def rollout(*rows: tuple[str, Verdict]) -> Rollout:
    completions = [Completion(tokenizer()(text).input_ids, reward=verdict.reward) for text, verdict in rows]
    return Rollout([Group([3], completions)], [[verdict for _, verdict in rows]], [Problem("0", "0")])


def other() -> Any:
    """Return 1 if the answer contains a different digit than the requested one."""

    def other(completions: Any, digit: Any, **_: Any) -> list[float]:
        return [float(text.count(one) < len(text)) for text, one in zip(completions, digit, strict=True)]

    return other


def hit() -> Any:
    def hit(completions: Any, digit: Any, **_: Any) -> list[float]:
        return [float(one in text) for text, one in zip(completions, digit, strict=True)]

    return hit


def test_a_token_that_contains_the_text_is_the_last_of_its_segment():
    assert segments([1, 5, 2, 3, 5, 5, 4], lambda token: token == 5) == [0, 0, 1, 1, 1, 2, 3]
    changed = with_inputs(
        rollout(("12212", Verdict(1.0))), config(objective="gsspo", segment_at="2", reference="previous"), tokenizer()
    )
    assert changed.groups[0].completions[0].extras["segments"] == [0, 0, 1, 2, 2]


def test_costs_come_from_the_rewards_and_a_row_without_one_is_dropped_with_a_reason():
    given = rollout(
        ("1", Verdict(1.0, {"other": 1.0})),
        ("2", Verdict(0.5, {"other": None})),
        ("3", Verdict(None, {}, "timeout: x")),
    )
    changed = with_inputs(given, config(**COSTS), tokenizer())
    one, two, three = changed.groups[0].completions
    assert (one.reward, one.extras["costs"]) == (1.0, [1.0])
    assert two.reward is None
    assert three.reward is None
    assert [verdict.reason for verdict in changed.verdicts[0]] == ["", "missing cost: other has no value", "timeout: x"]


def test_error_names_a_cost_without_values():
    with pytest.raises(RewardError, match="no completion of this step has the cost 'other'"):
        with_inputs(rollout(("1", Verdict(1.0, {"share": 1.0}))), config(**COSTS), tokenizer())


def test_multipliers_rise_while_a_cost_is_over_its_limit():
    constraints = Constraints({"other": 0.25}, rate=2.0)
    over = rollout(*[("1", Verdict(1.0, {"other": 1.0}))] * 2, ("1", Verdict(1.0, {"other": None})))
    assert constraints.ascend(over) == {"multiplier/other": 0.0}
    assert constraints.multipliers == {"other": 1.5}
    assert constraints.ascend(rollout(("1", Verdict(1.0, {"other": 0.0})))) == {"multiplier/other": 1.5}
    assert constraints.multipliers == {"other": 1.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "gsspo"}, "gsspo needs segments: set objective.segment_at"),
        ({"objective": "constrained_grpo"}, "constrained_grpo needs costs: set objective.costs"),
        ({"objective": "grpo", "costs": {"a": 0.1}}, "objective.costs is not for grpo, which uses no costs"),
        ({"objective": "gspo", "segment_at": "2"}, "objective.segment_at is not for gspo"),
        ({"objective": "grpo", "multiplier_rate": 0.1}, "objective.multiplier_rate needs objective.costs"),
        ({**COSTS, "costs": {"nothing": 0.1}}, "objective.costs names 'nothing', which is not one of digits"),
    ],
)
def test_error_names_settings_that_do_not_match(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        trainer(None, **{"reference": "previous", **settings})


@pytest.mark.parametrize("offline", [{"groups_data": "groups.jsonl"}, {"sample_groups": 4}, {}])
def test_costs_of_logged_groups_are_rejected_since_their_rates_never_change(offline: dict[str, Any]):
    rows = [{"prompt": "1", "completions": ["1", "2"], "rewards": [1, 0], "reward_parts": [{"other": 0}, {"other": 1}]}]
    settings = {**COSTS, "reference": "auto", **offline}
    with pytest.raises(ConfigError, match=r"objective\.costs needs live samples"):
        trainer(None, data=None if offline else rows, **settings)


def test_a_run_by_segments_logs_them(tmp_path: Path):
    trainer(tmp_path, objective="gsspo", segment_at="2", reference="previous", groups_per_update=2).train()
    last = lines(tmp_path)[-1]
    assert 1.0 <= last["gsspo/segments"] <= 3.0
    assert last["gsspo/ratio_mean/last"] != 1.0


def constrained(path: Path, *, resume: bool = False, **settings: Any) -> Any:
    policy = model()
    trainer(
        path,
        policy=policy,
        rewards=[hit(), other()],
        reward_weights=[1.0, 0.0],
        **{**COSTS, "steps": 5, "checkpoint_every": 2, "multiplier_rate": 0.5, "groups_per_update": 2, **settings},
    ).train(resume=resume)
    return weights(policy)


@pytest.mark.filterwarnings("ignore::gvpo.errors.GvpoWarning")
def test_multipliers_are_in_the_metrics_and_in_checkpoints_and_resume_exactly(tmp_path: Path):
    with stopped_at(5):
        constrained(tmp_path / "stopped")
    saved = load(tmp_path / "stopped/checkpoints/step-000004").state.multipliers
    end = constrained(tmp_path / "stopped", resume=True)
    assert same(end, constrained(tmp_path / "unbroken"))
    assert lines(tmp_path / "stopped") == lines(tmp_path / "unbroken")
    found = [line for line in lines(tmp_path / "stopped") if line["step"] > 0]
    assert found[4]["multiplier/other"] == saved["other"] > 0
    used = 0.0
    for line in found:  # a step uses the multipliers that the steps before it led to
        assert line["multiplier/other"] == pytest.approx(used)
        used = max(0.0, used + 0.5 * (line["reward/other"] - 0.3))


@pytest.mark.slow
def test_a_limit_is_learned_to_be_kept(tmp_path: Path):
    settings = {"steps": 60, "learning_rate": 1e-2, "checkpoint_every": 0, "eval_problems": 0, "group_size": 8}
    constrained(tmp_path / "limited", **settings)
    constrained(tmp_path / "free", **settings, costs={"other": 1.0})
    limited, free = (
        sum(line["reward/other"] for line in lines(tmp_path / name)[-10:]) / 10 for name in ("limited", "free")
    )
    assert limited < 0.4
    assert free > limited + 0.2
