"""Tests of the choice of the dtype of forward passes."""

from typing import Any

import pytest
import torch

from gvpo.config import TrainConfig
from gvpo.update import precision
from gvpo.update.precision import choose_dtype
from tests.fakes import tiny_model


@pytest.fixture(scope="module")
def wide() -> Any:
    return tiny_model("llama", hidden_size=512, intermediate_size=1024, num_hidden_layers=1)


def test_the_choice_is_the_same_each_time_and_leaves_the_threads_unchanged(wide: Any):
    threads = torch.get_num_threads()
    first, faster = choose_dtype(TrainConfig(), wide)
    assert faster > 0
    assert (first == "bfloat16") == (faster >= precision.PAYS)
    assert {choose_dtype(TrainConfig(), wide)[0] for _ in range(3)} == {first}
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("faster", "chosen"), [(2.0, "bfloat16"), (1.1, "float32"), (0.1, "float32")])
def test_a_wide_model_is_computed_in_the_faster_dtype(
    wide: Any, faster: float, chosen: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(precision, "_times_faster", lambda weight: faster)
    assert choose_dtype(TrainConfig(), wide) == (chosen, faster)


def test_small_models_and_other_weights_stay_as_they_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "_times_faster", lambda weight: 8.0)
    assert choose_dtype(TrainConfig(), tiny_model("llama")) == ("float32", 0.0)
    narrow: Any = tiny_model("llama", hidden_size=512, num_hidden_layers=1).bfloat16()
    assert choose_dtype(TrainConfig(), narrow) == ("float32", 0.0)


@pytest.mark.parametrize("given", ["float32", "bfloat16"])
def test_an_explicit_dtype_is_kept_without_a_measurement(wide: Any, given: Any):
    assert choose_dtype(TrainConfig(compute_dtype=given), wide) == (given, 0.0)
