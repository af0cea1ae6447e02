r"""The tokens between two turns of the policy, which are appended and never re-encoded with what it sampled.

    rendered once:  a question, a stand-in for the answer, the new messages, the generation prompt
                              ... stand-in <end of turn> \n <header> observation <end of turn> \n <header>
                                                        └──────────── between ───────────────────────────┘

The text after the end token does not depend on the answer, which is verified for the tokenizer in use. It therefore
follows the tokens that the policy sampled, whatever they are. A fresh rendering of the conversation may differ, because
it trims answers, and Qwen3's template drops the thinking of earlier turns. The policy keeps what it sampled.

What an environment says is text. Its tokens are never control tokens, so it cannot write the turns of other roles.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from gvpo.errors import ConfigError, one_line
from gvpo.model.endings import Ending
from gvpo.model.turns.text import TurnTokens
from gvpo.types import Message

OBSERVATION = "{observation}"

Role = Literal["auto", "user", "tool"]

_SYSTEM = {"role": "system", "content": "A system prompt."}
_QUESTION = {"role": "user", "content": "A question?"}
_ANSWERS = (
    ("An answer, as any other.", "An answer, as any other."),
    ("<think>\nA thought.\n</think>\n\nAnother, of 2 sentences. Yes!", "Another, of 2 sentences. Yes!"),
)
"""Two stand-ins for the policy's answer, each with the text that the template writes last of it."""
_SAID = ("Something new", "Other text")


@dataclass(frozen=True)
class _Frame:
    """The text around messages.

    Args:
        end: Token that ends the policy's turn.
        texts: Text before each message and after the last one; the first begins with the text of `end`.
    """

    end: int
    texts: tuple[str, ...]


@dataclass(frozen=True)
class TurnTemplate:
    """Tokens that the policy reads between two of its turns.

    Args:
        tokenizer: Tokenizer of the policy.
        ends: Tokens that end a turn, after which the environment is asked and `between` may follow.
        text: Text between turns with {observation}; None uses the chat template.
        role: Role of text that the environment says; also of its messages, if it is not "auto".
        template_args: Keywords of the chat template.
        stops: Tokens that end a completion of the sampler, of which `ends` are some.
        joins: Whether the messages of a turn become one, because the template allows only one.
    """

    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]
    text: str | None = None
    role: Role = "auto"
    template_args: Mapping[str, Any] | None = None
    stops: frozenset[int] = frozenset()
    joins: bool = False
    _frames: dict[tuple[str, ...], _Frame] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def tokens(self) -> TurnTokens:
        """Return the tokens of texts."""
        return TurnTokens(self.tokenizer)

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        ending: Ending,
        *,
        text: str | None = None,
        role: Role = "auto",
        roles: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        template_args: Mapping[str, Any] | None = None,
    ) -> "TurnTemplate":
        """Return the template of a tokenizer, after verifying that the tokens between turns are right for it.

        Args:
            tokenizer: Tokenizer of the policy.
            ending: Tokens that end an answer.
            text: Text between turns with {observation}; None uses the chat template.
            role: Role of what the environment says.
            roles: Roles of the messages that the environment may say, if `role` is "auto". Default: user.
            stop_token_ids: Further tokens that end a turn.
            template_args: Keywords of the chat template.

        Raises:
            ConfigError: If the template does not allow it; the message says what to do.
        """
        stops = frozenset({*ending.stops, *stop_token_ids})
        if text is not None:
            return cls(tokenizer, stops, text, role, template_args, stops, joins=True)._checked_text(ending.written)
        if not tokenizer.chat_template:
            raise ConfigError(
                f"{_name(tokenizer)} has no chat template, which says what comes between two turns; set "
                r"environment.between, such as '\n{observation}\n'"
            )
        found = cls(tokenizer, frozenset(), None, role, template_args, stops)
        said = list(dict.fromkeys(roles)) or ["user"] if role == "auto" else [role]
        ends = frozenset(found._verified([each]).end for each in said)
        return replace(found, ends=ends, joins=not all(found._allows_two(each) for each in said))

    def messages(self, say: str | Sequence[Message]) -> list[Message]:
        """Return what an environment says as messages with the roles that the template gets; at least one message.

        Of further keys, such as the name of a tool, those with the text of a control token are left out.
        """
        if isinstance(say, str) or not say:
            return [{"role": "user" if self.role == "auto" else self.role, "content": say or ""}]
        given: list[Message] = [
            self._harmless(message if self.role == "auto" else {**message, "role": self.role}) for message in say
        ]
        return _joined(given) if self.joins else given

    def _harmless(self, message: Message) -> Message:
        """Return a message without the keys that would write control tokens into the text around its content."""
        return {
            key: value
            for key, value in message.items()
            if key in ("role", "content") or not self.tokens.controls_in(self.tokens.live(str(value)))
        }

    def follows(self, token: int, messages: Sequence[Message]) -> bool:
        """Return whether `between` may follow a turn that ended with this token."""
        return token in self.ends if self.text is not None else token == self._frame(messages).end

    def between(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens that follow the end token of a turn: the messages and the beginning of the next turn.

        Raises:
            ConfigError: If the template cannot write the messages after an answer.
        """
        frame = self._frame(messages)
        said = self._said(messages, frame)
        tokens = self.tokens.live("".join(_alternating(frame.texts, said)))
        controls = [token for text in frame.texts for token in self.tokens.controls_in(self.tokens.live(text))]
        if self.tokens.controls_in(tokens) != controls:  # something that was said looks like one
            tokens = self.tokens.live(frame.texts[0])
            for text, after in zip(said, frame.texts[1:], strict=True):
                tokens += [*self.tokens.plain(text), *self.tokens.live_after(after)]
        return tokens[1:] if tokens[:1] == [frame.end] else tokens

    def opened(self, text: str, encode: Callable[[str], Sequence[int]]) -> list[int]:
        """Return the tokens of a prompt with an environment's opening; see `TurnTokens.opened`."""
        return self.tokens.opened(text, encode)

    def shortened(self, messages: Sequence[Message], most: int) -> tuple[list[Message], bool]:
        """Return messages of at most `most` tokens, and whether one was cut; see `TurnTokens.shortened`."""
        return self.tokens.shortened(messages, most)

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return the text of an episode's tokens, with the marks between turns and without the last end token."""
        shown = tokens[:-1] if tokens and tokens[-1] in self.ends and self.text is None else tokens
        return str(self.tokenizer.decode(list(shown), skip_special_tokens=self.text is not None))

    def _checked_text(self, written: int | None) -> "TurnTemplate":
        """Return the template whose text between turns is given, after checking it.

        Raises:
            ConfigError: If the text does not contain {observation} once, or if no token ends a turn.
        """
        assert self.text is not None
        if self.text.count(OBSERVATION) != 1:
            raise ConfigError(
                f"environment.between = {self.text!r} must contain {OBSERVATION} once; it is replaced by what the "
                "environment says"
            )
        if not self.stops:
            raise ConfigError("no token ends a turn; set tokenizer.eos_token, or sampling.stop_token_ids")
        end = written if written in self.stops else min(self.stops)
        assert end is not None
        before, _, after = self.text.partition(OBSERVATION)
        self._frames[()] = _Frame(end, (self.tokens.written(end) + before, after))
        return self

    def _verified(self, roles: Sequence[str]) -> _Frame:
        """Return the frame of messages with these roles, which must not depend on the answer or on their contents.

        Raises:
            ConfigError: If it does, or if the template cannot write them.
        """
        first, *others = [
            self._framed([{"role": role, "content": ""} for role in roles], answer, said)
            for answer in _ANSWERS
            for said in _SAID
        ]
        if any(frame != first for frame in others):
            raise ConfigError(
                f"the chat template of {_name(self.tokenizer)} writes different text around different answers or "
                f"messages, so no fixed tokens come between turns; {_REMEDY}"
            )
        if self.tokens.live(first.texts[0])[:1] != [first.end]:
            raise ConfigError(
                f"{_name(self.tokenizer)} does not encode its end token {self.tokens.written(first.end)!r} as one "
                f"token; {_REMEDY}"
            )
        return first

    def _allows_two(self, role: str) -> bool:
        try:
            self._verified([role, role])
        except ConfigError:
            return False
        return True

    def _frame(self, messages: Sequence[Message]) -> _Frame:
        """Return the text around messages. It is remembered for messages that have only a role and content."""
        if self.text is not None:
            return self._frames[()]
        if any(set(message) - {"role", "content"} for message in messages):
            return self._framed(messages)
        roles = tuple(str(message["role"]) for message in messages)
        if roles not in self._frames:
            self._frames[roles] = self._verified(roles)
        return self._frames[roles]

    def _framed(
        self, messages: Sequence[Message], answer: tuple[str, str] = _ANSWERS[0], said: str = _SAID[0]
    ) -> _Frame:
        """Return the text that the template writes around messages, whatever their contents are.

        Raises:
            ConfigError: If the template refuses the messages or leaves them out, or does not end the answer.
        """
        texts = [f"{said} ({number})" for number in range(len(messages))]
        marked = [{**message, "content": text} for message, text in zip(messages, texts, strict=True)]
        rest, around = self._after(marked, answer), []
        for text in texts:
            before, found, rest = rest.partition(text)
            around.append(before)
            if not found:
                raise self._refused(messages, "it leaves out what they say")
        end = self._end_in(around[0] if around else rest)
        _, found, around[0] = around[0].partition(self.tokens.written(end))
        return _Frame(end, (found + around[0], *around[1:], rest))

    def _after(self, messages: Sequence[Message], answer: tuple[str, str] = _ANSWERS[0]) -> str:
        """Return the text that the template writes after an answer, which includes its end token."""
        said, shown = answer
        exchange: list[Any] = [_QUESTION, {"role": "assistant", "content": said}, *messages]
        settings = {**(self.template_args or {}), "tokenize": False, "add_generation_prompt": True}
        reason = ""
        for system in ([], [_SYSTEM]):  # some templates require a system prompt
            try:
                rendered = str(self.tokenizer.apply_chat_template([*system, *exchange], **settings))
            except Exception as error:  # templates are third-party programs and may raise anything
                reason = reason or one_line(error)
                continue
            return rendered.partition(shown)[2]
        raise self._refused(messages, reason)

    def _end_in(self, text: str) -> int:
        """Return the token that ends an answer, from the text after it.

        Raises:
            ConfigError: If the first control token of the text ends no completion, or there is none.
        """
        added = self.tokenizer.added_tokens_decoder
        ids = self.tokens.live(text)
        token = next((each for each in ids if each in self.stops or (each in added and added[each].special)), None)
        if token is not None and token in self.stops:
            return token
        written = "no control token" if token is None else f"{self.tokens.written(token)!r} (token {token})"
        also = (
            "" if token is None else f" add {token} to sampling.stop_token_ids if the model ends its turns with it, or"
        )
        raise ConfigError(
            f"the chat template of {_name(self.tokenizer)} writes {written} after an answer, which is not an end of "
            f"the policy's turn;{also} {_REMEDY}"
        )

    def _refused(self, messages: Sequence[Message], reason: str) -> ConfigError:
        roles = " and ".join(dict.fromkeys(str(message["role"]) for message in messages))
        remedy = "set environment.observation_role = 'user'" if roles == "tool" else _REMEDY
        return ConfigError(
            f"the chat template of {_name(self.tokenizer)} does not write messages with the role {roles} after an "
            f"answer ({reason}); {remedy}"
        )

    def _said(self, messages: Sequence[Message], frame: _Frame) -> list[str]:
        """Return the text of each message as the template writes it, which may be trimmed or be JSON."""
        if self.text is not None:
            return ["\n".join(str(message["content"]) for message in messages)]
        return [self._as_written(messages, number, frame) for number in range(len(messages))]

    def _as_written(self, messages: Sequence[Message], number: int, frame: _Frame) -> str:
        """Return the text of one message as the template writes it; its content if that cannot be told."""
        content = str(messages[number]["content"])
        others = [f"Message {place}" for place in range(len(messages))]
        shown = [
            message if place == number else {**message, "content": others[place]}
            for place, message in enumerate(messages)
        ]
        before = "".join(_alternating(frame.texts[: number + 1], others[:number]))
        after = "".join(_alternating(frame.texts[number + 1 :], others[number + 1 :]))
        try:
            rendered = self._after(shown)
        except ConfigError:
            return content
        _, end, rest = rendered.partition(self.tokens.written(frame.end))
        written = end + rest
        fits = written.startswith(before) and written.endswith(after) and len(written) >= len(before) + len(after)
        return written[len(before) : len(written) - len(after)] if fits else content


_REMEDY = "write the text between turns into environment.between"


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"the tokenizer {tokenizer.name_or_path}" if tokenizer.name_or_path else "the tokenizer"


def _alternating(texts: Sequence[str], said: Sequence[str]) -> Iterator[str]:
    """Yield texts with what was said between them."""
    for number, text in enumerate(texts):
        yield text
        if number < len(said):
            yield said[number]


def _joined(messages: Sequence[Message]) -> list[Message]:
    """Return messages as one, in lines, with the keys of the first one."""
    return [{**messages[0], "content": "\n".join(str(message["content"]) for message in messages)}]
