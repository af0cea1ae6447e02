"""recipes/preferences and recipes/poft: their data scripts, and the settings that the arms share."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gvpo.cli.shipped import find_recipe
from gvpo.config.recipe import load_config
from gvpo.model.fresh_tokenizer import fresh_tokenizer

RECIPES = Path(__file__).parents[1] / "recipes"
REAL = Path(os.environ.get("GVPO_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")) / "preference"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_data", RECIPES / name / "data.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def script(name: str, *arguments: str) -> str:
    command = [sys.executable, str(RECIPES / name / "data.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def pair(prompt: str, chosen: str = "yes", rejected: str = "no") -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_unusable_rows_are_skipped_and_no_prompt_is_in_both_files(tmp_path: Path):
    source = tmp_path / "source.jsonl"
    good = [pair(f"What is {number // 2}?", f"It is {number}.") for number in range(20)]  # each prompt twice
    bad = [pair("same", "yes", "yes"), pair("long", "x" * 300), pair("caf\u00e9")]
    source.write_text("".join(json.dumps(row) + "\n" for row in [*good, *bad]))
    said = script("preferences", "--source", str(source), "--out", str(tmp_path / "out"), "--held-out", "6")
    assert "20 of 23 rows are usable" in said
    train, held_out = rows(tmp_path / "out" / "train.jsonl"), rows(tmp_path / "out" / "held-out.jsonl")
    assert (len(train), len(held_out)) == (14, 6)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data are missing; set GVPO_TEST_DATA to their parent")
def test_real_rows_fit_the_vocabulary_and_the_context(tmp_path: Path):
    script("preferences", "--source", str(REAL / "instruction_pref_1100.jsonl"), "--out", str(tmp_path))
    kept = [*rows(tmp_path / "train.jsonl"), *rows(tmp_path / "held-out.jsonl")]
    assert len(kept) > 1000
    config = load_config(find_recipe("preferences/sft"))
    tokenizer = fresh_tokenizer(config.vocabulary or [])
    for row in kept:
        lengths = [len(tokenizer(row["prompt"] + row[name]).input_ids) + 1 for name in ("chosen", "rejected")]
        assert max(lengths) <= (config.model_init or {})["max_position_embeddings"]
        assert tokenizer.unk_token_id not in tokenizer(row["prompt"] + row["chosen"] + row["rejected"]).input_ids


def test_wrong_answers_come_from_other_rows(tmp_path: Path):
    made = module("poft").spoilt([pair(str(number), f"answer {number}") for number in range(10)], 0.3)
    wrong = [row for row in made if row["wrong"]]
    assert len(wrong) == 3
    assert all(row["completion"] != f"answer {row['prompt']}" for row in wrong)
    assert all(row["completion"] == f"answer {row['prompt']}" for row in made if not row["wrong"])


@pytest.mark.parametrize("arm", ["epa", "gvpo"])
def test_the_arms_differ_only_in_the_objective_and_epas_weak_negatives(arm: str):
    dpo, other = (load_config(find_recipe(name)).to_recipe() for name in ("preferences", f"preferences/{arm}"))
    differing = {
        f"{section}.{key}" for section, table in dpo.items() for key in table if table[key] != other[section][key]
    }
    assert differing == {"objective.name"} | ({"data.weak_negatives"} if arm == "epa" else set())


def test_sft_differs_from_poft_only_in_the_objective():
    poft, sft = (load_config(find_recipe(name)).to_recipe() for name in ("poft", "poft/sft"))
    assert [section for section, table in poft.items() if table != sft[section]] == ["objective"]
    assert sft["objective"]["reduction"] == "sequence_mean"


def test_dpo_after_poft_is_the_preference_recipe_with_another_model():
    dpo = load_config(find_recipe("preferences")).to_recipe()
    after = load_config(find_recipe("poft/dpo")).to_recipe()
    assert [section for section, table in dpo.items() if table != after[section]] == ["model"]
    assert after["model"]["path"] == "runs/poft"
