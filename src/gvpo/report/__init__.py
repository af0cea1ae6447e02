"""Looks at runs: one HTML page, or a figure, from run directories. Reads files only, and imports no torch."""

from gvpo.report.write import write_figure, write_report

__all__ = ["write_figure", "write_report"]
