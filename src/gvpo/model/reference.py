"""The reference policy pi_theta': the policy at the start of training, or at the last refresh.

initial    stored once, never refreshed
every:N    refreshed in place every N steps
previous   not stored: the policy's own log-probs before the first update of a step
sampler    not stored: the same for live groups; stale and reused groups carry the log-probs of their sampler

The reference stores a frozen copy of the model. For a model with a LoRA adapter it stores only the adapter, or nothing.
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
    """Return a reference equal to the current policy, in the cheapest form."""
    return AdapterReference(model) if lora.is_adapted(model) else Reference(model)


class Reference:
    """A frozen copy of a policy, the only copy.

    Args:
        model: Current policy. The copy has the same dtype and device.

    Attributes:
        model: The copy, in eval mode, without gradients.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: PreTrainedModel = copy.deepcopy(model).requires_grad_(False).train(False)

    @contextmanager
    def scoring(self) -> Iterator[PreTrainedModel]:
        """Yield the model whose log-probs are the reference's."""
        yield self.model

    def refresh(self, model: PreTrainedModel) -> None:
        """Copy the policy's current weights, in place.

        Raises:
            ModelError: If the architecture differs.
        """
        self.load_state_dict(dict(_weights(model)))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the copy's weights by name, without copying, with tied ones once for safetensors."""
        return dict(_weights(self.model))

    def nbytes(self) -> int:
        """Return the memory of the copy's weights; on several ranks that split it, the memory of all of them."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.state_dict().values())

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy stored weights, in place.

        Raises:
            ModelError: If names or shapes do not match this model.
        """
        own = self.state_dict()
        _require_fit(own, state)
        for name, tensor in own.items():
            tensor.copy_(state[name])


class AdapterReference:
    """An earlier adapter on the policy's own base, which is never copied.

    If training starts from an adapter that changes nothing yet, the reference is the disabled adapter, and no weights
    are stored. Otherwise the earlier trained weights are stored, and swapped with the current ones while scoring.

    Args:
        model: Current policy with an adapter. The reference keeps using it.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._policy = model
        self._stored = {} if adapter_kinds.is_at_base(model) else self._now()

    @contextmanager
    def scoring(self) -> Iterator[PreTrainedModel]:
        """Yield the policy's model, which computes the reference's log-probs in this context. Do not train it there."""
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
        """Store the current adapter."""
        self._policy, self._stored = model, self._now()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the stored weights by name, without copying, or {} if the reference is the disabled adapter."""
        return dict(self._stored)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy stored weights; {} means the disabled adapter.

        Raises:
            ModelError: If names or shapes do not match this model's adapter.
        """
        own = dict(lora.trainable(self._policy))
        if state:
            _require_fit(own, state)
        self._stored = {name: tensor.to(own[name], copy=True) for name, tensor in state.items()}

    def _now(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in lora.trainable(self._policy)}

    @torch.no_grad()
    def _swap(self) -> None:
        """Swap values in place, because optimizers and wrappers refer to the parameters."""
        for name, parameter in lora.trainable(self._policy):
            now = parameter.clone()
            parameter.copy_(self._stored[name])
            self._stored[name].copy_(now)


def _require_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    unlike = sorted(own.keys() ^ state.keys()) or [name for name in own if own[name].shape != state[name].shape]
    if unlike:
        raise ModelError(
            f"the reference's weights do not fit this model: {unlike[0]} differs; use the weights of its own run"
        )


def _weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters, and the buffers that checkpoints contain; other buffers follow from the configuration."""
    persistent = model.state_dict(keep_vars=True).keys()
    yield from ((name, parameter.detach()) for name, parameter in model.named_parameters())
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in persistent)
