"""The policy: models, tokenizers, references, and exact log-probs of groups.

Names are imported on first use, because most need transformers, which takes seconds to import.
"""

from typing import TYPE_CHECKING

from gvpo import lazy

if TYPE_CHECKING:
    from gvpo.model.endings import Ending as Ending
    from gvpo.model.endings import ending as ending
    from gvpo.model.merge import merge_adapter as merge_adapter
    from gvpo.model.model import load_model as load_model
    from gvpo.model.model import no_dropout as no_dropout
    from gvpo.model.model import save_model as save_model
    from gvpo.model.reference import Reference as Reference
    from gvpo.model.reward_model import RewardModel as RewardModel
    from gvpo.model.round_trip import verify_round_trip as verify_round_trip
    from gvpo.model.tokenizer import encode_prompt as encode_prompt
    from gvpo.model.tokenizer import load_tokenizer as load_tokenizer
    from gvpo.model.tokenizer import pad_id as pad_id

__all__, __getattr__, __dir__ = lazy.exports(__name__)
