"""Tests that the cache that grows in place and the attention without copies of keys equal transformers' own."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gvpo.sampling import cache as roomy
from gvpo.sampling.cache import attend, decoding_attention, make_room
from tests.fakes import tiny_model


def states(tokens: int, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 2, tokens, 8), torch.randn(rows, 2, tokens, 8)


@pytest.mark.parametrize("room", [1, 3, 64])
def test_a_cache_with_room_equals_a_dynamic_one(monkeypatch: pytest.MonkeyPatch, room: int):
    monkeypatch.setattr(roomy, "ROOM", room)
    torch.manual_seed(0)
    caches = DynamicCache(), DynamicCache()
    first = states(5)
    for each in caches:
        each.update(*first, 0)
    make_room(caches[1])
    assert type(caches[1].layers[0]) is roomy.RoomyLayer
    for step in range(10):
        if step in (0, 4, 7):
            keep = torch.tensor([[0, 1, 2, 2], [3, 1], [1]][[0, 4, 7].index(step)])
            for each in caches:
                each.reorder_cache(keep)
        more = states(1, len(caches[0].layers[0].keys))
        (keys, values), (found_keys, found_values) = (each.update(*more, 0) for each in caches)
        assert torch.equal(found_keys, keys)
        assert torch.equal(found_values, values)
        assert caches[1].get_seq_length() == caches[0].get_seq_length()


def test_a_token_is_written_into_spare_room():
    cache = DynamicCache()
    cache.update(*states(5), 0)
    make_room(cache)
    places = {cache.update(*states(1), 0)[0].data_ptr() for _ in range(roomy.ROOM)}
    assert len(places) == 1


def test_layers_with_windows_are_unchanged():
    model = tiny_model("gemma3").eval()
    cache = model(torch.arange(6)[None], use_cache=True).past_key_values
    kinds = [type(layer) for layer in cache.layers]
    make_room(cache)
    changed = [one is not type(layer) for one, layer in zip(kinds, cache.layers, strict=True)]
    assert changed == [not layer.is_sliding for layer in cache.layers]


class Layer(torch.nn.Module):
    """The attributes that transformers' attention reads from its layer."""

    is_causal = True

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


@pytest.mark.parametrize("new", [1, 4])
@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("masked", ["no", "boolean", "added"])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_attention_equals_that_of_transformers(new: int, heads: int, masked: str, dtype: torch.dtype, error: float):
    torch.manual_seed(0)
    query = torch.randn(3, heads, new, 8, dtype=dtype)
    key, value = (torch.randn(3, 2, 11, 8, dtype=dtype) for _ in range(2))
    mask = torch.ones(3, 1, new, 11, dtype=torch.bool)
    mask[1, :, :, :4] = False
    added = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)
    arguments = (Layer(heads // 2), query, key, value, {"no": None, "boolean": mask, "added": added}[masked])
    found, _ = attend(*arguments, scaling=0.3)
    expected, _ = sdpa_attention_forward(*arguments, scaling=0.3)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=error, atol=error)


def test_transformers_attention_is_replaced_in_one_thread_and_restored_by_the_last():
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    query, key, value = torch.randn(3, 6, 1, 8), torch.randn(3, 2, 11, 8), torch.randn(3, 2, 11, 8)

    def attended() -> torch.Tensor:
        found: torch.Tensor = ALL_ATTENTION_FUNCTIONS["sdpa"](Layer(3), query, key, value, None)[0]
        return found

    plain, fast = before(Layer(3), query, key, value, None)[0], attend(Layer(3), query, key, value, None)[0]
    assert not torch.equal(plain, fast)  # both are right, and round differently
    with ThreadPoolExecutor(1) as other:
        with decoding_attention():
            assert torch.equal(attended(), fast)
            assert torch.equal(other.submit(attended).result(), plain)
            context = decoding_attention()
            other.submit(context.__enter__).result()
        assert torch.equal(other.submit(attended).result(), fast)
        assert torch.equal(attended(), plain)
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not before
        other.submit(context.__exit__, None, None, None).result()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
