"""Tests of sampling parameters and their warnings."""

import pytest

from gvpo.errors import ConfigError
from gvpo.sampling import SamplingParams, support_warning


@pytest.mark.parametrize(
    "wrong",
    [
        {"group_size": 0},
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
    ],
)
def test_the_error_names_a_setting_out_of_range(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SamplingParams(**wrong)


def test_full_support_gives_no_warning():
    assert support_warning(SamplingParams(temperature=0.7)) is None


@pytest.mark.parametrize("cut", [{"temperature": 0.0}, {"top_k": 20}, {"top_p": 0.9}])
def test_settings_that_exclude_tokens_give_a_warning(cut):
    name, value = next(iter(cut.items()))
    assert f"{name}={value:g}" in (support_warning(SamplingParams(**cut)) or "")


def test_the_warning_names_every_excluding_setting():
    warning = support_warning(SamplingParams(top_k=20, top_p=0.9)) or ""
    assert "top_k=20 and top_p=0.9" in warning
