"""Lazy exports: names that a package lists once, as imports for type checkers."""

import subprocess
import sys

import pytest

import gvpo
from gvpo import lazy


def test_names_come_from_the_imports_of_type_checkers():
    names, load, listed = lazy.exports("gvpo")
    assert names == sorted(gvpo.__all__)
    assert load("GvpoError") is gvpo.errors.GvpoError
    assert set(names) <= set(listed())


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'gvpo' has no attribute 'Trianer'"):
        gvpo.Trianer  # noqa: B018


def test_a_module_of_the_package_is_imported_on_first_use():
    code = "import sys, gvpo; assert 'gvpo.rewards' not in sys.modules; assert gvpo.rewards.exact_match"
    subprocess.run([sys.executable, "-c", code], check=True)
