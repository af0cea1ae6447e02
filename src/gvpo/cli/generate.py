"""`gvpo generate MODEL --prompts FILE --out groups.jsonl rewards.funcs=NAME`: sample scored groups for training."""

import argparse
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvpo import runfiles
from gvpo.cli.options import ENGINE_READS
from gvpo.config import FIELDS
from gvpo.errors import ConfigError
from gvpo.notices import warn
from gvpo.outcome import MOST
from gvpo.progress import preparing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from transformers import PreTrainedTokenizerBase

    from gvpo.config import TrainConfig
    from gvpo.environments import EnvironmentSpec
    from gvpo.rewards import RewardFunc
    from gvpo.rollout.collect import EncodedProblem
    from gvpo.rollout.group_file import GroupFile
    from gvpo.sampling import Sampler, SamplingParams
    from gvpo.types import Problem

GROUP_SIZE, MAX_TOKENS = 8, 1024
SELECTIONS = ("best", "mixed", "right")
READS = {
    "run.seed": "",
    "model.compute_dtype": "auto; also the dtype of the weights",
    "data.task": "",
    "data.task_options": "",
    "data.prompt_column": "",
    "data.answer_column": "",
    "data.chat": "",
    "data.system_prompt": "",
    "data.template_args": "",
    "sampling.group_size": f"{GROUP_SIZE}, or 1 at temperature 0",
    "sampling.max_tokens": str(MAX_TOKENS),
    "sampling.temperature": "1; 0 is greedy",
    "sampling.top_p": "",
    "sampling.top_k": "",
    "sampling.allow": "",
    "sampling.ban": "",
    "sampling.stop_token_ids": "",
    "sampling.tokens_per_batch": "",
    **ENGINE_READS,
    **dict.fromkeys((key for key in FIELDS if key.startswith("environment.") and "credit" not in key), ""),
    "rewards.funcs": "the task's reward",
    "rewards.weights": "",
    "rewards.options": "",
    "rewards.timeout": "",
    "rewards.workers": "one per core, at most 8",
    "rewards.memory_limit": "",
}

ENVIRONMENT_LIMITS = ("environment.timeout", "environment.workers", "environment.memory_limit")
"""Settings of environments that a resumed command may change."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    from gvpo.cli.options import add_settings, add_work, positive

    parser.add_argument("model", metavar="MODEL", help="Model directory, run directory or Hub model ID")
    add_settings(parser, READS)
    parser.add_argument("--prompts", metavar="FILE", help="File or Hub dataset ID with rows of `prompt`")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE.jsonl", help="Output file for the scored groups"
    )
    parser.add_argument("--resume", action="store_true", help="Continue an unfinished --out file")
    parser.add_argument("--limit", type=positive, metavar="N", help="Use only the first N prompts")
    add_work(parser)
    group = parser.add_argument_group("selection, once all groups are sampled")
    group.add_argument(
        "--select", choices=SELECTIONS, help="Correct or best answers for sft, or groups with good and bad answers"
    )
    group.add_argument("--selected", type=Path, metavar="FILE.jsonl", help="Output file for the selected rows")
    group.add_argument(
        "--above", type=float, metavar="R", help="Good rewards are above R (default: 0.5; for best: any reward)"
    )
    group.add_argument(
        "--most", type=positive, metavar="N", help="Maximum number of answers per prompt (default: right all, best 1)"
    )


def run(options: argparse.Namespace) -> int:
    """Sample, score and write the groups, then select from them if requested."""
    with preparing(options.out.name):
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    from gvpo.cli.options import engine_name, given_settings, stopped
    from gvpo.model_directories import require_model
    from gvpo.report.episode_text import example
    from gvpo.rollout.problems import training_problems
    from gvpo.rollout.required_files import require_files
    from gvpo.rollout.sampling_params import sampling_params
    from gvpo.sampling import support_warning

    given = given_settings(options)
    options.engine = engine_name(options, given)
    temperature = given.pop("temperature", 1.0)
    config = _config(options, given, temperature)
    _check(options, config, temperature)
    path = require_model(options.model)
    require_files(config)
    params = replace(sampling_params(config), temperature=temperature)
    problems = training_problems(config, None)
    if (text := support_warning(params)) is not None:
        warn(text)
    rows = _groups(options, path, config, params, problems)
    if rows is None:
        return stopped("generate")
    print(f"{options.out}: {_description(rows)}")
    if (episode := example(rows)) is not None:
        print(episode)
    for text in _disappointments(rows):
        warn(text)
    if options.select is not None:
        _select(options, rows)
    return 0


def _groups(
    options: argparse.Namespace,
    path: str,
    config: "TrainConfig",
    params: "SamplingParams",
    problems: "Sequence[Problem]",
) -> "Sequence[Mapping[str, Any]] | None":
    """Return the rows of all groups, after sampling those that the file lacks; None after Ctrl-C."""
    from gvpo.model.tokenizer import load_tokenizer
    from gvpo.rollout.episodes.setup import described_tools, environment_of
    from gvpo.rollout.fingerprints import asked
    from gvpo.rollout.group_file import GroupFile
    from gvpo.rollout.problems import encode
    from gvpo.rollout.rewards import reward_functions
    from gvpo.sampling.engines import EngineOptions, open_engine

    file = GroupFile(options.out)
    environment = environment_of(config)
    rewards = reward_functions(config, None, environment=environment)
    if not rewards:
        raise ConfigError("the environment's turns have no rewards: set rewards.funcs")
    tokenizer = load_tokenizer(path)
    items = encode(config, tokenizer, problems, described_tools(environment))
    settings = {**_settings(options, path, config, params, rewards), **_environment_settings(config, environment)}
    problems_asked = {"prompts": len(items), "prompts_and_columns": asked(items)}
    file.begin({**settings, **problems_asked}, resume=options.resume)
    engine = EngineOptions.of(config, dtype=config.compute_dtype)
    with ExitStack() as at_the_end:

        def opened() -> "Sampler":
            sampler = open_engine(options.engine, path, tokenizer, engine)
            at_the_end.callback(getattr(sampler, "close", lambda: None))
            return at_the_end.enter_context(_with_episodes(config, environment, sampler, tokenizer))

        try:
            _fill(config, rewards, file, items, params, opened, options.save_every, episodes=environment is not None)
        except KeyboardInterrupt:
            return None
    return file.rows()


def _config(options: argparse.Namespace, given: "Mapping[str, Any]", temperature: float) -> "TrainConfig":
    """Return the settings of a training run that would sample these groups itself.

    Training is never greedy, so the temperature is not among them.
    """
    from gvpo.cli.options import CORES
    from gvpo.config import TrainConfig

    defaults = {
        "group_size": GROUP_SIZE if temperature > 0 else 1,
        "max_tokens": MAX_TOKENS,
        "reward_workers": CORES,
        "train_data": options.prompts,
        "train_problems": options.limit,
    }
    return TrainConfig(**{**defaults, **given})


def _check(options: argparse.Namespace, config: "TrainConfig", temperature: float) -> None:
    if temperature == 0 and config.group_size > 1:
        raise ConfigError(
            f"sampling.group_size={config.group_size}: all greedy answers are the same; set it to 1, or use a "
            "temperature above 0"
        )
    if options.prompts is None and config.task is None:
        raise ConfigError("there are no prompts: pass --prompts FILE, or set data.task")
    answered = config.environment is not None or config.environment_tools
    if not config.reward_funcs and config.task is None and not answered:
        raise ConfigError("there is no reward: set rewards.funcs, or data.task for its own reward")
    _check_selection(options)


def _check_selection(options: argparse.Namespace) -> None:
    if (options.select is None) != (options.selected is None):
        raise ConfigError("--select and --selected are used together: the kind of rows, and their output file")
    if options.selected is None:
        return
    if options.selected.suffix != ".jsonl":
        raise ConfigError(f"--selected {options.selected} must be JSON lines; choose a name that ends in .jsonl")
    if options.selected.resolve() == options.out.resolve():
        raise ConfigError("--selected would overwrite --out; choose another name")
    runfiles.require_writable(options.selected)


def _settings(
    options: argparse.Namespace,
    path: str,
    config: "TrainConfig",
    params: "SamplingParams",
    rewards: "Mapping[str, RewardFunc]",
) -> dict[str, Any]:
    from gvpo.model.weight_files import weights_fingerprint
    from gvpo.rewards.identity import identity

    return {
        "model": path,
        "weights": weights_fingerprint(path),
        "engine": options.engine,
        "dtype": config.compute_dtype,
        "system_prompt": config.system_prompt,
        "chat": config.chat,
        "task": config.task,
        "rewards": config.reward_funcs,
        "reward_weights": config.reward_weights,
        "reward_options": config.reward_options or None,
        **asdict(params),
        "seed": config.seed,
        "reward_code": {name: identity(function) for name, function in rewards.items()},
    }


def _environment_settings(config: "TrainConfig", environment: "EnvironmentSpec | None") -> dict[str, Any]:
    """Return what decides the episodes besides the sampler; {} without an environment."""
    from gvpo.rollout.episodes.setup import environment_identity

    if environment is None:
        return {}
    keys = [key for key in READS if key.startswith("environment.") and key not in ENVIRONMENT_LIMITS]
    return {
        **{key: getattr(config, FIELDS[key]) for key in keys},
        "environment_code": environment_identity(environment),
    }


def _with_episodes(
    config: "TrainConfig",
    environment: "EnvironmentSpec | None",
    sampler: "Sampler",
    tokenizer: "PreTrainedTokenizerBase",
) -> "AbstractContextManager[Sampler]":
    """Return a context with the sampler of episodes; the sampler itself without an environment."""
    from gvpo.model.model import context_length
    from gvpo.rollout.episodes.setup import open_episodes
    from gvpo.rollout.problems import answer_ending
    from gvpo.sampling.transformers import TransformersSampler

    context, ending = None, answer_ending(config, tokenizer)  # other engines limit their contexts themselves
    if isinstance(sampler, TransformersSampler):
        context, ending = context_length(sampler.model), sampler.ending
    return open_episodes(config, environment, sampler, tokenizer, ending, context=context)


def _fill(
    config: "TrainConfig",
    functions: "Mapping[str, RewardFunc]",
    file: "GroupFile",
    items: "Sequence[EncodedProblem]",
    params: "SamplingParams",
    open_sampler: "Callable[[], Sampler]",
    at_once: int | None,
    *,
    episodes: bool,
) -> None:
    from gvpo.cli.progress import watching
    from gvpo.rollout.fill import fill
    from gvpo.rollout.rewards import reward_pool

    with (
        reward_pool(config, functions) as rewards,
        watching(str(file.path), len(items), len(file.finished())) as watch,
    ):
        fill(
            file,
            items,
            open_sampler,
            params,
            rewards,
            seed=config.seed,
            at_once=at_once,
            watch=watch,
            episodes=episodes,
        )


def _disappointments(rows: "Sequence[Mapping[str, Any]]") -> "Iterator[str]":
    """Yield what makes the groups useless for training."""
    several = [row for row in rows if len(row["rewards"]) > 1]
    if several and not any(len(set(row["rewards"])) > 1 for row in several):
        yield (
            f"all {len(several)} groups have equal rewards, so training on them learns nothing; use other prompts, "
            "or check that the reward tells good completions from bad ones"
        )
    reasons = [reason for row in rows for reason in row.get("finish_reasons") or ()]
    share = sum(reason in ("length", "context") for reason in reasons) / max(1, len(reasons))
    if share >= MOST:
        yield f"{100 * share:.0f}% of the completions were cut before they ended; raise sampling.max_tokens"


def _description(rows: "Sequence[Mapping[str, Any]]") -> str:
    """Return one line about groups: their number, their rewards, and how many have unequal rewards."""
    rewards = [reward for row in rows for reward in row["rewards"]]
    known = [reward for reward in rewards if reward is not None]
    mean = f"mean reward {sum(known) / len(known):.3f}" if known else "no rewards"
    unequal = sum(len({reward for reward in row["rewards"] if reward is not None}) > 1 for row in rows)
    failed = f", {len(rewards) - len(known)} completions without a reward" if len(known) < len(rewards) else ""
    return f"{len(rows)} groups, {mean}, {unequal} groups with unequal rewards{failed}"


def _select(options: argparse.Namespace, rows: "Sequence[Mapping[str, Any]]") -> None:
    from gvpo.data import write_groups
    from gvpo.rollout.select import select

    chosen = select(options.select, rows, above=options.above, most=options.most)
    write_groups(options.selected, chosen)
    prompts = len({runfiles.to_json(row["prompt"]) for row in chosen})
    print(f"{options.selected}: {len(chosen)} rows of {prompts} prompts ({options.select})")
