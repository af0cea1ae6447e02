"""A run by hand: it keeps the weights of every policy, samples with the one that a test asks for, and trains."""

import dataclasses
from typing import Any

from gvpo.config.plan import Given, resolve
from gvpo.rewards import RewardPool
from gvpo.rollout.collect import Rollout, collect
from gvpo.rollout.order import ShuffledOrder
from gvpo.rollout.usable import usable
from gvpo.sampling.base import SamplingParams
from gvpo.sampling.transformers import TransformersSampler
from gvpo.training.learner import Learner
from gvpo.training.metrics import step_metrics
from gvpo.training.objective import build_objective
from gvpo.types import Completion
from gvpo.update.group_backward import TokenLogprobs, score
from tests.training.toy import ROWS, TIMES, config, encoded, model, tokenizer, weights

PROBLEMS = [{"id": row["digit"], **row} for row in ROWS]
"""The toy's rows with the ids that `encoded` gives them."""
BUDGET = 4096
EXACT: dict[str, Any] = {"compute_dtype": "float32", "tokens_per_microbatch": BUDGET}
QUIET: dict[str, Any] = {"held": [], "eval_problems": 0, "data": PROBLEMS, **EXACT}
"""Settings of the run that is compared."""


class ByHand:
    """The policy, its earlier weights, and the metrics lines of the steps so far."""

    def __init__(self, pool: RewardPool, **settings: Any) -> None:
        self.config = resolve(config(**EXACT, **settings), Given(model=True)).settings
        self.learner = Learner(model(), build_objective(self.config), self.config)
        self.pool, self.versions, self.lines = pool, [weights(self.learner.model)], list[dict[str, Any]]()
        self.order = ShuffledOrder(encoded(), self.config.prompts_per_step, self.config.seed)

    def sample(self, first: int, count: int, *, step: int, version: int) -> Rollout:
        """Sample the problems at `first` and the following positions, with an earlier policy and a step's noise."""
        policy = model()
        policy.load_state_dict(self.versions[version])
        params = SamplingParams(self.config.group_size, self.config.max_tokens)
        sampler = TransformersSampler(policy, tokenizer())
        found = collect(self.order.draw(first, count), sampler, params, self.pool, seed=self.config.seed, step=step)
        references = iter(score(policy, found.groups, tokens_per_microbatch=BUDGET))
        groups = [
            dataclasses.replace(
                group, completions=[self._known(row, version, next(references)) for row in group.completions]
            )
            for group in found.groups
        ]
        return dataclasses.replace(found, groups=groups)

    def _known(self, row: Completion, version: int, scored: TokenLogprobs) -> Completion:
        reference = {"ref_logprobs": scored.logprobs} if self.config.reference == "sampler" else {}
        return dataclasses.replace(row, version=version, **reference)

    def train(self, rollout: Rollout, step: int) -> None:
        learned = self.learner.learn(usable(rollout.groups, rewarded=True, at_least=2), step)
        self.versions.append(weights(self.learner.model))
        line = {"step": step, **step_metrics(step, rollout, learned, judge="digits")}
        self.lines.append({key: value for key, value in line.items() if not key.startswith(TIMES)})
