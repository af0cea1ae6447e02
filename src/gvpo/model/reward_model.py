"""Reward models: Hugging Face sequence classifiers that score a completion after its prompt.

    prompt, completion ──own template, own tokenizer──▶ ids ──token budget──▶ batches ──▶ logit ──▶ reward

A reward model runs in the trainer's process, on its device, outside the pool of reward workers. Its reward is the
unscaled logit. Scale it with its weight in the sum of rewards.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from gvpo import notices
from gvpo.errors import DataError, ModelError, one_line, type_of
from gvpo.hub import from_hub
from gvpo.model.model import context_length, moved_to, quietly, vocabulary_size
from gvpo.model.tokenizer import encode_prompt, load_tokenizer, not_found
from gvpo.model.weight_files import weights_fingerprint
from gvpo.system_errors import is_out_of_memory
from gvpo.types import Message, Prompt, Verdict

if TYPE_CHECKING:
    Completion = str | Sequence[Message]

Form = Literal["auto", "chat", "plain", "pair"]
"""Ways to join prompt and completion into one text.

auto uses the chat template if there is one, chat always uses it, plain concatenates, and pair is the tokenizer's text
pair.
"""
TooLong = Literal["cut", "fail"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

_AUTO: Any = AutoModelForSequenceClassification
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_UNLIMITED = 10**9
"""Threshold above which a tokenizer's maximum length means "no limit" in transformers."""


class RewardModelRow(NamedTuple):
    """Input of a reward model for one text.

    Args:
        ids: Token ids.
        types: For each token the number of its text in a pair; empty if the tokenizer returns none.
    """

    ids: list[int]
    types: list[int]


class RewardModel:
    """A reward: the score of a sequence classifier for each completion. The model is loaded on first use.

    Args:
        path: Local directory or Hub model ID, with a tokenizer; or a loaded classifier, which keeps its dtype.
        tokenizer: Another tokenizer, or its directory or Hub ID; default the model's own.
        form: "auto", "chat", "plain" or "pair".
        template_args: Keywords for the chat template.
        label: Name or number of the label whose probability is the reward, if there are several.
        max_length: Maximum number of tokens per text; default the limit of model and tokenizer.
        too_long: "cut" removes the beginning of longer texts, except for a special first token, with a warning; "fail"
            gives their rows no reward.
        tokens_per_batch: Maximum number of tokens per forward pass, including padding; halved when memory runs out.
        dtype: Dtype of weights and computation, if the model is loaded here; "auto" is bfloat16 on GPUs, else float32.
        device: Device of the model; default the CPU.

    Raises:
        ModelError: If a setting is invalid.

    >>> helpful = RewardModel("path/to/reward-model", device="cuda")  # doctest: +SKIP
    >>> helpful(prompts=["What is 2 + 2?"], completions=["4"])  # doctest: +SKIP
    [3.25]
    """

    __name__ = "reward_model"

    def __init__(
        self,
        path: str | Path | PreTrainedModel,
        *,
        tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
        form: Form = "auto",
        template_args: Mapping[str, Any] | None = None,
        label: str | int | None = None,
        max_length: int | None = None,
        too_long: TooLong = "cut",
        tokens_per_batch: int = 16_384,
        dtype: Dtype = "auto",
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value, known in (
            ("form", form, ("auto", "chat", "plain", "pair")),
            ("too_long", too_long, ("cut", "fail")),
            ("dtype", dtype, ("auto", *_DTYPES)),
        ):
            if value not in known:
                raise ModelError(f"the reward model's {name} is {value!r}; use one of {', '.join(known)}")
        for name, number in (("max_length", max_length), ("tokens_per_batch", tokens_per_batch)):
            if number is not None and number < 1:
                raise ModelError(f"the reward model's {name} is {number}; give at least 1")
        self._given = path if isinstance(path, PreTrainedModel) else None
        self.path = str(path) if self._given is None else str(self._given.name_or_path)
        self.form, self.too_long, self.label = form, too_long, label
        self.tokens_per_batch, self.device = tokens_per_batch, torch.device(device)
        self._tokenizer, self._max_length = self.path if tokenizer is None else tokenizer, max_length
        self._template_args = {"continue_final_message": False, **(template_args or {})}
        self._dtype = _DTYPES.get(dtype, torch.bfloat16 if self.device.type == "cuda" else torch.float32)
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None
        self._warned = False

    @property
    def model(self) -> PreTrainedModel:
        """The classifier, in eval mode."""
        return self._parts()[0]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self._parts()[1]

    def identity(self) -> tuple[Any, ...]:
        """Return what determines its rewards: its weights (by its name on the Hub) and the format of its rows."""
        named = isinstance(self._tokenizer, str | Path)
        words = str(self._tokenizer) if named else (self.tokenizer.get_vocab(), self.tokenizer.chat_template)
        how = (self.form, self.too_long, self.label, self._max_length, words, self._template_args)
        if self._given is not None:
            return (type(self._given), self._given.state_dict(), *how)
        return (weights_fingerprint(self.path) or self.path, *how)

    def check_ready(self) -> None:
        """Load the model now.

        Raises:
            ModelError: If the model does not exist, has no score head, or has several labels and none is chosen, or if
                its tokenizer is not known.
        """
        self._parts()

    def __call__(self, prompts: Sequence[Prompt], completions: "Sequence[Completion]", **_: Any) -> list[float | None]:
        """Return one reward per row, or None for a row that could not be read."""
        return [verdict.reward for verdict in self.verdicts(prompts=prompts, completions=completions)]

    def verdicts(self, prompts: Sequence[Prompt], completions: "Sequence[Completion]", **_: Any) -> list[Verdict]:
        """Return one verdict per row, in order.

        Args:
            prompts: Text or messages.
            completions: Text, or `[{"role": "assistant", ...}]`.
        """
        verdicts: list[Verdict] = [Verdict(None)] * len(prompts)
        readable: dict[int, RewardModelRow] = {}
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            try:
                readable[row] = self.encode(prompt, completion)
            except DataError as error:
                verdicts[row] = Verdict(None, reason=f"exception: cannot be read by the reward model: {error}")
        for row in self._settle_length(readable):
            length, most = len(readable.pop(row).ids), self.max_length
            verdicts[row] = Verdict(None, reason=f"too long: has {length} tokens, and the reward model reads {most}")
        for row, reward in zip(readable, self.scores(list(readable.values())), strict=True):
            verdicts[row] = Verdict(reward)
        return verdicts

    @property
    def max_length(self) -> int | None:
        """Maximum number of tokens per text, or None if there is no limit."""
        limits = (self._max_length, context_length(self.model), self.tokenizer.model_max_length)
        known = [limit for limit in limits if limit is not None and limit < _UNLIMITED]
        return min(known, default=None)

    def encode(self, prompt: Prompt, completion: "Completion") -> RewardModelRow:
        """Return the tokens of a prompt with its completion, without truncation.

        Raises:
            DataError: If messages have no template, or the template rejects them.
        """
        tokenizer = self.tokenizer
        text = completion if isinstance(completion, str) else str(completion[-1]["content"])
        if self.form == "chat" or (self.form == "auto" and tokenizer.chat_template):
            asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            messages = [*asked, {"role": "assistant", "content": text}]
            return RewardModelRow(
                encode_prompt(tokenizer, messages, chat="chat", template_args=self._template_args), []
            )
        if not isinstance(prompt, str):
            raise DataError("the prompt is messages and the reward model has no chat template; give text prompts")
        pair = (prompt, text) if self.form == "pair" else (prompt + text,)
        read = tokenizer(*pair)
        return RewardModelRow(list(read["input_ids"]), list(read.get("token_type_ids", [])))

    @torch.no_grad()
    def scores(self, rows: Sequence[RewardModelRow]) -> list[float]:
        """Return the reward of each row.

        Raises:
            ModelError: If a row has a token that the model does not have.
        """
        _require_known(self.model, None, rows)
        found: dict[int, float] = {}
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row].ids))
        while order:
            batch = order[: max(1, self.tokens_per_batch // max(1, len(rows[order[0]].ids)))]
            try:
                values = self._forward([rows[row] for row in batch]).tolist()
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(batch) == 1:
                    raise
                self.tokens_per_batch = len(rows[order[0]].ids) * (len(batch) // 2)
                continue
            found.update(zip(batch, values, strict=True))
            order = order[len(batch) :]
        return [found[row] for row in range(len(rows))]

    def _forward(self, rows: Sequence[RewardModelRow]) -> Tensor:
        """Return [n] float32 rewards of n rows, padded on the right."""
        ids = [row.ids for row in rows]
        with _padding(self.model, ids) as pad:
            mask = self._tensor([[1] * len(row) for row in ids], 0)
            given = {"input_ids": self._tensor(ids, pad), "attention_mask": mask}
            if any(row.types for row in rows) and "token_type_ids" in inspect.signature(self.model.forward).parameters:
                given["token_type_ids"] = self._tensor([row.types for row in rows], 0)
            logits: Tensor = self.model(**given).logits.float()
        if logits.shape[-1] == 1:
            return logits[:, 0]
        return logits.softmax(-1)[:, _label_index(self.model, self.label)]

    def _tensor(self, rows: Sequence[Sequence[int]], pad: int) -> Tensor:
        """Return the padded rows as a tensor [n, width of the longest]."""
        width = max(map(len, rows))
        return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=self.device)

    def _settle_length(self, rows: dict[int, RewardModelRow]) -> list[int]:
        """Truncate rows that are too long, or return those rows."""
        most = self.max_length
        long = [row for row, read in rows.items() if most is not None and len(read.ids) > most]
        if self.too_long == "fail" or most is None:
            return long
        for row in long:
            rows[row] = self._cut(rows[row], most)
        if long and not self._warned:
            self._warned = True
            notices.warn(
                f"the reward model reads {most} tokens, and {len(long)} of {len(rows)} texts are longer: their "
                'beginning is cut off, now and later; set too_long="fail" to give such rows no reward instead'
            )
        return []

    def _cut(self, row: RewardModelRow, most: int) -> RewardModelRow:
        """Return the last tokens of a row, after the token that begins every text."""
        first = int(row.ids[0] in (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id))
        start = len(row.ids) - (most - first)
        return RewardModelRow(*(part[:first] + part[start:] for part in row))

    def _parts(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self._loaded is None:
            model = _classifier(self.path, self._dtype) if self._given is None else _checked(self._given)
            _label_index(model, self.label)
            tokenizer = self._words()
            _require_known(model, model.config.get_text_config().pad_token_id)
            self._loaded = (moved_to(model, self.device).eval(), tokenizer)
        return self._loaded

    def _words(self) -> PreTrainedTokenizerBase:
        if isinstance(self._tokenizer, PreTrainedTokenizerBase):
            return self._tokenizer
        if not str(self._tokenizer):
            raise ModelError(
                "the reward model was not loaded from a directory or the Hub, so its tokenizer is not known; pass it "
                "as reward_processing_classes"
            )
        return load_tokenizer(self._tokenizer)


def _classifier(path: str, dtype: torch.dtype) -> PreTrainedModel:
    try:
        with quietly(), from_hub(path):
            model, loading = _AUTO.from_pretrained(path, dtype=dtype, output_loading_info=True)
    except Exception as error:  # parsers of corrupt files raise many classes
        if not Path(path).is_dir():
            raise ModelError(not_found("reward model", path, error)) from error
        raise ModelError(f"cannot load the reward model in {path}: {one_line(error)}") from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ModelError(
            f"{path} is not a reward model: it lacks {missing[0]}, which would be random; give a sequence classifier "
            "that was trained to score"
        )
    whole: PreTrainedModel = model
    return whole


def _checked(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model that was passed.

    Raises:
        ModelError: If it is a language model, whose output is no score.
    """
    if model.get_output_embeddings() is not None:
        raise ModelError(
            f"the reward model is {type_of(model)}, which predicts tokens and gives no score; pass a sequence "
            "classifier (AutoModelForSequenceClassification)"
        )
    return model


def _require_known(model: PreTrainedModel, pad: int | None, rows: Sequence[RewardModelRow] = ()) -> None:
    """Raise ModelError if the model does not have its padding token, or a token of some rows."""
    known = vocabulary_size(model)
    largest = max((token for row in rows for token in row.ids), default=-1)
    if largest >= known:
        raise ModelError(
            f"a text has the token id {largest} but the reward model's embedding has only {known} rows; use the "
            "tokenizer that belongs to it"
        )
    if pad is not None and not 0 <= pad < known:
        raise ModelError(
            f"the reward model's pad_token_id is {pad} but its embedding has only {known} rows; set "
            "model.config.pad_token_id to a token of its tokenizer"
        )


def _label_index(model: PreTrainedModel, label: str | int | None) -> int:
    """Return the index of the label whose probability is the reward, or 0 if there is only one label."""
    names = {int(index): str(name) for index, name in (model.config.id2label or {}).items()}
    count: int = model.config.num_labels or 1
    if count == 1 and label is None:
        return 0
    index = label if isinstance(label, int) else next((i for i, name in names.items() if name == label), None)
    if index is None or not 0 <= index < count:
        raise ModelError(f"the reward model has {count} labels ({', '.join(names.values())}); set label to one of them")
    return index


@contextmanager
def _padding(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> Iterator[int]:
    """Make the model accept padded batches in this context, and yield the padding id.

    A model searches for the last token that is not padding, by its id. If its config sets no padding id, it uses the
    very last token, so a batch needs an id that occurs in none of its rows.
    """
    config: Any = model.config.get_text_config()
    own: int | None = config.pad_token_id
    present = {token for row in rows for token in row}
    pad = next(token for token in range(len(present) + 1) if token not in present) if own is None else own
    config.pad_token_id = pad
    try:
        yield pad
    finally:
        config.pad_token_id = own
