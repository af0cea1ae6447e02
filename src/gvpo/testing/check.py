"""`check_gvpo_gradient`: compare another trainer's gradient with GVPO's, and name the mistake."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gvpo.errors import ConfigError, GvpoError, ObjectiveError, ShapeError, type_of
from gvpo.objectives import ObjectiveOutput, gvpo
from gvpo.testing.mistakes import MISTAKES, Suspect, suspects
from gvpo.testing.trials import MOVED, Trial, policy_logprobs, random_groups
from gvpo.types import Group
from gvpo.update.collate import Batch, collate

SAMPLED = 4096
"""Maximum number of entries of a parameter gradient that are compared with those of mistakes."""


@dataclass(frozen=True)
class GradientCheck:
    """A gradient that is GVPO's.

    Args:
        error: Norm of the difference, divided by the norm of GVPO's gradient times scale.
        scale: Factor between the two that fits best.
    """

    error: float
    scale: float


class GradientMismatch(GvpoError, AssertionError):
    """A gradient that is not GVPO's.

    Args:
        message: One line with the difference, the mistake and its remedy.
        mistake: Key of `gvpo.testing.MISTAKES`, or None if no known mistake gives the gradient.
        error: Norm of the difference, divided by the norm of the expected gradient.
    """

    def __init__(self, message: str, mistake: str | None, error: float) -> None:
        super().__init__(message)
        self.mistake, self.error = mistake, error


def check_gvpo_gradient(
    coefficients: Callable[..., Any] | None = None,
    *,
    beta: float,
    backward: Callable[[nn.Module, list[Group]], Any] | None = None,
    model: nn.Module | None = None,
    groups: Sequence[Group] | None = None,
    scale: float | None = 1.0,
    tolerance: float = 1e-5,
) -> GradientCheck:
    """Compare the gradient of another trainer with GVPO's, and name the known mistake if it differs.

    Pass either `coefficients`, which knows only log-probs, or `backward` with a small `model`, which may be the whole
    update of a trainer. GVPO's gradient is that of `gvpo.objectives.gvpo`: the mean over groups of
    -beta/(k-1) sum_i w_i grad log pi(y_i).

    Args:
        coefficients: Called as `coefficients(logprobs, **keywords)` with those of `ref_logprobs`, `old_logprobs`,
            `mask` [B, T], `rewards` and `group` [B] that its signature names, all in float64. It returns a loss (a
            scalar, which is differentiated), an `ObjectiveOutput`, or d loss / d logprobs, [B, T].
        beta: Strength of the pull to the reference, in reward per nat.
        backward: Called as `backward(model, groups)` after the gradients of the model are set to None; adds the
            gradient of the batch to `.grad`. Rows contain reference log-probs, which are those to use.
        model: Causal language model of transformers, without dropout. float64 weights allow a tolerance of 1e-6.
        groups: Batch, whole groups of at least 2 rows with rewards and `ref_logprobs`; None takes `random_groups`. With
            `coefficients`, log-probs of the policy are `old_logprobs` with random changes.
        scale: Expected factor between the two gradients; None allows any factor above 0.
        tolerance: Maximum norm of the difference, divided by the norm of the expected gradient.

    Raises:
        GradientMismatch: If the gradients differ. Its `mistake` is a key of `MISTAKES`, or None.
        ConfigError: If not exactly one of `coefficients` and `backward` is given, or `backward` without `model`.
        ShapeError: If coefficients are not [B, T].
        ObjectiveError, DataError: If groups cannot be compared or lack log-probs.

    Example:
        >>> from gvpo.objectives import gvpo_weights
        >>> def loss(logprobs, *, ref_logprobs, rewards, group, mask):
        ...     weights = gvpo_weights(
        ...         logprobs, ref_logprobs=ref_logprobs, rewards=rewards, group=group, mask=mask, beta=0.1
        ...     )
        ...     return -(weights * (logprobs * mask).sum(1)).sum()
        >>> check_gvpo_gradient(loss, beta=0.1, scale=None).scale  # three groups of 4 rows: 3 * 3 / 0.1
        90.0
    """
    if (coefficients is None) == (backward is None):
        raise ConfigError("pass either coefficients or backward")
    if coefficients is not None:
        measured, line = _of_coefficients(coefficients, groups or random_groups(beta), beta)
    else:
        if model is None:
            raise ConfigError("backward needs a model; pass a small one")
        measured, line = _of_backward(backward, model, list(groups or random_groups(beta, model)), beta)
    return line.judge(measured, scale, tolerance)


@dataclass(frozen=True)
class _Line:
    """A batch, and the linear map from coefficients [B, T] to the compared values.

    Args:
        trial: The batch.
        exact: GVPO's gradient, [N].
        mapped: Function from [B, T] to a part of [N] or all of it.
        part: Indices of that part.
    """

    trial: Trial
    exact: Tensor
    mapped: Callable[[Tensor], Tensor]
    part: Tensor | slice

    def judge(self, measured: Tensor, scale: float | None, tolerance: float) -> GradientCheck:
        """Return the result, or raise `GradientMismatch`."""
        fitted = float(measured @ self.exact / (self.exact @ self.exact))
        expected = self.exact * (scale if scale is not None else max(fitted, torch.finfo(torch.float64).tiny))
        error = float((measured - expected).norm() / expected.norm())
        if error <= tolerance:
            return GradientCheck(error, round(fitted, 6))
        raise self._mismatch(measured, error, fitted, scale, tolerance)

    def _mismatch(
        self, measured: Tensor, error: float, fitted: float, scale: float | None, tolerance: float
    ) -> GradientMismatch:
        if not measured.norm() > 0:
            return _mismatch("no_gradient", "", error)
        rest = float((measured - fitted * self.exact).norm() / measured.norm())
        if rest <= tolerance:
            return _mismatch("scale" if fitted > 0 else "sign", f"{fitted / (scale or 1.0):.6g} times", error)
        name, detail = self._culprit(measured[self.part], rest, tolerance)
        return _mismatch(name, detail, error)

    def _culprit(self, measured: Tensor, rest: float, tolerance: float) -> tuple[str | None, str]:
        """Return the mistake that fits best, with the fewest free factors, and its variant."""
        enough = min(0.02, max(10 * tolerance, rest / 30))
        weights = self._row_weights(measured)
        found = []
        for suspect in suspects(self.trial, weights):
            factors, left = self._fit(measured, suspect)
            if left <= enough and abs(factors[0]) > 0:
                found.append((len(factors), left, suspect, factors[0]))
        if not found:
            return None, self._worst(weights)
        _, _, suspect, factor = min(found, key=lambda each: (each[0], each[1]))
        return suspect.name, _variant(suspect, factor)

    def _fit(self, measured: Tensor, suspect: Suspect) -> tuple[list[float], float]:
        columns = torch.stack([self.mapped(part) for part in suspect.parts], dim=1)
        if not columns.norm() > 0:
            return [0.0], 1.0
        factors = torch.linalg.lstsq(columns, measured[:, None]).solution
        left = (columns @ factors).squeeze(1) - measured
        return factors.squeeze(1).tolist(), float(left.norm() / measured.norm())

    def _row_weights(self, measured: Tensor) -> Tensor:
        """Return the weights, [B], that would give the gradient most closely."""
        ones = torch.eye(len(self.trial.group), dtype=measured.dtype)
        columns = torch.stack([self.mapped(self.trial.push(one)) for one in ones], dim=1)
        weights: Tensor = torch.linalg.lstsq(columns, measured[:, None]).solution
        return weights.squeeze(1)

    def _worst(self, weights: Tensor) -> str:
        exact = self.trial.weights()
        row = int((weights - exact).abs().argmax())
        sums = torch.zeros(int(self.trial.group.max()) + 1, dtype=weights.dtype).index_add(0, self.trial.group, weights)
        return (
            f"row {row} has weight {weights[row]:.4g} instead of {exact[row]:.4g}, and the weights of a group sum to "
            f"at most {float(sums.abs().max()):.2g} instead of 0"
        )


def _variant(suspect: Suspect, factor: float) -> str:
    times = "" if abs(factor - 1) < 0.01 or len(suspect.parts) > 1 else f"the whole times {factor:.3g}"
    return "; ".join(part for part in (suspect.detail, times) if part)


def _mismatch(mistake: str | None, detail: str, error: float) -> GradientMismatch:
    known = "no known mistake" if mistake is None else mistake
    remedy = "see `gvpo docs any-trainer`" if mistake is None else MISTAKES[mistake]
    inside = f" ({detail})" if detail else ""
    message = f"the gradient differs from GVPO's by {error:.2g} of its norm; {known}{inside}: {remedy}"
    return GradientMismatch(message, mistake, error)


def _of_coefficients(coefficients: Callable[..., Any], groups: Sequence[Group], beta: float) -> tuple[Tensor, _Line]:
    """Return the trainer's coefficients, [B * T], and what to compare them with."""
    batch = _collated(groups, coefficients)
    trial = _trial(groups, None, beta)
    leaf = trial.logprobs.clone().requires_grad_()
    value = coefficients(leaf, **batch.inputs)
    line = _Line(trial, _exact(trial).flatten(), torch.flatten, slice(None))
    return _differentiated(value, leaf).flatten(), line


def _differentiated(value: object, leaf: Tensor) -> Tensor:
    value = value.loss if isinstance(value, ObjectiveOutput) else value
    if not isinstance(value, Tensor):
        raise ObjectiveError(f"the function returned {type_of(value)}; return a loss or d loss / d logprobs, [B, T]")
    if value.ndim == 0:
        if not value.requires_grad:
            return torch.zeros_like(leaf)
        (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
        return torch.zeros_like(leaf) if gradient is None else gradient
    if value.shape != leaf.shape:
        raise ShapeError(
            f"the function returned shape {tuple(value.shape)}; return a scalar loss or d loss / d logprobs, "
            f"{tuple(leaf.shape)}"
        )
    return value.detach().to(leaf.dtype)


def _of_backward(
    backward: Callable[[nn.Module, list[Group]], Any] | None, model: nn.Module, groups: list[Group], beta: float
) -> tuple[Tensor, _Line]:
    """Return the trainer's gradient, [N], and what to compare it with."""
    assert backward is not None
    model.zero_grad(set_to_none=True)
    backward(model, groups)
    parameters = [each for each in model.parameters() if each.requires_grad]
    measured = _flat([each.grad for each in parameters], parameters)
    model.zero_grad(set_to_none=True)
    rows = [policy_logprobs(model, group.prompt, list(row.tokens)) for group in groups for row in group.completions]
    trial = _trial(groups, [row.detach() for row in rows], beta)
    wanted = _exact(trial)
    loss = torch.stack([(row * wanted[index, : len(row)].to(row)).sum() for index, row in enumerate(rows)]).sum()
    exact = _flat(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True), parameters)
    part = _sample(exact)
    return measured, _Line(trial, exact, partial(_project, _token_gradients(rows, parameters, part), trial), part)


def _sample(exact: Tensor) -> Tensor:
    """Return the indices of at most `SAMPLED` entries that are not 0, evenly spaced."""
    used = exact.nonzero().squeeze(1)
    return used[:: -(-len(used) // SAMPLED)] if len(used) else torch.arange(min(SAMPLED, len(exact)))


def _token_gradients(rows: Sequence[Tensor], parameters: Sequence[Tensor], part: Tensor) -> Tensor:
    """Return the gradients of the log-prob of each token, rows in order, at the sampled entries: [tokens, sampled]."""
    return torch.stack(
        [
            _flat(torch.autograd.grad(token, parameters, retain_graph=True, allow_unused=True), parameters)[part]
            for row in rows
            for token in row
        ]
    )


def _project(gradients: Tensor, trial: Trial, coefficients: Tensor) -> Tensor:
    return coefficients[trial.real] @ gradients


def _flat(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    """Return the gradients of parameters as one vector in float64 on the CPU."""
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
    return torch.cat([each.detach().double().cpu().flatten() for each in filled])


def _collated(groups: Sequence[Group], function: Callable[..., Any]) -> Batch:
    return collate(groups, function, dtype=torch.float64, device=torch.device("cpu"))


def _trial(groups: Sequence[Group], rows: Sequence[Tensor] | None, beta: float) -> Trial:
    """Return the batch of a check; the log-probs are `rows`, or those of the sampler with random changes."""
    inputs = dict(_collated(groups, _everything).inputs)
    lengths = torch.tensor([len(row.tokens) for group in groups for row in group.completions])
    real = torch.arange(inputs["mask"].shape[1]) < lengths[:, None]
    if rows is None:
        start = inputs["old_logprobs"] if "old_logprobs" in inputs else inputs["ref_logprobs"]
        moved = torch.randn(start.shape, generator=torch.Generator().manual_seed(0), dtype=start.dtype) * MOVED
        logprobs = (start + moved) * real
    else:
        logprobs = torch.zeros_like(inputs["mask"])
        logprobs[real] = torch.cat([row.double().cpu() for row in rows])
    return Trial(logprobs, inputs, real, beta)


def _everything(logprobs: Tensor, *, ref_logprobs: Tensor, rewards: Tensor, **more: Tensor) -> None:
    """Have the signature that collects all tensors of a batch."""


def _exact(trial: Trial) -> Tensor:
    """Return GVPO's coefficients, [B, T]."""
    leaf = trial.logprobs.clone().requires_grad_()
    inputs: dict[str, Any] = {name: trial.inputs[name] for name in ("ref_logprobs", "rewards", "group", "mask")}
    loss = gvpo(leaf, **inputs, beta=trial.beta).loss
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient
