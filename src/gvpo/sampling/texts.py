"""The texts of sampled tokens."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from gvpo.model.endings import Ending


def completion_texts(tokenizer: PreTrainedTokenizerBase, ending: Ending, rows: Sequence[Sequence[int]]) -> list[str]:
    """Return the text of each row of tokens.

    The end token of the chat template is removed even if the tokenizer does not skip it.
    """
    texts: list[str] = tokenizer.batch_decode(
        [list(row[:-1] if row and row[-1] == ending.written else row) for row in rows],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    return texts
