"""Checks of the real levels 3 to 5 of MATH against the real benchmarks, if the data are available."""

import os
from pathlib import Path

import pytest

from gvpo.data.check import check, read_rows

DATA = Path(os.environ.get("GVPO_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
TRAIN = DATA / "math_lvl3to5" / "train.jsonl"
BENCHMARKS = ["aime24", "amc", "gsm8k/test.jsonl", "math500", "minerva", "olympiadbench"]
pytestmark = pytest.mark.skipif(not TRAIN.is_file(), reason="the real data is not here; GVPO_TEST_DATA names its place")


@pytest.fixture(scope="module")
def report():
    benchmarks = [row for name in BENCHMARKS for row in read_rows(str(DATA / name))]
    return check(read_rows(str(TRAIN)), benchmarks=benchmarks)


def test_problems_shared_with_olympiadbench_are_found(report):
    """One problem has the same text (the ellipse in the first quadrant); four more do after LaTeX is normalized."""
    same = {f.place.row: f.other for f in report.of("contamination") if f.share == 1}
    assert {(row, Path(other.data).parent.name, other.row) for row, other in same.items()} == {
        (2600, "olympiadbench", 518),
        (3498, "olympiadbench", 523),
        (5158, "olympiadbench", 347),
        (7387, "olympiadbench", 545),
        (8669, "olympiadbench", 396),
    }
    assert 205 in {finding.place.row for finding in report.of("contamination")}  # MATH-500's 387 with one word more


def test_repeated_problems_are_found(report):
    assert [(f.place.row, f.other.row) for f in report.of("duplicate")] == [
        (675, 653),
        (2202, 1958),  # \over, \frac
        (5497, 5180),
        (5662, 3513),  # \neq, \ne
        (6260, 982),
    ]
    near = {(f.place.row, f.other.row) for f in report.of("near duplicate")}
    assert (1206, 540) in near  # "of parabola", "of the parabola"
    assert (8822, 5498) in near
    assert (199, 5610) not in near  # the smallest y, the largest y
