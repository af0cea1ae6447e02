"""Load balance: the distribution of tokens over experts, and the number of changed choices."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gvpo.update.experts.routers import Choice


@dataclass(frozen=True)
class Load:
    """Sums over tokens. The sums of two sets of tokens add up to the sums of both.

    Args:
        counts: [layers, E] number of tokens of each expert.
        probabilities: [layers, E] sum of the router's softmax.
        tokens: [3] numbers of counted tokens, of compared choices, and of choices that differ.
        chosen: k, experts per token.
    """

    counts: Tensor
    probabilities: Tensor
    tokens: Tensor
    chosen: int

    @classmethod
    def empty(cls, layers: int, experts: int, chosen: int, device: torch.device) -> "Load":
        """Return the load of no tokens."""
        zeros = torch.zeros(layers, experts, dtype=_wide(device), device=device)
        return cls(zeros, zeros, zeros.new_zeros(3), chosen)

    def __add__(self, other: "Load") -> "Load":
        return self.of(self.flat() + other.flat())

    def flat(self) -> Tensor:
        """Return all sums in one vector, to be added over ranks."""
        return torch.cat([self.counts.flatten(), self.probabilities.flatten(), self.tokens])

    def of(self, flat: Tensor) -> "Load":
        """Return the inverse of `flat`."""
        size = self.counts.numel()
        counts, probabilities, tokens = torch.split(flat, [size, size, 3])
        return Load(counts.view_as(self.counts), probabilities.view_as(self.counts), tokens, self.chosen)

    def balance_loss(self) -> Tensor:
        """Return the mean over layers of  E sum_e f_e p_e  (f: fraction of tokens per expert, p: mean probability).

        It is k if all experts have the same load, and at most E k. See Fedus et al., Switch Transformers, arXiv
        2101.03961, eq. 4 to 6.
        """
        experts, count = self.counts.shape[1], self.tokens[0].clamp(min=1)
        return experts * (self.counts / count * self.probabilities / count).sum(1).mean()

    def balance_gradient(self) -> Tensor:
        """Return [layers, E], the gradient of `balance_loss` with respect to one token's probabilities, f constant."""
        layers, experts = self.counts.shape
        return experts / layers * self.counts / self.tokens[0].clamp(min=1) ** 2

    def metrics(self, *, compared: bool) -> dict[str, Tensor]:
        """Return the balance loss, the fullest expert's load relative to uniform, and the changed fraction."""
        even = self.tokens[0].clamp(min=1) * self.chosen / self.counts.shape[1]
        return {
            "moe/balance_loss": self.balance_loss(),
            "moe/load_max": self.counts.max() / even,
            **({"moe/changed": self.tokens[2] / self.tokens[1].clamp(min=1)} if compared else {}),
        }


def load_of(choices: Sequence[Choice], places: Tensor, kept: Tensor | None) -> Load:
    """Count some positions of a forward pass.

    Args:
        choices: Choices of each layer, at N positions.
        places: [S] positions to count, some of them more than once.
        kept: [layers, N, k] experts to compare with the routers' choices, -1 where there are none.
    """
    wide = _wide(places.device)
    counts, probabilities = [], []
    compared = changed = torch.zeros((), dtype=wide, device=places.device)
    for layer, choice in enumerate(choices):
        used = choice.used[places]
        counts.append(torch.bincount(used.flatten(), minlength=choice.logits.shape[1]).to(wide))
        probabilities.append(choice.probabilities(places).detach().to(wide).sum(0))
        if kept is not None:
            before = kept[layer, places]
            same = (choice.wanted[places][:, :, None] == before[:, None, :]).any(-1)
            compared = compared + (before >= 0).sum()
            changed = changed + (~same & (before >= 0)).sum()
    tokens = torch.stack([torch.full_like(compared, len(places)), compared, changed])
    return Load(torch.stack(counts), torch.stack(probabilities), tokens, choices[0].used.shape[1])


def _wide(device: torch.device) -> torch.dtype:
    """Return the dtype of sums over tokens; MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
