"""The public API: the names that `import gvpo` promises, and its import time."""

import importlib
import subprocess
import sys

import pytest

import gvpo

PACKAGES = (
    "objectives",
    "rewards",
    "data",
    "data.check",
    "sampling",
    "sampling.exclusion",
    "model",
    "evaluation",
    "probe",
    "report",
    "testing",
)


def test_the_public_names_change_only_deliberately():
    assert set(gvpo.__all__) == {
        *("Completion", "Group", "PreferencePair", "Problem", "Verdict"),
        *("GvpoError", "GvpoWarning", "MissingLogprobs", "errors"),
        *("ObjectiveOutput", "objectives", "reward", "rewards"),
        *("TokenLogprobs", "UpdateOutput", "group_backward", "keep_freed_memory", "score"),
        *("Request", "SamplingParams", "TransformersSampler"),
        *("TrainConfig", "Trainer", "load_model", "load_tokenizer", "push_to_hub", "write_report"),
    }


def test_every_public_name_resolves():
    for name in gvpo.__all__:
        assert getattr(gvpo, name) is not None
        assert name in dir(gvpo)


def in_order(names: list[str]) -> list[str]:
    """Return the names once, in alphabetical order: constants, then classes, then functions."""
    return sorted(set(names), key=lambda name: (not name.isupper(), not name[0].isupper(), name))


def test_public_names_are_sorted_and_unique():
    assert list(gvpo.__all__) == in_order(gvpo.__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_list_their_exports_in_order(package):
    module = importlib.import_module(f"gvpo.{package}")
    assert list(module.__all__) == in_order(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'group_forward'"):
        gvpo.group_forward  # noqa: B018


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that a new interpreter has loaded after `code`."""
    report = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    finished = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True, timeout=60
    )
    return set(finished.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import gvpo",
        "import gvpo.rewards, gvpo.data, gvpo.types, gvpo.config",
        "import gvpo.report",
        "import gvpo.data.check",
        "from gvpo.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass",
        "from gvpo.cli.main import main\ntry:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass",
        "from gvpo.cli.main import main\ntry:\n    main(['eval', '--help'])\nexcept SystemExit:\n    pass",
        "import gvpo.evaluation",
    ],
)
def test_light_imports_do_not_load_torch(code):
    assert not modules_after(code) & {"torch", "transformers", "datasets", "accelerate", "pandas"}
