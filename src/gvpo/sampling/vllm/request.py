"""Requests to vLLM and their results, for the engine in this process and for servers. This module does not import vllm.

    Request ──parameters──▶ fields of vllm.SamplingParams ──vLLM──▶ tokens, log-probs, reason ──completion──▶ Completion

Each row is its own request with its own seed: vLLM gives all prompts of one seed the same noise, and it numbers the
rows of one request seed, seed + 1, .... Every parameter is explicit, because vLLM's defaults come from the model's
generation config, and it ignores unknown names.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from gvpo import notices
from gvpo.errors import ConfigError, EngineError, ModelError
from gvpo.model.endings import Ending
from gvpo.model.known_tokens import missing_from
from gvpo.sampling.base import Request, SamplingParams
from gvpo.sampling.limits import token_limits
from gvpo.sampling.seeds import row_seed
from gvpo.sampling.texts import completion_texts
from gvpo.types import Completion, FinishReason

COLDEST, HOTTEST = 0.01, 2.0
"""Range of temperatures in vLLM. It replaces lower ones by 0.01 and rejects higher ones. Temperature 0 is greedy."""

IMPOSSIBLE = -100.0
"""Bias of the logit of a token id that the tokenizer does not have."""

REASONS: dict[str | None, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}


@dataclass(frozen=True)
class RequestFormat:
    """Converts requests to vLLM's parameters, and vLLM's results to completions.

    Args:
        tokenizer: Tokenizer of the model.
        ending: Tokens that end a completion. vLLM's own end tokens are ignored.
        vocabulary: Number of token ids of the model.
        context: Maximum number of tokens of prompt and completion together; None if there is no limit.
    """

    tokenizer: PreTrainedTokenizerBase
    ending: Ending
    vocabulary: int
    context: int | None = None

    def check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        """Raise the errors of requests and parameters that vLLM cannot process, and warn about an uncertain end token.

        Raises:
            ConfigError: If vLLM does not support `params`.
            DataError: If a prompt is empty or leaves no room in the context, or if ids are not distinct.
            ModelError: If a prompt has tokens outside the vocabulary.
        """
        _check_params(params)
        if self.ending.doubt and not params.stop_token_ids:
            notices.warn(self.ending.doubt)
        token_limits(requests, params.max_tokens, context=self.context, vocabulary=self.vocabulary)

    def parameters(self, request: Request, params: SamplingParams, *, seed: int, step: int, row: int) -> dict[str, Any]:
        """Return the fields of `vllm.SamplingParams` for one row of a request, which JSON can represent."""
        (limit,) = token_limits([request], params.max_tokens, context=self.context, vocabulary=self.vocabulary)
        fields = {
            "n": 1,
            "seed": row_seed(seed, step, request.id, row),
            "max_tokens": limit,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "min_p": 0.0,
            "stop_token_ids": self._stops(params),
            "ignore_eos": True,
            "logprobs": 0,
            "detokenize": False,
        }
        return {**fields, "logit_bias": self._bias} if self._bias else fields

    def completion(
        self,
        request: Request,
        tokens: Sequence[int],
        logprobs: Sequence[float],
        finish_reason: str | None,
        *,
        version: int | None = None,
    ) -> Completion:
        """Return a result of vLLM as a completion.

        Args:
            request: The request, for messages.
            tokens: C token ids, including the stop token.
            logprobs: C log-probs in nats under the distribution that the tokens were drawn from.
            finish_reason: vLLM's reason for the end: stop, length or abort.
            version: Version of the weights that sampled it.

        Raises:
            EngineError: If the reason is unknown, if there are no tokens although the row is finished, or if not each
                token has a log-prob.
            ModelError: If a log-prob is not finite.
        """
        if finish_reason not in REASONS:
            raise EngineError(
                f"vLLM ended a row of {request.id!r} with the reason {finish_reason!r}, which is not stop, length or "
                "abort; read vLLM's log for the cause"
            )
        reason = REASONS[finish_reason]
        if len(logprobs) != len(tokens) or (not tokens and reason != "abort"):
            raise EngineError(
                f"vLLM returned {len(tokens)} tokens and {len(logprobs)} log-probs for a row of {request.id!r}; it "
                "needs logprobs=0, and the version of vLLM must be one that gvpo[vllm] allows"
            )
        if not all(map(math.isfinite, logprobs)):
            raise ModelError("the model's logits are not finite; its weights have diverged, return to a checkpoint")
        (text,) = completion_texts(self.tokenizer, self.ending, [tokens])
        return Completion(
            list(tokens), sampler_logprobs=list(logprobs), text=text, finish_reason=reason, version=version
        )

    def _stops(self, params: SamplingParams) -> list[int]:
        return sorted({*self.ending.stops, *params.stop_token_ids})

    @cached_property
    def _bias(self) -> dict[int, float]:
        """Return the bias of the token ids that the tokenizer does not have."""
        missing = missing_from(self.tokenizer, self.vocabulary)
        return {} if missing is None else dict.fromkeys(missing.among(range(self.vocabulary)), IMPOSSIBLE)


def _check_params(params: SamplingParams) -> None:
    """Raise an error if vLLM does not support the parameters.

    Raises:
        ConfigError: If there is an exclusion, or if the temperature is out of vLLM's range.
    """
    if params.exclusion:
        raise ConfigError(
            "sampling.allow and sampling.ban need the engine transformers; set sampling.engine = 'transformers', or "
            "remove them"
        )
    if params.temperature > HOTTEST or 0 < params.temperature < COLDEST:
        raise ConfigError(
            f"temperature={params.temperature}: vLLM samples with 0 (greedy) or from {COLDEST} to {HOTTEST:g}; choose "
            "such a temperature, or the engine transformers"
        )
