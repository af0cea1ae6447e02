"""Weights for vLLM's workers from a file: the backend `gvpo_file` of vLLM's weight-transfer API.

    trainer ── state_dict() ──▶ one safetensors file ── update_info = {"path": ...} ──▶ each worker of the server

It needs no GPU, unlike vLLM's own backends, so the control plane is the same on every machine. A server uses it with
these arguments, in an environment in which gvpo is installed:

    --worker-extension-cls gvpo.sampling.vllm.worker.FileWeights --weight-transfer-config '{"backend": "gvpo_file"}'

Only vLLM's workers import this module. The file has the names of the whole `state_dict()`, with tied entries written
out. All names and shapes are checked before the first weight changes.
"""

from dataclasses import dataclass

import safetensors
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from gvpo.errors import ModelError, one_line
from gvpo.sampling.vllm.weights import check_shapes, require_replaceable, shapes_for

BACKEND = "gvpo_file"


class FileWeights:
    """Extension of vLLM's worker. It has no methods, because its module registers the backend when it is imported."""


@dataclass
class FileInitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing has to be agreed on."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Description of one update.

    Args:
        path: Absolute path of a safetensors file with all entries of the state dict.
    """

    path: str


class FileWeightTransfer(WeightTransferEngine):  # type: ignore[misc]
    """Loads all weights from a file in one call. `start` and `finish` do nothing, so a bad file changes nothing."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """Do nothing: there is no connection."""

    def start_weight_update(self) -> None:
        """Do nothing: the update itself prepares the model."""

    def update_weights(self, update_info: dict[str, str]) -> None:
        """Load the weights. vLLM's own method waits for an accelerator afterwards, which a CPU does not have."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        """Check the file, then load all of its weights into the model.

        Raises:
            ModelError: If the file cannot be read, a name is unknown or missing, a shape differs, or this model's
                weights cannot be replaced.
        """
        require_replaceable(self.model_config.hf_config, self.device.type)
        expected = shapes_for(self.model_config.hf_config)
        try:
            with safetensors.safe_open(update_info.path, framework="pt") as file:
                names = list(file.keys())
                check_shapes({name: tuple(file.get_slice(name).get_shape()) for name in names}, expected)
                initialize_layerwise_reload(self.model)
                self.model.load_weights((name, file.get_tensor(name)) for name in names)
                finalize_layerwise_reload(self.model, self.model_config)
        except (OSError, safetensors.SafetensorError) as error:
            raise ModelError(f"the weights in {update_info.path} cannot be read: {one_line(error)}") from error

    def finish_weight_update(self) -> None:
        """Do nothing: the update has finished the model."""

    def shutdown(self) -> None:
        """Do nothing: there is no connection."""


WeightTransferEngineFactory.register_engine(BACKEND, FileWeightTransfer)
