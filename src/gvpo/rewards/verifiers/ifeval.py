"""IFEval: does a completion follow the instructions of its record?

A record has `instruction_id_list` and `kwargs`, a table of keywords an instruction. Strictly, the completion as it is
must follow; loosely, one of eight forms of it may: without its first line, without its last, without asterisks.

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
    """1 where the completion follows all its instructions, strictly, else 0: IFEval's prompt-level accuracy.

    Args:
        completions: k completions; what stands before </think> does not count.
        instruction_id_list: k lists of instructions, keys of `instructions.CHECKS`; none abstains.
        kwargs: k lists of their keywords, a table (or None) an instruction.
        columns: not used.

    Returns:
        k values: 1.0, 0.0, or None.

    Raises:
        RewardError: an instruction that does not exist or lacks a keyword, or the extra `ifeval` is not installed.
        ValueError: not as many tables of keywords as instructions.
    """
    return _judged(completions, instruction_id_list, kwargs, _strictly, _all)


def ifeval_loose(
    completions: Sequence[Answer],
    instruction_id_list: Sequence[Any],
    kwargs: Sequence[Any] | None = None,
    **columns: Any,
) -> list[float | None]:
    """As `ifeval`, where each instruction may be followed by one of eight forms of the completion."""
    return _judged(completions, instruction_id_list, kwargs, _loosely, _all)


def ifeval_share(
    completions: Sequence[Answer],
    instruction_id_list: Sequence[Any],
    kwargs: Sequence[Any] | None = None,
    **columns: Any,
) -> list[float | None]:
    """The share of its instructions that the completion follows, strictly: dense where `ifeval` is all or nothing."""
    return _judged(completions, instruction_id_list, kwargs, _strictly, fmean)


def prepare() -> None:
    """Once in each worker, before its first call: the profiles of languages take a moment to load."""
    language_of("Which language is this?")


for _reward in (ifeval, ifeval_loose, ifeval_share):
    _reward.prepare = prepare  # type: ignore[attr-defined]
    _reward.check_ready = require_langdetect  # type: ignore[attr-defined]


def loose_forms(text: str) -> list[str]:
    """The forms of a completion that count loosely: with and without its first line, its last, and asterisks."""
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
        raise ValueError(f"kwargs has {len(given)} entries for {len(names)} instructions; give a table each")
    return list(zip(names, given, strict=True))


def _text(completion: Answer) -> str:
    return without_thinking(completion_text(completion)).strip()


def _strictly(text: str, instruction: str, keywords: Any) -> bool:
    return follows(text, instruction, keywords)


def _loosely(text: str, instruction: str, keywords: Any) -> bool:
    return any(follows(form, instruction, keywords) for form in loose_forms(text))


def _all(values: list[float]) -> float:
    return min(values)
