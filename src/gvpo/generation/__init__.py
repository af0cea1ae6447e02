"""Scored groups in a file: sampled, judged and appended problem by problem, for evaluation and for training offline."""

from gvpo.generation.fill import encode, fill, fingerprint
from gvpo.generation.groupfile import GroupFile, records
from gvpo.generation.select import SELECTIONS, select

__all__ = ["SELECTIONS", "GroupFile", "encode", "fill", "fingerprint", "records", "select"]
