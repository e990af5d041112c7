"""Which model activations and directions belong to: by the hash of its weights and of its adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from symbolic_residue.models import LoadedModel

__all__ = ["ReadoutModel"]


@dataclass(frozen=True, slots=True)
class ReadoutModel:
    """The model that directions belong to."""

    model: str
    weights_sha256: str
    adapter_sha256: str | None
    dtype: str
    hidden_size: int
    n_layers: int

    @classmethod
    def of(cls, loaded: LoadedModel) -> ReadoutModel:
        """Of a loaded model (its weights are hashed where they were not yet)."""
        record = loaded.provenance
        adapter = record.adapter.sha256 if record.adapter is not None else None
        return cls(record.model, record.weights_sha256, adapter, record.dtype, loaded.parts.d_model, loaded.parts.n_layers)

    def why_not(self, other: ReadoutModel) -> str | None:
        """Why directions of this model mean nothing in the other, or None."""
        if self.weights_sha256 != other.weights_sha256:
            return f"The weights differ (sha256 {self.weights_sha256[:12]}… and {other.weights_sha256[:12]}…)."
        if self.adapter_sha256 != other.adapter_sha256:
            return "The adapters differ."
        return None
