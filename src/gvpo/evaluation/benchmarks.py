r"""Benchmarks by name: location of the rows, questions, reward, and number of samples per problem.

    rows (Hub, file) ──read──▶ Problem: the bare question, and the columns of its reward

The text around a question comes from a template (templates.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from gvpo.data import TASKS, load_records, problems_from_records
from gvpo.data.tasks.gsm8k import HUB_ID as GSM8K_HUB_ID
from gvpo.data.tasks.mbpp import INSTRUCTION as ASK_FOR_CODE
from gvpo.errors import ConfigError, DataError
from gvpo.nearest import did_you_mean
from gvpo.rewards.math.math_answer import gold_text
from gvpo.types import Problem

Family = Literal["math", "code", "continuation", "own"]
"""Kind of answer: in a box, a program, the rest of a program, or defined by the prompts of a user's file."""

Rows = Sequence[Mapping[str, Any]]

ASK_FOR_BOX = "\nReason step by step, and put the final answer in \\boxed{}."
ASK_FOR_REST = "Complete this function, and write the whole of it in one Python code block.\n"
QUESTIONS = ("problem", "question", "Problem", "Question")
ANSWERS = ("answer", "final_answer", "Answer")
NAMES = ("id", "unique_id", "ID")
KINDS = (".jsonl", ".json", ".parquet", ".csv")
WRONG = {"math": r"\boxed{-987654.3}", "code": "raise NotImplementedError", "continuation": "    raise SystemExit\n"}


@dataclass(frozen=True)
class Benchmark:
    """Problems and a reward that scores their answers.

    Args:
        name: Name of the benchmark.
        hub_id: Hub dataset ID, in the form that `load_records` accepts.
        files: Possible paths of its rows below a data directory; the first existing one is read.
        size: Number of problems in the papers; None for a user's own benchmark.
        read: Function that turns rows into problems with bare questions; it keeps all rows, in their order.
        reward: Name of the reward that decides which answers are correct.
        family: Kind of answer.
        instruction: Instruction for templates without their own.
        samples: Default number of completions per problem.
        max_tokens: Default maximum number of tokens per completion.
    """

    name: str
    hub_id: str
    files: tuple[str, ...]
    size: int | None
    read: Callable[[Rows], list[Problem]] = field(repr=False)
    reward: str = "math_answer"
    family: Family = "math"
    instruction: str = ASK_FOR_BOX
    samples: int = 1
    max_tokens: int = 3072


def read_math(name: str, rows: Rows) -> list[Problem]:
    """Read rows with a question and an answer, under any of their usual column names.

    Raises:
        DataError: If a row lacks one of them; the message counts rows from 1.
    """
    ids = _ids(rows)
    return [_math_problem(f"{name}/{one}", row, n) for n, (one, row) in enumerate(zip(ids, rows, strict=True), start=1)]


def _math_problem(identity: str, row: Mapping[str, Any], number: int) -> Problem:
    question = next((row[column] for column in QUESTIONS if row.get(column)), None)
    answer = next((row[column] for column in ANSWERS if row.get(column) not in (None, "", [])), None)
    if not isinstance(question, str) or answer is None:
        raise DataError(f"row {number} has no question or no answer; rows need `problem` and `answer`")
    columns = {"answer": answer}
    if row.get("error"):
        columns["error"] = row["error"]  # OlympiadBench's tolerance
    return Problem(question, identity, columns)


def _ids(rows: Rows) -> list[str]:
    """Return the rows' own IDs if they are all present and different, otherwise the row numbers."""
    for column in NAMES:
        own = [str(row[column]) for row in rows if row.get(column) is not None]
        if len(set(own)) == len(rows):
            return own
    return [str(number) for number in range(1, len(rows) + 1)]


def _read_task(name: str, options: Mapping[str, Any], rows: Rows) -> list[Problem]:
    read = TASKS[name].read
    assert read is not None  # the tasks below have one
    return read(rows, "eval", **options)


def _math(name: str, hub_id: str, size: int, file: str = "test.jsonl", **settings: Any) -> Benchmark:
    return Benchmark(name, hub_id, (f"{name}/{file}",), size, partial(read_math, name), **settings)


def _code(name: str, hub_id: str, size: int, file: str, options: Mapping[str, Any], **settings: Any) -> Benchmark:
    read = partial(_read_task, name, options)
    return Benchmark(name, hub_id, (f"{name}/{file}",), size, read, "code_tests", max_tokens=1024, **settings)


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        _math("aime24", "HuggingFaceH4/aime_2024#train", 30, samples=32),
        _math("amc", "AI-MO/aimo-validation-amc#train", 83, "amc83_test.jsonl"),
        _math("math500", "HuggingFaceH4/MATH-500#test", 500),
        _math("minerva", "math-ai/minervamath#test", 272),
        _math("olympiadbench", "Hothan/OlympiadBench:OE_TO_maths_en_COMP#train", 675),
        Benchmark(
            "gsm8k",
            f"{GSM8K_HUB_ID}#test",
            ("gsm8k/test.jsonl",),
            1319,
            partial(_read_task, "gsm8k", {"instruction": ""}),
            reward="gsm8k",
            max_tokens=1024,
        ),
        _code(
            "mbpp",
            "google-research-datasets/mbpp:full#test",
            500,
            "mbpp.jsonl",
            {"instruction": ""},
            family="code",
            instruction=ASK_FOR_CODE,
        ),
        _code(
            "humaneval",
            "openai/openai_humaneval#test",
            164,
            "HumanEval.jsonl",
            {},
            family="continuation",
            instruction=ASK_FOR_REST,
        ),
    )
}
"""The benchmarks of the papers. AMC has the 83 problems of 2022 and 2023, not only the 40 of 2023."""


def find_benchmark(name: str, reward: str | None = None) -> Benchmark:
    """Return the benchmark with a name, or a user's own: a file or Hub dataset with the column `prompt`.

    Args:
        name: A key of `BENCHMARKS`, a data file or `owner/name`.
        reward: Reward of a user's own benchmark; the others have theirs.

    Raises:
        ConfigError: If no benchmark has this name, or a user's own benchmark comes without a reward.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if Path(name).suffix not in KINDS and "/" not in name:
        hint = did_you_mean(name, BENCHMARKS, f"choose one of {', '.join(BENCHMARKS)}, or give a file")
        raise ConfigError(f"there is no benchmark {name!r}{hint}")
    if reward is None:
        raise ConfigError(f"the benchmark {name} is your own, so name its reward: rewards.funcs=NAME")
    called = Path(name.partition("#")[0].partition(":")[0]).stem
    return Benchmark(called, name, (), None, problems_from_records, reward, "own", "", max_tokens=1024)


def check_places(data: Sequence[str], names: Sequence[str]) -> None:
    """Check the names of all `NAME=PLACE`: a misspelled name would silently load the benchmark from the Hub.

    Args:
        data: Locations of data, in the form that `load_problems` accepts.
        names: Names of the requested benchmarks.

    Raises:
        ConfigError: If a name is neither one of them nor a key of `BENCHMARKS`; the message suggests the nearest name.
    """
    known = [*names, *BENCHMARKS]
    for name in [given.partition("=")[0] for given in data if "=" in given]:
        if name not in known:
            hint = did_you_mean(name, known, f"this evaluation uses {', '.join(names)}")
            raise ConfigError(f"--data {name}=... does not name a benchmark{hint}")


def load_problems(benchmark: Benchmark, data: Sequence[str] = ()) -> list[Problem]:
    """Load a benchmark's problems.

    Args:
        benchmark: The benchmark.
        data: Locations of data: `NAME=FILE_OR_HUB_ID` for one benchmark, or a directory for all; default: the Hub.

    Raises:
        DataError: If the rows cannot be loaded, or do not have the benchmark's form.
    """
    place = locate(benchmark, data)
    try:
        problems = benchmark.read(load_records(place))
    except DataError as error:
        raise DataError(f"{benchmark.name}: {error}; give the location of its rows with --data NAME=FILE") from None
    if not problems:
        raise DataError(f"{benchmark.name}: {place} contains none of its problems")
    return problems


def locate(benchmark: Benchmark, data: Sequence[str]) -> str:
    """Return the file or Hub dataset ID of a benchmark's rows; see `load_problems`.

    Raises:
        ConfigError: If an item of `data` is neither `NAME=PLACE` nor a directory.
    """
    for given in data:
        name, equals, place = given.partition("=")
        if equals and name == benchmark.name:
            return place
        if not equals:
            if not Path(given).is_dir():
                raise ConfigError(f"there is no directory {given}; give one with data, or NAME=FILE")
            found = _below(Path(given), benchmark)
            if found is not None:
                return str(found)
    return benchmark.hub_id


def _below(directory: Path, benchmark: Benchmark) -> Path | None:
    names = [*(f"{benchmark.name}{kind}" for kind in KINDS), *benchmark.files]
    return next((directory / name for name in names if (directory / name).is_file()), None)


def gold_response(benchmark: Benchmark, problem: Problem) -> str:
    """Return a correct answer to a problem, from its own columns. The benchmark's reward must accept it.

    Raises:
        ConfigError: If the benchmark is a user's own, because its correct answers are not known.
    """
    if benchmark.family == "own":
        raise ConfigError(f"{benchmark.name} is your own benchmark, so its correct answers are not known")
    if benchmark.family != "math":
        return str(problem.columns["solution"])
    return rf"\boxed{{{gold_text(problem.columns['answer'])}}}"


def wrong_response(benchmark: Benchmark) -> str:
    """Return an answer that is wrong for every problem of a benchmark.

    Raises:
        ConfigError: If the benchmark is a user's own.
    """
    if benchmark.family == "own":
        raise ConfigError(f"{benchmark.name} is your own benchmark, so its wrong answers are not known")
    return WRONG[benchmark.family]
