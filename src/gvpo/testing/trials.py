"""The batch of a gradient check: random groups, and their rows as tensors in float64."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gvpo.objectives.groups import Groups
from gvpo.types import Completion, Group

MOVED = 0.3
"""Standard deviation, in nats per token, by which the policy has moved since it sampled the rows of a check."""


def random_groups(
    beta: float, model: nn.Module | None = None, *, sizes: Sequence[int] = (4, 4, 4), length: int = 6, seed: int = 0
) -> list[Group]:
    """Return groups on which the known mistakes differ: ragged rows, masked tokens, and a policy that has moved.

    Rewards and beta times the log-ratios are of one size, so that a wrong reference is as visible as a wrong reward.
    The reference log-probs are random. Rewards are real numbers.

    Args:
        beta: Strength of the pull to the reference, in reward per nat.
        model: Causal language model, whose vocabulary and log-probs are used; None makes them up.
        sizes: Number of completions of each group, at least 2.
        length: Maximum number of tokens per completion, at least 4.
        seed: Another seed makes other groups.
    """
    draw = random.Random(seed)
    words = 100 if model is None else model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    return [_random_group(draw, beta, model, words, size, length, number) for number, size in enumerate(sizes)]


def _random_group(
    draw: random.Random, beta: float, model: nn.Module | None, words: int, size: int, length: int, number: int
) -> Group:
    prompt = [draw.randrange(words) for _ in range(3)]
    spread = (1.0, 0.5, 2.0)[number % 3]
    rows = [_random_row(draw, beta, model, words, prompt, length, spread) for _ in range(size)]
    return Group(prompt, rows, id=f"group-{number}")


def _random_row(
    draw: random.Random,
    beta: float,
    model: nn.Module | None,
    words: int,
    prompt: Sequence[int],
    length: int,
    spread: float,
) -> Completion:
    tokens = [draw.randrange(words) for _ in range(draw.randint(4, length))]
    if model is None:
        now = [draw.uniform(-3.0, -0.5) for _ in tokens]
    else:
        now = policy_logprobs(model, prompt, tokens).tolist()
    mask = [1.0] * len(tokens)
    mask[draw.randrange(1, len(tokens) - 1)] = 0.0
    far = 0.5 / beta / len(tokens) ** 0.5
    return Completion(
        tokens,
        reward=draw.gauss(0.0, spread),
        mask=mask,
        ref_logprobs=[value + draw.gauss(0.0, far) for value in now],
        old_logprobs=[value + draw.gauss(0.0, MOVED) for value in now],
    )


def policy_logprobs(model: nn.Module, prompt: Sequence[int], tokens: Sequence[int]) -> Tensor:
    """Return a model's log-probs of one completion, [C], from a forward pass of its own."""
    device = next(model.parameters()).device
    row = torch.tensor([[*prompt, *tokens]], device=device)
    logits: Tensor = model(input_ids=row).logits[0, len(prompt) - 1 : -1]
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return scores.gather(1, row[0, len(prompt) :, None]).squeeze(1)


@dataclass(frozen=True)
class Trial:
    """The rows of a check, in float64.

    Args:
        logprobs: [B, T] of the policy, nats; 0 on padding.
        inputs: ref_logprobs, old_logprobs and mask [B, T]; rewards and group [B]. Log-probs that no row has are absent.
        real: [B, T] bool, True on tokens and False on padding.
        beta: Strength of the pull to the reference.
    """

    logprobs: Tensor
    inputs: dict[str, Tensor]
    real: Tensor
    beta: float

    @property
    def mask(self) -> Tensor:
        """[B, T], 1 on scored tokens."""
        return self.inputs["mask"]

    @property
    def group(self) -> Tensor:
        """[B] int64."""
        return self.inputs["group"]

    @property
    def stale(self) -> Tensor | None:
        """[B, T] log-probs of the policy that sampled the rows, nats."""
        return self.inputs.get("old_logprobs")

    def log_ratios(self, logprobs: Tensor | None = None, where: Tensor | None = None) -> Tensor:
        """Return l, [B], of log-probs relative to the reference: the policy's, on scored tokens, unless given."""
        logprobs = self.logprobs if logprobs is None else logprobs
        return ((logprobs - self.inputs["ref_logprobs"]) * (self.mask if where is None else where)).sum(1)

    def centred(self, values: Tensor, group: Tensor | None = None) -> Tensor:
        """Return [B] values minus the mean of their group."""
        return Groups.of(self.group if group is None else group, len(values)).centre(values)

    def advantages(self) -> Tensor:
        """Return R - Rbar, [B]."""
        return self.centred(self.inputs["rewards"])

    def weights(self) -> Tensor:
        """Return GVPO's weights, [B]."""
        return self.centred(self.inputs["rewards"] - self.beta * self.log_ratios())

    def push(self, weights: Tensor, where: Tensor | None = None, group: Tensor | None = None) -> Tensor:
        """Return the coefficients, [B, T], of the loss  mean over groups of -beta/(k-1) sum_i w_i log pi(y_i)."""
        groups = Groups.of(self.group if group is None else group, len(weights))
        share = groups.spread((groups.sizes - 1).clamp(min=1).double()) * len(groups.sizes)
        return (-self.beta * weights / share)[:, None] * (self.mask if where is None else where)
