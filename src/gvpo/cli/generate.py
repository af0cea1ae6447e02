"""`gvpo generate MODEL --prompts FILE --rewards NAME --out groups.jsonl`: scored groups to train on."""

import argparse
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvpo import runfiles
from gvpo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gvpo.config import TrainConfig
    from gvpo.rewards import RewardFunc
    from gvpo.rollout.collect import EncodedProblem
    from gvpo.rollout.group_file import GroupFile
    from gvpo.sampling import Sampler, SamplingParams

SAMPLES, MAX_TOKENS = 8, 1024
SELECTIONS = ("best", "mixed", "right")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    from gvpo.cli.options import add_engine, add_pool, add_sampling

    parser.add_argument("model", metavar="MODEL", help="directory, run or hub id")
    parser.add_argument("--prompts", metavar="FILE", help="file or hub id with rows of `prompt`, or of --task")
    parser.add_argument("--task", metavar="NAME", help="a built-in task: the form of the rows, or its own problems")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="where the scored groups go")
    parser.add_argument("--resume", action="store_true", help="go on with --out")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N prompts")
    parser.add_argument("--system-prompt", metavar="TEXT", help="as data.system_prompt of a recipe")
    parser.add_argument("--chat", choices=("auto", "chat", "plain"), default="auto", help="as data.chat of a recipe")
    add_sampling(parser, samples=f"completions a prompt (default: {SAMPLES}, or 1 with --temperature 0)")
    parser.add_argument("--allow", action="append", default=[], metavar="ITEM", help="as of gvpo decode")
    parser.add_argument("--ban", action="append", default=[], metavar="ITEM", help="as of gvpo decode")
    add_engine(parser)
    add_pool(parser)
    parser.add_argument("--rewards", metavar="NAME,...", help="who judges, as rewards.funcs (default: the task's)")
    parser.add_argument("--weights", metavar="W,...", help="of the rewards, as rewards.weights")
    parser.add_argument(
        "--reward-option",
        action="append",
        default=[],
        metavar="NAME.KEY=VALUE",
        help="a reward's setting, as rewards.options: length_penalty.limit=512",
    )
    group = parser.add_argument_group("selection, when all groups are there")
    group.add_argument("--select", choices=SELECTIONS, help="right or best answers for sft, or groups with both kinds")
    group.add_argument("--selected", type=Path, metavar="FILE.jsonl", help="where they go")
    group.add_argument("--above", type=float, metavar="R", help="good rewards are above R (default: 0.5; best: any)")
    group.add_argument("--most", type=int, metavar="N", help="answers a prompt at most (default: right all, best 1)")


def run(options: argparse.Namespace) -> int:
    """Sample, judge, write; then select, if asked to."""
    from gvpo.cli.options import engine_options, going_on, model_path
    from gvpo.model.tokenizer import load_tokenizer
    from gvpo.rollout.fill import fingerprint
    from gvpo.rollout.group_file import GroupFile
    from gvpo.rollout.problems import encode, training_problems
    from gvpo.rollout.rewards import reward_functions
    from gvpo.rollout.sampling_params import sampling_params
    from gvpo.sampling.engines import check_engine, open_engine

    _check(options)
    check_engine(options.engine)
    file, path = GroupFile(options.out), model_path(options.model)
    config = _config(options)
    problems = training_problems(config, None)
    tokenizer = load_tokenizer(path)
    items = encode(config, tokenizer, problems)
    params = replace(sampling_params(config), temperature=_temperature(options))
    _say_what_it_lacks(params)
    rewards = reward_functions(config, None)
    settings = {**_settings(options, path, config, params), "reward_code": _reward_code(rewards)}
    asked = {"prompts": len(items), "prompts_and_columns": fingerprint(items)}
    file.begin({**settings, **asked}, resume=options.resume)
    opened = partial(open_engine, options.engine, path, tokenizer, engine_options(options))
    try:
        _fill(config, rewards, file, items, params, opened, options.at_once)
    except KeyboardInterrupt:
        return going_on("generate")
    rows = file.rows()
    print(f"{file.path}: {_told(rows)}")
    if options.select is not None:
        _select(options, rows)
    return 0


def _check(options: argparse.Namespace) -> None:
    from gvpo.cli.options import check_sampling

    check_sampling(options)
    if _temperature(options) == 0 and (options.n or 1) > 1:
        raise ConfigError(f"--n {options.n}: greedy answers are all the same; use --n 1, or a temperature above 0")
    if options.prompts is None and options.task is None:
        raise ConfigError("there is nothing to answer: give --prompts FILE, or --task NAME")
    if options.rewards is None and options.task is None:
        raise ConfigError("there is nobody to judge: give --rewards NAME, or --task NAME for its own reward")
    if (options.select is None) != (options.selected is None):
        raise ConfigError("--select and --selected go together: what to take, and where to put it")
    if options.selected is not None and options.selected.suffix != ".jsonl":
        raise ConfigError(f"--selected {options.selected} has to be JSON lines; give a name that ends in .jsonl")
    if options.selected is not None and options.selected.resolve() == options.out.resolve():
        raise ConfigError("--selected would overwrite --out; give it another name")
    if options.selected is not None:
        runfiles.require_writable(options.selected)
    if options.most is not None and options.most < 1:
        raise ConfigError(f"--most {options.most}: keep at least 1 answer")


def _config(options: argparse.Namespace) -> "TrainConfig":
    """The settings of a training run that would sample these groups itself: problems and rewards are read as there."""
    from gvpo.config import TrainConfig

    return TrainConfig(
        train_data=options.prompts,
        task=options.task,
        train_problems=options.limit,
        chat=options.chat,
        system_prompt=options.system_prompt,
        seed=options.seed,
        group_size=options.n or (SAMPLES if _temperature(options) > 0 else 1),
        max_tokens=MAX_TOKENS if options.max_tokens is None else options.max_tokens,
        top_p=1.0 if options.top_p is None else options.top_p,
        top_k=options.top_k,
        sampling_allow=options.allow,
        sampling_ban=options.ban,
        reward_funcs=[name.strip() for name in (options.rewards or "").split(",") if name.strip()],
        reward_weights=None if options.weights is None else _weights(options.weights),
        reward_options=_reward_options(options.reward_option),
        reward_workers=options.workers,
        reward_timeout=options.timeout,
    )


def _temperature(options: argparse.Namespace) -> float:
    """Not among the settings of a training run, which is never greedy."""
    return 1.0 if options.temperature is None else float(options.temperature)


def _weights(words: str) -> list[float]:
    try:
        return [float(word) for word in words.split(",")]
    except ValueError:
        raise ConfigError(f"--weights {words}: write numbers, 1,0.5 say") from None


def _reward_options(pairs: "Sequence[str]") -> dict[str, dict[str, Any]]:
    from gvpo.config.recipe import parse_value

    found: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        dotted, equals, raw = pair.partition("=")
        name, dot, key = dotted.partition(".")
        if not (name and dot and key and equals):
            raise ConfigError(f"--reward-option {pair}: write NAME.KEY=VALUE, length_penalty.limit=512 say")
        found.setdefault(name, {})[key] = parse_value(raw)
    return found


def _say_what_it_lacks(params: "SamplingParams") -> None:
    from gvpo.sampling import support_warning

    if (text := support_warning(params)) is not None:
        print(f"gvpo: note: {text}", file=sys.stderr)


def _settings(
    options: argparse.Namespace, path: str, config: "TrainConfig", params: "SamplingParams"
) -> dict[str, Any]:
    from gvpo.model.weight_files import weights_fingerprint

    return {
        "model": path,
        "weights": weights_fingerprint(path),
        "engine": options.engine,
        "dtype": options.dtype,
        "system_prompt": config.system_prompt,
        "chat": config.chat,
        "task": options.task,
        "rewards": config.reward_funcs,
        "reward_weights": config.reward_weights,
        "reward_options": config.reward_options or None,
        **asdict(params),
        "seed": options.seed,
    }


def _reward_code(rewards: "Mapping[str, RewardFunc]") -> dict[str, str]:
    from gvpo.rewards.identity import identity

    return {name: identity(function) for name, function in rewards.items()}


def _fill(
    config: "TrainConfig",
    functions: "Mapping[str, RewardFunc]",
    file: "GroupFile",
    items: "Sequence[EncodedProblem]",
    params: "SamplingParams",
    open_sampler: "Callable[[], Sampler]",
    at_once: int | None,
) -> None:
    from gvpo.cli.fill_progress import watching
    from gvpo.rollout.fill import fill
    from gvpo.rollout.rewards import reward_pool

    with (
        reward_pool(config, functions) as rewards,
        watching(str(file.path), len(items), len(file.finished())) as watch,
    ):
        fill(file, items, open_sampler, params, rewards, seed=config.seed, at_once=at_once, watch=watch)


def _told(rows: "Sequence[Mapping[str, Any]]") -> str:
    """One line on groups: how many, their rewards, and how many have something to compare."""
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
