"""Which curves a report shows: metrics of runs become charts. What is missing is left out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from gvpo.report.data import Run
from gvpo.report.svg import Chart, Point, Series

MAX_POINTS = 800
"""Longer curves are thinned to about this many points; the extremes stay."""

_TREND_FROM = 40
"""Curves with this many points get a smoothed line over the faint raw one."""


@dataclass(frozen=True)
class Spec:
    """A chart that reports know.

    Args:
        title, unit, hint, low, high, stacked, percent: as in `Chart`.
        metrics: what is drawn: legend name by metric key; keys that no run has are left out.
        section: the heading it stands under.
    """

    title: str
    unit: str
    metrics: Mapping[str, str]
    section: str
    hint: str = ""
    low: float | None = None
    high: float | None = None
    stacked: bool = False
    percent: bool = False


LEARNING, OBJECTIVE, HEALTH, OTHER = "Learning", "Objective", "Health and speed", "Other metrics"

SPECS: tuple[Spec, ...] = (
    Spec(
        "Accuracy",
        "share right",
        {
            "accuracy": "training, sampled",
            "eval/accuracy": "held-out, sampled",
            "eval/accuracy_greedy": "held-out, greedy",
        },
        LEARNING,
        "Held-out accuracy is what counts; training accuracy alone may be memory.",
        low=0.0,
        high=1.0,
        percent=True,
    ),
    Spec(
        "Reward",
        "reward",
        {"reward/mean": "training", "eval/reward": "held-out"},
        LEARNING,
        "Mean over the completions of a step; it should rise.",
    ),
    Spec(
        "KL to the reference",
        "nats per completion",
        {"kl/reference": "KL"},
        LEARNING,
        "How far the policy has moved; it grows and levels off.",
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
        "Length",
        "tokens",
        {"length/mean": "mean", "length/max": "longest", "eval/length": "held-out mean"},
        LEARNING,
        "Tokens of a completion; a sudden change is a warning.",
    ),
    Spec("Loss", "loss", {"train/loss": "loss"}, OBJECTIVE, "Of the objective; not comparable between objectives."),
    Spec(
        "GVPO terms",
        "nats, nats²",
        {
            "gvpo/advantage_term": "advantage",
            "gvpo/covariance_term": "covariance",
            "gvpo/variance_term": "variance",
        },
        OBJECTIVE,
        "Cov(R, log pi), Cov(log pi, log pi'), Var(log pi): means over groups.",
    ),
    Spec(
        "Log-ratio to the sampler",
        "nats per completion",
        {"offpolicy/logratio_mean": "all rows", "offpolicy/logratio_best": "rows of the highest reward"},
        OBJECTIVE,
        "Against the policy that sampled the rows; those of the highest reward should not stay below 0.",
    ),
    Spec(
        "Log-ratio to the reference",
        "nats per completion",
        {
            "gvpo/logratio_mean": "all rows",
            "gvpo/logratio_optimum": "all rows at the optimum",
            "gvpo/logratio_mean_better": "better rows",
            "gvpo/logratio_mean_worse": "worse rows",
        },
        OBJECTIVE,
        "On rows of another policy the mean goes towards that of the optimum; far below it all log-probs fall.",
    ),
    Spec(
        "Effective sample size",
        "share of the rows",
        {"offpolicy/ess": "of ratios to the sampler"},
        OBJECTIVE,
        "1 on fresh samples; low where a few rows outweigh the others.",
        low=0.0,
        high=1.0,
    ),
    Spec(
        "Certificate",
        "nats",
        {"gvpo/certificate": "KL to the optimum"},
        OBJECTIVE,
        "Estimated KL from the policy to its optimum, on its own samples; it falls towards 0.",
        low=0.0,
    ),
    Spec(
        "Implicit reward and reward",
        "correlation",
        {"gvpo/implicit_reward_corr": "correlation"},
        OBJECTIVE,
        "Within groups: how well the rows are fitted, not whether the policy gets better.",
    ),
    Spec(
        "Residual variance",
        "share of the reward's",
        {"gvpo/residual_ratio": "residual / reward variance"},
        OBJECTIVE,
        "What the implicit reward does not yet explain of the rows; a small one is fit, not progress.",
        low=0.0,
    ),
    Spec(
        "Largest log-ratio gap",
        "nats",
        {"gvpo/logratio_gap_max": "max |l - mean l|"},
        OBJECTIVE,
        "Of a completion to its group; large values mean that few rows decide the step.",
        low=0.0,
    ),
    Spec(
        "Gradient norm",
        "before clipping",
        {"train/grad_norm": "norm"},
        HEALTH,
        "Lone spikes are normal; steady growth is not.",
        low=0.0,
    ),
    Spec("Learning rate", "per update", {"train/lr": "learning rate"}, HEALTH, low=0.0),
    Spec(
        "Reward spread",
        "reward",
        {"reward/std": "standard deviation"},
        HEALTH,
        "Over the rows of a step; at 0 there is nothing left to compare.",
        low=0.0,
    ),
    Spec(
        "Lost groups",
        "groups per step",
        {"groups/dead": "all rewards equal", "groups/skipped": "too few rows"},
        HEALTH,
        "Groups that cannot teach by comparison.",
        low=0.0,
    ),
    Spec(
        "Lost rows",
        "share of rows",
        {
            "rows/truncated": "truncated",
            "rows/failed": "reward failed",
            "rows/paid_worst": "paid the worst",
            "eval/truncated": "truncated, held-out",
        },
        HEALTH,
        "Completions cut at the length limit, those without a reward, and those that made a verifier fail.",
        low=0.0,
        percent=True,
    ),
    Spec(
        "Sampler mismatch",
        "nats per token",
        {"sampler/mismatch": "mismatch"},
        HEALTH,
        "Log-probs of the sampler against the trainer's; near 0 unless the engines differ.",
        low=0.0,
    ),
    Spec(
        "Seconds per step",
        "seconds",
        {
            "seconds/sampling": "sampling",
            "seconds/rewarding": "rewarding",
            "seconds/scoring": "scoring",
            "seconds/updating": "updating",
        },
        HEALTH,
        "Where the time of a step goes.",
        low=0.0,
        stacked=True,
    ),
    Spec("Speed", "tokens per second", {"tokens/per_second": "tokens per second"}, HEALTH, low=0.0),
)

_HIDDEN = {"step", "groups/total", "seconds/total"}
_TRAINER = {"eval", "groups", "kl", "length", "offpolicy", "reward", "rows", "sampler", "seconds", "tokens", "train"}
"""First parts of the trainer's own keys; any other first part is an objective's name."""


def spec_for(metric: str) -> Spec:
    """The chart that shows a metric; a plain one for a metric that reports do not know."""
    owner, *rest = metric.split("/")
    section = OBJECTIVE if rest and owner not in _TRAINER and rest[-1] != "last" else OTHER
    return next((spec for spec in SPECS if metric in spec.metrics), Spec(metric, "", {metric: metric}, section))


def sections(runs: Sequence[Run]) -> dict[str, list[Chart]]:
    """All charts of some runs by the heading they stand under; headings without a chart are absent."""
    found: dict[str, list[Chart]] = {}
    for spec in (*_with_reward_parts(runs), *_unknown(runs)):
        if chart := build(spec, runs):
            found.setdefault(spec.section, []).append(chart)
    return {name: found[name] for name in (LEARNING, OBJECTIVE, HEALTH, OTHER) if name in found}


def _with_reward_parts(runs: Sequence[Run]) -> Iterator[Spec]:
    """The known charts; after the reward's, one of its parts where there are several."""
    names = [key for key in _keys(runs) if key.startswith("reward/") and key not in ("reward/mean", "reward/std")]
    for spec in SPECS:
        yield spec
        if spec.title == "Reward" and len(names) > 1:
            parts = {name: name.removeprefix("reward/") for name in names}
            yield Spec("Reward parts", "reward", parts, LEARNING, "Each reward function's mean, before its weight.")


def _unknown(runs: Sequence[Run]) -> Iterator[Spec]:
    known = {key for spec in SPECS for key in spec.metrics} | _HIDDEN
    yield from (spec_for(key) for key in _keys(runs) if key not in known and not key.startswith("reward/"))


def _keys(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(key for run in runs for key in run.keys))


def build(spec: Spec, runs: Sequence[Run]) -> Chart | None:
    """The chart of a spec; None if no run has anything to draw.

    With one run colours tell metrics apart; with several they tell runs apart, and dashes the metrics. Stacked areas of
    several runs cannot be told apart: those charts draw each run's total.
    """
    if spec.stacked and len(runs) > 1:
        series = [one for index, run in enumerate(runs) for one in _total(spec, run, index)]
    else:
        series = [one for index, run in enumerate(runs) for one in _series(spec, run, index, many=len(runs) > 1)]
    if not series:
        return None
    stacked = spec.stacked and len(runs) == 1
    return Chart(spec.title, spec.unit, series, spec.low, spec.high, stacked, spec.percent, spec.hint)


def _series(spec: Spec, run: Run, index: int, *, many: bool) -> Iterator[Series]:
    for position, (key, name) in enumerate(spec.metrics.items()):
        points = run.points(key)
        if not any(math.isfinite(y) for _, y in points):
            continue
        measured = key.startswith("eval/")
        trend = smooth(points) if len(points) >= _TREND_FROM and not (measured or spec.stacked) else ()
        yield Series(
            name=name,
            points=points[:: math.ceil(len(points) / MAX_POINTS)] if spec.stacked else thin(points),
            color=index if many else position,
            dash=position if many else 0,
            dots=measured,
            trend=thin(trend),
            run=run.name if many else "",
        )


def _total(spec: Spec, run: Run, index: int) -> Iterator[Series]:
    """A run's sum over the metrics of a stacked chart."""
    total: dict[float, float] = {}
    for key in spec.metrics:
        for x, y in run.points(key):
            total[x] = total.get(x, 0.0) + (y if math.isfinite(y) else 0.0)
    if total:
        yield Series("all", thin(sorted(total.items())), index, run=run.name)


def smooth(points: Sequence[Point]) -> list[Point]:
    """A centred running mean over a twentieth of the curve (at least 5 points).

    Gaps are left out of the means and stay gaps; at the ends the window is cut short.
    """
    reach = max(2, len(points) // 40)
    present = [math.isfinite(y) for _, y in points]
    sums = list(accumulate((y if there else 0.0 for (_, y), there in zip(points, present, strict=True)), initial=0.0))
    counts = list(accumulate(present, initial=0))
    smoothed = []
    for index, (x, _) in enumerate(points):
        first, end = max(0, index - reach), min(len(points), index + reach + 1)
        mean = (sums[end] - sums[first]) / (counts[end] - counts[first]) if present[index] else math.nan
        smoothed.append((x, mean))
    return smoothed


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> Sequence[Point]:
    """At most about `limit` points: the last, and of each stretch the lowest and the highest, so that spikes stay."""
    if len(points) <= limit:
        return points
    size = math.ceil(2 * len(points) / limit)
    kept: list[Point] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        finite = [point for point in stretch if math.isfinite(point[1])] or stretch[:1]
        extremes = {min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])}
        kept += sorted(extremes)
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]
