"""Charts of what an objective reports, and of how far the policy has moved."""

from gvpo.report.catalogue.spec import OBJECTIVE, Spec

_SHARED = (
    Spec(
        "Loss",
        "per update",
        {"train/loss": "loss"},
        OBJECTIVE,
        "Losses of different objectives cannot be compared, and a loss need not fall.",
    ),
    Spec(
        "Log-ratio to the sampler",
        "nats per completion",
        {"offpolicy/logratio_mean": "all completions", "offpolicy/logratio_best": "highest reward"},
        OBJECTIVE,
        "Log-prob under the policy minus log-prob under the policy that sampled the completions. "
        "Completions of the highest reward should not stay below 0.",
    ),
    Spec(
        "Effective sample size",
        "share of completions",
        {"offpolicy/ess": "of ratios to the sampler"},
        OBJECTIVE,
        "1 on fresh samples; low where a few completions outweigh the others.",
        low=0.0,
        high=1.0,
    ),
)

_GVPO = (
    Spec(
        "GVPO terms",
        "reward times nats, nats²",
        {
            "gvpo/advantage_term": "advantage",
            "gvpo/covariance_term": "covariance",
            "gvpo/variance_term": "variance",
        },
        OBJECTIVE,
        "Cov(R, log pi), Cov(log pi, log pi') and Var(log pi), each a mean over groups.",
    ),
    Spec(
        "Log-ratio to the reference",
        "nats per completion",
        {
            "gvpo/logratio_mean": "all completions",
            "gvpo/logratio_optimum": "optimum",
            "gvpo/logratio_mean_better": "better than the group's mean",
            "gvpo/logratio_mean_worse": "worse",
        },
        OBJECTIVE,
        "On completions of another policy the mean moves towards the optimum; far below it all log-probs fall.",
    ),
    Spec(
        "KL to the optimum (certificate)",
        "nats per completion",
        {"gvpo/certificate": "KL to the optimum"},
        OBJECTIVE,
        "Estimated on the policy's own samples. It falls towards 0.",
        low=0.0,
    ),
    Spec(
        "Implicit reward against reward",
        "correlation",
        {"gvpo/implicit_reward_corr": "correlation"},
        OBJECTIVE,
        "Within groups. It says how well the completions are fitted, not whether the policy gets better.",
    ),
    Spec(
        "Residual variance",
        "share of the reward's variance",
        {"gvpo/residual_ratio": "residual / reward variance"},
        OBJECTIVE,
        "What the implicit reward does not explain yet. A small value is fit, not progress.",
        low=0.0,
    ),
    Spec(
        "Largest log-ratio gap",
        "nats per completion",
        {"gvpo/logratio_gap_max": "max |l - mean l|"},
        OBJECTIVE,
        "Between a completion and the mean of its group. Large values mean that few completions decide the step.",
        low=0.0,
    ),
    Spec(
        "Squared mean of the implicit reward",
        "reward²",
        {"gvpo/anchor_term": "anchor term"},
        OBJECTIVE,
        "What the anchor penalises, without its weight.",
        low=0.0,
    ),
    Spec("Size of the weights", "mean per completion", {"gvpo/weight_abs_mean": "mean size"}, OBJECTIVE, low=0.0),
    Spec(
        "Largest sum of weights",
        "per group",
        {"gvpo/weight_sum_max": "largest sum"},
        OBJECTIVE,
        "It is 0 up to rounding.",
        low=0.0,
    ),
)

_DISTILL = (
    Spec(
        "Log-ratio to the teacher",
        "nats per completion",
        {"distill/logratio_mean": "mean"},
        OBJECTIVE,
        "On the policy's own samples it estimates KL(policy || teacher). It goes towards 0.",
    ),
    Spec(
        "Variance of the log-ratio to the teacher",
        "nats²",
        {"distill/variance": "variance"},
        OBJECTIVE,
        "Within groups. It falls to 0.",
        low=0.0,
    ),
    Spec(
        "Largest gap of a log-ratio to the teacher",
        "nats per completion",
        {"distill/logratio_gap_max": "max |l - mean l|"},
        OBJECTIVE,
        "Between a completion and the mean of its group.",
        low=0.0,
    ),
)

_RATIOS = (
    Spec(
        "Importance ratio",
        "mean",
        {"*/ratio_mean": "ratio"},
        OBJECTIVE,
        "Probability under the policy over that at the start of the rollout. It is 1 in a rollout's first update.",
    ),
    Spec(
        "Clipped ratios",
        "share of ratios",
        {"*/clip_fraction": "all", "*/clip_fraction_low": "lower side", "*/clip_fraction_high": "upper side"},
        OBJECTIVE,
        "Tokens, completions or segments whose gradient the clip stops. It is 0 in a rollout's first update.",
        low=0.0,
        percent=True,
    ),
    Spec(
        "Size of the advantages",
        "mean",
        {"*/advantage_abs_mean": "mean size"},
        OBJECTIVE,
        "Groups whose rewards are all equal have advantage 0.",
        low=0.0,
    ),
    Spec(
        "KL penalty", "nats per token", {"*/kl": "KL"}, OBJECTIVE, "Before its coefficient. It grows slowly.", low=0.0
    ),
    Spec(
        "Importance weight",
        "mean",
        {"*/is_weight_mean": "weight"},
        OBJECTIVE,
        "Truncated probability under the policy at the start of the step over that under the sampler.",
        low=0.0,
    ),
    Spec(
        "Truncated weights",
        "share of tokens",
        {"*/is_capped_fraction": "at the cap"},
        OBJECTIVE,
        "Tokens whose importance weight is cut.",
        low=0.0,
        percent=True,
    ),
    Spec("Segments", "per completion", {"*/segments": "segments"}, OBJECTIVE, low=0.0),
    Spec(
        "Multipliers of the constraints",
        "mean over updates",
        {"multiplier/*": "{}"},
        OBJECTIVE,
        "Each settles; one that grows without end has a limit that cannot be met.",
        low=0.0,
    ),
)

_PAIRS = (
    Spec(
        "Training pairs ranked correctly",
        "share of pairs",
        {"*/accuracy": "pairs", "*/weak_accuracy": "pairs with weak negatives"},
        OBJECTIVE,
        "Pairs whose chosen answer has the higher implicit reward. It is 50% at the start and should rise.",
        low=0.0,
        high=1.0,
        percent=True,
    ),
    Spec(
        "Margin over the aligned models",
        "nats per token",
        {"poft/margin": "margin"},
        OBJECTIVE,
        "Above 0 the answers are more likely under the policy than under the aligned models.",
    ),
    Spec(
        "Margin on training pairs",
        "implicit reward",
        {"*/margin": "margin", "*/weak_margin": "margin over weak negatives"},
        OBJECTIVE,
        "The implicit reward of the chosen answer minus that of the rejected one, on average.",
    ),
    Spec(
        "Log-ratio on training pairs",
        "nats per completion",
        {
            "*/chosen_logratio": "chosen answers",
            "*/rejected_logratio": "rejected answers",
            "*/weak_logratio": "weak negatives",
        },
        OBJECTIVE,
        "Log-prob under the policy minus log-prob under the reference. That of chosen answers often falls, too.",
    ),
)

_SUPERVISED = (
    Spec(
        "Negative log-likelihood per token",
        "nats per token",
        {"*/nll": "of the answers"},
        OBJECTIVE,
        "It falls; e to its power is the perplexity.",
    ),
    Spec(
        "Negative log-likelihood per completion",
        "nats per completion",
        {"*/sequence_nll": "of the answers"},
        OBJECTIVE,
    ),
    Spec("Log-prob of the answers", "nats per token", {"*/mean_logprob": "mean"}, OBJECTIVE, "It rises."),
    Spec(
        "PoFT weight tau",
        "per completion",
        {"poft/tau": "mean", "poft/tau_std": "standard deviation"},
        OBJECTIVE,
        "About 1/2 near the aligned models; it falls. With no spread, PoFT is SFT.",
        low=0.0,
    ),
)

SPECS = (*_SHARED, *_GVPO, *_DISTILL, *_RATIOS, *_PAIRS, *_SUPERVISED)
