"""The policy's weights on their way to an engine that has its own."""

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from gvpo import activity
from gvpo.model import lora
from gvpo.sampling import AdapterSampler, Sampler, UpdatableSampler, shares_model
from gvpo.sampling.transfer import TransferDirectory
from gvpo.update.distributed import fsdp, ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Publisher:
    """Gives the current weights to a sampler that has its own; does nothing for other samplers.

    A sampler that serves adapters gets only the adapter of a LoRA policy, in a directory of its own for each version.

    Args:
        model: The policy.
        sampler: Sampler of the run.
        directory: Directory for adapters that the sampler can read too; by default the one for shared memory.
        check: Function that checks the sampler after the first publication of a session.

    Attributes:
        seconds: Duration of the latest `publish`.
    """

    def __init__(
        self, model: "PreTrainedModel", sampler: Sampler, directory: Path | None, check: Callable[[], None]
    ) -> None:
        self._model, self._sampler, self._check = model, sampler, check
        self.shares_model = shares_model(sampler)
        self._serves_adapter = lora.is_adapted(model) and (self._is_elsewhere or isinstance(sampler, AdapterSampler))
        self._parent = directory
        self._shared: TransferDirectory | None = None
        self.seconds = 0.0

    @property
    def _is_elsewhere(self) -> bool:
        """Return whether this rank does not sample, so that it only takes part in gathering the weights."""
        return not self.shares_model and not ranks.is_first()

    def begin(self, version: int) -> None:
        """Give the weights with which a session begins to the sampler, and check that it samples from them.

        Raises:
            EngineError, ModelError: If the sampler does not accept them, or samples from something else.
        """
        self.publish(version)
        if not self.shares_model:
            self._check()

    def publish(self, version: int) -> None:
        """Give the weights to the sampler. Every rank calls this.

        Args:
            version: Number of completed training steps of the policy.

        Raises:
            EngineError, ModelError: If the sampler does not accept them.
        """
        if self.shares_model:
            return
        began = time.perf_counter()
        try:
            with activity.phase("publishing weights"):
                if self._serves_adapter:
                    self._publish_adapter(version)
                else:
                    self._publish_weights(version)
        finally:
            self.seconds = time.perf_counter() - began

    def _publish_weights(self, version: int) -> None:
        weights = _whole(self._model)

        def update() -> None:
            assert isinstance(self._sampler, UpdatableSampler)
            self._sampler.update(weights.items(), version)

        ranks.on_first(update)

    def _publish_adapter(self, version: int) -> None:
        with fsdp.unsharded(self._model):
            ranks.on_first(lambda: self._update_adapter(version))

    def _update_adapter(self, version: int) -> None:
        assert isinstance(self._sampler, AdapterSampler)
        self._shared = self._shared or TransferDirectory(self._parent, "adapters")
        directory = self._shared.path / f"adapter-{version}"
        try:
            lora.save_adapter(self._model, directory)
            for path in directory.iterdir():
                path.chmod(0o644)  # the engine may run as another user
        except Exception as error:  # safetensors has its own class for a full disk
            raise self._shared.failed(error) from error
        self._sampler.update_adapter(directory, version)
        for path in self._shared.path.glob("adapter-*"):
            if path != directory:
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Delete the adapters."""
        if self._shared is not None:
            self._shared.close()


def _whole(model: "PreTrainedModel") -> Mapping[str, Tensor]:
    """Return the entries of the state dict, including tied ones; on the CPU of the first rank if ranks split them."""
    state = model.state_dict(keep_vars=True)
    if fsdp.is_sharded(model):
        return fsdp.full_on_first(state)
    return {name: value.detach() for name, value in state.items()}
