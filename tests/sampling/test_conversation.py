"""Conversations: rows that continue from their caches draw what rows that restart draw."""

import copy
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from gvpo.errors import ConfigError, DataError
from gvpo.sampling import Request, Sampler, SamplingParams
from gvpo.sampling.continued import Continued
from gvpo.sampling.conversation import Conversation, Restarted, Restarting, conversing
from gvpo.sampling.copied import CopiedSampler
from gvpo.sampling.exclusion.spec import Exclusion
from gvpo.sampling.prefill import extend, is_extensible, prefill
from gvpo.sampling.stops import StopTexts
from gvpo.sampling.transformers import TransformersSampler
from gvpo.types import Completion
from tests.fakes import RECURRENT, byte_tokenizer, tiny_model

STOPS = tuple(range(3, 55))
"""Stop tokens, about a fifth of the vocabulary, so that turns end after 1, 2, 3, ... tokens."""
PARAMS = SamplingParams(group_size=2, max_tokens=80, stop_token_ids=STOPS)
REQUESTS = [
    Request(f"problem-{number}", tuple(5 + (7 * number + place) % 250 for place in range(length)))
    for number, length in enumerate((9, 3, 14, 1))
]
Turns = list[dict[int, Completion]]


def endless() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    return tokenizer


def model_of(kind: str = "qwen2", **config: int) -> PreTrainedModel:
    return tiny_model(kind, eos_token_id=None, **config).double()


def sampler_of(kind: str = "qwen2", **settings: int) -> TransformersSampler:
    return TransformersSampler(model_of(kind), endless(), **settings)


def talk(conversation: Conversation, rows: int, *, turns: int = 3, seed: int = 0, most: int = 7) -> Turns:
    """Return the turns of a conversation. Each row hears tokens of its own, and about one in five leaves per turn."""
    chance, live, found = random.Random(seed), list(range(rows)), []
    for _ in range(turns):
        found.append(conversation.speak({row: chance.randint(1, most) for row in live}))
        live = [row for row in live if chance.random() < 0.8]
        heard = {row: [chance.randrange(3, 250) for _ in range(chance.randint(1, 12))] for row in live}
        conversation.hear(heard)
    return found


def both(sampler: TransformersSampler, params: SamplingParams = PARAMS, *, seed: int = 0) -> tuple[Turns, Turns]:
    """Return the turns of a conversation that continues, and of one that restarts."""
    continued = sampler.converse(REQUESTS, params, seed=seed, step=2)
    assert type(continued) is Continued
    rows = len(REQUESTS) * params.group_size
    restarted = Restarting(sampler).converse(REQUESTS, params, seed=seed, step=2)
    return talk(continued, rows, seed=seed), talk(restarted, rows, seed=seed)


def assert_equal(one: Turns, other: Turns, *, logprobs: float = 1e-9) -> None:
    assert [turn.keys() for turn in one] == [turn.keys() for turn in other]
    for spoken, expected in zip(one, other, strict=True):
        for row, completion in spoken.items():
            assert completion.tokens == expected[row].tokens
            assert (completion.finish_reason, completion.text) == (expected[row].finish_reason, expected[row].text)
            assert completion.sampler_logprobs == pytest.approx(expected[row].sampler_logprobs, abs=logprobs)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_continue_draw_what_rows_that_restart_draw(temperature: float):
    """20 seeds. The rows stop unevenly, hear blocks of different lengths, and leave in different turns."""
    sampler = sampler_of()
    lengths = set()
    for seed in range(20):
        continued, restarted = both(sampler, replace(PARAMS, temperature=temperature), seed=seed)
        assert_equal(continued, restarted)
        lengths |= {len(row.tokens) for turn in continued for row in turn.values()}
        assert len(continued[0]) >= len(continued[-1]) > 0
    assert lengths >= set(range(1, 7))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "qwen3_moe", "mixtral"])
def test_architectures_that_continue(kind: str):
    assert_equal(*both(sampler_of(kind)))


def test_adapters_continue():
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(eos_token_id=None), LoraConfig(r=4, init_lora_weights=False)).double()
    assert_equal(*both(TransformersSampler(model, endless())))


@pytest.mark.parametrize("kind", ["mistral", "gemma3", *RECURRENT])
def test_windows_and_states_restart(kind: str):
    sampler = sampler_of(kind)
    assert sampler.batches(REQUESTS, PARAMS) == [[0, 1, 2, 3]]
    conversation = sampler.converse(REQUESTS, PARAMS, seed=0, step=2)
    assert type(conversation) is Restarted
    assert all(len(turn) > 0 for turn in talk(conversation, 8))


def test_one_row_per_prompt():
    assert_equal(*both(sampler_of(), replace(PARAMS, group_size=1)))


def test_a_conversation_repeats_bit_for_bit_and_depends_on_seed_and_step():
    sampler = TransformersSampler(tiny_model(eos_token_id=None), endless())

    def said(seed: int = 0, step: int = 2) -> list[list[int]]:
        turns = talk(sampler.converse(REQUESTS, PARAMS, seed=seed, step=step), 8)
        return [[*row.tokens, *row.sampler_logprobs] for turn in turns for row in turn.values()]

    assert said() == said()
    assert said() != said(seed=1)
    assert said() != said(step=3)


def test_prompts_and_turns_are_computed_once():
    """A prompt is computed once for its rows, and a turn once more with what is heard after it."""
    sampler, shapes = sampler_of(), []
    sampler.batches(REQUESTS, PARAMS)
    conversation = sampler.converse(REQUESTS, PARAMS, seed=0, step=2)
    sampler.model.register_forward_pre_hook(
        lambda _, args, words: shapes.append(tuple(words["input_ids"].shape)), with_kwargs=True
    )
    first = conversation.speak(dict.fromkeys(range(8), 1))
    conversation.hear({row: [70] * (3 + row) for row in (0, 1, 7)})
    conversation.speak({0: 1, 1: 1, 7: 1})
    assert [len(completion.tokens) for completion in first.values()] == [1] * 8
    assert shapes == [(4, 14), (3, 1 + 3 + 7)]


def test_what_is_not_heard_leaves_and_a_last_turn_frees_the_cache():
    conversation = sampler_of().converse(REQUESTS, PARAMS, seed=0, step=2)
    assert conversation.speak({}) == {}
    assert list(conversation.speak({5: 3, 2: 4})) == [5, 2]
    conversation.hear({2: [70]})
    with pytest.raises(KeyError):
        conversation.speak({5: 1})
    assert list(conversation.speak({2: 4})) == [2]
    conversation.hear({})
    assert vars(conversation)["_start"] is None


def test_an_exclusion_restarts_each_turn():
    sampler = TransformersSampler(tiny_model(eos_token_id=None), endless())
    params = replace(PARAMS, exclusion=Exclusion(ban_tokens=tuple(range(100, 200))))
    conversation = sampler.converse(REQUESTS, params, seed=0, step=2)
    assert type(conversation) is Restarted
    turns = talk(conversation, 8)
    assert not {token for turn in turns for row in turn.values() for token in row.tokens} & set(range(100, 200))


def test_batches_hold_whole_episodes_twice_and_larger_ones_restart():
    """A row of the largest request has 14 + 80 tokens, and a conversation has two caches."""
    fits = 2 * PARAMS.group_size * (14 + 80)
    sampler = sampler_of(tokens_per_batch=2 * fits)
    batches = sampler.batches(REQUESTS, PARAMS)
    assert sorted(batches) == [[0, 2], [3, 1]]
    for batch in batches:
        conversation = sampler.converse([REQUESTS[place] for place in batch], PARAMS, seed=0, step=2)
        assert type(conversation) is Continued
    small = sampler_of(tokens_per_batch=fits - 1)
    assert [2] in small.batches(REQUESTS, PARAMS)
    conversation = small.converse(REQUESTS[2:3], PARAMS, seed=0, step=2)
    assert type(conversation) is Restarted
    assert_equal(talk(conversation, 2), talk(sampler.converse(REQUESTS[2:3], PARAMS, seed=0, step=2), 2))


def test_batches_do_not_change_the_tokens():
    sampler = sampler_of()
    together = talk(sampler.converse(REQUESTS, PARAMS, seed=0, step=2), 8, turns=1)[0]
    alone = talk(sampler.converse(REQUESTS[3:], PARAMS, seed=0, step=2), 2, turns=1)[0]
    limit = min(len(together[6].tokens), len(alone[0].tokens))
    assert together[6].tokens[:limit] == alone[0].tokens[:limit]


def test_invalid_requests_are_the_errors_of_restarting():
    for make in (lambda one: one, Restarting):
        sampler = TransformersSampler(model_of(max_position_embeddings=16), endless())
        conversation = make(sampler).converse(REQUESTS[:1], PARAMS, seed=0, step=2)
        conversation.speak({0: 2, 1: 2})
        conversation.hear({0: [70] * 5})
        with pytest.raises(DataError, match="'problem-0/0/1' has 16 tokens and the model's context is 16"):
            conversation.speak({0: 4})


def test_the_context_limits_a_turn():
    sampler = TransformersSampler(model_of(max_position_embeddings=16), endless())
    params = replace(PARAMS, stop_token_ids=())
    spoken = sampler.converse(REQUESTS, params, seed=0, step=2).speak(dict.fromkeys(range(8), 9))
    assert [len(row.tokens) for row in spoken.values()] == [7, 7, 9, 9, 2, 2, 9, 9]


def test_modes_are_restored_between_turns():
    sampler = sampler_of()
    conversation = sampler.converse(REQUESTS, PARAMS, seed=0, step=2)
    for _ in range(2):
        conversation.speak({0: 2, 1: 2})
        assert sampler.model.training
        assert torch.is_grad_enabled()
        conversation.hear({0: [70], 1: [71]})


def test_a_copy_continues_and_a_turn_after_an_update_has_the_new_weights():
    policy, moved = tiny_model(eos_token_id=None).double(), tiny_model(seed=1, eos_token_id=None).double()
    copied = CopiedSampler(policy, endless())
    native = copied.converse(REQUESTS, PARAMS, seed=0, step=2)
    assert type(native) is Continued
    restarted = Restarting(CopiedSampler(policy, endless())).converse(REQUESTS, PARAMS, seed=0, step=2)
    found: list[Turns] = []
    for conversation, sampler in ((native, copied), (restarted, vars(restarted)["_sampler"])):
        turns = []
        for version in (0, 3, 3):
            if version != sampler.version:
                sampler.update(moved.state_dict().items(), version)
            turns.append(conversation.speak(dict.fromkeys(range(8), 4)))
            conversation.hear({row: [70 + row] for row in range(8)})
            assert {row.version for row in turns[-1].values()} == {version}
        found.append(turns)
    assert_equal(*found)


def test_extending_equals_prefilling():
    """Prompts and blocks of different and of equal lengths, rows that share a prompt, and a second extension."""
    model = model_of().eval()
    prompts = [list(request.prompt) for request in REQUESTS]
    with torch.no_grad():
        start = prefill(model, prompts, 0)
        assert is_extensible(start)
        texts = [[*prompts[0], 7, 8], [*prompts[2], 9], [*prompts[2], *range(10, 30)], [*prompts[3], 5, 6]]
        once = extend(model, start, [0, 2, 2, 3], texts)
        longer = [[*texts[2], 3], [*texts[0], 4]]
        twice = extend(model, copy.deepcopy(once), [2, 0], longer)
        even = extend(model, prefill(model, [[5, 6], [7, 8]], 0), [0, 1], [[5, 6, 1], [7, 8, 2]])
        for found, wanted in ((once, texts), (twice, longer), (even, [[5, 6, 1], [7, 8, 2]])):
            exact = prefill(model, wanted, 0)
            assert torch.equal(found.lengths, exact.lengths)
            assert found.width == exact.width == found.cache.layers[0].keys.shape[2]
            assert (found.mask is None) == (exact.mask is None)
            assert found.mask is None or torch.equal(found.mask, exact.mask)
            assert torch.allclose(found.logits, exact.logits, atol=1e-10)


def test_samplers_that_cannot_continue_restart():
    sampler = sampler_of()
    assert conversing(sampler) is sampler

    class Plain:
        def sample(
            self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
        ) -> list[list[Completion]]:
            return sampler.sample(requests, params, seed=seed, step=step)

    plain: Sampler = Plain()
    restarting = conversing(plain)
    assert type(restarting) is Restarting
    restarted = talk(restarting.converse(REQUESTS, PARAMS, seed=0, step=2), 8)
    assert_equal(talk(sampler.converse(REQUESTS, PARAMS, seed=0, step=2), 8), restarted)


def test_stop_texts_are_refused():
    with pytest.raises(ConfigError, match=r"no turn can follow; let a token end .*sampling\.stop_token_ids"):
        conversing(StopTexts(sampler_of(), ["\n"]))
