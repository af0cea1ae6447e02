"""`gvpo report RUN [RUN ...]`: one HTML page about runs, and a figure of their curves if asked for."""

import argparse
import sys
from pathlib import Path

from gvpo.runfiles import REPORT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory; several are overlaid")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where to write (default: RUN/report.html; for several, ./report.html)"
    )
    parser.add_argument("--figure", type=Path, metavar="FILE.svg", help="also write the curves as a standalone SVG")


def run(args: argparse.Namespace) -> int:
    """Writes what was asked for, says where it is, and returns the exit code."""
    from gvpo.report import write_figure, write_report

    out = args.out or (args.runs[0] / REPORT if len(args.runs) == 1 else Path(REPORT))
    written = [write_report(args.runs, out)]
    if args.figure:
        written.append(write_figure(args.runs, args.figure))
    sys.stdout.writelines(f"wrote {path}\n" for path in written)
    return 0
