"""A policy small enough to enumerate: every prefix has its own logits, so it can be any distribution over completions.

Three tokens, 0 ends a completion, at most three tokens per completion: 15 completions of length 1 to 3.
"""

import itertools

import torch
from torch import Tensor

VOCABULARY, END, LONGEST = 3, 0, 3


def _completions() -> list[tuple[int, ...]]:
    found = []
    for length in range(1, LONGEST + 1):
        for tokens in itertools.product(range(VOCABULARY), repeat=length):
            ended = tokens[-1] == END or length == LONGEST
            if END not in tokens[:-1] and ended:
                found.append(tokens)
    return found


COMPLETIONS = _completions()
_PREFIXES = sorted({tokens[:end] for tokens in COMPLETIONS for end in range(len(tokens))})


class TabularPolicy:
    """Next-token logits by prefix, float64.

    Args:
        seed: random seed of the logits.
        scale: their standard deviation; 0 makes every next token equally likely.
    """

    def __init__(self, seed: int = 0, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        size = (len(_PREFIXES), VOCABULARY)
        self.logits = (scale * torch.randn(size, generator=generator, dtype=torch.float64)).requires_grad_()

    def logprobs(self) -> Tensor:
        """[15, 3] log-probs of every completion's tokens, 0 after its end."""
        table = self.logits.log_softmax(dim=1)
        rows = []
        for tokens in COMPLETIONS:
            steps = [table[_PREFIXES.index(tokens[:end]), token] for end, token in enumerate(tokens)]
            rows.append(torch.stack([*steps, *[table.new_zeros(())] * (LONGEST - len(tokens))]))
        return torch.stack(rows)

    def log_distribution(self) -> Tensor:
        """[15] log-probability of every completion."""
        return self.logprobs().sum(dim=1)


MASK = torch.tensor([[float(end < len(tokens)) for end in range(LONGEST)] for tokens in COMPLETIONS])


def optimum(reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """[15] log of pi* = pi' exp(R / beta) / Z."""
    return (reference + rewards / beta).log_softmax(dim=0)


def divergence(left: Tensor, right: Tensor) -> float:
    """KL(left || right) of two log-distributions, nats."""
    return (left.exp() * (left - right)).sum().item()
