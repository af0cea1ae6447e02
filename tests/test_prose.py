"""The checks of the English: what each rule finds and does not find; and code in which only words change."""

import subprocess
from pathlib import Path

import pytest

from tools import prose, same_code
from tools.texts import STAND_IN, Text, markdown_text, mask, python_texts

# rule: (kind of text, what it must find, what it must not find)
CASES = {
    "imperative": (
        "function",
        [
            "The mean of a group.",
            "Whether a run is finished.",
            "Rows of a file.",
            "Writes a file.",
            "Mean of a group.",
            "Encoding by hand.",
            "Temperature is left out.",
            "TRL's loss.",
            "1 where the answer is right.",
        ],
        ["Return the mean.", "Process a row.", "Embed a text.", "Bring it back.", "Warn of a fork.", "[B] log-probs."],
    ),
    "noun phrase": ("class", ["What a run is.", "Of one arm."], ["A run.", "Whatever a reward returned."]),
    "description": ("help", ["of the draws", "where it goes", "the same"], ["Seed of the draws", "Officer's name"]),
    "capital": (
        "help",
        ["directory of the run"],
        ["Directory", f"{STAND_IN} of the run", "softmax(Q)", "gpt2.json", "last | mean"],
    ),
    "argument": (
        "function",
        ["Draw.\n\n    Args:\n        seed: of it"],
        ["Draw.\n\n    Args:\n        seed: seed of it"],
    ),
    "per": (
        "markdown",
        ["tokens a forward", "2 updates a rollout", "one value\na row", "once a step.", "16 bytes a parameter"],
        [
            "tokens per forward",
            "samples a group of rows",
            "the tokens a step takes",
            "the seconds a call may take",
            "32 tokens behind a prompt",
            "one of a row",
            "two answers to a prompt",
            "once a step is done",
        ],
    ),
    "go on": ("message", ["going on", "it goes\non"], ["gone", "ongoing"]),
    "beforehand": ("comment", ["known beforehand"], ["known before"]),
    "mend": ("comment", ["mends it"], ["amend it", "amendment"]),
    "sitting": ("comment", ["a sitting"], ["it sits", "a setting"]),
    "anew": ("comment", ["made anew"], ["a new one"]),
    "on the spot": ("comment", ["made on the spot"], ["a spot"]),
    "beside": ("comment", ["written beside it"], ["besides it"]),
    "likeliest": ("comment", ["the likeliest token", "likelier here"], ["the most likely token"]),
    "but for": ("comment", ["equal but for rounding"], ["nothing but rows for it"]),
    "none too": ("comment", ["groups, none too"], ["none of them, too"]),
    "else": ("comment", ["It is empty. Else it fails"], ["or else it fails", "Else if"]),
    "behind": ("comment", ["behind the prompt", f"behind {STAND_IN}"], ["left behind", "hidden behind the backward"]),
    "lies": ("comment", ["where it lies in memory"], ["a program that lies", "a value lies between two others"]),
    "stands": ("comment", ["it stands in the file"], ["it stands for one", "stands out"]),
    "holds": ("comment", ["the file holds rows"], ["the bound holds", "hold the lock"]),
    "say": ("comment", ["0.2, say", f"{STAND_IN} say."], ["as they say", "what rows say."]),
    "as it comes": ("comment", ["take it as it comes."], ["as it comes from a file"]),
    "participle": ("comment", ["Read is the last box", "So. Left out are rows"], ["The rows read are", "Speed is"]),
    "is no": ("comment", ["what is no run"], ["there is no run", "one that is no longer there"]),
    "is none": ("comment", ["a row that is none."], ["there is none", "it is none of them"]),
    "at most": ("comment", ["tokens a completion at most"], ["at most 4 tokens", "tokens, at most 4"]),
    "is said": ("comment", ["what is missing is said"], ["it is said to be", "nothing is said"]),
}


def names(kind: str, words: str) -> list[str]:
    """Return the names of the rules that find something."""
    return [finding.rule.name for finding in prose.findings(Text(Path("a.py"), 1, kind, words))]


def test_every_rule_has_cases():
    assert list(CASES) == [rule.name for rule in prose.RULES]


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_finds_its_pattern_and_nothing_similar(rule):
    kind, wrong, right = CASES[rule]
    assert [words for words in wrong if rule not in names(kind, words)] == []
    assert [words for words in right if rule in names(kind, words)] == []


def test_a_finding_has_the_line_of_its_words():
    text = Text(Path("a.md"), 10, "markdown", "One.\n\n  It\n   goes on.")
    assert [str(found) for found in prose.findings(text)] == ['a.md:13: go on: \'goes on\'; "resume" or "continue"']


def test_names_quotations_formulas_and_code_are_not_checked():
    assert mask('`a` and ``b`` in "what they say", $x$') == "§ and § in §, §"
    source = "Text.\n\n```py\nbeforehand\n```\n\n> beforehand\n\n[a](beforehand.md) `before\nhand` end\n"
    words = markdown_text(Path("a.md"), source).words
    assert "beforehand" not in words
    assert words.count("\n") == source.count("\n")
    assert "end" in words


SOURCE = '''"""A module."""
LIMIT = 1
"""A constant."""


class A:
    """A class."""

    @property
    def size(self):
        """A property."""
        return "# no comment"  # a remark

    # a comment
    # of two lines
    def test_it(self):
        """A test."""
        raise ValueError(f"there is {self} in the way " "of it")


def run(flag):
    """A function."""
    return flag("--x", help="a text")
'''


def test_the_texts_of_a_file_and_their_kinds():
    found = [(text.line, text.kind, text.words.strip()) for text in python_texts(Path("src/test_a.py"), SOURCE)]
    assert sorted(found) == [
        (1, "module", "A module."),
        (3, "constant", "A constant."),
        (7, "class", "A class."),
        (11, "property", "A property."),
        (12, "comment", "a remark"),
        (12, "message", "# no comment"),
        (14, "comment", "a comment\n of two lines"),
        (16, "test name", "it"),
        (17, "test", "A test."),
        (18, "message", "there is § in the way of it"),
        (22, "function", "A function."),
        (23, "help", "a text"),
    ]


def test_messages_are_read_only_in_src():
    kinds = {text.kind for text in python_texts(Path("tests/a.py"), SOURCE)}
    assert not kinds & {"message", "help", "test name"}


def test_the_command_prints_findings_or_counts_and_exits_with_1(tmp_path, capsys):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("Known beforehand.\n")
    assert prose.main(["--root", str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith("docs/a.md:1: beforehand: ")
    assert prose.main(["--root", str(tmp_path), "--count"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].split() == ["total", "1", "1"]
    assert prose.main(["--root", str(tmp_path), "docs/a.md"]) == 1
    assert prose.main(["--root", str(tmp_path), "src"]) == 0
    assert prose.main(["--root", str(tmp_path), "--at-most", "1"]) == 0
    (tmp_path / "docs" / "a.md").write_text("Known before.\n")
    assert prose.main(["--root", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('def f():\n    "One."\n    return 1', "def f():\n    return 1"),
        ('raise E("one")', 'raise E("two" "three")'),
        ('E(f"{a} is {b:.2f}")', 'E(f"of {b:.2f} "\n  f"{a} remains")'),
        ("a = 1  # one", "a = 1"),
        ("def test_a(b): pass", "def test_c(b): pass"),
    ],
)
def test_words_are_not_code(before, after):
    assert same_code.skeleton(before) == same_code.skeleton(after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('E("one")', 'E("one", "two")'),
        ('E(f"{a} is")', 'E(f"{b} is")'),
        ('E(f"{a} is")', 'E("it is")'),
        ('E(f"{a:.2f}")', 'E(f"{a:.3f}")'),
        ('E(f"{a!r}")', 'E(f"{a}")'),
        ('E("one" if a else "")', 'E("one" if b else "")'),
        ("a = 1", "a = 2"),
        ("def a(b): pass", "def c(b): pass"),
        ('a = "1"', "a = 1"),
    ],
)
def test_code_that_changes_is_found(before, after):
    assert same_code.skeleton(before) != same_code.skeleton(after)


def test_strings_that_may_be_names_are_reported():
    assert same_code.renamed('a["key"] = f"{b}.json"', 'a["keys"] = f"{b}.jsonl"') == [".json", ".jsonl", "key", "keys"]
    assert same_code.renamed('E("an old text")', 'E("a new text")') == []


def test_a_working_tree_is_compared_with_a_revision(tmp_path, capsys):
    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True, capture_output=True)

    def write(name, text):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    write("src/a.py", 'print("an old text")\n')
    write("tests/a.py", "x = 1\n")
    git("init", "--quiet")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "-m", "one")
    root = ["--root", str(tmp_path)]
    write("src/a.py", '"""New."""\nprint("a new text")\n')
    write("tests/a.py", "x = 2\n")
    assert same_code.main(["HEAD", *root]) == 0
    assert same_code.main(["HEAD", "--tests", *root]) == 1
    write("src/a.py", "print(1)\n")
    write("src/b.py", "x = 1\n")
    capsys.readouterr()
    assert same_code.main(["HEAD", *root]) == 1
    assert capsys.readouterr().out.splitlines()[:2] == ["src/a.py: the code differs", "src/b.py: the code differs"]
