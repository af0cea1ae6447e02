"""Write answers for fine-tuning, some of them wrong: `python data.py --source FILE --out FILE --wrong 0.3`.

The source has `prompt` and `chosen`. A fraction of the rows, chosen by a fixed seed, receives the answer of another of
these rows; the column `wrong` marks them.
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gvpo.data import load_records


def spoilt(rows: Sequence[Mapping[str, Any]], share: float) -> list[dict[str, Any]]:
    """Return rows of `prompt`, `completion` and `wrong`; wrong rows exchange their answers, moved by one."""
    draw = random.Random("poft")
    wrong = sorted(draw.sample(range(len(rows)), round(share * len(rows))))
    answers = {place: rows[wrong[index - 1]]["chosen"] for index, place in enumerate(wrong)}
    return [
        {"prompt": row["prompt"], "completion": answers.get(place, row["chosen"]), "wrong": place in answers}
        for place, row in enumerate(rows)
    ]


def main() -> None:
    """Read the source and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--wrong", type=float, default=0.3)
    options = parser.parse_args()
    rows = spoilt(load_records(options.source), options.wrong)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{options.out}: {len(rows)} rows, {sum(row['wrong'] for row in rows)} with a wrong answer")


if __name__ == "__main__":
    main()
