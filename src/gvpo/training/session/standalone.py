"""Evaluation without a run: nothing is written, and no optimizer or reference model is created."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from gvpo import runfiles
from gvpo.rollout.rewards import reward_pool
from gvpo.training.budget import UNMEASURED, Budget
from gvpo.training.build import eval_inputs, stored_dtype
from gvpo.training.engine.sampling import with_episodes
from gvpo.training.inputs import Policy, RunInputs
from gvpo.training.objective import build_objective
from gvpo.training.reference_scores import with_own_scores, with_reference_scores
from gvpo.training.session.evaluator import Evaluator
from gvpo.types import Group
from gvpo.update.distributed import fsdp, ranks
from gvpo.update.group_backward import TokenLogprobs, score
from gvpo.update.precision import autocast, choose_dtype


def with_dtype(inputs: RunInputs, policy: Policy, run_dir: Path | None) -> RunInputs:
    """Return the inputs with the compute dtype resolved: that of the run, or the one that a new run would choose."""
    config = inputs.settings
    dtype = choose_dtype(config, policy.model)[0] if run_dir is None else stored_dtype(run_dir, config)
    plan = dataclasses.replace(inputs.plan, settings=config.replace(compute_dtype=dtype))
    return dataclasses.replace(inputs, plan=plan)


@contextlib.contextmanager
def evaluator_of(inputs: RunInputs, policy: Policy, groups: Sequence[Group]) -> Iterator[Evaluator]:
    """Open an evaluator of the current policy, with workers that live as long as the context.

    Args:
        inputs: Inputs of the run.
        policy: The policy.
        groups: Held-out answers with scores and the starting policy's log-probs.
    """

    @contextlib.contextmanager
    def sampling() -> Iterator[None]:
        with autocast(inputs.settings), fsdp.unsharded(policy.model):
            yield

    with contextlib.ExitStack() as stack:
        pool = None
        if inputs.held_out and inputs.rewards:
            pool = stack.enter_context(reward_pool(inputs.settings, inputs.rewards))
        sampler = stack.enter_context(with_episodes(inputs, policy, policy.sampler))
        yield Evaluator(
            inputs.settings,
            eval_inputs(inputs, sampler, pool),
            groups,
            build_objective(inputs.settings, inputs.plan.objective).beta,
            score=functools.partial(_score, inputs, policy),
            sampling=sampling,
        )


def with_start(inputs: RunInputs, policy: Policy, groups: Sequence[Group], run_dir: Path | None) -> Sequence[Group]:
    """Return held-out answers with the starting policy's log-probs: those of the run, or the policy's if it is new."""
    if run_dir is not None:
        stored = run_dir / runfiles.REFERENCE
        score_again = functools.partial(_score, inputs, policy)  # the run has scored all of them
        return with_reference_scores(groups, stored, "held-out", None, score_again, lambda _: None)
    if any(row.ref_logprobs is None for group in groups for row in group.completions):
        return with_own_scores(groups, _score(inputs, policy, groups))
    return groups


def _score(inputs: RunInputs, policy: Policy, groups: Sequence[Group]) -> list[TokenLogprobs]:
    """Return the policy's log-probs of groups, within the token budget."""
    config = inputs.settings
    asked = config.tokens_per_microbatch

    def work(tokens: int) -> list[TokenLogprobs]:
        with autocast(config):
            return score(
                policy.model,
                ranks.deal(groups),
                tokens_per_microbatch=tokens,
                prefix_sharing=config.prefix_sharing,
                temperature=config.temperature,
            )

    return Budget(UNMEASURED if asked == "auto" else asked).attempt(work, groups, lambda: None)
