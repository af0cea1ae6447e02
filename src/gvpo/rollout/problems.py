"""From the user's data (a task, a file, a dataset) to problems with encoded prompts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvpo.config import OBJECTIVES, TrainConfig
from gvpo.data import TASKS, Split, Task, Written, numbered, problems_from_records, with_prompt
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
    """Return the built-in task that the settings name.

    Raises:
        ConfigError: If no task has that name.
    """
    if config.task is None:
        return None
    if config.task not in TASKS:
        raise ConfigError(f"data.task={config.task!r} does not exist; choose one of {', '.join(sorted(TASKS))}")
    return TASKS[config.task]


def training_problems(config: TrainConfig, dataset: Dataset | None) -> list[Problem]:
    """Return the problems to train on: those of the dataset if one is passed, else of the settings' file or task.

    Raises:
        ConfigError: If none of them is set, or a file is combined with a task that makes its own problems.
        DataError: If rows are not problems.
    """
    given = _given(config, dataset, "train")
    if given is not None:
        return given[: config.train_problems]
    task = find_task(config)
    if task is None:
        raise ConfigError("there is nothing to train on: set data.train or data.task, or pass train_dataset")
    return task.problems("train", config.train_problems or 10_000, config.seed, **config.task_options)


def held_out_problems(config: TrainConfig, dataset: Dataset | None) -> list[Problem]:
    """Return the problems to evaluate on; empty if none are requested or passed."""
    if config.eval_problems == 0:
        return []
    given = _given(config, dataset, "eval")
    if given is not None and not given:
        raise DataError("the held-out dataset is empty; add rows, or set data.eval_problems=0")
    if given is not None:
        return given[: config.eval_problems]
    task = find_task(config)
    if task is None:
        return []
    return task.problems("eval", config.eval_problems, config.seed, **config.task_options)


def _given(config: TrainConfig, dataset: Dataset | None, split: Split) -> list[Problem] | None:
    """Return the problems of the dataset or the settings' file; a file's rows have the form of the task, if any."""
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
        raise DataError("a dataset mixes Problems and rows; pass only Problems or only rows with a `prompt`")
    rows = [numbered(number, with_prompt, row) for number, row in enumerate(records, start=1)]
    return problems or problems_from_records(rows)


def encode(
    config: TrainConfig,
    tokenizer: "PreTrainedTokenizerBase",
    problems: Sequence[Problem],
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[EncodedProblem]:
    """Return each problem with the token ids of its prompt, encoded according to the settings.

    Args:
        config: Settings of the run.
        tokenizer: Tokenizer of the policy.
        problems: Problems.
        tools: Descriptions of the environment's tools.

    Raises:
        DataError: If a prompt cannot be encoded; the message names the problem.
    """
    return fill.encode(
        tokenizer,
        problems,
        system_prompt=config.system_prompt,
        chat=config.chat,
        template_args=config.template_args,
        tools=tools,
    )


def demonstrations(
    config: TrainConfig,
    tokenizer: "PreTrainedTokenizerBase",
    dataset: Dataset | None,
    model: "PreTrainedModel | None" = None,
) -> list[tuple[EncodedProblem, Completion]]:
    """Return prompts with written answers for supervised training.

    These are rows with a `completion`, or the task's demonstrations; rows with `chosen` and `rejected` provide the
    chosen answers. If `data.keep_share` is below 1, only the rows that are most likely under aligned models are kept.

    Raises:
        ConfigError: If there are neither rows nor demonstrations.
        DataError: If a row has no completion, or lacks the scores that the settings need.
    """
    given = _given(config, dataset, "train")
    written: Sequence[tuple[Problem, Written]] = (
        _task_demonstrations(config)
        if given is None
        else [
            (row, numbered(number, _completion_text, row))
            for number, row in enumerate(given[: config.train_problems], start=1)
        ]
    )
    kept = likeliest(written, config.keep_share)
    spec = OBJECTIVES.get(config.objective)  # a function that is given in Python needs no scores
    needed = spec is not None and ALIGNED in spec.needs
    encoded = encode(config, tokenizer, [problem for problem, _ in kept])
    end = answer_ending(config, tokenizer, model)
    answers = [
        [_answer(tokenizer, text, end, aligned_scores(item.problem) if needed else None)]
        for item, (_, text) in zip(encoded, kept, strict=True)
    ]
    return [(item, answer) for item, (answer,) in zip(encoded, ended(tokenizer, answers, end.stops), strict=True)]


def _task_demonstrations(config: TrainConfig) -> Sequence[tuple[Problem, Written]]:
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
    tokenizer: "PreTrainedTokenizerBase", written: Written, end: "Ending", aligned: Sequence[float] | None
) -> Completion:
    """Return a written answer as a completion: its tokens, and the end token if there is one."""
    extras = {} if aligned is None else {ALIGNED: aligned}
    *before, last = [written] if isinstance(written, str) else written
    parts = [encode_answer(tokenizer, text, None) for text in before] + [encode_answer(tokenizer, last, end)]
    mask = [float(number % 2 == 0) for number, part in enumerate(parts) for _ in part] if before else None
    tokens = [token for part in parts for token in part]
    return Completion(tokens, mask=mask, text="".join([*before, last]), source="demonstration", extras=extras)


def answer_ending(
    config: TrainConfig, tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel | None" = None
) -> "Ending":
    """Return how answers end, matching the settings' encoding of prompts.

    Args:
        config: Settings of the run.
        tokenizer: Tokenizer of the model.
        model: Model with a generation config; None to ignore it.
    """
    from gvpo.model.endings import ending

    return ending(tokenizer, model, chat=config.chat, template_args=config.template_args)


def training_stops(config: TrainConfig, tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel") -> set[int]:
    """Return every token that ends a completion of a run: those of `answer_ending` and those of the settings."""
    return {*answer_ending(config, tokenizer, model).stops, *config.stop_token_ids}


def encode_answer(tokenizer: "PreTrainedTokenizerBase", text: str, end: "Ending | None") -> list[int]:
    """Return the tokens of a text, and the end token unless the text already ends with one; None adds none."""
    ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    if end is not None and end.written is not None and (not ids or ids[-1] not in end.stops):
        ids.append(end.written)
    return ids
