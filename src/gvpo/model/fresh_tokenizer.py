"""Tokenizers generated for small models that are trained from scratch."""

import re
from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gvpo.errors import ConfigError

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"


def fresh_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are exactly the given strings, with the longest match first.

    The strings are also added tokens. `AutoTokenizer` loads some architectures (Qwen2) with a class that replaces the
    pre-tokenizer, but every class first splits a text at added tokens, so it finds the same tokens.

    Args:
        vocabulary: Tokens, which are characters or longer strings. `<pad>`, `<eos>` and `<unk>` are added before them.

    Raises:
        ConfigError: If there are no tokens, or a token is empty or repeated.
    """
    if not vocabulary or "" in vocabulary or len(set(vocabulary)) < len(vocabulary):
        raise ConfigError("model.vocabulary needs tokens that are neither empty nor repeated")
    ids = {token: index for index, token in enumerate([PAD, EOS, UNKNOWN, *vocabulary])}
    tokenizer = Tokenizer(models.WordLevel(vocab=ids, unk_token=UNKNOWN))
    pattern = "|".join(re.escape(token) for token in sorted(vocabulary, key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in vocabulary])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
