"""Who is evaluated: models, files of responses, and the right and wrong answers that check a benchmark itself."""

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
    """Somebody who answers."""

    @property
    def name(self) -> str:
        """What results call it."""
        ...

    def job(self, benchmark: Benchmark, problems: Sequence[Problem], protocol: EvalProtocol, out: Path) -> Job:
        """What is to be done for a benchmark; its file lies below `out`."""
        ...

    def open(self, job: Job) -> Sampler:
        """Who draws the completions of one of its jobs."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


class Model:
    """A model, sampled by an engine; it is loaded when the first of its jobs has something to do.

    Args:
        path: directory or hub id.
        name: what results call it; default the path.
        engine: a key of `sampling.engines.ENGINES`.
        options: how the engine holds it.
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
        """As `Entrant.job`.

        Raises:
            ModelError: there is no tokenizer.
            ConfigError, DataError: the template does not fit, or a prompt cannot be encoded.
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
        """As `Entrant.open`; the model is loaded once.

        Raises:
            ModelError: it cannot be loaded.
        """
        if self._sampler is None:
            self._sampler = open_engine(self._engine, self.path, self._tokenizer, self._options)
        return self._sampler

    def close(self) -> None:
        """As `Entrant.close`."""
        self._sampler = None
        gc.collect()  # modules of a model know each other in circles


class FileOfResponses:
    """Responses that exist already: a file for one benchmark, or a directory with a file for each.

    Args:
        path: of the file, or of the directory with `BENCHMARK.jsonl`.
    """

    def __init__(self, path: str) -> None:
        self.path = self.name = path

    def job(self, benchmark: Benchmark, problems: Sequence[Problem], protocol: EvalProtocol, out: Path) -> Job:
        """As `Entrant.job`.

        Raises:
            DataError: the file cannot be read.
            ConfigError: there is none for the benchmark.
        """
        file = self._file(benchmark)
        answered = self._responses(file, problems)
        return _job_of_responses(self.name, benchmark, problems, answered, protocol, out)

    def open(self, job: Job) -> Sampler:
        """As `Entrant.open`."""
        return self._responses(self._file(job.benchmark), [item.problem for item in job.items])

    def close(self) -> None:
        """As `Entrant.close`."""

    def _responses(self, file: Path, problems: Sequence[Problem]) -> Responses:
        return Responses.of_rows(load_records(file), problems, str(file))

    def _file(self, benchmark: Benchmark) -> Path:
        path = Path(self.path)
        if not path.is_dir():
            return path
        names = [path / f"{benchmark.name}{kind}" for kind in KINDS]
        found = next((name for name in names if name.is_file()), None)
        if found is None:
            raise ConfigError(f"there are no responses to {benchmark.name} in {path}; put them into {names[0].name}")
        return found


class Known:
    """The benchmark's own right answers, or wrong ones: they score 100% and 0% where data and reward are right.

    Args:
        name: "golds" or "wrong".
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def job(self, benchmark: Benchmark, problems: Sequence[Problem], protocol: EvalProtocol, out: Path) -> Job:
        """As `Entrant.job`."""
        answered = self._responses(benchmark, problems)
        return _job_of_responses(self.name, benchmark, problems, answered, protocol, out)

    def open(self, job: Job) -> Sampler:
        """As `Entrant.open`."""
        return self._responses(job.benchmark, [item.problem for item in job.items])

    def close(self) -> None:
        """As `Entrant.close`."""

    def _responses(self, benchmark: Benchmark, problems: Sequence[Problem]) -> Responses:
        def text(problem: Problem) -> str:
            return gold_response(benchmark, problem) if self.name == "golds" else wrong_response(benchmark)

        return Responses({problem.id: [of_text(text(problem))] for problem in problems})


def group_file(out: Path, name: str, benchmark: Benchmark) -> GroupFile:
    """Where an entrant's groups go: a directory for each, a file for each benchmark."""
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
