"""The tokens of episodes: what the policy reads between two of its turns, verified for its tokenizer."""

from gvpo.model.turns.template import TurnTemplate
from gvpo.model.turns.text import CUT

__all__ = ["CUT", "TurnTemplate"]
