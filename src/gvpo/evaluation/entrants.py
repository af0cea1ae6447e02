"""Subjects of an evaluation: models, response files, and the correct and wrong answers that check a benchmark."""

import gc
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gvpo.data import load_records
from gvpo.errors import ConfigError
from gvpo.evaluation.benchmarks import KINDS, Benchmark, gold_response, wrong_response
from gvpo.evaluation.jobs import Job, prompts, without_prompts
from gvpo.evaluation.protocol import EvalProtocol
from gvpo.evaluation.responses import Responses, of_text
from gvpo.evaluation.templates import find_template
from gvpo.model.weight_files import weights_fingerprint
from gvpo.rollout.collect import EncodedProblem
from gvpo.rollout.fingerprints import asked
from gvpo.rollout.group_file import GroupFile
from gvpo.sampling import Sampler, SamplingParams
from gvpo.sampling.engines import EngineOptions, check_engine, open_engine
from gvpo.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Entrant(Protocol):
    """A model, response file or set of known answers that is evaluated."""

    @property
    def name(self) -> str:
        """Name in the results."""
        ...

    def job(self, benchmark: Benchmark, problems: Sequence[Problem], protocol: EvalProtocol, out: Path) -> Job:
        """Return the job for a benchmark; its file is in a directory of `out`."""
        ...

    def open(self, job: Job) -> Sampler:
        """Return the sampler of the completions of one of its jobs."""
        ...

    def close(self) -> None:
        """Release the memory."""
        ...


class Model:
    """A model, sampled by an engine; it is loaded by the first job that has problems left to sample.

    Args:
        path: Directory or Hub model ID.
        name: Name in the results; default: the path.
        engine: A key of `sampling.engines.ENGINES`.
        options: Options of the engine, such as the dtype.
    """

    def __init__(
        self, path: str, name: str | None = None, *, engine: str = "transformers", options: EngineOptions | None = None
    ) -> None:
        check_engine(engine)
        self.path, self.name = path, name or path
        self._engine, self._options = engine, options or EngineOptions()
        self._sampler: Sampler | None = None

    @cached_property
    def _tokenizer(self) -> "PreTrainedTokenizerBase":
        from gvpo.model.tokenizer import load_tokenizer

        return load_tokenizer(self.path)

    def job(self, benchmark: Benchmark, problems: Sequence[Problem], protocol: EvalProtocol, out: Path) -> Job:
        """Implement `Entrant.job`.

        Raises:
            ModelError: If the model has no tokenizer.
            ConfigError: If the template does not fit the benchmark.
            DataError: If a prompt cannot be encoded.
        """
        template = find_template(
            protocol.template, chat_template=bool(self._tokenizer.chat_template), examples=protocol.examples
        )
        items = prompts(benchmark, problems, template, self._tokenizer)
        params = protocol.params(benchmark)
        settings = {
            "model": self.path,
            "weights": weights_fingerprint(self.path),
            "engine": self._engine,
            "dtype": self._options.dtype,
            "template": template.name,
            **_settings(benchmark, items, params),
            "seed": protocol.seed,
        }
        file = group_file(out, self.name, benchmark)
        return Job(self.name, benchmark, items, params, file, settings, template, protocol.seed, protocol.at_once)

    def open(self, job: Job) -> Sampler:
        """Implement `Entrant.open`; load the model once.

        Raises:
            ModelError: If the model cannot be loaded.
        """
        if self._sampler is None:
            self._sampler = open_engine(self._engine, self.path, self._tokenizer, self._options)
        return self._sampler

    def close(self) -> None:
        """Implement `Entrant.close`."""
        getattr(self._sampler, "close", lambda: None)()
        self._sampler = None
        gc.collect()  # modules of a model refer to each other in cycles


class FileOfResponses:
    """Responses that already exist, in a file for one benchmark or a directory with one file per benchmark.

    Args:
        path: Path of the file, or of the directory with `BENCHMARK.jsonl`.
    """

    def __init__(self, path: str) -> None:
        self.path = self.name = path

    def job(self, benchmark: Benchmark, problems: Sequence[Problem], protocol: EvalProtocol, out: Path) -> Job:
        """Implement `Entrant.job`.

        Raises:
            DataError: If the file cannot be read.
            ConfigError: If the directory has no file for the benchmark.
        """
        file = self._file(benchmark)
        answered = self._responses(file, problems)
        return _job_of_responses(self.name, benchmark, problems, answered, protocol, out)

    def open(self, job: Job) -> Sampler:
        """Implement `Entrant.open`."""
        return self._responses(self._file(job.benchmark), [item.problem for item in job.items])

    def close(self) -> None:
        """Implement `Entrant.close`."""

    def _responses(self, file: Path, problems: Sequence[Problem]) -> Responses:
        return Responses.of_rows(load_records(file), problems, str(file))

    def _file(self, benchmark: Benchmark) -> Path:
        path = Path(self.path)
        if not path.is_dir():
            return path
        names = [path / f"{benchmark.name}{kind}" for kind in KINDS]
        found = next((name for name in names if name.is_file()), None)
        if found is None:
            raise ConfigError(f"{path} contains no responses to {benchmark.name}; write them to {names[0].name}")
        return found


class Known:
    """The benchmark's own correct answers, or wrong answers: they score 100% and 0% if data and reward are correct.

    Args:
        name: "golds" or "wrong".
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def job(self, benchmark: Benchmark, problems: Sequence[Problem], protocol: EvalProtocol, out: Path) -> Job:
        """Implement `Entrant.job`."""
        answered = self._responses(benchmark, problems)
        return _job_of_responses(self.name, benchmark, problems, answered, protocol, out)

    def open(self, job: Job) -> Sampler:
        """Implement `Entrant.open`."""
        return self._responses(job.benchmark, [item.problem for item in job.items])

    def close(self) -> None:
        """Implement `Entrant.close`."""

    def _responses(self, benchmark: Benchmark, problems: Sequence[Problem]) -> Responses:
        def text(problem: Problem) -> str:
            return gold_response(benchmark, problem) if self.name == "golds" else wrong_response(benchmark)

        return Responses({problem.id: [of_text(text(problem))] for problem in problems})


def group_file(out: Path, name: str, benchmark: Benchmark) -> GroupFile:
    """Return the file of an entrant's groups: one directory per entrant, one file per benchmark."""
    directory = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name).strip("-.")
    return GroupFile(out / (directory or "model") / f"{benchmark.name}.jsonl")


def _job_of_responses(
    name: str,
    benchmark: Benchmark,
    problems: Sequence[Problem],
    answered: Responses,
    protocol: EvalProtocol,
    out: Path,
) -> Job:
    items = without_prompts(problems)
    params = SamplingParams(group_size=answered.most)
    settings = {"responses": name, **_settings(benchmark, items, None), "given": answered.fingerprint()}
    return Job(name, benchmark, items, params, group_file(out, name, benchmark), settings, at_once=protocol.at_once)


def _settings(benchmark: Benchmark, items: Sequence[EncodedProblem], params: SamplingParams | None) -> dict[str, Any]:
    drawn = {} if params is None else asdict(params)
    problems = {"problems": len(items), "prompts_and_answers": asked(items)}
    return {"benchmark": benchmark.name, "reward": benchmark.reward, **drawn, **problems}
