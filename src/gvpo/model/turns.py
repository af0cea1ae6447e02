"""The tokens between two turns of the policy, which are appended and never re-encoded with what it sampled.

... the policy's tokens ─▶ end of its turn ─▶ [between: what the environment says, in the chat template] ─▶ next turn
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from gvpo.errors import ConfigError
from gvpo.model.endings import Ending
from gvpo.types import Message

OBSERVATION = "{observation}"


@dataclass(frozen=True)
class TurnTemplate:
    """Tokens that the policy reads between two of its turns.

    Args:
        tokenizer: Tokenizer of the policy.
        ends: Tokens that end a turn, after which the environment is asked and `between` may follow.
        text: Text between turns with {observation}; None uses the chat template.
        role: Role of text that the environment says; also of its messages, if it is not "auto".
        template_args: Keywords of the chat template.
    """

    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]
    text: str | None = None
    role: Literal["auto", "user", "tool"] = "auto"
    template_args: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        ending: Ending,
        *,
        text: str | None = None,
        role: Literal["auto", "user", "tool"] = "auto",
        stop_token_ids: Sequence[int] = (),
        template_args: Mapping[str, Any] | None = None,
    ) -> "TurnTemplate":
        """Return the template of a tokenizer, after verifying that the tokens between turns are right for it.

        Args:
            tokenizer: Tokenizer of the policy.
            ending: Tokens that end an answer.
            text: Text between turns with {observation}; None uses the chat template.
            role: Role of what the environment says.
            stop_token_ids: Further tokens that end a turn.
            template_args: Keywords of the chat template.

        Raises:
            ConfigError: If the template does not allow it; the message says what to do.
        """
        if text is None and not tokenizer.chat_template:
            raise ConfigError("the tokenizer has no chat template; set environment.between, such as '{observation}'")
        ends = frozenset({*ending.stops, *stop_token_ids} if text is not None else {ending.written or -1})
        return cls(tokenizer, ends, text, role, template_args)

    def messages(self, say: str | Sequence[Message]) -> list[Message]:
        """Return what an environment says as messages with the roles that the template gets."""
        if isinstance(say, str):
            return [{"role": "user" if self.role == "auto" else self.role, "content": say}]
        return [dict(message) if self.role == "auto" else {**message, "role": self.role} for message in say]

    def between(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens that follow the end token of a turn: the messages and the beginning of the next turn."""
        if self.text is not None:
            said = "".join(str(message["content"]) for message in messages)
            return self._encoded(self.text.replace(OBSERVATION, said))
        dummy = "An answer, as any other."
        asked: list[Any] = [
            {"role": "user", "content": "A question?"},
            {"role": "assistant", "content": dummy},
            *messages,
        ]
        settings = {**(self.template_args or {}), "tokenize": False, "add_generation_prompt": True}
        rendered = str(self.tokenizer.apply_chat_template(asked, **settings))
        after = self._encoded(rendered.partition(dummy)[2])
        return after[1:] if after[0] in self.ends else after

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return the text of an episode's tokens, with the marks between turns and without the last end token."""
        shown = tokens[:-1] if tokens and tokens[-1] in self.ends and self.text is None else tokens
        return str(self.tokenizer.decode(list(shown), skip_special_tokens=self.text is not None))

    def _encoded(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)
