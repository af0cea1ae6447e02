"""Output of `gvpo doctor --plan MODEL`: whether a run fits, what it needs, and the settings to use."""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from rich.console import Console
from rich.table import Table

from gvpo.config import OBJECTIVES, TrainConfig
from gvpo.config.defaults import find_default, overlaps
from gvpo.config.settings import OWN_REFERENCES
from gvpo.model_directories import model_in
from gvpo.planning import (
    Architecture,
    Device,
    Plan,
    Rates,
    Workload,
    checkpoint_bytes,
    estimate_seconds,
    find_device,
    make_plan,
    read_architecture,
    run_bytes,
)
from gvpo.planning.devices import GIB
from gvpo.planning.files import local_config
from gvpo.planning.search import USABLE
from gvpo.sampling.engines import NEXT_TO_A_TRAINER

AUTO = "auto"


def print_plan(options: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Read the model's configuration, plan, print.

    Raises:
        ModelError: If the configuration cannot be read, or is not a decoder's.
        ConfigError: If a size or a device does not exist.
    """
    model = read_architecture(_config(options.plan))
    memory = options.memory * GIB if options.memory else None
    device = find_device(options.gpu, 1 if options.gpus is None else options.gpus, memory)
    workload = workload_of({**given, "prompt_tokens": options.prompt_tokens}, model, device)
    fixed = frozenset(name for name in ("tokens_per_microbatch", "tokens_per_batch") if given.get(name, AUTO) != AUTO)
    plan = make_plan(model, workload, device, fixed=fixed)
    console = Console()
    console.print(_title(options.plan, model, device), highlight=False, markup=False, soft_wrap=True)
    console.print(_verdict(plan, device), style="bold", highlight=False, markup=False, soft_wrap=True)
    console.print(_memory_table(plan))
    if plan.fits:
        console.print(_settings_table(plan, workload))
        steps = given.get("steps", TrainConfig().steps)
        for line in _costs(plan, model, device, steps):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    for note in [*model.notes, *_notes(plan, model, device), *_engine_notes(_config_of(given), device)]:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


def workload_of(given: Mapping[str, Any], model: Architecture, device: Device) -> Workload:
    """Return the workload that settings and flags describe for a model on a device; None and "auto" leave defaults."""
    sizes = {**given, "completion_tokens": given.get("max_tokens"), "reuse": given.get("rollout_reuse")}
    names = {field.name for field in fields(Workload)}
    kept = {name: value for name, value in sizes.items() if name in names and value not in (None, AUTO)}
    config = _config_of(given)
    return Workload(
        **{
            **kept,
            "half": _is_half(given.get("compute_dtype", AUTO), model, device),
            "reference": _reference(given) not in OWN_REFERENCES,
            "checkpointing": given.get("gradient_checkpointing", False),
            "narrow_base": given.get("lora_base_dtype") == "bfloat16",
            "copy_width": _copy_width(config),
            "copies_base": config.sampling_dtype not in (AUTO, config.lora_base_dtype),
            "samples": config.sampling_engine == "transformers",
        }
    )


def _config_of(given: Mapping[str, Any]) -> TrainConfig:
    return TrainConfig(**{name: value for name, value in given.items() if name in TrainConfig.model_fields})


def _copy_width(config: TrainConfig) -> int:
    """Return the bytes per weight of the engine transformers' own copy of the policy; 0 without a copy."""
    if config.sampling_engine != "transformers" or not (overlaps(config) or config.sampling_dtype != AUTO):
        return 0
    return 2 if config.sampling_dtype == "bfloat16" else 4


def _reference(given: Mapping[str, Any]) -> str:
    """Return the reference that a run of GVPO would use."""
    config = _config_of(given)
    if config.reference != AUTO:
        return config.reference
    return find_default(config, OBJECTIVES[config.objective], "live").reference


def _rates(model: Architecture, workload: Workload, device: Device) -> Rates | None:
    """Return the rates of this machine's CPU, measured now; None for a GPU."""
    if device.kind != "cpu":
        return None
    from gvpo.model.cpu.rates import measure_rates

    return measure_rates(model.hidden, _outputs(model), workload.rows_at_once, half=workload.half)


def _is_half(dtype: str, model: Architecture, device: Device) -> bool:
    """Return whether a run computes in bfloat16; on a CPU, "auto" is measured as a run measures it."""
    if dtype != AUTO or device.kind != "cpu":
        return dtype != "float32"
    from gvpo.update.precision import dtype_for_sizes

    return dtype_for_sizes(model.hidden, _outputs(model)) == "bfloat16"


def _outputs(model: Architecture) -> int:
    """Return the outputs of the largest linear layer."""
    return model.expert_intermediate if model.experts else model.intermediate


def _config(model: str) -> dict[str, object]:
    found = local_config(model_in(model))
    if found is None:
        from gvpo.model.runtime import hub_config

        found = hub_config(model)
    return found


def _title(name: str, model: Architecture, device: Device) -> str:
    count = f"{device.count} x " if device.count > 1 else ""
    return (
        f"{name}: {model.kind or 'a decoder'}, {_count(model.parameters)} parameters, {model.layers} layers; "
        f"{count}{device.name}, {device.memory / GIB:.0f} GiB{' each' if count else ''}"
    )


def _verdict(plan: Plan, device: Device) -> str:
    need = f"{plan.memory.peak / GIB:.1f} GiB of {USABLE * device.memory / GIB:.1f} usable"
    if plan.fits:
        return f"fits: {need}"
    several = f"; it would fit if sharded over {plan.enough}" if plan.enough else ""
    return f"does not fit: it needs at least {need}{several}"


def _memory_table(plan: Plan) -> Table:
    """Return the items by phase, in GiB; the phase with the peak is first."""
    phases = sorted(plan.memory.phases, key=plan.memory.peak_of, reverse=True)
    table = Table(title="GiB at the peak of each phase", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for phase in phases:
        table.add_column(phase, justify="right")
    items = dict.fromkeys(item for phase in phases for item in plan.memory.phases[phase])
    for item in items:
        sizes = [plan.memory.phases[phase].get(item) for phase in phases]
        table.add_row(item, *["" if size is None else f"{size / GIB:.2f}" for size in sizes])
    table.add_row("together", *[f"{plan.memory.peak_of(phase) / GIB:.2f}" for phase in phases], style="bold")
    return table


def _settings_table(plan: Plan, asked: Workload) -> Table:
    use = plan.workload
    table = Table(title="Settings", title_justify="left", box=None, pad_edge=False, show_header=False)
    rows = [
        ("sampling.group_size", str(use.group_size), ""),
        ("sampling.max_tokens", str(use.completion_tokens), ""),
        ("sampling.tokens_per_batch", str(use.tokens_per_batch), f"{use.rows_at_once} concurrent completions"),
        ("train.prompts_per_step", str(use.prompts_per_step), ""),
        ("train.groups_per_update", str(use.groups), "costs no memory: the update is exact under any split"),
        ("train.tokens_per_microbatch", str(use.tokens_per_microbatch), "bounds memory, does not change the result"),
        ("objective.reference", "initial" if use.reference else "previous", _reference_note(plan)),
        ("model.gradient_checkpointing", str(use.checkpointing).lower(), _checkpointing_note(plan, asked)),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _checkpointing_note(plan: Plan, asked: Workload) -> str:
    if not plan.workload.checkpointing:
        return "not needed"
    return "as requested" if asked.checkpointing else "activations do not fit; the update needs about a third more time"


def _reference_note(plan: Plan) -> str:
    if plan.workload.lora_rank and plan.workload.reference:
        return "the model without the adapter; no copy is kept"
    if plan.reference_fits is None:
        return "no copy is kept"
    return "its copy fits" if plan.reference_fits else "a frozen copy does not fit"


def _costs(plan: Plan, model: Architecture, device: Device, steps: int) -> Iterator[str]:
    seconds = estimate_seconds(model, plan.workload, device, _rates(model, plan.workload, device))
    yield (
        f"time   about {_duration(seconds.total)} per step (sampling {_duration(seconds.sampling)}, "
        f"scoring {_duration(seconds.scoring)}, updating {_duration(seconds.updating)}), "
        f"{_duration(steps * seconds.total)} for {steps} steps, without rewards and evaluation"
    )
    use = plan.workload
    checkpoint = checkpoint_bytes(model, reference=use.reference, lora_rank=use.lora_rank) / GIB
    defaults = TrainConfig()
    files = steps // defaults.rollouts_every if defaults.rollouts_every else 0
    total = run_bytes(model, plan.workload, keep=defaults.checkpoint_keep, rollouts=files) / GIB
    yield (
        f"disk   {checkpoint:.2f} GiB per checkpoint, up to {total:.1f} GiB for the run "
        f"(checkpoint.keep={defaults.checkpoint_keep}, the best, one being written, {files} rollout files)"
    )


def _notes(plan: Plan, model: Architecture, device: Device) -> Iterator[str]:
    use = plan.workload
    if model.context and use.width > model.context:
        yield f"prompt and completion have {use.width} tokens, but the model's context is {model.context}"
    if not model.shares_prompts:
        yield "the model's attention cannot share prompts, so each completion has its own copy of the prompt"
    if not model.fused_head:
        yield "the model changes its logits after the head, so all of them are kept"
    if device.name == "t4" and use.half:
        yield "the T4 has no bfloat16 units; plan with model.compute_dtype=float32"
    if device.count > 1:
        yield "for several devices set train.sharding=full and start with torchrun (`gvpo docs scaling`)"
    if device.kind == "cuda":
        yield "the memory formulas are checked on a CPU, not on a GPU (`gvpo docs doctor`); time is a rough guide"
    if device.kind == "cpu":
        yield "seconds are those of a machine without other work, on the threads that torch uses (OMP_NUM_THREADS)"
    yield "the plan assumes that every completion has the maximum length; shorter ones need less"


def _engine_notes(config: TrainConfig, device: Device) -> Iterator[str]:
    """Yield what an engine with its own memory takes in addition to the plan."""
    if config.sampling_engine == "vllm" and device.kind == "cuda":
        share = config.sampling_engine_options.get("gpu_memory_utilization", NEXT_TO_A_TRAINER)
        asleep = ", and frees most of it during updates" if config.sampling_engine_sleep else ""
        yield (
            f"vLLM takes {share * device.memory / GIB:.1f} GiB in addition to the plan, for its own weights and cache"
            f"{asleep} (gpu_memory_utilization {share:g} in sampling.engine_options)"
        )
    if config.sampling_engine == "server":
        yield "the servers sample on devices of their own, so the plan has no phase for sampling"


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _count(parameters: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if parameters >= size:
            return f"{parameters / size:.2f}{unit}"
    return f"{parameters:,}"
