"""Source of a probe's features, as stored in the probe file and reopened for eval and select."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from gvpo.errors import ConfigError, DataError
from gvpo.probe.endpoint import EndpointFeatures
from gvpo.probe.features import Embed
from gvpo.probe.qprobe import QProbe

if TYPE_CHECKING:
    from gvpo.probe.hidden import TokenChoice


@dataclass(frozen=True)
class FeatureSource:
    """A Hugging Face model, or an embeddings endpoint.

    Args:
        model: Directory or Hub model ID; with `endpoint`, the model's name on the server.
        endpoint: URL of the API; None for a model in this process.
        layer: See `HiddenFeatures`; None for its default.
        token: See `HiddenFeatures`.
        dimensions: See `EndpointFeatures`.
    """

    model: str
    endpoint: str | None = None
    layer: int | None = None
    token: str = "last"
    dimensions: int | None = None

    @classmethod
    def of(cls, probe: QProbe, **changes: Any) -> "FeatureSource":
        """Return the source that a probe was fitted on, with changes such as a new path of the model.

        Raises:
            DataError: If the probe does not contain its source.
        """
        kept = probe.metadata.get("features")
        if not isinstance(kept, dict) or "model" not in kept:
            raise DataError("the probe does not say where its features come from; use it from Python")
        given = {name: value for name, value in changes.items() if value is not None}
        known: dict[str, Any] = {
            field.name: kept[field.name] for field in dataclasses.fields(cls) if field.name in kept
        }
        return cls(**{**known, **given})

    def open(self, *, device: str | None = None, tokens_per_batch: int = 4096) -> "Source":
        """Load the model, or create the client.

        Args:
            device: Device of a model; default: an accelerator if available.
            tokens_per_batch: See `HiddenFeatures`.

        Raises:
            ModelError: If the model cannot be loaded.
            ConfigError: If the layer, token or URL is invalid.
        """
        if self.endpoint is not None:
            client = EndpointFeatures(self.endpoint, self.model, dimensions=self.dimensions)
            return Source(self, client, client.name)
        return self._open_model(device, tokens_per_batch)

    def _open_model(self, device: str | None, tokens_per_batch: int) -> "Source":
        import torch

        from gvpo.model.model import load_model
        from gvpo.model.tokenizer import load_tokenizer
        from gvpo.probe.hidden import HiddenFeatures

        if device is None and torch.accelerator.is_available():
            device = str(torch.accelerator.current_accelerator())
        model, tokenizer = load_model(self.model, device=device), load_tokenizer(self.model)
        token = cast("TokenChoice", self.token)
        hidden = HiddenFeatures(model, tokenizer, layer=self.layer, token=token, tokens_per_batch=tokens_per_batch)
        return Source(dataclasses.replace(self, layer=hidden.layer), hidden, hidden.name, model, tokenizer)


@dataclass(frozen=True)
class Source:
    """An open source.

    Args:
        description: The source that was opened, with the chosen layer.
        embed: Function that computes features.
        name: Name of these features in a store; it differs if anything that changes the features differs.
        model: The model, if it is in this process.
        tokenizer: The model's tokenizer.
    """

    description: FeatureSource
    embed: Embed
    name: str
    model: Any = None
    tokenizer: Any = None

    def metadata(self) -> dict[str, Any]:
        """Return the metadata for a probe file."""
        return {**dataclasses.asdict(self.description), "name": self.name}

    def require(self, probe: QProbe) -> None:
        """Check that a probe was fitted on these features. For an endpoint only the model's name is known.

        Raises:
            ConfigError: If the weights, tokenizer, layer or token differ.
        """
        fitted = probe.metadata.get("features", {}).get("name")
        if self.model is not None and fitted != self.name:
            raise ConfigError(
                f"the model {self.description.model} is not the one that the probe was fitted on, or its tokenizer "
                "differs; give that one with --model, or fit a new probe"
            )
