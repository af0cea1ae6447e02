"""Cases of update_vs_trl.py: a small Qwen2, groups of five shapes, and four ways of training on a batch.

Both sides have the same randomly initialized model, the same groups and the same loss (TRL's default: DAPO's mean over
all tokens, clip 0.2), so they give the same gradient. TRL computes each update in one `_compute_loss`, without gradient
checkpointing. For cases with known coefficients it is also measured in parts of 2 completions, which is faster on a CPU
and needs less memory. The cases:

    known       on-policy first update: the coefficients c of the log-probs are known before the forward
    unknown     later updates: old log-probs differ, c needs the log-probs first; everything in one micro-batch
    score-push  the same with a budget of half the completions: a score pass, then a push
    rollout     4 updates with the passes that they need for old and reference log-probs, a KL term, and SGD steps
    score       only log-probs
"""

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import trl_side
from matmul_bound import Passes, Work, bound_seconds, flops
from torch import Tensor

from gvpo import Completion, Group, group_backward, load_model, score
from gvpo.objectives import grpo

CASES = ("known", "unknown", "score-push", "rollout", "score")
DTYPES = ("float32", "bfloat16")
LAYERS = {
    "architecture": "qwen2",
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
UPDATES = 4
KL_COEF = 0.04
RATE = 0.01
PART = 2
"""Completions per forward if TRL works in parts; 1, 2 and 4 are equally fast."""
WHOLE = 10**9
"""A budget with which every batch is one micro-batch."""

PASSES = {
    "score": Passes(forward=1, backward=0),
    "known": Passes(),
    "unknown": Passes(head_again=1),
    "score-push": Passes(forward=1),
    "rollout": Passes(forward=1 + (UPDATES - 1) / UPDATES, head_again=1),
}


@dataclass(frozen=True)
class Shape:
    """The groups of a batch.

    Args:
        prompt: Number of tokens of the prompt.
        lengths: Number of tokens of each completion of a group.
        vocabulary: Size of the vocabulary.
        groups: Number of groups.
    """

    prompt: int
    lengths: tuple[int, ...]
    vocabulary: int = 32_000
    groups: int = 1

    @property
    def rows(self) -> int:
        """Number of completions of the batch."""
        return self.groups * len(self.lengths)

    def batch(self, seed: int) -> list[Group]:
        """Return groups of random tokens and rewards."""
        generator = torch.Generator().manual_seed(seed)

        def tokens(count: int) -> list[int]:
            return torch.randint(self.vocabulary, (count,), generator=generator).tolist()

        def row(length: int) -> Completion:
            return Completion(tokens(length), reward=float(torch.randn((), generator=generator)))

        return [Group(tokens(self.prompt), [row(length) for length in self.lengths]) for _ in range(self.groups)]


def _long_tail(count: int, least: int, most: int) -> tuple[int, ...]:
    """Return lengths from `least` to `most`, most of them short."""
    return tuple(round(least * (most / least) ** ((index / (count - 1)) ** 1.5)) for index in range(count))


SHAPES = {
    "base": Shape(256, (128,) * 8, groups=2),
    "long-prompt": Shape(1024, (64,) * 8),
    "long-answers": Shape(64, (256,) * 8),
    "vocabulary": Shape(256, (64,) * 8, vocabulary=151_936),
    "ragged": Shape(256, _long_tail(16, 16, 512)),
}


@dataclass
class Bench:
    """A case on a shape.

    Args:
        shape: Shape of each batch.
        case: Name of a case, one of `CASES`.
        half: Use bfloat16 by autocast instead of float32.
        batches: Batches, one for each update.
        ours: Model of gvpo.
        reference: Reference model of gvpo.
        theirs: TRL's trainer, with an equal model.
        inputs: The batches as TRL's inputs.
    """

    shape: Shape
    case: str
    half: bool
    batches: list[list[Group]]
    ours: Any
    reference: Any
    theirs: Any
    inputs: list[dict[str, Tensor]]

    @classmethod
    def of(cls, shape: Shape, case: str, dtype: str) -> "Bench":
        """Create the models and the batches."""
        model = load_model(init={**LAYERS, "vocab_size": shape.vocabulary})
        model.train()
        batches = [shape.batch(seed) for seed in range(UPDATES if case == "rollout" else 1)]
        if case in ("unknown", "score-push"):
            batches = [_stale(model, batch) for batch in batches]
        half, beta = dtype == "bfloat16", KL_COEF if case == "rollout" else 0.0
        trainer = trl_side.grpo_trainer(copy.deepcopy(model), shape.rows, len(shape.lengths), half=half, beta=beta)
        reference = copy.deepcopy(model) if case == "rollout" else None
        return cls(shape, case, half, batches, model, reference, trainer, list(map(trl_side.inputs_of, batches)))

    def sides(self) -> dict[str, Callable[[], Any]]:
        """Return the functions to time; in bfloat16 gvpo's float32 is among them."""
        if self.case == "rollout":
            found = {"trl": self._rollout_theirs, "gvpo": self._rollout_ours}
        elif self.case == "score":
            found = {"trl": self._score_theirs, "gvpo": self._score_ours}
        else:
            found = {"trl": self._update_theirs, "gvpo": self._update_ours}
        if self.case == "known":
            found["trl-parts"] = partial(self._update_theirs, rows=PART)
        if self.half:
            found["gvpo-float32"] = partial(found["gvpo"], half=False)
        return found

    def differences(self) -> dict[str, float]:
        """Run each side once and return relative L2 distances between the gradients.

        For a rollout the movements of the weights are compared, for scores the log-probs. In float32 the distance is
        between the two sides; in bfloat16 it is the distance of each side from gvpo's float32.
        """
        found = {name: self._found(name, run) for name, run in self.sides().items()}
        if not self.half:
            return {"difference": _relative(found["gvpo"], found["trl"])}
        exact = found["gvpo-float32"]
        return {"difference": _relative(found["gvpo"], exact), "difference_of_trl": _relative(found["trl"], exact)}

    def _found(self, name: str, run: Callable[[], Any]) -> Tensor:
        """Return the result of a side as one vector."""
        models = self.ours, self.theirs.model
        model = models[name.startswith("trl")]
        start = copy.deepcopy(model.state_dict()) if self.case == "rollout" else None
        given = run()
        if self.case == "score":
            return given
        if start is None:
            return torch.cat([value.grad.flatten() for value in model.parameters()])
        moved = torch.cat([(value - start[key]).detach().flatten() for key, value in model.named_parameters()])
        model.load_state_dict(start)
        return moved

    def bound(self) -> float:
        """Return the seconds of only the matrix products."""
        dtype = torch.bfloat16 if self.half else torch.float32
        return len(self.batches) * bound_seconds(self.ours, Work.of(self.batches[0]), PASSES[self.case], dtype)

    def flops(self) -> float:
        """Return the floating-point operations of the case."""
        return len(self.batches) * flops(self.ours, Work.of(self.batches[0]), PASSES[self.case])

    def _update_ours(self, half: bool | None = None) -> None:
        self.ours.zero_grad(set_to_none=True)
        budget = self.shape.prompt + self.shape.groups * sum(self.shape.lengths) // 2
        with self._precision(half):
            group_backward(
                self.ours,
                self.batches[0],
                partial(grpo, reduction="token_mean"),
                tokens_per_microbatch=budget if self.case == "score-push" else WHOLE,
                on_policy=self.case == "known",
            )

    def _update_theirs(self, rows: int | None = None) -> None:
        self.theirs.model.zero_grad(set_to_none=True)
        trl_side.backward(self.theirs, self.inputs[0], rows or self.shape.rows)

    def _rollout_ours(self, half: bool | None = None) -> None:
        objective = partial(grpo, reduction="token_mean", kl_coef=KL_COEF)
        optimizer = torch.optim.SGD(self.ours.parameters(), lr=RATE)
        with self._precision(half):
            batches = [attach(batch, "ref_logprobs", self._score(self.reference, batch)) for batch in self.batches]
            later = [attach(batch, "old_logprobs", self._score(self.ours, batch)) for batch in batches[1:]]
            for number, batch in enumerate([batches[0], *later]):
                optimizer.zero_grad(set_to_none=True)
                group_backward(self.ours, batch, objective, tokens_per_microbatch=WHOLE, on_policy=number == 0)
                optimizer.step()

    def _rollout_theirs(self) -> None:
        trainer, rows = self.theirs, self.shape.rows
        optimizer = torch.optim.SGD(trainer.model.parameters(), lr=RATE)
        filled = [
            {
                **inputs,
                "old_per_token_logps": trl_side.logprobs(trainer, trainer.model, inputs, rows),
                "ref_per_token_logps": trl_side.logprobs(trainer, trainer.ref_model, inputs, rows),
            }
            for inputs in self.inputs
        ]
        for inputs in filled:
            optimizer.zero_grad(set_to_none=True)
            trl_side.backward(trainer, inputs, rows)
            optimizer.step()

    def _score_ours(self, half: bool | None = None) -> Tensor:
        with self._precision(half):
            return torch.cat(self._score(self.ours, self.batches[0]))

    def _score_theirs(self) -> Tensor:
        inputs = self.inputs[0]
        found = trl_side.logprobs(self.theirs, self.theirs.model, inputs, self.shape.rows)
        return found[inputs["completion_mask"].bool()].float()

    def _score(self, model: Any, batch: Sequence[Group]) -> list[Any]:
        return [scored.logprobs for scored in score(model, batch, tokens_per_microbatch=WHOLE)]

    def _precision(self, half: bool | None) -> contextlib.AbstractContextManager[Any]:
        half = self.half if half is None else half
        return torch.autocast("cpu", dtype=torch.bfloat16) if half else contextlib.nullcontext()


def attach(batch: Sequence[Group], name: str, values: Sequence[Tensor]) -> list[Group]:
    """Return the batch with each completion's `name` set, in order."""
    remaining = iter(values)
    return [
        replace(group, completions=[replace(row, **{name: next(remaining)}) for row in group.completions])
        for group in batch
    ]


def _stale(model: Any, batch: Sequence[Group]) -> list[Group]:
    """Return the batch with old log-probs about a tenth of a nat away, so that some ratios are clipped."""
    generator = torch.Generator().manual_seed(1)
    now = [scored.logprobs for scored in score(model, batch)]
    return attach(batch, "old_logprobs", [v + 0.1 * torch.randn(v.shape, generator=generator) for v in now])


def _relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())
