"""Option names of TRL, transformers, PEFT and verl, with the setting of gvpo that each corresponds to.

The message about an unknown setting, `TrainConfig.from_trl` and docs/reference/trl-options.md read this table.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from gvpo.nearest import did_you_mean


@dataclass(frozen=True)
class Answer:
    """The setting of gvpo for an option of another library, or the reason why there is none.

    Args:
        key: Setting in the spelling of recipes; "" if none corresponds to the option.
        hint: Difference in meaning, or what to do without a setting.
        same: True if the setting accepts the option's value unchanged.
        needless: True if gvpo does this always, or has no use for it.
    """

    key: str = ""
    hint: str = ""
    same: bool = False
    needless: bool = False

    def sentence(self) -> str:
        """Return the end of a message about the option."""
        if self.key:
            return f"use {self.key!r}" + (f": {self.hint}" if self.hint else "")
        return f"{'it is not needed' if self.needless else 'gvpo has no such setting'}: {self.hint}"


def _same(key: str, hint: str = "") -> Answer:
    return Answer(key, hint, same=True)


def _needless(hint: str) -> Answer:
    return Answer(hint=hint, needless=True)


def _none(hint: str) -> Answer:
    return Answer(hint=hint)


_SAMPLER = _none("the engine transformers has its own cache; sampling.tokens_per_batch bounds its memory")
_ENGINE_OPTIONS = Answer(
    "sampling.engine_options", "arguments of vllm.LLM on one device, such as {gpu_memory_utilization = 0.4}"
)
_DISTRIBUTION = "sampling.temperature, top_p and top_k change the distribution"
_MICROBATCH = Answer(
    "train.tokens_per_microbatch",
    "it counts tokens per forward, bounds memory and never changes the result; train.groups_per_update is the "
    "optimizer batch",
)
_PROMPTS = "it counts prompts, over all processes"
_SLICE = _none("give data.train and data.eval files or Hub IDs, or pass train_dataset and eval_dataset to gvpo.Trainer")
_ENTROPY = _none("no objective has an entropy bonus; the metric policy/entropy shows the entropy")
_DPO_ONLY = _none(
    "objective.name=dpo is the sigmoid loss of the DPO paper; objective.name=epa compares several answers"
)
_CLIPS = "set objective.clip_low and objective.clip_high, which are two settings"
_MASKED_CLIP = _none("use objective.clip_low and objective.clip_high, or objective.name=gspo")
_PRECISION = Answer("model.compute_dtype", "bfloat16 or float32; weights and optimizer state are always float32")
_RESUME = _none("resume with `gvpo train RECIPE --resume`, or Trainer.train(resume=True)")
_HUB = _none("the final model is pushed once, with checkpoint.push_to_hub=owner/name")
_TORCHRUN = _none("start the processes with torchrun or accelerate launch (`gvpo docs scaling`)")
_LORA_KIND = _none("pass a peft.LoraConfig to gvpo.Trainer(peft_config=...)")
_LOGGED = _needless("every step is printed and written to metrics.jsonl")
_ROLLOUTS = Answer("train.rollouts_every", "completions are written to files of the run, and the report shows them")
_LOADER = _needless("rows are read once and prepared before training")
_EXACT = _needless("dropout is always off, because updates need exact forwards")
_FLAG = _needless("give held-out data, and they are evaluated before and after training, and every eval.every steps")
_BEST = _needless("the best checkpoint by evaluation is kept in addition to the latest ones")
_REWARD_MODEL = Answer(
    "rewards.funcs", 'use ["reward_model"], with rewards.options.reward_model.path = "..." (`gvpo docs rewards`)'
)
TABLE: dict[str, dict[str, Answer]] = {
    "Steps and batches": {
        "max_steps total_training_steps num_steps": Answer(
            "train.steps", "a step is one rollout with all its updates; TRL counts updates"
        ),
        "num_train_epochs total_epochs num_epochs": Answer("train.epochs", "whole passes only"),
        "per_device_train_batch_size generation_batch_size": Answer(
            "train.prompts_per_step", f"{_PROMPTS}; TRL counts completions, so divide by num_generations"
        ),
        "train_batch_size batch_size rollout_batch_size": Answer("train.prompts_per_step", _PROMPTS),
        "steps_per_generation ppo_mini_batch_size mini_batch_size": Answer(
            "train.groups_per_update", "it counts the prompts of one optimizer update"
        ),
        "gradient_accumulation_steps": Answer(
            "train.prompts_per_step",
            "it is the whole optimizer batch, in prompts; train.tokens_per_microbatch cuts it into forwards",
        ),
        "ppo_micro_batch_size ppo_micro_batch_size_per_gpu log_prob_micro_batch_size_per_gpu": _MICROBATCH,
        "micro_batch_size ppo_max_token_len_per_gpu log_prob_max_token_len_per_gpu": _MICROBATCH,
        "auto_find_batch_size use_dynamic_bsz": _needless(
            "micro-batches are packed by train.tokens_per_microbatch, which is halved when memory runs out"
        ),
        "num_iterations ppo_epochs": _same("train.passes"),
        "per_device_eval_batch_size eval_accumulation_steps eval_do_concat_batches": _needless(
            "sampling.tokens_per_batch bounds the memory of sampling"
        ),
    },
    "Optimizer": {
        "learning_rate lr": _same("train.learning_rate"),
        "lr_scheduler_type lr_scheduler": Answer("train.schedule", "constant, linear or cosine"),
        "lr_scheduler_kwargs": _none("train.schedule has no options; linear and cosine end at 0"),
        "warmup_steps warmup_ratio lr_warmup_steps lr_warmup_steps_ratio": Answer(
            "train.warmup_updates", "it is a number of updates, not a fraction"
        ),
        "optim optim_args optim_target_modules optimizer": _none("the optimizer is AdamW in float32"),
        "weight_decay": _same("train.weight_decay"),
        "adam_beta1": _same("train.adam_beta1"),
        "adam_beta2": _same("train.adam_beta2"),
        "adam_epsilon": _same("train.adam_eps"),
        "max_grad_norm grad_clip clip_grad": Answer("train.max_grad_norm", "above 0; a large number clips nothing"),
        "average_tokens_across_devices": _needless("the loss is that of the whole batch on any number of processes"),
        "label_smoothing_factor neftune_noise_alpha": _none("objectives train on the answers as they are"),
    },
    "Sampling": {
        "num_generations n num_return_sequences": _same("sampling.group_size"),
        "max_completion_length max_new_tokens response_length max_response_length": _same("sampling.max_tokens"),
        "temperature": _same("sampling.temperature"),
        "top_p": _same("sampling.top_p"),
        "top_k": _same("sampling.top_k"),
        "min_p repetition_penalty generation_kwargs generation_config": _none(_DISTRIBUTION),
        "do_sample": _needless("training always samples; eval.greedy adds a greedy evaluation"),
        "cache_implementation use_cache": _needless("sampling always uses gvpo's own cache of keys and values"),
        "chat_template_kwargs apply_chat_template_kwargs": _same("data.template_args"),
        "num_generations_eval": _same("eval.samples"),
        "use_vllm vllm_mode": Answer(
            "sampling.engine",
            "vllm in the trainer's process (colocate), or server for vLLM servers (`gvpo docs engines`)",
        ),
        "vllm_server_base_url vllm_server_host vllm_server_port": Answer(
            "sampling.server_urls", "a list of base URLs of servers that `vllm serve` started, not `trl vllm-serve`"
        ),
        "vllm_server_timeout": Answer(
            "sampling.server_deadline", "seconds per completion; TRL waits that long for the server to start"
        ),
        "vllm_group_port": _needless("the transfer of weights to servers needs no port in the settings"),
        "vllm_gpu_memory_utilization vllm_max_model_length vllm_model_impl": _ENGINE_OPTIONS,
        "gpu_memory_utilization max_model_len enforce_eager": _ENGINE_OPTIONS,
        "vllm_tensor_parallel_size tensor_model_parallel_size": Answer(
            "sampling.server_urls", "start servers with `vllm serve --tensor-parallel-size N` for several devices"
        ),
        "vllm_enable_sleep_mode free_cache_engine": Answer(
            "sampling.engine_sleep", "the engine vllm frees its memory while the policy is updated"
        ),
        "use_transformers_paged use_transformers_continuous_batching": _SAMPLER,
        "transformers_continuous_batching_config ds3_gather_for_generation": _SAMPLER,
        "vllm_structured_outputs_regex vllm_guided_decoding_regex": Answer(
            "sampling.allow", "see `gvpo docs decoding`"
        ),
        "vllm_importance_sampling_cap vllm_importance_sampling_clip_max": Answer(
            "objective.is_cap", "largest truncated weight of a token"
        ),
        "rollout_is_threshold": Answer("objective.is_cap", "largest truncated weight of a token"),
        "vllm_importance_sampling_correction vllm_importance_sampling_mode rollout_is": Answer(
            "objective.is_cap",
            "it truncates the weight of each token; completions of another engine always have weights",
        ),
        "vllm_importance_sampling_clip_min": _none("objective.is_cap has no lower bound"),
        "max_tool_calling_iterations tools": _none("set environment_max_turns and environment_tools in args"),
    },
    "Objective": {
        "beta": Answer(
            "objective.beta",
            "GVPO's and DPO's pull to the reference; GRPO's beta, a KL penalty, is objective.kl_coef",
        ),
        "kl_loss_coef kl_penalty_coef": Answer("objective.kl_coef", "weight of the KL penalty in the loss"),
        "use_kl_loss": Answer("objective.kl_coef", "a weight above 0 adds the KL penalty"),
        "use_kl_in_reward kl_ctrl init_kl_coef": Answer(
            "objective.kl_in_reward", "a weight above 0 subtracts the KL penalty from the rewards"
        ),
        "kl_loss_type kl_penalty use_bias_correction_kl": _none("objective.kl_coef weighs the k3 estimate of the KL"),
        "loss_type adv_estimator": Answer(
            "objective.name", "for example gvpo, grpo, dr_grpo, dapo, cispo, rloo, dpo or sft"
        ),
        "epsilon cliprange clip_ratio clip_range": Answer("objective.clip_low", _CLIPS),
        "clip_ratio_low": _same("objective.clip_low"),
        "epsilon_high clip_ratio_high": _same("objective.clip_high"),
        "delta clip_ratio_c": _none("ratios are clipped by objective.clip_low and objective.clip_high only"),
        "importance_sampling_level": Answer("objective.name", "one ratio per sequence is gspo"),
        "scale_rewards norm_adv_by_std_in_grpo": Answer(
            "objective.scale_rewards", "true or false; the standard deviation is that of the group"
        ),
        "loss_agg_mode": Answer("objective.reduction", "sequence_mean, token_mean or constant"),
        "sync_ref_model ref_model_sync_steps": Answer("objective.reference", "every:N copies the policy every N steps"),
        "ref_model_mixup_alpha": _none("objective.reference=every:N copies the policy, which is a mix-up of 1"),
        "ref_model": Answer("objective.reference", "initial is the model at the start of the run"),
        "top_entropy_quantile entropy_coef entropy_coeff use_adaptive_entropy entropy_target": _ENTROPY,
        "entropy_coef_min entropy_coef_max entropy_coef_delta": _ENTROPY,
        "sapo_temperature_neg sapo_temperature_pos off_policy_mask_threshold": _MASKED_CLIP,
        "vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg": _MASKED_CLIP,
        "gamma lam cliprange_value vf_coef": _none(
            "there is no value function; groups of completions are the baseline"
        ),
        "f_divergence_type f_alpha_divergence_coef label_smoothing ld_alpha loss_weights": _DPO_ONLY,
        "use_weighting discopop_tau reference_free rpo_alpha simpo_gamma cpo_alpha": _DPO_ONLY,
        "precompute_ref_log_probs precompute_ref_batch_size": _needless(
            "the log-probs of a fixed reference are computed once, before training"
        ),
    },
    "Rewards": {
        "reward_weights": _same("rewards.weights"),
        "reward_funcs": Answer("rewards.funcs", "names of gvpo, module:function or file.py:function"),
        "custom_reward_function": Answer("rewards.funcs", '["file.py:function"]'),
        "reward_model_path reward_model_name_or_path reward_model": _REWARD_MODEL,
        "multi_objective_aggregation": _none("rewards are added with rewards.weights before advantages are computed"),
        "mask_truncated_completions": Answer("train.overlong_completions", "keep, mask or drop"),
        "filter_groups": Answer(
            "rollout.dead_groups", "replace samples other prompts in place of groups without a difference"
        ),
        "normalize_advantages": _none(
            "advantages are not standardized over the whole batch; see objective.scale_rewards"
        ),
        "reward_clip_range": _none("clip the value in your reward function"),
        "overlong_buffer missing_eos_penalty": _none("use the reward length_penalty, or train.overlong_completions"),
    },
    "Model": {
        "model_name_or_path model_name base_model model_id": _same("model.path"),
        "model_init_kwargs trust_remote_code model_revision config_name low_cpu_mem_usage": _none(
            "load the model with transformers and pass it to gvpo.Trainer"
        ),
        "tokenizer_name tokenizer_name_or_path": _same("model.tokenizer"),
        "attn_implementation": _same("model.attention"),
        "use_flash_attention_2": Answer("model.attention", "flash_attention_2"),
        "bf16 dtype torch_dtype mixed_precision": _PRECISION,
        "fp16": Answer("model.compute_dtype", "float16 is not available; bfloat16 needs no loss scaling"),
        "bf16_full_eval fp16_full_eval cast_lm_head_to_fp32": _needless(
            "log-probs are float32 for every model.compute_dtype"
        ),
        "tf32": _none("set torch.backends.cuda.matmul.allow_tf32 in your script"),
        "gradient_checkpointing": _same("model.gradient_checkpointing"),
        "enable_gradient_checkpointing": _same("model.gradient_checkpointing"),
        "gradient_checkpointing_kwargs": _needless("activations are recomputed per layer"),
        "activation_offloading": _none("model.gradient_checkpointing and train.tokens_per_microbatch bound memory"),
        "torch_compile torch_compile_backend torch_compile_mode": _none("models run eagerly"),
        "use_liger_kernel liger_kernel_config use_liger_loss use_fused_kernels": _needless(
            "log-probs are computed in chunks without a table of all logits"
        ),
        "padding_free use_remove_padding pad_to_multiple_of": _needless("rows are packed where the model allows it"),
        "torch_empty_cache_steps": _needless("the sampler's cache is freed before an update"),
        "use_cpu no_cuda": _none("where there is a GPU, hide it with CUDA_VISIBLE_DEVICES="),
        "router_aux_loss_coef": _same("train.router_aux_coef"),
        "disable_dropout": _EXACT,
        "chat_template_path": _none("set tokenizer.chat_template and pass the tokenizer as processing_class"),
        "eos_token pad_token": _none("set it in the tokenizer and pass that as processing_class"),
    },
    "LoRA": {
        "r lora_r": _same("lora.rank"),
        "use_peft": Answer("lora.rank", "a rank makes an adapter"),
        "lora_alpha": _same("lora.alpha"),
        "lora_dropout": _same("lora.dropout", "only 0 is supported, because updates need exact forwards"),
        "target_modules lora_target_modules": _same("lora.target_modules"),
        "adapter_name_or_path adapter_path": _same("lora.path"),
        "load_in_4bit": Answer("lora.quantization", "4bit"),
        "load_in_8bit": Answer("lora.quantization", "4bit is the only quantization"),
        "bnb_4bit_quant_type bnb_4bit_use_double_quant use_bnb_nested_quant bnb_4bit_compute_dtype": _needless(
            "lora.quantization=4bit is NF4 with double quantization"
        ),
        "use_rslora use_dora init_lora_weights modules_to_save lora_modules_to_save bias": _LORA_KIND,
        "layers_to_transform rank_pattern alpha_pattern exclude_modules fan_in_fan_out": _LORA_KIND,
        "task_type lora_task_type": _needless("adapters are for causal language models"),
    },
    "Data": {
        "dataset_name dataset_name_or_path train_files train_file train_dataset": _same("data.train"),
        "val_files validation_file eval_file test_file eval_dataset": _same("data.eval"),
        "dataset_config dataset_train_split dataset_test_split dataset_streaming dataset_split": _SLICE,
        "max_train_samples train_max_samples": _same("data.train_problems"),
        "max_eval_samples val_max_samples": _same("data.eval_problems"),
        "prompt_key": _same("data.prompt_column"),
        "dataset_text_field": Answer(
            "data.completion_column", "training is on answers: rows are prompt and completion"
        ),
        "completion_only_loss": _needless("only answers are trained on"),
        "assistant_only_loss train_on_inputs": _none("only the last answer of a conversation is trained on"),
        "max_prompt_length filter_overlong_prompts": Answer(
            "data.overlong_prompts", "drop leaves out prompts that leave no room for a completion; none is cut"
        ),
        "truncation truncation_mode": Answer("data.overlong_answers", "drop, cut or error; only ends are cut"),
        "max_length max_seq_length max_seq_len": Answer(
            "data.max_row_tokens", "prompt with answer; data.overlong_answers=cut cuts longer ones, as TRL does"
        ),
        "packing packing_strategy eval_packing": _needless("micro-batches are packed and rows never see each other"),
        "shuffle shuffle_dataset train_sampling_strategy group_by_length length_column_name": _needless(
            "the order is a shuffle of each epoch by run.seed"
        ),
        "data_seed": Answer("run.seed", "one seed is for the data order and sampling"),
        "seed": _same("run.seed"),
        "full_determinism": _needless("a run with the same seed gives the same result"),
        "remove_unused_columns label_names dataset_kwargs dataset_num_proc": _needless(
            "all columns are kept for rewards and reports"
        ),
        "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers": _LOADER,
        "dataloader_prefetch_factor dataloader_drop_last ignore_data_skip": _LOADER,
        "dataloader_multiprocessing_context dataloader_in_order": _LOADER,
    },
    "Evaluation": {
        "eval_steps test_freq eval_strategy evaluation_strategy eval_interval": Answer(
            "eval.every", "number of steps; 0: only before and after training"
        ),
        "eval_on_start val_before_train do_eval do_train do_predict": _FLAG,
        "eval_delay": _none("eval.every has no delay"),
        "early_stopping_patience": _same("eval.patience"),
        "load_best_model_at_end": _BEST,
        "metric_for_best_model greater_is_better": _none(
            "the best checkpoint is the one with the highest held-out accuracy; rewards.accuracy_reward decides it"
        ),
        "include_for_metrics batch_eval_metrics prediction_loss_only eval_use_gather_object": _none(
            "rewards and their means are the metrics of an evaluation"
        ),
    },
    "Logging": {
        "logging_steps logging_strategy logging_first_step log_freq": _LOGGED,
        "logging_nan_inf_filter log_on_each_node skip_memory_metrics include_num_input_tokens_seen": _LOGGED,
        "include_tokens_per_second disable_tqdm log_level log_level_replica": _LOGGED,
        "report_to logger": Answer("run.trackers", "a list of tensorboard and wandb"),
        "logging_dir run_name experiment_name": Answer("run.dir", "TensorBoard writes to <run>/tensorboard"),
        "project project_name wandb_project": Answer("run.project", "name in Weights & Biases"),
        "trackio_space_id trackio_bucket_id trackio_static_space_id": Answer("run.trackers", "tensorboard or wandb"),
        "log_completions num_completions_to_print log_unique_prompts log_multimodal": _ROLLOUTS,
        "log_completions_hub_repo": _ROLLOUTS,
    },
    "Saving and resuming": {
        "output_dir default_local_dir": _same("run.dir"),
        "overwrite_output_dir": _none("a run is never overwritten; choose another run.dir"),
        "save_steps save_strategy save_freq": Answer(
            "checkpoint.every", "number of steps; the last step is always saved"
        ),
        "save_total_limit max_actor_ckpt_to_keep": Answer("checkpoint.keep", "the best checkpoint is kept in addition"),
        "save_only_model save_on_each_node enable_jit_checkpoint": _none(
            "a checkpoint always contains what resuming needs; `trainer/` in it can be deleted"
        ),
        "resume_from_checkpoint resume_mode restore_callback_states_from_checkpoint": _RESUME,
        "hub_model_id push_to_hub": Answer("checkpoint.push_to_hub", "owner/name"),
        "hub_private_repo": Answer("checkpoint.push_private", "true by default"),
        "hub_token": _none("log in with `hf auth login`, or set HF_TOKEN"),
        "hub_strategy hub_always_push hub_revision": _HUB,
    },
    "Processes": {
        "deepspeed fsdp fsdp_config strategy": Answer("train.sharding", "full splits the model over processes (FSDP2)"),
        "ddp_timeout": _same("run.rank_timeout"),
        "ddp_backend ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers": _TORCHRUN,
        "ddp_static_graph local_rank nnodes n_gpus_per_node num_processes": _TORCHRUN,
        "accelerator_config parallelism_config debug": _TORCHRUN,
    },
}
"""Options by area; a key is one option or several, separated by spaces, that have the same answer."""

ANSWERS = {name: answer for area in TABLE.values() for names, answer in area.items() for name in names.split()}
"""Answers by option."""


def answer_for(name: str) -> Answer | None:
    """Return the answer for an option, or for its last part if its name has dots; None if the option is unknown."""
    return ANSWERS.get(re.sub(r"\W", "_", name.rpartition(".")[2].lower().lstrip("-")))


ARGUMENTS = {
    "ref_model": "set reference='initial' for the model at the start of the run, or 'every:N'",
    "optimizers": "the optimizer is AdamW; set learning_rate, schedule and warmup_updates",
    "optimizer_cls_and_kwargs": "the optimizer is AdamW; set learning_rate, schedule and warmup_updates",
    "quantization_config": "set lora_quantization='4bit' in args",
    "tools": "set environment_tools=['file.py:function'] in args",
    "rollout_func": "write a loop with gvpo.group_backward (`gvpo docs quickstart`)",
    "environment_factory": "pass the class as environment (`gvpo docs environments`)",
    "data_collator": "rows are packed by gvpo; pass rows with `prompt`, or `chosen` and `rejected`",
    "compute_metrics": "pass reward functions; one with the weight 0 is only measured",
    "compute_loss_func": "pass the function as objective, or choose an objective in args",
    "preprocess_logits_for_metrics": "pass reward functions; one with the weight 0 is only measured",
    "formatting_func": "map the dataset to `prompt` and `completion`, or to `messages`",
    "tokenizer": "pass it as processing_class",
    "model_init": "pass the model",
    "model_init_kwargs": "load the model with them and pass it",
    "max_length": "set it in args, see `gvpo docs trl-options`",
    "max_seq_length": "set it in args, see `gvpo docs trl-options`",
    "dataset_text_field": "map the dataset to `prompt` and `completion`",
    "reward_model": "pass it in reward_funcs",
    "metric_key_prefix": "metrics have the prefix eval_",
    "resume_from_checkpoint": "resume=True resumes from the latest checkpoint in run_dir",
    "trial": "start one run per set of settings",
    "ignore_keys_for_eval": "every metric of an evaluation is kept",
}
"""Arguments of TRL's and transformers' trainers that `gvpo.Trainer` does not have, with what to do instead."""


def unknown_argument(name: str, known: Iterable[str], method: str = "") -> str:
    """Return the message for an unknown argument of `gvpo.Trainer` or one of its methods, which says what to do."""
    hint = f": {ARGUMENTS[name]}" if name in ARGUMENTS else did_you_mean(name, known, _in_args(name))
    return f"gvpo.Trainer{f'.{method}' if method else ''} has no argument {name!r}{hint}"


def _in_args(name: str) -> str:
    answer = answer_for(name)
    return f"pass args=TrainConfig(...) and {answer.sentence()}" if answer and answer.key else ""
