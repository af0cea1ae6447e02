"""`gvpo train RECIPE [section.key=value ...]`: train a model with a recipe."""

import argparse
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvpo import activity, runfiles
from gvpo.cli.options import add_recipe
from gvpo.cli.shipped import find_recipe
from gvpo.config import RunPlan, resolve, updates_per_step
from gvpo.config.plan import WARM_START
from gvpo.config.recipe import load_config, read_recipe
from gvpo.config.rollout_rules import GIVEN
from gvpo.errors import ConfigError
from gvpo.progress import preparing, print_sentence, stop_preparing
from gvpo.rollout.required_files import require_files

if TYPE_CHECKING:
    from rich.console import Console

    from gvpo.training.inputs import Policy, RunInputs

TOPIC = 11
"""Width of the first column of `gvpo train --check`."""
INTERRUPTED = 130
"""Exit code of a run that Ctrl-C, SIGTERM or SIGHUP has stopped."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_recipe(parser)
    parser.add_argument("--resume", action="store_true", help="Resume the run in run.dir")
    parser.add_argument(
        "--check", action="store_true", help="Check settings, files, model, data and rewards; train and write nothing"
    )


def run(options: argparse.Namespace) -> int:
    """Train and print the results."""
    recipe = find_recipe(options.recipe)
    config = load_config(recipe, options.settings)
    if options.resume and config.run_dir is None:
        raise ConfigError("--resume needs run.dir=DIRECTORY, the run to resume")
    if options.resume and options.check:
        raise ConfigError("--check is for new runs; a run checks itself when it is resumed, so leave out --check")
    _require_weights(recipe, config.model_path)
    plan = resolve(config)  # invalid settings and missing files are found before torch is imported
    require_files(config)
    name = options.recipe.removesuffix(".toml").removesuffix("/recipe").strip("/").replace("/", "-").lstrip(".-")
    title = config.run_dir.name if config.run_dir is not None else name
    with preparing(title, quiet=os.environ.get("RANK", "0") != "0"):
        return _run(options, plan, name)


def _run(options: argparse.Namespace, plan: RunPlan, name: str) -> int:
    """Train a resolved recipe."""
    with activity.phase("importing torch"):
        from gvpo.training.checkpoint.run_directory import free_directory
        from gvpo.training.warm_start import train_plan
        from gvpo.update.distributed import ranks

    config = plan.settings
    ranks.start(config.rank_timeout)
    run_dir = config.run_dir or ranks.on_first(lambda: free_directory("runs", name))
    if options.check:
        return _check(plan.at(run_dir, config.model_path))
    try:
        summary = train_plan(plan.at(run_dir, config.model_path), resume=options.resume)
    except KeyboardInterrupt as stopped:
        if ranks.is_first():
            print(
                f"gvpo: {str(stopped) or 'stopped immediately'}; resume with: {_going_on(options, run_dir)}",
                file=sys.stderr,
            )
        return INTERRUPTED
    first = ranks.is_first()
    ranks.leave()
    if not first:
        return 0
    _print_summary(run_dir, summary)
    return 0


def _require_weights(recipe: Path, model_path: str | None) -> None:
    """Raise an error if the model of a recipe is missing and a script `weights.py` in its folder makes it.

    Raises:
        ConfigError: If so; the message contains the command.
    """
    script = recipe.with_name("weights.py")
    own = script.is_file() and model_path is not None and model_path == read_recipe(recipe).get("model_path")
    if own and model_path is not None and not Path(model_path).exists():
        command = shlex.join(["python", str(script), model_path])
        raise ConfigError(f"the model of this recipe is missing; pip install 'gvpo[gguf]', then make it: {command}")


def _check(plan: RunPlan) -> int:
    """Check a plan, and print what was found and what was not checked."""
    from gvpo.training.warm_start import check_plan
    from gvpo.update.distributed import ranks

    inputs, policy = check_plan(plan)
    stop_preparing()
    width = shutil.get_terminal_size().columns
    for topic, found in _findings(inputs, policy) if ranks.is_first() else ():
        print(textwrap.fill(found, width, initial_indent=f"{topic:{TOPIC}}", subsequent_indent=" " * TOPIC))
    ranks.leave()
    return 0


def _findings(inputs: "RunInputs", policy: "Policy") -> Iterator[tuple[str, str]]:
    """Yield a topic and what was found about it."""
    yield "model", _model(inputs, policy)
    yield "data", _data(inputs)
    yield "rewards", _rewards(inputs)
    yield "objective", _objective(inputs)
    yield "training", _training(inputs)
    yield "saving", "model and tokenizer were saved without weights, read back and removed"
    yield "run", f"{inputs.settings.run_dir} is free"
    yield "result", "this run can start. Not checked: memory and time (`gvpo doctor --plan`), and values of rewards"


def _model(inputs: "RunInputs", policy: "Policy") -> str:
    from gvpo.model.model import context_length

    model = policy.model
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    whole = sum(weight.numel() for weight in model.parameters())
    part = "" if trained == whole else f", of which {trained:,} are trained"
    context = context_length(model)
    limit = f", context of {context:,} tokens" if context else ""
    warm = inputs.plan.warm_start
    start = f"; the run begins with a warm start of {warm.settings.steps} steps" if warm else ""
    return f"{model.config.model_type}, {whole:,} parameters{part}, on {model.device}{limit}{start}"


def _data(inputs: "RunInputs") -> str:
    data = inputs.data
    kinds = {"problems": data.problems, "written answers": data.written, "groups": data.groups}
    found = ", ".join(f"{len(rows):,} {kind}" for kind, rows in kinds.items() if rows)
    longest = max(map(len, data.prompts()), default=0)
    held = len(inputs.held_out) + len(inputs.held_groups)
    return f"{found} to train on, {held or 'none'} held out; the longest prompt has {longest:,} tokens"


def _rewards(inputs: "RunInputs") -> str:
    from gvpo.rewards.pool.local import is_local

    here = [name for name, function in inputs.rewards.items() if is_local(function)]
    sent = [name for name in inputs.rewards if name not in here]
    places = {"can be sent to worker processes": sent, "in the trainer's process": here}
    return "; ".join(f"{', '.join(names)}: {place}" for place, names in places.items() if names) or "none are used"


def _objective(inputs: "RunInputs") -> str:
    settings, keywords = inputs.settings, inputs.plan.objective.bound(inputs.settings)
    facts = [f"reference {settings.reference}"] if inputs.plan.reads_reference else []
    facts += [f"beta {keywords['beta']}"] if keywords.get("beta") is not None else []
    return ", ".join([settings.objective, *facts])


def _training(inputs: "RunInputs") -> str:
    settings = inputs.settings
    given = [f"{count} {name}" for name in GIVEN if (count := getattr(settings, f"rollout_{name}"))]
    sources = f" ({', '.join(given)})" if given else ""
    rows = f" x {settings.group_size} completions{sources}" if inputs.plan.samples else ""
    updates, stale, reuse = updates_per_step(settings), settings.rollout_staleness, settings.rollout_reuse
    again = f", each of which is trained on in {reuse} steps" if reuse > 1 else ""
    before = f", sampled {stale} step{'s' if stale > 1 else ''} before" if stale > 0 else ""
    return (
        f"{settings.steps:,} steps of {settings.prompts_per_step} prompts{rows}{before}{again}, "
        f"{updates} update{'s' if updates > 1 else ''} per step, learning rate {settings.learning_rate:g}"
    )


def _going_on(options: argparse.Namespace, run_dir: Path) -> str:
    """Return the command that resumes a run, or the same command again if the run had not begun."""
    settings = [setting for setting in options.settings if not setting.startswith("run.dir=")]
    words = ["gvpo", "train", options.recipe, *settings, f"run.dir={run_dir}"]
    began = runfiles.is_run(run_dir) or runfiles.is_run(run_dir / WARM_START)
    return shlex.join([*words, "--resume"] if began else words)


def _print_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if summary["accuracy_before"] is not None:
        table = Table(title=f"{summary['objective']}: {summary['steps']} steps in {summary['seconds']:.0f} s")
        for column in ("held-out accuracy", "before", "after"):
            table.add_column(column, justify="left" if column.startswith("held") else "right")
        measured = "on pairs" if summary["accuracy_of"] == "pairs" else "sampled"
        for label, key in ((measured, "accuracy"), ("greedy", "accuracy_greedy")):
            if summary[f"{key}_before"] is not None:
                table.add_row(label, f"{summary[f'{key}_before']:.3f}", f"{summary[f'{key}_after']:.3f}")
        console.print(table)
    else:
        console.print(f"{summary['objective']}: {summary['steps']} steps in {summary['seconds']:.0f} s")
        _print_training_reward(console, summary)
    report = summary["report"] if Path(summary["report"]).exists() else "not written; a warning above says why"
    for label, where in (("report", report), ("model", summary["model"]), ("run", run_dir)):
        console.print(f"{label:7} {where}", highlight=False, markup=False, soft_wrap=True)
    for warning in summary["warnings"]:
        print_sentence(console, f"warning: {warning}")


def _print_training_reward(console: "Console", summary: dict[str, Any]) -> None:
    """Print the training reward of a run without held-out data."""
    if "reward_first" in summary:
        steps = "step" if summary["reward_steps"] == 1 else f"{summary['reward_steps']} steps"
        first, last = (f"{summary[name]:.3f}" for name in ("reward_first", "reward_last"))
        console.print(f"training reward {first} in the first {steps}, {last} in the last {steps}", highlight=False)
