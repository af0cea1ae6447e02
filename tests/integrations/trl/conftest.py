"""TRL is imported once, and its objects are left out of the collections that transformers forces in each run."""

import gc
import importlib.util

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("trl") else ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def frozen_objects():
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
