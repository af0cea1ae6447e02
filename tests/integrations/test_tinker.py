"""The tinker plug-in, through the SDK's own client, against `group_backward` on the same model."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch

from gvpo import Completion, Group, group_backward, score
from gvpo.errors import DataError, EngineError, MissingLogprobs, ShapeError
from gvpo.objectives import grpo, gvpo, sft
from gvpo.testing import random_groups
from tests.fakes import tiny_model

tinker = pytest.importorskip("tinker", reason="the tinker SDK is not installed")

from gvpo.integrations.tinker import check_server, custom_loss, datums, row_logprobs  # noqa: E402
from tests.integrations.tinker_server import Server, connect  # noqa: E402

BETA = 0.1


@pytest.fixture(scope="module")
def initial():
    return tiny_model().double().eval()


@pytest.fixture
def served(initial, monkeypatch):
    """Return a function that starts a server on a copy of the model, and returns client and server."""
    holders = []

    def start(rows_per_request=3, **settings):
        server = Server(copy.deepcopy(initial), **settings)
        client, holder = connect(server, monkeypatch, rows_per_request)
        holders.append(holder)
        return client, server

    yield start
    for holder in holders:
        holder.close()


def flat(model):
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.parameters()]
    )


def expected(initial, groups, objective, **settings):
    model = copy.deepcopy(initial)
    output = group_backward(model, groups, objective, **settings)
    return flat(model), output


OBJECTIVES = {
    "gvpo": (partial(gvpo, beta=BETA), {}),
    "gvpo of the first update": (partial(gvpo, beta=BETA), {"on_policy": True}),
    "grpo": (partial(grpo, kl_coef=0.1), {}),
    "sft": (sft, {}),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("rows_per_request", [2, 100])
def test_the_gradient_on_the_server_is_that_of_the_whole_batch(initial, served, name, rows_per_request):
    objective, settings = OBJECTIVES[name]
    groups = random_groups(BETA, initial, sizes=(2, 4, 3))
    if settings:
        groups = [replace(g, completions=[replace(row, ref_logprobs=None) for row in g.completions]) for g in groups]
    client, server = served(rows_per_request)
    loss = custom_loss(groups, objective, **settings)
    result = client.forward_backward_custom(datums(groups), loss).result(timeout=60)
    gradient, output = expected(initial, groups, objective, **settings)
    assert float((flat(server.model) - gradient).norm() / gradient.norm()) < 1e-6
    assert result.metrics["loss:sum"] == pytest.approx(float(output.loss), rel=1e-5)
    for metric, value in output.metrics.items():
        assert result.metrics[metric] == pytest.approx(float(value), rel=1e-4, abs=1e-5)
    # Chunks do not cut the batch of the loss: all forward requests come before all backward requests.
    requests = -(-9 // rows_per_request)
    assert [forward_only for _, _, forward_only in server.requests] == [True] * requests + [False] * requests
    assert sorted(number for number, _, _ in server.requests) == list(range(1, 2 * requests + 1))


def test_a_reference_of_the_start_is_scored_by_the_server(initial, served):
    groups = random_groups(BETA, initial, sizes=(3, 3))
    client, server = served()
    output = client.forward(datums(groups), "cross_entropy").result(timeout=60)
    found = row_logprobs(groups, [each["logprobs"] for each in output.loss_fn_outputs])
    for mine, theirs in zip(found, score(initial, groups), strict=True):
        torch.testing.assert_close(mine.double(), theirs.logprobs, rtol=0, atol=1e-6)
    assert flat(server.model).norm() == 0


def test_plain_cross_entropy_imitates_the_scored_tokens(initial, served):
    groups = random_groups(BETA, initial, sizes=(2, 2))
    client, server = served()
    client.forward_backward(datums(groups), "cross_entropy").result(timeout=60)
    gradient, _ = expected(initial, groups, sft)
    gradient *= sum(sum(row.mask) for group in groups for row in group.completions)  # its loss is a mean over tokens
    assert float((flat(server.model) - gradient).norm() / gradient.norm()) < 1e-6


def test_training_steps_lower_the_loss(initial, served):
    groups = random_groups(BETA, initial, sizes=(4, 4))
    client, _ = served()
    losses = []
    for _ in range(6):
        result = client.forward_backward_custom(datums(groups), custom_loss(groups, partial(gvpo, beta=BETA)))
        losses.append(result.result(timeout=60).metrics["loss:sum"])
        client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result(timeout=60)
    assert losses[-1] < 0.5 * losses[0]


def test_rows_without_a_gradient_are_sent_with_weight_0(initial, served):
    """A client that finds no gradient for a row refuses the batch."""
    live = random_groups(BETA, initial, sizes=(3,))
    row = live[0].completions[0]
    masked = replace(row, mask=[0.0] * len(row.tokens))
    empty = replace(row, tokens=[], mask=None, ref_logprobs=None, old_logprobs=None)
    groups = [*live, Group([5, 6], [masked, masked]), Group([5, 6], [empty, replace(masked, reward=2.0)])]
    client, server = served()
    objective = partial(gvpo, beta=BETA)
    filled = [
        replace(g, completions=[replace(r, ref_logprobs=r.ref_logprobs or []) for r in g.completions]) for g in groups
    ]
    client.forward_backward_custom(datums(filled), custom_loss(filled, objective)).result(timeout=60)
    gradient, _ = expected(initial, filled, objective)
    assert float((flat(server.model) - gradient).norm() / gradient.norm()) < 1e-6


def test_a_loss_that_is_not_finite_pushes_nothing(initial, served):
    groups = random_groups(BETA, initial, sizes=(3,))
    first, *rest = groups[0].completions
    groups = [replace(groups[0], completions=[replace(first, reward=float("nan")), *rest])]
    client, server = served()
    result = client.forward_backward_custom(datums(groups), custom_loss(groups, partial(gvpo, beta=BETA)))
    assert result.result(timeout=60).metrics["loss:sum"] != result.result().metrics["loss:sum"]
    assert flat(server.model).norm() == 0


def test_a_server_that_sums_passes_and_others_are_refused(served):
    client, server = served()
    check_server(client)
    assert [rows for _, rows, forward_only in server.requests if not forward_only] == [3, 1]
    client, _ = served(normalize=True)
    with pytest.raises(EngineError, match=r"does not sum its loss.*normalizes each row"):
        check_server(client)
    client, _ = served(report=False)
    with pytest.raises(EngineError, match="loss:sum of None"):
        check_server(client)
    client, _ = served()
    with pytest.raises(EngineError, match="raise learning_rate"):
        check_server(client, learning_rate=0.0)


def test_a_server_that_divides_by_absolute_weights_is_refused(served, monkeypatch):
    """The check must not depend on the signs: with rows of 1 and -1 this server would pass."""
    client, _ = served(normalize=True)
    monkeypatch.setattr(torch.Tensor, "clamp", lambda self, min: self.abs())
    with pytest.raises(EngineError, match="does not sum its loss"):
        check_server(client)


def test_a_normalizing_server_would_be_wrong(initial, served):
    groups = random_groups(BETA, initial, sizes=(4, 4))
    client, server = served(normalize=True)
    objective = partial(gvpo, beta=BETA)
    client.forward_backward_custom(datums(groups), custom_loss(groups, objective)).result(timeout=60)
    gradient, _ = expected(initial, groups, objective)
    assert float((flat(server.model) - gradient).norm() / gradient.norm()) > 10


def test_wrong_input_is_refused(initial):
    groups = random_groups(BETA, initial, sizes=(2,))
    loss = custom_loss(groups, partial(gvpo, beta=BETA))
    with pytest.raises(ShapeError, match="1 rows for 2 completions"):
        loss(datums(groups)[:1], [torch.zeros(3)])
    with pytest.raises(ShapeError, match=r"row 0 has log-probs of shape \(3,\)"):
        loss(datums(groups), [torch.zeros(3), torch.zeros(3)])
    bare = [Group([1], [Completion([2], reward=0.0), Completion([3], reward=1.0)])]
    with pytest.raises(MissingLogprobs, match="ref_logprobs"):
        custom_loss(bare, partial(gvpo, beta=BETA))
    with pytest.raises(DataError, match="nothing to predict"):
        datums([Group([1], [Completion([])])])
    assert [datum.loss_fn_inputs["target_tokens"].data for datum in datums(bare)] == [[2], [3]]
