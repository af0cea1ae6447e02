"""The check at the start of a run that an engine with its own weights samples from the policy.

Wrong weights, a missing output head or another vocabulary would train on text of another model, and nothing else would
show it before the first evaluation.
"""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import chain

import torch

from gvpo import activity
from gvpo.config import TrainConfig
from gvpo.errors import EngineError
from gvpo.sampling import Request, Sampler, SamplingParams
from gvpo.training.engine.open import options_of
from gvpo.training.inputs import Policy, RunInputs
from gvpo.training.learner import Learner
from gvpo.types import Completion, Group
from gvpo.update.distributed import fsdp, ranks
from gvpo.update.group_backward import TokenLogprobs

Score = Callable[[Sequence[Group]], Sequence[TokenLogprobs]]
Rows = Sequence[Completion]

PROMPTS, TOKENS = 4, 16
"""Number of prompts that are compared, and maximum number of tokens per completion."""
TOLERANCES = {"float32": (1e-3, 1e-2), "bfloat16": (0.25, 0.15)}
"""By dtype: difference in nats of two tokens that may be exchanged in a greedy completion, and largest mean absolute
difference in nats of log-probs."""
ADVICE = "check that it serves the policy's model, or set sampling.check=false if such a difference is expected"


def compare_with_policy(
    inputs: RunInputs, policy: Policy, sampler: Sampler, learner: Learner, config: TrainConfig
) -> None:
    """Compare the sampler of a run with its policy on some prompts, unless `sampling.check` is off.

    A model that is split over ranks is compared by log-probs only.

    Raises:
        EngineError: If they disagree.
    """
    problems = [*inputs.data.problems, *inputs.held_out][:PROMPTS]
    if not config.sampling_check or not problems:
        return
    requests = [Request(f"check {number}", item.prompt) for number, item in enumerate(problems)]
    likely, drawn = _greedy(inputs.params), dataclasses.replace(_greedy(inputs.params), temperature=config.temperature)
    with activity.phase("checking the engine"):
        theirs, random = ranks.on_first(
            lambda: [sampler.sample(requests, params, seed=0, step=0) for params in (likely, drawn)]
        )
        dtypes = (options_of(config).dtype, config.compute_dtype)
        near, most = TOLERANCES["bfloat16" if "bfloat16" in dtypes else "float32"]
        compare_logprobs(requests, list(chain(*random)), learner.score, most)
        if fsdp.is_sharded(policy.model):  # it may be too large to be gathered for sampling
            return
        with learner.sampling():
            own = policy.sampler.sample(requests, likely, seed=0, step=0)
        compare_greedy(requests, list(chain(*own)), list(chain(*theirs)), learner.score, near)


def _greedy(params: SamplingParams) -> SamplingParams:
    """Return the parameters of the greedy completions that are compared."""
    tokens = min(TOKENS, params.max_tokens)
    return dataclasses.replace(params, group_size=1, max_tokens=tokens, temperature=0.0, top_p=1.0, top_k=0)


def compare_greedy(requests: Sequence[Request], own: Rows, theirs: Rows, score: Score, near: float) -> None:
    """Compare greedy completions of the trainer's model and of an engine.

    Args:
        requests: Prompts.
        own: The trainer's completion of each prompt.
        theirs: The engine's completion of each prompt.
        score: Function that returns log-probs of the trainer's model.
        near: Difference in nats of two tokens up to which rounding may have chosen the other one.

    Raises:
        EngineError: If two completions differ for another reason than rounding.
    """
    for request, ours, engines in zip(requests, own, theirs, strict=True):
        pairs = list(zip(ours.tokens, engines.tokens, strict=False))
        place = next((place for place, (one, other) in enumerate(pairs) if one != other), None)
        if place is not None:
            rows = [Completion([*ours.tokens[:place], token]) for token in pairs[place]]
            one, other = (float(each.logprobs[-1]) for each in score([Group(request.prompt, rows, id=request.id)]))
            if not abs(one - other) <= near:
                raise EngineError(
                    "the engine's greedy completion is not that of the trainer's model: where they part, the tokens "
                    f"differ by {abs(one - other):.3g} nats; {ADVICE}"
                )
        elif len(ours.tokens) != len(engines.tokens):
            raise EngineError(
                f"the engine ends a greedy completion after {len(engines.tokens)} tokens, and the trainer's model "
                f"after {len(ours.tokens)}; {ADVICE}"
            )


def compare_logprobs(requests: Sequence[Request], rows: Rows, score: Score, most: float) -> None:
    """Compare the log-probs that an engine recorded with those of the trainer's model.

    Args:
        requests: Prompts.
        rows: The engine's completion of each prompt.
        score: Function that returns log-probs of the trainer's model.
        most: Largest mean absolute difference in nats.

    Raises:
        EngineError: If they differ by more.
    """
    groups = [Group(request.prompt, [row], id=request.id) for request, row in zip(requests, rows, strict=True)]
    recorded = torch.cat([torch.as_tensor(row.sampler_logprobs, dtype=torch.float32) for row in rows])
    difference = float((recorded - torch.cat([each.logprobs for each in score(groups)])).abs().mean())
    if not difference <= most:
        raise EngineError(
            f"the engine's log-probs differ by {difference:.3g} nats per token from those of the trainer's model; "
            f"{ADVICE}"
        )
