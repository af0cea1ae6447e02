r"""A parser for mathematical formulas in LaTeX: from text to a tree, without evaluating anything.

A tree is a `Fraction`, a symbol (`str`, as in "x", "\pi" or "E_{1}") or a tuple of an operation and its operands:
"+", "*", "/", "^", "root", "apply" (an unknown function), "sum", "prod", or the name of a known function.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from gvpo.rewards.math.spelling import compact

Tree = Any
"""A `Fraction`, a `str`, or a tuple of a `str` and trees."""
MAX_DEPTH, MAX_DIGITS = 60, 1000
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,4}(?![\dA-Za-z]))?)|(?P<accent>\\(?:text|mathbb|mathcal|mathfrak|mathscr|bar"
    r"|overline|vec|overrightarrow|hat|widehat|tilde|widetilde|dot|ddot|widehat)\s*(?:\{[^{}]*\}|[A-Za-z]))"
    r"|(?P<command>\\[A-Za-z]+|\\.)|(?P<sign>\S))"
)
_D = r"\s*(?:d|\\partial)\s*"
_DIFFERENTIAL = re.compile(
    rf"\\frac\{{{_D}(?:\^\{{\d\}})?\s*(?:\\?[A-Za-z]+(?:_\{{\w+\}})?)?\s*\}}\{{{_D}\\?[A-Za-z]+\s*(?:\^\{{\d\}})?\s*\}}"
)
FUNCTIONS = {
    *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "arccot", "sinh", "cosh", "tanh", "coth"),
    *(
        "asin",
        "acos",
        "atan",
        "asinh",
        "acosh",
        "atanh",
        "arsinh",
        "arcosh",
        "artanh",
        "arcsinh",
        "arccosh",
        "arctanh",
        "exp",
        "ln",
        "log",
        "lg",
    ),
    *("cis", "gcd", "lcm", "max", "min", "sgn", "sign", "floor", "ceil", "lcm", "Re", "Im", "arg", "Gamma"),
}
_CLOSING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "|": "|", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
_MULTIPLIES = {"*", "\\cdot", "\\times", "\\ast"}
_DIVIDES = {"/", "\\div", ":"}
_APPLIED = {"f", "g", "h", "F", "G", "H", "\\phi", "\\psi", "\\mho", "u"}
_OPERATIONS = {"\\frac", "\\binom", "\\sqrt", "\\sum", "\\prod"}
_DEGREE = ("/", "\\pi", Fraction(180))
_SYMBOL = re.compile(
    r"\\(?:alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|omicron|pi|rho|sigma|tau|upsilon|phi|chi"
    r"|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi|Psi|Omega|ell|hbar|mho|odot|oplus|star|aleph|imath|jmath"
    r"|nabla|partial|wp|angle|square|Box|triangle|dagger|bullet)"
)
"""Commands that are variables; any other command, such as \\neg, makes a text unreadable."""


class Unreadable(ValueError):
    """A text is not a formula that this parser can read."""


@lru_cache(maxsize=4096)
def parsed(text: str) -> Tree | None:
    """Return the tree of a formula; None if it is not one."""
    try:
        tree = _Parser(text).whole()
    except (Unreadable, RecursionError):
        return None
    return tree if _depth(tree) <= MAX_DEPTH else None


def _depth(tree: Tree) -> int:
    """Return how deep the operations of a tree are nested; an operation with many operands counts once."""
    depth, level = 0, [tree]
    while level:
        level = [each for node in level if isinstance(node, tuple) for each in node[1:]]
        depth += 1
    return depth


def _times(left: Tree, right: Tree) -> Tree:
    """Return the product of two trees; if `left` is a product, it gets one more factor."""
    return (*left, right) if isinstance(left, tuple) and left[0] == "*" else ("*", left, right)


@lru_cache(maxsize=4096)
def symbols(tree: Tree) -> frozenset[str]:
    """Return the variables of a tree; pi, e and i are constants."""
    if isinstance(tree, str):
        return frozenset() if tree in ("\\pi", "e", "i") else frozenset([tree])
    if isinstance(tree, tuple):
        found = frozenset().union(*(symbols(each) for each in tree[1:]))
        if tree[0] in ("sum", "prod"):
            return found - {tree[1]}
        return found | {f"{tree[1]}()"} if tree[0] == "apply" else found
    return frozenset()


def operations(tree: Tree) -> frozenset[str]:
    """Return the names of all operations in a tree."""
    if not isinstance(tree, tuple):
        return frozenset()
    return frozenset([tree[0]]).union(*(operations(each) for each in tree[1:]))


class _Parser:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str) -> None:
        text = _DIFFERENTIAL.sub(lambda match: rf"\text{{{re.sub(r'[{} ]', '', match[0])}}}", text)
        self.tokens = [(match.lastgroup or "", match[match.lastgroup or 0]) for match in _TOKEN.finditer(text)]
        self.spaced = [text[match.start()].isspace() for match in _TOKEN.finditer(text)]
        self.at, self.depth, self.bars = 0, 0, 0

    def whole(self) -> Tree:
        tree = self.sum()
        if self.at < len(self.tokens):
            raise Unreadable(self.peek())
        return tree

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead][1] if self.at + ahead < len(self.tokens) else ""

    def kind(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead][0] if self.at + ahead < len(self.tokens) else ""

    def take(self, expected: str | None = None) -> str:
        token = self.peek()
        if not token or (expected is not None and token != expected):
            raise Unreadable(f"{expected!r} is missing")
        self.at += 1
        return token

    def sum(self) -> Tree:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("too deep")
        terms = [self.signed()]
        while self.peek() in ("+", "-"):
            terms.append(self.signed())
        self.depth -= 1
        return terms[0] if len(terms) == 1 else ("+", *terms)

    def signed(self) -> Tree:
        """Parse a term with its sign: -x^2 is -(x^2)."""
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        tree = self.product()
        if not negative:
            return tree
        return -tree if isinstance(tree, Fraction) else ("*", Fraction(-1), tree)

    def product(self) -> Tree:
        tree = self.juxtaposed()
        while True:
            token = self.peek()
            if token in _MULTIPLIES or token in _DIVIDES or token == "\\bmod":
                self.take()
                if self.peek() == token == "*":
                    raise Unreadable("**")
                right = self.operand()
                operation = "*" if token in _MULTIPLIES else "/" if token in _DIVIDES else "mod"
                tree = _times(tree, right) if operation == "*" else (operation, tree, right)
            elif self.starts_factor():
                tree = _times(tree, self.juxtaposed())
            else:
                return tree

    def operand(self) -> Tree:
        """Parse the right side of a multiplication or division, which may have a sign: 2 * -3."""
        if self.peek() == "-":
            self.take()
            return ("*", Fraction(-1), self.juxtaposed())
        return self.juxtaposed()

    def juxtaposed(self, arguments: bool = False) -> Tree:
        r"""Parse adjacent factors, which bind more tightly than a division: a/bx is a/(bx), but 3/4\pi is (3/4)\pi."""
        first = self.kind()
        tree = self.power()
        mixed = isinstance(tree, Fraction) and self.tokens[self.at - 1][1].isdigit() and first == "number"
        literal = mixed and self.at >= 2 and self.tokens[self.at - 2][1] in _DIVIDES
        if literal and self.kind(-3 if self.at >= 3 else 0) == "number" and not arguments:
            return tree
        while self.starts_factor() and not (arguments and self.function_name()):
            if self.kind() == "number" and self.kind(-1) == "number":
                raise Unreadable("two numbers side by side")
            fraction = self.peek() == "\\frac"
            right = self.power()
            if mixed and fraction and _positive_fraction(right):
                tree = tree + Fraction(right[1], right[2])
            else:
                tree = _times(tree, right)
            mixed = False
        return tree

    def starts_factor(self) -> bool:
        token, kind = self.peek(), self.kind()
        if kind in ("number", "accent"):
            return True
        if kind == "command":
            return (
                bool(_SYMBOL.fullmatch(token))
                or token in _OPERATIONS
                or token in _CLOSING
                or bool(self.function_name())
            )
        return token.isalpha() or token in ("(", "[", "{") or (token == "|" and not self.bars)

    def power(self) -> Tree:
        tree = self.atom()
        while True:
            token = self.peek()
            if token == "^":
                tree = self.raised(tree)
            elif token == "!":
                self.take()
                double = self.peek() == "!" and not self.spaced[self.at]
                if double:
                    self.take()
                tree = ("factorial2" if double else "factorial", tree)
            elif token in ("\\%", "%"):
                self.take()
                tree = ("/", tree, Fraction(100))
            else:
                return tree

    def raised(self, tree: Tree) -> Tree:
        self.take("^")
        if self.peek() == "\\circ":
            self.take()
            return ("*", tree, _DEGREE)
        exponent = self.script()
        return ("^", tree, exponent)

    def script(self) -> Tree:
        """Parse the script after ^: a group, or a single token, which may have a sign."""
        if self.peek() == "-":
            self.take()
            return ("*", Fraction(-1), self.script())
        if self.kind() == "number" and not self.spaced[self.at] and len(self.peek()) > 1 and self.peek().isdigit():
            return self.number()
        return self.atom()

    def group(self, opening: str) -> Tree:
        self.take(opening)
        bars, self.bars = self.bars, int(opening == "|")
        tree = self.sum()
        self.take(_CLOSING[opening])
        self.bars = bars
        return tree

    def atom(self) -> Tree:
        token, kind = self.peek(), self.kind()
        if kind == "number":
            return self.number()
        if token in ("(", "[", "{", "\\{"):
            return self.group(token)
        if token == "|" and not self.bars:
            return ("abs", self.group("|"))
        if token in ("\\lfloor", "\\lceil"):
            return ("floor" if token == "\\lfloor" else "ceil", self.group(token))
        if token in ("\\frac", "\\binom"):
            return self.two_arguments({"\\frac": "/", "\\binom": "binomial"}[token])
        if token == "\\sqrt":
            return self.root()
        if token in ("\\sum", "\\prod"):
            return self.series()
        if self.function_name():
            return self.function()
        if kind == "accent" or token.isalpha() or (kind == "command" and token[1:2].isalpha()):
            return self.symbol()
        raise Unreadable(token)

    def number(self) -> Fraction:
        token = self.take()
        if len(token) > MAX_DIGITS:
            raise Unreadable("an implausibly long number")
        return Fraction(token if token[-1] != "." else token[:-1])

    def two_arguments(self, operation: str) -> Tree:
        self.take()
        first = self.group("{")
        return (operation, first, self.group("{"))

    def root(self) -> Tree:
        self.take()
        degree: Tree = Fraction(2)
        if self.peek() == "[":
            degree = self.group("[")
        radicand = self.group(self.peek() if self.peek() in ("(", "{") else "{")
        return ("root", radicand, degree)

    def series(self) -> Tree:
        r"""Parse \sum_{k=1}^{n} body, where the body is a term."""
        name = self.take()[1:]
        self.take("_")
        self.take("{")
        index = self.symbol()
        self.take("=")
        low = self.sum()
        self.take("}")
        self.take("^")
        high = self.script()
        return (name, index, low, high, self.product())

    def function_name(self) -> str:
        token = self.peek()
        name = token[1:] if self.kind() == "command" else ""
        match = re.fullmatch(r"\\text\s*\{\s*([A-Za-z]+)\s*\}", token)
        name = match[1] if match else name
        return name if name in FUNCTIONS else ""

    def function(self) -> Tree:
        name, base, exponent = self.function_name(), None, None
        self.take()
        while self.peek() in ("_", "^"):
            if self.take() == "_":
                base = self.script()
            elif self.peek() == "\\circ":
                raise Unreadable("an angle of a function")
            else:
                exponent = self.script()
        arguments = self.arguments()
        inverse = exponent == Fraction(-1) or exponent == ("*", Fraction(-1), Fraction(1))
        if inverse and name in ("sin", "cos", "tan", "cot"):
            return (f"arc{name}", *arguments)
        tree = (name, *arguments) if base is None else ("log", *arguments, base)
        return tree if exponent is None else ("^", tree, exponent)

    def arguments(self) -> list[Tree]:
        """Parse the arguments of a function: those in brackets, or the factors that follow."""
        opening = self.peek()
        if opening not in ("(", "{", "[", "\\{"):
            return [self.operand_of_function()]
        self.take()
        bars, self.bars = self.bars, 0
        found = [self.sum()]
        while self.peek() == ",":
            self.take()
            found.append(self.sum())
        self.take(_CLOSING[opening])
        self.bars = bars
        if opening == "{" and len(found) == 1 and self.peek() == "^":
            return [self.raised(found[0])]
        return found

    def operand_of_function(self) -> Tree:
        if self.peek() == "-":
            self.take()
            return ("*", Fraction(-1), self.operand_of_function())
        return self.power() if self.function_name() else self.juxtaposed(arguments=True)

    def symbol(self) -> Tree:
        kind, name = self.kind(), self.take()
        if kind == "command" and not _SYMBOL.fullmatch(name):
            raise Unreadable(name)
        name = re.sub(r"^(\\[a-z]+) ([A-Za-z])$", r"\1{\2}", compact(name)) if kind == "accent" else compact(name)
        plain = re.fullmatch(r"\\text\{([A-Za-z])\}", name)
        name = plain[1] if plain else name
        while self.peek() in ("_", "'"):
            name += self.subscript() if self.take() == "_" else "'"
        if name == "e" and self.peek() == "'":
            raise Unreadable(name)
        return self.applied(name)

    def subscript(self) -> str:
        if self.peek() != "{":
            return f"_{{{self.take()}}}"
        depth, found = 0, ""
        while True:
            token = self.take()
            depth += (token == "{") - (token == "}")
            found += token
            if depth == 0:
                return "_" + re.sub(r"\\text\s*\{([^{}]*)\}|\s", r"\1", found)

    def applied(self, name: str) -> Tree:
        """Parse a symbol, or f(...): an unknown function if its letter is usual for one or its argument is a number."""
        if self.peek() != "(":
            return name
        number = self.kind(1) == "number" and self.peek(2) == ")"
        several = re.fullmatch(
            r"\(([^()]*,)+[^()]*\)", "".join(t for _, t in self.tokens[self.at : self.at + 12]).partition(")")[0] + ")"
        )
        if name in ("e", "i", "\\pi") or not (name.rstrip("'") in _APPLIED or number or several):
            return name
        return ("apply", name, *self.arguments())


def _positive_fraction(tree: Tree) -> bool:
    return (
        isinstance(tree, tuple)
        and tree[0] == "/"
        and all(isinstance(each, Fraction) and each > 0 and each.denominator == 1 for each in tree[1:])
    )
