"""Readable curves: a smoothed version of a noisy curve, and fewer points for a long one."""

import math
from collections.abc import Sequence
from itertools import accumulate

from gvpo.report.svg import Point

MAX_POINTS = 800
"""Longer curves are thinned to about this many points; the extremes stay."""


def smooth(points: Sequence[Point]) -> list[Point]:
    """Return a centred running mean over a twentieth of the curve, and over at least 5 points.

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
    """Return about `limit` points: the lowest and the highest of each stretch, so that spikes stay, and the last."""
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
