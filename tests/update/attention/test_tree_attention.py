"""Tests of attention over trees, against one softmax under the mask of the picture."""

import math
import random

import pytest
import torch
from torch import Tensor, nn

from gvpo.errors import ModelError
from gvpo.model.cpu import matmul
from gvpo.update.attention.cpu import attention, short_rows
from gvpo.update.attention.cpu import products as product_attention
from gvpo.update.attention.tree_attention import TREES, attend, flex
from gvpo.update.layouts.forest import Forest, Tree

HEADS, KEY_HEADS, SIZE = 4, 2, 8
CASES = {
    "one completion": [(3, (4,))],
    "equal lengths": [(5, (3, 3, 3))],
    "ragged, one that is empty": [(4, (1, 0, 6, 2, 2))],
    "a prompt as long as its completions": [(4, (4, 4))],
    "several trees": [(1, (2, 1)), (7, (5, 9)), (3, ())],
    "trees that are alike": [(9, (4, 4)), (9, (4, 4)), (9, (9, 4))],
    "only empty completions": [(3, (0, 0))],
    "longer than a block of the kernel": [(300, (40, 1, 70))],
}


WAYS = {
    "kernel": {"SHORT": 0},
    "short rows": {},
    "short rows without their prompt": {"SHORT": 6},
    "a short row at a time": {"BLOCK": 1},
    "products": {"SHORT": 0, "PIECE": 2, "BLOCK": 16, "products": True},
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set up each way to compute a part."""
    chosen = WAYS[request.param]
    for name in ("SHORT", "PIECE"):
        monkeypatch.setattr(attention, name, chosen.get(name, getattr(attention, name)))
    if "BLOCK" in chosen:
        for module in (product_attention, short_rows):
            monkeypatch.setattr(module, "BLOCK_ELEMENTS", chosen["BLOCK"])
    if chosen.get("products"):
        monkeypatch.setattr(attention, "has_fast", lambda _: True)
        monkeypatch.setattr(product_attention, "gains", lambda *_: True)


def trees_of(case: str) -> Forest:
    return laid(CASES[case])


def laid(shapes: list[tuple[int, tuple[int, ...]]]) -> Forest:
    """Return a forest of (prompt, rows), one after the other."""
    made, start = [], 0
    for prompt, rows in shapes:
        made.append(Tree(start, prompt, rows))
        start += prompt + sum(rows)
    return Forest(tuple(made))


def visible(trees: Forest, window: int | None) -> Tensor:
    """Return [L, L], pair by pair from the definition."""
    places = [
        (number, owner, (tree.prompt if owner else 0) + place)
        for number, tree in enumerate(trees.trees)
        for owner, length in enumerate((tree.prompt, *tree.rows))
        for place in range(length)
    ]
    return torch.tensor(
        [
            [
                tree == other and whose in (0, owner) and at <= position and (window is None or position - at < window)
                for other, whose, at in places
            ]
            for tree, owner, position in places
        ]
    )


def inputs(length: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(1, length, heads, SIZE) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


def dense(leaves: list[Tensor], seen: Tensor, scale: float) -> Tensor:
    query, key, value = (each.transpose(1, 2) for each in leaves)
    key, value = (each.repeat_interleave(HEADS // KEY_HEADS, 1) for each in (key, value))
    scores = (query @ key.mT * scale).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def over_trees(leaves: list[Tensor], trees: Forest, window: int | None, **others: object) -> Tensor:
    module = nn.Module()
    module.config = type("Config", (), {"sliding_window": window})()  # type: ignore[assignment]
    query, key, value = (each.transpose(1, 2) for each in leaves)
    found, _ = attend(module, query, key, value, None, sliding_window=window, **{TREES: trees, **others})
    return found


def check(trees: Forest, window: int | None) -> None:
    """Compare output and gradients with one softmax."""
    seen = visible(trees, window)
    leaves = inputs(len(seen))
    true = dense(leaves, seen, SIZE**-0.5)
    found = over_trees(leaves, trees, window)
    torch.testing.assert_close(found, true, rtol=1e-12, atol=1e-12)
    pull = torch.randn_like(true)
    expected = torch.autograd.grad((true * pull).sum(), leaves)
    for one, other in zip(torch.autograd.grad((found * pull).sum(), leaves), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("window", [None, 1, 2, 5, 64])
@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_equal_those_of_one_softmax(case: str, window: int | None):
    check(trees_of(case), window)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("seed", range(20))
def test_any_lane(seed: int):
    draw = random.Random(seed)
    lengths = [draw.randrange(13) for _ in range(3)]  # few, so that rows often have equal lengths
    shapes = [
        (draw.choice(lengths) + 1, tuple(draw.choice(lengths) for _ in range(draw.randrange(5))))
        for _ in range(draw.randrange(1, 6))
    ]
    check(laid(shapes), draw.choice([None, None, 3, 9]))


def test_long_rows_in_float32_use_products(monkeypatch: pytest.MonkeyPatch):
    trees = Forest((Tree(0, 700, (520, 90, 300, 90)), Tree(1700, 20, (30, 25))))
    seen = visible(trees, None)
    wide = inputs(len(seen))
    leaves = [each.detach().float().requires_grad_() for each in wide]
    calls = list[int]()
    attend_back = product_attention.attend_back
    monkeypatch.setattr(product_attention, "attend_back", lambda *a: calls.append(1) or attend_back(*a))
    monkeypatch.setattr(matmul, "LEAST", 1)
    true, found = dense(wide, seen, SIZE**-0.5), over_trees(leaves, trees, None)
    torch.testing.assert_close(found.double(), true, rtol=1e-5, atol=1e-5)
    pull = torch.randn_like(true)
    expected = torch.autograd.grad((true * pull).sum(), wide)
    gradients = torch.autograd.grad((found * pull.float()).sum(), leaves)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)
    # the completions with their prompt, the halves of the prompt, those of the longest completion
    assert len(calls) == (3 if matmul.has_fast(leaves[0]) else 0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("case", ["ragged, one that is empty", "several trees"])
def test_the_block_mask_equals_the_picture(case: str, window: int | None):
    trees = trees_of(case)
    seen = visible(trees, window)
    with torch.no_grad():
        leaves = [each.detach() for each in inputs(len(seen), torch.float32)]
        query, key, value = (each.transpose(1, 2) for each in leaves)
        found = flex(query, key, value, trees, 0.3, window, compiled=False)
        torch.testing.assert_close(found, dense(leaves, seen, 0.3))


@pytest.mark.usefixtures("way")
def test_half_precision_is_accurate_up_to_its_rounding():
    trees = trees_of("several trees")
    leaves = inputs(len(visible(trees, None)), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = over_trees(leaves, trees, None)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), dense(leaves, visible(trees, None), SIZE**-0.5), rtol=0.05, atol=0.05)


def multiplications(name: str, shapes: list[list[int]]) -> int:
    """Return the multiplications of a profiled call that is a part of attention, or 0 for any other call."""
    first, second, third, *_ = (*shapes, [], [], [])
    if "flash_attention" in name:  # forward: query, key, value; backward: gradient, query, key
        return 2 * math.prod(first) * third[2]
    if name in ("aten::mm", "aten::bmm"):
        return math.prod(first) * second[-1]
    if name == "aten::addmm":
        return math.prod(second) * third[-1]
    if "linear_pointwise" in name:
        return math.prod(first) * (third if len(third) == 2 else second)[0]
    return 0


@pytest.mark.parametrize("length", [64, 256])
def test_siblings_are_not_computed(length: int):
    """Ten times the completions have ten times the pairs, not a hundred times."""

    def cost(rows: int) -> int:
        trees = Forest((Tree(0, length, (length,) * rows),))
        leaves = inputs(length + length * rows, torch.float32)
        with torch.profiler.profile(record_shapes=True) as profile:
            over_trees(leaves, trees, None).sum().backward()
        return sum(multiplications(event.name, event.input_shapes) for event in profile.events())

    assert 0 < cost(20) < 12 * cost(2)


@pytest.mark.parametrize(
    ("others", "message"),
    [({"softcap": 30.0}, "softcap"), ({"s_aux": torch.zeros(4)}, "s_aux"), ({"dropout": 0.1}, "dropout")],
)
def test_unsupported_attention_is_rejected(others: dict[str, object], message: str):
    with pytest.raises(ModelError, match=message):
        over_trees(inputs(7), trees_of("one completion"), None, **others)
