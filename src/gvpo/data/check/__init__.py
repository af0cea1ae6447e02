"""Checks of a dataset before training: repeated, leaked, unscorable and unusable rows."""

from gvpo.data.check.check import Report, Tokens, check
from gvpo.data.check.findings import Finding
from gvpo.data.check.rows import CheckedRow, Place, read_rows

__all__ = ["CheckedRow", "Finding", "Place", "Report", "Tokens", "check", "read_rows"]
