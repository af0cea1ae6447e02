"""Conversion of numbers in Python notation, `np.arcsin(10/13)` or `8.7e8`, to LaTeX, without evaluating them."""

import ast
import re

MAX_CHARACTERS = 300
_FUNCTIONS = {
    "sqrt": r"\sqrt{%s}",
    "exp": r"e^{%s}",
    "log": r"\ln(%s)",
    "ln": r"\ln(%s)",
    "log10": r"\log_{10}(%s)",
    "log2": r"\log_{2}(%s)",
    "abs": r"|%s|",
    "sin": r"\sin(%s)",
    "cot": r"\cot(%s)",
    "sec": r"\sec(%s)",
    "csc": r"\csc(%s)",
    "cos": r"\cos(%s)",
    "tan": r"\tan(%s)",
    "arcsin": r"\arcsin(%s)",
    "arccos": r"\arccos(%s)",
    "arctan": r"\arctan(%s)",
    "asin": r"\arcsin(%s)",
    "acos": r"\arccos(%s)",
    "atan": r"\arctan(%s)",
    "sinh": r"\sinh(%s)",
    "cosh": r"\cosh(%s)",
    "tanh": r"\tanh(%s)",
    "factorial": r"(%s)!",
    "floor": r"\lfloor %s \rfloor",
    "ceil": r"\lceil %s \rceil",
    "ceiling": r"\lceil %s \rceil",
}
_OF_TWO = {
    "comb": r"\binom{%s}{%s}",
    "binomial": r"\binom{%s}{%s}",
    "pow": "(%s)^{%s}",
    "gcd": r"\gcd(%s, %s)",
    "max": r"\max(%s, %s)",
    "min": r"\min(%s, %s)",
}
GREEK = (
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|chi|psi|omega|Gamma|Delta"
    "|Theta|Lambda|Sigma|Phi|Psi|Omega"
)
_VARIABLE = re.compile(rf"([A-Za-z]|{GREEK})(?:_([0-9]+|[A-Za-z]))?")
_OPERATORS: dict[type, str] = {
    ast.Add: "(%s + %s)",
    ast.Sub: "(%s - %s)",
    ast.Mult: r"(%s \cdot %s)",
    ast.Div: r"\frac{%s}{%s}",
    ast.Pow: "(%s)^{%s}",
}
_MODULES = ("np", "numpy", "math", "sp", "sympy")
_CALLED = "|".join([*_FUNCTIONS, *_OF_TWO])
_PYTHON = re.compile(rf"\b(?:{'|'.join(_MODULES)})\.|\*\*|\d\.(?!\d)|\b(?:{_CALLED})\(|(?<![A-Za-z])[\d.]+[eE][-+]?\d")
_SCIENTIFIC = re.compile(r"([0-9.]+)[eE]([-+]?[0-9]+)")


def as_latex(text: str) -> str | None:
    """Return the LaTeX of a number or formula in Python notation.

    Args:
        text: An answer.

    Returns:
        LaTeX; None if the text has no sign of Python, or is not arithmetic.
    """
    if len(text) > MAX_CHARACTERS or "\\" in text or not _PYTHON.search(text):
        return None
    try:
        return _latex(ast.parse(text.strip(), mode="eval").body, text.strip())
    except (SyntaxError, ValueError, KeyError, RecursionError, MemoryError):
        return None


def _latex(node: ast.expr, source: str) -> str:
    """Return the LaTeX of a node; raise KeyError or ValueError if it is not arithmetic."""
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            return _number(ast.get_source_segment(source, node) or "")
        case ast.Name(id=name):
            return _name(name)
        case ast.Attribute(value=ast.Name(id=module), attr=name) if module in _MODULES:
            return _name(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return f"(-{_latex(operand, source)})"
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _latex(operand, source)
        case ast.BinOp(left=left, op=operator, right=right):
            return _OPERATORS[type(operator)] % (_latex(left, source), _latex(right, source))
        case ast.Call(func=function, args=[argument], keywords=[]):
            return _FUNCTIONS[_called(function)] % _latex(argument, source)
        case ast.Call(func=function, args=[first, second], keywords=[]):
            return _OF_TWO[_called(function)] % (_latex(first, source), _latex(second, source))
    raise ValueError("not arithmetic")


def _number(written: str) -> str:
    """Return a literal with its written digits, which show its precision."""
    match = _SCIENTIFIC.fullmatch(written)
    if match:
        return rf"({match[1].removesuffix('.')} \cdot 10^{{{int(match[2])}}})"
    if not re.fullmatch(r"[0-9]*\.?[0-9]*", written):
        raise ValueError("a literal of another kind")
    return written.removesuffix(".")


def _name(name: str) -> str:
    if name in ("pi", "e"):
        return {"pi": r"\pi", "e": "e"}[name]
    match = _VARIABLE.fullmatch(name)
    if match is None:
        raise KeyError(name)
    letter = match[1] if len(match[1]) == 1 else f"\\{match[1]} "
    return f"{letter}_{{{match[2]}}}" if match[2] else letter


def _called(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id in _MODULES:
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""
