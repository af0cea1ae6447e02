"""A real `TrainingWorker` of verl with its FSDP2 engine, on a CPU and gloo; run as a script, it is one rank of several.

verl knows no CPU, so a platform is registered for it; everything else is verl's own code.
"""

import os
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

os.environ["VERL_PLATFORM"] = "cpu"

import torch
from torch import distributed
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

ROWS = 12
VOCABULARY = 64


def nothing(*_, **__):
    return 0


DEVICE = SimpleNamespace(
    is_available=lambda: True, get_device_name=lambda *_: "CPU",
    get_rng_state=torch.get_rng_state, set_rng_state=torch.set_rng_state,
    max_memory_allocated=nothing, max_memory_reserved=nothing, memory_allocated=nothing, memory_reserved=nothing,
    mem_get_info=lambda *_: (1, 1), empty_cache=nothing, synchronize=nothing, manual_seed_all=nothing,
)  # fmt: skip


def member(value):
    return property(lambda self: value)


ANSWERS = {
    "device_name": member("cpu"),
    "vendor_name": member("cpu"),
    "device_module": member(DEVICE),
    "is_available": lambda self: True,
    "current_device": lambda self: torch.device("cpu"),
    "device_count": lambda self: 1,
    "communication_backend_name": lambda self: "gloo",
    "visible_devices_envvar": lambda self: "CUDA_VISIBLE_DEVICES",
    "ray_resource_name": lambda self: "CPU",
    "ray_noset_envvars": lambda self: [],
}
REST = dict.fromkeys(PlatformBase.__abstractmethods__, nothing)
PlatformRegistry.register("cpu")(type("PlatformCPU", (PlatformBase,), {**REST, **ANSWERS}))

from verl.trainer.config import CheckpointConfig  # noqa: E402
from verl.utils import tensordict_utils as tu  # noqa: E402
from verl.workers.config import (  # noqa: E402
    FSDPActorConfig,
    FSDPEngineConfig,
    FSDPOptimizerConfig,
    HFModelConfig,
    TrainingWorkerConfig,
)
from verl.workers.engine import EngineRegistry  # noqa: E402
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead  # noqa: E402
from verl.workers.engine_workers import TrainingWorker  # noqa: E402
from verl.workers.utils.losses import ppo_loss  # noqa: E402

EngineRegistry.register(model_type="language_model", backend=["fsdp2"], device="cpu")(FSDPEngineWithLMHead)


def connect(port, rank=0, world=1):
    """Join the process group."""
    for name, value in {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}.items():
        os.environ[name] = str(value)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo")


def start(path, **actor):
    """Return a worker with verl's loss, and the list that receives its gradients and weights at each step."""
    settings = FSDPActorConfig(
        strategy="fsdp2", rollout_n=4, ppo_mini_batch_size=3, ppo_micro_batch_size_per_gpu=1, use_dynamic_bsz=True,
        loss_agg_mode="seq-mean-token-sum", **actor,
    )  # fmt: skip
    precision = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    engine = FSDPEngineConfig(
        strategy="fsdp2", fsdp_size=-1, model_dtype="fp32", mixed_precision=precision, use_torch_compile=False,
        use_dynamic_bsz=True, max_token_len_per_gpu=40, infer_max_token_len_per_gpu=50,
        micro_batch_size_per_gpu=1, infer_micro_batch_size_per_gpu=2,
    )  # fmt: skip
    model = HFModelConfig(
        path=str(path), load_tokenizer=False, use_remove_padding=False, enable_gradient_checkpointing=False,
        override_config={"attn_implementation": "sdpa"}, external_lib="gvpo.integrations.verl",
    )  # fmt: skip
    worker = TrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model", model_config=model, engine_config=engine,
            optimizer_config=FSDPOptimizerConfig(lr=0.01, total_training_steps=10),
            checkpoint_config=CheckpointConfig(),
        )
    )  # fmt: skip
    worker.reset()
    worker.set_loss_fn(partial(ppo_loss, config=settings))  # as ActorRolloutRefWorker does
    steps = []
    step = worker.engine.optimizer_step

    def recorded():
        named = list(worker.engine.module.named_parameters())
        steps.append({name: (whole(each.detach()), whole(each.grad)) for name, each in named})
        return step()

    worker.engine.optimizer_step = recorded
    return worker, steps


def whole(tensor):
    tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return tensor.clone()


def rows(seed=0):
    """Return the rows of three groups in the order that verl's balancing gives; they are ragged, with masked tokens."""
    draw = torch.Generator().manual_seed(seed)

    def noise(count, size=1.0):
        return torch.randn(count, generator=draw) * size

    made = []
    for number in range(ROWS):
        prompt = 3 + torch.arange(2 + number % 3) + number % 3
        length = 3 + int(torch.randint(4, (), generator=draw))
        response = torch.randint(VOCABULARY, (length,), generator=draw)
        mask = torch.ones(length, dtype=torch.int64)
        mask[1] = number % 2
        reward = torch.zeros(length)
        reward[-1] = noise(1)[0]
        made.append(
            {
                "uid": f"prompt-{number % 3}", "prompts": prompt, "responses": response, "response_mask": mask,
                "rm_scores": reward, "old_log_probs": -3.0 + noise(length), "ref_log_prob": -4.0 + noise(length),
                "advantages": torch.full((length,), float(noise(1)[0])),
            }
        )  # fmt: skip
    order = torch.randperm(ROWS, generator=draw).tolist()
    return [made[index] for index in order]


def padding_row():
    """Return a row as verl fills batches with: of no group, with an empty mask."""
    zero = torch.zeros(1)
    return {
        "uid": "pad", "prompts": torch.tensor([1, 1, 1]), "responses": torch.tensor([1]),
        "response_mask": torch.zeros(1, dtype=torch.int64), "rm_scores": zero, "old_log_probs": zero,
        "ref_log_prob": zero, "advantages": zero,
    }  # fmt: skip


def batch(made, *, total=None, mini_batch_size=None, epochs=1, without=(), **settings):
    """Return rows as verl's trainer hands them to a worker."""
    made = [dict(row, input_ids=torch.cat([row["prompts"], row["responses"]])) for row in made]
    made = [dict(row, position_ids=torch.arange(len(row["input_ids"])), loss_mask=row["response_mask"]) for row in made]
    fields = {
        name: torch.nested.as_nested_tensor([row[name] for row in made], layout=torch.jagged)
        for name in made[0]
        if name not in ("uid", *without)
    }
    if "uid" not in without:
        fields["uid"] = [row["uid"] for row in made]
    total = total or len(made)
    return tu.get_tensordict(
        fields,
        {
            "global_batch_size": total, "mini_batch_size": mini_batch_size or total, "epochs": epochs, "seed": 1,
            "dataloader_kwargs": {"shuffle": False}, "temperature": 1.0, "calculate_entropy": False, **settings,
        },
    )  # fmt: skip


def main():
    """Train on a rank's half of the rows, and save the recorded steps: PATH PORT RANK WORLD OUT."""
    path, port, rank, world, out = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
    connect(port, rank, world)
    worker, steps = start(path, policy_loss={"loss_mode": "gvpo"}, kl_loss_coef=0.1)
    share = ROWS // world
    worker.train_mini_batch(batch(rows()[rank * share : (rank + 1) * share], total=ROWS, epochs=2))
    torch.save(steps, Path(out))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
