"""What is wrong with a data set before anybody trains on it: repeated, leaked, unscorable, unusable rows."""

from gvpo.data.check.check import Report, Tokens, check
from gvpo.data.check.findings import Finding
from gvpo.data.check.rows import Place, Row, read_rows

__all__ = ["Finding", "Place", "Report", "Row", "Tokens", "check", "read_rows"]
