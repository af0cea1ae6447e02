"""Option names of TRL, transformers, PEFT and verl are answered with the setting that corresponds to them."""

import dataclasses
import re
from inspect import signature

import pytest

from gvpo import Trainer
from gvpo.config import FIELDS, TrainConfig
from gvpo.config.aliases import ANSWERS, ARGUMENTS, TABLE, answer_for, unknown_argument
from gvpo.config.recipe import flatten, parse_overrides
from gvpo.errors import ConfigError

MEANT = {
    **dict.fromkeys(("max_steps", "total_training_steps"), "train.steps"),
    **dict.fromkeys(("num_train_epochs", "total_epochs"), "train.epochs"),
    **dict.fromkeys(
        ("per_device_train_batch_size", "gradient_accumulation_steps", "batch_size"), "train.prompts_per_step"
    ),
    **dict.fromkeys(("steps_per_generation", "ppo_mini_batch_size"), "train.groups_per_update"),
    **dict.fromkeys(("ppo_micro_batch_size_per_gpu",), "train.tokens_per_microbatch"),
    **dict.fromkeys(("num_iterations", "ppo_epochs"), "train.passes"),
    **dict.fromkeys(("learning_rate", "lr"), "train.learning_rate"),
    **dict.fromkeys(("warmup_steps", "warmup_ratio"), "train.warmup_updates"),
    **dict.fromkeys(("lr_scheduler_type", "train.lr_scheduler_type"), "train.schedule"),
    **dict.fromkeys(("weight_decay",), "train.weight_decay"),
    **dict.fromkeys(("adam_epsilon",), "train.adam_eps"),
    **dict.fromkeys(("max_grad_norm", "grad_clip"), "train.max_grad_norm"),
    **dict.fromkeys(("num_generations", "actor_rollout_ref.rollout.n"), "sampling.group_size"),
    **dict.fromkeys(("max_completion_length", "max_new_tokens", "max_response_length"), "sampling.max_tokens"),
    **dict.fromkeys(("temperature",), "sampling.temperature"),
    **dict.fromkeys(("chat_template_kwargs",), "data.template_args"),
    **dict.fromkeys(("num_generations_eval",), "eval.samples"),
    **dict.fromkeys(("beta",), "objective.beta"),
    **dict.fromkeys(("kl_loss_coef",), "objective.kl_coef"),
    **dict.fromkeys(("loss_type", "algorithm.adv_estimator", "importance_sampling_level"), "objective.name"),
    **dict.fromkeys(("epsilon", "clip_ratio"), "objective.clip_low"),
    **dict.fromkeys(("epsilon_high", "clip_ratio_high"), "objective.clip_high"),
    **dict.fromkeys(("scale_rewards", "norm_adv_by_std_in_grpo"), "objective.scale_rewards"),
    **dict.fromkeys(("loss_agg_mode",), "objective.reduction"),
    **dict.fromkeys(("sync_ref_model", "ref_model_sync_steps"), "objective.reference"),
    **dict.fromkeys(("reward_weights",), "rewards.weights"),
    **dict.fromkeys(("model_name_or_path",), "model.path"),
    **dict.fromkeys(("bf16", "fp16", "torch_dtype"), "model.compute_dtype"),
    **dict.fromkeys(("attn_implementation",), "model.attention"),
    **dict.fromkeys(("gradient_checkpointing",), "model.gradient_checkpointing"),
    **dict.fromkeys(("r", "lora_r", "use_peft"), "lora.rank"),
    **dict.fromkeys(("lora_alpha",), "lora.alpha"),
    **dict.fromkeys(("target_modules", "lora_target_modules"), "lora.target_modules"),
    **dict.fromkeys(("load_in_4bit",), "lora.quantization"),
    **dict.fromkeys(("dataset_name", "train_files"), "data.train"),
    **dict.fromkeys(("seed",), "run.seed"),
    **dict.fromkeys(("eval_steps", "eval_strategy", "trainer.test_freq"), "eval.every"),
    **dict.fromkeys(("report_to", "trainer.logger"), "run.trackers"),
    **dict.fromkeys(("output_dir", "run_name"), "run.dir"),
    **dict.fromkeys(("save_steps", "save_strategy", "trainer.save_freq"), "checkpoint.every"),
    **dict.fromkeys(("save_total_limit",), "checkpoint.keep"),
    **dict.fromkeys(("hub_model_id",), "checkpoint.push_to_hub"),
    **dict.fromkeys(("max_length", "max_seq_length"), "data.max_row_tokens"),
    **dict.fromkeys(("max_prompt_length",), "data.overlong_prompts"),
    **dict.fromkeys(("mask_truncated_completions",), "train.overlong_completions"),
    **dict.fromkeys(("deepspeed", "fsdp"), "train.sharding"),
}
"""Names that people try, and the setting that each stands for."""

NEEDLESS = ["logging_steps", "remove_unused_columns", "packing", "eval_on_start", "dataloader_num_workers"]
WITHOUT = {
    "use_transformers_paged": "its own cache",
    "optim": "AdamW",
    "min_p": "top_p",
    "overwrite_output_dir": "another run.dir",
    "resume_from_checkpoint": "--resume",
    "trust_remote_code": "load the model with transformers",
    "label_smoothing": "sigmoid",
    "use_rslora": "peft_config",
    "entropy_coef": "entropy",
    "f_divergence_type": "sigmoid",
}
"""Names without a setting, and a part of the answer."""


def refused(call, *arguments, **keywords):
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_answer_names_settings_that_exist():
    sections = "|".join({dotted.partition(".")[0] for dotted in FIELDS})
    for name, answer in ANSWERS.items():
        named = re.findall(rf"\b(?:{sections})\.[a-z_0-9]+", f"{answer.key} {answer.hint}")
        assert [key for key in named if key not in FIELDS] == [], name
        assert answer.key or answer.hint, name
        assert not (answer.key and answer.needless), name


def test_no_name_has_two_answers():
    names = [name for area in TABLE.values() for group in area for name in group.split()]
    assert sorted(names) == sorted(ANSWERS)


@pytest.mark.parametrize(("name", "key"), MEANT.items())
def test_an_option_is_answered_with_its_setting_everywhere(name, key):
    assert f"unknown setting {name!r}; use {key!r}" in refused(parse_overrides, [f"{name}=1"])
    last = name.rpartition(".")[2]
    assert f"use {key!r}" in refused(flatten, {"eval": {last: 1}})
    if last not in TrainConfig.model_fields:
        assert f"use {FIELDS[key]!r}" in refused(TrainConfig, **{last: 1})


def test_at_least_as_many_names_are_checked_as_people_were_seen_to_try():
    assert len(MEANT) + len(NEEDLESS) + len(WITHOUT) >= 57


@pytest.mark.parametrize("name", NEEDLESS)
def test_an_option_that_is_not_needed_says_so(name):
    assert f"unknown setting {name!r}; it is not needed: " in refused(parse_overrides, [f"{name}=1"])


@pytest.mark.parametrize(("name", "hint"), WITHOUT.items())
def test_an_option_without_a_setting_says_what_to_do(name, hint):
    assert re.search(f"unknown setting {name!r}; gvpo has no such setting: .*{hint}", refused(TrainConfig, **{name: 1}))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("beta", "GRPO's beta, a KL penalty, is objective.kl_coef"),
        ("per_device_train_batch_size", "TRL counts completions, so divide by num_generations"),
        ("max_steps", "a step is one rollout with all its updates"),
        ("warmup_ratio", "a number of updates, not a fraction"),
        ("fp16", "float16 is not available"),
    ],
)
def test_a_difference_in_meaning_is_explained(name, hint):
    assert hint in refused(parse_overrides, [f"{name}=1"])


def test_settings_have_their_python_names_in_python():
    assert "is kl_coef" not in refused(parse_overrides, ["beta=1"])
    assert "use 'clip_low': set clip_low and clip_high" in refused(TrainConfig, epsilon=0.2)


def test_names_are_found_in_any_spelling():
    assert answer_for("--max-steps") is answer_for("trainer.max_steps") is answer_for("MAX_STEPS") is not None
    assert answer_for("no_such_option") is None


def test_a_python_name_in_a_recipe_leads_to_its_key():
    assert "'checkpoint_every'; did you mean 'checkpoint.every'?" in refused(parse_overrides, ["checkpoint_every=5"])
    assert "'train_data'; did you mean 'data.train'?" in refused(parse_overrides, ["train_data=a"])


@pytest.mark.parametrize("kind", ["GRPOConfig", "RLOOConfig", "DPOConfig", "SFTConfig"])
def test_every_option_of_trl_is_answered(kind):
    trl = pytest.importorskip("trl")
    assert [field.name for field in dataclasses.fields(getattr(trl, kind)) if field.name not in ANSWERS] == []


def test_every_argument_of_trls_trainers_is_accepted_or_answered():
    trl = pytest.importorskip("trl")
    own = signature(Trainer).parameters
    for kind in (trl.GRPOTrainer, trl.DPOTrainer, trl.SFTTrainer):
        assert [name for name in signature(kind).parameters if name not in own and name not in ARGUMENTS] == []


def test_arguments_that_the_trainer_has_are_not_answered():
    assert not signature(Trainer).parameters.keys() & ARGUMENTS.keys()


def test_arguments_of_other_trainers():
    assert unknown_argument("ref_model", ["model"]).startswith(
        "gvpo.Trainer has no argument 'ref_model': set reference="
    )
    assert "did you mean 'reward_funcs'?" in unknown_argument("reward_func", ["model", "reward_funcs"])
    assert "pass args=TrainConfig(...) and use 'run.dir'" in unknown_argument("output_dir", ["model"])
