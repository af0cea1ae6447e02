"""Metrics lines for TensorBoard and Weights & Biases, through accelerate's trackers.

A tracker is optional for a run: metrics.jsonl already contains its data, and a tracker that fails is dropped while the
run continues.
"""

import importlib.util
import secrets
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from accelerate import PartialState
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from gvpo import runfiles
from gvpo.config import TrainConfig
from gvpo.config.recipe import dump_config
from gvpo.errors import ConfigError, one_line
from gvpo.training.checkpoint.run_directory import RunDirectory

TRACKERS_FILE = "trackers.json"
"""File with the ID of a run in Weights & Biases, so that a resumed run continues there."""


def check_trackers(config: TrainConfig) -> None:
    """Check that the trackers' packages and logins are present, before anything is loaded or trained.

    Raises:
        ConfigError: If one is missing; the message contains the command that fixes it.
    """
    for name in config.trackers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"run.trackers names {name}, which is not installed: pip install 'gvpo[{name}]'")
    if "wandb" in config.trackers:
        _check_wandb_login()


def _check_wandb_login() -> None:
    import wandb

    if wandb.setup().settings.mode in ("offline", "dryrun", "disabled"):
        return
    try:
        known = wandb.login(prompt=False)  # asks the server whether it accepts the key
    except Exception as error:  # its errors have no common base class
        raise _wandb_fails(one_line(error)) from error
    if not known:
        raise _wandb_fails("there is no login on this machine")


class Trackers:
    """The trackers of one session of a run.

    Args:
        config: Settings with the trackers and the project's name.
        run: Directory of the run. TensorBoard writes to `<run>/tensorboard`, Weights & Biases to `<run>/wandb`.
        step: Last finished step. TensorBoard drops later steps; Weights & Biases keeps them and ignores their
            repetition.
        say: Function that prints for the user.

    Raises:
        ConfigError: If a tracker does not start, for example without an account or a network.
    """

    def __init__(self, config: TrainConfig, run: RunDirectory, step: int, say: Callable[[str], None]) -> None:
        self._say = say
        self._running: list[GeneralTracker] = []
        if config.trackers:
            PartialState()  # accelerate's trackers ask it which process logs
        for name in config.trackers:
            self._running.append(_START[name](config, run, step))
        wandb_run = next((tracker.tracker for tracker in self._running if tracker.name == "wandb"), None)
        if wandb_run is not None:
            say(f"Weights & Biases: {wandb_run.url or f'offline, in {wandb_run.dir}'}")

    def log(self, line: Mapping[str, Any]) -> None:
        """Send the numbers of a metrics line."""
        values = {key: value for key, value in line.items() if key != "step" and isinstance(value, int | float)}
        for tracker in list(self._running):
            try:
                tracker.log(values, step=int(line["step"]))
            except Exception as error:  # any error of a network or an account; the run matters more
                self._running.remove(tracker)
                self._say(f"tracker {tracker.name} failed and is not used any more: {one_line(error)}")

    def __enter__(self) -> Self:
        """Return the trackers, which are already running."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Send the remaining data and close."""
        for tracker in self._running:
            try:
                tracker.finish()
            except Exception as failure:
                self._say(f"tracker {tracker.name} did not finish: {one_line(failure)}")


def _tensorboard(config: TrainConfig, run: RunDirectory, step: int) -> GeneralTracker:
    tracker = TensorBoardTracker("tensorboard", run.path, purge_step=step + 1 if step > 0 else None)
    tracker.start()
    if step == 0:
        tracker.log({"config": f"```json\n{dump_config(config)}```"}, step=0)
    return tracker


def _wandb(config: TrainConfig, run: RunDirectory, step: int) -> GeneralTracker:
    tracker = WandBTracker(
        config.project,
        id=_wandb_id(run),
        name=run.path.name,
        dir=str(run.path),
        resume="allow",
        settings={"silent": True, "console": "off"},
    )
    try:
        tracker.start()
        tracker.store_init_configuration(config.to_recipe())
    except Exception as error:  # its errors have no common base class
        raise _wandb_fails(one_line(error), ", then use --resume") from error
    return tracker


def _wandb_fails(reason: str, after: str = "") -> ConfigError:
    return ConfigError(
        f"Weights & Biases does not start: {reason.rstrip('.')}; run `wandb login`, or set WANDB_MODE=offline{after}"
    )


_START: dict[str, Callable[[TrainConfig, RunDirectory, int], GeneralTracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}


def _wandb_id(run: RunDirectory) -> str:
    """Return the run's ID, which is created once and stored."""
    kept = runfiles.read_json(run.path / TRACKERS_FILE).get("wandb")
    if isinstance(kept, str):
        return kept
    made = secrets.token_hex(4)
    runfiles.write_json(run.path / TRACKERS_FILE, {"wandb": made})
    return made
