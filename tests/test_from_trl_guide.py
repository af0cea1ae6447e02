"""The guide for people who know TRL: the script, its port, and their difference."""

import ast
import difflib
import json
import re
import shutil
from pathlib import Path

import pytest

from gvpo.config import FIELDS, TrainConfig
from gvpo.config.aliases import ANSWERS
from tests.fakes import CHAT_TEMPLATE, byte_tokenizer, tiny_model
from tests.test_examples import example

ROOT = Path(__file__).parents[1]
ORIGINAL, PORT = ROOT / "examples/trl_original.py", ROOT / "examples/trl_port.py"
GUIDE = (ROOT / "docs/guides/from-trl.md").read_text(encoding="utf-8")
KEYS = {field: dotted for dotted, field in FIELDS.items()}
RENAMED = {"GRPOConfig": "TrainConfig", "GRPOTrainer": "Trainer", "resume_from_checkpoint": "resume"}


def difference() -> list[str]:
    before, after = (path.read_text(encoding="utf-8").splitlines() for path in (ORIGINAL, PORT))
    return list(difflib.unified_diff(before, after, ORIGINAL.name, PORT.name, lineterm="", n=1))


def options(file: Path) -> dict[str, str]:
    """Return the keywords of the configuration that a script creates, as source text."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    [call] = [call for call in calls if ast.unparse(call.func) in ("GRPOConfig", "TrainConfig")]
    return {str(keyword.arg): ast.unparse(keyword.value) for keyword in call.keywords}


def values(file: Path) -> dict[str, object]:
    """Return the options of a script whose values are literals."""
    known = {name: text for name, text in options(file).items() if "directory" not in text and "torch" not in text}
    return {name: ast.literal_eval(text) for name, text in known.items()}


def test_the_guide_shows_the_whole_difference():
    [shown] = re.findall(r"^```diff\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
    assert shown.splitlines() == difference()


def test_the_difference_is_in_imports_and_names_only():
    removed = [line[1:] for line in difference()[2:] if line.startswith("-")]
    added = [line[1:] for line in difference()[2:] if line.startswith("+")]
    is_option = re.compile(r"        (\w+)=.*,$").fullmatch
    rest = [line for line in removed if line and not is_option(line) and not line.startswith(("import ", "from "))]
    for line in rest:
        renamed = re.sub("|".join(RENAMED), lambda found: RENAMED[found[0]], line)
        assert renamed in added
        added.remove(renamed)
    assert [line for line in added if line and not is_option(line) and not line.startswith(("import ", "from "))] == []


def test_options_keep_their_values_and_have_the_names_that_the_messages_give():
    before, after = options(ORIGINAL), options(PORT)
    for name, text in after.items():
        meant = [
            old for old, value in before.items() if value == text and (old == name or ANSWERS[old].key == KEYS[name])
        ]
        special = {"kl_coef": "beta"}  # its message names both meanings
        assert meant or before[special[name]] == text, name
    gone = [old for old in before if old not in after and before[old] not in after.values()]
    assert gone
    assert [old for old in gone if f"`{old}`" not in GUIDE.partition("**Removed options.**")[2]] == []


def test_the_port_has_the_settings_of_the_conversion():
    converted, port = TrainConfig.from_trl(values(ORIGINAL)), TrainConfig(**values(PORT))
    assert {name: getattr(converted, name) for name in port.model_fields_set} == {
        name: getattr(port, name) for name in port.model_fields_set
    }


@pytest.fixture
def model(tmp_path: Path) -> str:
    tiny_model("qwen2", vocab_size=320).save_pretrained(tmp_path / "model")
    byte_tokenizer(CHAT_TEMPLATE).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_the_port_runs_and_resumes(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = tmp_path / "run"
    port = example("trl_port")
    port.main(model, run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert {"reward/right", "reward/brief", "eval/accuracy"} <= {key for line in lines for key in line}
    assert list((run / "tensorboard").rglob("events.*"))
    assert (run / "checkpoints/step-000004/adapter_model.safetensors").is_file()
    assert (run / "final/adapter_model.safetensors").is_file()
    shutil.rmtree(run / "checkpoints/step-000004")
    (run / "summary.json").unlink()
    port.main(model, run, resume=True)
    again = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("reward/mean") for line in again] == [line.get("reward/mean") for line in lines]
    assert (run / "summary.json").is_file()
    assert capsys.readouterr().out.count("right answers: 0.00 -> 0.00") == 2  # random weights


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_original_runs_and_resumes(model: str, tmp_path: Path):
    pytest.importorskip("trl")
    original = example("trl_original")
    original.main(model, tmp_path / "run")
    assert (tmp_path / "run/checkpoint-4/adapter_model.safetensors").is_file()
    shutil.rmtree(tmp_path / "run/checkpoint-4")
    original.main(model, tmp_path / "run", resume=True)
    history = json.loads((tmp_path / "run/checkpoint-4/trainer_state.json").read_text())["log_history"]
    assert [line["step"] for line in history if "reward" in line] == [1, 2, 3, 4]
    assert {"rewards/right/mean", "rewards/brief/mean"} <= {key for line in history for key in line}
