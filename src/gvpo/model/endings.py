r"""The end of an answer: the tokens that end it, and the token written after a training target.

This module decides it once, for sampling, evaluation, training targets and the saved generation config.

                      assistant message in the chat template ── control token after it ──┐
    tokenizer.eos_token_id, generation_config.eos_token_id ──────────────────────────────┴─▶ Ending(stops, written)

A control token is a special token, or an added token in brackets (`<|im_end|>`). Ordinary text after an answer, such as
"\n\n" or "END", ends nothing, because it may occur within an answer too.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from gvpo.model.generation_config import generation_config_of
from gvpo.model.tokenizer import ChatMode, token_ids

ENDLESS = (
    "no token ends an answer: the tokenizer has no eos_token, and its chat template writes no special token after an "
    "assistant's message; completions run to their maximum length, and training targets have no end. Set "
    "tokenizer.eos_token, or sampling.stop_token_ids"
)

SPELLED_OUT = (
    "the chat template ends an answer with {mark!r}, which the tokenizer writes as {count} tokens of ordinary text, so "
    "it ends no completion: a model that has learned to write it runs to its maximum length. Use the tokenizer that "
    "the template belongs to, or add {mark!r} to this one as a special token"
)

_QUESTION, _ANSWER, _NEXT = "A first question?", "An answer, as any other.", "Another question?"
_IN_BRACKETS = re.compile(r"\s*(<.+>|\[.+\])\s*")
_MARK = re.compile(r"\s*(<[^<>\s]+>|\[[^\[\]\s]+\])")


@dataclass(frozen=True)
class Ending:
    """The end of answers.

    Args:
        stops: Token ids that end a completion, sorted.
        written: Token id after the text of a training target; None if no token ends an answer.
        doubt: Warning for the user, one sentence; "" if there is none.
    """

    stops: tuple[int, ...]
    written: int | None
    doubt: str = ""


def ending(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel | GenerationConfig | None,
    *,
    chat: ChatMode = "auto",
    template_args: Mapping[str, Any] | None = None,
) -> Ending:
    """Determine the end of answers.

    Args:
        tokenizer: Tokenizer, with or without a chat template.
        model: Model, for its generation config, which often has several end tokens, or the config; None ignores it.
        chat: Chat mode of prompts. It decides which token is written, not which tokens end a completion.
        template_args: Keywords for the template.

    Returns:
        All end tokens as `stops`. `written` is the template's end token if prompts use the template and it has one,
        else the tokenizer's, else any other.
    """
    templates = _terminator(tokenizer, template_args or {}) if tokenizer.chat_template else None
    own = token_ids(tokenizer.eos_token_id)
    configured = [each for each in token_ids(getattr(generation_config_of(model), "eos_token_id", None)) if each >= 0]
    turn = [] if templates is None else [templates]
    ordered = [*own, *turn, *configured] if chat == "plain" else [*turn, *own, *configured]
    doubt = "" if turn or chat == "plain" or not tokenizer.chat_template else _doubt(tokenizer, template_args or {})
    return Ending(tuple(sorted(set(ordered))), next(iter(ordered), None), doubt if ordered else ENDLESS)


def _doubt(tokenizer: PreTrainedTokenizerBase, template_args: Mapping[str, Any]) -> str:
    """Return a warning if the template ends an answer with a mark that is not a token, or ""."""
    found = _MARK.match(_after_last_answer(tokenizer, template_args))
    if found is None:
        return ""
    mark = found.group(1)
    return SPELLED_OUT.format(mark=mark, count=len(tokenizer(mark, add_special_tokens=False).input_ids))


def _terminator(tokenizer: PreTrainedTokenizerBase, template_args: Mapping[str, Any]) -> int | None:
    """Return the control token that the template writes after an assistant's message, or None if it writes none."""
    after = _controls(tokenizer, _after_last_answer(tokenizer, template_args))
    if after:
        return after[0]
    between = _controls(
        tokenizer, _between_turns(tokenizer, template_args)
    )  # some templates end every turn except the last
    opening = {*between[-1:], *_controls(tokenizer, _generation_prompt(tokenizer, template_args))}
    return between[0] if between and between[0] not in opening else None


def _after_last_answer(tokenizer: PreTrainedTokenizerBase, template_args: Mapping[str, Any]) -> str:
    text = _rendered(tokenizer, [_QUESTION, _ANSWER], template_args)
    return text.rpartition(_ANSWER)[2] if _ANSWER in text else ""


def _between_turns(tokenizer: PreTrainedTokenizerBase, template_args: Mapping[str, Any]) -> str:
    text = _rendered(tokenizer, [_QUESTION, _ANSWER, _NEXT], template_args)
    return text.partition(_ANSWER)[2].partition(_NEXT)[0]


def _generation_prompt(tokenizer: PreTrainedTokenizerBase, template_args: Mapping[str, Any]) -> str:
    asked = _rendered(tokenizer, [_QUESTION], {**template_args, "add_generation_prompt": True})
    return asked.removeprefix(_rendered(tokenizer, [_QUESTION], template_args))


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: Sequence[str], template_args: Mapping[str, Any]) -> str:
    """Return a conversation of user and assistant as rendered by the template, or "" if the template rejects it."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    for system in ([], [{"role": "system", "content": "A system prompt."}]):  # some templates require a system prompt
        with suppress(Exception):  # templates are third-party programs and may raise anything
            return str(tokenizer.apply_chat_template([*system, *messages], **{**template_args, "tokenize": False}))
    return ""


def _controls(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the control tokens of a text: special tokens, or if there are none, added tokens in brackets."""
    added = tokenizer.added_tokens_decoder
    found = [token for token in tokenizer(text, add_special_tokens=False).input_ids if token in added]
    special = [token for token in found if added[token].special]
    plain = [token for token in found if not added[token].special and in_brackets(added[token].content)]
    # The unknown token never ends an answer, nor does the beginning, unless it is the end token too.
    never = {tokenizer.unk_token_id, tokenizer.bos_token_id} - {*token_ids(tokenizer.eos_token_id)}
    return [token for token in special if token not in never] or plain


def in_brackets(text: str) -> bool:
    """Return whether the text of an added token looks like a control token, such as `<|im_end|>` or `[INST]`."""
    return _IN_BRACKETS.fullmatch(text) is not None
