"""Tests that CPU code is imported only on CPUs, and that an update without private operators has the same gradient."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

import gvpo
from gvpo.model.cpu import operators
from gvpo.objectives import grpo
from gvpo.update.choose_path import choose_path
from gvpo.update.group_backward import group_backward
from gvpo.update.layouts.packed import Trees
from tests.fakes import tiny_model
from tests.naive import gradients, naive_update, random_groups, relative_error

ROOT = Path(gvpo.__file__).parent
FENCED = ("gvpo.model.cpu", "gvpo.update.attention.cpu")
INSIDE = [ROOT / "model" / "cpu", ROOT / "update" / "attention" / "cpu"]
MODULES = sorted(ROOT.rglob("*.py"))
GROUPS = random_groups([(40, (30, 9, 1)), (200, (150, 4, 2)), (3, (3, 1))])


def imported_at_once(path: Path) -> Iterator[str]:
    """Yield every module that a file imports outside functions."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


@pytest.mark.parametrize("entry", ["gvpo.update.group_backward", "gvpo.sampling.transformers", "gvpo.training.trainer"])
def test_an_import_does_not_load_the_cpu_code(entry: str):
    code = f"import sys, {entry}; print([name for name in sys.modules if name.startswith({FENCED!r})])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


def test_only_functions_import_it():
    outside = [path for path in MODULES if not any(path.is_relative_to(folder) for folder in INSIDE)]
    reached = {path: [name for name in imported_at_once(path) if name.startswith(FENCED)] for path in outside}
    assert not any(reached.values()), reached


def test_private_operators_are_named_in_one_file():
    named = [path for path in MODULES if any(word in path.read_text() for word in ("torch.ops", "torch._C"))]
    assert named == [ROOT / "model" / "cpu" / "operators.py"]


@pytest.fixture
def without_operators(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make this PyTorch version appear to have none of the private operators."""
    finders = (operators.linear_pointwise, operators.flash_attention)
    monkeypatch.setattr(operators, "_operator", lambda *_: None)
    for find in finders:
        find.cache_clear()
    yield
    for find in finders:
        find.cache_clear()


@pytest.mark.usefixtures("without_operators")
@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("budget", [300, 10**6])
def test_without_private_operators_an_update_is_exact_and_still_shares_prompts(kind: str, budget: int):
    model = tiny_model(kind, dtype=torch.float64)
    objective = partial(grpo, reduction="token_mean")
    true = naive_update(model, GROUPS, objective)
    output = group_backward(model, GROUPS, objective, tokens_per_microbatch=budget)
    assert choose_path(model).layout == Trees()
    assert output.loss.item() == pytest.approx(true.loss.item(), rel=1e-9)
    assert relative_error(gradients(model), true.gradients) < 1e-6


@pytest.mark.usefixtures("without_operators")
def test_without_private_operators_autocast_leaves_attention_in_float32(monkeypatch: pytest.MonkeyPatch):
    seen: list[torch.dtype] = []
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda query, *words, **others: (
            seen.append(attend(query, *words, **others).dtype) or attend(query, *words, **others)
        ),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        group_backward(tiny_model("llama"), GROUPS, grpo, prefix_sharing="on")
    assert set(seen) == {torch.float32}
