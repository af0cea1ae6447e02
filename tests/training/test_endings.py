"""A model that was taught to end its answers ends them: in training, in evaluation, and after it is saved."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from gvpo import runfiles
from gvpo.model.fresh_tokenizer import fresh_tokenizer
from gvpo.model.merge import merge_adapter
from gvpo.model.model import load_model
from gvpo.sampling import Request, SamplingParams
from gvpo.sampling.engines import open_engine
from gvpo.training.trainer import Trainer
from tests.model.test_endings import CHATML
from tests.training.toy import DIGITS, INIT, config, noticed, share

ROWS = [{"prompt": digit, "completion": digit} for digit in DIGITS]
SETTINGS: dict[str, Any] = {"eval_problems": 0, "prompts_per_step": 10, "learning_rate": 1e-2, "max_tokens": 8}


def chatml_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with the end token <eos>, whose template ends messages with <|im_end|>."""
    tokenizer = fresh_tokenizer([*DIGITS, "\n", "user", "assistant"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def chatml_model(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return load_model(None, init={**INIT, **ids}, seed=0)


def trainer(path: Path, tokenizer: Any, *, data: Any = ROWS, **settings: Any) -> Trainer:
    settings = {**SETTINGS, "objective": "sft", "steps": 60, "reference": "initial", **settings}
    model = settings.pop("model", None) or chatml_model(tokenizer)
    return Trainer(
        model, settings.pop("rewards", None), config(path, **settings), train_dataset=data, processing_class=tokenizer
    )


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the checkpoint of a model that answers each digit with that digit."""
    return str(trainer(tmp_path_factory.mktemp("taught") / "run", chatml_tokenizer()).train()["model"])


def answers(model: str, prompts: str = DIGITS) -> list[tuple[str | None, str]]:
    """Return greedy answers sampled as by `gvpo eval` and `gvpo generate`: texts and finish reasons."""
    tokenizer = chatml_tokenizer()
    turns = [f"<|im_start|>user\n{digit}<|im_end|>\n<|im_start|>assistant\n" for digit in prompts]
    requests = [Request(digit, tuple(tokenizer(turn).input_ids)) for digit, turn in zip(prompts, turns, strict=True)]
    params = SamplingParams(group_size=1, max_tokens=8, temperature=0.0)
    drawn = open_engine("transformers", model, tokenizer).sample(requests, params, seed=0, step=0)
    return [(row.text, row.finish_reason) for (row,) in drawn]


def saved_stops(directory: str | Path) -> set[str]:
    ids = json.loads((Path(directory) / "generation_config.json").read_text())["eos_token_id"]
    return set(chatml_tokenizer().convert_ids_to_tokens(ids if isinstance(ids, list) else [ids]))


def test_the_end_token_of_supervised_training_ends_a_sample(taught: str):
    assert answers(taught) == [(digit, "stop") for digit in DIGITS]


def test_the_saved_generation_config_stops_where_training_did(taught: str):
    assert saved_stops(taught) == {"<eos>", "<|im_end|>"}
    tokenizer = chatml_tokenizer()
    ids = tokenizer("<|im_start|>user\n7<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt").input_ids
    plain = AutoModelForCausalLM.from_pretrained(taught).generate(ids, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(plain[0, ids.shape[1] :]) == "7<|im_end|>"


def test_training_from_it_truncates_nothing(taught: str, tmp_path: Path):
    rows = [{"prompt": digit, "digit": digit} for digit in DIGITS]
    settings = {"objective": "gvpo", "steps": 1, "rewards": share(), "model": taught}
    trainer(tmp_path / "run", chatml_tokenizer(), data=rows, **settings).train()
    (line,) = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert line["rows/truncated"] == 0.0


def test_an_adapter_and_the_merged_model_stop_there_too(taught: str, tmp_path: Path):
    settings = {"steps": 1, "lora_rank": 2, "model": taught}
    adapter = trainer(tmp_path / "run", chatml_tokenizer(), **settings).train()["model"]
    assert saved_stops(adapter) == {"<eos>", "<|im_end|>"}
    assert answers(adapter, "3") == [("3", "stop")]
    merged = merge_adapter(adapter, tmp_path / "merged")
    assert saved_stops(merged) == {"<eos>", "<|im_end|>"}


def test_stop_tokens_of_the_settings_are_saved_too(tmp_path: Path):
    tokenizer = chatml_tokenizer()
    seven = tokenizer.convert_tokens_to_ids("7")
    model = trainer(tmp_path / "run", tokenizer, steps=1, stop_token_ids=[seven]).train()["model"]
    assert saved_stops(model) == {"<eos>", "<|im_end|>", "7"}


def test_logged_texts_and_preferences_end_as_samples_do(tmp_path: Path):
    tokenizer = chatml_tokenizer()
    rows = [{"prompt": digit, "chosen": digit, "rejected": digit * 2} for digit in DIGITS]
    settings = {"objective": "dpo", "steps": 1}
    trainer(tmp_path / "run", tokenizer, data=rows, **settings).train()
    written = runfiles.read_rollouts(runfiles.rollout_path(tmp_path / "run", 1))
    assert {tokenizer.decode([row.tokens[-1]]) for row in written} == {"<|im_end|>"}


def test_a_notice_appears_at_the_start_if_no_token_ends_an_answer(tmp_path: Path):
    tokenizer = chatml_tokenizer()
    tokenizer.chat_template = tokenizer.eos_token = None
    model = chatml_model(tokenizer)
    model.generation_config.eos_token_id = None
    with noticed("no token ends an answer"):
        trainer(tmp_path / "run", tokenizer, model=model, steps=1).train()
