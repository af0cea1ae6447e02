"""The warning when all log-probs fall, from made-up lines, with cases that must not cause it."""

import math

import pytest

from gvpo.collapse import LOWEST, CollapseWatch, collapse_warning


def made(values, *, key="offpolicy/logratio_best", live=True, updates=1, **others):
    """Return lines of steps with these log-ratios of the best rows."""
    sampled = {"seconds/sampling": 1.0} if live else {}
    return [
        {"step": step, key: value, "train/updates": updates, **sampled, **others}
        for step, value in enumerate(values, start=1)
    ]


FALLING = [0.0, -0.5, -1.0, -1.5, -2.0, -2.5, -3.0]

QUIET = {
    "no lines": [],
    "only an evaluation": [{"step": 0, "eval/accuracy": 0.5}],
    "fresh samples in each update": made([0.0] * 50),
    "best rows that rise": made([0.0, 0.5, 1.0, 2.0]),
    "a lone spike": made([0.0] * 7 + [-5.0] + [0.1] * 20),
    "all rows far below zero and the best ones not, as at GVPO's optimum": made(
        [0.3] * 20, **{"offpolicy/logratio_mean": -4.9, "gvpo/logratio_mean": -4.9, "gvpo/logratio_optimum": -4.9}
    ),
    "values that are not finite": made([None, math.nan, -math.inf, None]),
    "logged rows of another policy, far below zero from the start": made([-40.0, -38.0, -41.0], live=False),
    "a reference that is far away, with fresh samples": made([-3.0] * 20, key="gvpo/logratio_mean_better"),
}

LOUD = {
    "updates of one step each": (made(FALLING), 5),
    "several updates of a step": (made([-0.2, -1.2], updates=12), 2),
    "only the first step": (made([-6.0], updates=12), 1),
    "logged rows of the starting policy": (made(FALLING, live=False), 5),
    "logged rows without the sampler's log-probs": (made(FALLING, key="gvpo/logratio_mean_better", live=False), 5),
    "logged rows of another policy, with a reference": (
        [
            {**far, **near}
            for far, near in zip(
                made([-40.0] * 7, live=False), made(FALLING, key="gvpo/logratio_mean_better", live=False), strict=True
            )
        ],
        5,
    ),
    "after steps that had no best rows": ([{"step": 1}, *made([None, -2.0])], 2),
    "a thousand nats": (made([0.0, -1000.0]), 2),
}


@pytest.mark.parametrize("name", QUIET)
def test_no_warning(name):
    assert collapse_warning(QUIET[name]) == ""


@pytest.mark.parametrize("name", LOUD)
def test_a_warning_at_the_step_whose_mean_is_too_low(name):
    lines, step = LOUD[name]
    assert collapse_warning(lines).startswith(f"step {step}: the best answers become less likely")


def test_rows_of_a_file_in_live_groups_carry_no_information_about_a_fall():
    far = made([-5.0, -5.0])
    assert collapse_warning([{**line, "seconds/sampling": 1.0} for line in far]) != ""
    assert collapse_warning([{**line, "seconds/sampling": 1.0, "rows/logged": 0.5} for line in far]) == ""


def test_it_warns_once():
    watch = CollapseWatch()
    told = [watch.note(line) for line in made(FALLING)]
    assert [bool(text) for text in told] == [False, False, False, False, True, False, False]
    assert watch.warning == told[4]


def test_the_warning_has_a_diagnosis_and_a_remedy():
    plain = collapse_warning(made([0.0, -5.0]))
    assert "is -2.5 nats and should not stay below 0." in plain
    assert "train.passes" in plain
    assert "train.learning_rate" in plain
    assert "GVPO" not in plain


def test_the_warning_for_gvpo_names_the_optimum_the_reference_and_beta():
    text = collapse_warning(made([0.0, -5.0], **{"gvpo/logratio_mean": -14.04, "gvpo/logratio_optimum": -4.9}))
    assert "(all rows to the reference: -14.0 nats, at GVPO's optimum -4.9)" in text
    assert "objective.reference='sampler'" in text
    assert "objective.beta" in text


def test_the_mean_is_over_eight_updates():
    """Seven updates without a change and one with eight times the threshold are exactly at it."""
    quiet = [0.0] * 20
    assert collapse_warning(made([*quiet, 8 * LOWEST])) == ""
    assert collapse_warning(made([*quiet, 8 * LOWEST - 0.01])) != ""
