"""Tests of the names and shapes of weights, without vLLM."""

import pytest

from gvpo.errors import ModelError
from gvpo.sampling.vllm.weights import check_shapes, require_replaceable, shapes_for, shapes_of
from tests.fakes import tiny_model


@pytest.mark.parametrize("tied", [True, False])
def test_the_configuration_names_all_weights_including_the_tied_head(tied: bool):
    model = tiny_model("qwen2", tie_word_embeddings=tied)
    found = shapes_for(model.config)
    assert found == shapes_of(model.state_dict())
    assert "lm_head.weight" in found
    assert ("lm_head.weight" in dict(model.named_parameters())) is not tied


def test_weights_without_the_tied_head_are_refused():
    model = tiny_model("qwen2", tie_word_embeddings=True)
    expected = shapes_of(model.state_dict())
    check_shapes(expected, expected)
    with pytest.raises(ModelError, match=r"1 of \d+ weights are missing, such as lm_head.weight; send all entries of"):
        check_shapes(shapes_of(dict(model.named_parameters())), expected)


def test_unknown_names_and_other_shapes_are_refused():
    expected = {"a": (2, 3), "b": (4,)}
    with pytest.raises(ModelError, match="has no weight c; send the state_dict"):
        check_shapes({**expected, "c": (1,)}, expected)
    with pytest.raises(ModelError, match=r"the weight b has shape \(5,\) and the engine's model needs \(4,\)"):
        check_shapes({**expected, "b": (5,)}, expected)


def test_on_a_cpu_experts_cannot_be_replaced():
    experts, plain = tiny_model("qwen3_moe").config, tiny_model("qwen2").config
    with pytest.raises(ModelError, match="samples something else from a mixture of experts"):
        require_replaceable(experts, "cpu")
    require_replaceable(experts, "cuda")
    require_replaceable(plain, "cpu")
