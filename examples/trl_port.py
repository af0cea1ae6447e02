"""Train on chat data: two rewards, one of them async, LoRA, evaluation, TensorBoard, resuming.

`python FILE MODEL DIRECTORY [--resume]` runs this file. docs/guides/from-trl.md compares TRL's version with its port.
"""

import argparse
import asyncio
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from gvpo import TrainConfig, Trainer

COLOURS = {"grass": "green", "snow": "white", "coal": "black", "blood": "red", "a lemon": "yellow", "the sky": "blue"}


def rows(question: str) -> Dataset:
    """Return one conversation per thing, with the column `colour` for the rewards."""
    system = {"role": "system", "content": "Answer with one word."}
    return Dataset.from_list(
        [
            {"prompt": [system, {"role": "user", "content": question.format(thing)}], "colour": colour}
            for thing, colour in COLOURS.items()
        ]
    )


async def right(completions: list[Any], colour: list[str], **kwargs: Any) -> list[float]:
    """Return 1 for answers that contain the colour; a judge over HTTP would be awaited in the same way."""

    async def judge(text: str, wanted: str) -> float:
        await asyncio.sleep(0.01)
        return float(wanted in text.lower())

    texts = [completion[0]["content"] for completion in completions]
    return await asyncio.gather(*map(judge, texts, colour))


def brief(completions: list[Any], **kwargs: Any) -> list[float]:
    """Return 1 for an answer of one word, and less for longer ones."""
    return [1 / max(1, len(completion[0]["content"].split())) for completion in completions]


def main(model: str, directory: Path, resume: bool = False) -> None:
    """Train an adapter of the model and write it to the directory."""
    args = TrainConfig(
        run_dir=directory,
        steps=4,
        learning_rate=1e-4,
        schedule="constant",
        prompts_per_step=3,
        group_size=4,
        max_tokens=16,
        objective="grpo",
        kl_coef=0.04,
        reward_weights=[1.0, 0.5],
        eval_every=2,
        checkpoint_every=2,
        trackers=["tensorboard"],
        seed=7,
    )
    trainer = Trainer(
        model=model,
        reward_funcs=[right, brief],
        args=args,
        train_dataset=rows("What colour is {}?"),
        eval_dataset=rows("Name the colour of {}."),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
    )
    trainer.train(resume=resume)
    trainer.evaluate()
    trainer.save_model(directory / "final")
    rewards = [line["rewards/right/mean"] for line in trainer.state.log_history if "reward" in line]
    print(f"right answers: {rewards[0]:.2f} -> {rewards[-1]:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--resume", action="store_true")
    main(**vars(parser.parse_args()))
