"""Regression of log-ratios on rewards within groups: the square loss that GVPO, policy mirror descent and others share.

    e_i  = beta l_i - R_i
    loss = mean over groups of  1/2 Var(e) + anchor/2 (mean e + V)^2

`gvpo` is this loss with anchor 0, `pmd_mean` with anchor 1 and V the mean reward.
"""

import functools
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
)
from gvpo.objectives.groups import Groups
from gvpo.objectives.reduce import row_sums


def regression(
    logprobs: Tensor,
    *,
    ref_logprobs: Tensor,
    rewards: Tensor,
    group: Tensor,
    mask: Tensor,
    beta: float = 0.1,
    anchor: float = 0.0,
    value: Tensor | None = None,
) -> ObjectiveOutput:
    """Fit implicit rewards to rewards: their differences within a group, and with an anchor their mean as well.

        l_i  = sum_t mask * (logprobs - ref_logprobs)                        a sum: no length normalisation
        e_i  = beta l_i - R_i
        loss = mean over groups of  1/2 Var(e) + anchor/2 (mean e + V)^2     Var with k - 1, and 0 for k = 1

    At pi* = pi' exp(R/beta) / Z every e_i is -V*, with V* = beta log Z(x). The variance does not see V*, so with
    anchor 0 the loss is `gvpo`'s. A group's rows then say nothing about a shift of all their log-probs; the anchor
    penalises that shift.

    Its minimiser, for many rows per group, from a sampling distribution mu whose support covers pi':
        - anchor 0: pi*, as for `gvpo`, for every mu.
        - V = V*: pi*, for every anchor and every mu. With k = 1 and anchor 1 it is the regression of A*-PO.
        - V = mean reward (value=None): pi* on samples of the live policy. From pi' itself it is the maximum of
          E[R] - beta KL(pi || pi') - beta c/2 chi2(pi || pi')  with c = anchor KL(pi' || pi) at that maximum: a step of
          mirror descent that is more cautious than pi*, and equals it in the limit of a small anchor. From another mu
          it depends on mu. `pmd_mean` is the case of anchor 1.
        - another V: another policy, unless the rows are the live policy's.
    Groups of k rows add anchor/k to the variance's weight, so that beta acts like beta (1 + anchor/k).

    Differs from the papers:
        - PMD's mean over k of the squares has (k - 1)/k of this variance; the gradient's direction is the same.

    Args:
        logprobs: [B, T] log-probs of the policy, nats.
        ref_logprobs: [B, T] log-probs of the reference pi', nats; one reference per group.
        rewards: [B].
        group: [B] int64 group ids; sizes may differ. A group of one has only the anchor's term.
        mask: [B, T], 1 on scored tokens. Values elsewhere are never read.
        beta: the strength of the pull to pi', in units of reward per nat.
        anchor: weight of the squared mean, at least 0.
        value: [B] V of each row's group, in units of reward; None is the group's mean reward. Where the rows of a group
            differ, their mean is used.

    Returns:
        The loss and `gvpo`'s metrics, under the same keys. With an anchor also `gvpo/anchor_term`, the mean over groups
        of (mean e + V)^2.

    Raises:
        ShapeError: a tensor of the wrong shape or dtype.
        ObjectiveError: beta not above 0, anchor below 0, or a mask of other values than 0 and 1.

    Example:
        >>> tokens, rewards = torch.zeros(2, 1), torch.tensor([1.0, 0.0])
        >>> one = {"rewards": rewards, "group": torch.tensor([0, 0]), "mask": torch.ones(2, 1), "beta": 1.0}
        >>> regression(tokens, ref_logprobs=tokens, anchor=1.0, value=torch.full((2,), 1.5), **one).loss
        tensor(0.7500)

    Reference:
        Zhang et al., GVPO, arXiv 2504.19599 (anchor 0); Kimi Team, Kimi k1.5, arXiv 2501.12599, section 2.3 (anchor 1
        and the mean reward); Xu et al., arXiv 2602.05933 (the minimiser of the latter).
    """
    residuals = Residuals.of(logprobs, ref_logprobs, rewards, group, mask, beta, value)
    loss = residuals.losses(anchor).mean()
    return ObjectiveOutput(loss, residuals.metrics(residuals.weights(), anchor))


@dataclass(frozen=True)
class Residuals:
    """e = beta l - R of the rows of a batch, in parts; all [B] except for the last four.

    Args:
        rewards: R_i - Rbar.
        log_ratios: l_i - lbar, l_i = sum_t mask * (logprobs - ref_logprobs).
        uncentred: l_i.
        policy: sum_t mask * logprobs, centred.
        reference: sum_t mask * ref_logprobs, centred.
        excess: [G] V - Rbar; None if V is the mean reward.
        groups: groups of the rows.
        beta: scale of the log-ratios.
    """

    rewards: Tensor
    log_ratios: Tensor
    uncentred: Tensor
    policy: Tensor
    reference: Tensor
    excess: Tensor | None
    groups: Groups
    beta: float

    @classmethod
    def of(
        cls,
        logprobs: Tensor,
        ref_logprobs: Tensor,
        rewards: Tensor,
        group: Tensor,
        mask: Tensor,
        beta: float,
        value: Tensor | None = None,
        *,
        reference: str = "ref_logprobs",
    ) -> "Residuals":
        """Compute the parts from an objective's inputs, which are checked; `reference` is the name of the second.

        Raises:
            ShapeError, ObjectiveError: as `regression`.
        """
        check_at_least("beta", beta, 0.0, strictly=True)
        scored = scored_positions(logprobs, mask)
        policy = token_values("logprobs", logprobs, scored, logprobs)
        other = token_values(reference, ref_logprobs, scored, logprobs).detach()
        groups = Groups.of(group, len(logprobs))
        returns = row_values("rewards", rewards, logprobs)
        excess = None if value is None else groups.mean(row_values("value", value, logprobs) - returns)
        # Token by token before the sum: the difference of two sums of a thousand log-probs would lose its digits.
        log_ratios = row_sums(policy - other, scored)
        return cls(
            rewards=groups.centre(returns).to(policy.dtype),
            log_ratios=groups.centre(log_ratios),
            uncentred=log_ratios,
            policy=groups.centre(row_sums(policy, scored)),
            reference=groups.centre(row_sums(other, scored)),
            excess=None if excess is None else excess.to(policy.dtype),
            groups=groups,
            beta=beta,
        )

    def losses(self, anchor: float) -> Tensor:
        """Return [G] 1/2 Var(e) + anchor/2 (mean e + V)^2.

        Raises:
            ObjectiveError: anchor below 0.
        """
        check_at_least("anchor", anchor, 0.0)
        residual = self.beta * self.log_ratios - self.rewards
        square = self.groups.covariance(residual, residual) / 2
        return square if anchor == 0 else square + anchor / 2 * self.means().square()

    def means(self) -> Tensor:
        """Return [G] mean e + V. With V = Rbar the rewards cancel, and it is beta lbar."""
        means = self.beta * self.groups.mean(self.uncentred)
        return means if self.excess is None else means + self.excess

    def weights(self) -> Tensor:
        """Return [B] w_i = (R_i - Rbar) - beta (l_i - lbar), with a gradient."""
        return self.rewards - self.beta * self.log_ratios

    @torch.no_grad()
    def metrics(self, weights: Tensor, anchor: float) -> dict[str, Tensor]:
        """Return the metrics that `gvpo` documents, with the weights [B] of its gradient."""
        groups, rewards, implicit = self.groups, self.rewards, self.beta * self.log_ratios
        residual, spread = (groups.covariance(value, value).mean() for value in (implicit - rewards, rewards))
        return named_metrics(
            "gvpo",
            advantage_term=groups.covariance(rewards, self.policy).mean(),
            variance_term=groups.covariance(self.policy, self.policy).mean(),
            covariance_term=groups.covariance(self.policy, self.reference).mean(),
            logratio_gap_max=self.log_ratios.abs().max(),
            weight_sum_max=groups.sum(weights).abs().max(),
            weight_abs_mean=weights.abs().mean(),
            implicit_reward_corr=_correlation(implicit, rewards),
            residual_ratio=_ratio(residual, spread, otherwise=1.0),
            certificate=groups.log_mean_exp(rewards / self.beta - self.log_ratios).mean(),  # the mean of centred d is 0
            logratio_mean=groups.mean(self.uncentred).mean(),
            logratio_optimum=0.0 - groups.log_mean_exp(rewards / self.beta).mean(),  # never -0.0
            **({"anchor_term": self.means().square().mean()} if anchor > 0 else {}),
            **_by_side(self.uncentred, rewards),
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


pmd_mean = functools.partial(regression, anchor=1.0)
vars(pmd_mean).update(
    __name__="pmd_mean",
    __doc__="""Policy mirror descent with the group's mean reward for the log-partition function.

        loss = mean over groups of  1/2 Var(e) + 1/2 (beta lbar)^2,   e_i = beta l_i - R_i

    `regression` with anchor=1; give it the policy that sampled as the reference. Arguments, metrics and errors as
    `regression`.

    Differs from the paper:
        - Its mean over k of the squares has (k - 1)/k of this variance; the gradient's direction is the same.

    Reference:
        Kimi Team, Kimi k1.5, arXiv 2501.12599, section 2.3; Xu et al., arXiv 2602.05933, who name it PMD-mean.
    """,
)
