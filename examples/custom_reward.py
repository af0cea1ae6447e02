"""Your own reward functions and a trainer; the signature is TRL's, so functions can be moved over unchanged.

`python examples/custom_reward.py` trains a small, randomly initialized model and prints the location of the run.
"""

import itertools
import sys
from pathlib import Path
from typing import Any

import gvpo
from gvpo.model.fresh_tokenizer import fresh_tokenizer


def rising(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
    """Return the fraction of neighbours that rise, or None (no reward) for completions that are too short."""
    return [_rising_share(text) if len(text) > 1 else None for text in completions]


def _rising_share(text: str) -> float:
    pairs = list(itertools.pairwise(text))
    return sum(a < b for a, b in pairs) / len(pairs)


def starts_with(prompts: list[str], completions: list[str], first: list[str], **columns: Any) -> list[float]:
    """Return 1 for completions that start with the text of the column `first`, which has one value per row."""
    return [float(text.startswith(wanted)) for text, wanted in zip(completions, first, strict=True)]


def main(run_dir: Path | None = None, steps: int = 60) -> dict[str, Any]:
    """Train a small model on the two rewards.

    Returns:
        The run's summary.
    """
    tokenizer = fresh_tokenizer(list("0123456789"))
    model = gvpo.load_model(
        None,
        init={
            "architecture": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
    )
    rows = [{"prompt": f"{n:02}", "first": str(n % 10)} for n in range(100)]
    trainer = gvpo.Trainer(
        model,
        [rising, starts_with],
        args=gvpo.TrainConfig(
            run_dir=run_dir,
            steps=steps,
            prompts_per_step=32,
            group_size=8,
            max_tokens=3,
            learning_rate=1e-2,
            beta=0.05,
            reference="initial",
            reward_weights=[0.5, 1.0],
            accuracy_reward="starts_with",
            eval_problems=20,
        ),
        train_dataset=rows[:80],
        eval_dataset=rows[80:],
        processing_class=tokenizer,
    )
    return trainer.train()


if __name__ == "__main__":
    summary = main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    print(f"starts right: {summary['accuracy_before']:.2f} -> {summary['accuracy_after']:.2f}")
    print(f"look at it: gvpo report {Path(summary['report']).parent}")
