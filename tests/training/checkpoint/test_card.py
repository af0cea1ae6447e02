"""The model card: facts of the run, metadata for the Hub, no local paths, and code that loads the model."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gvpo import runfiles
from gvpo.config import TrainConfig
from gvpo.model.lora import Adapter
from gvpo.training.checkpoint.card import model_card
from gvpo.training.checkpoint.files import TrainerState, load
from tests.fakes import byte_tokenizer
from tests.training.toy import noticed, tokenizer, trainer

STATE = TrainerState(step=40, before={"eval/accuracy": 0.25}, latest={"eval/accuracy": 0.75, "eval/accuracy_greedy": 1})


def card(start: str = "Qwen/Qwen2.5-0.5B-Instruct", **settings: Any) -> str:
    needs = settings.get("objective", "gvpo") == "gvpo"
    config = TrainConfig(**{"steps": 100, "task": "gsm8k", "reference": "previous", **settings})
    return model_card(config, STATE, byte_tokenizer(), start, needs_reference=needs)


def facts(text: str) -> dict[str, str]:
    """Return the table of facts, by name."""
    return dict(re.findall(r"^\| ([^|]+?) \| (.*) \|$", text, re.MULTILINE))


def metadata(text: str) -> Any:
    _, front, _ = text.split("---\n", 2)
    return yaml.safe_load(front)


def test_the_facts_describe_the_run():
    shown = facts(
        card(
            beta=0.2,
            reference="every:5",
            group_size=4,
            max_tokens=64,
            top_k=7,
            sampling_ban=["[0]"],
            system_prompt="a | b",
        )
    )
    assert shown["Objective"] == "gvpo, beta 0.2, variance_weight 1.0, covariance_weight 1.0, anchor 0.0"
    assert shown["Reference"] == "policy refreshed every 5 steps"
    assert shown["Started from"] == "Qwen/Qwen2.5-0.5B-Instruct"
    assert shown["Training data"] == "task gsm8k"
    assert shown["Steps"] == "40 of 100, each 16 prompts"
    assert shown["Sampling"] == "4 completions per prompt, up to 64 tokens, temperature 1, top_k 7, with an exclusion"
    assert shown["Prompt"].endswith("system prompt: a \\| b")
    assert shown["Held-out accuracy, sampled"] == "0.250 before, 0.750 at the latest evaluation"
    assert shown["Held-out accuracy, greedy"] == "not measured before, 1.000 at the latest evaluation"
    assert "torch 2." in shown["Versions"]


def test_the_card_shows_the_objectives_defaults():
    shown = facts(card(objective="rloo"))
    assert shown["Objective"].startswith("rloo, ")
    assert shown["Reference"] == "none"
    assert facts(card())["Reference"] == "policy at the start of each step"
    assert "kl_in_reward 0.1" in facts(card(objective="grpo", kl_in_reward=0.1, reference="initial"))["Objective"]


def test_an_adapters_metadata_contain_its_base():
    adapter = Adapter("Qwen/Qwen2.5-0.5B-Instruct", 8, 16, ("q_proj", "v_proj"))
    config = TrainConfig(task="gsm8k", reference="previous")
    text = model_card(config, STATE, byte_tokenizer(), "a/start", needs_reference=True, adapter=adapter)
    assert metadata(text)["library_name"] == "peft"
    assert metadata(text)["base_model"] == "Qwen/Qwen2.5-0.5B-Instruct"
    assert "lora" in metadata(text)["tags"]
    assert facts(text)["Adapter"] == "LoRA for Qwen/Qwen2.5-0.5B-Instruct: rank 8, alpha 16, on q_proj, v_proj"
    assert "base = AutoModelForCausalLM.from_pretrained('Qwen/Qwen2.5-0.5B-Instruct', dtype='float32')" in text
    assert "PeftModel.from_pretrained(base, path)" in text
    assert "Load the tokenizer with `PreTrainedTokenizerFast`" in text


def test_an_adapters_card_loads_the_base_as_training_did():
    adapter = Adapter("me/base", 8, 16, ("q_proj",), "bfloat16", "v1")
    config = TrainConfig(task="gsm8k", reference="previous")
    text = model_card(config, STATE, byte_tokenizer(), "me/base", needs_reference=True, adapter=adapter)
    assert "AutoModelForCausalLM.from_pretrained('me/base', dtype='bfloat16', revision='v1')" in text


def test_the_card_shows_offline_data():
    assert facts(card(task=None, groups_data="some/log.jsonl", reference="initial"))["Training data"].endswith(
        "log.jsonl"
    )
    assert "64 groups sampled once" in facts(card(sample_groups=64, reference="initial"))["Training data"]


def test_the_card_shows_how_old_the_groups_are():
    assert facts(card(rollout_staleness=4))["Sampling"].endswith("; 4 steps before they are trained on")
    assert facts(card(rollout_reuse=3))["Sampling"].endswith("; each group is trained on in 3 steps")


def test_metadata_contain_only_names_on_the_hub():
    read = metadata(card(task=None, train_data="openai/gsm8k:main#train"))
    assert read["base_model"] == "Qwen/Qwen2.5-0.5B-Instruct"
    assert read["datasets"] == ["openai/gsm8k"]
    assert read["library_name"] == "transformers"
    assert "reinforcement-learning" in read["tags"]


def test_local_paths_are_not_published(tmp_path: Path):
    own = tmp_path / "secret" / "base-model"
    own.mkdir(parents=True)
    text = card(str(own), task=None, train_data=str(tmp_path / "rows.jsonl"), reward_funcs=[f"{tmp_path}/own.py:right"])
    assert "secret" not in text
    assert str(tmp_path) not in text
    assert facts(text)["Started from"] == "base-model"
    assert facts(text)["Training data"] == "rows.jsonl"
    assert facts(text)["Rewards"] == "own.py:right"
    assert "base_model" not in metadata(text)


@pytest.mark.filterwarnings("ignore:AutoTokenizer loads")
def test_each_checkpoint_has_its_card_under_its_checksum_and_the_cards_code_loads_it(tmp_path: Path):
    trainer(tmp_path, steps=2, checkpoint_every=1, objective="gvpo", beta=0.3).train()
    for step in (1, 2):
        path = tmp_path / "checkpoints" / runfiles.step_name(step)
        shown = facts((path / "README.md").read_text())
        assert shown["Steps"] == f"{step} of 2, each 4 prompts"
        assert "beta 0.3" in shown["Objective"]
        assert "README.md" in runfiles.read_json(path / "trainer/manifest.json")
        load(path)  # its checksum among them
    (code,) = re.findall(r"```python\n(.*?)```", (path / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {"path": str(path)}
    exec(code, names)
    assert names["tokenizer"]("1234").input_ids == tokenizer()("1234").input_ids
    assert names["model"].config.hidden_size == 32


def test_a_resumed_run_writes_the_same_card(tmp_path: Path):
    texts = []
    for name, halves in (("whole", False), ("halves", True)):
        run = tmp_path / name
        settings: dict[str, Any] = {"steps": 2, "checkpoint_every": 1}
        if halves:
            trainer(run, **settings).train()
            (run / "summary.json").unlink()
            for file in (run / "checkpoints/step-000002").rglob("*.json"):
                file.unlink()
            with noticed("trying the previous one"):
                trainer(run, **settings).train(resume=True)
        else:
            trainer(run, **settings).train()
        texts.append((run / "checkpoints/step-000002/README.md").read_text())
    assert texts[0] == texts[1]
