"""Invalid input for test_bad_input: recipes, data files, rewards and model directories."""

import json
import shutil
from pathlib import Path
from typing import Any

import transformers
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from gvpo.model.model import save_model
from tests.fakes import byte_tokenizer, tiny_model

BASE = """
[model]
vocabulary = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
init = { architecture = "llama", hidden_size = 32, intermediate_size = 64, num_hidden_layers = 1, \
num_attention_heads = 2, num_key_value_heads = 2, max_position_embeddings = 16 }
[data]
train = "rows.jsonl"
[sampling]
group_size = 2
max_tokens = 3
[rewards]
funcs = ["judge.py:digits"]
workers = 1
[objective]
name = "rloo"
[train]
steps = 1
prompts_per_step = 2
[checkpoint]
verify = false
"""
RECIPES = {
    "base.toml": BASE,
    "saved.toml": BASE[BASE.index("[data]") :].replace("[data]", '[model]\npath = "good"\n[data]'),
    "offline.toml": BASE.replace("train =", "groups =").replace("rows.jsonl", "groups.jsonl").replace("rloo", "gvpo"),
    "bare.toml": "",
    "torn.toml": "[train\n",
    "binary.toml": b"\xff\xfe\x00",
    "typo.toml": BASE + "evry = 3\n",
    "section.toml": BASE + "[sampler]\n",
    "flat.toml": "steps = 3\n" + BASE,
    "no-table.toml": BASE.replace("[train]\n", "") + '[[train]]\nsteps = "x"\n',
    "list.toml": "train = [1, 2]\n",
    "orphan.toml": 'extends = "nowhere.toml"\n',
    "loop.toml": 'extends = "pool.toml"\n',
    "pool.toml": 'extends = "loop.toml"\n',
    "self.toml": 'extends = "self.toml"\n',
    "extends-number.toml": "extends = 3\n",
    "extends-list.toml": 'extends = ["base.toml"]\n',
    "extends-bad.toml": 'extends = "typo.toml"\n',
    "warm.toml": BASE.replace('train = "rows.jsonl"', 'task = "addition"') + "[warm_start]\nsteps = 100000\n",
}
CHAT = [{"role": "user", "content": "1"}]
DATA: dict[str, list[Any]] = {
    "rows.jsonl": [{"prompt": digit} for digit in "0123456789"],
    "question.jsonl": [{"question": "1"}],
    "no-columns.jsonl": [{}],
    "empty.jsonl": [],
    "empty-prompt.jsonl": [{"prompt": "1"}, {"prompt": " "}],
    "no-messages.jsonl": [{"prompt": []}],
    "long.jsonl": [{"prompt": "1"}, {"prompt": "1" * 40}],
    "full.jsonl": [{"prompt": "1" * 16}],
    "number.jsonl": [{"prompt": 7}],
    "null.jsonl": [{"prompt": None}],
    "strings.jsonl": [{"prompt": ["1", "2"]}],
    "no-role.jsonl": [{"prompt": [{"content": "1"}]}],
    "no-content.jsonl": [{"prompt": [{"role": "user", "content": None}]}],
    "twice.jsonl": [{"prompt": "1", "id": "a"}, {"prompt": "2", "id": "a"}],
    "chat.jsonl": [{"prompt": CHAT}],
    "groups.jsonl": [{"prompt": "1", "completions": ["2", "3"], "rewards": [0.0, 1.0]}] * 2,
    "uneven.jsonl": [{"prompt": "1", "completions": ["2", "3"], "rewards": [0.0]}],
    "alone.jsonl": [{"prompt": "1", "completions": ["2"], "rewards": [1.0]}],
    "pairs.jsonl": [{"prompt": "1", "chosen": "2", "rejected": "3"}] * 2,
    "label.jsonl": [{"prompt": "1", "completion": "2", "label": True}],
    "half.jsonl": [{"prompt": "1", "chosen": "2", "rejected": None}],
    "swapped.jsonl": [{"prompt": "1", "chosen": "2", "rejected": "3", "score_chosen": 1, "score_rejected": 2}],
    "alike.jsonl": [{"prompt": "1", "chosen": "2", "rejected": "2"}],
    "mixed.jsonl": [{"prompt": "1"}, ["1"]],
}
FILES: dict[str, str | bytes] = {
    "torn.jsonl": '{"prompt": "1"}\n{"prompt": \n',
    "latin.jsonl": b'{"prompt": "\xe9"}\n',
    "rows.txt": "1\n",
    "object.json": '{"prompt": "1"}',
    "lines.json": '{"prompt": "1"}\n{"prompt": "2"}\n',
    "torn.parquet": b"PAR1 and nothing else",
    "torn.csv": "prompt,answer\n1,2,3\n",
    "judge.py": """
import threading

lock = threading.Lock()
number = 3

def digits(completions, **_):
    return [float(len(text)) for text in completions]

def needs_gold(completions, gold):
    return [1.0] * len(completions)

def locked(completions, **_):
    with lock:
        return [1.0] * len(completions)
""",
    "broken.py": "def judge(:\n",
    "raises.py": 'raise RuntimeError("first line\\nsecond line")\n',
    "exits.py": "import sys\nsys.exit(3)\n",
    "imports.py": "import no_such_package\n",
    "a-file": "not a directory",
}
REFUSING = "{{ raise_exception('only users\nmay speak') }}"


def furnish(place: Path) -> None:
    """Write all files into `place`."""
    for name, text in {**RECIPES, **FILES}.items():
        (place / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    for name, rows in DATA.items():
        (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "taken").mkdir()
    (place / "taken/metrics.jsonl").touch()
    (place / "folder.jsonl").mkdir()
    _furnish_models(place)


def _furnish_models(place: Path) -> None:
    save_model(tiny_model("llama", max_position_embeddings=64), byte_tokenizer(), place / "good")
    for name in ("no-config", "no-weights", "torn-weights", "cut-weights", "torn-config", "no-tokenizer"):
        shutil.copytree(place / "good", place / name)
    for name in ("wrong-type", "torn-tokenizer", "other-shape", "list-config", "no-type"):
        shutil.copytree(place / "good", place / name)
    (place / "empty").mkdir()
    (place / "no-config/config.json").unlink()
    (place / "no-weights/model.safetensors").unlink()
    (place / "torn-weights/model.safetensors").write_bytes(b"\x10" * 100)
    weights = (place / "good/model.safetensors").read_bytes()
    (place / "cut-weights/model.safetensors").write_bytes(weights[: len(weights) // 2])
    (place / "torn-config/config.json").write_text("{")
    (place / "list-config/config.json").write_text("[]")
    (place / "no-type/config.json").write_text("{}")
    _edit_config(place / "wrong-type", model_type="lama")
    _edit_config(place / "other-shape", hidden_size=64)
    (place / "torn-tokenizer/tokenizer.json").write_text("{")
    for file in (place / "no-tokenizer").glob("tokenizer*"):
        file.unlink()
    save_model(tiny_model("llama", vocab_size=100), byte_tokenizer(), place / "small-vocabulary")
    save_model(tiny_model("llama"), byte_tokenizer(REFUSING), place / "refusing")
    small = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    save_model(BertForMaskedLM(BertConfig(**small, intermediate_size=64)), byte_tokenizer(), place / "encoder")
    t5 = T5Config(vocab_size=300, d_model=32, d_ff=64, d_kv=16, num_layers=1, num_heads=2)
    save_model(T5ForConditionalGeneration(t5), byte_tokenizer(), place / "encoder-decoder")
    llama = transformers.LlamaForSequenceClassification(tiny_model("llama").config)
    save_model(llama, byte_tokenizer(), place / "classifier")


def _edit_config(directory: Path, **changes: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
