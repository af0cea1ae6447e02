"""The forward passes of a step before and between its updates, as plain data.

    plan_step(...) ──▶ StepPlan ──▶ refresh, reference pass, start pass ──▶ updates

The start policy is the policy as the step begins, which sampled the groups of a live run. The first update trains the
start policy itself, so its own forward pass gives the start policy's log-probs without a start pass. Rows that carry
old log-probs already, those recorded by their sampler, keep them. docs/internals/update.md prints the plan as tables,
and `tests/training/step/test_plan.py` compares every row of them with this module.
"""

from dataclasses import dataclass
from typing import Literal

from gvpo.config.settings import OWN_REFERENCES

Batches = Literal["none", "later", "all"]
"""Optimizer batches of a step: none of them, all but the first, or all."""


@dataclass(frozen=True)
class StepPlan:
    """The passes of a step.

    Args:
        refresh: Whether the policy is copied into the stored reference as the step begins.
        reference_pass: Whether the stored reference scores all batches before the weights change.
        start_pass: Batches that the start policy scores before the weights change.
        start_logprobs: Fields of a completion that receive the start policy's log-probs.
        late: Fields that the first batch receives after its own update, which computed them.
    """

    refresh: bool
    reference_pass: bool
    start_pass: Batches
    start_logprobs: tuple[str, ...]
    late: bool


def plan_step(
    *,
    reads_old: bool,
    reads_reference: bool,
    reference: str,
    step: int,
    updates: int,
    watches_experts: bool = False,
    penalised: bool = False,
    old_given: bool = False,
) -> StepPlan:
    """Return the passes of a step.

    Args:
        reads_old: Whether the objective reads `old_logprobs`.
        reads_reference: Whether the objective or the penalty reads `ref_logprobs` and the groups do not contain them.
        reference: One of "initial", "previous", "sampler" or "every:N". The policy that sampled rows without reference
            log-probs is the start policy.
        step: Number of the step, from 1.
        updates: Number of updates of the step.
        watches_experts: Whether later updates use the experts that the start policy chose.
        penalised: Whether `kl_in_reward` changes the rewards by the old log-probs, before the first update.
        old_given: Whether the rows carry their `old_logprobs`.
    """
    stored = reads_reference and reference not in OWN_REFERENCES
    due = step == 1 or _is_due(reference, step)
    is_start = reads_reference and (due or not stored)  # the reference of this step is the start policy
    needs_old = (reads_old or penalised) and not old_given
    early = penalised and (is_start or not old_given)  # the rewards need the start policy's log-probs
    read = needs_old or watches_experts or is_start
    return StepPlan(
        refresh=stored and due and step > 1,
        reference_pass=stored and not due,
        start_pass="all" if early else "later" if read and updates > 1 else "none",
        start_logprobs=(*(() if old_given else ("old_logprobs",)), *(("ref_logprobs",) if is_start else ())),
        late=read and (updates > 1 or stored or early),
    )


def _is_due(reference: str, step: int) -> bool:
    """Return whether an "every:N" reference is copied from the policy as this step begins."""
    kind, _, every = reference.partition(":")
    return kind == "every" and (step - 1) % int(every) == 0
