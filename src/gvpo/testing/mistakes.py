"""The mistakes that trainers make with GVPO, each as the gradient that it gives."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gvpo.objectives.groups import Groups
from gvpo.testing.trials import Trial

MISTAKES = {
    "sign": "the gradient points the other way; minimize the loss, and give positive weights to rows that should "
    "become more likely",
    "scale": "the gradient is GVPO's times a constant; divide the loss by it, or pass scale=None if the optimizer does "
    "not see constants",
    "weights_not_detached": "the loss is differentiated through its weights; detach them",
    "std_normalized": "advantages are divided by a standard deviation; only center them",
    "clipped_weights": "weights, rewards or log-ratios are clipped to a range; leave them as they are",
    "importance_ratio": "the loss has a ratio of the policy to the sampler, clipped or not; use -sum(w * logprobs)",
    "micro_batch_means": "means are taken over a part of the group; take them over the whole group of the optimizer "
    "step",
    "stale_means": "a row's log-ratio is the policy's, and the mean of its group is older; compute both at the weights "
    "that the gradient is taken at",
    "stale_log_ratios": "log-ratios are those of the policy that sampled; compute them again before each update",
    "kl_loss_term": "a KL term in the loss takes the place of -beta (l_i - lbar) in the weights; remove it and put the "
    "log-ratio into the weights",
    "reference_ignored": "weights are R - Rbar alone; subtract beta (l_i - lbar)",
    "masked_tokens": "tokens with mask 0 are counted; multiply by the mask in the log-ratios and in the loss",
    "length_normalized": "log-ratios or the loss are means over tokens; take sums",
    "cut_group": "some rows of a group have no gradient; keep groups whole in an optimizer step",
    "group_weights": "the groups have different factors; weight each by 1/(k - 1), and all groups alike",
    "no_gradient": "the gradient is 0; check that the loss depends on the log-probs, and that means are not taken over "
    "single rows",
}
"""Name of each mistake that a check can find, and what it is and how to correct it."""


@dataclass(frozen=True)
class Suspect:
    """A mistake as a gradient: a combination of coefficients, of which the first has a factor other than 0.

    Args:
        name: Key of `MISTAKES`.
        detail: The variant, for the message.
        parts: Coefficients [B, T].
    """

    name: str
    detail: str
    parts: tuple[Tensor, ...]


def suspects(trial: Trial, weights: Tensor) -> Iterator[Suspect]:
    """Yield all known mistakes on a batch.

    Args:
        trial: The batch.
        weights: [B] weights of the rows that fit the measured gradient best, on GVPO's scale.
    """
    for found in (
        _plain(trial),
        _std(trial),
        _clipped(trial, weights),
        _ratios(trial),
        _partial_means(trial),
        _stale(trial),
        _kl_terms(trial),
        _masks(trial),
        _lengths(trial),
        _cut(trial, weights),
    ):
        yield from found


def _plain(trial: Trial) -> Iterator[Suspect]:
    weights = trial.weights()
    sums = (trial.logprobs * trial.mask).sum(1)
    undetached = weights - trial.beta * trial.centred(sums)
    yield Suspect("weights_not_detached", "", (trial.push(undetached),))
    yield Suspect("reference_ignored", "", (trial.push(trial.advantages()),))
    members = trial.group[:, None] == torch.unique(trial.group)
    by_group = tuple(trial.push(weights * member) for member in members.T)
    yield Suspect("group_weights", "", by_group)


def _std(trial: Trial) -> Iterator[Suspect]:
    groups = Groups.of(trial.group, len(trial.group))
    sizes = groups.spread(groups.sizes.double())
    advantages, weights, stale = trial.advantages(), trial.weights(), trial.stale
    pulls = [("", weights - advantages), (", and the reference ignored", torch.zeros_like(weights))]
    if stale is not None:
        pulls.append(("", -trial.beta * trial.centred(trial.log_ratios(stale))))
    for divisor in (torch.ones_like(sizes), ((sizes - 1) / sizes).sqrt()):  # the std with k - 1 and with k
        for detail, pull in pulls:
            std = groups.spread(groups.std(advantages)) * divisor
            yield Suspect("std_normalized", f"the rewards{detail}", (trial.push(advantages / std + pull),))
            std = groups.spread(groups.std(advantages + pull)) * divisor
            yield Suspect("std_normalized", f"the weights{detail}", (trial.push((advantages + pull) / std),))


def _clipped(trial: Trial, found: Tensor) -> Iterator[Suspect]:
    advantages, weights = trial.advantages(), trial.weights()
    pull = weights - advantages
    rest = {"weights": torch.zeros_like(weights), "rewards": pull, "log-ratios": advantages}
    for name, other in rest.items():
        low, high = float((found - other).min()), float((found - other).max())
        clipped = (weights - other).clamp(low, high)
        inside = (clipped > low + 1e-3 * (high - low)) & (clipped < high - 1e-3 * (high - low))
        if inside.sum() < 2:
            continue  # two constants fit everything
        yield Suspect("clipped_weights", f"{name} to {low:.3g} .. {high:.3g}", (trial.push(clipped + other),))


def _ratios(trial: Trial) -> Iterator[Suspect]:
    stale = trial.stale
    if stale is None:
        return
    ratio = (trial.logprobs - stale).exp()
    rewards = trial.inputs["rewards"]
    old = trial.centred(rewards - trial.beta * trial.log_ratios(stale))
    for weights in (trial.weights(), trial.advantages(), old):
        surrogate = trial.push(weights) * ratio
        yield Suspect("importance_ratio", "not clipped", (surrogate,))
        for low, high in ((0.2, 0.2), (0.2, 0.28), (0.1, 0.1), (0.2, 0.3)):
            up = weights[:, None] > 0
            idle = torch.where(up, ratio > 1 + high, ratio < 1 - low)
            yield Suspect("importance_ratio", f"clipped to {1 - low:g} .. {1 + high:g}", (surrogate * ~idle,))


def _parts(trial: Trial) -> Iterator[tuple[str, Tensor]]:
    """Yield ways to cut the rows of a batch, each [B]."""
    row = torch.arange(len(trial.group))
    yield "all rows", torch.zeros_like(row)
    for size in range(1, len(row)):
        yield f"{size} rows per part", row // size
    for parts in range(2, len(row) // 2 + 1):
        yield f"every {parts}th row", row % parts


def _partial_means(trial: Trial) -> Iterator[Suspect]:
    values = trial.inputs["rewards"] - trial.beta * trial.log_ratios()
    name = "micro_batch_means"
    for detail, part in _parts(trial):
        yield Suspect(name, f"{detail}, over all prompts", (trial.push(trial.centred(values, part)),))
        piece = trial.group * len(part) + part  # a group's rows in one part
        if len(torch.unique(piece)) == len(torch.unique(trial.group)):
            continue
        centred = trial.centred(values, piece)
        pushed = trial.push(centred, group=piece)
        beside = torch.tensor([len(torch.unique(piece[part == each])) for each in part]).to(values)
        yield Suspect(name, detail, (trial.push(centred),))
        yield Suspect(name, detail, (pushed,))
        yield Suspect(name, detail, (pushed / beside[:, None],))


def _stale(trial: Trial) -> Iterator[Suspect]:
    stale = trial.stale
    if stale is None:
        return
    now, old, rewards = trial.log_ratios(), trial.log_ratios(stale), trial.inputs["rewards"]
    own = trial.advantages() - trial.beta * (now - (old - trial.centred(old)))
    yield Suspect("stale_means", "", (trial.push(own),))
    yield Suspect("stale_log_ratios", "", (trial.push(trial.centred(rewards - trial.beta * old)),))


def _kl_terms(trial: Trial) -> Iterator[Suspect]:
    gap = trial.logprobs - trial.inputs["ref_logprobs"]
    gradients = {
        "k1, whose gradient has zero expectation": torch.ones_like(gap),
        "k2": gap,
        "k3": 1 - (-gap).clamp(max=50.0).exp(),
    }
    lengths = trial.mask.sum(1, keepdim=True).clamp(min=1)
    rewarded = trial.push(trial.advantages())
    for name, gradient in gradients.items():
        pulled = gradient * trial.mask
        for reward in (rewarded, rewarded / lengths):
            for pull in (pulled, pulled / lengths):
                yield Suspect("kl_loss_term", name, (reward, pull))


def _masks(trial: Trial) -> Iterator[Suspect]:
    rewards = trial.inputs["rewards"]
    for where in (trial.real.double(), torch.ones_like(trial.mask)):
        counted = trial.centred(rewards - trial.beta * trial.log_ratios(where=where))
        yield Suspect("masked_tokens", "in the log-ratios", (trial.push(counted),))
        yield Suspect("masked_tokens", "in the loss", (trial.push(trial.weights(), where),))
        yield Suspect("masked_tokens", "in the log-ratios and in the loss", (trial.push(counted, where),))


def _lengths(trial: Trial) -> Iterator[Suspect]:
    lengths = trial.mask.sum(1).clamp(min=1)
    mean = trial.centred(trial.inputs["rewards"] - trial.beta * trial.log_ratios() / lengths)
    per_token = trial.mask / lengths[:, None]
    yield Suspect("length_normalized", "in the log-ratios", (trial.push(mean),))
    yield Suspect("length_normalized", "in the loss", (trial.push(trial.weights(), per_token),))
    yield Suspect("length_normalized", "in the log-ratios and in the loss", (trial.push(mean, per_token),))


def _cut(trial: Trial, found: Tensor) -> Iterator[Suspect]:
    kept = found.abs() > 1e-4 * found.abs().max()
    dropped = int((~kept).sum())
    if not dropped or not kept.any():
        return
    values = trial.inputs["rewards"] - trial.beta * trial.log_ratios()
    # Dropped rows are groups of their own: they take no part in a mean, and their weight is 0.
    alone = torch.where(kept, trial.group, trial.group.max() + 1 + torch.arange(len(found)))
    detail = f"{dropped} of {len(found)} rows"
    centred = trial.centred(values, alone)
    yield Suspect("cut_group", detail, (trial.push(centred, group=alone),))
    yield Suspect("cut_group", detail, (trial.push(centred),))
    yield Suspect("cut_group", f"{detail}, which count in the mean", (trial.push(trial.weights() * kept),))
