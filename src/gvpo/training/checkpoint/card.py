"""The model card of a checkpoint: the model, its training data, its results, and how to load it.

The card is written as README.md in the checkpoint, the form that the Hugging Face Hub shows. It contains only facts
from the settings, the run's state and the environment. Local paths are shortened to their last part, since cards are
published.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvpo.config import OBJECTIVE_KEYWORDS, ObjectiveSpec, TrainConfig, find_objective
from gvpo.model.lora import Adapter
from gvpo.training.checkpoint.files import TrainerState
from gvpo.training.checkpoint.run_directory import environment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def model_card(
    config: TrainConfig,
    state: TrainerState,
    tokenizer: "PreTrainedTokenizerBase",
    start: str,
    *,
    needs_reference: bool,
    adapter: Adapter | None = None,
    objective: ObjectiveSpec | None = None,
) -> str:
    """Return the text of the card.

    Args:
        config: Settings of the run.
        state: State of the run: the step, the evaluation before training and the latest one.
        tokenizer: Tokenizer as it is saved; its class decides how it is loaded.
        start: Model that training started from, a Hub model ID or a path; "" for a randomly initialized one.
        needs_reference: Whether the objective read reference log-probs.
        adapter: LoRA adapter that the checkpoint contains instead of a model.
        objective: Entry of the objective; by default that of the settings.

    Returns:
        Markdown that begins with the Hub's metadata. The same settings and state give the same text.
    """
    spec = objective or find_objective(config.objective)
    keywords = (f"{name} {value}" for name, value in _keywords(config, spec).items())
    rows = [
        ("Objective", ", ".join([config.objective, *keywords])),
        ("Reference", _reference(config) if needs_reference else "none"),
    ]
    rows += [("Adapter", _adapter(adapter))] if adapter is not None else []
    rows += _facts(config, state, start)
    facts = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows)
    title = f"{config.objective.upper()}, step {state.step}"
    load = _load(tokenizer) if adapter is None else _load_adapter(tokenizer, adapter)
    return "\n".join(
        [_metadata(config, spec, start, adapter), f"# {title}\n", _opening(start), "| | |\n|---|---|", facts, load]
    )


def _metadata(config: TrainConfig, spec: ObjectiveSpec, start: str, adapter: Adapter | None) -> str:
    library, base = ("transformers", start) if adapter is None else ("peft", adapter.base)
    lines = [f"library_name: {library}", "pipeline_tag: text-generation"]
    lines += ["tags:", "- gvpo", *(["- lora"] if adapter is not None else [])]
    lines += ["- reinforcement-learning"] if spec.learns_from == "groups" else []
    if _is_hub_id(base):
        lines.append(f"base_model: {base}")
    if config.train_data is not None and _is_hub_id(config.train_data):
        lines += ["datasets:", f"- {config.train_data.partition(':')[0].partition('#')[0]}"]
    return "\n".join(["---", *lines, "---\n"])


def _opening(start: str) -> str:
    origin = f"`{_public(start)}`" if start else "a randomly initialized model"
    return f"{origin[0].upper()}{origin[1:]}, post-trained with gvpo.\n"


def _facts(config: TrainConfig, state: TrainerState, start: str) -> Iterator[tuple[str, Any]]:
    yield "Started from", _public(start) or json.dumps(config.model_init)
    yield "Warm start", f"{config.warm_start_steps} supervised steps" if config.warm_start_steps else "none"
    yield "Training data", _data(config)
    yield "Rewards", ", ".join(map(_public, config.reward_funcs)) or "the task's own, or given in Python"
    yield "Steps", f"{state.step} of {config.steps}, each {config.prompts_per_step} prompts"
    yield "Sampling", _sampling(config)
    yield "Learning rate", f"{config.learning_rate:g}, {config.schedule}"
    yield "Prompt", _prompt(config)
    keys = {"sampled": "eval/accuracy", "greedy": "eval/accuracy_greedy", "on pairs": "eval/pair_accuracy"}
    for name, key in keys.items():
        if key in state.before or key in state.latest:
            yield f"Held-out accuracy, {name}", _before_and_after(state, key)
    yield "Seed", config.seed
    yield "Versions", ", ".join(f"{name} {version}" for name, version in environment()["packages"].items() if version)


def _adapter(adapter: Adapter) -> str:
    base = f" for {_public(adapter.base)}" if adapter.base else ""
    return f"LoRA{base}: rank {adapter.rank}, alpha {adapter.alpha:g}, on {', '.join(adapter.targets)}"


def _reference(config: TrainConfig) -> str:
    names = {
        "previous": "policy at the start of each step",
        "sampler": "policy that sampled each group",
        "initial": "policy at the start of the run",
    }
    return names.get(config.reference) or f"policy refreshed {config.reference.replace(':', ' ')} steps"


def _keywords(config: TrainConfig, spec: ObjectiveSpec) -> Mapping[str, Any]:
    """Return the objective's keywords: the values of the settings, else its own defaults."""
    settings = {name: getattr(config, name) for name in OBJECTIVE_KEYWORDS if spec.takes(name)}
    resolved = {name: spec.keywords.get(name) if value is None else value for name, value in settings.items()}
    if config.kl_in_reward > 0:
        resolved["kl_in_reward"] = config.kl_in_reward
    return {name: value for name, value in resolved.items() if value is not None}


def _data(config: TrainConfig) -> str:
    parts = [f"task {config.task}" if config.task else "", _public(config.train_data or "")]
    if config.groups_data is not None:
        parts.append(f"logged groups {_public(config.groups_data)}")
    if config.sample_groups is not None:
        parts.append(f"{config.sample_groups} groups sampled once from the starting model")
    return ", ".join(part for part in parts if part) or "given in Python"


def _sampling(config: TrainConfig) -> str:
    cut = f", top_p {config.top_p:g}" if config.top_p < 1 else ""
    cut += f", top_k {config.top_k}" if config.top_k > 0 else ""
    cut += ", with an exclusion" if config.sampling_allow or config.sampling_ban else ""
    counts = f"{config.group_size} completions per prompt, up to {config.max_tokens} tokens"
    old = f"; {config.rollout_staleness} steps before they are trained on" if config.rollout_staleness else ""
    old += f"; each group is trained on in {config.rollout_reuse} steps" if config.rollout_reuse > 1 else ""
    return f"{counts}, temperature {config.temperature:g}{cut}{old}"


def _prompt(config: TrainConfig) -> str:
    form = {"auto": "chat template if there is one", "chat": "chat template", "plain": "plain text"}[config.chat]
    return f"{form}; system prompt: {config.system_prompt}" if config.system_prompt else form


def _before_and_after(state: TrainerState, key: str) -> str:
    shown = [f"{values[key]:.3f}" if key in values else "not measured" for values in (state.before, state.latest)]
    return f"{shown[0]} before, {shown[1]} at the latest evaluation"


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def _is_hub_id(name: str) -> bool:
    """Return whether a name is `owner/name` and not a file or directory on this machine."""
    plain = name.partition(":")[0].partition("#")[0]
    return plain.count("/") == 1 and not plain.startswith((".", "/", "~")) and not Path(plain).exists()


def _public(name: str) -> str:
    """Return a name that may be published; a path becomes its last part."""
    return name if not name or _is_hub_id(name) else Path(name).name


def _load_adapter(tokenizer: "PreTrainedTokenizerBase", adapter: Adapter) -> str:
    """Return the section on loading the adapter, its base, and the tokenizer of training."""
    base = _public(adapter.base) or "the model that training started from"
    revision = f", revision={adapter.revision!r}" if adapter.revision else ""
    return f"""
## Load it

This is a LoRA adapter, not a whole model; load it on {base}.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({base!r}, dtype={adapter.dtype!r}{revision})
model = PeftModel.from_pretrained(base, path)
```

`gvpo merge path out` writes a whole model. The adapter's weights are float32.

{_TRAP if _is_plain(tokenizer) else _NO_TRAP} It is saved with the adapter.
"""


def _load(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the section on loading the model and the tokenizer, so that the tokens match those of training."""
    own = _is_plain(tokenizer)
    loader = "PreTrainedTokenizerFast" if own else "AutoTokenizer"
    return f"""
## Load it

```python
from transformers import AutoModelForCausalLM, {loader}

model = AutoModelForCausalLM.from_pretrained(path)
tokenizer = {loader}.from_pretrained(path)
```

{_TRAP if own else _NO_TRAP} `gvpo.load_tokenizer(path)` compares what transformers loads with `tokenizer.json` and
uses the file if they differ. The weights are float32.
"""


def _is_plain(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether the tokenizer is read from its file only, without a class of transformers for it."""
    return type(tokenizer).__name__ in ("PreTrainedTokenizerFast", "TokenizersBackend")


_TRAP = """\
Load the tokenizer with `PreTrainedTokenizerFast`, not `AutoTokenizer`. `AutoTokenizer` chooses a class by the model's
type, and some of these classes rebuild the tokenizer instead of reading `tokenizer.json`. The model would then see
other tokens than it was trained on."""
_NO_TRAP = """\
The tokenizer is the base model's, unchanged, and `AutoTokenizer` loads it."""
