"""IFEval: does a completion follow the instructions of its record?

A record has `instruction_id_list` and `kwargs`, one table of keywords per instruction. The strict check reads the
completion unchanged; the loose check accepts any of eight forms, without its first line, last line or asterisks.

Reference: Zhou et al., Instruction-Following Evaluation for Large Language Models (arXiv:2311.07911), section 2.
"""

from collections.abc import Callable, Sequence
from itertools import product
from statistics import fmean
from typing import Any

from gvpo.rewards.base import Answer, completion_text
from gvpo.rewards.verifiers.instructions import follows, language_of, require_langdetect
from gvpo.rewards.verifiers.stated_answer import without_thinking


def ifeval(
    completions: Sequence[Answer],
    instruction_id_list: Sequence[Any],
    kwargs: Sequence[Any] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Return 1 if the completion follows all its instructions, strictly, else 0: IFEval's prompt-level accuracy.

    Args:
        completions: k completions; the text before </think> does not count.
        instruction_id_list: k lists of instructions, keys of `instructions.CHECKS`; an empty list abstains.
        kwargs: k lists of their keywords, one table (or None) per instruction.
        columns: Not used.

    Returns:
        k values: 1.0, 0.0, or None.

    Raises:
        RewardError: If an instruction does not exist or lacks a keyword, or the extra `ifeval` is not installed.
        ValueError: If the numbers of tables and instructions differ.
    """
    return _judged(completions, instruction_id_list, kwargs, follows, min)


def ifeval_loose(
    completions: Sequence[Answer],
    instruction_id_list: Sequence[Any],
    kwargs: Sequence[Any] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Return 1 if at least one of eight forms of the completion follows each instruction, else 0; see `ifeval`."""
    return _judged(completions, instruction_id_list, kwargs, _loosely, min)


def ifeval_share(
    completions: Sequence[Answer],
    instruction_id_list: Sequence[Any],
    kwargs: Sequence[Any] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Return the fraction of its instructions that the completion follows, strictly: a denser signal than `ifeval`."""
    return _judged(completions, instruction_id_list, kwargs, follows, fmean)


def prepare() -> None:
    """Load the language profiles, once per worker before its first call, since that takes a moment."""
    language_of("Which language is this?")


for _reward in (ifeval, ifeval_loose, ifeval_share):
    _reward.prepare = prepare  # type: ignore[attr-defined]
    _reward.check_ready = require_langdetect  # type: ignore[attr-defined]


def loose_forms(text: str) -> list[str]:
    """Return the forms of a completion for the loose check: with and without first line, last line and asterisks."""
    lines = text.split("\n")
    cut = (lines[first : len(lines) - last] for first, last in product((0, 1), (0, 1)))
    forms = ["\n".join(each).strip() for each in cut]
    return [*forms, *(form.replace("*", "") for form in forms)]


def _judged(
    completions: Sequence[Answer],
    instructions: Sequence[Any],
    kwargs: Sequence[Any] | None,
    judge: Callable[[str, str, Any], bool],
    reduce: Callable[[list[float]], float],
) -> list[float | None]:
    rows = zip(completions, instructions, kwargs or [None] * len(completions), strict=True)
    return [
        reduce([float(judge(_text(completion), name, own)) for name, own in _pairs(names, keywords)]) if names else None
        for completion, names, keywords in rows
    ]


def _pairs(names: Sequence[str], keywords: Sequence[Any] | None) -> list[tuple[str, Any]]:
    given = [None] * len(names) if keywords is None else list(keywords)
    if len(given) != len(names):
        raise ValueError(f"kwargs has {len(given)} entries for {len(names)} instructions; give one table each")
    return list(zip(names, given, strict=True))


def _text(completion: Answer) -> str:
    return without_thinking(completion_text(completion)).strip()


def _loosely(text: str, instruction: str, keywords: Any) -> bool:
    return any(follows(form, instruction, keywords) for form in loose_forms(text))
