"""`gvpo score`: log-probs of a dataset's written answers under other models, stored with the data.

rows ──each model with its own tokenizer and chat template──▶ OUT.partial ──when all are done──▶ OUT

Batches are appended to OUT.partial, so an interrupted scoring continues when it is started again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from gvpo import runfiles
from gvpo.config import TrainConfig
from gvpo.data import load_records
from gvpo.errors import ConfigError
from gvpo.model.known_tokens import restrict
from gvpo.model.model import load_model
from gvpo.model.tokenizer import load_tokenizer
from gvpo.model.weight_files import weights_fingerprint
from gvpo.model_directories import model_in
from gvpo.progress import StepProgress, error_console
from gvpo.resumable import ResumableFile
from gvpo.rollout.aligned_scores import ALIGNED, MODELS
from gvpo.rollout.collect import EncodedProblem
from gvpo.rollout.fingerprints import fingerprint, record_rows
from gvpo.rollout.lengths import fitting_answers
from gvpo.rollout.problems import demonstrations
from gvpo.training.checks import check_fit
from gvpo.types import Completion, Group
from gvpo.update.distributed import ranks
from gvpo.update.group_backward import score
from gvpo.update.precision import autocast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 64
"""Number of answers that are scored and stored at a time."""


def score_file(models: Sequence[str], config: TrainConfig, out: Path, console: Console | None = None) -> Path:
    """Score the answers of a dataset under some models, and write the rows with their scores.

    The scores are `aligned_mean_logprobs`: for each model, in order, the mean log-prob per token of the answer
    (including its end token), in the model's own tokens, after the prompt in the model's own template. Scores that a
    row already has are kept, and the new ones are appended.

    Args:
        models: Directories or Hub model IDs; for a run, its latest checkpoint.
        config: Settings. `train_data` names the rows, with a `completion` or `chosen` and `rejected`; the prompt
            settings, the compute dtype and the token budget apply too.
        out: Path of a new .jsonl file.
        console: Console for progress.

    Returns:
        `out`.

    Raises:
        ConfigError: If the file already exists, or its name does not end in .jsonl.
        DataError: If rows have no answers, or are too long for a model.
        ModelError: If a model cannot be loaded.
        RunError: If an unfinished scoring of something else is in the way.
    """
    if out.suffix != ".jsonl":
        raise ConfigError(f"--out {out} is not a .jsonl file; name one")
    if out.exists():
        raise ConfigError(f"{out} already exists and is not overwritten; choose another name")
    models = [model_in(model) for model in models]
    rows = load_records(config.train_data or "")
    scorers = [_scorer(model, config, rows) for model in models]  # bad rows and names are found before the first score
    partial = Partial(out.with_name(f"{out.name}.partial"), models, rows, config)
    for number, scorer in enumerate(scorers):
        _score_rest(number, scorer, config, partial, console or error_console())
    text = "".join(f"{runfiles.to_json(_with_scores(row, models, partial.scores(i)))}\n" for i, row in enumerate(rows))
    runfiles.write_text(out, text)
    partial.remove()
    return out


class Partial:
    """The scores so far: a first line that identifies the scoring, then one line per batch.

    A torn last line is scored again.

    Raises:
        RunError: If the file belongs to another scoring.
    """

    def __init__(
        self, path: Path, models: Sequence[str], rows: Sequence[Mapping[str, Any]], config: TrainConfig
    ) -> None:
        self._begun = False
        self._file = ResumableFile(path, remedy="remove it, or change --out")
        self._values: list[list[float]] = [[] for _ in models]
        data = fingerprint(record_rows(rows))
        self._header = {
            "models": list(models),
            "weights": [weights_fingerprint(model) for model in models],
            "data": data,
            "chat": config.chat,
            "system": config.system_prompt,
            "dtype": config.compute_dtype,
        }
        self._file.check(self._header, resume=True)
        for line in self._file.rows():
            self._values[line["model"]] += line["values"]

    def done(self, model: int) -> int:
        """Return the number of rows that are scored under a model."""
        return len(self._values[model])

    def add(self, model: int, values: Sequence[float]) -> None:
        """Add the scores of the next rows under a model; the first call creates the file."""
        if not self._begun:
            self._file.begin(self._header, resume=True)
            self._begun = True
        self._file.append([{"model": model, "values": values}])
        self._values[model] += values

    def scores(self, row: int) -> list[float]:
        """Return a row's scores, one per model."""
        return [values[row] for values in self._values]

    def remove(self) -> None:
        """Remove the file once the scores are in the output file."""
        self._file.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Scorer:
    """A model's path, its tokenizer, and the rows in its tokens."""

    path: str
    tokenizer: "PreTrainedTokenizerBase"
    written: Sequence[tuple[EncodedProblem, Completion]]


def _scorer(path: str, config: TrainConfig, rows: Sequence[Mapping[str, Any]]) -> _Scorer:
    tokenizer = load_tokenizer(path)
    return _Scorer(path, tokenizer, demonstrations(config, tokenizer, rows))


def _score_rest(number: int, scorer: _Scorer, config: TrainConfig, partial: Partial, console: Console) -> None:
    """Score all rows that a model has not scored yet."""
    first = partial.done(number)
    if first == len(scorer.written):
        return
    model = load_model(scorer.path, attention=config.attention, device=ranks.device())
    check_fit(config, model, scorer.tokenizer, samples=False)
    restrict(model, scorer.tokenizer)
    fitting_answers(config.replace(overlong_answers="error"), model, scorer.tokenizer, scorer.written)
    groups = [Group(item.prompt, [answer], id=item.problem.id) for item, answer in scorer.written]
    with StepProgress(scorer.path, len(groups), first, console, unit="answer") as progress:
        for start in range(first, len(groups), BATCH):
            with autocast(config):
                scored = score(model, groups[start : start + BATCH], tokens_per_microbatch=_budget(config))
            partial.add(number, [float(each.logprobs.double().mean()) for each in scored])
            progress.update(partial.done(number), {})


def _budget(config: TrainConfig) -> int:
    if config.tokens_per_microbatch == "auto":
        raise ConfigError("scoring needs a number of tokens per forward; set train.tokens_per_microbatch to one")
    return config.tokens_per_microbatch


def _with_scores(row: Mapping[str, Any], models: Sequence[str], scores: Sequence[float]) -> dict[str, Any]:
    return {**row, ALIGNED: [*row.get(ALIGNED, []), *scores], MODELS: [*row.get(MODELS, []), *models]}
