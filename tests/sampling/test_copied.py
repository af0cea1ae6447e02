"""Tests of the sampler on a copy of the policy: equal samples, versions, updates between samples, and LoRA."""

import threading
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from gvpo.errors import ModelError
from gvpo.model.lora import add_adapter, trainable
from gvpo.model.model import load_model
from gvpo.sampling.base import Request, SamplingParams, UpdatableSampler
from gvpo.sampling.copied import CopiedSampler
from gvpo.sampling.transformers import TransformersSampler
from gvpo.types import Completion
from tests.training.toy import model, tokenizer

REQUESTS = [Request(digit, tuple(tokenizer()(digit).input_ids)) for digit in "0123"]
PARAMS = SamplingParams(group_size=3, max_tokens=4)


def adapted() -> Any:
    policy = model()
    add_adapter(policy, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    return policy


def rows(sampler: Any, step: int = 1) -> list[list[Completion]]:
    found: list[list[Completion]] = sampler.sample(REQUESTS, PARAMS, seed=0, step=step)
    return found


def facts(groups: list[list[Completion]]) -> list[tuple[Any, ...]]:
    return [(row.tokens, row.sampler_logprobs) for group in groups for row in group]


def changed(policy: Any) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))


@pytest.mark.parametrize("make", [model, adapted], ids=["all weights", "LoRA"])
def test_a_copy_samples_as_the_policy_did_at_the_last_update(make: Any):
    policy = make()
    copied, live = CopiedSampler(policy, tokenizer()), TransformersSampler(policy, tokenizer())
    assert isinstance(copied, UpdatableSampler)
    before = rows(live)
    changed(policy)
    assert facts(rows(copied)) == facts(before) != facts(rows(live))
    assert {row.version for group in rows(copied) for row in group} == {0}
    copied.update(policy.state_dict().items(), 3)
    assert facts(rows(copied)) == facts(rows(live))
    assert {row.version for group in rows(copied) for row in group} == {3}


def test_a_copy_of_a_policy_with_lora_shares_its_base_and_no_trained_weight():
    policy = adapted()
    copied = CopiedSampler(policy, tokenizer()).model
    own, trained = dict(copied.named_parameters()), {name for name, _ in trainable(policy)}
    assert trained
    for name, parameter in policy.named_parameters():
        assert (own[name].data_ptr() == parameter.data_ptr()) == (name not in trained), name
    assert {name for name, _ in trainable(copied)} == trained


def test_a_copy_in_bfloat16_equals_the_saved_policy_that_is_loaded_in_bfloat16(tmp_path: Path):
    policy = model()
    copied = CopiedSampler(policy, tokenizer(), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in copied.model.parameters()} == {torch.bfloat16}
    changed(policy)
    copied.update(policy.state_dict().items(), 1)
    policy.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), dtype=torch.bfloat16)
    assert facts(rows(copied)) == facts(rows(TransformersSampler(loaded, tokenizer())))


def test_autocast_is_entered_in_the_thread_that_samples():
    policy = model()
    half = lambda: torch.autocast("cpu", dtype=torch.bfloat16)  # noqa: E731
    copied = CopiedSampler(policy, tokenizer(), autocast=half)
    found = list[Any]()
    thread = threading.Thread(target=lambda: found.append(facts(rows(copied))))
    thread.start()
    thread.join()
    plain = facts(rows(TransformersSampler(policy, tokenizer())))
    with half():
        assert found == [facts(rows(TransformersSampler(policy, tokenizer())))] != [plain]


def test_an_update_waits_until_a_stream_has_ended():
    policy = model()
    copied = CopiedSampler(policy, tokenizer(), tokens_per_batch=1)  # one batch per prompt
    expected = facts(rows(copied))
    stream = copied.stream(REQUESTS, PARAMS, seed=0, step=1)
    found = dict([next(stream)])
    changed(policy)
    thread = threading.Thread(target=lambda: copied.update(policy.state_dict().items(), 1), daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    found |= dict(stream)
    thread.join(5)
    assert not thread.is_alive()
    assert facts([found[place] for place in range(len(REQUESTS))]) == expected
    assert {row.version for group in found.values() for row in group} == {0}
    assert facts(rows(copied)) != expected


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("lm_head.weight"), "lacks the weight lm_head.weight"),
        (lambda state: state.update(other=torch.zeros(1)), r"no weight other of shape \[1\]"),
        (lambda state: state.update({"model.norm.weight": torch.zeros(3)}), "no weight model.norm.weight of shape"),
    ],
)
def test_weights_that_do_not_fit_are_refused(spoil: Any, message: str):
    copied = CopiedSampler(model(), tokenizer())
    state = dict(model().state_dict())
    spoil(state)
    with pytest.raises(ModelError, match=message):
        copied.update(state.items(), 1)
