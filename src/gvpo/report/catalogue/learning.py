"""Charts that say whether the policy gets better."""

from gvpo.report.catalogue.spec import LEARNING, Spec

SPECS = (
    Spec(
        "Accuracy",
        "share correct",
        {
            "accuracy": "training, sampled",
            "curriculum/accuracy": "prompts drawn so far",
            "eval/accuracy": "held-out, sampled",
            "eval/accuracy_greedy": "held-out, greedy",
        },
        LEARNING,
        "Judge a run by its held-out accuracy; accuracy on training problems may be memory. "
        "Without held-out problems, held-out accuracy is the share of held-out pairs that are ranked correctly.",
        low=0.0,
        high=1.0,
        percent=True,
    ),
    Spec(
        "Reward",
        "mean per completion",
        {"reward/mean": "training", "eval/reward": "held-out"},
        LEARNING,
        "The weighted sum of all reward functions. It should rise.",
    ),
    Spec(
        "Reward functions",
        "mean per completion",
        {"reward/*": "{}"},
        LEARNING,
        "The mean of each reward function before its weight.",
        at_least=2,
    ),
    Spec(
        "Held-out pairs ranked correctly",
        "share of pairs",
        {"eval/pair_accuracy": "pairs"},
        LEARNING,
        "Pairs whose better answer has the higher implicit reward. It is 50% at the start and should rise.",
        low=0.0,
        high=1.0,
        percent=True,
    ),
    Spec(
        "Margin on held-out pairs",
        "implicit reward",
        {"eval/pair_margin": "margin"},
        LEARNING,
        "The implicit reward of the better answer minus that of the other, on average.",
    ),
    Spec(
        "Log-ratio on held-out pairs",
        "nats per completion",
        {"eval/chosen_logratio": "chosen answers", "eval/rejected_logratio": "rejected answers"},
        LEARNING,
        "Log-prob under the policy minus log-prob under the run's starting policy.",
    ),
    Spec(
        "KL to the reference",
        "nats per completion",
        {"kl/reference": "KL"},
        LEARNING,
        "How far the policy has moved. It grows and levels off.",
        low=0.0,
    ),
    Spec(
        "Entropy",
        "nats per token",
        {"entropy": "entropy"},
        LEARNING,
        "It falls slowly; near 0 the policy no longer explores.",
        low=0.0,
    ),
    Spec(
        "Completion length",
        "tokens",
        {"length/mean": "mean", "length/max": "longest", "eval/length": "held-out mean"},
        LEARNING,
        "A sudden change is a warning.",
    ),
)
