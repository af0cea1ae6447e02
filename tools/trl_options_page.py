"""Write docs/reference/trl-options.md from the table of option names, so that the page always agrees with it.

`python tools/trl_options_page.py` writes it; tests/test_docs.py fails if it is out of date.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from gvpo.config.aliases import ARGUMENTS, TABLE, Answer
from gvpo.config.settings import FIELDS

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "trl-options.md"
SETTING = re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(FIELDS, key=len, reverse=True)))})\b(?:=[\w/:]+)?")

INTRODUCTION = """\
# Options of TRL, transformers, PEFT and verl

<!-- Written by `python tools/trl_options_page.py` from src/gvpo/config/aliases.py; change the answers there. -->

This page answers each option name of TRL's trainers, and many names of PEFT and verl, with the setting of gvpo that
corresponds to it. The message about an unknown setting gives the same answer, on the command line, in recipes and in
Python:

```
gvpo: error: unknown setting 'max_steps'; use 'train.steps': a step is one rollout with all its updates; ...
```

`TrainConfig.from_trl` converts a whole configuration ([from TRL](../guides/from-trl.md)). Names with dots are
found by their last part, so `trainer.total_epochs` is found under `total_epochs`. [Configuration](configuration.md) has
the name that each setting has in Python. "Not needed" means that gvpo always does this, or has no use for it.
"""
OTHERS = """\
## Arguments of trainers

`gvpo.Trainer` has the arguments `model`, `reward_funcs`, `args`, `train_dataset`, `eval_dataset`, `processing_class`,
`reward_processing_classes`, `callbacks` and `peft_config` of TRL's `GRPOTrainer`. Other arguments are errors that say
what to do instead, unless they are None:

| Argument | What to do instead |
|---|---|
"""


def page() -> str:
    """Return the whole page."""
    rows = (f"| `{name}` | {hint} |" for name, hint in ARGUMENTS.items())
    return "\n".join([INTRODUCTION, *(_area(*item) for item in TABLE.items()), OTHERS + "\n".join(rows), ""])


def _area(title: str, answers: Mapping[str, Answer]) -> str:
    table = ["| Option | Setting | Remark |", "|---|---|---|", *_rows(answers)]
    return "\n".join([f"## {title}", "", *table, ""])


def _rows(answers: Mapping[str, Answer]) -> Iterator[str]:
    """Yield one row per answer, with all the names that have it."""
    for answer in dict.fromkeys(answers.values()):
        names = [name for group, one in answers.items() if one == answer for name in group.split()]
        setting = f"`{answer.key}`" if answer.key else "not needed" if answer.needless else "not available"
        hint = SETTING.sub(lambda found: f"`{found[0]}`", answer.hint)
        yield f"| {', '.join(f'`{name}`' for name in names)} | {setting} | {hint} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
