"""The reference policy pi_theta': what the policy was when training started, or at the last refresh.

initial    stored once, never refreshed
every:N    refreshed in place every N steps
previous   nothing stored: the policy's own log-probs, taken before the first update of a step

Stored is a frozen copy of the model; of a model with a LoRA adapter only the adapter, or nothing at all.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gvpo.errors import ModelError
from gvpo.model import adapter_kinds, lora


def make_reference(model: PreTrainedModel) -> "Reference | AdapterReference":
    """The reference that is this policy as it is now, in the form that costs least."""
    return AdapterReference(model) if lora.is_adapted(model) else Reference(model)


class Reference:
    """A frozen copy of a policy; the one copy that there is.

    Args:
        model: the policy as it is now; same dtype and device.

    Attributes:
        model: the copy, in eval mode, no parameter of which requires a gradient.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: PreTrainedModel = copy.deepcopy(model).requires_grad_(False).train(False)

    @contextmanager
    def scoring(self) -> Iterator[PreTrainedModel]:
        """The model whose log-probs are the reference's, inside."""
        yield self.model

    def refresh(self, model: PreTrainedModel) -> None:
        """Take the policy's weights of now, in place.

        Raises:
            ModelError: another architecture.
        """
        self.load_state_dict(dict(_weights(model)))

    def state_dict(self) -> dict[str, Tensor]:
        """The copy's weights by name, tied ones once, so that safetensors can write them; not copied."""
        return dict(_weights(self.model))

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take stored weights, in place.

        Raises:
            ModelError: names or shapes are not those of this model.
        """
        own = self.state_dict()
        _require_fit(own, state)
        for name, tensor in own.items():
            tensor.copy_(state[name])


class AdapterReference:
    """The adapter of then, on the policy's own base; the base is never copied.

    Where training starts from an adapter that changes nothing yet, the reference is the adapter switched off, and
    nothing is stored. Else the trained weights of then are stored, and change places with those of now for a score.

    Args:
        model: the policy as it is now, with an adapter in it. The reference goes on using it.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._policy = model
        self._stored = {} if adapter_kinds.is_at_base(model) else self._now()

    @contextmanager
    def scoring(self) -> Iterator[PreTrainedModel]:
        """The policy's model, which gives the reference's log-probs inside; do not train it there."""
        if not self._stored:
            with lora.adapter_off(self._policy):
                yield self._policy
            return
        self._swap()
        try:
            yield self._policy
        finally:
            self._swap()

    def refresh(self, model: PreTrainedModel) -> None:
        """Take the adapter of now."""
        self._policy, self._stored = model, self._now()

    def state_dict(self) -> dict[str, Tensor]:
        """The stored weights by name, not copied; {} where the reference is the adapter switched off."""
        return dict(self._stored)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take stored weights; {} is the adapter switched off.

        Raises:
            ModelError: names or shapes are not those of this model's adapter.
        """
        own = dict(lora.trainable(self._policy))
        if state:
            _require_fit(own, state)
        self._stored = {name: tensor.to(own[name], copy=True) for name, tensor in state.items()}

    def _now(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in lora.trainable(self._policy)}

    @torch.no_grad()
    def _swap(self) -> None:
        """Values change places, tensors stay: optimizers and wrappers hold the parameters."""
        for name, parameter in lora.trainable(self._policy):
            now = parameter.clone()
            parameter.copy_(self._stored[name])
            self._stored[name].copy_(now)


def _require_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    unlike = sorted(own.keys() ^ state.keys()) or [name for name in own if own[name].shape != state[name].shape]
    if unlike:
        raise ModelError(
            f"the reference's weights do not fit this model: {unlike[0]} differs; use those of its own run"
        )


def _weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and the buffers that checkpoints hold; the others follow from the configuration."""
    persistent = model.state_dict(keep_vars=True).keys()
    yield from ((name, parameter.detach()) for name, parameter in model.named_parameters())
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in persistent)
