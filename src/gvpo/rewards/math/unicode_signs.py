r"""Conversion of Unicode's mathematical signs to LaTeX: ½ becomes \frac{1}{2}, x² becomes x^{2}, π becomes \pi."""

# ruff: noqa: RUF001, SIM905

import re

_MINUS = "‐‑‒–—―−﹣－"
_SPACES = "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000\t\n\r\f\v"
_NOTHING = "\u200b\u200c\u200d\u2060\u2061\u2062\u2063\ufeff\u00ad"
_FRACTIONS = {
    each[0]: each[1:].split("/")
    for each in ("½1/2 ⅓1/3 ⅔2/3 ¼1/4 ¾3/4 ⅕1/5 ⅖2/5 ⅗3/5 ⅘4/5 ⅙1/6 ⅚5/6 ⅐1/7 ⅛1/8 ⅜3/8 ⅝5/8 ⅞7/8 ⅑1/9 ⅒1/10").split()
}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣ", "0123456789+-=()nix")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙᵢₓ", "0123456789+-=()nix")
_COMMANDS = (
    "×times ⋅cdot ·cdot •cdot ∙cdot ÷div √sqrt ∞infty ≤le ≥ge ⩽le ⩾ge ≦le ≧ge ≠ne ≈approx ≅approx "
    "∪cup ∩cap ∈in ∅emptyset ⌀emptyset ±pm ∓mp ∖setminus ⟨langle ⟩rangle 〈langle 〉rangle ⌊lfloor "
    "⌋rfloor ⌈lceil ⌉rceil …ldots ⋯ldots ≡equiv ∠angle △triangle ∨lor ∧land →to ∑sum ∏prod ∫int "
    "αalpha βbeta γgamma δdelta εepsilon ζzeta ηeta θtheta κkappa λlambda μmu µmu νnu ξxi πpi ρrho "
    "σsigma τtau φphi ϕphi χchi ψpsi ωomega ΓGamma ΔDelta ΘTheta ΛLambda ΣSigma ΦPhi ΨPsi ΩOmega"
).split()
_PLAIN = "′' ’' ″'' ∕/ ⁄/ ∶: ∗* ％%".split()
_SIGNS = str.maketrans(
    {
        **dict.fromkeys(_NOTHING, ""),
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full width
        **{chr(0x1D7CE + code): str(code % 10) for code in range(50)},  # bold and double-struck digits
        **dict.fromkeys(_MINUS, "-"),
        **dict.fromkeys(_SPACES, " "),
        **{each[0]: f"\\{each[1:]} " for each in _COMMANDS},
        **{each[0]: each[1:] for each in _PLAIN},
        **{each[0]: rf"\mathbb{{{each[1]}}}" for each in "ℝR ℤZ ℕN ℚQ ℂC".split()},
        "°": r"^\circ ",
    }
)
_FRACTION = re.compile(f"[{''.join(_FRACTIONS)}]")
_RAISED_RUN = re.compile(f"[{''.join(map(chr, _RAISED))}]+")
_LOWERED_RUN = re.compile(f"[{''.join(map(chr, _LOWERED))}]+")
_OVERLINED_RUN = re.compile("(?:[0-9][\u0304\u0305])+")


def as_ascii(text: str) -> str:
    """Return `text` with LaTeX instead of Unicode signs, and a space for each other white-space character."""
    if text.isascii():
        return re.sub(r"[\t\n\r\f\v]", " ", text)
    text = _OVERLINED_RUN.sub(lambda match: rf"\overline{{{match[0][::2]}}}", text)
    text = _FRACTION.sub(lambda match: r"\frac{{{}}}{{{}}}".format(*_FRACTIONS[match[0]]), text)
    text = _RAISED_RUN.sub(lambda match: f"^{{{match[0].translate(_RAISED)}}}", text)
    text = _LOWERED_RUN.sub(lambda match: f"_{{{match[0].translate(_LOWERED)}}}", text)
    return text.translate(_SIGNS)
