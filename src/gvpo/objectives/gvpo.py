"""Group Variance Policy Optimization (arXiv 2504.19599)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gvpo.objectives.base import (
    ObjectiveOutput,
    check_at_least,
    named_metrics,
    row_values,
    scored_positions,
    token_values,
    working_dtype,
)
from gvpo.objectives.groups import Groups
from gvpo.objectives.reduce import row_sums


@dataclass(frozen=True)
class _Centred:
    """Per-row quantities minus their group means; all [B].

    Args:
        rewards: R_i - Rbar.
        log_ratios: l_i - lbar, l_i = sum_t mask * (logprobs - ref_logprobs).
        uncentred: l_i.
        policy: sum_t mask * logprobs, centred.
        reference: sum_t mask * ref_logprobs, centred.
        groups: groups of the rows.
    """

    rewards: Tensor
    log_ratios: Tensor
    uncentred: Tensor
    policy: Tensor
    reference: Tensor
    groups: Groups


def gvpo(
    logprobs: Tensor,
    *,
    ref_logprobs: Tensor,
    rewards: Tensor,
    group: Tensor,
    mask: Tensor,
    beta: float = 0.1,
    variance_weight: float = 1.0,
    covariance_weight: float = 1.0,
) -> ObjectiveOutput:
    """Match the differences of implicit rewards in a group to the differences of its rewards.

        l_i  = sum_t mask * (logprobs - ref_logprobs)                        a sum: no length normalisation
        loss = mean over groups of  1/(2(k-1)) sum_i [beta (l_i - lbar) - (R_i - Rbar)]^2
        grad = mean over groups of  -beta/(k-1) sum_i w_i grad log pi(y_i)
        w_i  = (R_i - Rbar) - beta (l_i - lbar)                              sums to 0, so log Z(x) cancels

    Its unique minimiser is pi* = pi' exp(R/beta) / Z, for any sampling distribution whose support covers pi': rows may
    come from the live policy, a stale one, a file or a mixture, without importance weights.

    Differs from the paper:
        - 1/(k-1) makes each group's term an unbiased variance, and the loss is a mean over groups, so neither group
          size nor batch size changes its scale.
        - `variance_weight` and `covariance_weight` scale two of the paper's three terms; 1 and 1 is GVPO, others are
          for ablations and have other minimisers.

    Args:
        logprobs: [B, T] log-probs of the policy, nats.
        ref_logprobs: [B, T] log-probs of the reference pi', nats; one reference per group.
        rewards: [B], centred only: their scale and beta go together.
        group: [B] int64 group ids; sizes may differ, each at least 2.
        mask: [B, T], 1 on scored tokens. Values elsewhere are never read.
        beta: the strength of the pull to pi', in units of reward per nat.
        variance_weight: weight of beta^2/2 Var(log pi), which explores.
        covariance_weight: weight of -beta^2 Cov(log pi, log pi'), the trust region.

    Returns:
        The loss and these metrics, averaged over groups unless stated otherwise (variances with k - 1):
        `gvpo/advantage_term` Cov(R, log pi), `gvpo/variance_term` Var(log pi), `gvpo/covariance_term`
        Cov(log pi, log pi'), `gvpo/logratio_gap_max` largest |l_i - lbar| (nats), `gvpo/weight_sum_max` largest
        |sum_i w_i| of a group, `gvpo/weight_abs_mean` mean |w_i| over rows, `gvpo/implicit_reward_corr` correlation of
        centred beta l and centred R over all rows, `gvpo/residual_ratio` Var(beta l - R) / Var(R), `gvpo/certificate`
        estimate of KL(pi || pi*) in nats for rows sampled from pi. These are centred in each group. In nats and not
        centred: `gvpo/logratio_mean` lbar, `gvpo/logratio_mean_better` and `gvpo/logratio_mean_worse` mean l over the
        rows above and below their group's mean reward (absent without such rows), `gvpo/logratio_optimum`
        Rbar/beta - log mean e^(R/beta), which lbar would be at the optimum for rows sampled from pi'.

    Raises:
        ShapeError: a tensor of the wrong shape or dtype.
        GroupTooSmall: a group of one.
        ObjectiveError: beta not above 0, or a mask of other values than 0 and 1.

    Example:
        >>> tokens = torch.zeros(2, 1)
        >>> two = torch.tensor([1.0, 0.0])
        >>> same = torch.tensor([0, 0])
        >>> gvpo(tokens, ref_logprobs=tokens, rewards=two, group=same, mask=torch.ones(2, 1), beta=1.0).loss
        tensor(0.2500)

    Reference:
        Zhang et al., GVPO: Group Variance Policy Optimization for LLM Post-Training, arXiv 2504.19599.
    """
    centred = _centre(logprobs, ref_logprobs, rewards, group, mask, beta)
    groups = centred.groups
    residual = beta * centred.log_ratios - centred.rewards
    # The square form: at weights of 1 nothing is added to it, so no large log-prob sums cancel.
    square = groups.covariance(residual, residual) / 2
    variance = (variance_weight - 1.0) * beta**2 / 2 * groups.covariance(centred.policy, centred.policy)
    covariance = (covariance_weight - 1.0) * beta**2 * groups.covariance(centred.policy, centred.reference)
    loss = (square + variance - covariance).mean()
    return ObjectiveOutput(loss, _metrics(centred, beta, variance_weight, covariance_weight))


def gvpo_weights(
    logprobs: Tensor, *, ref_logprobs: Tensor, rewards: Tensor, group: Tensor, mask: Tensor, beta: float = 0.1
) -> Tensor:
    """Return the weight of each row in GVPO's gradient; positive pushes the completion up.

        w_i = (R_i - Rbar) - beta (l_i - lbar)

    The gradient of `gvpo` is that of  mean over groups of -beta/(k-1) sum_i w_i log pi(y_i). The weights are detached,
    and must be: differentiated through, that form settles at a policy proportional to sqrt(pi' exp(R/beta)).

    Args:
        logprobs: [B, T] log-probs of the policy, nats.
        ref_logprobs: [B, T] log-probs of the reference, nats.
        rewards: [B].
        group: [B] int64 group ids, each of at least 2 rows.
        mask: [B, T], 1 on scored tokens.
        beta: the strength of the pull to the reference.

    Returns:
        [B], summing to 0 in each group.

    Raises:
        ShapeError, GroupTooSmall, ObjectiveError: as `gvpo`.

    Reference:
        arXiv 2504.19599, the weight of its gradient.
    """
    return _weights(_centre(logprobs.detach(), ref_logprobs, rewards, group, mask, beta), beta)


def certificate(log_ratios: Tensor, rewards: Tensor, group: Tensor, beta: float) -> Tensor:
    """Estimate the distance of the policy from its optimum, from its own samples.

        d_i = R_i / beta - l_i
        certificate = log mean_i e^(d_i) - mean_i d_i        estimates KL(pi || pi*), nats

    True for rows sampled from the policy itself, at temperature 1 of the same log-probs. It is never negative; with few
    rows it is too low on average (the log of a mean of k samples is below the log of the expectation). Near the optimum
    it is about half the variance of d, whose unbiased estimate is `gvpo`'s loss / beta^2.

    Args:
        log_ratios: [B] l_i, sums over scored tokens of logprobs - ref_logprobs, nats.
        rewards: [B].
        group: [B] int64 group ids; a group of one has certificate 0.
        beta: see `gvpo`.

    Returns:
        [G], one value per group in ascending order of the ids, detached.

    Raises:
        ShapeError: a tensor of the wrong shape or dtype.
        ObjectiveError: beta not above 0.

    Reference:
        KL(pi || pi*) = log E_pi[e^d] - E_pi[d], from pi* = pi' exp(R/beta) / Z of arXiv 2504.19599.
    """
    check_at_least("beta", beta, 0.0, strictly=True)
    groups = Groups.of(group, len(log_ratios))
    ratios = row_values("log_ratios", log_ratios, log_ratios)
    returns = groups.centre(row_values("rewards", rewards, log_ratios))
    return _certificate(returns, groups.centre(ratios), groups, beta).to(working_dtype(log_ratios))


def _centre(
    logprobs: Tensor, ref_logprobs: Tensor, rewards: Tensor, group: Tensor, mask: Tensor, beta: float
) -> _Centred:
    check_at_least("beta", beta, 0.0, strictly=True)
    scored = scored_positions(logprobs, mask)
    policy = token_values("logprobs", logprobs, scored, logprobs)
    reference = token_values("ref_logprobs", ref_logprobs, scored, logprobs).detach()
    groups = Groups.of(group, len(logprobs))
    returns = row_values("rewards", rewards, logprobs)
    groups.require_pairs("gvpo")
    # Token by token before the sum: the difference of two sums of a thousand log-probs would lose its digits.
    log_ratios = row_sums(policy - reference, scored)
    return _Centred(
        rewards=groups.centre(returns).to(policy.dtype),
        log_ratios=groups.centre(log_ratios),
        uncentred=log_ratios,
        policy=groups.centre(row_sums(policy, scored)),
        reference=groups.centre(row_sums(reference, scored)),
        groups=groups,
    )


def _weights(centred: _Centred, beta: float, variance_weight: float = 1.0, covariance_weight: float = 1.0) -> Tensor:
    weights = centred.rewards - beta * centred.log_ratios
    variance = (variance_weight - 1.0) * beta * centred.policy
    covariance = (covariance_weight - 1.0) * beta * centred.reference
    return weights + covariance - variance


def _certificate(rewards: Tensor, log_ratios: Tensor, groups: Groups, beta: float) -> Tensor:
    """Compute the certificate of centred values, for which the mean of d is 0 and only the first term remains."""
    return groups.log_mean_exp(rewards / beta - log_ratios)


@torch.no_grad()
def _metrics(centred: _Centred, beta: float, variance_weight: float, covariance_weight: float) -> dict[str, Tensor]:
    groups, rewards, policy, reference = centred.groups, centred.rewards, centred.policy, centred.reference
    implicit = beta * centred.log_ratios
    weights = _weights(centred, beta, variance_weight, covariance_weight)
    residual, reward_variance = (groups.covariance(value, value).mean() for value in (implicit - rewards, rewards))
    return named_metrics(
        "gvpo",
        advantage_term=groups.covariance(rewards, policy).mean(),
        variance_term=groups.covariance(policy, policy).mean(),
        covariance_term=groups.covariance(policy, reference).mean(),
        logratio_gap_max=centred.log_ratios.abs().max(),
        weight_sum_max=groups.sum(weights).abs().max(),
        weight_abs_mean=weights.abs().mean(),
        implicit_reward_corr=_correlation(implicit, rewards),
        residual_ratio=_ratio(residual, reward_variance, otherwise=1.0),
        certificate=_certificate(rewards, centred.log_ratios, groups, beta).mean(),
        logratio_mean=groups.mean(centred.uncentred).mean(),
        logratio_optimum=0.0 - groups.log_mean_exp(rewards / beta).mean(),  # never -0.0
        **_by_side(centred.uncentred, rewards),
    )


def _by_side(log_ratios: Tensor, rewards: Tensor) -> dict[str, Tensor]:
    """Return mean log-ratios of the rows above and below their group's mean reward, without a side that has no rows."""
    sides = {"logratio_mean_better": rewards > 0, "logratio_mean_worse": rewards < 0}
    return {name: log_ratios[side].mean() for name, side in sides.items() if side.any()}


def _correlation(left: Tensor, right: Tensor) -> Tensor:
    """Return the correlation of centred values, or 0 if one of them does not vary."""
    return _ratio((left * right).sum(), left.square().sum().sqrt() * right.square().sum().sqrt(), otherwise=0.0)


def _ratio(above: Tensor, below: Tensor, otherwise: float) -> Tensor:
    return torch.where(below > 0, above / below, otherwise)
