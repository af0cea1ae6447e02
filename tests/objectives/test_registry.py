"""What holds for every objective: checks first, padding never read, precision, and the documented surface."""

import doctest
import functools
import inspect
import re
import sys
from pathlib import Path

import pytest
import torch

from gvpo import objectives
from gvpo.config import OBJECTIVE_KEYWORDS, OBJECTIVES
from gvpo.config.objectives import INPUT_OF
from gvpo.errors import GroupTooSmall, ObjectiveError, ShapeError
from tests.objectives.batches import gradient, make_batch, pick, roles_of

REQUIRED = {"dr_grpo": {"max_length": 8}, "constrained_grpo": {"multipliers": [0.5, 2.0]}}
"""Keywords that are not tensors and have no default."""
FUNCTIONS = {name: spec.load() for name, spec in OBJECTIVES.items()}
ANCHORED = ("regression", "pmd_mean")
"""Objectives whose function accepts groups of one, which only an anchor uses; a run leaves such groups out."""
PER_TOKEN = ("logprobs", "ref_logprobs", "old_logprobs", "teacher_logprobs")


def bound(name):
    return functools.partial(FUNCTIONS[name], **REQUIRED.get(name, {}))


def inputs_for(name, batch):
    """Return an objective's inputs from a batch. In each group the first row is the chosen one."""
    takes = inspect.signature(FUNCTIONS[name]).parameters
    roles = {"role": roles_of(batch["group"], weak=name == "epa")} if "role" in takes else {}
    return pick(batch, *(key for key in batch if key in takes), **roles)


def changed(batch, key, value):
    return {**batch, key: value}


every = pytest.mark.parametrize("name", sorted(OBJECTIVES))


def test_the_names_that_recipes_use():
    assert sorted(OBJECTIVES) == [
        *("cispo", "constrained_grpo", "dapo", "distill", "dpo", "dr_grpo", "epa", "grpo", "gspo"),
        *("gspo_token", "gsspo", "gvpo", "pmd_mean", "poft", "regression", "rloo", "sft"),
    ]
    assert objectives.__all__ == sorted(objectives.__all__)


@every
def test_keywords_are_keyword_only_and_documented(name):
    first, *others = inspect.signature(FUNCTIONS[name]).parameters.values()
    assert first.name == "logprobs"
    assert {parameter.kind for parameter in others} == {inspect.Parameter.KEYWORD_ONLY}
    assert "arXiv" in FUNCTIONS[name].__doc__


@every
def test_the_table_agrees_with_the_signature(name):
    spec = OBJECTIVES[name]
    takes = inspect.signature(FUNCTIONS[name]).parameters
    required = {key for key, each in takes.items() if each.default is inspect.Parameter.empty}
    optional = {key: each.default for key, each in takes.items() if key not in required}
    inputs = {"ref_logprobs", "advantages", "sampler_logprobs", "value"}
    assert required - {"logprobs", "mask", "group"} == set(spec.needs)
    assert spec.keywords == {key: value for key, value in optional.items() if key not in inputs}
    assert set(spec.keywords) <= set(OBJECTIVE_KEYWORDS) - set(INPUT_OF)
    assert spec.token_advantages == ("advantages" in optional)
    assert ("kl_coef" in spec.keywords) == ("ref_logprobs" in optional)
    assert spec.paper in FUNCTIONS[name].__doc__


@every
def test_a_group_below_the_tables_minimum_is_rejected(name):
    batch = make_batch()
    alone = {key: value[:1] for key, value in inputs_for(name, {**batch, "group": torch.arange(9)}).items()}
    if OBJECTIVES[name].min_group == 1 or name in ANCHORED:
        assert bound(name)(**alone).loss.isfinite()
    else:
        with pytest.raises(GroupTooSmall):
            bound(name)(**alone)


def test_presets_show_their_own_defaults():
    def defaults(name):
        return {key: value.default for key, value in inspect.signature(FUNCTIONS[name]).parameters.items()}

    assert (defaults("dapo")["clip_low"], defaults("dapo")["clip_high"]) == (0.2, 0.28)
    assert defaults("dapo")["reduction"] == "token_mean"
    assert (defaults("dr_grpo")["scale_rewards"], defaults("dr_grpo")["reduction"]) == (False, "constant")
    assert defaults("rloo")["baseline"] == "leave_one_out"
    assert (defaults("rloo")["clip_low"], defaults("rloo")["max_length"]) == (torch.inf, 1)


@pytest.mark.parametrize(
    "module",
    [
        *(
            "cispo",
            "constrained_grpo",
            "distill",
            "dpo",
            "epa",
            "grpo",
            "gspo",
            "gsspo",
            "gvpo",
            "kl_in_reward",
            "poft",
        ),
        *("regression", "sft"),
    ],
)
def test_the_examples_in_docstrings_run(module):
    result = doctest.testmod(sys.modules[f"gvpo.objectives.{module}"], extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0


@every
def test_every_metric_and_keyword_is_explained_on_the_objectives_page(name):
    pages = Path(__file__).parents[2] / "docs" / "reference" / "objectives"
    text = (pages / f"{name}.md").read_text(encoding="utf-8")
    # A page may send its reader on: "As [`grpo`](grpo.md#metrics)".
    text += "".join((pages / page).read_text(encoding="utf-8") for page in re.findall(r"\((\w+\.md)#", text))
    batch = make_batch()
    explained = [*bound(name)(**inputs_for(name, batch)).metrics, *inspect.signature(FUNCTIONS[name]).parameters]
    assert [word for word in explained if f"`{word}`" not in text] == []


@every
def test_bf16_autocast_changes_nothing(name):
    inputs = inputs_for(name, make_batch(dtype=torch.float32))
    expected, slope = bound(name)(**inputs), gradient(bound(name), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = bound(name)(**inputs)
        assert torch.equal(output.loss, expected.loss)
        assert torch.equal(gradient(bound(name), inputs), slope)
    assert output.metrics == expected.metrics


@every
def test_values_outside_the_mask_are_never_read(name):
    batch = make_batch()
    poisoned = dict(batch)
    for key in PER_TOKEN:
        poison = torch.where(torch.arange(5) % 2 == 0, torch.nan, torch.inf).double().expand(9, 5)
        poisoned[key] = torch.where(batch["mask"] == 0, poison, batch[key])
    clean, dirty = inputs_for(name, batch), inputs_for(name, poisoned)
    assert torch.equal(bound(name)(**clean).loss, bound(name)(**dirty).loss)
    slope = gradient(bound(name), dirty)
    assert torch.equal(slope, gradient(bound(name), clean))
    assert (slope[batch["mask"] == 0] == 0).all()


@every
def test_wider_padding_changes_nothing(name):
    batch = make_batch()
    padded = {
        key: torch.nn.functional.pad(value, (0, 3)) if value.shape == batch["mask"].shape else value
        for key, value in batch.items()
    }
    torch.testing.assert_close(
        bound(name)(**inputs_for(name, padded)).loss, bound(name)(**inputs_for(name, batch)).loss
    )


@every
def test_only_logprobs_carry_a_gradient(name):
    batch = {key: value.clone().requires_grad_(value.is_floating_point()) for key, value in make_batch().items()}
    output = bound(name)(**inputs_for(name, batch))
    output.loss.backward()
    assert batch["logprobs"].grad.abs().sum() > 0
    assert all(batch[key].grad is None for key in batch if key != "logprobs")
    assert not any(metric.requires_grad for metric in output.metrics.values())


@every
def test_metrics_are_finite_scalars_under_one_prefix(name):
    metrics = bound(name)(**inputs_for(name, make_batch())).metrics
    shared = {"grpo": ("dapo", "dr_grpo", "rloo", "constrained_grpo"), "gspo": ("gspo_token",), "gvpo": ANCHORED}
    prefix = next((owner for owner, names in shared.items() if name in names), name)
    assert metrics
    assert all(key.startswith(f"{prefix}/") for key in metrics)
    assert all(value.ndim == 0 and value.isfinite() for value in metrics.values())


@every
def test_float64_stays_and_low_precision_is_raised_to_float32(name):
    assert bound(name)(**inputs_for(name, make_batch())).loss.dtype == torch.float64
    rough = inputs_for(name, make_batch(dtype=torch.bfloat16))
    exact = {
        key: value.float() if torch.is_tensor(value) and value.is_floating_point() else value
        for key, value in rough.items()
    }
    output = bound(name)(**rough)
    assert output.loss.dtype == torch.float32
    assert torch.equal(output.loss, bound(name)(**exact).loss)


@every
def test_the_gradient_is_right_by_finite_differences(name):
    inputs = inputs_for(name, make_batch(3))
    logprobs = inputs.pop("logprobs").requires_grad_()
    if name == "gspo_token":  # its value does not see what its gradient follows: compared with gspo in test_gspo
        inputs["old_logprobs"], name = inputs["old_logprobs"], "gspo"
    if name == "cispo":  # its weights are not differentiated: here they are all 1, and test_cispo has the others
        inputs |= {"clip_low": 0.0, "clip_high": 0.0}
    assert torch.autograd.gradcheck(lambda x: bound(name)(x, **inputs).loss, (logprobs,))


@every
def test_the_mask_may_have_any_dtype(name):
    inputs = inputs_for(name, make_batch())
    losses = [bound(name)(**{**inputs, "mask": inputs["mask"].to(kind)}).loss for kind in (torch.bool, torch.float32)]
    assert torch.equal(*losses)


@every
def test_a_batch_of_empty_masks_has_a_finite_loss_and_no_gradient(name):
    inputs = inputs_for(name, make_batch())
    inputs["mask"] = torch.zeros_like(inputs["mask"])
    assert bound(name)(**inputs).loss.isfinite()
    assert (gradient(bound(name), inputs) == 0).all()


@every
def test_a_mask_of_other_values_is_rejected(name):
    inputs = inputs_for(name, changed(make_batch(), "mask", torch.full((9, 5), 0.5)))
    with pytest.raises(ObjectiveError, match="mask has values other than 0 and 1"):
        bound(name)(**inputs)


@every
def test_wrong_shapes_and_dtypes_name_the_tensor(name):
    batch = inputs_for(name, make_batch())
    wrong = {
        "logprobs": (torch.zeros(9), r"logprobs has shape \(9,\); expected \[B, T\]"),
        "mask": (torch.ones(9, 4), r"mask has shape \(9, 4\); expected \(9, 5\)"),
        "ref_logprobs": (torch.zeros(9, 4), r"ref_logprobs has shape \(9, 4\); expected \(9, 5\)"),
        "old_logprobs": (torch.zeros(9, 5, dtype=torch.int64), "old_logprobs has dtype torch.int64"),
        "teacher_logprobs": (torch.zeros(9, 4), r"teacher_logprobs has shape \(9, 4\); expected \(9, 5\)"),
        "rewards": (torch.zeros(9, 1), r"rewards has shape \(9, 1\); expected \(9,\), \[B\]"),
        "segments": (torch.zeros(9, 4, dtype=torch.int64), r"segments has shape \(9, 4\)"),
        "costs": (torch.zeros(9), r"costs has shape \(9,\); expected \(9, 2\), \[B, K\]"),
        "group": (torch.zeros(9), "group has dtype torch.float32; expected torch.int64"),
        "aligned_mean_logprobs": (torch.zeros(9), r"aligned_mean_logprobs has shape \(9,\); expected \[B, M\]"),
        "role": (("chosen",) * 8, "role has 8 values for 9 rows"),
    }
    for key in batch:
        value, message = wrong[key]
        with pytest.raises(ShapeError, match=message):
            bound(name)(**changed(batch, key, value))


@every
def test_a_batch_without_rows_is_rejected(name):
    nothing = {key: value[:0] for key, value in inputs_for(name, make_batch()).items()}
    with pytest.raises(ShapeError, match="B >= 1"):
        bound(name)(**nothing)
