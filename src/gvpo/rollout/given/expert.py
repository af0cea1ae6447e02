"""Completions that another model writes, at an OpenAI-compatible endpoint.

prompt ──request, seed per row──▶ kept in the run directory? ──▶ endpoint ──▶ text ──policy's tokenizer──▶ tokens

Every answer is on disk before it is used, so a resumed run asks nothing twice and has equal bits.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvpo import activity, notices
from gvpo.config import TrainConfig
from gvpo.errors import RunError
from gvpo.messages import plain_messages, well_formed
from gvpo.rewards.judges.cache import RequestCache, request_key
from gvpo.rollout.answer_ends import first_tokens
from gvpo.rollout.collect import EncodedProblem
from gvpo.rollout.problems import encode_answer
from gvpo.sampling.noise import noise_key
from gvpo.types import Completion, FinishReason
from gvpo.update.distributed import ranks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gvpo.model.endings import Ending
    from gvpo.rewards.judges.chat_client import ChatAnswer, Endpoint

SOURCE = "expert"
"""Source of the rows."""
FILE = "expert.sqlite"
"""File in the run directory with the answers by request."""
DEADLINE = 300.0
"""Seconds per completion, including all attempts and waits."""
ONE_ROW = ("unreadable", "http: answered 400", "http: answered 413", "http: answered 422")
"""Beginnings of the reasons that concern one request and not the endpoint."""


def expert_endpoint(config: TrainConfig) -> "Endpoint":
    """Return the endpoint of the settings.

    Raises:
        RewardError: If its URL is invalid, or the variable with its key is not set.
    """
    from gvpo.rewards.judges.chat_client import Endpoint

    key = config.rollout_expert_api_key_env or ""
    return Endpoint(str(config.rollout_expert_url), key, DEADLINE, owner="expert", wanted="text")


@dataclass(frozen=True)
class Reencoder:
    """Conversion of an answer to a row of the policy.

    Args:
        tokenizer: Tokenizer of the policy.
        end: End of the policy's answers.
        max_tokens: Maximum number of tokens per completion; longer answers are cut.
        context: Number of tokens of the policy's context; None without a limit.
    """

    tokenizer: "PreTrainedTokenizerBase"
    end: "Ending"
    max_tokens: int
    context: int | None

    def row(self, text: str, finish_reason: str, prompt: Sequence[int]) -> Completion | None:
        """Return an answer as a row; None if its tokens are special or decode to another text."""
        written = encode_answer(self.tokenizer, well_formed(text), None)
        if not written or set(written) & self._special() or self._decoded(written) != text:
            return None
        reason: FinishReason = "stop" if finish_reason in ("stop", "") else "length"
        tokens = encode_answer(self.tokenizer, text, self.end) if reason == "stop" else written
        row = Completion(tokens, text=text, finish_reason=reason, source=SOURCE)
        most = min(self.max_tokens, (self.context or len(prompt) + self.max_tokens) - len(prompt))
        return row if len(tokens) <= most else first_tokens(self.tokenizer, row, most, "length")

    def _special(self) -> set[int]:
        added = self.tokenizer.added_tokens_decoder
        return {*self.tokenizer.all_special_ids, *(token for token in added if added[token].special), *self.end.stops}

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))


class ExpertRows:
    """Completions of an expert model; the run's own rewards score them together with the live rows.

    Args:
        endpoint: The endpoint.
        config: Settings of the run: the model, the form of prompts, the sampling parameters and the seed.
        reencoder: Conversion of answers to rows.
        directory: Directory of the run, in which the answers are kept.
        templates: Whether the tokenizer has a chat template, so that text prompts are chat messages.
    """

    name = SOURCE

    def __init__(
        self, endpoint: "Endpoint", config: TrainConfig, reencoder: Reencoder, directory: Path, *, templates: bool
    ) -> None:
        self.per_group = config.rollout_expert
        self._endpoint, self._config, self._reencoder, self._templates = endpoint, config, reencoder, templates
        self._path, self._worked = directory / FILE, False

    def rows(self, items: Sequence[EncodedProblem], names: Sequence[str], step: int) -> list[list[Completion]]:
        """Return the expert's rows of each prompt; those that cannot be trained on are left out.

        Raises:
            RunError: If the endpoint fails; the run can be resumed.
        """
        bodies = [
            self._body(item, name, step, row) for item, name in zip(items, names, strict=True) for row in self._each()
        ]
        with activity.phase("asking the expert"):
            answers = iter(ranks.on_first(lambda: self._answers(bodies)))
        rows = [[self._row(next(answers), item) for _ in self._each()] for item in items]
        return [[row for row in found if row is not None] for found in rows]

    def _each(self) -> range:
        return range(self.per_group)

    def _body(self, item: EncodedProblem, name: str, step: int, row: int) -> dict[str, Any]:
        c = self._config
        key = noise_key(c.seed, step, f"expert of {name}", row)
        return {
            "model": c.rollout_expert_model,
            **self._prompt(item),
            "temperature": c.temperature,
            "max_tokens": c.max_tokens,
            "seed": int(key[0]) % 2**31,
            **({"top_p": c.top_p} if c.top_p < 1 else {}),
        }

    def _prompt(self, item: EncodedProblem) -> dict[str, Any]:
        """Return the prompt in the form in which the policy reads it: as chat messages, or as text."""
        prompt, c = item.problem.prompt, self._config
        if isinstance(prompt, str) and (c.chat == "plain" or (c.chat == "auto" and not self._templates)):
            return {"prompt": prompt}
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else plain_messages(prompt)
        if c.system_prompt is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": c.system_prompt}, *messages]
        return {"messages": messages}

    def _answers(self, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, str | None]]:
        """Return the answers to the requests, those on disk first; new ones are on disk on return."""
        from gvpo.rewards.judges.chat_client import ask_all

        cache, keys = RequestCache(self._path), [request_key(body) for body in bodies]
        stored = {key: cache.get(key) for key in keys}
        new = [(key, body) for key, body in zip(keys, bodies, strict=True) if stored[key] is None]

        def keep(index: int, answer: "ChatAnswer") -> None:
            key = new[index][0]
            stored[key] = json.dumps({"text": answer.text, "finish_reason": answer.finish_reason})
            cache.put(key, stored[key] or "")

        asked = ask_all(self._endpoint, [body for _, body in new], is_usable=bool, answered=keep)
        self._refuse_failed(asked)
        for index, answer in enumerate(asked):
            if answer.text is None:
                keep(index, answer)
        return [json.loads(stored[key] or "") for key in keys]

    def _refuse_failed(self, asked: Sequence["ChatAnswer"]) -> None:
        failed = [answer.reason for answer in asked if answer.text is None]
        broken = [reason for reason in failed if not reason.startswith(ONE_ROW)]
        self._worked |= len(failed) < len(asked)
        if broken or (failed and not self._worked):
            first = (broken or failed)[0].partition(": ")[2]
            raise RunError(
                f"the expert at rollout.expert_url {first}; {len(asked) - len(failed)} of {len(asked)} answers of this "
                "step are kept; fix the endpoint, then resume with --resume (train(resume=True))"
            )

    def _row(self, answer: Mapping[str, str | None], item: EncodedProblem) -> Completion | None:
        text = answer["text"]
        row = None if text is None else self._reencoder.row(text, answer["finish_reason"] or "", item.prompt)
        if row is None:
            notices.warn(
                "an answer of the expert is left out, because it is unreadable, contains special tokens, or its tokens "
                "decode to another text; rows/expert_missing counts the rows that are sampled live instead"
            )
        return row
