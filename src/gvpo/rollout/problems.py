"""From what users give (a task, a file, a data set) to problems with their prompts encoded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvpo.config import TrainConfig, find_objective
from gvpo.data import TASKS, Split, Task, numbered, problems_from_records, with_prompt
from gvpo.data.given_rows import Dataset, read_rows
from gvpo.errors import ConfigError, DataError
from gvpo.messages import answer_text
from gvpo.rollout import fill
from gvpo.rollout.aligned_scores import ALIGNED, aligned_scores, likeliest
from gvpo.rollout.answer_ends import ended
from gvpo.rollout.collect import EncodedProblem
from gvpo.types import Completion, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from gvpo.model.endings import Ending


def find_task(config: TrainConfig) -> Task | None:
    """The built-in task that the settings name.

    Raises:
        ConfigError: there is none of that name.
    """
    if config.task is None:
        return None
    if config.task not in TASKS:
        raise ConfigError(f"data.task={config.task!r} does not exist; choose one of {', '.join(sorted(TASKS))}")
    return TASKS[config.task]


def training_problems(config: TrainConfig, dataset: Dataset | None) -> list[Problem]:
    """The problems to train on: the data set if one is given, else the settings' file or task.

    Raises:
        ConfigError: none of them is given, or a file with a task that makes its own problems.
        DataError: rows that are not problems.
    """
    given = _given(config, dataset, "train")
    if given is not None:
        return given[: config.train_problems]
    task = find_task(config)
    if task is None:
        raise ConfigError("there is nothing to train on: set data.train or data.task, or pass train_dataset")
    return task.problems("train", config.train_problems or 10_000, config.seed, **config.task_options)


def held_out_problems(config: TrainConfig, dataset: Dataset | None) -> list[Problem]:
    """The problems to evaluate on; empty where none are asked for or given."""
    if config.eval_problems == 0:
        return []
    given = _given(config, dataset, "eval")
    if given is not None and not given:
        raise DataError("the held-out data set is empty; give it rows, or set data.eval_problems=0")
    if given is not None:
        return given[: config.eval_problems]
    task = find_task(config)
    if task is None:
        return []
    return task.problems("eval", config.eval_problems, config.seed, **config.task_options)


def _given(config: TrainConfig, dataset: Dataset | None, split: Split) -> list[Problem] | None:
    """The problems of the data set, or of the settings' file; a file's rows are in the task's form if there is one."""
    if dataset is not None:
        return _problems(read_rows(config, dataset).items if isinstance(dataset, str | Path) else list(dataset))
    where = config.train_data if split == "train" else config.eval_data
    if where is None:
        return None
    task = find_task(config)
    if task is None:
        return _problems(read_rows(config, where, held_out=split == "eval").items)
    if task.read is None:
        raise ConfigError(f"the task {task.name!r} makes its own problems; set data.task or data.{split}, not both")
    rows = read_rows(config, where, split="train" if split == "train" else "test", held_out=split == "eval")
    return task.read(rows.items, split, **config.task_options)


def _problems(rows: Sequence[Any]) -> list[Problem]:
    problems = [row for row in rows if isinstance(row, Problem)]
    records = [row for row in rows if not isinstance(row, Problem)]
    if problems and records:
        raise DataError("a data set mixes Problems and rows; give all as Problems or all as rows with a `prompt`")
    return problems or _from_records(records)


def _from_records(records: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """Return rows as problems: of a pair its prompt and better answer, of a conversation what its last turn answers."""
    return problems_from_records([numbered(number, with_prompt, row) for number, row in enumerate(records, start=1)])


def encode(
    config: TrainConfig, tokenizer: "PreTrainedTokenizerBase", problems: Sequence[Problem]
) -> list[EncodedProblem]:
    """Each problem with the token ids of its prompt, as the settings' template, system prompt and mode say.

    Raises:
        DataError: a prompt that cannot be encoded; the message names the problem.
    """
    return fill.encode(
        tokenizer,
        problems,
        system_prompt=config.system_prompt,
        chat=config.chat,
        template_args=config.template_args,
    )


def demonstrations(
    config: TrainConfig,
    tokenizer: "PreTrainedTokenizerBase",
    dataset: Dataset | None,
    model: "PreTrainedModel | None" = None,
) -> list[tuple[EncodedProblem, Completion]]:
    """Prompts with written answers for supervised training: rows with a `completion`, or the task's demonstrations.

    Rows with `chosen` and `rejected` give the chosen answers. Where `data.keep_share` is below 1, the likeliest rows
    under aligned models stay.

    Raises:
        ConfigError: there is neither.
        DataError: a row without a completion, or without the scores that the settings need.
    """
    given = _given(config, dataset, "train")
    written = (
        _task_demonstrations(config)
        if given is None
        else [
            (row, numbered(number, _completion_text, row))
            for number, row in enumerate(given[: config.train_problems], start=1)
        ]
    )
    kept = likeliest(written, config.keep_share)
    needed = ALIGNED in find_objective(config.objective).needs
    encoded = encode(config, tokenizer, [problem for problem, _ in kept])
    end = answer_ending(config, tokenizer, model)
    answers = [
        [_answer(tokenizer, text, end, aligned_scores(item.problem) if needed else None)]
        for item, (_, text) in zip(encoded, kept, strict=True)
    ]
    return [(item, answer) for item, (answer,) in zip(encoded, ended(tokenizer, answers, end.stops), strict=True)]


def _task_demonstrations(config: TrainConfig) -> list[tuple[Problem, str]]:
    task = find_task(config)
    if task is None or task.demonstrations is None:
        raise ConfigError(
            "supervised training needs answers: set data.train to rows with `prompt` and `completion`, "
            "or data.task to a task that has demonstrations"
        )
    options = {**config.task_options, **config.warm_start_options}
    return task.demonstrations(config.warm_start_demonstrations, config.seed, **options)


def _completion_text(problem: Problem) -> str:
    written = problem.columns.get("completion")
    if written is None:
        raise DataError("there is no `completion` text; supervised rows need `prompt` and `completion`, or `messages`")
    return answer_text(written, problem.prompt)


def _answer(
    tokenizer: "PreTrainedTokenizerBase", text: str, end: "Ending", aligned: Sequence[float] | None
) -> Completion:
    """Return a written answer as a completion: its tokens, and the end token if there is one."""
    extras = {} if aligned is None else {ALIGNED: aligned}
    return Completion(encode_answer(tokenizer, text, end), text=text, source="demonstration", extras=extras)


def answer_ending(
    config: TrainConfig, tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel | None" = None
) -> "Ending":
    """Return how answers end, as the settings encode prompts.

    Args:
        config: The settings.
        tokenizer: The model's.
        model: For its generation config; None does without.
    """
    from gvpo.model.endings import ending

    return ending(tokenizer, model, chat=config.chat, template_args=config.template_args)


def training_stops(config: TrainConfig, tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel") -> set[int]:
    """Return every token that ends a completion of a run: those of `answer_ending`, and the settings'."""
    return {*answer_ending(config, tokenizer, model).stops, *config.stop_token_ids}


def encode_answer(tokenizer: "PreTrainedTokenizerBase", text: str, end: "Ending | None") -> list[int]:
    """Return the tokens of a text, and the end token unless the text ends with one already; None adds none."""
    ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    if end is not None and end.written is not None and (not ids or ids[-1] not in end.stops):
        ids.append(end.written)
    return ids
