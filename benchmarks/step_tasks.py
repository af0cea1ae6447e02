"""Tasks of step_vs_trl.py: a starting model, prompts and a reward, the same for both sides.

demo      the demo's additions from its warm start: 16 prompts x 8 completions of at most 40 tokens, 125k parameters
ragged    random prompts of 64 to 256 tokens, 4 x 8 completions of 100 tokens on average and at most 512, from a
          randomly initialized 4-layer, 256-wide Qwen2 with a vocabulary of 32,000; the reward is the fraction of low
          token ids
smollm2   SmolLM2-135M-Instruct, 4 chat prompts x 8 completions of at most 32 tokens; the reward is the number of
          different words. recipes/smollm2/weights.py makes the model, and GVPO_TEST_SMOLLM2 names its directory
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gvpo import Trainer, load_model
from gvpo.cli.shipped import find_recipe
from gvpo.config import TrainConfig
from gvpo.config.plan import warm_start_settings
from gvpo.config.recipe import read_recipe
from gvpo.data.tasks.addition import problems
from gvpo.model.fresh_tokenizer import EOS, PAD, UNKNOWN, fresh_tokenizer
from gvpo.model.model import save_model
from gvpo.rewards import load

GROUP_SIZE = 8
RAGGED_VOCABULARY = 32_000
RAGGED_MEAN = 100
PROMPTS = 256


@dataclass(frozen=True)
class StepTask:
    """A training task.

    Args:
        prompts: Number of groups per step.
        max_tokens: Maximum number of tokens per completion.
        learning_rate: Constant learning rate of AdamW.
        rows: Prompts with the columns that the reward needs.
        reward: Reward function of both sides.
        make_model: Function that writes the starting model into a directory.
        trial: Number of steps that try a batch setting; more for short steps, since the first ones allocate memory.
        settings: Batch settings to try, by side.
    """

    prompts: int
    max_tokens: int
    learning_rate: float
    rows: Callable[[], list[dict[str, Any]]]
    reward: Callable[..., list[float | None]]
    make_model: Callable[[Path], None]
    trial: int
    settings: Mapping[str, Sequence[int]]


def _additions() -> list[dict[str, Any]]:
    return [{"prompt": problem.prompt, **problem.columns} for problem in problems("train", 10_000, seed=0)]


def _warm_demo(path: Path) -> None:
    """Train the demo's warm start with its recipe."""
    config = TrainConfig(**read_recipe(find_recipe("demo")))
    tokenizer = fresh_tokenizer(config.vocabulary)
    ids = {name: getattr(tokenizer, name) for name in ("eos_token_id", "pad_token_id")}
    model = load_model(init={"vocab_size": len(tokenizer), **ids, **config.model_init}, seed=config.seed)
    stage = warm_start_settings(config).replace(run_dir=path.with_name(f"{path.name}-run"))
    Trainer(model, args=stage, processing_class=tokenizer).train()
    save_model(model, tokenizer, path)


def _random_words() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)

    def prompt() -> str:
        length = int(torch.randint(64, 257, (), generator=generator))
        return " ".join(f"w{token}" for token in torch.randint(3, RAGGED_VOCABULARY, (length,), generator=generator))

    return [{"prompt": prompt()} for _ in range(PROMPTS)]


def low_ids(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float | None]:
    """Return the fraction of tokens in the lower half of the vocabulary."""
    return [sum(token < 16_000 for token in row) / max(1, len(row)) for row in completion_ids]


def _fresh_ragged(path: Path) -> None:
    """Write a model whose completions end at random, after RAGGED_MEAN tokens on average."""
    words = {word: number for number, word in enumerate([PAD, EOS, UNKNOWN])}
    words |= {f"w{number}": number for number in range(3, RAGGED_VOCABULARY)}
    inner = Tokenizer(models.WordLevel(vocab=words, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN)
    sizes = {"num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 1024, "vocab_size": RAGGED_VOCABULARY}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model: Any = load_model(init={"architecture": "qwen2", "tie_word_embeddings": False, **sizes, **heads, **ids})
    _end_at_random(model, tokenizer.eos_token_id)
    save_model(model, tokenizer, path)


@torch.no_grad()
def _end_at_random(model: Any, end: int) -> None:
    """Give the end token a probability of about 1 / RAGGED_MEAN with a feature that is the same in every position."""
    model.get_input_embeddings().weight[:, 0] = 8.0  # far more than the layers add to it
    words = torch.randint(RAGGED_VOCABULARY, (4, 64), generator=torch.Generator().manual_seed(0))
    feature = model(words, output_hidden_states=True).hidden_states[-1][..., 0].mean()
    model.get_output_embeddings().weight[end].zero_()[0] = math.log(RAGGED_VOCABULARY / RAGGED_MEAN) / feature


def _topics() -> list[dict[str, Any]]:
    topics = (
        "cats",
        "dogs",
        "rain",
        "music",
        "bread",
        "trains",
        "stars",
        "rivers",
        "gardens",
        "winter",
        "books",
        "tea",
    )
    return [{"prompt": [{"role": "user", "content": f"Write one sentence about {topic}."}]} for topic in topics]


def different_words(completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """Return the number of different words of each answer, divided by 20."""
    texts = (answer if isinstance(answer, str) else answer[0]["content"] for answer in completions)
    return [len({*text.split()}) / 20 for text in texts]


def _smollm2(path: Path) -> None:
    """Link the model that recipes/smollm2/weights.py made."""
    if (source := os.environ.get("GVPO_TEST_SMOLLM2")) is None:
        raise SystemExit("set GVPO_TEST_SMOLLM2 to the directory that recipes/smollm2/weights.py makes")
    path.symlink_to(Path(source).resolve())


ALL = {"trl": (8, 16, 32, 128), "gvpo": (2048, 8192, 32_768)}
"""Rows per forward for TRL, tokens per micro-batch for gvpo."""

TASKS = {
    "demo": StepTask(16, 40, 3e-4, _additions, load("boxed_answer"), _warm_demo, 20, ALL),
    "ragged": StepTask(4, 512, 1e-3, _random_words, low_ids, _fresh_ragged, 2, ALL),
    "smollm2": StepTask(
        4, 32, 1e-6, _topics, different_words, _smollm2, 1, {"trl": (8, 32), "trl-bfloat16": (8,), "gvpo": (8192,)}
    ),
}
