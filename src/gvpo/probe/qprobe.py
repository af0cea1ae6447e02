"""The probe: a linear function of features, stored as safetensors with the metadata that reuse requires."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gvpo.errors import DataError, ModelError
from gvpo.probe.store import Array, Features
from gvpo.runfiles import to_json, write_bytes

FORMAT = "gvpo-probe-1"
_READ = 8192
"""Number of rows of features that are scored at a time."""


def require_probe(path: str | Path) -> None:
    """Raise ModelError unless the file of a probe exists."""
    if not Path(path).is_file():
        raise ModelError(f"there is no probe {path}; give the file that `gvpo probe fit` wrote")


@dataclass(frozen=True)
class QProbe:
    """Q(x, y) = weight . phi(x, y) + bias.

    Args:
        weight: [D] float32.
        bias: A number.
        metadata: JSON values: the loss and settings of the fit, and the source of the features.
    """

    weight: Array
    bias: float = 0.0
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, features: "Features | ArrayLike") -> NDArray[np.float64]:
        """Return the [N] values of [N, D] features. Read some rows at a time.

        Raises:
            DataError: If the features have another width.
        """
        rows: Any = features if hasattr(features, "shape") else np.asarray(features)
        if len(rows.shape) != 2 or rows.shape[1] != len(self.weight):
            raise DataError(
                f"the probe needs features of {len(self.weight)} numbers, but these have shape {tuple(rows.shape)}; "
                "use the model, layer and token that it was fitted on"
            )
        starts = range(0, rows.shape[0], _READ)
        parts = [rows[np.arange(start, min(start + _READ, rows.shape[0]))] @ self.weight for start in starts]
        scores: NDArray[np.float64] = np.concatenate([*parts, np.empty(0)]) + self.bias
        return scores

    def save(self, path: str | Path) -> Path:
        """Write the probe to a temporary file and rename it.

        Raises:
            RunError: If the file cannot be written.
        """
        tensors: dict[str, NDArray[Any]] = {
            "weight": np.ascontiguousarray(self.weight),
            "bias": np.array([self.bias], dtype=np.float64),
        }
        write_bytes(Path(path), save(tensors, metadata={"format": FORMAT, "probe": to_json(self.metadata)}))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "QProbe":
        """Read a probe.

        Raises:
            ModelError: If the file does not exist, or is not a probe.
        """
        require_probe(path)
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ModelError(f"{path} is not a probe; give the file that `gvpo probe fit` wrote")
                weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
                return cls(weight, float(bias[0]), json.loads(metadata["probe"]))
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise ModelError(f"the probe {path} is corrupt ({error}); fit it again") from error
