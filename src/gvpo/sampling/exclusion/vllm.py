"""Exclusion in vLLM: one class for the engine, and the items of each request in its own parameters.

    llm = LLM(model, logits_processors=["gvpo.sampling.exclusion.vllm:ExclusionProcessor"])
    llm.generate(prompts, SamplingParams(extra_args={"gvpo_allow": ["Hangul", "digits"], "gvpo_ban": ["text:7"]}))

vLLM applies it before penalties, temperature, min-p, top-k and top-p. Its workers send nothing back, so log P(allowed)
of its completions is computed by `gvpo.sampling.exclusion.score_allowed`.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from gvpo import notices
from gvpo.errors import ConfigError
from gvpo.sampling.exclusion.exclusion import CompiledExclusion, State, exclude
from gvpo.sampling.exclusion.regexes import check_expressions
from gvpo.sampling.exclusion.spec import Exclusion, parse_exclusion
from gvpo.sampling.exclusion.vocabulary import Vocabulary

if TYPE_CHECKING:
    from vllm.config import VllmConfig

ALLOW, BAN = "gvpo_allow", "gvpo_ban"
"""Keys of `SamplingParams.extra_args`, and of `vllm_xargs` in requests to the server: items as in `parse_exclusion`."""

EXCLUSIONS = 32
"""Number of compiled exclusions that a server caches, most recent first. Each stores masks of the vocabulary's size."""


class ExclusionProcessor(AdapterLogitsProcessor):  # type: ignore[misc]
    """Masks the logits of requests that set an exclusion. vLLM creates one for its engine."""

    def __init__(self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        self._config = vllm_config.model_config
        self._vocabulary = lru_cache(maxsize=4)(self._read_vocabulary)
        self._compiled = lru_cache(maxsize=EXCLUSIONS)(self._compile)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Reject a request whose exclusion is invalid or not supported. vLLM reports the error and keeps running."""
        asked = _asked(sampling_params)
        if asked is None:
            return
        if sampling_params.ignore_eos:
            raise ConfigError(
                f"{ALLOW} and {BAN} end a text by its end token, and ignore_eos continues after it; remove ignore_eos"
            )
        if expressions := (*asked.allow_regex, *asked.ban_regex):
            check_expressions(expressions)

    def is_argmax_invariant(self) -> bool:
        """Return False, because greedy requests are restricted too."""
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Callable[[list[int], Tensor], Tensor] | None:
        """Return the mask of one request, or None if it sets no exclusion."""
        exclusion = _asked(params)
        if exclusion is None:
            return None
        return _Request(self._compiled(exclusion, tuple(sorted(params.all_stop_token_ids))))

    def _compile(self, exclusion: Exclusion, stops: tuple[int, ...]) -> CompiledExclusion:
        return CompiledExclusion(exclusion, self._vocabulary(stops))

    def _read_vocabulary(self, stops: tuple[int, ...]) -> Vocabulary:
        tokenizer = cached_tokenizer_from_config(self._config)
        return Vocabulary.of(tokenizer, self._config.get_vocab_size(), stops)


class _Request:
    """State of one request, updated with the tokens that it has so far."""

    def __init__(self, exclusion: CompiledExclusion) -> None:
        self._exclusion = exclusion
        self._state: State = exclusion.start
        self._seen = 0

    def __call__(self, output_ids: Sequence[int], logits: Tensor) -> Tensor:
        """Mask [V] logits of the token after `output_ids`."""
        try:
            for token in output_ids[self._seen :]:
                self._state = self._exclusion.advance(self._state, token)
            self._seen = len(output_ids)
            return exclude(logits[None], [self._state], self._exclusion).scores[0]
        except ConfigError as error:  # an exception would stop the engine and all other requests
            notices.warn(f"a request continues without its exclusion: {error}")
            return logits


def _asked(params: SamplingParams) -> Exclusion | None:
    """Return the exclusion of a request."""
    asked = [(params.extra_args or {}).get(key) or [] for key in (ALLOW, BAN)]
    for key, items in zip((ALLOW, BAN), asked, strict=True):
        if not isinstance(items, str | list) or not all(isinstance(item, str) for item in items):
            raise ConfigError(f"{key} is {items!r}; write a list of items such as ['digits', 'text:no']")
    return parse_exclusion(*asked) or None
