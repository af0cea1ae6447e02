"""Tokenizers: the correct tokenizer for a checkpoint, prompts as token ids, the padding id.

This module uses transformers' tokenizers and chat templates and does not depend on models.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard

from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from gvpo import notices
from gvpo.errors import ConfigError, DataError, GvpoWarning, ModelError, one_line
from gvpo.hub import from_hub, may_be_hub_id
from gvpo.messages import plain_messages, unicode_text
from gvpo.model_directories import no_directory, require_directory
from gvpo.types import Prompt

ChatMode = Literal["auto", "chat", "plain"]
"""Use of the chat template for prompts: if there is one (auto), always (chat), or never (plain)."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
"""Roles of chat messages; a template may know more."""

OTHER_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "ai": "assistant", "chatbot": "assistant"}
"""Other names of roles in some datasets."""

PROBES = (
    "12+345=357\n\\boxed{357}",
    " two  spaces,\ttab\r\n\n end ",
    "It's WE'LL don't; CamelCase snake_case x1y22z333",
    "caf\u00e9 cafe\u0301 \u00bd \ufb01 \u6f22\u5b57 \u0915\u094d\u0937 \U0001f600",
    "def f(x):\n    return {x: [1.5e-3, -7]}  # <tag> & </tag>",
)
"""Texts on which tokenizers tend to differ: digits, white space, contractions, composed letters, scripts, code."""

MOST_OWN = 1000
"""Maximum number of tokens whose text is a probe of a tokenizer that has an unknown token."""

_VOCABULARY_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)


class TokenizerWarning(GvpoWarning):
    """Warning that transformers would load another tokenizer than the one in the checkpoint."""


def load_tokenizer(path_or_id: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint.

    transformers chooses a class by the model's type, and some classes (Qwen2's) rebuild normalizer and pre-tokenizer
    instead of reading them, so a custom tokenizer.json gives other tokens. This function compares the result of
    `AutoTokenizer` with tokenizer.json itself. If they differ, the file takes precedence, with a warning unless only
    unknown text differs.

    Args:
        path_or_id: Local directory or Hub model ID.

    Raises:
        ModelError: If there is no tokenizer, or it does not tokenize according to its tokenizer.json.
    """
    path = str(path_or_id)
    _require_files(path)
    with from_hub(path):
        return _as_its_file_says(path)


def _as_its_file_says(path: str) -> PreTrainedTokenizerBase:
    tokenizer = _load(AutoTokenizer.from_pretrained, path)
    file = _tokenizer_json(path)
    if file is None:
        return tokenizer
    raw = Tokenizer.from_file(str(file))
    difference = _difference_from_file(raw, tokenizer)
    if not difference:
        return tokenizer
    plain = _load(PreTrainedTokenizerFast.from_pretrained, path)
    if still := _difference_from_file(raw, plain):
        raise ModelError(f"no class of transformers reads the tokenizer of {path} as its tokenizer.json says: {still}")
    if difference := _difference_in_known_text(raw, tokenizer, plain.unk_token_id):
        notices.warn(
            f"AutoTokenizer loads {path} as {type(tokenizer).__name__}, which is not what its tokenizer.json says "
            f"({difference}); using tokenizer.json. Elsewhere load it with PreTrainedTokenizerFast.from_pretrained",
            TokenizerWarning,
        )
    return plain


def is_tokenizer(value: object) -> TypeGuard[PreTrainedTokenizerBase]:
    """Return whether an object is a transformers tokenizer."""
    return isinstance(value, PreTrainedTokenizerBase)


def tokenizer_difference(
    one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, texts: Sequence[str] = ()
) -> str:
    """Describe how two tokenizers differ on built-in probes and `texts`, special tokens or template, or return ""."""
    for name in ("eos_token_id", "bos_token_id", "pad_token_id", "chat_template"):
        if getattr(one, name) != getattr(other, name):
            return f"{name} was {getattr(one, name)!r} and is {getattr(other, name)!r}"
    return (
        _encoding_difference(_encoder(one), _encoder(other), (*PROBES, *texts))
        or _encoding_difference(lambda text: one(text).input_ids, lambda text: other(text).input_ids, PROBES[:1])
        or _decoding_difference(one, other, texts)
    )


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    *,
    system_prompt: str | None = None,
    chat: ChatMode = "auto",
    template_args: Mapping[str, Any] | None = None,
) -> list[int]:
    """Return a prompt's token ids.

    Args:
        tokenizer: Tokenizer, with or without a chat template.
        prompt: Text, or chat messages. Text that goes through a template is one user message.
        system_prompt: System prompt for prompts that have no system message.
        chat: "auto" uses the template for messages, and for text if there is a template; "chat" always; "plain" never.
        template_args: Keywords for the template, such as `{"enable_thinking": False}`.

    Returns:
        At least one id, with one beginning-of-sequence token if the template or the tokenizer writes one, and without
        an end token that the tokenizer would add. A last message of the assistant is left open, to be continued.

    Raises:
        DataError: If the prompt is empty, messages have no template, or the template rejects them.
        ConfigError: If a system prompt or template arguments have no template, or the mode is unknown.
    """
    if chat not in ("auto", "chat", "plain"):
        raise ConfigError(f"chat is {chat!r}; use 'auto', 'chat' or 'plain'")
    if not prompt:
        raise DataError("the prompt is empty; give it some text")
    is_text = isinstance(prompt, str)
    if chat == "chat" or (chat == "auto" and (not is_text or tokenizer.chat_template)):
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else plain_messages(prompt)
        ids = _encode_chat(tokenizer, messages, system_prompt, template_args or {})
    elif system_prompt is not None or template_args:
        raise ConfigError("a system prompt and template arguments need a chat template; remove them for plain text")
    elif isinstance(prompt, str):
        ids = _encode_plain(tokenizer, prompt)
    else:
        raise DataError("the prompt is chat messages, which chat='plain' cannot encode; give text or use chat='auto'")
    if not ids:
        raise DataError(f"the tokenizer returns no token for the prompt {str(prompt)[:40]!r}; give it some text")
    return ids


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id for padding batches: the pad token's, else the end token's, else 0.

    Padding is always masked, so any id works. A new token would resize the model.
    """
    return next((ids[0] for name in ("pad", "eos") if (ids := token_ids(getattr(tokenizer, f"{name}_token_id")))), 0)


def token_ids(value: int | Sequence[int] | None) -> list[int]:
    """Return a setting that may be none, one or several token ids as a list."""
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def _require_files(path: str) -> None:
    """Raise an error if files are missing. For some models transformers would silently create an empty tokenizer."""
    directory = Path(path)
    require_directory(path, "tokenizer")
    for name in ("config.json", "generation_config.json"):
        _require_config(directory / name)
    if directory.is_dir() and not any((directory / name).is_file() for name in _VOCABULARY_FILES):
        raise ModelError(
            f"{path} has no tokenizer; save one there with tokenizer.save_pretrained, or name another directory"
        )


def _require_config(file: Path) -> None:
    """Raise an error for a corrupt config, for which transformers would silently use another tokenizer or ends."""
    try:
        whole = not file.is_file() or isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise ModelError(f"{file} is not a JSON object; copy or download the model again")


def _load(load: Callable[[str], Any], path: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = load(path)
    except Exception as error:  # parsers of corrupt files raise many classes, even plain Exception
        if not Path(path).is_dir():
            raise ModelError(not_found("tokenizer", path, error)) from error
        raise ModelError(
            f"cannot load the tokenizer in {path}: {one_line(error)}; save it again with tokenizer.save_pretrained"
        ) from error
    return tokenizer


def not_found(what: str, path: str, error: Exception) -> str:
    """Return the message for a model or tokenizer that is neither a directory nor on the Hub.

    Args:
        what: "model" or "tokenizer".
        path: Requested path.
        error: Exception raised by transformers.
    """
    if not may_be_hub_id(path):
        return no_directory(path, what)
    reason = one_line(error).partition(". ")[0][:160]
    return (
        f"there is no directory {path!r}, and no {what} of that name was found on the Hub or in its cache "
        f"({reason}); check the name and the connection, or give a local directory"
    )


def _tokenizer_json(path: str) -> Path | None:
    if Path(path).is_dir():
        file = Path(path) / "tokenizer.json"
        return file if file.is_file() else None
    try:
        found = cached_file(path, "tokenizer.json")
    except OSError:
        return None
    return Path(found) if found is not None else None


def _difference_from_file(raw: Tokenizer, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str] = PROBES) -> str:
    raw.no_padding()
    raw.no_truncation()
    return _encoding_difference(lambda text: _ids(raw, text), _encoder(tokenizer), texts)


def _difference_in_known_text(raw: Tokenizer, tokenizer: PreTrainedTokenizerBase, unknown: int | None) -> str:
    """Describe how a tokenizer differs from its file on texts that consist of the file's tokens, or return ""."""
    ids = list(range(min(MOST_OWN, raw.get_vocab_size())))
    texts = [*(text for text in PROBES if unknown not in _ids(raw, text)), raw.decode(ids)]
    if difference := _difference_from_file(raw, tokenizer, texts):
        return difference
    one, other = raw.decode(ids), str(tokenizer.decode(ids, skip_special_tokens=True))
    return "" if one == other else f"the text of its first tokens is {one[:40]!r} and {other[:40]!r}"


def _ids(raw: Tokenizer, text: str) -> list[int]:
    return list(raw.encode(text, add_special_tokens=False).ids)


def _encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]]:
    return lambda text: list(tokenizer(text, add_special_tokens=False).input_ids)


def _encoding_difference(
    one: Callable[[str], list[int]], other: Callable[[str], list[int]], texts: Iterable[str]
) -> str:
    for text in texts:
        left, right = one(text), other(text)
        if left != right:
            pairs = zip(left, right, strict=False)
            same = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
            return f"{text[:40]!r} gives {_from(left, same)} and {_from(right, same)}"
    return ""


def _from(ids: list[int], place: int) -> str:
    """Describe some tokens from a position on, and the total number of tokens."""
    return f"{len(ids)} tokens with {ids[place : place + 4]} from token {place} on"


def _decoding_difference(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, texts: Sequence[str]) -> str:
    for text in (*PROBES, *texts):
        ids = one(text, add_special_tokens=False).input_ids
        left, right = one.decode(ids), other.decode(ids)
        if left != right:
            return f"the tokens of {text[:40]!r} read {str(left)[:40]!r} and {str(right)[:40]!r}"
    return ""


def _encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, Any]],
    system_prompt: str | None,
    template_args: Mapping[str, Any],
) -> list[int]:
    if not tokenizer.chat_template:
        raise DataError(
            "the prompt needs a chat template and the tokenizer has none; set tokenizer.chat_template, use an instruct "
            "model's tokenizer, or give text prompts with chat='plain'"
        )
    if system_prompt is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system_prompt}, *messages]
    _require_written(messages, str(tokenizer.chat_template))
    continues = messages[-1]["role"] == "assistant"
    settings = {"add_generation_prompt": not continues, "continue_final_message": continues, **template_args}
    try:
        text = tokenizer.apply_chat_template(messages, **{**settings, "tokenize": False})
    except (TemplateError, ValueError, TypeError) as error:
        raise DataError(f"the chat template rejects the prompt: {one_line(error)}") from error
    ids = tokenizer(unicode_text(str(text)), add_special_tokens=False).input_ids  # the template has written BOS
    return list(ids)


def _require_written(messages: Sequence[Mapping[str, Any]], template: str) -> None:
    """Raise an error for parts of messages that the template would silently omit or write unchanged.

    Raises:
        DataError: If a role is unknown to gvpo and the template, or the template does not write tool calls.
    """
    for number, message in enumerate(messages, start=1):
        role = message["role"]
        if role not in ROLES and role not in template:
            meant = OTHER_ROLES.get(str(role).lower())
            hint = f"write {meant!r}" if meant else f"the roles are {', '.join(ROLES)}"
            raise DataError(f"message {number} has the role {role!r}, which the chat template does not know; {hint}")
        if message.get("tool_calls") and "tool_calls" not in template:
            raise DataError(
                f"message {number} has tool calls, and the chat template does not write any; write them into the "
                "content, or use a template that does"
            )


def _encode_plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = list(tokenizer(unicode_text(text)).input_ids)
    written: list[int] = list(tokenizer(text, add_special_tokens=False).input_ids)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and written[:1] == [bos] and ids[:2] == [bos, bos]:
        ids = ids[1:]
    if eos is not None and ids[-1:] == [eos] and ids[-1 - len(written) : -1] == written:
        ids = ids[:-1]
    return ids
