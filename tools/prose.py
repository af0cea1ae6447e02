"""Find English that CONTRIBUTING.md asks us not to write, as far as a program can decide it.

`python -m tools.prose` prints `path:line: rule: text` for each finding and exits with 1 if there is one; `--count`
prints a table of rules and folders instead, and paths limit both to some files. A rule that is wrong on more than one
text in twenty does not belong here. Some violations need a reader: a sentence without a verb, "where" for "if", a colon
in place of a verb, a term that is not the field's own.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tools.texts import STAND_IN, Text, texts

ROOT = Path(__file__).parents[1]


def _any(words: str) -> str:
    return "(?:" + "|".join(words.split()) + ")"


_DOCSTRINGS = ("module", "class", "function", "property", "test", "constant")
_SENTENCES = (*_DOCSTRINGS, "comment", "message", "help", "markdown")
_ALL = (*_SENTENCES, "test name")
_END = r"(?=[.,;:)|]|\s*\Z)"
_OPENING = r"(?:^|[.;:|(*-] )"

_NO_VERBS = (
    "a all also an and another any anywhere as at before beyond both but by children different each either else"
    " every everything first five for four from greedy her here his how if in inside into it its many median more"
    " most neither no none not nothing of old on once one only other our over per random relative several since"
    " small so some that the their there these they this those three token two under until what whatever when where"
    " whether which while who whole whose why with within without"
)
_VERBS_IN_ED = "embed exceed feed heed need proceed seed shed shred speed succeed"
_VERBS_IN_ING = "bring cling ping ring spring string"
_VERBS_IN_S = "alias bias focus"
_VERBS_WITH_OF = "dispose think warn"
_HELPERS = "is are was were has have had may can must do does will"

_MEASURES = (
    "tokens rows completions problems prompts groups seconds minutes hours updates steps bytes"
    " lines files characters parameters demonstrations questions segments pairs GiB MiB KiB"
)
_ALSO_VERBS = (
    "answers calls draws forwards passes points processes records runs samples tests times values weights words"
)
_NUMBER = r"(?:\d[\d.,]*|one|two|three|four|five|six|eight|ten|several|many|more|fewer|most|mean|of|how many)"
_THINGS = (
    "answer backward batch benchmark block call cell character chunk column completion core day device element epoch"
    " expert file forward frame function GPU group head hour item key keyword layer line machine message metric"
    " micro-batch minute model name node objective page parameter pass place point position problem process prompt"
    " question rank record request reward rollout round row run sample second seed segment sequence setting side size"
    " step task test token update value word worker"
)
_NO_NOUNS = (
    "a also and as at behind but by costs cut ends for from given gives has in is like of on or over than that to"
    " uses was where with within without"
)
_NOUN = rf"(?!{_any(_NO_NOUNS)}\b)[a-z-]+"
_EACH = rf"an? {_any(_THINGS)}\b(?! (?:{_HELPERS.replace(' ', '|')}|gets|gives|makes|needs|reads|sees|takes|uses)\b)"
_PARTICIPLES = (
    r"(?!Red|Seed|Speed|Need|Feed|Embed)[A-Z][a-z]+ed|Read|Kept|Left|Left out|Told|Held|Made|Found|Said|Given|Written|"
    "Shown|Meant|Taken|Drawn|Cut|Sent|Seen|Known|Done|Chosen|Hidden|Lost|Put|Asked for"
)


class Rule(NamedTuple):
    """A pattern, the kinds of text that it applies to, and the replacement. A space matches any white space."""

    name: str
    kinds: tuple[str, ...]
    pattern: str
    instead: str


class Finding(NamedTuple):
    """A match of a rule."""

    path: Path
    line: int
    rule: Rule
    words: str

    def __str__(self) -> str:
        """Return the finding as one line."""
        return f"{self.path}:{self.line}: {self.rule.name}: {self.words!r}; {self.rule.instead}"


RULES = (
    Rule(
        "imperative",
        ("function",),
        # a word of another class, a plural or a third person, a participle, a noun with its own verb or with "of"
        rf"\A\s*(?:(?i:{_any(_NO_VERBS)})\b|\d[\d.,]*(?= )"
        rf"|(?!(?i:{_any(_VERBS_IN_S)})\b)[A-Za-z-]+(?<!s)s\b|[A-Za-z-]+'s?(?= )"
        rf"|(?!(?i:{_any(_VERBS_IN_ED)})\b)[A-Za-z-]+ed\b|(?!(?i:{_any(_VERBS_IN_ING)})\b)[A-Za-z-]+ing\b"
        rf"|[A-Za-z-]+ {_any(_HELPERS)}\b|(?!(?i:{_any(_VERBS_WITH_OF)})\b)[A-Za-z-]+ of\b)",
        'begin the docstring of a function with a verb: "Return the mean"',
    ),
    Rule(
        "noun phrase",
        ("class", "property", "constant"),
        r"\A\s*(?:What|Whether|Which|Who|Of|That)\b",
        'begin with a noun phrase: "Number of tokens per forward"',
    ),
    Rule(
        "description",
        ("help",),
        r"\A\s*(?i:of|as|at|by|in|from|with|to|what|which|who|whose|how|where|whether|also|default:|the same)\b",
        'begin with a noun phrase or a verb that stands alone: "Maximum number of tokens per completion"',
    ),
    Rule("capital", ("help",), r"\A\s*[a-z][a-z-]*(?![\w=./:(-])(?! \|)", "begin with a capital letter"),
    Rule(
        "argument",
        _DOCSTRINGS,
        r"^\w+: (?:of|as|at|by|in|under)\b",
        'begin with a noun: "seed: random seed of the draws"',
    ),
    Rule(
        "per",
        _ALL,
        rf"\b(?:{_any(_MEASURES)}|{_NUMBER} {_any(_ALSO_VERBS)}|once|twice|times) {_EACH}"
        rf"|\b(?:one|\d[\d.,]*) (?:{_NOUN} )?{_NOUN} {_EACH}",
        '"per": "tokens per forward"',
    ),
    Rule("go on", _ALL, r"\b(?:go|goes|going|went|gone) on\b", '"resume" or "continue"'),
    Rule("beforehand", _ALL, r"\b[Bb]eforehand\b", '"in advance" or "before"'),
    Rule("mend", _ALL, r"\b[Mm]end(?:s|ed|ing)?\b", '"fix"'),
    Rule("sitting", _ALL, r"\b[Ss]ittings?\b", '"session", or "process"'),
    Rule("anew", _ALL, r"\banew\b", '"again"'),
    Rule("on the spot", _ALL, r"\bon the spot\b", '"created by the run" or "generated"'),
    Rule("beside", _ALL, r"\bbeside\b", '"next to", "in the same folder", "with", "compared with" or "in addition to"'),
    Rule("likeliest", _ALL, r"\blikel(?:iest|ier)\b", '"most likely" or "more likely"'),
    Rule("but for", _SENTENCES, r"\bbut for\b", '"except for"'),
    Rule("none too", _ALL, r"\bnone,? too\b", '"an empty list is allowed"'),
    Rule("else", _SENTENCES, _OPENING + r"Else,? (?!if\b)", '"Otherwise, "'),
    Rule(
        "behind",
        _ALL,
        r"(?<!hidden )(?<!shade )(?<!stay )(?<!leaves )(?<!left )\bbehind"
        r" (?:a|an|the|it|them|its|their|each|one|layer|every|forks|quick|§)\b(?! (?:line|backward|scenes|fence)\b)"
        r"|\bbehind §",
        '"after"',
    ),
    Rule(
        "lies",
        _ALL,
        r"\b(?:lies?|lay|lying) (?:in|under|beside|behind|past|where|there|on|at|ahead|side|elsewhere|next|near|within)"
        r"\b",
        '"is", or "is stored"',
    ),
    Rule(
        "stands",
        _ALL,
        r"\b(?:stands?|stood|standing) (?:in|at|on|beside|behind|under|before|after|where|there|around|between|with"
        r"|over|elsewhere|anywhere|first|last|twice|once|still|above|below|next|by|left|right)\b",
        '"is", "appears" or "is written"',
    ),
    Rule(
        "holds",
        _ALL,
        r"\b(?:files?|checkpoints?|director(?:y|ies)|folders?|page|column|\w+\.jsonl?) holds?\b",
        '"contains"',
    ),
    Rule("say", _SENTENCES, rf"(?:,|{STAND_IN}|\d|\]) say{_END}", '"such as" or "for example"'),
    Rule("as it comes", _SENTENCES, rf"\bas (?:it|they) comes?{_END}", '"unchanged" or "as they arrive"'),
    Rule("participle", _SENTENCES, rf"{_OPENING}(?:{_PARTICIPLES}),? (?:is|are)\b", "begin with the subject"),
    Rule("is no", _ALL, r"\b(?:that|which|what) (?:is|are) no\b(?! (?:longer|more|less|other|better)\b)", '"is not a"'),
    Rule("is none", _SENTENCES, r"(?<!there )\b(?:is|are) none\b(?! (?:of|the)\b)", '"is not one"'),
    Rule(
        "at most",
        _ALL,
        rf"\b(?:{_any(_MEASURES)}|processes|numbers|reads)(?: an? [a-z]+)? at most{_END}",
        '"at most N tokens", or "maximum number of tokens"',
    ),
    Rule("is said", _ALL, r"(?<!it )(?<!nothing )\b(?:is|are) said\b(?! to\b)", '"is reported" or "is printed"'),
)


_PATTERNS = [(rule, re.compile(rule.pattern.replace(" ", r"\s"), re.MULTILINE)) for rule in RULES]


def findings(text: Text) -> Iterator[Finding]:
    """Yield the findings of the rules in a text."""
    words = _even(text.words)
    for rule, pattern in _PATTERNS:
        if text.kind in rule.kinds:
            for found in pattern.finditer(words):
                line = text.line + words.count("\n", 0, found.start() + len(found[0]) - len(found[0].lstrip()))
                yield Finding(text.path, line, rule, " ".join(found[0].split()))


def _even(words: str) -> str:
    """Replace each run of white space by one character, and keep the line breaks."""
    return re.sub(r"[ \t]+", " ", re.sub(r"[ \t]*\n[ \t]*", "\n", words))


def table(found: list[Finding]) -> str:
    """Return the number of findings of each rule in each folder."""
    counts = Counter((finding.rule.name, _folder(finding.path)) for finding in found)
    folders = sorted({folder for _, folder in counts})
    rows = [[rule.name, *(counts[rule.name, folder] for folder in folders)] for rule in RULES]
    sums = ["total", *(sum(column) for column in list(zip(*rows, strict=True))[1:])]
    lines = [["rule", *folders, "all"], *([*row, sum(row[1:])] for row in [*rows, sums])]
    return "\n".join(
        "".join(f"{cell!s:<14}" if i == 0 else f"{cell!s:>12}" for i, cell in enumerate(line)) for line in lines
    )


def _folder(path: Path) -> str:
    return path.parts[0] if len(path.parts) > 1 else "/"


def main(arguments: list[str]) -> int:
    """Print the findings, or the table of their numbers; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.prose", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, help="Files or folders to report on (default: all)")
    parser.add_argument("--count", action="store_true", help="Print only the numbers of findings")
    parser.add_argument("--at-most", type=int, default=0, metavar="N", help="Maximum number of findings that pass")
    parser.add_argument("--root", type=Path, default=ROOT, help="Directory of the repository")
    options = parser.parse_args(arguments)
    wanted = {(options.root / path).resolve() for path in options.paths or ["."]}
    found = [finding for text in texts(options.root, wanted) for finding in findings(text)]
    print(table(found) if options.count else "\n".join(map(str, found)))
    return 1 if len(found) > options.at_most else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
