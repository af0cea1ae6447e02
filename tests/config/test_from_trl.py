"""Conversion of TRL's configurations: settings, and one notice about what has no counterpart."""

import enum
import subprocess
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import pytest

from gvpo.config import TrainConfig, resolve
from gvpo.config.from_trl import DEFAULTS, convert
from gvpo.config.plan import Given
from gvpo.errors import ConfigError, GvpoWarning


def settings(options: Any = None, **more: Any) -> dict[str, Any]:
    return convert({**(options or {}), **more})[0]


def lost(**options: Any) -> str:
    return "; ".join(convert(options)[1])


def test_values_that_mean_the_same_are_copied():
    found = settings(
        output_dir="out", learning_rate=2e-5, num_generations=4, max_completion_length=64, temperature=0.9, seed=7
    )
    assert found["run.dir"] == "out"
    assert found["train.learning_rate"] == 2e-5
    assert found["sampling.group_size"] == 4
    assert found["sampling.max_tokens"] == 64
    assert (found["sampling.temperature"], found["run.seed"]) == (0.9, 7)


@pytest.mark.parametrize(
    ("options", "prompts", "part"),
    [
        ({"per_device_train_batch_size": 8, "num_generations": 8}, 1, None),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8, "num_generations": 4}, 8, None),
        # 32 completions per update, 4 updates per rollout: 128 completions are 16 prompts of 8, and 4 per update
        ({"per_device_train_batch_size": 32, "steps_per_generation": 4, "num_generations": 8}, 16, 4),
        ({"per_device_train_batch_size": 16, "generation_batch_size": 64, "num_generations": 8}, 8, 2),
        # one update over two rollouts of the same policy is one rollout of both
        (
            {
                "per_device_train_batch_size": 8,
                "gradient_accumulation_steps": 4,
                "steps_per_generation": 2,
                "num_generations": 8,
            },
            4,
            None,
        ),
    ],
)
def test_batches_of_completions_become_prompts(options, prompts, part):
    found = settings(options)
    assert (found["train.prompts_per_step"], found.get("train.groups_per_update")) == (prompts, part)


def test_batches_count_all_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert settings(per_device_train_batch_size=8, num_generations=8)["train.prompts_per_step"] == 4


def test_a_part_of_a_group_per_update_is_reported():
    options = {"per_device_train_batch_size": 4, "generation_batch_size": 16, "num_generations": 8}
    assert settings(options)["train.groups_per_update"] == 1
    assert "an update has whole groups, here 1" in lost(**options)


def test_numbers_of_updates_become_numbers_of_steps():
    found = settings(
        max_steps=80,
        save_steps=20,
        eval_steps=8,
        eval_strategy="steps",
        per_device_train_batch_size=32,
        steps_per_generation=4,
        num_generations=8,
        num_iterations=2,
    )  # 4 updates per pass, 2 passes: 8 updates per step
    assert found["train.steps"] == 10
    assert (found["checkpoint.every"], found["eval.every"]) == (3, 1)
    assert found["train.passes"] == 2
    assert "train.epochs" not in found


def test_epochs_are_used_without_a_number_of_steps():
    assert settings(num_train_epochs=2)["train.epochs"] == 2
    assert settings(num_train_epochs=0.5)["train.epochs"] == 1
    assert "num_train_epochs=0.5 (train.epochs is a whole number" in lost(num_train_epochs=0.5)


@pytest.mark.parametrize(
    ("options", "schedule", "warmup"),
    [
        ({}, "linear", 0),
        ({"lr_scheduler_type": "cosine", "warmup_steps": 5}, "cosine", 5),
        ({"lr_scheduler_type": "constant", "warmup_steps": 5}, "constant", 0),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5}, "constant", 5),
        ({"warmup_steps": 0.1, "max_steps": 50}, "linear", 5),
    ],
)
def test_schedules(options, schedule, warmup):
    found = settings(options)
    assert (found["train.schedule"], found["train.warmup_updates"]) == (schedule, warmup)
    assert lost(**options) == ""


def test_schedules_that_gvpo_does_not_have_are_reported():
    assert "lr_scheduler_type='polynomial' (train.schedule is" in lost(lr_scheduler_type="polynomial")
    assert "warmup_steps=0.1 (a fraction needs max_steps" in lost(warmup_steps=0.1)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, {"name": "dapo", "clip_low": 0.2, "clip_high": 0.2, "scale_rewards": True}),
        ({"loss_type": "grpo", "epsilon": 0.1}, {"name": "grpo", "clip_low": 0.1, "clip_high": 0.1}),
        ({"loss_type": "dr_grpo", "scale_rewards": "none"}, {"name": "dr_grpo", "scale_rewards": False}),
        ({"loss_type": "bnpo", "epsilon_high": 0.28}, {"name": "dapo", "clip_low": 0.2, "clip_high": 0.28}),
        ({"importance_sampling_level": "sequence", "epsilon": 3e-4}, {"name": "gspo", "clip_low": 3e-4}),
        ({"loss_type": "cispo", "epsilon_high": 5.0}, {"name": "cispo", "clip_high": 4.0, "scale_rewards": True}),
        ({"beta": 0.04}, {"kl_coef": 0.04, "reference": "initial"}),
        (
            {"beta": 0.04, "sync_ref_model": True, "ref_model_sync_steps": 64, "ref_model_mixup_alpha": 1.0},
            {"kl_coef": 0.04, "reference": "every:64"},
        ),
    ],
)
def test_objectives_of_grpo(options, wanted):
    found = settings(options)
    assert {key: found[f"objective.{key}"] for key in wanted} == wanted
    assert lost(**options) == ""


def test_weights_that_vllms_samples_have_per_token_become_a_cap():
    options = {"use_vllm": True, "vllm_importance_sampling_mode": "token_truncate"}
    assert settings(options)["objective.is_cap"] == 3.0
    assert settings(options, vllm_importance_sampling_clip_max=2.0)["objective.is_cap"] == 2.0
    assert settings(options, vllm_importance_sampling_cap=5.0)["objective.is_cap"] == 5.0
    assert lost(**options) == ""
    for other in (
        {"use_vllm": False},
        {"vllm_importance_sampling_correction": False},
        {"vllm_importance_sampling_mode": "sequence_mask"},
        {"importance_sampling_level": "sequence"},
    ):
        assert "objective.is_cap" not in settings({**options, **other})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"vllm_importance_sampling_correction": False}, "correction=False (rows of an engine always have weights"),
        ({}, "mode='sequence_mask' (objective.is_cap truncates the weight of each token)"),
        ({"importance_sampling_level": "sequence"}, "mode='sequence_mask' (gspo has no weights for the engine)"),
    ],
)
def test_other_corrections_for_vllm_are_reported(options, said):
    assert said in lost(use_vllm=True, **options)
    assert lost(**{key: value for key, value in options.items() if key == "importance_sampling_level"}) == ""


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, {"engine": "vllm", "engine_options": {"gpu_memory_utilization": 0.3}}),
        (
            {
                "vllm_gpu_memory_utilization": 0.5,
                "vllm_max_model_length": 4096,
                "vllm_enable_sleep_mode": True,
            },
            {
                "engine": "vllm",
                "engine_options": {
                    "gpu_memory_utilization": 0.5,
                    "max_model_len": 4096,
                },
                "engine_sleep": True,
            },
        ),
        ({"vllm_mode": "server"}, {"engine": "server", "server_urls": ["http://localhost:8000"]}),
        (
            {"vllm_mode": "server", "vllm_server_host": "node1", "vllm_server_port": 9000},
            {"engine": "server", "server_urls": ["http://node1:9000"]},
        ),
        (
            {"vllm_mode": "server", "vllm_server_base_url": "http://a:1", "vllm_server_host": "b"},
            {"engine": "server", "server_urls": ["http://a:1"]},
        ),
    ],
)
def test_vllm_becomes_an_engine(options, wanted):
    given = {"use_vllm": True, "vllm_importance_sampling_mode": "token_truncate", **options}
    found = {key: value for key, value in settings(given).items() if key.startswith("sampling.")}
    own = {key.removeprefix("sampling."): value for key, value in found.items()}
    assert {key: own[key] for key in own if key.startswith(("engine", "server"))} == wanted
    said = lost(**given)
    assert said.startswith("vllm_mode='server' (start `vllm serve`") if "vllm_mode" in options else said == ""
    without = settings(options)
    assert not [key for key in without if key.startswith(("sampling.engine", "sampling.server"))]


def test_without_a_kl_penalty_there_is_no_reference():
    assert not {"objective.kl_coef", "objective.reference"} & settings().keys()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss_type": "sapo"}, "loss_type='sapo' (objective.name has no such loss"),
        ({"loss_type": "cispo"}, "epsilon_high=None (cispo's largest weight is 1 + objective.clip_high"),
        ({"loss_type": "cispo", "epsilon_high": 5.0, "beta": 0.1}, "beta=0.1 (cispo has no KL penalty)"),
        ({"vllm_importance_sampling_clip_min": 0.5}, "vllm_importance_sampling_clip_min=0.5 (objective.is_cap has no"),
        ({"scale_rewards": "batch"}, "scale_rewards='batch'"),
        ({"beta": 0.1, "importance_sampling_level": "sequence"}, "beta=0.1 (gspo has no KL penalty)"),
        ({"beta": 0.1, "sync_ref_model": True}, "ref_model_mixup_alpha=0.6 ("),
        ({"use_vllm": True, "vllm_tensor_parallel_size": 2}, "tensor_parallel_size=2 (start `vllm serve` for several"),
        ({"save_strategy": "epoch"}, "save_strategy='epoch'"),
        ({"eval_strategy": "epoch"}, "eval_strategy='epoch'"),
        ({"report_to": ["tensorboard", "mlflow"]}, "report_to=['tensorboard', 'mlflow']"),
        ({"push_to_hub": True}, "push_to_hub=True (set checkpoint.push_to_hub=owner/name)"),
        ({"fp16": True}, "fp16=True (float16 is not available"),
        ({"deepspeed": "zero3.json"}, "deepspeed='zero3.json' (use 'train.sharding'"),
    ],
)
def test_values_without_a_counterpart_are_reported(options, said):
    assert said in lost(**options)


def test_options_that_are_not_needed_are_not_reported():
    assert lost(logging_steps=1, remove_unused_columns=True, dataloader_num_workers=4, log_completions=False) == ""


@pytest.mark.parametrize(
    ("options", "trackers"),
    [({}, []), ({"report_to": "tensorboard"}, ["tensorboard"]), ({"report_to": "all"}, ["tensorboard", "wandb"])],
)
def test_trackers(options, trackers):
    assert settings(options)["run.trackers"] == trackers


def test_saving_and_the_hub():
    assert settings(save_strategy="no")["checkpoint.every"] == 0
    assert settings(save_total_limit=3)["checkpoint.keep"] == 3
    pushed = settings(push_to_hub=True, hub_model_id="me/mine")
    assert (pushed["checkpoint.push_to_hub"], pushed["checkpoint.push_private"]) == ("me/mine", True)
    assert not settings(push_to_hub=True, hub_model_id="me/mine", hub_private_repo=False)["checkpoint.push_private"]
    assert "checkpoint.push_to_hub" not in settings(hub_model_id="me/mine")


def test_the_other_configurations():
    assert convert({}, "DPOConfig")[0]["objective.name"] == "dpo"
    assert convert({"beta": 0.5}, "DPOConfig")[0]["objective.beta"] == 0.5
    assert (
        convert({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}, "SFTConfig")[0][
            "train.prompts_per_step"
        ]
        == 16
    )
    rloo = convert({}, "RLOOConfig")[0]
    assert (rloo["objective.name"], rloo["objective.kl_in_reward"]) == ("rloo", 0.05)
    assert "loss_type='ipo'" in convert({"loss_type": "ipo"}, "DPOConfig")[1][0]


def test_rows_that_are_too_long_are_treated_as_in_trl():
    assert "train.overlong_completions" not in settings()
    assert settings(mask_truncated_completions=True)["train.overlong_completions"] == "mask"
    found, missing = convert({"max_length": 256, "truncation_mode": "keep_end"}, "DPOConfig")
    assert (found["data.max_row_tokens"], found["data.overlong_answers"]) == (256, "cut")
    assert missing == ["truncation_mode='keep_end' (data.overlong_answers=cut removes the end)"]
    assert "data.overlong_answers" not in convert({"max_length": None}, "SFTConfig")[0]


def test_the_file_of_the_command_line_of_trl():
    file = {
        "model_name_or_path": "m",
        "dataset_name": "d",
        "use_peft": True,
        "lora_r": 8,
        "lora_target_modules": "q_proj",
    }
    found, missing = convert({**file, "attn_implementation": "eager", "reward_funcs": ["accuracy_reward"]})
    assert (found["model.path"], found["data.train"], found["model.attention"]) == ("m", "d", "eager")
    assert (found["lora.rank"], found["lora.alpha"], found["lora.target_modules"]) == (8, 32, ["q_proj"])
    assert missing == [
        "reward_funcs=['accuracy_reward'] (use 'rewards.funcs': names of gvpo, module:function or file.py:function)"
    ]
    assert convert({**file, "lora_target_modules": "all-linear"})[0]["lora.target_modules"] == []
    assert "lora.rank" not in convert({**file, "use_peft": False})[0]
    assert TrainConfig.from_trl(file).lora_rank == 8


def test_one_notice_lists_what_has_no_counterpart():
    with pytest.warns(GvpoWarning) as caught:
        config = TrainConfig.from_trl({"deepspeed": "z.json", "min_p": 0.1, "learning_rate": 3e-5})
    assert len(caught) == 1
    said = str(caught[0].message)
    assert said.startswith("options of TRL without a counterpart: deepspeed='z.json' (")
    assert "; min_p=0.1 (temperature, top_p" in said  # settings have their Python names
    assert config.learning_rate == 3e-5


def test_changes_override_the_conversion():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = TrainConfig.from_trl({"beta": 0.04}, objective="gvpo", beta=0.1, reference="initial", steps=5)
    assert (config.objective, config.beta, config.kl_coef, config.clip_low) == ("gvpo", 0.1, None, None)
    assert config.steps == 5


def test_values_that_equal_the_defaults_of_gvpo_are_not_set():
    assert not {"temperature", "adam_beta1", "max_grad_norm"} & TrainConfig.from_trl({}).model_fields_set


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"max_stpes": 3}, "GRPOConfig", "TRL has no option 'max_stpes'; did you mean 'max_steps'"),
        ({}, "PPOConfig", "kind='PPOConfig' is not a configuration of TRL; choose one of GRPOConfig"),
        (3, "GRPOConfig", "cannot convert an int; pass GRPOConfig, "),
        ({"learning_rate": -1}, "GRPOConfig", "train.learning_rate=-1"),
    ],
)
def test_bad_options(options, kind, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_trl(options, kind=kind)


class Schedule(enum.Enum):
    COSINE = "cosine"


@dataclass
class GRPOConfig:
    """Stands for TRL's class, so that this test runs without TRL."""

    learning_rate: float = 1e-6
    max_steps: int = -1
    num_train_epochs: float = 3.0
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    num_generations: int = 8
    num_iterations: int = 1
    generation_batch_size: int | None = None
    lr_scheduler_type: Any = "linear"
    warmup_steps: float = 0
    beta: float = 0.0
    epsilon: float = 0.2
    loss_type: str = "dapo"
    bf16: bool | None = None
    use_cpu: bool = False
    accelerator_config: Any = None
    mine: int = 3

    def __post_init__(self):
        if self.bf16 is None and not self.use_cpu:
            raise ValueError("no bf16 on this CPU")
        self.accelerator_config = {"split_batches": False}
        self.generation_batch_size = self.generation_batch_size or self.per_device_train_batch_size


class MyConfig(GRPOConfig):
    """A user's own class."""


@pytest.mark.parametrize("kind", [GRPOConfig, MyConfig])
def test_objects_are_read_through_their_fields(kind):
    found, missing = convert(kind(max_steps=6, lr_scheduler_type=Schedule.COSINE, bf16=False))
    assert (found["train.steps"], found["train.schedule"]) == (6, "cosine")
    assert found["model.compute_dtype"] == "float32"
    assert missing == []  # values that TRL computes count as defaults
    assert convert(kind(mine=4, bf16=False))[1] == ["mine=4 (gvpo does not know it)"]


@pytest.mark.parametrize("kind", DEFAULTS)
def test_configurations_of_trl(kind):
    trl = pytest.importorskip("trl")
    given = getattr(trl, kind)(bf16=False, learning_rate=3e-5, max_steps=4)
    assert TrainConfig.from_trl(given) == TrainConfig.from_trl(
        {"bf16": False, "learning_rate": 3e-5, "max_steps": 4}, kind=kind
    )


@pytest.mark.parametrize("kind", DEFAULTS)
def test_the_defaults_are_those_of_trl(kind):
    trl = pytest.importorskip("trl")
    own = getattr(trl, kind)(use_cpu=True)
    derived = {"report_to": [], "generation_batch_size": 8, "steps_per_generation": 1}
    wanted = {**DEFAULTS[kind], **{name: value for name, value in derived.items() if name in DEFAULTS[kind]}}
    assert {name: getattr(own, name) for name in wanted} == wanted


@pytest.mark.parametrize("kind", ["GRPOConfig", "RLOOConfig"])
def test_a_converted_run_can_start(kind):
    config = TrainConfig.from_trl({"max_steps": 2, "beta": 0.1}, kind=kind)
    assert resolve(config, Given(train="problems", rewards=True, model=True)).samples


def test_nothing_of_trl_or_torch_is_imported():
    code = (
        "import sys; from gvpo import TrainConfig; TrainConfig.from_trl({'max_steps': 3}); "
        "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
