"""Notices: to a handler if there is one, otherwise as Python warnings; a run prints each once, when it begins."""

import warnings

import pytest

from gvpo import notices
from gvpo.errors import GvpoWarning


class Special(GvpoWarning):
    """A separate category."""


def test_without_a_handler_a_notice_is_a_python_warning_of_its_category():
    with pytest.warns(Special, match="take care"):
        notices.warn("take care", Special)


def test_a_handler_receives_only_the_warnings_of_its_context():
    taken: list[tuple[str, type[GvpoWarning]]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with notices.handled(lambda message, category: taken.append((message, category))):
            notices.warn("one")
            with notices.without(Special):
                notices.warn("two", Special)
                notices.warn("three")
    assert taken == [("one", GvpoWarning), ("three", GvpoWarning)]
    with pytest.warns(GvpoWarning, match="four"), notices.without(Special):
        notices.warn("four")


def test_notices_wait_until_the_run_begins_and_are_printed_once(capsys: pytest.CaptureFixture[str]):
    with notices.collected() as collected:
        notices.warn("a")
        notices.warn("b")
        with notices.collected() as inner:
            notices.warn("a")
        assert inner is collected
        assert capsys.readouterr().err == ""
        collected.begin()
        notices.warn("b")
        notices.warn("c")
        collected.begin()
    assert capsys.readouterr().err == "".join(f"gvpo: warning: {name}\n" for name in "abc")


def test_show_prints_immediately(capsys: pytest.CaptureFixture[str]):
    with notices.handled(notices.show):
        notices.warn("now")
        with notices.collected():
            notices.warn("later")
    assert capsys.readouterr().err == "gvpo: warning: now\n"


def test_a_quiet_rank_prints_nothing(capsys: pytest.CaptureFixture[str]):
    with notices.collected(quiet=True) as collected:
        notices.warn("a")
        collected.begin()
        notices.warn("b")
    assert capsys.readouterr().err == ""
