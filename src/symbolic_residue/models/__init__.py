"""Models: references, fetching, loading, and the family table that says where a model's parts are.

``load_model("demo")`` or ``wrap(model, tokenizer)`` give a ``LoadedModel``: the plain transformers model, its tokenizer, its
``Parts`` (checked against the family table) and its ``Provenance``.

Names are resolved on first use, so that importing the package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import Any, TYPE_CHECKING

if TYPE_CHECKING:
    from symbolic_residue.models._bind import bind
    from symbolic_residue.models._cache import cache_dir, CacheEntry
    from symbolic_residue.models._families import FAMILIES, FamilySpec
    from symbolic_residue.models._hub import hub_entries
    from symbolic_residue.models._hub_files import hub_files
    from symbolic_residue.models._load import cached, fetch, load_model, LoadedModel, wrap
    from symbolic_residue.models._parts import LayerParts, Norm, Parts
    from symbolic_residue.models._provenance import AdapterRecord, Provenance
    from symbolic_residue.models._refs import ALIASES, FolderRef, HubRef, ModelRef, WheelRef
    from symbolic_residue.models._weights import linear_bias, weight_in_out

__all__ = [
    "ALIASES",
    "FAMILIES",
    "AdapterRecord",
    "CacheEntry",
    "FamilySpec",
    "FolderRef",
    "HubRef",
    "LayerParts",
    "LoadedModel",
    "ModelRef",
    "Norm",
    "Parts",
    "Provenance",
    "WheelRef",
    "bind",
    "cache_dir",
    "cached",
    "fetch",
    "hub_entries",
    "hub_files",
    "linear_bias",
    "load_model",
    "weight_in_out",
    "wrap",
]

_HOMES = {
    "_bind": ("bind",),
    "_cache": ("CacheEntry", "cache_dir"),
    "_families": ("FAMILIES", "FamilySpec"),
    "_hub": ("hub_entries",),
    "_hub_files": ("hub_files",),
    "_load": ("LoadedModel", "cached", "fetch", "load_model", "wrap"),
    "_parts": ("LayerParts", "Norm", "Parts"),
    "_provenance": ("AdapterRecord", "Provenance"),
    "_refs": ("ALIASES", "FolderRef", "HubRef", "ModelRef", "WheelRef"),
    "_weights": ("linear_bias", "weight_in_out"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
