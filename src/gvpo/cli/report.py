"""`gvpo report RUN [RUN ...]`: write one HTML page about runs and, if requested, a figure of their curves."""

import argparse
import sys
from pathlib import Path

from gvpo.runfiles import REPORT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="Run directory; several are overlaid")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="Output file (default: RUN/report.html; for several runs ./report.html)",
    )
    parser.add_argument(
        "--price-per-hour",
        type=float,
        metavar="PRICE",
        help="Price of one process, such as one GPU, for one hour; adds the cost of the runs to the totals",
    )
    parser.add_argument("--figure", type=Path, metavar="FILE.svg", help="Output file for a figure of the curves")


def run(args: argparse.Namespace) -> int:
    """Write the report and the figure, print their paths, and return the exit code."""
    from gvpo.report import write_figure, write_report

    out = args.out or (args.runs[0] / REPORT if len(args.runs) == 1 else Path(REPORT))
    written = [write_report(args.runs, out, price_per_hour=args.price_per_hour)]
    if args.figure:
        written.append(write_figure(args.runs, args.figure))
    sys.stdout.writelines(f"wrote {path}\n" for path in written)
    return 0
