"""`gvpo doctor`: check this machine; `gvpo doctor --plan MODEL`: estimate the needs of a run."""

import argparse
import importlib
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from gvpo.errors import ConfigError, one_line

OK, MISSING, BROKEN, NOTE = "ok", "missing", "broken", "note"
_STYLES = {OK: "green", MISSING: "yellow", BROKEN: "red", NOTE: "yellow"}
_REQUIREMENT = re.compile(r"^([\w.-]+)\s*(?:\[[\w,-]*\])?\s*(?:>=\s*([\w.]+))?.*?(?:extra\s*==\s*['\"]([\w-]+)['\"])?$")
_MODULES = {"pytest-timeout": "pytest_timeout", "pytest-xdist": "xdist", "pyyaml": "yaml"}
LOW_DISK = 5


@dataclass(frozen=True)
class Finding:
    """One line of the table: subject, state, details and remedy."""

    what: str
    state: str
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Requirement:
    """A distribution that gvpo depends on, itself ("") or for one of its extras."""

    name: str
    minimum: str
    extra: str


READS = {
    "model.compute_dtype": "auto, as in a run",
    "model.gradient_checkpointing": "only if it is needed",
    "lora.rank": "all weights are trained",
    "lora.base_dtype": "",
    "sampling.group_size": "",
    "sampling.max_tokens": "",
    "sampling.tokens_per_batch": "the largest that fits",
    "sampling.engine": "",
    "sampling.engine_options": "",
    "sampling.engine_sleep": "",
    "sampling.dtype": "",
    "objective.reference": "initial, or sampler with several updates per rollout, as for gvpo",
    "train.steps": "",
    "train.prompts_per_step": "",
    "train.groups_per_update": "",
    "train.passes": "",
    "rollout.reuse": "",
    "rollout.asynchronous": "",
    "rollout.max_staleness": "",
    "train.tokens_per_microbatch": "the largest that fits",
}
PLAN_FLAGS = ("gpu", "gpus", "memory", "prompt_tokens")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    from gvpo.cli.options import add_settings

    parser.add_argument(
        "--plan", metavar="MODEL", help="Plan a run of this model: its directory, a run, config.json or Hub model ID"
    )
    group = parser.add_argument_group("for --plan")
    group.add_argument("--gpu", metavar="NAME", help="GPU such as h100, or cpu (default: the device of this machine)")
    group.add_argument("--gpus", type=int, metavar="N", help="Number of GPUs (default: 1)")
    group.add_argument("--memory", type=float, metavar="GIB", help="Memory per device (default: its data sheet's)")
    group.add_argument("--prompt-tokens", type=int, metavar="N", help="Tokens of the longest prompt (default: 256)")
    add_settings(parser, READS)


def run(options: argparse.Namespace) -> int:
    """Print the table or the plan; return 0 unless the core is broken."""
    from gvpo.cli.options import given_settings

    given = given_settings(options)
    if options.plan is not None:
        from gvpo.cli.doctor_plan import print_plan

        print_plan(options, given)
        return 0
    flags = [f"--{name.replace('_', '-')}" for name in PLAN_FLAGS if getattr(options, name) is not None]
    if unused := [*flags, *options.settings]:
        raise ConfigError(f"{unused[0]} is for --plan; add --plan MODEL")
    findings = list(examine())
    _print(findings)
    return 2 if any(finding.state == BROKEN for finding in findings) else 0


def examine() -> Iterator[Finding]:
    """Yield all findings in order, without downloading or writing."""
    yield Finding("Python", OK, f"{platform.python_version()} on {platform.platform(terse=True)}")
    requirements = list(declared())
    core = [check_core(requirement) for requirement in requirements if not requirement.extra]
    yield Finding("gvpo", OK, metadata.version("gvpo"))
    yield from core
    if all(finding.state == OK for finding in core):
        yield from _devices()
    yield _disk()
    for extra in sorted({requirement.extra for requirement in requirements} - {""}):
        yield check_extra(extra, [requirement for requirement in requirements if requirement.extra == extra])


def declared() -> Iterator[Requirement]:
    """Yield the requirements in gvpo's own metadata."""
    for text in metadata.requires("gvpo") or []:
        found = _REQUIREMENT.match(text.strip())
        if found:
            yield Requirement(found[1], found[2] or "", found[3] or "")


def check_core(requirement: Requirement) -> Finding:
    """Check that a distribution of the core is installed, new enough, and can be imported."""
    name, wanted = requirement.name, f"{requirement.name}>={requirement.minimum}"
    remedy = f"pip install --upgrade '{wanted}'"
    version = installed(name)
    if version is None:
        return Finding(name, BROKEN, "not installed", remedy)
    if not at_least(version, requirement.minimum):
        return Finding(name, BROKEN, f"{version} is too old", remedy)
    problem = why_not_imported(name)
    return Finding(name, BROKEN, f"{version}: {problem}", remedy) if problem else Finding(name, OK, version)


def check_extra(extra: str, requirements: list[Requirement]) -> Finding:
    """Check whether an extra works; an incomplete extra is not an error."""
    remedy = f"pip install 'gvpo[{extra}]'"
    versions = {r: installed(r.name) for r in requirements}
    lacking = [r.name for r, version in versions.items() if version is None or not at_least(version, r.minimum)]
    if lacking:
        return Finding(f"extra {extra}", MISSING, f"without {', '.join(lacking)}", remedy)
    problems = [f"{r.name}: {problem}" for r in requirements if (problem := why_not_imported(r.name))]
    if problems:
        return Finding(f"extra {extra}", MISSING, problems[0], remedy)
    return Finding(f"extra {extra}", OK, ", ".join(f"{r.name} {version}" for r, version in versions.items()))


def installed(name: str) -> str | None:
    """Return the version of a distribution, or None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def at_least(version: str, minimum: str) -> bool:
    """Return whether a version is at least another, by its release numbers."""
    return _release(version) >= _release(minimum)


def _release(version: str) -> tuple[int, ...]:
    release = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in release[0].split(".")] if release else []
    return tuple(numbers + [0] * (4 - len(numbers)))


def why_not_imported(name: str) -> str:
    """Return the error of importing a distribution's module, or "" if there is none."""
    try:
        importlib.import_module(_MODULES.get(name, name.replace("-", "_")))
    except Exception as error:  # a broken installation can raise anything
        return f"{type(error).__name__}: {one_line(error)}"
    return ""


def _devices() -> Iterator[Finding]:
    from gvpo.model.runtime import torch_devices
    from gvpo.planning.devices import machine_memory, nvidia_gpus

    found = torch_devices()
    for device in found:
        yield Finding("device", OK, device)
    if (present := nvidia_gpus()) and not any(device.startswith("cuda") for device in found):
        remedy = "install a CUDA build of torch: https://pytorch.org/get-started"
        yield Finding("device", NOTE, f"{present[0]} is installed, but torch cannot use it", remedy)
    yield Finding("memory", OK, f"{machine_memory() / 2**30:.0f} GiB, {os.cpu_count()} CPU cores")


def _disk() -> Finding:
    free = shutil.disk_usage(".").free / 2**30
    remedy = "free some space, or set run.dir to a larger disk; `gvpo doctor --plan MODEL` shows what a run writes"
    return Finding(
        "disk", OK if free > LOW_DISK else NOTE, f"{free:.0f} GiB free here", remedy if free < LOW_DISK else ""
    )


def _print(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("", "", "found, and how to fix it"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row(finding.what, Text(finding.state, style=_STYLES[finding.state]), Text(finding.found))
        if finding.remedy:
            table.add_row("", "", Text(finding.remedy))
    Console().print(table)
