"""The guide of the plug-in: TRL's own example with two changed lines runs, and the page shows the difference."""

import difflib
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import trl.rewards
from datasets import Dataset
from transformers import training_args
from trl import GRPOTrainer

from gvpo.integrations.trl import FastGRPOTrainer, GVPOTrainer
from tests.integrations.trl.by_hand import save_model

GUIDE = (Path(__file__).parents[3] / "docs/guides/trl-plugin.md").read_text(encoding="utf-8")


def original() -> str:
    """Return the example in the documentation of TRL's GRPOTrainer."""
    code = re.findall(r"^ *```python\n(.*?)^ *```$", GRPOTrainer.__doc__ or "", re.DOTALL | re.MULTILINE)[0]
    return re.sub(r"^ *(>>>|\.\.\.) ?", "", code, flags=re.MULTILINE)


def ported(kind: str) -> str:
    changed = original().replace("from trl import GRPOTrainer", f"from gvpo.integrations.trl import {kind}")
    return changed.replace("trainer = GRPOTrainer(", f"trainer = {kind.split()[0]}(") if " as " not in kind else changed


def test_the_guide_shows_trls_example_with_two_changed_lines():
    [shown] = re.findall(r"^```diff\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
    before = [line[1:] for line in shown.splitlines() if not line.startswith("+")]
    after = [line[1:] for line in shown.splitlines() if not line.startswith("-")]
    assert before == original().splitlines()
    assert after == ported("GVPOTrainer").splitlines()
    assert sum(line.startswith("+") for line in difflib.ndiff(before, after)) == 2


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
@pytest.mark.parametrize(
    ("name", "kind"), [("GVPOTrainer", GVPOTrainer), ("FastGRPOTrainer as GRPOTrainer", FastGRPOTrainer)]
)
def test_trls_example_runs(tmp_path, monkeypatch, name, kind):
    """Replace only what needs a network or a GPU: model, data set, reward (an extra package), and the check of bf16."""
    rows = [{"prompt": "12", "solution": "3"}] * 2
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Dataset.from_list(rows))
    monkeypatch.setattr(trl.rewards, "accuracy_reward", short)
    monkeypatch.setattr(training_args, "is_torch_bf16_gpu_available", lambda: True)
    monkeypatch.chdir(tmp_path)
    script = ported(name).replace("Qwen/Qwen2.5-0.5B-Instruct", save_model(tmp_path / "tiny"))
    names: dict[str, Any] = {}
    exec(script, names)
    trainer = names["trainer"]
    assert type(trainer) is kind
    assert trainer.engine == "gvpo"
    assert trainer.state.global_step == 6
    assert trainer.args.bf16


def short(completions: Any, solution: Any, **_: Any) -> list[float]:
    return [1 / (1 + len(text)) for text in completions]
