"""Tests of ids without a token: never sampled, and excluded from the softmax of samples, log-probs and gradients."""

import copy
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from gvpo.errors import DataError
from gvpo.model.known_tokens import Missing, largest_id, missing_tokens, restrict
from gvpo.objectives import sft
from gvpo.sampling import Request, SamplingParams
from gvpo.sampling.transformers import TransformersSampler
from gvpo.types import Completion, Group
from gvpo.update.group_backward import group_backward, score
from tests.fakes import VOCABULARY, byte_tokenizer, tiny_model

PADDED = VOCABULARY + 21
GAP = VOCABULARY + 7  # ids VOCABULARY .. GAP - 1 are gaps if a token is added at GAP
GROUPS = [Group([5, 6, 7], [Completion([9, 200, 30, 1], 1.0), Completion([8, 1], 0.0)], id="a")]


def gapped_tokenizer() -> Any:
    """Return `byte_tokenizer` with a token whose id leaves a gap, as in tokenizers with reserved ids."""
    import json

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    state["model"]["vocab"]["reserved"] = GAP
    raw = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")


def padded(kind: str = "qwen2", **config: Any) -> Any:
    """Return a model with more rows than its tokenizer has tokens, whose extra rows would be sampled mostly."""
    model = tiny_model(kind, vocab_size=PADDED, **config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight[VOCABULARY:] *= 4
    return model


TOKENIZERS = {"padded": byte_tokenizer, "gapped": gapped_tokenizer}
KNOWN = {"padded": list(range(VOCABULARY)), "gapped": [*range(VOCABULARY), GAP]}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_missing_ids_are_found_and_copied_with_the_model(name: str):
    model = padded()
    assert missing_tokens(model) is None
    restrict(model, TOKENIZERS[name]())
    gaps = () if name == "padded" else tuple(range(VOCABULARY, GAP))
    assert missing_tokens(model) == Missing(KNOWN[name][-1] + 1, gaps)
    assert missing_tokens(copy.deepcopy(model)) == missing_tokens(model)
    restrict(tiny := tiny_model(), byte_tokenizer())
    assert missing_tokens(tiny) is None
    assert largest_id(TOKENIZERS[name]()) == KNOWN[name][-1]


def test_an_id_with_the_text_of_another_id_is_not_missing():
    """Vocabularies contain one id per text. The other ids are found by their decoded text."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("twice")])
    model = tiny_model(vocab_size=PADDED)
    restrict(model, tokenizer)
    assert missing_tokens(model) == Missing(VOCABULARY + 1, ())


def naive(model: Any, known: list[int], group: Group, row: Completion, temperature: float) -> torch.Tensor:
    """Compute log-probs of a row under the softmax of the known tokens with plain autograd."""
    ids = torch.tensor([[*group.prompt, *row.tokens]])
    logits = model(input_ids=ids).logits[0, len(group.prompt) - 1 : -1] / temperature
    places = torch.tensor([known.index(token) for token in row.tokens])
    return logits[:, known].log_softmax(-1).gather(1, places[:, None])[:, 0]


@pytest.mark.parametrize("kind", ["qwen2", "llama"])  # tied weights, and a separate head
@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("budget", [8, 8192])
def test_log_probs_and_gradients_equal_those_of_the_known_tokens(kind: str, name: str, budget: int):
    model = padded(kind, dtype=torch.float64)
    restrict(model, TOKENIZERS[name]())
    output = group_backward(model, GROUPS, sft, tokens_per_microbatch=budget, temperature=0.9)
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    expected = [naive(model, KNOWN[name], group, row, 0.9) for group in GROUPS for row in group.completions]
    (-torch.cat(expected).mean()).backward()
    for row, logprobs in zip(output.rows, expected, strict=True):
        torch.testing.assert_close(row.logprobs, logprobs.detach())
        assert row.entropy.isfinite().all()
    for one, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-4, atol=2e-6)  # norms are float32 within float64 models
    head = model.get_output_embeddings().weight
    if kind == "llama":
        assert (head.grad[[token for token in range(PADDED) if token not in KNOWN[name]]] == 0).all()


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("changes", [{}, {"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.9}, {"temperature": 2.0}])
def test_missing_ids_are_never_sampled_and_the_sampler_agrees_with_the_update(name: str, changes: dict[str, Any]):
    model, tokenizer = padded(), TOKENIZERS[name]()
    requests = [Request(str(number), (5, 6, 7 + number)) for number in range(4)]
    params = SamplingParams(group_size=4, max_tokens=12, **changes)
    drawn = TransformersSampler(model, tokenizer).sample(requests, params, seed=0, step=0)
    tokens = {token for rows in drawn for row in rows for token in row.tokens}
    assert tokens <= set(KNOWN[name])
    groups = [Group(list(request.prompt), rows, id=request.id) for request, rows in zip(requests, drawn, strict=True)]
    scored = score(model, groups, temperature=params.temperature or 1.0)
    for row, scores in zip((row for rows in drawn for row in rows), scored, strict=True):
        recorded = torch.tensor(row.sampler_logprobs)
        if "top_k" in changes or "top_p" in changes:  # those of the tokens that are left
            assert (recorded > scores.logprobs).all()
        else:
            torch.testing.assert_close(recorded, scores.logprobs, atol=1e-4, rtol=1e-4)


def test_without_a_restriction_they_would_be_sampled():
    """This shows that the test above can fail."""
    model = padded()
    sampler = TransformersSampler(model, byte_tokenizer())
    restrict(model, _everything())
    drawn = sampler.sample([Request("a", (5, 6, 7))], SamplingParams(8, 12), seed=0, step=0)
    assert any(token >= VOCABULARY for rows in drawn for row in rows for token in row.tokens)


def _everything() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<{number}>" for number in range(PADDED - VOCABULARY)])
    return tokenizer


@pytest.mark.parametrize("token", [VOCABULARY, PADDED - 1])
def test_rows_with_a_missing_id_are_rejected(token: int):
    model = padded()
    restrict(model, gapped_tokenizer() if token == VOCABULARY else byte_tokenizer())
    with pytest.raises(DataError, match=f"token id {token}, which the tokenizer does not have"):
        score(model, [Group([5], [Completion([9, token])])])
