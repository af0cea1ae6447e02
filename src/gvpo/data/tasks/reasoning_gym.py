"""Data sets of reasoning-gym as a task: questions that are generated, and scored by the data set itself.

`task_options = {name = "chain_sum", max_terms = 3}` names the data set; what is not an option of the task is one of the
data set.
"""

import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gvpo.data.tasks.base import PATIENCE, Split, Task, Written, check_split, split_of
from gvpo.errors import ConfigError
from gvpo.rewards.verifiers.reasoning_gym import AGAIN, BLOCK, BLOCKS, made_item, open_dataset
from gvpo.types import Problem

NAME = "reasoning_gym"
INSTRUCTION = "\nReason step by step, and put the final answer between <answer> and </answer>."
ANSWER = "<answer>{answer}</answer>"
PLACE = "{answer}"


def problems(
    split: Split,
    count: int,
    seed: int,
    *,
    name: str = "",
    levels: Sequence[Mapping[str, Any]] | None = None,
    instruction: str = INSTRUCTION,
    answer_form: str = ANSWER,
    again: str = AGAIN,
    mistakes: float = 0.0,
    **settings: Any,
) -> list[Problem]:
    """Generate different questions; a question belongs to one split, regardless of the seed.

    Args:
        split: "train" or "eval".
        count: Number of questions; fewer are returned if no more exist.
        seed: Random seed of the choice.
        name: Name of the data set.
        levels: Settings by level of difficulty, easiest first; each is added to `settings`. The questions take turns
            among the levels. With `rollout.curriculum`, the levels that the policy solves sometimes are drawn more
            often.
        instruction: Text after each question.
        answer_form: Form of the answers in demonstrations, with {answer}.
        again: See `demonstrations`.
        mistakes: See `demonstrations`.
        settings: Settings of the data set.

    Returns:
        Problems with the columns `dataset`, `options` (the settings as JSON), `item` (a number), `answer`, and `level`
        (from 1) if there are levels.

    Raises:
        ConfigError: If the data set does not exist, cannot be trained on, or does not accept the settings.
    """
    check_split(NAME, split)
    rng = random.Random(f"{NAME}/{name}/{split}/{seed}")
    found: dict[str, Problem] = {}
    misses = 0
    for problem, belongs in _draws(rng, name, levels, instruction, settings):
        if len(found) >= count or misses >= PATIENCE:
            break
        is_new = belongs == split and problem.id not in found
        misses = 0 if is_new else misses + 1
        if is_new:
            found[problem.id] = problem
    return list(found.values())


def demonstrations(
    count: int,
    seed: int,
    *,
    name: str = "",
    levels: Sequence[Mapping[str, Any]] | None = None,
    instruction: str = INSTRUCTION,
    answer_form: str = ANSWER,
    again: str = AGAIN,
    mistakes: float = 0.0,
    **settings: Any,
) -> list[tuple[Problem, Written]]:
    """Generate training questions, which may repeat, each with its answer and no reasoning.

    Args:
        count: Number of demonstrations.
        seed: Random seed of the questions and of the mistakes.
        name: See `problems`.
        levels: See `problems`.
        instruction: See `problems`.
        answer_form: Form of the answers, with {answer}.
        again: Text that follows a wrong answer; that of the environment `reasoning_gym`.
        mistakes: Probability that the answer to another question and `again` come first.
        settings: See `problems`.

    Returns:
        Problems with answers, or with dialogues (wrong answer, `again`, right answer).
    """
    if PLACE not in answer_form or not 0 <= mistakes <= 1:
        raise ConfigError(f"the task {NAME!r} needs answer_form with {PLACE}, and mistakes between 0 and 1")
    rng = random.Random(f"{NAME}/{name}/demonstrations/{seed}")
    drawn = _draws(rng, name, levels, instruction, settings)
    train = (problem for problem, belongs in drawn if belongs == "train")
    found: list[tuple[Problem, Written]] = []
    answers: dict[Any, str] = {}
    for problem in itertools.islice(train, count):
        right, level = answer_form.replace(PLACE, str(problem.columns["answer"])), problem.columns.get("level")
        wrong = answers.get(level)
        slips = mistakes > 0 and rng.random() < mistakes and wrong is not None and wrong != right
        found.append((problem, (str(wrong), again, right) if slips else right))
        answers[level] = right
    return found


def _draws(
    rng: random.Random,
    name: str,
    levels: Sequence[Mapping[str, Any]] | None,
    instruction: str,
    settings: Mapping[str, Any],
) -> Iterator[tuple[Problem, Split]]:
    """Yield questions and their splits, without end."""
    if not name or not isinstance(name, str):
        raise ConfigError(f"the task {NAME!r} needs a data set; set data.task_options.name, such as 'chain_sum'")
    if levels is not None and (not levels or not all(isinstance(each, Mapping) for each in levels)):
        raise ConfigError(f"the task {NAME!r} needs levels as a list of settings, such as [{{min_terms = 2}}]")
    listed = [{**settings, **level} for level in levels or [{}]]
    for each in listed:
        open_dataset(name, each)
    items = (first * BLOCK + place for first in iter(lambda: rng.randrange(BLOCKS), None) for place in range(BLOCK))
    for number, item in enumerate(items):
        place = number % len(listed)
        made = made_item(name, listed[place], item)
        columns = {"dataset": name, "options": json.dumps(listed[place]), "item": item, "answer": made["answer"]}
        digest = hashlib.blake2b(made["question"].encode(), digest_size=6).hexdigest()
        level = {} if levels is None else {"level": place + 1}
        problem = Problem(f"{made['question']}{instruction}", f"{NAME}/{name}/{digest}", {**columns, **level})
        yield problem, split_of(made["question"])


REASONING_GYM = Task(
    NAME, NAME, problems, demonstrations, summary="generated: about 90 data sets of reasoning-gym, scored by themselves"
)
