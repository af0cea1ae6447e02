"""The verl plug-in, in verl's worker and FSDP2 engine on a CPU, against a forward pass per row (`make test-verl`)."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from gvpo.errors import ConfigError
from gvpo.objectives import gvpo

if importlib.util.find_spec("verl") is None:
    pytest.skip("verl is not installed; `make test-verl` has an environment with it", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tests.integrations import verl_worker  # isort: skip (it comes first, and chooses the platform)

    from hydra import compose, initialize_config_module
    from transformers import AutoModelForCausalLM, Qwen2Config
    from verl.protocol import DataProto
    from verl.trainer.ppo.core_algos import FixedKLController, compute_grpo_outcome_advantage
    from verl.trainer.ppo.ray_trainer import apply_kl_penalty
    from verl.utils.config import omega_conf_to_dataclass

    from tests.integrations.verl_worker import batch, connect, padding_row, rows, start

BETA = 0.1
GVPO = {"policy_loss": {"loss_mode": "gvpo"}, "kl_loss_coef": BETA}


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Return the directory of a tiny model, in a process group of one."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=verl_worker.VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
    directory = tmp_path_factory.mktemp("model")
    model.save_pretrained(directory)
    connect(free_port())
    yield directory
    torch.distributed.destroy_process_group()


def logprobs_of(model, row):
    tokens = torch.cat([row["prompts"], row["responses"]])
    scores = model(input_ids=tokens[None]).logits[0, len(row["prompts"]) - 1 : -1].log_softmax(-1)
    return scores.gather(1, row["responses"][:, None]).squeeze(1)


def expected(path, made, step, reference="ref_log_prob"):
    """Return GVPO's gradient at the weights of a recorded step, from one forward pass per row."""
    model = AutoModelForCausalLM.from_pretrained(path).double()
    model.load_state_dict({name: weight for name, (weight, _) in step.items()}, strict=False)
    pad = torch.nn.utils.rnn.pad_sequence
    loss = gvpo(
        pad([logprobs_of(model, row) for row in made], batch_first=True),
        ref_logprobs=pad([row[reference].double() for row in made], batch_first=True),
        rewards=torch.stack([row["rm_scores"].double().sum() for row in made]),
        group=torch.tensor([int(row["uid"][-1]) for row in made]),
        mask=pad([row["response_mask"] for row in made], batch_first=True),
        beta=BETA,
    ).loss
    loss.backward()
    gradients = dict(model.named_parameters())
    return torch.cat([gradients[name].grad.flatten() for name in step])


def measured(step):
    return torch.cat([gradient.double().flatten() for _, gradient in step.values()])


def difference(found, exact):
    return float((found - exact).norm() / exact.norm())


def test_every_update_of_a_rollout_is_exact(path):
    worker, steps = start(path, **GVPO)
    made = rows()
    worker.train_mini_batch(batch(made, epochs=3))
    assert len(steps) == 3
    for step in steps:
        assert difference(measured(step), expected(path, made, step)) < 1e-5
    first, last = (measured(step) for step in steps[::2])
    assert difference(last, first) > 0.01  # the weights have moved


def test_micro_batches_of_a_fixed_size_and_rows_that_fill_the_batch_change_nothing(path):
    worker, steps = start(path, **GVPO)
    made = rows()
    filled = [*made[:5], padding_row(), *made[5:], padding_row()]
    worker.train_mini_batch(batch(filled, epochs=2, use_dynamic_bsz=False))
    for step in steps:
        assert difference(measured(step), expected(path, made, step)) < 1e-5


def test_without_reference_log_probs_the_reference_is_the_start_of_the_rollout(path):
    worker, steps = start(path, **GVPO)
    made = rows()
    worker.train_mini_batch(batch(made, without=("ref_log_prob",)))
    assert difference(measured(steps[0]), expected(path, made, steps[0], "old_log_probs")) < 1e-5


def test_other_losses_are_not_changed(path):
    worker, steps = start(path)
    data = batch(rows())
    before = data["advantages"].values().clone()
    worker.train_mini_batch(data)
    assert torch.equal(data["advantages"].values(), before)
    assert difference(measured(steps[0]), expected(path, rows(), steps[0])) > 0.1


def test_the_stock_recipe_is_the_first_update_up_to_a_constant(path):
    """Use verl's own KL in the reward, GRPO without std and sums over tokens, at the weights of the rollout."""
    worker, steps = start(path)
    made = rows()
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        made = [dict(row, old_log_probs=logprobs_of(model, row)) for row in made]
    pad = torch.nn.utils.rnn.pad_sequence

    def padded(name):
        return pad([row[name] for row in made], batch_first=True)

    names = {"response_mask": "response_mask", "token_level_scores": "rm_scores"}
    names |= {name: name for name in ("old_log_probs", "ref_log_prob")}
    data = DataProto.from_dict({name: padded(source) for name, source in names.items()})
    data, _ = apply_kl_penalty(data, kl_ctrl=FixedKLController(BETA), kl_penalty="kl")
    advantages, _ = compute_grpo_outcome_advantage(
        data.batch["token_level_rewards"], data.batch["response_mask"].float(),
        index=np.array([row["uid"] for row in made]), norm_adv_by_std_in_grpo=False,
    )  # fmt: skip
    made = [dict(row, advantages=each[: len(row["responses"])]) for row, each in zip(made, advantages, strict=True)]
    worker.train_mini_batch(batch(made))
    factor = (4 - 1) / (4 * BETA)  # the mean over 12 rows of A, where GVPO has beta / (k - 1) and a mean over 3 groups
    assert difference(measured(steps[0]), factor * expected(path, made, steps[0])) < 1e-5


def test_what_cannot_be_exact_is_refused(path):
    worker, _ = start(path, **GVPO)
    with pytest.raises(ConfigError, match=r"has 6 of the rollout's 12 rows; set .*ppo_mini_batch_size"):
        worker.train_mini_batch(batch(rows(), mini_batch_size=6))
    with pytest.raises(ConfigError, match="does not give uid"):
        worker.train_mini_batch(batch(rows(), without=("uid",)))
    single = [dict(row, uid=f"alone-{number}") for number, row in enumerate(rows())]
    with pytest.raises(ConfigError, match=r"set rollout\.n"):
        worker.train_mini_batch(batch(single))
    worker, _ = start(path, use_kl_loss=True, **GVPO)
    with pytest.raises(ConfigError, match="use_kl_loss=False"):
        worker.train_mini_batch(batch(rows()))


def test_the_keys_of_the_guide_are_verls():
    page = (Path(__file__).parents[2] / "docs/guides/verl.md").read_text(encoding="utf-8")
    recipe, plug_in = (
        re.findall(r"^ *([a-z_0-9.]+=[^ \\\n]+)", block, re.MULTILINE)
        for block in re.findall(
            r"^```(?:sh)?\n((?:python -m verl|actor_rollout_ref).*?)^```", page, re.DOTALL | re.MULTILINE
        )
    )
    assert len(recipe) > 30
    assert len(plug_in) == 4
    with initialize_config_module("verl.trainer.config", version_base=None):
        stock, ours = (compose("ppo_trainer", overrides=keys) for keys in (recipe, recipe + plug_in))
    assert stock.actor_rollout_ref.actor.ppo_mini_batch_size == stock.data.train_batch_size
    assert stock.actor_rollout_ref.actor.use_dynamic_bsz == stock.actor_rollout_ref.rollout.log_prob_use_dynamic_bsz
    for config in (stock, ours):
        actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
        actor.validate(config.trainer.n_gpus_per_node, config.data.train_batch_size)
    assert actor.policy_loss.get("loss_mode") == "gvpo"
    assert actor.kl_loss_coef == stock.algorithm.kl_ctrl.kl_coef == BETA


def test_groups_across_two_ranks_give_the_same_gradient(path, tmp_path):
    port = str(free_port())
    script = Path(verl_worker.__file__)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                "-P",  # the script's own directory is not searched: it has a folder with the name of a library
                "-W",
                "ignore",
                str(script),
                str(path),
                port,
                str(rank),
                "2",
                str(tmp_path / f"{rank}.pt"),
            ],
            env=environment,
        )
        for rank in range(2)
    ]
    assert [rank.wait(timeout=280) for rank in ranks] == [0, 0]
    for rank in range(2):
        steps = torch.load(tmp_path / f"{rank}.pt")
        assert len(steps) == 2
        for step in steps:
            assert difference(measured(step), expected(path, rows(), step)) < 1e-5
