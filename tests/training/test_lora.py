"""Runs that train a LoRA adapter: trained and frozen weights, memory, files, and resuming."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from gvpo.config import Given, TrainConfig, resolve
from gvpo.errors import ConfigError, ModelError, RoundTripError, RunError
from gvpo.model import lora
from gvpo.model.model import load_model, save_model
from gvpo.model.reference import AdapterReference
from gvpo.rollout.usable import TrainingGroup
from gvpo.training.checkpoint.files import verify
from gvpo.training.learner import Learner
from gvpo.training.objective import build_objective
from gvpo.training.trainer import Trainer
from gvpo.training.warm_start import train_recipe
from gvpo.update.group_backward import score
from tests.model.test_lora import move
from tests.training.test_warm_start import recipe
from tests.training.toy import ROWS, config, groups, lines, model, same, share, stopped_at, tokenizer, trainer, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:the base model was not loaded from anywhere"
)  # toys are randomly initialized
IDS = torch.tensor([[3, 4, 5, 9, 1]])
FRESH: dict[str, Any] = {"lora_rank": 4, "checkpoint_verify": True}
RUNS: dict[str, dict[str, Any]] = {
    "off": {"reference": "initial", "objective": "grpo", "kl_coef": 0.1, "passes": 2, "groups_per_update": 3},
    "every three": {"reference": "every:3"},  # a checkpoint is between two refreshes
    "previous": {"reference": "previous", "groups_per_update": 1},
}
COMMON: dict[str, Any] = {**FRESH, "steps": 5, "checkpoint_every": 2, "eval_every": 2, "schedule": "linear"}


def adapter_config(**changes: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj", "down_proj"], **changes})


def test_repeated_layers_of_an_architecture_that_lists_its_layers_are_rejected(tmp_path: Path):
    wanted = adapter_config(layer_replication=[[0, 2], [1, 2]])
    with pytest.raises(ModelError, match="layer_replication does not work with Qwen2ForCausalLM"):
        Trainer(model(), share(), config(tmp_path), ROWS, None, tokenizer(), peft_config=wanted)


def policy(*, moved: bool = False) -> PreTrainedModel:
    adapted = model()
    lora.add_adapter(adapted, adapter_config())
    return move(adapted) if moved else adapted


def with_peft(run_dir: Path, given: Any, start: Any = None, **settings: Any) -> Any:
    return Trainer(
        start if start is not None else model(),
        share(),
        args=config(run_dir, **settings),
        train_dataset=ROWS,
        eval_dataset=ROWS,
        processing_class=tokenizer(),
        peft_config=given,
    )


def learner(start: PreTrainedModel, **settings: Any) -> Learner:
    settings = config(None, **{"steps": 4, "learning_rate": 1e-2, **settings})
    return Learner(start, build_objective(settings), settings)


def sampled(start: PreTrainedModel) -> list[TrainingGroup]:
    return [TrainingGroup(group, index, tuple(range(4))) for index, group in enumerate(groups(policy=start))]


def adapter_weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run_dir / f"checkpoints/step-{step:06d}/adapter_model.safetensors")


@pytest.mark.parametrize("was_moved", [False, True])
def test_the_reference_is_the_start_and_the_base_never_moves(was_moved: bool):
    start = policy(moved=was_moved)
    batch = sampled(start)
    wanted = [each.logprobs for each in score(start, [entry.group for entry in batch])]
    frozen = {name: p.detach().clone() for name, p in start.named_parameters() if not p.requires_grad}
    one = learner(start)
    one.learn(batch, 1)
    learned = one.learn(batch, 2)
    rows = [row for entry in learned.updates[0].groups for row in entry.group.completions]
    assert all(torch.equal(row.ref_logprobs, want) for row, want in zip(rows, wanted, strict=True))
    now = [each.logprobs for each in score(start, [entry.group for entry in batch])]
    assert any(not torch.equal(each, want) for each, want in zip(now, wanted, strict=True))
    after = dict(start.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())


def test_every_n_stores_the_adapter_of_that_moment():
    start = policy()
    batch = sampled(start)
    one = learner(start, reference="every:2")
    one.learn(batch, 1)
    assert one.reference is not None
    assert one.reference.state_dict() == {}
    one.learn(batch, 2)
    then = {name: p.detach().clone() for name, p in lora.trainable(start)}
    one.learn(batch, 3)
    assert same(one.reference.state_dict(), then)


def test_only_the_adapter_is_in_memory_twice():
    start = policy(moved=True)
    trained = {name: p.numel() for name, p in lora.trainable(start)}
    one = learner(start)
    one.learn(sampled(start), 1)
    assert isinstance(one.reference, AdapterReference)
    assert {name: each.numel() for name, each in one.reference.state_dict().items()} == trained
    moments = [value for state in one.optimizer.state.values() for name, value in state.items() if name != "step"]
    assert sum(moment.numel() for moment in moments) == 2 * sum(trained.values())
    assert sum(trained.values()) < sum(p.numel() for p in start.parameters()) / 4


def test_the_previous_policy_needs_no_reference():
    assert learner(policy(), reference="previous", groups_per_update=1).reference is None


@pytest.mark.parametrize("name", RUNS)
def test_a_run_resumes_exactly(tmp_path: Path, name: str):
    def run(path: Path, *, resume: bool = False) -> dict[str, torch.Tensor]:
        start = model()
        trainer(path, policy=start, **{**COMMON, **RUNS[name]}).train(resume=resume)
        return weights(start)

    end = run(tmp_path / "unbroken")
    for stop, resume in ((4, False), (5, True)):
        with stopped_at(stop):
            run(tmp_path / "stopped", resume=resume)
    assert same(run(tmp_path / "stopped", resume=True), end)
    assert lines(tmp_path / "stopped") == lines(tmp_path / "unbroken")
    assert same(adapter_weights(tmp_path / "stopped", 5), adapter_weights(tmp_path / "unbroken", 5))


def test_a_checkpoint_is_an_adapter_that_peft_loads(tmp_path: Path):
    start = model()
    run = trainer(tmp_path, policy=start, **FRESH)
    summary = run.train()
    checkpoint = Path(summary["model"])
    verify(checkpoint)
    names = {path.name for path in checkpoint.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md", "trainer"} <= names
    assert not {"model.safetensors", "config.json"} & names
    loaded = peft.PeftModel.from_pretrained(model(), str(checkpoint))
    ids = torch.tensor([tokenizer()("123").input_ids])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, start.eval()(ids).logits)


def test_the_settings_and_peft_config_train_the_same_way(tmp_path: Path):
    trainer(tmp_path / "settings", lora_rank=4, lora_target_modules=["q_proj", "down_proj"], lora_alpha=16).train()
    with_peft(tmp_path / "peft", adapter_config(lora_alpha=16)).train()
    assert same(adapter_weights(tmp_path / "settings", 3), adapter_weights(tmp_path / "peft", 3))


def test_a_peft_model_is_trained_in_place(tmp_path: Path):
    whole = peft.get_peft_model(model(), adapter_config())
    before = {name: p.detach().clone() for name, p in whole.named_parameters()}
    with_peft(tmp_path, None, whole).train()
    after = dict(whole.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    stored = peft.get_peft_model_state_dict(whole)
    assert same({name: p.detach() for name, p in stored.items()}, adapter_weights(tmp_path, 3))


def test_training_starts_from_a_stored_adapter(tmp_path: Path):
    first = trainer(tmp_path / "first", **FRESH)
    first.train()
    start = tmp_path / "first/checkpoints/step-000003"
    second = trainer(tmp_path / "second", lora_path=str(start), steps=1)
    assert same({n: p.detach() for n, p in lora.trainable(second.model)}, dict(lora.trainable(first.model)))
    second.train()
    reference = load_file(tmp_path / "second/checkpoints/step-000001/trainer/reference.safetensors")
    assert same(reference, {name: p.detach() for name, p in lora.trainable(first.model)})


def test_a_fresh_adapters_stored_reference_is_empty(tmp_path: Path):
    trainer(tmp_path, **FRESH).train()
    assert load_file(tmp_path / "checkpoints/step-000003/trainer/reference.safetensors") == {}


def test_the_card_names_the_base_and_the_adapter(tmp_path: Path):
    model().save_pretrained(tmp_path / "base")
    trainer(tmp_path / "run", policy=tmp_path / "base", **FRESH).train()
    card = (tmp_path / "run/checkpoints/step-000003/README.md").read_text()
    assert "library_name: peft" in card
    assert "| Adapter | LoRA for base: rank 4, alpha 8, on down_proj, gate_proj, k_proj, " in card
    assert "load it on base." in card
    assert "AutoModelForCausalLM.from_pretrained('base', dtype='float32')" in card
    assert str(tmp_path) not in card
    assert load_model(tmp_path / "run/checkpoints/step-000003").name_or_path == str(tmp_path / "base")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_rank": 4, "lora_dropout": 0.1}, r"lora\.dropout=0\.1 does not work: updates need exact forwards"),
        ({"lora_alpha": 4}, r"lora\.alpha is for a new adapter; also set lora\.rank"),
        ({"lora_target_modules": ["q_proj"]}, r"lora\.target_modules is for a new adapter; also set lora\.rank"),
        ({"lora_rank": 4, "lora_path": "a"}, r"set lora\.rank \(a new adapter\) or lora\.path, not both"),
        ({"lora_rank": 4, "model_init": {}}, r"frozen random weights; set warm_start\.steps, or model\.path"),
        ({"lora_rank": 0}, r"lora\.rank=0"),
    ],
    ids=str,
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        resolve(TrainConfig(**settings), Given(model=True))


def test_models_and_settings_that_cannot_work_together(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"peft_config and the \[lora\] settings both request an adapter"):
        with_peft(tmp_path, adapter_config(), lora_rank=4)
    with pytest.raises(ConfigError, match=r"lora\.base_dtype is for the frozen weights under an adapter"):
        trainer(tmp_path, lora_base_dtype="bfloat16")
    with pytest.raises(ModelError, match=r"dropout 0\.05 and updates need exact forwards; set lora_dropout=0"):
        with_peft(tmp_path, adapter_config(lora_dropout=0.05))
    whole = peft.get_peft_model(model(), adapter_config(lora_dropout=0.05))
    with pytest.raises(ModelError, match="set lora_dropout=0"):
        with_peft(tmp_path, None, whole)
    with pytest.raises(ModelError, match="has no layer 'wq' for LoRA"):
        trainer(tmp_path, lora_rank=4, lora_target_modules=["wq"])
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_another_adapter_is_not_resumed(tmp_path: Path):
    settings = {"steps": 4, "checkpoint_every": 2}

    def go_on(given: Any, *, resume: bool = True) -> None:
        with_peft(tmp_path, given, **settings).train(resume=resume)

    with stopped_at(4):
        go_on(adapter_config(), resume=False)
    with pytest.raises(RunError, match="contains a LoRA adapter; resume the run with its original peft_config"):
        go_on(None)
    with pytest.raises(ModelError, match="has r=4, the model's has 2"):
        go_on(adapter_config(r=2))
    go_on(adapter_config())


def test_a_base_in_bfloat16_stays_in_bfloat16(tmp_path: Path):
    model().save_pretrained(tmp_path / "base")
    run = trainer(tmp_path / "run", policy=tmp_path / "base", lora_base_dtype="bfloat16", **FRESH)
    run.train()
    dtypes = {p.requires_grad: p.dtype for p in run.model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


def saved(path: Path, **init: Any) -> Path:
    """Save a base on disk with its tokenizer, and return its path."""
    save_model(model(**init), tokenizer(), path)
    return path


def test_a_base_that_differs_from_the_one_in_memory_is_rejected_before_the_first_step(tmp_path: Path):
    start = load_model(saved(tmp_path / "base"))
    with torch.no_grad():
        start.model.layers[0].mlp.up_proj.weight.mul_(2)
    with pytest.raises(RoundTripError, match=r"up_proj\.weight differs; save the model in memory"):
        with_peft(tmp_path / "run", adapter_config(), start, checkpoint_verify=True)
    assert not (tmp_path / "run").exists()


def test_a_base_that_changed_on_the_disk_is_noticed(tmp_path: Path):
    base, run = saved(tmp_path / "base"), tmp_path / "run"
    settings: dict[str, Any] = {"policy": base, "lora_rank": 4, "steps": 4, "checkpoint_every": 2}
    with stopped_at(4):
        trainer(run, **settings).train()
    other = load_model(base)
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight[0, 0] += 1e-3
    save_model(other, tokenizer(), base)
    with pytest.raises(
        RunError, match="was started with another base model under its adapter; resume it with the same"
    ):
        trainer(run, **settings).train(resume=True)
    save_model(model(), tokenizer(), base)
    trainer(run, **settings).train(resume=True)


def test_a_run_from_a_relative_base_is_loaded_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    run = trainer(Path("run"), policy="base", **FRESH)
    checkpoint = tmp_path / run.train()["model"]
    monkeypatch.chdir("/")
    again = load_model(checkpoint)
    assert torch.equal(again.eval()(IDS).logits, run.model.eval()(IDS).logits)
    assert str(tmp_path) not in (checkpoint / "README.md").read_text()


def test_an_adapter_on_a_warm_start_names_the_warm_model(tmp_path: Path):
    settings: dict[str, Any] = {"warm_start_steps": 2, "steps": 1, "lora_rank": 4, "checkpoint_verify": True}
    checkpoint = Path(train_recipe(recipe(tmp_path / "run", **settings))["model"])
    named = json.loads((checkpoint / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(tmp_path / "run/warm-start/checkpoints/step-000002")
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(str(checkpoint), dtype=torch.float32)
    assert torch.equal(theirs.eval()(IDS).logits, load_model(checkpoint).eval()(IDS).logits)


def frozen(start: PreTrainedModel) -> Any:
    return start.requires_grad_(False)


def for_inference(start: PreTrainedModel) -> Any:
    return peft.get_peft_model(start, adapter_config(inference_mode=True))


def merged(start: PreTrainedModel) -> Any:
    whole = peft.get_peft_model(start, adapter_config())
    whole.merge_adapter()
    return whole


def switched_off(start: PreTrainedModel) -> Any:
    whole = peft.get_peft_model(start, adapter_config())
    whole.base_model.disable_adapter_layers()
    return whole


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (frozen, r"no weight of the model requires a gradient.* call requires_grad_\(\) on it"),
        (for_inference, "no weight of the model requires a gradient.* load an adapter with is_trainable=True"),
        (merged, r"the adapter is merged into the model's weights; call unmerge_adapter\(\)"),
        (switched_off, r"the adapter is disabled; call enable_adapter_layers\(\)"),
    ],
)
def test_a_model_that_cannot_be_trained_is_a_one_line_error_at_the_start(make: Any, message: str, tmp_path: Path):
    with pytest.raises(ModelError, match=message):
        trainer(tmp_path / "run", policy=make(model()))
    assert not (tmp_path / "run").exists()


def test_whole_modules_on_a_base_in_half_precision_are_rejected_on_a_cpu(tmp_path: Path):
    start = load_model(saved(tmp_path / "base"), dtype=torch.bfloat16)
    with pytest.raises(ModelError, match=r"which a half-precision base cannot compute with on a CPU; load the base in"):
        with_peft(tmp_path / "run", adapter_config(modules_to_save=["embed_tokens"]), start)


@pytest.mark.filterwarnings("ignore::gvpo.errors.GvpoWarning", "ignore:.*tie_word_embeddings")
@pytest.mark.parametrize(
    "changes",
    [
        {"trainable_token_indices": [5, 9]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"modules_to_save": ["lm_head"]},
        {"use_dora": True},
    ],
    ids=str,
)
def test_a_trained_checkpoint_loads_as_users_load_it(changes: dict[str, Any], tmp_path: Path):
    start = load_model(saved(tmp_path / "base", tie_word_embeddings=True))
    run = with_peft(tmp_path / "run", adapter_config(**changes), start, checkpoint_verify=True, learning_rate=1e-2)
    checkpoint = run.train()["model"]
    want = run.model.eval()(IDS).logits
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    assert torch.equal(theirs.eval()(IDS).logits, want)
    assert torch.equal(load_model(checkpoint).eval()(IDS).logits, want)
    assert not torch.equal(load_model(tmp_path / "base").eval()(IDS).logits, want)
