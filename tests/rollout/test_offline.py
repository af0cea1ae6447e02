"""Offline training: on rows, on a file, on groups sampled once; without a sampler, and resumed."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest

from gvpo import runfiles
from gvpo.config import Given, TrainConfig, resolve
from gvpo.config.recipe import restore_config
from gvpo.errors import ConfigError, DataError, RewardError, RunError
from gvpo.rollout.collect import Rollout
from gvpo.rollout.logged_groups import NO_REWARD
from gvpo.rollout.sources.offline import OfflineSource
from gvpo.sampling.transformers import TransformersSampler
from gvpo.training.trainer import Trainer
from gvpo.training.warm_start import train_recipe
from tests.training.toy import DIGITS, INIT, ROWS, config, lines, model, noticed, same, tokenizer, trainer, weights

FINITE = "logged groups are finite"
PAIRS_PASSED = Given(train="pairs", model=True)
LOGGED = [
    {"prompt": one, "completions": list(DIGITS), "rewards": [float(one == other) for other in DIGITS]} for one in DIGITS
]

SAMPLED = [
    {
        "prompt": one,
        "completions": [[tokenizer().convert_tokens_to_ids(other), tokenizer().eos_token_id] for other in DIGITS],
        "rewards": [float(one == other) for other in DIGITS],
        "sampler_logprobs": [[-1.0, -0.5]] * len(DIGITS),
    }
    for one in DIGITS
]


def offline(run_dir: Path, rows: Any = LOGGED, *, policy: Any = None, **settings: Any) -> Trainer:
    """Return a trainer without rewards and evaluation."""
    given = {"eval_problems": 0, "reference": "auto", **settings}
    return Trainer(
        policy if policy is not None else model(),
        args=config(run_dir, **given),
        train_dataset=rows,
        processing_class=tokenizer(),
    )


def test_it_learns_from_rows_and_is_evaluated_live(tmp_path: Path):
    """The evaluation reward, the fraction of three correct positions, is .03 at the start and .33 if every first digit
    is right."""
    summary = trainer(
        tmp_path,
        data=LOGGED,
        reference="auto",
        steps=30,
        prompts_per_step=10,
        learning_rate=1e-2,
        max_tokens=1,
        eval_every=30,
    ).train()
    first, *_, last = lines(tmp_path)
    assert first["eval/reward"] < 0.1
    assert last["eval/reward"] > 0.2
    assert summary["steps"] == 30


@pytest.mark.parametrize("objective", ["sft", "poft", "dpo", "epa"])
@pytest.mark.parametrize("temperature", [0.5, 0.999, 2.0])
def test_objectives_of_written_answers_reject_another_temperature(objective: str, temperature: float):
    with pytest.raises(ConfigError, match=rf"{objective} .*sampling\.temperature={temperature:g} .*=1"):
        resolve(TrainConfig(objective=objective, temperature=temperature), PAIRS_PASSED)
    assert resolve(TrainConfig(objective=objective, temperature=1), PAIRS_PASSED).settings.temperature == 1


def test_logged_rows_without_sampler_log_probs_reject_another_temperature(tmp_path: Path):
    """Text has no temperature. Recorded log-probs show that a sampler at the run's temperature sampled the rows."""
    sampled = {"prompt": "1", "completions": [[3], [4]], "rewards": [1, 0], "sampler_logprobs": [[-1.0], [-2.0]]}
    text = {"prompt": "1", "completions": ["3", "4"], "rewards": [1, 0]}
    with pytest.raises(DataError, match=r"row 2 has no `sampler_logprobs` .*sampling\.temperature=0\.5 .*=1"):
        offline(tmp_path / "a", [sampled, text], temperature=0.5).check()
    offline(tmp_path / "b", [sampled], temperature=0.5).check()
    offline(tmp_path / "c", [sampled, text], temperature=1).check()


def test_no_sampling_happens_and_the_rewards_come_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("sampled")

    monkeypatch.setattr(TransformersSampler, "sample", never)
    rows = [{**ROWS[0], "completions": ["1", "2", "3"], "rewards": [4, None, 0]}, {**LOGGED[1], "rewards": [None] * 10}]
    summary = offline(tmp_path, rows, steps=1, prompts_per_step=2, max_tokens=512).train()  # beyond the context of 64
    (line,) = lines(tmp_path)
    assert (line["reward/mean"], line["rows/failed"]) == (2.0, pytest.approx(11 / 13))
    assert (line["groups/total"], line["groups/skipped"], line["train/updates"]) == (2, 1, 1)
    assert not {"accuracy", "seconds/sampling", "sampler/mismatch"} & set(line)
    assert summary["accuracy_after"] is None
    written = {(row.group, row.row): row for row in runfiles.read_rollouts(runfiles.rollout_path(tmp_path, 1))}
    assert len(written) == 13
    assert (written["row-1", 1].reward, written["row-1", 1].reason) == (None, NO_REWARD)
    assert (written["row-1", 0].reward, written["row-1", 0].text) == (4.0, "1")
    assert written["row-1", 0].source == "data"
    assert dict(written["row-1", 0].columns) == {"digit": "0"}
    assert written["row-1", 0].weight == pytest.approx(-(written["row-1", 2].weight or 0))
    assert written["row-1", 0].ref_logprobs == pytest.approx(written["row-1", 0].logprobs)


def test_epochs_go_through_every_group_and_decide_the_steps(tmp_path: Path):
    summary = offline(tmp_path, epochs=2, prompts_per_step=4).train()
    assert summary["steps"] == 5
    assert restore_config((tmp_path / "config.json").read_text()).steps == 5
    seen = [
        row.group.partition("#")[0]
        for step in runfiles.rollout_steps(tmp_path)
        for row in runfiles.read_rollouts(runfiles.rollout_path(tmp_path, step))
        if row.row == 0
    ]
    assert sorted(seen) == sorted([f"row-{number}" for number in range(1, 11)] * 2)


def test_epochs_count_problems_online_too(tmp_path: Path):
    assert trainer(tmp_path, epochs=1, held=[], eval_problems=0).train()["steps"] == 3


def test_rows_datasets_and_files_give_the_same_run(tmp_path: Path):
    file, parquet = tmp_path / "groups.jsonl", tmp_path / "groups.parquet"
    file.write_text("".join(json.dumps(row) + "\n" for row in LOGGED))
    datasets.Dataset.from_list(LOGGED).to_parquet(parquet)
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "rows": (LOGGED, {}),
        "an iterator": (iter(LOGGED), {}),
        "datasets": (datasets.Dataset.from_list(LOGGED), {}),
        "path": (file, {}),
        "settings": (None, {"groups_data": str(file)}),
        "parquet": (None, {"groups_data": str(parquet)}),
    }
    ends = []
    for name, (rows, settings) in kinds.items():
        one = offline(tmp_path / name, rows, **settings)
        one.train()
        ends.append((lines(tmp_path / name), weights(one.model)))
    assert all(end[0] == ends[0][0] and same(end[1], ends[0][1]) for end in ends)


def test_old_logprobs_are_those_that_the_sampler_recorded(tmp_path: Path):
    offline(tmp_path, SAMPLED, objective="grpo", passes=2, groups_per_update=2, steps=2, learning_rate=1e-2).train()
    for step in (1, 2):
        rows = list(runfiles.read_rollouts(runfiles.rollout_path(tmp_path, step)))
        assert all(row.old_logprobs == row.sampler_logprobs == [-1.0, -0.5] for row in rows)
    first, second = lines(tmp_path)
    assert (first["train/updates"], second["train/updates"]) == (4, 4)
    assert first["grpo/ratio_mean"] != 1
    assert restore_config((tmp_path / "config.json").read_text()).rollout_old_logprobs == "sampler"


@pytest.mark.parametrize("objective", ["grpo", "rloo", "gspo", "dapo"])
def test_rows_without_recorded_log_probs_are_refused_by_objectives_with_ratios(tmp_path: Path, objective: str):
    one = offline(tmp_path / "run", [SAMPLED[0], LOGGED[1]], objective=objective)
    for act in (one.check, one.train):
        with pytest.raises(DataError, match=rf"row 2 has no `sampler_logprobs`, but {objective} .* such as gvpo"):
            act()
    assert not (tmp_path / "run").exists()
    offline(tmp_path / "gvpo", LOGGED).check()


def test_a_run_of_an_earlier_version_resumes_with_the_log_probs_of_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its config.json has no rollout.old_logprobs; it computed old log-probs itself, and read none of the rows."""
    settings = {"objective": "grpo", "passes": 2, "groups_per_update": 2, "steps": 2, "learning_rate": 1e-2}
    with monkeypatch.context() as patch:
        patch.setattr("gvpo.training.build.check_old_logprobs", lambda inputs: None)
        found = {"rollout_old_logprobs": "trainer", "is_cap": None}
        patch.setattr("gvpo.config.plan.find_old_logprobs", lambda *_: found)
        patch.setattr("gvpo.config.rollout_rules._old_logprobs", lambda plan: iter(()))
        offline(tmp_path, **settings, checkpoint_every=1).train()
    whole = lines(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "step-000002")
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["rollout"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    offline(tmp_path, **settings, checkpoint_every=1).train(resume=True)
    assert lines(tmp_path) == whole
    assert whole[1]["grpo/clip_fraction"] > 0
    rows = runfiles.read_rollouts(runfiles.rollout_path(tmp_path, 2))
    unmoved = {row.group for row in rows if row.old_logprobs == pytest.approx(row.logprobs, abs=1e-5)}
    assert len(unmoved) == 2, "the groups of the step's first update, and not of its second"


# the reference, and what cannot be asked for


def test_the_reference_is_the_initial_policy_and_previous_is_rejected(tmp_path: Path):
    assert offline(tmp_path / "a").config.reference == "initial"
    assert offline(tmp_path / "b", reference="every:5").config.reference == "every:5"
    assert trainer(tmp_path / "c", reference="auto", groups_per_update=2).config.reference == "sampler"
    with pytest.raises(ConfigError, match="offline training does not sample"):
        offline(tmp_path / "d", reference="previous")
    with pytest.raises(ConfigError, match="no policy of the run sampled logged groups"):
        offline(tmp_path / "e", reference="sampler")


def test_the_sampler_of_groups_that_are_sampled_once_is_the_initial_policy(tmp_path: Path):
    for name in ("initial", "sampler"):
        trainer(tmp_path / name, **{**ONCE, "reference": name}).train()
    assert lines(tmp_path / "initial") == lines(tmp_path / "sampler")


def test_gvpo_warns_that_a_file_never_covers_the_reference(tmp_path: Path):
    with noticed(FINITE):
        offline(tmp_path / "gvpo", steps=1).train()
    with noticed() as said:
        offline(tmp_path / "grpo", SAMPLED, steps=1, objective="grpo").train()
    assert not [message for message in said if FINITE in message]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**LOGGED[0], "completions": [[1], [99]], "rewards": [0, 1]}], "row 1: token id 99"),
        ([{**LOGGED[0], "rewards": [None] * 9 + [1]}], "none has two completions with a reward"),
        ([LOGGED[0], {**LOGGED[1], "rewards": [1]}], "row 2: `rewards` has 1 values for 10"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_found_before_there_is_a_run(tmp_path: Path, rows: Any, message: str):
    with pytest.raises(DataError, match=message):
        offline(tmp_path / "run", rows).train()
    assert not (tmp_path / "run").exists()


def test_groups_are_not_for_supervised_training(tmp_path: Path):
    with pytest.raises(ConfigError, match="give rows with `prompt` and `completion`"):
        offline(tmp_path, objective="sft")


def test_held_out_problems_need_a_reward(tmp_path: Path):
    with pytest.raises(ConfigError, match="eval_dataset needs a reward"):
        Trainer(
            model(),
            args=config(tmp_path, objective="grpo"),
            train_dataset=LOGGED,
            eval_dataset=ROWS,
            processing_class=tokenizer(),
        ).train()


def test_groups_of_one_are_allowed_with_any_group_size(tmp_path: Path):
    file = tmp_path / "groups.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in LOGGED))
    offline(tmp_path / "run", None, groups_data=str(file), group_size=1, steps=1).train()
    assert lines(tmp_path / "run")[0]["groups/skipped"] == 0


# sampled once

ONCE: dict[str, Any] = {"sample_groups": 6, "epochs": 2, "reference": "auto", "checkpoint_every": 1}


def test_what_was_sampled_once_trains_another_run_the_same(tmp_path: Path):
    one = trainer(tmp_path / "once", **ONCE)
    assert one.train()["steps"] == 3
    file = tmp_path / "once" / runfiles.GROUPS
    assert len(file.read_text().splitlines()) == 6
    settings = {name: value for name, value in ONCE.items() if name != "sample_groups"}
    other = trainer(tmp_path / "file", data=None, groups_data=str(file), **settings)
    other.train()
    (before, *steps), (before_file, *steps_file) = lines(tmp_path / "once"), lines(tmp_path / "file")
    known = {"rows/live", "rows/logged", "age/mean", "age/max", "sampler/mismatch", "gvpo/certificate"}
    others = [{key: value for key, value in line.items() if key not in known} for line in steps]
    assert steps_file[1:] == [line | {"rows/live": 0.0, "rows/logged": 1.0} for line in others[1:]]
    assert [line.get("age/max") for line in steps] == [0, 1, 2]  # the starting policy sampled the rows
    assert [line["rows/live"] for line in steps] == [1.0] * 3
    assert [line["offpolicy/logratio_mean"] == 0 for line in steps] == [True, False, False]
    assert before_file.pop("eval/overlap") < before.pop("eval/overlap")  # the file has fewer prompts than the data
    assert before_file == before
    assert same(weights(one.model), weights(other.model))
    assert lines(tmp_path / "once")[1]["accuracy"] == 0.0  # the parts came along with the rewards
    (row, *_) = runfiles.read_rollouts(runfiles.rollout_path(tmp_path / "once", 1))
    assert row.reward_parts == {"digits": row.reward}


def test_a_run_that_sampled_once_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = trainer(tmp_path / "whole", **ONCE)
    whole.train()
    rollout = OfflineSource.rollout

    def interrupted(source: OfflineSource, step: int) -> Rollout:
        if step == 2:
            raise RuntimeError("killed")
        return rollout(source, step)

    with monkeypatch.context() as patch:
        patch.setattr(OfflineSource, "rollout", interrupted)
        with pytest.raises(RuntimeError, match="killed"):
            trainer(tmp_path / "cut", **ONCE).train()
    resumed = trainer(tmp_path / "cut", **ONCE)
    resumed.train(resume=True)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert same(weights(resumed.model), weights(whole.model))


def test_groups_of_another_run_are_not_used_for_this_one(tmp_path: Path):
    (tmp_path / runfiles.GROUPS).write_text("")
    with pytest.raises(RunError, match="already exists; train on it with data"):
        trainer(tmp_path, **ONCE).train()
    assert (tmp_path / runfiles.GROUPS).read_text() == ""


def test_rewards_that_mostly_fail_stop_it_before_the_file_is_written(tmp_path: Path):
    def broken(completions: Any, **_: Any) -> list[Any]:
        return [None] * len(completions)

    with pytest.raises(RewardError, match="most rewards of the sampled groups failed"):
        trainer(tmp_path, rewards=broken, **ONCE, held=[], eval_problems=0).train()
    assert not (tmp_path / runfiles.GROUPS).exists()


@pytest.mark.filterwarnings("ignore:AutoTokenizer loads")
def test_a_recipe_with_a_warm_start_samples_once_after_it(tmp_path: Path):
    settings = {
        "task": "addition",
        "vocabulary": [*DIGITS, "+", "=", "\n", "\\boxed{", "}"],
        "model_init": {**INIT, "max_position_embeddings": 128},
        "warm_start_steps": 2,
        "warm_start_demonstrations": 20,
        "train_problems": 20,
        "eval_problems": 2,
        "max_tokens": 8,
        "objective": "grpo",
    }
    summary = train_recipe(config(tmp_path / "run", **{**ONCE, **settings}))
    assert summary["steps"] == 3
    assert restore_config((tmp_path / "run/config.json").read_text()).reference == "initial"
    stage = restore_config((tmp_path / "run/warm-start/config.json").read_text())
    assert (stage.sample_groups, stage.epochs, stage.steps) == (None, None, 2)
