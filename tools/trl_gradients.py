"""Measure the gradients inside TRL against plain autograd, and write the table into the benchmarks page.

    python -m tools.trl_gradients [--page docs/internals/benchmarks.md]

The cases are those of tests/integrations/trl/test_gradients.py.
"""

import argparse
import datetime
import gc
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from peft import LoraConfig

from tests.integrations.trl.by_hand import save_model, trained
from tests.integrations.trl.rank_jobs import gradients
from tests.integrations.trl.test_gradients import CASES, ENGINES, WORLD
from tests.naive import double_precision
from tests.training.world import world

PAGE = Path(__file__).parents[1] / "docs/internals/benchmarks.md"
START, END = "<!-- trl-gradients -->\n", "<!-- /trl-gradients -->"


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    gc.freeze()
    found = []
    for line in lines():
        print(line, flush=True)
        found.append(line)
    text = "\n".join(found)
    before, rest = options.page.read_text(encoding="utf-8").split(START)
    options.page.write_text(f"{before}{START}\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def lines() -> Iterator[str]:
    """Yield the lines of the table."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}"
    yield f"`python -m tools.trl_gradients`, CPU, 1 thread, {today}, {versions}, a Qwen2 of two layers."
    yield ""
    yield "| Case | engine gvpo | engine trl |"
    yield "| --- | ---: | ---: |"
    for name, case in every_case().items():
        yield f"| {name} | {' | '.join(error(engine, dict(case)) for engine in ENGINES)} |"
    found = ranks()
    for name in MULTIPLE:
        yield f"| two ranks: {name} | {' | '.join(found.get(f'{name}, {engine}', '') for engine in ENGINES)} |"


def every_case() -> dict[str, dict[str, Any]]:
    """Return the cases of a single process."""
    adapter = {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)}
    wide = {**CASES["everything at once"], "reference": "initial", "dtype": torch.float64}
    return {**CASES, "LoRA": {"reference": "initial", **adapter}, "everything at once, float64 weights": wide}


def error(engine: str, case: dict[str, Any]) -> str:
    """Return the largest error of a case."""
    dtype = case.pop("dtype", torch.float32)
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        directory = Path(place)
        if dtype == torch.float64:
            case["model_init_kwargs"] = {"dtype": "auto"}
            stack.enter_context(double_precision(None))
        model = save_model(directory / "model", dtype)
        return f"{max(trained(directory, model=model, engine=engine, **case)[1].errors):.0e}"


ACROSS: dict[str, Any] = {"per_device_train_batch_size": 2, "reference": "initial", "max_steps": 3}
MULTIPLE: dict[str, dict[str, Any]] = {
    "whole groups": {},
    "groups across ranks": ACROSS,
    "groups across ranks, accumulation": {**ACROSS, "gradient_accumulation_steps": 2},
    "groups across ranks, no reward for some rows": {
        **ACROSS,
        "reward": WORLD["groups across ranks and steps"]["reward"],
    },
}


def ranks() -> dict[str, str]:
    """Return the largest errors of the cases of two gloo ranks."""
    cases = {f"{name}, {engine}": {**case, "engine": engine} for name, case in MULTIPLE.items() for engine in ENGINES}
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        found = world(2, directory, gradients, directory, save_model(directory / "model"), cases)
    return {name: f"{max(error for rank in found for error in rank[name]):.0e}" for name in cases}


if __name__ == "__main__":
    main()
