"""Tinker (`pip install tinker`): exact updates of any objective, on a server that holds the model.

The server scores all rows, the objective runs here on the whole batch, and the server pushes the coefficients:

    data = datums(groups)
    client.forward_backward_custom(data, custom_loss(groups, objective)).result()
    client.optim_step(tinker.AdamParams(learning_rate=1e-5)).result()
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tinker import types
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gvpo.errors import DataError, EngineError, ShapeError
from gvpo.types import Completion, Group
from gvpo.update.coefficients import Objective, weigh
from gvpo.update.collate import collate

CustomLoss = Callable[[list[types.Datum], list[Tensor]], tuple[Tensor, dict[str, float]]]
"""A loss for `TrainingClient.forward_backward_custom`."""

PROBE = tuple(range(10, 22))
"""Token ids of the row that `check_server` sends."""


def datums(groups: Sequence[Group]) -> list[types.Datum]:
    """Return one `Datum` per completion, groups in order, then completions in order.

    The model reads prompt and completion without the last token, and predicts both without the first. The weights are 0
    on the prompt and the mask on the completion, so that `forward_backward(datums(groups), "cross_entropy")` imitates
    the completions. A custom loss replaces them.

    Raises:
        DataError: If prompt and completion of a row have fewer than two tokens together.
    """
    return [_datum(group.prompt, row.tokens, _scored(row)) for group, row in _rows(groups)]


def custom_loss(groups: Sequence[Group], objective: Objective, *, on_policy: bool = False) -> CustomLoss:
    """Return an objective as a loss for `forward_backward_custom(datums(groups), ...)`.

    The gradient on the server is that of the objective on the whole batch, as with `gvpo.group_backward`. If it is not
    finite, no gradient is added, and the metric `loss:sum` is not finite: skip the optimizer step.

    Args:
        groups: Optimizer batch, whole groups.
        objective: Called as `objective(logprobs, **keywords)` with the keywords of its signature, for example
            `functools.partial(gvpo.objectives.gvpo, beta=0.1)`.
        on_policy: Whether missing reference and old log-probs are taken from the current policy, detached.

    Returns:
        A function of the data and the log-probs of each row. It returns the loss and the metrics of the objective.

    Raises:
        MissingInput: If the completions lack an input of the objective.
    """
    collated = collate(groups, objective, dtype=torch.float64, device=torch.device("cpu"), on_policy=on_policy)

    def loss(data: list[types.Datum], logprobs: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        rows = row_logprobs(groups, logprobs)
        table = pad_sequence(rows, batch_first=True).double().reshape(collated.mask.shape)
        weighed = weigh(objective, collated, table)
        coefficients = weighed.coefficients if weighed.finite else torch.zeros_like(table)
        moved = torch.where(coefficients != 0, table - table.detach(), 0.0)
        # The client needs a gradient for each row, also where the objective has none.
        nothing = torch.stack([row[:0].sum() for row in logprobs]).sum()
        total = weighed.loss.to(table) + (coefficients * moved).sum() + nothing
        return total, {name: float(value) for name, value in weighed.metrics.items()}

    return loss


def row_logprobs(groups: Sequence[Group], logprobs: Sequence[Any]) -> list[Tensor]:
    """Return the log-probs of each completion, [C], from those of whole rows.

    Args:
        groups: Groups of `datums`.
        logprobs: Log-probs of prompt and completion of each row, as tensors, or as `TensorData` of the outputs of
            `client.forward(datums(groups), "cross_entropy")`.

    Raises:
        ShapeError: If there is not one row per completion, or a row is not as long as its targets.
    """
    rows = list(_rows(groups))
    if len(rows) != len(logprobs):
        raise ShapeError(
            f"there are log-probs of {len(logprobs)} rows for {len(rows)} completions; send datums(groups)"
        )
    pairs = enumerate(zip(rows, logprobs, strict=True))
    return [_completion_part(number, group, row, values) for number, ((group, row), values) in pairs]


def check_server(client: Any, *, learning_rate: float = 0.01) -> None:
    """Refuse a server whose gradient is not that of the loss that it is sent.

    A server may divide each row by the sum of its weights, which destroys any loss of the client: weights are signed
    there, and their size is the message. One row is sent three times with the weights 1, 1 and -2, whose gradient is 0,
    and then once with weight 1. SkyRL's JAX backend fails.

    Args:
        client: `TrainingClient` that is made for the check and thrown away: its weights change.
        learning_rate: Learning rate of the two steps, with an eps of 1, so that small gradients make small steps.

    Raises:
        EngineError: If the server normalizes rows, reports no or another loss, or learns nothing from the check.
    """
    before = _probe_score(client)
    noise = abs(_probe_score(client) - before)
    _probe_step(client, [1.0, 1.0, -2.0], learning_rate)
    middle = _probe_score(client)
    _probe_step(client, [1.0], learning_rate)
    cancelled, moved = abs(middle - before), abs(_probe_score(client) - middle)
    if not cancelled <= 0.2 * moved + noise:
        raise EngineError(
            f"the server does not sum its loss: rows that cancel moved a log-prob by {cancelled:.2g} nats, and one row "
            f"by {moved:.2g}; it normalizes each row by its weights, so no custom loss is exact. Use another backend"
        )
    if not moved > 10 * noise + 1e-5:
        raise EngineError(
            f"the server cannot be checked: a step moved a log-prob by {moved:.2g} nats; raise learning_rate"
        )


def _rows(groups: Sequence[Group]) -> list[tuple[Group, Completion]]:
    return [(group, row) for group in groups for row in group.completions]


def _scored(row: Completion) -> list[float]:
    mask = row.mask
    return [1.0] * len(row.tokens) if mask is None else [float(mask[index]) for index in range(len(mask))]


def _datum(prompt: Sequence[int], tokens: Sequence[int], weights: Sequence[float]) -> types.Datum:
    """Return a row with the weights of its completion."""
    row = [*map(int, prompt), *map(int, tokens)]
    if len(row) < 2:
        raise DataError("a row of one token has nothing to predict; drop empty completions of prompts of one token")
    inputs: dict[str, Any] = {"target_tokens": row[1:], "weights": [*[0.0] * (len(prompt) - 1), *weights]}
    return types.Datum(model_input=types.ModelInput.from_ints(row[:-1]), loss_fn_inputs=inputs)


def _completion_part(number: int, group: Group, row: Completion, logprobs: Any) -> Tensor:
    values: Tensor = logprobs if isinstance(logprobs, Tensor) else logprobs.to_torch()
    expected = len(group.prompt) + len(row.tokens) - 1
    if values.shape != (expected,):
        raise ShapeError(f"row {number} has log-probs of shape {tuple(values.shape)}; expected ({expected},)")
    return values[expected - len(row.tokens) :]


def _probe_score(client: Any) -> float:
    """Return the sum of log-probs of the probe's row, after comparing the loss that the server reports with it."""
    weights = [0.5, -1.5] * (len(PROBE) // 2)
    output = client.forward([_datum(PROBE[:1], PROBE[1:], weights[:-1])], "cross_entropy").result()
    values = output.loss_fn_outputs[0]["logprobs"].to_torch().double()
    expected = -float(values @ torch.tensor(weights[:-1], dtype=values.dtype))
    reported = output.metrics.get("loss:sum")
    if reported is None or not abs(reported - expected) <= 1e-2 * abs(expected) + 1e-3:
        raise EngineError(
            f"the server reports a loss:sum of {reported} for weights whose loss is {expected:.6g}; it does not sum "
            "-weights * logprobs, so no custom loss is exact there. Use another backend"
        )
    return float(values.sum())


def _probe_step(client: Any, scales: Sequence[float], learning_rate: float) -> None:
    """Send the probe's row once per scale, with that weight on all tokens, and step."""
    data = [_datum(PROBE[:1], PROBE[1:], [scale] * (len(PROBE) - 1)) for scale in scales]
    client.forward_backward(data, "cross_entropy").result()
    client.optim_step(types.AdamParams(learning_rate=learning_rate, eps=1.0)).result()
