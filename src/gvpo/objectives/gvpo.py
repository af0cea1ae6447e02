"""Group Variance Policy Optimization (arXiv 2504.19599)."""

from torch import Tensor

from gvpo.objectives.base import ObjectiveOutput, check_at_least, row_values, working_dtype
from gvpo.objectives.groups import Groups
from gvpo.objectives.regression import Residuals


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
    anchor: float = 0.0,
) -> ObjectiveOutput:
    """Match the differences of implicit rewards in a group to the differences of its rewards.

        l_i  = sum_t mask * (logprobs - ref_logprobs)                        a sum: no length normalisation
        loss = mean over groups of  1/(2(k-1)) sum_i [beta (l_i - lbar) - (R_i - Rbar)]^2
        grad = mean over groups of  -beta/(k-1) sum_i w_i grad log pi(y_i)
        w_i  = (R_i - Rbar) - beta (l_i - lbar)                              sums to 0, so log Z(x) cancels

    Its unique minimiser is pi* = pi' exp(R/beta) / Z, for any sampling distribution whose support covers pi': rows may
    come from the live policy, a stale one, a file or a mixture, without importance weights.

    The loss does not see a shift that all log-probs of a group share. An `anchor` adds  anchor/2 (beta lbar)^2, which
    holds the mean log-ratio of a group at 0, and moves the minimiser (`regression` says where to).

    Differs from the paper:
        - 1/(k-1) makes each group's term an unbiased variance, and the loss is a mean over groups, so neither group
          size nor batch size changes its scale.
        - `variance_weight` and `covariance_weight` scale two of the paper's three terms; 1 and 1 is GVPO, others are
          for ablations and have other minimisers.
        - `anchor` is not in the paper.

    Args:
        logprobs: [B, T] log-probs of the policy, nats.
        ref_logprobs: [B, T] log-probs of the reference pi', nats; one reference per group.
        rewards: [B], centred only: their scale and beta go together.
        group: [B] int64 group ids; sizes may differ, each at least 2.
        mask: [B, T], 1 on scored tokens. Values elsewhere are never read.
        beta: the strength of the pull to pi', in units of reward per nat.
        variance_weight: weight of beta^2/2 Var(log pi), which explores.
        covariance_weight: weight of -beta^2 Cov(log pi, log pi'), the trust region.
        anchor: weight of the squared mean of beta l in a group, at least 0.

    Returns:
        The loss and these metrics, averaged over groups unless stated otherwise (variances with k - 1):
        `gvpo/advantage_term` Cov(R, log pi), `gvpo/variance_term` Var(log pi), `gvpo/covariance_term`
        Cov(log pi, log pi'), `gvpo/logratio_gap_max` largest |l_i - lbar| (nats), `gvpo/weight_sum_max` largest
        |sum_i w_i| of a group, `gvpo/weight_abs_mean` mean |w_i| over rows, `gvpo/implicit_reward_corr` correlation of
        centred beta l and centred R over all rows, `gvpo/residual_ratio` Var(beta l - R) / Var(R), `gvpo/certificate`
        estimate of KL(pi || pi*) in nats for rows sampled from pi. These are centred in each group. In nats and not
        centred: `gvpo/logratio_mean` lbar, `gvpo/logratio_mean_better` and `gvpo/logratio_mean_worse` mean l over the
        rows above and below their group's mean reward (absent without such rows), `gvpo/logratio_optimum`
        Rbar/beta - log mean e^(R/beta), which lbar would be at the optimum for rows sampled from pi'. With an anchor
        also `gvpo/anchor_term`, the mean over groups of (beta lbar)^2.

    Raises:
        ShapeError: a tensor of the wrong shape or dtype.
        GroupTooSmall: a group of one.
        ObjectiveError: beta not above 0, anchor below 0, or a mask of other values than 0 and 1.

    Example:
        >>> tokens = torch.zeros(2, 1)
        >>> two = torch.tensor([1.0, 0.0])
        >>> same = torch.tensor([0, 0])
        >>> gvpo(tokens, ref_logprobs=tokens, rewards=two, group=same, mask=torch.ones(2, 1), beta=1.0).loss
        tensor(0.2500)

    Reference:
        Zhang et al., GVPO: Group Variance Policy Optimization for LLM Post-Training, arXiv 2504.19599.
    """
    residuals = _residuals(logprobs, ref_logprobs, rewards, group, mask, beta)
    groups, policy, reference = residuals.groups, residuals.policy, residuals.reference
    # The square form: at weights of 1 nothing is added to it, so no large log-prob sums cancel.
    square = residuals.losses(anchor)
    variance = (variance_weight - 1.0) * beta**2 / 2 * groups.covariance(policy, policy)
    covariance = (covariance_weight - 1.0) * beta**2 * groups.covariance(policy, reference)
    weights = residuals.weights()
    weights = weights + (covariance_weight - 1.0) * beta * reference - (variance_weight - 1.0) * beta * policy
    return ObjectiveOutput((square + variance - covariance).mean(), residuals.metrics(weights, anchor))


def gvpo_weights(
    logprobs: Tensor, *, ref_logprobs: Tensor, rewards: Tensor, group: Tensor, mask: Tensor, beta: float = 0.1
) -> Tensor:
    """Return the weight of each row in GVPO's gradient; positive pushes the completion up.

        w_i = (R_i - Rbar) - beta (l_i - lbar)

    The gradient of `gvpo` without an anchor is that of  mean over groups of -beta/(k-1) sum_i w_i log pi(y_i). The
    weights are detached, and must be: differentiated through, that form settles at a policy proportional to
    sqrt(pi' exp(R/beta)).

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
    return _residuals(logprobs.detach(), ref_logprobs, rewards, group, mask, beta).weights()


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
    # The mean of centred d is 0.
    return groups.log_mean_exp(returns / beta - groups.centre(ratios)).to(working_dtype(log_ratios))


def _residuals(
    logprobs: Tensor, ref_logprobs: Tensor, rewards: Tensor, group: Tensor, mask: Tensor, beta: float
) -> Residuals:
    """Return the residuals of groups of at least two rows."""
    residuals = Residuals.of(logprobs, ref_logprobs, rewards, group, mask, beta)
    residuals.groups.require_pairs("gvpo")
    return residuals
