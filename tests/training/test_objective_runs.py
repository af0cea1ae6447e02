"""Runs with the objectives for rows of other policies: what their lines say."""

import functools

import pytest

from gvpo.objectives import regression
from gvpo.types import Completion, Group
from gvpo.update.group_backward import group_backward
from tests.training.toy import lines, model, tokenizer, trainer


def lines_of(run_dir, **settings):
    """Return the lines of a run without evaluations."""
    trainer(run_dir, held=[], eval_problems=0, **settings).train()
    return lines(run_dir)


@pytest.mark.parametrize("objective", ["gvpo", "pmd_mean"])
def test_an_anchor_shows_its_term(tmp_path, objective):
    settings = {} if objective == "pmd_mean" else {"anchor": 0.1}
    first, second = lines_of(tmp_path / "run", objective=objective, steps=2, passes=2, **settings)
    assert first["gvpo/anchor_term"] >= 0
    assert second["gvpo/anchor_term"] > 0  # the policy has left its reference


def test_without_an_anchor_there_is_no_term(tmp_path):
    assert "gvpo/anchor_term" not in lines_of(tmp_path / "run", steps=1, anchor=0.0)[0]


def test_live_rows_have_importance_weights_of_1(tmp_path):
    for line in lines_of(tmp_path / "run", objective="grpo", is_cap=2.0, steps=2, groups_per_update=2):
        assert line["grpo/is_weight_mean"] == pytest.approx(1, abs=1e-5)
        assert line["grpo/is_capped_fraction"] == 0


def test_cispo_begins_as_dapo_does(tmp_path):
    (cispo,), (dapo,) = (lines_of(tmp_path / name, objective=name, steps=1) for name in ("cispo", "dapo"))
    assert cispo["train/grad_norm"] == pytest.approx(dapo["train/grad_norm"], rel=1e-4)
    assert cispo["cispo/ratio_mean"] == 1
    (several,) = lines_of(tmp_path / "several", objective="cispo", steps=1, groups_per_update=2)
    assert several["cispo/ratio_mean/last"] != 1


def test_values_of_groups_come_from_the_rows():
    prompt = tuple(tokenizer()("3").input_ids)

    def loss(value):
        rows = [
            Completion([token], reward=reward, ref_logprobs=[-1.0], extras={"value": value})
            for token, reward in ((1, 1.0), (2, 0.0))
        ]
        return float(group_backward(model(), [Group(prompt, rows)], objective).loss)

    objective = functools.partial(regression, anchor=2.0, beta=0.5)
    # anchor/2 (beta lbar - Rbar + V)^2: the second difference in V is the anchor.
    assert loss(1.0) - 2 * loss(0.0) + loss(-1.0) == pytest.approx(2.0, rel=1e-5)
