r"""Benchmarks by name: where their rows are, what is asked, what is right, how often each problem is sampled.

    rows (hub, file) ──read──▶ Problem: the bare question, and the columns of its reward

What is put around a question is a template's business (templates.py).
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
"""What is asked for: a boxed answer, a program, a program's rest, or whatever the prompts of a user's file say."""

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
    """Problems with a way to judge answers.

    Args:
        name: how it is called.
        hub_id: its copy on the hub, as `load_records` takes it.
        files: where its rows lie below a data directory, the first that is there.
        size: how many problems the papers have; None for a user's own.
        read: rows -> problems with bare questions; all rows, in their order.
        reward: name of the reward that says what is right.
        family: what is asked for.
        instruction: how templates ask for it that do not say it themselves.
        samples: completions a problem, by default.
        max_tokens: tokens a completion, by default.
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
    """Rows with a question and an answer, under any of the names that data sets have for them.

    Raises:
        DataError: a row lacks one; rows are counted from 1.
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
    """The rows' own ids where each has a different one, else their numbers."""
    for column in NAMES:
        own = [str(row[column]) for row in rows if row.get(column) is not None]
        if len(set(own)) == len(rows):
            return own
    return [str(number) for number in range(1, len(rows) + 1)]


def _read_task(name: str, options: Mapping[str, Any], rows: Rows) -> list[Problem]:
    read = TASKS[name].read
    assert read is not None  # those below have one
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
"""The benchmarks of the papers. AMC are the 83 problems of 2022 and 2023, not the 40 of 2023 alone."""


def find_benchmark(name: str, reward: str | None = None) -> Benchmark:
    """The benchmark of a name, or a user's own: a file or hub id with rows of `prompt`.

    Args:
        name: a key of `BENCHMARKS`, a data file or `owner/name`.
        reward: judges a user's own; the benchmarks have theirs.

    Raises:
        ConfigError: there is none of that name, or a user's own without a reward.
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
    """Refuse a `NAME=PLACE` for a benchmark that there is not: a typing error would silently leave it to the hub.

    Args:
        data: as `load_problems` takes it.
        names: of the benchmarks that are asked.

    Raises:
        ConfigError: a name is neither one of them nor a key of `BENCHMARKS`; the nearest one is named.
    """
    known = [*names, *BENCHMARKS]
    for name in [given.partition("=")[0] for given in data if "=" in given]:
        if name not in known:
            hint = did_you_mean(name, known, f"this evaluation asks {', '.join(names)}")
            raise ConfigError(f"--data {name}=... is for no benchmark{hint}")


def load_problems(benchmark: Benchmark, data: Sequence[str] = ()) -> list[Problem]:
    """A benchmark's problems.

    Args:
        benchmark: which.
        data: where data lie: `NAME=FILE_OR_HUB_ID` for one benchmark, or a directory for all; default the hub.

    Raises:
        DataError: the rows cannot be had, or are not of the benchmark's form.
    """
    place = locate(benchmark, data)
    try:
        problems = benchmark.read(load_records(place))
    except DataError as error:
        raise DataError(f"{benchmark.name}: {error}; --data NAME=FILE says where its rows are") from None
    if not problems:
        raise DataError(f"{benchmark.name}: {place} has none of its problems")
    return problems


def locate(benchmark: Benchmark, data: Sequence[str]) -> str:
    """The file or hub id of a benchmark's rows; see `load_problems`.

    Raises:
        ConfigError: something given is neither `NAME=PLACE` nor a directory.
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
    """A right answer to a problem, from its own columns: what the benchmark's reward has to accept.

    Raises:
        ConfigError: a user's own benchmark, of which nothing is known.
    """
    if benchmark.family == "own":
        raise ConfigError(f"{benchmark.name} is your own benchmark, so its right answers are not known")
    if benchmark.family != "math":
        return str(problem.columns["solution"])
    return rf"\boxed{{{gold_text(problem.columns['answer'])}}}"


def wrong_response(benchmark: Benchmark) -> str:
    """An answer that is wrong for every problem of a benchmark.

    Raises:
        ConfigError: a user's own benchmark.
    """
    if benchmark.family == "own":
        raise ConfigError(f"{benchmark.name} is your own benchmark, so its wrong answers are not known")
    return WRONG[benchmark.family]
