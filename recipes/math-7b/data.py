"""Write GSM8K and MATH as one dataset: prompts that ask for a boxed answer, with a held-out part.

`python data.py --gsm8k SOURCE --math SOURCE --out DIRECTORY` writes train.jsonl and held-out.jsonl. A source is a file
or a Hub dataset ID. GSM8K's rows are {question, answer}; MATH's are {problem, solution} or {problem, answer}.
"""

import argparse
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gvpo.data import load_records
from gvpo.data.tasks.generated import INSTRUCTION
from gvpo.data.tasks.math import answer_of
from gvpo.rewards.verifiers.gsm8k import gold_answer


def gsm8k_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a problem whose answer is the number after `####`."""
    return _row(row["question"], str(gold_answer(row["answer"])), "gsm8k")


def math_row(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a problem with its `answer` or the last box of its `solution` as answer, or None if it has neither."""
    answer = answer_of(row)
    return None if answer is None else _row(row["problem"], answer, "math")


def _row(problem: str, answer: str, source: str) -> dict[str, Any]:
    return {"prompt": f"{problem}{INSTRUCTION}", "answer": answer, "data_source": source}


def split(rows: list[dict[str, Any]], held_out: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return training rows and `held_out` others, chosen by a fixed seed; duplicate prompts are used once."""
    different = list({row["prompt"]: row for row in rows}.values())
    random.Random("math-7b").shuffle(different)
    return different[held_out:], different[:held_out]


def main() -> None:
    """Read both sources and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gsm8k", required=True)
    parser.add_argument("--math", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--held-out", type=int, default=200)
    options = parser.parse_args()
    math = [math_row(row) for row in load_records(options.math)]
    rows = [*map(gsm8k_row, load_records(options.gsm8k)), *(row for row in math if row is not None)]
    print(f"{options.math}: {math.count(None)} problems without an answer are skipped")
    options.out.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("train", "held-out"), split(rows, options.held_out), strict=True):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (options.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{options.out / name}.jsonl: {len(part)} problems")


if __name__ == "__main__":
    main()
