"""What is wrong with a data set before anybody trains on it: repeated, leaked, unscorable, unusable rows."""

from gvpo.datacheck.check import Report, Tokens, check
from gvpo.datacheck.findings import Finding
from gvpo.datacheck.rows import Place, Row, read_rows

__all__ = ["Finding", "Place", "Report", "Row", "Tokens", "check", "read_rows"]
