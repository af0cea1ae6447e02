"""Tasks whose problems are made on the spot by families of generators, and held out by their numbers.

A problem belongs to a split by the numbers that its question names, whatever their order, its words or its family: no
model that learned a held-out question's numbers in other words has seen it.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from gvpo.data.tasks.base import Split, Task, check_split, checked_options, chosen, different, split_of
from gvpo.types import Problem

INSTRUCTION = "\nReason step by step, and put the final answer in \\boxed{}."
LEVELS = (1, 2, 3, 4, 5)
SIZES = {1: 20, 2: 100, 3: 1000, 4: 10_000, 5: 100_000}
"""What the numbers of a level stay below, by and large."""
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Exercise:
    """A question with the way to its answer.

    Args:
        question: in words; its numbers in digits.
        steps: true equations such as "3 * 4 = 12", a line each.
        answer: a whole number, or LaTeX.
    """

    question: str
    steps: Sequence[str]
    answer: str


Family = Callable[[random.Random, int], Exercise]
"""Makes an exercise of a level from 1 to 5 by the random numbers that it is given, and nothing else."""


def numbers_of(question: str) -> list[int]:
    """The numbers that a question names, in order of size."""
    return sorted(map(int, _NUMBER.findall(question)))


def generated(name: str, families: Mapping[str, Family]) -> Task:
    """The task of some families; its options are those of `_problems`, and its reward is `boxed_answer`."""
    check = checked_options(name)
    problems = check(partial(_problems, name, families))
    return Task(name, "boxed_answer", problems, check(partial(_demonstrations, name, families)))


def _problems(
    name: str,
    made_by: Mapping[str, Family],
    split: Split,
    count: int,
    seed: int,
    *,
    families: Sequence[str] | None = None,
    levels: Sequence[int] = (1, 2, 3),
    instruction: str = INSTRUCTION,
) -> list[Problem]:
    """Different problems, of families and levels in equal shares.

    Args:
        name: of the task.
        made_by: its families by name.
        split: "train" or "eval".
        count: how many; fewer come back where there are no more.
        seed: of the choice and the order.
        families: those to use; default all.
        levels: of difficulty, 1 to 5: larger numbers, more steps.
        instruction: what is added after each question.

    Returns:
        Problems with the columns `answer`, `steps` (a worked solution's lines), `family` and `level`.

    Raises:
        ConfigError: an option that cannot be.
    """
    check_split(name, split)
    rng = random.Random(f"{name}/{split}/{seed}")
    drawn = _draws(rng, name, made_by, families, levels, instruction)
    return different((problem for problem, belongs in drawn if belongs == split), count)


def _demonstrations(
    name: str,
    made_by: Mapping[str, Family],
    count: int,
    seed: int,
    *,
    families: Sequence[str] | None = None,
    levels: Sequence[int] = (1, 2, 3),
    instruction: str = INSTRUCTION,
) -> list[tuple[Problem, str]]:
    """Training problems, which may repeat, each with its steps and the boxed answer."""
    rng = random.Random(f"{name}/demonstrations/{seed}")
    drawn = _draws(rng, name, made_by, families, levels, instruction)
    train = (problem for problem, belongs in drawn if belongs == "train")
    return [(problem, written(problem)) for problem in (next(train) for _ in range(count))]


def written(problem: Problem) -> str:
    """A problem's worked solution: its steps, then the answer in a box."""
    return "\n".join([*problem.columns["steps"], f"\\boxed{{{problem.columns['answer']}}}"])


def _draws(
    rng: random.Random,
    name: str,
    made_by: Mapping[str, Family],
    families: Sequence[str] | None,
    levels: Sequence[int],
    instruction: str,
) -> Iterator[tuple[Problem, Split]]:
    """Problems and where they belong, without end."""
    of_families = chosen(name, "families", families, list(made_by))
    of_levels = chosen(name, "levels", levels, LEVELS)
    while True:
        family, level = rng.choice(of_families), rng.choice(of_levels)
        exercise = made_by[family](rng, level)
        columns = {"answer": exercise.answer, "steps": list(exercise.steps), "family": family, "level": level}
        digest = hashlib.blake2b(exercise.question.encode(), digest_size=6).hexdigest()
        problem = Problem(f"{exercise.question}{instruction}", f"{name}/{family}/{digest}", columns)
        yield problem, split_of(" ".join(map(str, numbers_of(exercise.question))))
