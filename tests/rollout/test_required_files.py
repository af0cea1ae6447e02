"""Files and names of settings that are checked before torch is imported."""

from pathlib import Path
from typing import Any

import pytest

from gvpo.config import TrainConfig
from gvpo.errors import GvpoError
from gvpo.rollout.required_files import require_files


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("{}")
    Path("judge.py").write_text("raise ValueError('it is not imported')")
    Path("empty").mkdir()
    Path("run/checkpoints").mkdir(parents=True)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train_data": "rows.jsonl", "eval_data": "owner/name:main#test"},
        {"reward_funcs": ["judge.py:anything", "some.module:function", "exact_match", "reward_model", "judge"]},
        {"reward_funcs": ["gsm8k", "empty/", "owner/classifier"]},
        {"reward_funcs": ["short"], "reward_options": {"short": {"reward": "length_penalty", "limit": 3}}},
        {"model_path": "owner/name", "tokenizer": "name", "lora_path": "owner/adapter", "task": "addition"},
    ],
    ids=str,
)
def test_what_exists_or_may_exist_elsewhere_is_accepted(settings: dict[str, Any]):
    require_files(TrainConfig(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            ({name: "none.jsonl"}, "there is no file none.jsonl; check the path")
            for name in ("train_data", "eval_data", "groups_data", "eval_groups")
        ),
        ({"train_data": "empty"}, "empty is a directory, but not of a run"),
        ({"task": "adition"}, "data.task='adition' does not exist"),
        ({"reward_funcs": ["none.py:f"]}, "reward 'none.py:f': there is no file .*none.py; correct the path"),
        ({"reward_funcs": ["judge.py"]}, "reward 'judge.py' is a file; name its function too"),
        ({"reward_funcs": ["exact_mach"]}, "there is no reward 'exact_mach'; did you mean 'exact_match'?"),
        ({"reward_funcs": ["./none"]}, "there is no directory './none' to load a reward model from"),
        ({"environment": "none.py:Game"}, "environment 'none.py:Game': there is no file .*none.py; correct the path"),
        ({"environment": "game.py"}, "environment 'game.py' is a file; name its class too"),
        ({"environment_tools": ["none.py:add"]}, "tool 'none.py:add': there is no file .*none.py; correct the path"),
        ({"model_path": "./none"}, "there is no directory './none' to load a model from"),
        ({"model_path": "rows.jsonl"}, "rows.jsonl is a file; give the directory"),
        ({"model_path": "empty"}, "empty has no config.json, so it is not a model"),
        ({"model_path": "run"}, "the run in run has no checkpoint"),
        ({"tokenizer": "a/b/c"}, "there is no directory 'a/b/c' to load a tokenizer from"),
        ({"lora_path": "/none"}, "there is no directory '/none' to load an adapter from"),
        ({"lora_path": "empty"}, "there is no adapter in empty: it has no adapter_config.json"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_is_missing_is_named(settings: dict[str, Any], message: str):
    with pytest.raises(GvpoError, match=message):
        require_files(TrainConfig(**settings))
