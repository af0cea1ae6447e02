"""Reports about runs: an HTML page or a figure, made from run directories. It reads files only and imports no torch."""

from gvpo.report.write import report_finished, write_figure, write_report

__all__ = ["report_finished", "write_figure", "write_report"]
