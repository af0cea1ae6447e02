"""Helpers of the tests of decoding: tokenizers trained here, and hand-written vocabularies."""

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gvpo.sampling.exclusion.exclusion import CompiledExclusion
from gvpo.sampling.exclusion.spec import Exclusion
from gvpo.sampling.exclusion.vocabulary import Vocabulary

CORPUS = [
    "한국어 문장은 이렇게 쓴다. 오늘은 날씨가 좋다! 2024년 3월 14일, 서울에서.",
    "나는 학교에 간다. 너는 어디에 가니? 우리는 내일 12시에 만나자.",
    "중국어: 今天天气很好。 我们去学校。 你好吗？ 天地玄黄",
    "The weather is fine today, and we go to school at 8:30.",
    "Привет, мир! Как дела? 日本語のテキスト。",
]


def trained_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of 400 tokens, with control tokens and one added word.

    It is trained without a pre-tokenizer's words, so merges cross characters, and some tokens end within a character.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<eos>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        extra_special_tokens=["<|im_end|>"],
        clean_up_tokenization_spaces=False,
    )


def pieces_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer like SentencePiece's, with a mark for spaces, and bytes for text without a piece."""
    names = ["<pad>", "<eos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "th", "e", "한", "국"]
    tokenizer = Tokenizer(
        models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def vocabulary(*tokens: str | bytes | None, stops: int = 1) -> Vocabulary:
    """Return a vocabulary whose first `stops` tokens end a completion without text. None is a token without text."""
    data = tuple(token.encode() if isinstance(token, str) else token for token in tokens)
    return Vocabulary((*[None] * stops, *data), tuple(range(stops)))


def compiled(words: Vocabulary, **fields) -> CompiledExclusion:
    """Compile an exclusion for a vocabulary, from the fields of `Exclusion`."""
    return CompiledExclusion(Exclusion(**fields), words)


def readable(exclusion: CompiledExclusion, *tokens: int) -> set[bytes | int]:
    """Return the allowed continuations of some tokens: bytes, or the id of a token without text."""
    found = np.flatnonzero(exclusion.allowed(exclusion.after(tokens)))
    return {exclusion.vocabulary.tokens[token] or int(token) for token in found.tolist()}


def random_completions(exclusion: CompiledExclusion, count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Sample completions uniformly from the allowed tokens until `length` or a stop token.

    A stop token has a probability of about 1/4 where it is allowed.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        row: list[int] = []
        while len(row) < length and (not row or row[-1] not in exclusion.vocabulary.stops):
            weights = torch.from_numpy(exclusion.allowed(exclusion.after(row))).double()
            weights[list(exclusion.vocabulary.stops)] *= weights.sum() / 3
            row.append(int(torch.multinomial(weights, 1, generator=generator)))
        rows.append(row)
    return rows
