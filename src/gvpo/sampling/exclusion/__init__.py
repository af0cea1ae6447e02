"""Decoding by exclusion: restrict the contents of completions, and compute the probability of the allowed tokens.

Names are imported on first use, because most need torch or transformers, which take seconds to import.
"""

from typing import TYPE_CHECKING

from gvpo import lazy

if TYPE_CHECKING:
    from gvpo.sampling.exclusion.exclusion import CompiledExclusion as CompiledExclusion
    from gvpo.sampling.exclusion.exclusion import effective_size as effective_size
    from gvpo.sampling.exclusion.exclusion import log_acceptance as log_acceptance
    from gvpo.sampling.exclusion.exclusion import sequence_weights as sequence_weights
    from gvpo.sampling.exclusion.spec import Exclusion as Exclusion
    from gvpo.sampling.exclusion.spec import parse_exclusion as parse_exclusion
    from gvpo.sampling.exclusion.transformers import ExclusionLogitsProcessor as ExclusionLogitsProcessor
    from gvpo.sampling.exclusion.transformers import compile_exclusion as compile_exclusion
    from gvpo.sampling.exclusion.transformers import score_allowed as score_allowed

__all__, __getattr__, __dir__ = lazy.exports(__name__)
