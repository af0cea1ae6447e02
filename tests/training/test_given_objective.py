"""An objective that is passed to the trainer as a function."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gvpo.config import Given, resolve
from gvpo.config.given_objective import name_of, spec_of
from gvpo.errors import ConfigError, RunError
from gvpo.objectives import ObjectiveOutput, gvpo, sft
from gvpo.objectives.dpo import dpo_rows
from gvpo.training.trainer import Trainer
from tests.training.toy import ROWS, config, lines, model, same, share, stopped_at, tokenizer, weights

NO_EVAL: dict[str, Any] = {"eval_problems": 0}


def mine(
    logprobs: Tensor, *, rewards: Tensor, ref_logprobs: Tensor, group: Tensor, mask: Tensor, beta: float = 0.7
) -> ObjectiveOutput:
    return gvpo(logprobs, rewards=rewards, ref_logprobs=ref_logprobs, group=group, mask=mask, beta=beta)


def other(logprobs: Tensor, *, rewards: Tensor, group: Tensor, mask: Tensor) -> ObjectiveOutput:
    """Lower the mean log-prob of rows with less reward."""
    return ObjectiveOutput(-(rewards[:, None] * logprobs * mask).sum() / mask.sum(), {})


def trained(path: Path, function: Any = None, *, resume: bool = False, **settings: Any) -> Trainer:
    run = Trainer(
        model(),
        share(),
        args=config(path, **{**NO_EVAL, **settings}),
        train_dataset=ROWS,
        processing_class=tokenizer(),
        objective=function,
    )
    run.train(resume=resume)
    return run


@pytest.mark.parametrize("settings", [{}, {"passes": 2, "groups_per_update": 2}], ids=str)
def test_a_function_trains_like_the_same_objective_of_the_table(tmp_path: Path, settings: dict[str, Any]):
    named = trained(tmp_path / "named", objective="gvpo", beta=0.3, **settings)
    given = trained(tmp_path / "given", mine, beta=0.3, **settings)
    assert same(weights(named.model), weights(given.model))
    assert lines(tmp_path / "named") == lines(tmp_path / "given")
    assert given.config.objective == "python:mine"


def test_its_gradient_does_not_depend_on_the_micro_batches(tmp_path: Path):
    whole, cut = (
        trained(tmp_path / str(budget), mine, steps=1, tokens_per_microbatch=budget, prefix_sharing="off")
        for budget in (8192, 8)
    )
    for one, two in zip(weights(whole.model).values(), weights(cut.model).values(), strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-6)


def test_a_run_is_resumed_with_the_same_function_only(tmp_path: Path):
    whole = trained(tmp_path / "whole", other, checkpoint_every=1)
    with stopped_at(3):
        trained(tmp_path / "run", other, checkpoint_every=1)
    renamed = functools.partial(mine)
    with pytest.raises(RunError, match=r"started with objective\.name='python:other', not 'python:mine'"):
        trained(tmp_path / "run", renamed, checkpoint_every=1, resume=True)

    def other_code(logprobs: Tensor, *, rewards: Tensor, group: Tensor, mask: Tensor) -> ObjectiveOutput:
        return ObjectiveOutput(-(2 * rewards[:, None] * logprobs * mask).sum() / mask.sum(), {})

    other_code.__name__ = "other"
    with pytest.raises(RunError, match="started with another objective; resume it with the same one"):
        trained(tmp_path / "run", other_code, checkpoint_every=1, resume=True)
    assert same(weights(trained(tmp_path / "run", other, checkpoint_every=1, resume=True).model), weights(whole.model))


def test_the_signature_says_what_a_run_must_provide():
    assert spec_of(mine, 8).needs == ("rewards", "ref_logprobs")
    assert spec_of(mine, 8).keywords == {"beta": 0.7}
    assert (spec_of(mine, 8).min_group, spec_of(mine, 1).min_group) == (2, 1)
    assert spec_of(dpo_rows, 8).learns_from == "pairs"
    assert spec_of(sft, 8).learns_from == "answers"
    assert spec_of(lambda logprobs, *, rewards, old_logprobs=None: None, 8).needs == ("rewards", "old_logprobs")
    assert name_of(functools.partial(mine, beta=1)) == "python:mine"


def test_it_learns_from_written_answers_and_from_pairs(tmp_path: Path):
    def likely(logprobs: Tensor, *, mask: Tensor) -> ObjectiveOutput:
        return ObjectiveOutput(-(logprobs * mask).sum() / mask.sum(), {})

    written = [{"prompt": digit, "completion": digit} for digit in "0123"]
    pairs = [{"prompt": digit, "chosen": digit, "rejected": "9"} for digit in "0123"]
    for name, objective, rows in (("sft", likely, written), ("dpo", functools.partial(dpo_rows, beta=0.1), pairs)):
        args = config(tmp_path / name, learning_rate=3e-2, steps=6, eval_problems=0)
        run = Trainer(model(), args=args, train_dataset=rows, processing_class=tokenizer(), objective=objective)
        run.train()
        assert lines(tmp_path / name)[-1]["train/loss"] < lines(tmp_path / name)[0]["train/loss"]


def test_keywords_that_are_none_by_default_are_accepted_and_not_announced():
    def mine(logprobs: Tensor, *, rewards: Tensor, beta: float | None = None, kl_coef: float | None = None) -> None: ...

    def near(logprobs: Tensor, *, ref_logprobs: Tensor, rewards: Tensor, beta: float | None = None) -> None: ...

    plans = [resolve(config(), Given(objective=each, rewards=True, model=True)) for each in (mine, near)]
    assert [plan.reads_reference for plan in plans] == [False, True]
    assert plans[0].introduction is None
    assert "beta" not in str(plans[1].introduction)


def test_a_passed_objective_replaces_that_of_the_settings():
    plan = resolve(config(objective="grpo"), Given(objective=other, rewards=True, model=True))
    assert plan.settings.objective == "python:other"
    assert "objective.name has no effect: the objective that is passed is used instead" in plan.notices
    with pytest.raises(ConfigError, match=r"objective.clip_low is not a keyword of python:other; it accepts none"):
        resolve(config(clip_low=0.2), Given(objective=other, rewards=True, model=True))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("gvpo", "objective is a str; pass a function, or set objective.name"),
        (lambda logprobs, **inputs: None, "does not name its inputs; write it as def <lambda>"),
        (lambda: None, "does not name its inputs"),
        (lambda logprobs, *, rewards, advantage: None, "needs 'advantage', which a run does not provide; it provides"),
    ],
)
def test_an_objective_that_cannot_work_is_refused_before_a_model_is_loaded(objective: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        Trainer("no/such/model", share(), train_dataset=ROWS, objective=objective)
