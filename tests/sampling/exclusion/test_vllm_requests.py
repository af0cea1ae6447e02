"""Tests of the vLLM processor's checks of a request before the engine has it. vLLM itself need not be installed."""

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gvpo.errors import ConfigError


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield `ExclusionProcessor`, with empty stand-ins for the imports of its module."""
    names: dict[str, dict[str, Any]] = {
        "vllm": {"SamplingParams": SimpleNamespace},
        "vllm.tokenizers": {"cached_tokenizer_from_config": None},
        "vllm.v1.sample.logits_processor": {"AdapterLogitsProcessor": object},
    }
    for name, contents in names.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "gvpo.sampling.exclusion.vllm", raising=False)
    import gvpo.sampling.exclusion.vllm

    yield gvpo.sampling.exclusion.vllm.ExclusionProcessor
    sys.modules.pop("gvpo.sampling.exclusion.vllm")


def request(*allow: str, ignore_eos: bool = False) -> SimpleNamespace:
    return SimpleNamespace(extra_args={"gvpo_allow": list(allow)}, ignore_eos=ignore_eos)


def test_a_text_that_cannot_end_is_rejected(processor: Any) -> None:
    with pytest.raises(ConfigError, match="remove ignore_eos"):
        processor.validate_params(request("text:yes", ignore_eos=True))


def test_other_requests_pass(processor: Any) -> None:
    processor.validate_params(request("text:yes"))
    processor.validate_params(request(ignore_eos=True))
