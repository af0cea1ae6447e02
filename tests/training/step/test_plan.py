"""The plan of a step agrees with the tables in docs/internals/update.md for every combination of its inputs."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from gvpo.training.step.plan import StepPlan, plan_step

PAGE = Path(__file__).parents[3] / "docs/internals/update.md"
YES = {True: "yes", False: "no"}
NAMES = ("reads_old", "reads_reference", "reference", "step", "updates", "watches_experts", "penalised", "old_given")
CASES: list[dict[str, Any]] = [
    dict(zip(NAMES, values, strict=True))
    for values in product(
        (False, True),
        (False, True),
        ("initial", "previous", "sampler", "every:1", "every:2", "every:3"),
        range(1, 8),
        (1, 2, 6),
        (False, True),
        (False, True),
        (False, True),
    )
]


def tables() -> list[list[list[str]]]:
    """Return the rows of the section's tables without their heads."""
    section = PAGE.read_text(encoding="utf-8").split("## The plan of a step\n")[1].split("\n## ")[0]
    found = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    return [
        [[cell.strip(" `") for cell in line.strip("|\n").split("|")] for line in rows.splitlines()[2:]]
        for rows in found
    ]


REFERENCE, START = tables()


def printed(rows: list[list[str]], inputs: tuple[str, ...]) -> list[str]:
    """Return the outputs of the one row that fits the inputs."""
    fitting = [row for row in rows if all(cell in ("any", value) for cell, value in zip(row, inputs, strict=False))]
    assert len(fitting) == 1, (inputs, fitting)
    return fitting[0][len(inputs) :]


def step_in_words(reference: str, step: int) -> str:
    if step == 1:
        return "first"
    if not reference.startswith("every"):
        return "later"
    refreshes = range(1, step + 1, int(reference.removeprefix("every:")))
    return "later, N steps after a refresh" if step in refreshes else "later, otherwise"


def reference_of(plan: StepPlan) -> str:
    if plan.reference_pass:
        return "the stored reference"
    return "the start policy" if "ref_logprobs" in plan.start_logprobs else "nobody"


@pytest.mark.parametrize("reads", [False, True], ids=["reference not read", "reference read"])
def test_the_reference_agrees_with_the_first_table(reads: bool):
    for case in (case for case in CASES if case["reads_reference"] == reads):
        kind = re.sub(r"\d+", "N", case["reference"])
        plan = plan_step(**case)
        expected = printed(REFERENCE, (YES[reads], kind, step_in_words(case["reference"], case["step"])))
        assert [YES[plan.refresh], YES[plan.reference_pass], reference_of(plan)] == expected, case


@pytest.mark.parametrize("penalised", [False, True], ids=["rewards as they are", "kl in the reward"])
def test_the_start_pass_agrees_with_the_second_table(penalised: bool):
    words = {"all": "all batches", "later": "all batches but the first", "none": "no batch"}
    for case in (case for case in CASES if case["penalised"] == penalised):
        plan = plan_step(**case)
        is_start, old = "ref_logprobs" in plan.start_logprobs, case["reads_old"] and not case["old_given"]
        rewards = penalised and (is_start or not case["old_given"])
        read = old or case["watches_experts"] or is_start or rewards
        stored = case["reads_reference"] and case["reference"] not in ("previous", "sampler")
        updates = "one" if case["updates"] == 1 else "several"
        expected = printed(START, (YES[rewards], YES[read], updates, YES[stored]))
        assert [words[plan.start_pass], YES[plan.late]] == expected, case


def test_every_row_of_the_tables_occurs():
    """No row may describe inputs that do not occur."""
    kinds = {
        (YES[c["reads_reference"]], re.sub(r"\d+", "N", c["reference"]), step_in_words(c["reference"], c["step"]))
        for c in CASES
    }
    for row in REFERENCE:
        assert any(all(cell in ("any", value) for cell, value in zip(row, kind, strict=False)) for kind in kinds), row


def test_the_start_policy_gives_old_log_probs_unless_the_rows_have_them():
    for case in CASES:
        assert ("old_logprobs" in plan_step(**case).start_logprobs) == (not case["old_given"])
