"""`gvpo train` with a [lora] section, and `gvpo merge`: a trained adapter becomes a whole model."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gvpo.cli.main import main
from gvpo.model.model import load_model, save_model
from tests.training.toy import DIGITS, lines, model, tokenizer, trainer

RECIPE = """
[model]
path = "base"
[lora]
rank = 4
[data]
train = "digits.jsonl"
eval = "digits.jsonl"
[rewards]
funcs = ["reward.py:digits"]
workers = 1
[objective]
reference = "every:5"
[sampling]
max_tokens = 3
[train]
steps = 12
prompts_per_step = 10
learning_rate = 1e-2
"""
REWARD = """
def digits(completions, digit, **_):
    return [text.count(one) / 3 for text, one in zip(completions, digit)]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a base that writes the digit or the next one equally often, and a recipe that rewards the digit."""
    policy = model()
    pairs = [(digit, other) for digit in DIGITS for other in (digit, str((int(digit) + 1) % 10))]
    rows = [{"prompt": digit, "completion": other * 3} for digit, other in pairs]
    supervised = {"objective": "sft", "reference": "previous", "steps": 60, "prompts_per_step": 20}
    trainer(tmp_path / "warm", policy=policy, data=rows, eval_problems=0, learning_rate=1e-2, **supervised).train()
    save_model(policy, tokenizer(), tmp_path / "base")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "digits.jsonl").write_text("".join(json.dumps({"prompt": d, "digit": d}) + "\n" for d in DIGITS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_adapter_learns_and_is_merged(project: Path, capsys: pytest.CaptureFixture[str]):
    before = (project / "base/model.safetensors").read_bytes()
    assert main(["train", "recipe.toml", "run.dir=run"]) == 0
    rewards = [line["reward/mean"] for line in lines(project / "run") if "reward/mean" in line]
    assert rewards[0] < 0.6
    assert rewards[-1] > 0.8
    assert (project / "base/model.safetensors").read_bytes() == before

    assert main(["merge", "run", "whole"]) == 0
    assert capsys.readouterr().out.endswith("merged run/checkpoints/step-000012 into whole\n")
    whole, adapter = AutoModelForCausalLM.from_pretrained("whole"), load_model(project / "run/checkpoints/step-000012")
    ids = torch.tensor([tokenizer()("4").input_ids])
    with torch.no_grad():
        difference = (whole(ids).logits.log_softmax(-1) - adapter.eval()(ids).logits.log_softmax(-1)).abs().max()
    assert difference < 1e-4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing", "out"], "there is no model in nothing; pass a run's directory or one of its checkpoints"),
        (["whole", "out"], "there is no adapter in whole"),
        (["adapter", "whole"], "whole is not empty; give a new directory for the merged model"),
        (["adapter", "out", "--base", "./gone"], "there is no directory './gone'"),
        (["adapter", "out"], "does not name its base model; give it with --base"),
    ],
)
def test_error_about_an_impossible_merge_is_one_line_with_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    save_model(model(), tokenizer(), "whole")
    run = trainer(Path("run"), lora_rank=2, steps=1, held=None)
    save_model(run.model, tokenizer(), "adapter")
    assert main(["merge", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gvpo: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not Path("out").exists()
