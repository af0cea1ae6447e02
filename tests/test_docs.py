"""The documents are correct: links, settings, metrics, recipes, commands and snippets are checked against the code.

A python block after the line `<!-- runs -->` is run; the blocks of a page share their names, and find the demo's run in
`runs/demo`. All others must compile. `toml` blocks are recipes. Lines of `sh` and plain blocks that begin with `gvpo`,
`make` or `torchrun` are commands, and so are the lines after `$ ` in `console` blocks: they must parse. A `console`
block after the line `<!-- runs -->` is run, and must print what it shows; `...` stands for any text. An `sh` block
after that line is run from top to bottom in an empty directory, by a slow test.
"""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gvpo.cli.main import _parser, main
from gvpo.cli.options import given_settings
from gvpo.cli.shipped import find_recipe
from gvpo.config import FIELDS, OBJECTIVES, SECTIONS, TrainConfig
from gvpo.config.recipe import flatten, parse_overrides
from gvpo.runfiles import read_metrics, read_rollouts, rollout_path
from tools import configuration_page, docs_site, objectives_table, trl_options_page

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("*.md")])
STAND_INS = {
    "Qwen/Qwen2.5-0.5B-Instruct": "runs/demo/checkpoints/step-000002",
    "steps=200": "steps=1",
    "max_tokens=256": "max_tokens=24, prompts_per_step=2, group_size=2",
    "environment_max_turns=6": r'environment_max_turns=3, environment_between="\n{observation}\n"',
}
"""Code of a block that runs, and what the test runs instead: the demo's model, which has no chat template."""
THIS_TREE = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
"""Environment of commands that run in another directory."""
ROOMS = "|".join(path.parent.name for path in (ROOT / "src/gvpo").glob("*/__init__.py"))
SMALL = [
    "train.steps=2",
    "train.prompts_per_step=2",
    "train.groups_per_update=1",
    "warm_start.steps=3",
    "warm_start.batch=8",
    "warm_start.demonstrations=50",
    "data.train_problems=20",
    "data.eval_problems=4",
    "eval.every=1",
    "checkpoint.every=1",
]

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page, language):
    """Return the fenced blocks of a language, without their indentation."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def prose(page):
    """Return the page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchor(heading):
    """Return the name of a heading in links."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Return a directory with a very short run of the demo in `runs/demo`, created by its command."""
    directory = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "gvpo.cli.main", "train", "demo", "run.dir=runs/demo", *SMALL]
    finished = subprocess.run(command, cwd=directory, env=THIS_TREE, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return directory


@every_page
def test_links_have_targets(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, section = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), f"{page.name}: {target}"
        if section:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert section in map(anchor, headings), f"{page.name}: {target}"


@every_page
def test_settings_in_the_text_exist(page):
    if page.name == "CHANGELOG.md":
        return  # it also names settings that were renamed
    sections = "|".join(SECTIONS)
    # `rewards.load` and the like are Python; what is followed by = or stands alone in backticks is a setting.
    named = re.findall(rf"`((?:{sections})\.[a-z_0-9]+)(?:\s*=[^`]*)?`", prose(page))
    assert [key for key in named if key not in FIELDS and not key.endswith((".py", ".md", ".log", ".json"))] == []


@every_page
def test_python_blocks_compile(page):
    for number, code in enumerate(blocks(page, "python"), start=1):
        compile(code, f"{page.name} block {number}", "exec")


@every_page
def test_toml_blocks_are_recipes(page):
    for text in blocks(page, "toml"):
        recipe = tomllib.loads(text)
        recipe.pop("extends", None)
        TrainConfig(**flatten(recipe))


def commands(page):
    """Return lines of `sh` and plain blocks that begin with a command, and those after a prompt in `console` blocks."""
    plain = "".join(blocks(page, "(?:sh)?")).replace("\\\n", " ").splitlines()
    prompted = [
        command for block in set(blocks(page, "console")) - set(runnable(page)) for command, _ in transcript(block)
    ]
    lines = [line for line in plain if re.match(r"(?:[A-Z_]+=\S+ )*(?:gvpo|make|torchrun) ", line)] + prompted
    return [part.strip() for line in lines for part in re.split(r" (?:\||&&|>) ", line)]


def transcript(block):
    """Yield the commands of a console block, each with its output."""
    for part in re.split(r"^\$ ", block.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


@every_page
def test_commands_parse(page):
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in commands(page):
        words = shlex.split(line, comments=True)
        while re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if words[0] == "make":
            assert all(re.search(rf"^{word}:", targets, re.MULTILINE) for word in words[1:] if "=" not in word), line
        if words[0] == "torchrun":
            words = ["gvpo", *words[words.index("gvpo.cli.main") + 1 :]]
        if words[0] == "gvpo" and not {"--version", "--help"} & set(words):
            parse(words[1:], line)


def parse(words, line):
    """Parse a command of gvpo with its own parser, recipe and settings."""
    options, late = _parser(words).parse_known_args(words)
    assert not any(word.startswith("-") for word in late), line
    if words[0] == "train":
        parse_overrides([*options.settings, *late])
        assert options.recipe.endswith(".toml") or find_recipe(options.recipe), line
    elif hasattr(options, "reads"):
        given_settings(options)


def runnable(page, language="console"):
    """Return the blocks of a language that are marked to be run."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^<!-- runs -->\n```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


WAITING = re.compile(r"[\w.-]+: (preparing|importing torch|loading the model)")
"""Line that a command prints on a busy machine, after ten seconds without output."""


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=lambda page: page.stem)
def test_marked_commands_print_what_the_page_shows(page, demo):
    (demo / "bin").mkdir(exist_ok=True)
    script = demo / "bin/gvpo"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m gvpo "$@"\n')
    script.chmod(0o755)
    environment = THIS_TREE | {"PATH": f"{demo / 'bin'}:{os.environ['PATH']}", "COLUMNS": "100"}
    for block in runnable(page):
        for command, expected in transcript(block):
            finished = subprocess.run(
                command,
                shell=True,
                cwd=demo,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=120,
            )
            lines = (line.rstrip() for line in finished.stdout.splitlines())
            printed = "\n".join(line for line in lines if not WAITING.fullmatch(line)).strip()
            pattern = ".*".join(map(re.escape, expected.strip().split("...")))
            assert re.fullmatch(pattern, printed, re.DOTALL), f"$ {command}\n{printed}"


@pytest.mark.filterwarnings("ignore::gvpo.errors.GvpoWarning")
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if runnable(page, "python")],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_marked_blocks_run(page, demo, monkeypatch):
    monkeypatch.chdir(demo)
    names = {"__name__": "__main__"}
    for number, code in enumerate(runnable(page, "python"), start=1):
        for said, run in STAND_INS.items():
            code = code.replace(said, run)
        exec(compile(code, f"{page.name} block {number}", "exec"), names)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page, "sh")], ids=lambda page: page.stem)
def test_marked_blocks_of_commands_work_from_top_to_bottom(page, tmp_path):
    for block in runnable(page, "sh"):
        script = f'gvpo() {{ {shlex.quote(sys.executable)} -m gvpo "$@"; }}\nset -e\n{block}'
        finished = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=THIS_TREE, capture_output=True, text=True, timeout=1200
        )
        assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]


def test_the_readme_has_a_block_of_commands_that_is_run():
    (block,) = runnable(ROOT / "README.md", "sh")
    named = set(re.findall(r"^gvpo (\w+)", block, re.MULTILINE))
    assert named >= {
        "train",
        "eval",
        "generate",
        "report",
        "decode",
        "doctor",
        "init",
        "config",
        "data",
        "list",
        "docs",
    }


def test_the_configuration_page_is_current():
    assert configuration_page.PAGE.read_text(encoding="utf-8") == configuration_page.page(), (
        "run `python tools/configuration_page.py`"
    )


def test_the_page_of_options_of_trl_is_current():
    assert trl_options_page.PAGE.read_text(encoding="utf-8") == trl_options_page.page(), (
        "run `python tools/trl_options_page.py`"
    )


@pytest.mark.parametrize("page", objectives_table.pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_tables_of_objectives_are_current(page):
    assert page.read_text(encoding="utf-8") == objectives_table.filled(page), "run `python tools/objectives_table.py`"


def test_the_index_of_objectives_has_the_table():
    assert ROOT / "docs/reference/objectives/README.md" in objectives_table.pages()


def test_every_setting_has_a_description():
    assert configuration_page.undescribed() == []


def explained(page, *, generic):
    """Return the words in backticks at the start of the table rows of a page."""
    cells = re.findall(r"^\| ([^|]*`[^|]*) \|", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE)
    return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)} | set(generic)


def test_every_metric_of_a_run_is_explained(demo):
    lines = read_metrics(demo / "runs/demo/metrics.jsonl")
    keys = {key.removesuffix("/last") for line in lines for key in line}
    rewards = json.loads((demo / "runs/demo/config.json").read_text())["rewards"]["funcs"]
    assert "train/loss/last" in lines[-1], "the run should have several updates per step"
    assert keys - explained("reference/run-directory.md", generic={f"reward/{name}" for name in rewards}) == set()


def test_every_key_of_a_summary_is_explained(demo):
    summary = json.loads((demo / "runs/demo/summary.json").read_text())
    assert set(summary) - explained("reference/run-directory.md", generic=()) == set()


def test_the_run_directory_page_lists_every_file(demo):
    text = (ROOT / "docs/reference/run-directory.md").read_text(encoding="utf-8")
    names = {path.relative_to(demo / "runs/demo").parts[0] for path in (demo / "runs/demo").iterdir()}
    assert [name for name in sorted(names - {"warm-start"}) if name not in text] == []
    assert "warm-start" in text


def test_the_readme_names_every_objective_and_every_guide():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = [f"docs/reference/objectives/{name}.md" for name in OBJECTIVES]
    pages += [f"docs/guides/{page.name}" for page in (ROOT / "docs/guides").glob("*.md")]
    assert [page for page in pages if page not in text] == []


def test_every_page_is_in_the_navigation_of_the_site():
    listed = {page for pages in docs_site.navigation().values() for page in pages}
    assert sorted({str(page.relative_to(ROOT)) for page in PAGES} - listed) == []


def test_messages_that_the_guide_to_resuming_quotes_are_those_of_the_code():
    guide = (ROOT / "docs/guides/resume.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| [^|]+ \|$", guide.partition("## What can go wrong")[2], re.MULTILINE)
    quoted = [message for cell in rows for message in re.findall(r"`([^`]+)`", cell)]
    assert len(quoted) > 10
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "src").rglob("*.py")]
    strings = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    code = "\n".join(text for text in strings if isinstance(text, str))
    gaps = r"\.\.\.|another|\b[A-Z]\b|[0-9]|KEY=|'\w+'|: (?:No space left on device|Permission denied)"
    pieces = [piece.strip(" ,:;()") for message in quoted for piece in re.split(gaps, message)]
    assert [piece for piece in pieces if piece not in code] == []


def test_every_figure_is_shown_somewhere():
    texts = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [file.name for file in (ROOT / "docs/figures").iterdir() if f"figures/{file.name})" not in texts] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs/guides").glob("*.md")), ids=lambda page: page.stem)
def test_guides_leave_measurements_to_the_internals(page):
    dates = re.findall(r"\b20\d\d-\d\d-\d\d\b|\b\d+ (?:November|December) 20\d\d", page.read_text("utf-8"))
    assert dates == [], "move what was measured to docs/internals/measurements.md and link there"


@every_page
def test_files_that_a_page_names_exist(page):
    named = re.findall(r"(?<![\w./-])(?:src|tests|benchmarks|tools|examples)/[\w/-]+\.\w+", page.read_text("utf-8"))
    named += [f"src/gvpo/{name}" for name in re.findall(rf"`((?:{ROOMS})/[a-z_0-9/]+\.py)`", page.read_text("utf-8"))]
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_game_of_the_guide_to_environments_runs_from_its_recipe(demo, monkeypatch):
    monkeypatch.chdir(demo)
    page = ROOT / "docs/guides/environments.md"
    Path("game.py").write_text(runnable(page, "python")[0])
    Path("numbers.jsonl").write_text(json.dumps({"prompt": "20=", "high": 20}) + "\n")
    recipe = blocks(page, "toml")[0].replace("Qwen/Qwen2.5-0.5B-Instruct", "runs/demo/checkpoints/step-000002")
    Path("recipe.toml").write_text(recipe)
    small = [
        "train.steps=1",
        "train.prompts_per_step=1",
        "sampling.max_tokens=24",
        r"environment.between=\n{observation}\n",
    ]
    assert main(["train", "recipe.toml", "run.dir=runs/game", *small]) == 0
    rows = read_rollouts(rollout_path(Path("runs/game"), 1))
    assert {turn["outcome"] for row in rows for turn in row.turns} <= {"ok", "error", "none"}
    assert any(len(row.turns) > 1 and "ValueError: invalid literal" in row.turns[0]["detail"] for row in rows)
