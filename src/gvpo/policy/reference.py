"""The reference policy pi_theta' as a frozen copy of the policy.

initial    one copy, never refreshed
every:N    one copy, refreshed in place every N steps
previous   no copy: the policy's own log-probs, taken before the first update of a step
"""

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gvpo.errors import ModelError


class Reference:
    """A frozen copy of a policy; the one copy that there is.

    Args:
        model: the policy as it is now; same dtype and device.

    Attributes:
        model: the copy, in eval mode, no parameter of which requires a gradient.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: PreTrainedModel = copy.deepcopy(model).requires_grad_(False).train(False)

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
        unlike = sorted(own.keys() ^ state.keys()) or [name for name in own if own[name].shape != state[name].shape]
        if unlike:
            raise ModelError(
                f"the reference's weights do not fit this model: {unlike[0]} differs; use those of its own run"
            )
        for name, tensor in own.items():
            tensor.copy_(state[name])


def _weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and the buffers that checkpoints hold; the others follow from the configuration."""
    persistent = model.state_dict(keep_vars=True).keys()
    yield from ((name, parameter.detach()) for name, parameter in model.named_parameters())
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in persistent)
