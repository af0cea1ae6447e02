"""recipes/gsm8k from start to end on the real problems, with a small Qwen2 and a BPE tokenizer created here."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gvpo import runfiles
from gvpo.cli.main import main
from gvpo.cli.shipped import find_recipe
from gvpo.config.recipe import load_config
from gvpo.data.tasks.gsm8k import INSTRUCTION
from gvpo.model.model import load_model, save_model
from gvpo.model.tokenizer import load_tokenizer
from gvpo.rewards.verifiers.gsm8k import final_number, gold_answer

REAL = Path(os.environ.get("GVPO_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")) / "gsm8k"
pytestmark = [
    pytest.mark.skipif(not REAL.is_dir(), reason="the real GSM8K is missing; set GVPO_TEST_DATA to its parent"),
    pytest.mark.filterwarnings("ignore:AutoTokenizer loads"),  # as Qwen2Tokenizer; the file takes precedence
]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMALL = [
    "train.steps=2",
    "train.prompts_per_step=4",
    "train.groups_per_update=2",
    "train.learning_rate=1e-3",
    "train.rollouts_every=1",
    "sampling.group_size=4",
    "sampling.max_tokens=24",
    "warm_start.steps=6",
    "warm_start.batch=8",
    "warm_start.demonstrations=48",
    "data.eval_problems=6",
    "data.system_prompt=You are good at sums.",
    "rewards.accuracy_reward=gsm8k",
    "rewards.workers=1",
    "eval.every=1",
    "checkpoint.every=1",
]


DIGITS = """
def digits(completions, **_):
    return [sum(map(str.isdigit, text)) / 24 for text in completions]
"""
"""A random model never solves a problem; this second reward distinguishes its completions."""


def rows(split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (REAL / f"{split}.jsonl").read_text().splitlines()]


def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of 1,000 tokens, trained on the questions and solutions of the training set."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for row in rows("train")[:2000] for text in row.values()), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=special[2], pad_token=special[0], chat_template=TEMPLATE
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model directory as the Hub would provide it."""
    tokenizer = bpe_tokenizer()
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 640}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    init = {"architecture": "qwen2", "vocab_size": len(tokenizer), **small, **heads, **ids}
    directory = tmp_path_factory.mktemp("gsm8k") / "qwen2"
    save_model(load_model(init=init), tokenizer, directory)
    return directory


@pytest.fixture(scope="module")
def run(start: Path) -> Path:
    directory = start.parent / "run"
    (start.parent / "own.py").write_text(DIGITS)
    rewards = f'rewards.funcs=["gsm8k", "{start.parent}/own.py:digits"]'
    path = f'data.task_options={{path="{REAL}"}}'
    assert main(["train", "gsm8k", f"model.path={start}", f"run.dir={directory}", path, rewards, *SMALL]) == 0
    return directory


def rollouts(run: Path) -> list[runfiles.RolloutRow]:
    return [row for step in (1, 2) for row in runfiles.read_rollouts(runfiles.rollout_path(run, step))]


def test_the_warm_start_learns_from_the_written_solutions(run: Path):
    losses = [line["train/loss"] for line in runfiles.read_metrics(run / "warm-start/metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.05


def test_prompts_are_real_questions_in_the_models_template(run: Path):
    questions = [row["question"] for row in rows("train")]
    for row in rollouts(run):
        question = questions[int(row.group.rpartition("/")[2]) - 1]
        assert row.prompt == (
            "<|im_start|>system\nYou are good at sums.<|im_end|>\n"
            f"<|im_start|>user\n{question}{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"
        )
        assert len(row.prompt_tokens) < len(row.prompt) / 2  # merges were learned


def test_rewards_compare_completions_with_the_real_answers(run: Path):
    answers = [row["answer"] for row in rows("train")]
    judged = rollouts(run)
    assert len(judged) == 2 * 4 * 4
    for row in judged:
        gold = gold_answer(answers[int(row.group.rpartition("/")[2]) - 1])
        assert row.reward_parts["gsm8k"] == float(final_number(row.text) == gold)
        assert row.reward_parts["digits"] == pytest.approx(sum(map(str.isdigit, row.text)) / 24)
    assert {row.reason for row in judged} == {""}


def test_the_policy_was_updated_and_evaluated_and_loads_back(run: Path, start: Path):
    lines = runfiles.read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert all(line["train/updates"] == 2 and line["train/skipped_updates"] == 0 for line in lines[1:])
    assert all(0 <= line["eval/accuracy"] <= 1 for line in lines)
    summary = runfiles.read_json(run / "summary.json")
    before = load_model(next((run / "warm-start/checkpoints").iterdir()))
    after = load_model(summary["model"])
    assert any(line["train/grad_norm"] > 0 for line in lines[1:])
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    text = rows("test")[0]["question"]
    saved, own = load_tokenizer(summary["model"]), load_tokenizer(start)
    assert saved(text).input_ids == own(text).input_ids
    assert saved.chat_template == TEMPLATE
    assert Path(summary["report"]).stat().st_size > 10_000


def test_data_from_your_own_files(start: Path, tmp_path: Path):
    """Use `data.train=FILE data.eval=FILE` with the dataset's own columns, here its last and first rows."""
    for name, some in (("train", rows("train")[-5:]), ("eval", rows("test")[:3])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    files = [f"data.{name}={tmp_path}/{name}.jsonl" for name in ("train", "eval")]
    settings = [*SMALL, "warm_start.steps=0", "train.steps=1", "sampling.max_tokens=4", "data.system_prompt=Hm."]
    run = tmp_path / "run"
    assert main(["train", "gsm8k", f"model.path={start}", f"run.dir={run}", *files, *settings]) == 0
    used = {row.columns["solution"] for row in runfiles.read_rollouts(runfiles.rollout_path(run, 1))}
    assert used <= {row["answer"] for row in rows("train")[-5:]}
    assert len(used) == 4


def test_the_recipe_agrees_with_its_readme():
    config = load_config(find_recipe("gsm8k"))
    facts: dict[str, Any] = {"group_size": 8, "prompts_per_step": 64, "groups_per_update": 16, "beta": 0.1}
    assert {name: getattr(config, name) for name in facts} == facts
    assert (config.task, config.reference, config.reward_funcs) == ("gsm8k", "previous", ["gsm8k"])
