"""Distillation runs: a tiny student becomes a tiny teacher, with and without rewards, and resumes."""

import pytest
import torch

from gvpo import runfiles
from gvpo.config import resolve
from gvpo.config.plan import Given
from gvpo.errors import ConfigError, ModelError, RunError
from gvpo.model.fresh_tokenizer import fresh_tokenizer
from gvpo.model.model import save_model
from gvpo.rollout.usable import TrainingGroup
from gvpo.training.learner import Learner
from gvpo.training.objective import build_objective
from gvpo.training.step.teacher import load_teacher
from gvpo.training.trainer import Trainer
from gvpo.update.group_backward import score
from tests.training.rank_jobs import distilled_run
from tests.training.toy import (
    DIGITS,
    ROWS,
    config,
    groups,
    lines,
    model,
    noticed,
    same,
    share,
    tokenizer,
    trainer,
    weights,
)
from tests.training.world import world


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Return the directory of another random model, whose logits are large enough to differ clearly."""
    directory, policy = tmp_path_factory.mktemp("teacher"), model(seed=7)
    with torch.no_grad():
        policy.get_output_embeddings().weight *= 12
    save_model(policy, tokenizer(), directory)
    return str(directory)


def distillation(run_dir, teacher, *, rewards=(), **settings):
    args = config(run_dir, objective="distill", teacher=teacher, **settings)
    given = list(rewards) or None
    return Trainer(model(), given, args=args, train_dataset=ROWS, processing_class=tokenizer())


def test_a_student_becomes_its_teacher_without_rewards(tmp_path, teacher):
    run = distillation(tmp_path / "run", teacher, steps=45, prompts_per_step=5, group_size=16, learning_rate=2e-2)
    run.train()
    found = lines(tmp_path / "run")
    assert found[0]["distill/variance"] > 1
    assert found[-1]["distill/variance"] < 0.2 * found[0]["distill/variance"]
    assert found[-1]["distill/logratio_mean"] < 0.3 * found[0]["distill/logratio_mean"]
    assert not any(key.startswith(("reward/", "rows/failed", "eval/")) for key in found[-1])
    assert found[-1]["groups/skipped"] == 0


def test_rewards_are_logged_and_change_nothing(tmp_path, teacher):
    plain = distillation(tmp_path / "plain", teacher)
    plain.train()
    judged = distillation(tmp_path / "judged", teacher, rewards=[share()])
    judged.train()
    assert same(weights(plain.model), weights(judged.model))
    assert "reward/mean" in lines(tmp_path / "judged")[0]


def test_a_row_whose_reward_is_missing_is_still_learned_from(tmp_path, teacher):
    plain = distillation(tmp_path / "plain", teacher)
    plain.train()
    some = distillation(tmp_path / "some", teacher, rewards=[abstaining()])
    some.train()
    assert 0 < lines(tmp_path / "some")[0]["rows/failed"] < 0.5
    assert same(weights(plain.model), weights(some.model))


def abstaining():
    def digits(completions, **_):
        return [None, *[1.0] * (len(completions) - 1)]

    return digits


def test_the_teacher_is_scored_at_the_runs_temperature_and_is_not_trained(tmp_path, teacher):
    settings = config(objective="distill", teacher=teacher, temperature=0.5, passes=2)
    frozen = load_teacher(settings, tokenizer())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    before = weights(frozen)
    learner = Learner(model(), build_objective(settings), settings, teacher=frozen)
    batch = [TrainingGroup(group, index, tuple(range(4))) for index, group in enumerate(groups())]
    result = learner.learn(batch, 1)
    assert same(before, weights(frozen))
    expected = score(frozen, [entry.group for entry in batch], temperature=0.5)
    for update in result.updates:
        rows = [row for entry in update.groups for row in entry.group.completions]
        for row, wanted in zip(rows, expected, strict=True):
            torch.testing.assert_close(row.extras["teacher_logprobs"], wanted.logprobs)


def test_a_resumed_run_repeats_an_unbroken_one_and_its_checkpoints_have_no_teacher(tmp_path, teacher):
    whole = distillation(tmp_path / "whole", teacher, steps=4)
    whole.train()
    distillation(tmp_path / "part", teacher, steps=2).train()
    resumed = distillation(tmp_path / "part", teacher, steps=4)
    resumed.train(resume=True)
    assert same(weights(whole.model), weights(resumed.model))
    assert lines(tmp_path / "part") == lines(tmp_path / "whole")
    files = [path.name for path in (tmp_path / "whole" / "checkpoints").rglob("*.safetensors")]
    assert files
    assert "reference.safetensors" not in files
    assert "teacher" in runfiles.read_json(tmp_path / "whole" / runfiles.INPUTS)


def test_another_teacher_under_the_same_path_is_refused_on_resume(tmp_path):
    save_model(model(seed=7), tokenizer(), tmp_path / "teacher")
    distillation(tmp_path / "run", str(tmp_path / "teacher"), steps=1).train()
    save_model(model(seed=8), tokenizer(), tmp_path / "teacher")
    with pytest.raises(RunError, match="was started with another teacher; resume it with the same one"):
        distillation(tmp_path / "run", str(tmp_path / "teacher"), steps=2).train(resume=True)


@pytest.mark.parametrize("settings", [{"lora_rank": 2}, {"compute_dtype": "bfloat16"}, {"sample_groups": 6}])
def test_other_kinds_of_runs_have_a_teacher_too(tmp_path, teacher, settings):
    run = distillation(tmp_path / "run", teacher, steps=2, rewards=[share()], **settings)
    run.train()
    first, last = lines(tmp_path / "run")
    assert first["distill/variance"] > 1
    assert last["distill/variance"] != first["distill/variance"]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_ranks_score_their_shares_with_the_teacher(tmp_path, teacher, sharding):
    distillation(tmp_path / "one", teacher).train()
    world(2, tmp_path, distilled_run, tmp_path / "two", teacher, sharding=sharding)
    alone, shared = ([line["distill/variance"] for line in lines(tmp_path / name)] for name in ("one", "two"))
    assert shared == pytest.approx(alone, rel=1e-4)


def test_logged_groups_have_a_teacher_too(tmp_path, teacher):
    rows = [{"prompt": one, "completions": [one * 3, one * 2, "12"], "rewards": [1.0, 0.5, 0.0]} for one in DIGITS]
    args = config(tmp_path / "run", objective="distill", teacher=teacher, steps=20, prompts_per_step=10)
    with noticed("never cover the teacher, so this run does not reach the unique optimum of DISTILL"):
        Trainer(model(), args=args, train_dataset=rows, processing_class=tokenizer()).train()
    found = lines(tmp_path / "run")
    assert found[-1]["distill/variance"] < 0.5 * found[0]["distill/variance"]


def test_groups_that_are_stored_need_a_reward(tmp_path, teacher):
    with pytest.raises(ConfigError, match=r"data\.sample_groups stores groups with rewards, and there is no reward"):
        distillation(tmp_path / "run", teacher, sample_groups=6)


def test_a_run_may_be_the_teacher(tmp_path):
    trainer(tmp_path / "first", steps=1).train()
    run = distillation(tmp_path / "second", str(tmp_path / "first"), steps=1)
    run.train()
    assert lines(tmp_path / "second")[0]["distill/variance"] > 0


def test_a_teacher_with_other_tokens_is_refused(tmp_path):
    other = fresh_tokenizer(list(reversed(DIGITS)))
    save_model(model(), other, tmp_path / "other")
    with pytest.raises(ModelError, match=r"has another tokenizer: '\d' has id \d+ in the policy's and id \d+ in"):
        distillation(tmp_path / "run", str(tmp_path / "other"))


def test_a_teacher_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        distillation(tmp_path / "run", str(tmp_path / "nowhere"))


def test_settings_that_do_not_fit():
    given = Given(train="problems", model=True)
    with pytest.raises(ConfigError, match=r"distill needs teacher_logprobs: set objective\.teacher"):
        resolve(config(objective="distill", reference="auto"), given)
    with pytest.raises(ConfigError, match=r"objective\.teacher is not for rloo"):
        resolve(config(objective="rloo", teacher="somewhere"), given)
