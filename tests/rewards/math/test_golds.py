"""All reference answers of real datasets: each equals itself in every layout, and no other answer."""

import functools
import json
import os
import re
from pathlib import Path

import pytest

from gvpo.rewards.math.math_answer import gold_text
from gvpo.rewards.math.relations import is_name, relation
from gvpo.rewards.math.spelling import spelled
from gvpo.rewards.math.values import same_answer
from gvpo.rewards.verifiers.boxed import last_boxed

pytest.importorskip("mpmath")

DATA = Path(os.environ.get("GVPO_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
BENCHMARKS = {
    "math_lvl3to5": ("math_lvl3to5/train.jsonl", "answer"),
    "math500": ("math500/test.jsonl", "answer"),
    "minerva": ("minerva/test.jsonl", "answer"),
    "olympiadbench": ("olympiadbench/test.jsonl", "final_answer"),
    "amc": ("amc/amc83_test.jsonl", "answer"),
    "aime24": ("aime24/test.jsonl", "answer"),
    "gsm8k": ("gsm8k/test.jsonl", "answer"),
}
FAST, ALL = 40, 1  # every 40th reference answer, every one


@functools.cache
def golds(name: str) -> list[str]:
    file, column = BENCHMARKS[name]
    if not (DATA / file).is_file():
        pytest.skip("the real datasets are missing; set GVPO_TEST_DATA to their directory")
    texts = (gold_text(json.loads(line)[column]) for line in (DATA / file).read_text().splitlines())
    return list(dict.fromkeys(text for text in texts if text.strip()))


def enclosed(before: str, after: str):
    return lambda text: text if "$" in text else f"{before}{text}{after}"


def tight(text: str) -> str:
    return re.sub(r"(?<![A-Za-z\\0-9,$]) +| +(?![A-Za-z0-9$])", "", text)


def wide(text: str) -> str:
    odd = re.search(r"\\[!,{}]|\d,\d{3}|\\begin|\{,\}", text)
    return text if odd else re.sub(r"([-+=<>,(){}&])", r" \1 ", text)


def after_commas(space: str):
    odd = re.compile(r"\d,\d{3}|\{,\}|\\[,!]|\\text|\\mbox")
    return lambda text: text if odd.search(text) else text.replace(",", f",{space}")


def without_text(change):
    """Change the text outside words, in which spaces and braces have a meaning."""
    return lambda text: text if re.search(r"\\text|\\mbox|\\begin|where|\\!", text) else change(text)


LAYOUTS = {
    "no spaces": lambda text: text if "where" in text else tight(text),
    "more spaces": wide,
    "lines": lambda text: f"\n{text}\n",
    "spaces of LaTeX": without_text(lambda text: text.replace(" ", r"\ ")),
    "unbreakable spaces": lambda text: text.replace(" ", "\u00a0"),
    "thin spaces": after_commas(r"\,"),
    "quads": after_commas(r"\quad "),
    "negative spaces": lambda text: re.sub(r"(?<=[-+=])", r"\\!", text),
    "dfrac": lambda text: text.replace(r"\frac", r"\dfrac"),
    "tfrac": lambda text: text.replace(r"\frac", r"\tfrac"),
    "frac": lambda text: re.sub(r"\\[dt]frac", r"\\frac", text),
    "left and right": lambda text: re.sub(r"^\(([^()]*)\)$", r"\\left(\1\\right)", text),
    "neither left nor right": lambda text: re.sub(r"\\(left|right)(?=[^A-Za-z])", "", text),
    "dollars": enclosed("$", "$"),
    "two dollars": enclosed("$$", "$$"),
    "parentheses": enclosed(r"\(", r"\)"),
    "brackets": enclosed(r"\[", r"\]"),
    "display": enclosed(r"\displaystyle ", ""),
    "a full stop": lambda text: f"{text}.",
    "a comma": lambda text: f"{text},",
    "a box": lambda text: last_boxed(rf"\boxed{{{text}}}"),
    "a box with spaces": lambda text: last_boxed(rf"\boxed {{ {text} }}"),
    "a frame": lambda text: last_boxed(rf"\fbox{{{text}}}"),
    "Markdown": lambda text: f"**{text}**",
    "mathbf": without_text(lambda text: rf"\mathbf{{{text}}}"),
    "boldsymbol": lambda text: rf"\boldsymbol{{{text}}}",
    "bf": lambda text: rf"\bf {text}",
    "colour": lambda text: rf"\color{{red}}{text}",
    "doubled backslashes": lambda text: text.replace("\\", "\\\\"),
    "textrm": lambda text: re.sub(r"\\(text|mbox)\s*\{", r"\\textrm{", text),
    "mathrm": lambda text: text.replace(r"\text{", r"\mathrm{"),
    "braces after ^": lambda text: re.sub(r"([_^])([0-9a-z])", r"\1{\2}", text),
    "no braces after ^": lambda text: re.sub(r"([_^])\{([0-9a-z])\}", r"\1\2", text),
    "spaces in braces": without_text(lambda text: text.replace("{", "{ ").replace("}", " }")),
    "times": lambda text: text.replace(r"\cdot", r"\times"),
    "bmatrix": lambda text: text.replace("pmatrix", "bmatrix"),
    "minus sign": lambda text: text.replace("-", "−"),
    "full width": lambda text: text.translate({48 + digit: 0xFF10 + digit for digit in range(10)}),
    "pi": lambda text: text.replace(r"\pi", "π "),
}
WRONG = [
    "",
    "0",
    "1/0",
    r"\frac{1}{0}",
    r"\frac{0}{0}",
    r"\infty",
    "-987654.3",
    "12345678",
    "0=0",
    r"\text{none}",
    "q",
    "q=0",
]
ZEROS = ("0", "q=0", "0=0")

sweeps = pytest.mark.parametrize("step", [FAST, pytest.param(ALL, marks=pytest.mark.slow)], ids=["some", "all"])
each_benchmark = pytest.mark.parametrize("name", BENCHMARKS)


@sweeps
@each_benchmark
def test_each_reference_answer_equals_itself_in_every_layout(name, step):
    other = [
        (gold, key) for gold in golds(name)[::step] for key, lay in LAYOUTS.items() if not same_answer(gold, lay(gold))
    ]
    assert other == []


@sweeps
@each_benchmark
def test_no_reference_answer_equals_zero_or_an_answer_without_a_value(name, step):
    paid = [(gold, wrong) for gold in golds(name)[::step] for wrong in WRONG if same_answer(gold, wrong)]
    assert [each for each in paid if not (each[1] in ZEROS and same_answer(each[0], "0"))] == []
    assert all(float(re.sub(r"[^\d.]", "", gold)) == 0 for gold, _ in paid)


@sweeps
@each_benchmark
def test_no_reference_answer_equals_one_of_its_sides_unless_the_other_is_a_name(name, step):
    """An equation between numbers is an exception: 0.56 = 56 % is a number."""
    paid = []
    for gold in golds(name)[::step]:
        found = relation(spelled(gold))
        named = any(map(is_name, found.sides)) or gold.startswith(("AB=", "0.56 ="))
        if found.signs and not named:
            paid += [(gold, side) for side in found.sides if same_answer(gold, side)]
    assert paid == []


def test_the_equations_of_the_training_set_of_math_7b():
    equations = [gold for gold in golds("math_lvl3to5") if "=" in gold and not re.match(r"\w+ *=|AB=|0\.56", gold)]
    assert len(equations) == 19
    for gold in equations:
        left, right = gold.split("=")
        assert same_answer(gold, f"{right} = {left}")
        assert same_answer(gold, f"{left} - ({right}) = 0")
        assert same_answer(gold, f"2({left}) = 2({right})")
        assert not same_answer(gold, f"{left} = {right} + 1")
        assert not any(same_answer(gold, side) for side in (left, right, f"x = {right}"))
