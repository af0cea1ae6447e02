"""Write docs/reference/configuration.md from the settings, so that the page always agrees with them.

`python tools/configuration_page.py` writes it; tests/test_docs.py fails if it is out of date.
"""

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from gvpo.config import FIELDS, OBJECTIVE_KEYWORDS, OBJECTIVES, SECTIONS, TrainConfig
from gvpo.config.objectives import INPUT_OF
from gvpo.training.constraints import MULTIPLIER_RATE

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "configuration.md"

INTRODUCTION = """\
# Configuration

<!-- Written by `python tools/configuration_page.py` from src/gvpo/config/sections.py; change the settings there. -->

A recipe is TOML in the sections below and contains only the settings that differ from the defaults. In Python the same
settings have no sections. The name of a field is its key, prefixed with the section if the key alone is ambiguous:

| Recipe | Command line | Python |
|---|---|---|
| `[run]` `dir = "runs/a"` | `run.dir=runs/a` | `TrainConfig(run_dir="runs/a")` |
| `[objective]` `beta = 0.2` | `objective.beta=0.2` | `TrainConfig(beta=0.2)` |
| `[checkpoint]` `every = 50` | `checkpoint.every=50` | `TrainConfig(checkpoint_every=50)` |

- On the command line a value is parsed as TOML (`eval.greedy=false`, `rewards.funcs=["gsm8k"]`), or taken as text if it
  is not valid TOML (`run.dir=runs/a`). A single value makes a list of one (`rewards.funcs=gsm8k`), and a key inside a
  table sets that key only (`rewards.options.length_penalty.limit=512`).
- All commands write settings in this way. `gvpo COMMAND --help` lists the settings that a command reads; other settings
  are an error.
- `extends = "other.toml"` at the top of a recipe inherits from a recipe in the same folder.
- `{recipe}` at the start of a value in a recipe is the folder of that recipe: `train = "{recipe}/train.jsonl"`. Other
  paths are relative to the working directory.
- Command-line settings override the recipe, and the recipe overrides the one that it extends. A layer that names
  another objective drops the objective keywords of the layers below.
- A misspelled key is an error that suggests the closest key. An option of TRL, transformers, PEFT or verl is an error
  that says what corresponds to it ([options of TRL](trl-options.md)).
"""

KEYWORDS = """\
### Keywords by objective

This table contains the default of each keyword per objective. An empty cell means that the objective does not accept
the keyword; setting it is an error. The `beta` of gvpo is the function's own; a run chooses it by
[regime](objectives/README.md#defaults). With the reduction `constant`, a `max_length` of None means
`sampling.max_tokens`.
"""

_PLAIN: dict[Any, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true, false",
    Path: "path",
    dict: "table",
    list: "list",
}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def page() -> str:
    """Return the whole page."""
    return "\n".join([INTRODUCTION, *map(_section, SECTIONS)])


def _section(name: str) -> str:
    model = SECTIONS[name]
    about = (model.__doc__ or "").partition("] ")[2]
    keys = {field: dotted for dotted, field in FIELDS.items()}
    rows = [_row(keys[field], field, info) for field, info in model.model_fields.items()]
    table = ["| Key | In Python | Value | Default | Description |", "|---|---|---|---|---|", *rows]
    more = [KEYWORDS, *_keyword_table(), ""] if name == "objective" else []
    return "\n".join([f"## [{name}]", "", about, "", *table, "", *more])


def _row(dotted: str, field: str, info: FieldInfo) -> str:
    cells = [f"`{dotted}`", f"`{field}`", _value(info), _default(field, info), info.description or ""]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _value(info: FieldInfo) -> str:
    """Return the type and the bounds of a setting."""
    return ", ".join([_kind(info.annotation), *_bounds(info)])


def _bounds(info: FieldInfo) -> list[str]:
    return [
        f"{sign} {getattr(bound, name):g}"
        for bound in info.metadata
        for name, sign in _BOUNDS.items()
        if hasattr(bound, name)
    ]


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(item) for item in arguments if item is not type(None))
    if origin is Annotated:
        return " ".join([_kind(arguments[0]), *_bounds(FieldInfo.from_annotation(annotation))])
    if origin is Literal:
        return ", ".join(f"`{item}`" for item in arguments)
    if origin is list:
        of = arguments[0]
        return f"list of {_kind(of)}" if get_origin(of) is Literal else f"list of {_PLAIN[of]}s"
    return _PLAIN[origin or annotation]


def _default(field: str, info: FieldInfo) -> str:
    if field in OBJECTIVE_KEYWORDS:
        return "the objective's"
    value = info.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None:
        return "none"
    return f"`{value}`" if isinstance(value, str) else f"`{str(value).lower()}`"


def _keyword_table() -> Iterator[str]:
    """Yield one row per keyword, with one column per objective."""
    names = sorted(OBJECTIVES)
    yield "| Keyword | " + " | ".join(f"[`{name}`](objectives/{name}.md)" for name in names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for keyword in OBJECTIVE_KEYWORDS:
        yield f"| `{keyword}` | " + " | ".join(_keyword_default(name, keyword) for name in names) + " |"


def _keyword_default(name: str, keyword: str) -> str:
    spec = OBJECTIVES[name]
    if keyword in INPUT_OF and spec.takes(keyword):
        return str(MULTIPLIER_RATE) if keyword == "multiplier_rate" else "required"
    return str(spec.keywords.get(keyword, ""))


def undescribed() -> list[str]:
    """Return the settings without a description."""
    return [field for field, info in TrainConfig.model_fields.items() if not info.description]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
