"""Tokenizers made on the spot, for small models that start from nothing."""

import re
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gvpo.errors import ConfigError

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"


def fresh_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are exactly the given strings, the longest match first.

    Args:
        vocabulary: the tokens, characters or longer strings; `<pad>`, `<eos>` and `<unk>` are put before them.

    Raises:
        ConfigError: no tokens, an empty one, or one given twice.
    """
    if not vocabulary or "" in vocabulary or len(set(vocabulary)) < len(vocabulary):
        raise ConfigError("model.vocabulary needs tokens that are neither empty nor given twice")
    ids = {token: index for index, token in enumerate([PAD, EOS, UNKNOWN, *vocabulary])}
    tokenizer = Tokenizer(models.WordLevel(vocab=ids, unk_token=UNKNOWN))
    pattern = "|".join(re.escape(token) for token in sorted(vocabulary, key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
