"""Write pairs as two files for a small model of letters: training rows, and held-out ones with other prompts.

`python data.py --source FILE --out DIRECTORY` writes train.jsonl and held-out.jsonl. The source is a file or a Hub
dataset ID with `prompt`, `chosen` and `rejected` as text. Rows are skipped and counted if their answers are equal, if
they are too long, or if they contain letters that the vocabulary of these recipes lacks.
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gvpo.config.recipe import load_config
from gvpo.data import load_records

LONGEST = 250
"""Maximum number of letters of a prompt with its longer answer; the recipes' context is 256 tokens."""


def usable(row: Mapping[str, Any], letters: frozenset[str]) -> bool:
    """Return whether a row fits the vocabulary and the context and has two different answers."""
    texts = [row["prompt"], row["chosen"], row["rejected"]]
    fits = len(texts[0]) + max(len(texts[1]), len(texts[2])) <= LONGEST
    return texts[1] != texts[2] and fits and all(letters.issuperset(text) for text in texts)


def split(rows: Sequence[Mapping[str, Any]], held_out: int) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Return training rows and at least `held_out` others, chosen by a fixed seed; no prompt is in both."""
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    random.Random("preferences").shuffle(prompts)
    aside: set[str] = set()
    while len([row for row in rows if row["prompt"] in aside]) < held_out:
        aside.add(prompts.pop())
    return [row for row in rows if row["prompt"] not in aside], [row for row in rows if row["prompt"] in aside]


def main() -> None:
    """Read the source and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--held-out", type=int, default=200)
    options = parser.parse_args()
    letters = frozenset(load_config(Path(__file__).with_name("sft.toml")).vocabulary or [])
    rows = load_records(options.source)
    kept = [{**row, "prompt": f"{row['prompt']}\n\n"} for row in rows if usable(row, letters)]
    print(f"{options.source}: {len(kept)} of {len(rows)} rows are usable")
    options.out.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("train", "held-out"), split(kept, options.held_out), strict=True):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (options.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{options.out / name}.jsonl: {len(part)} pairs")


if __name__ == "__main__":
    main()
