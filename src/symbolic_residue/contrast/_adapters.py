"""Surgery on adapter folders: a part of a LoRA, and its random twin. PEFT folders in, PEFT folders out; no model is needed.

1. A LoRA changes a weight W ``[out, in]`` to W + s B A, with A ``[rank, in]``, B ``[out, rank]`` and s = alpha / rank (alpha / √rank where rsLoRA is on; Hu et
   al. 2021). Modules are changed independently, so an adapter is the sum of its parts: restricted to disjoint sets of modules, the changes of weight
   add up to the whole one.
2. *Restriction* keeps the modules of some layers or projections, their tensors untouched. What they do together is not the sum of what each does alone.
3. *The random twin* has, for each module, Gaussian A and B of the same rank, scaled so that B A has the Frobenius norm of the original's. Its singular
   values are those of random factors: flatter than a trained product's, whose largest is often far above the rest.
4. A folder is written whole or not at all, and ``residue-surgery.json`` beside the tensors says what was done to which adapter (by hash).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TYPE_CHECKING

import numpy as np
import polars as pl

from symbolic_residue.contrast._rows import stable_seed
from symbolic_residue.errors import AdapterError, DamagedFileError, WriteError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LoraAdapter", "LoraModule", "adapter_norms", "random_adapter", "read_adapter", "restrict_adapter", "write_adapter"]

RECORD = "residue-surgery.json"
_PREFIX = "base_model.model."
_TENSOR = re.compile(rf"{re.escape(_PREFIX)}(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True)
class LoraModule:
    """One changed weight: its path in the model, A ``[rank, in]``, B ``[out, rank]``, the factor s."""

    path: str
    a: Tensor
    b: Tensor
    scale: float

    @property
    def layer(self) -> int | None:
        """The first number in the path; None outside of the layers."""
        found = re.search(r"\.(\d+)\.", self.path)
        return None if found is None else int(found[1])

    @property
    def projection(self) -> str:
        """The last name of the path."""
        return self.path.rsplit(".", 1)[-1]

    def named(self, projection: str) -> bool:
        """Whether the path ends so (``q_proj``, or ``attn.c_proj`` where ``c_proj`` alone names two)."""
        return self.path == projection or self.path.endswith(f".{projection}")

    @property
    def norm(self) -> float:
        """Frobenius norm of B A, by the small matrices: ‖BA‖² = tr(BᵀB AAᵀ)."""
        return _product_norm(self.a, self.b)


@dataclass(frozen=True)
class LoraAdapter:
    """A plain LoRA of a folder: its config, the hash of its tensors, and its modules by path."""

    folder: Path
    config: dict[str, Any]
    sha256: str
    modules: dict[str, LoraModule]


def restrict_adapter(
    folder: str | Path, out: str | Path, *, layers: Iterable[int] | None = None, projections: Iterable[str] | None = None
) -> Path:
    """A new adapter with the modules of these layers and these projections only.

    Args:
        folder: the adapter, as PEFT saved it.
        out: where the new one goes; must not be there.
        layers: numbers of layers; None keeps all, and what lies outside of the layers.
        projections: names of modules (``q_proj``, or with more of the path: ``attn.c_proj``); None keeps all.

    Returns:
        ``out``.

    Raises:
        AdapterError: not a plain LoRA; a layer or projection that the adapter does not change; nothing left; ``out`` is there.
        DamagedFileError: tensors that cannot be read, or are not finite.
        WriteError: ``out`` cannot be written.
    """
    adapter = read_adapter(Path(folder))
    kept = dict(adapter.modules)
    wanted: dict[str, Any] = {"layers": None, "projections": None}
    if layers is not None:
        wanted["layers"] = sorted({int(layer) for layer in layers})
        there = sorted({m.layer for m in kept.values() if m.layer is not None})
        unknown = [layer for layer in wanted["layers"] if layer not in there]
        if unknown:
            raise AdapterError(
                f"The adapter {folder} changes no layer {', '.join(map(str, unknown))}.",
                todo=f"It changes the layers {', '.join(map(str, there)) or 'none'}.",
            )
        kept = {path: m for path, m in kept.items() if m.layer in wanted["layers"]}
    if projections is not None:
        wanted["projections"] = sorted({projections} if isinstance(projections, str) else set(projections))
        unknown = [name for name in wanted["projections"] if not any(m.named(name) for m in adapter.modules.values())]
        if unknown:
            names = sorted({m.projection for m in adapter.modules.values()})
            raise AdapterError(
                f"The adapter {folder} changes no {', '.join(map(repr, unknown))}.", todo=f"It changes {', '.join(names)}."
            )
        kept = {path: m for path, m in kept.items() if any(m.named(name) for name in wanted["projections"])}
    if not kept:
        raise AdapterError(
            f"Nothing of the adapter {folder} would be left.",
            why=f"No module lies in the layers {wanted['layers']} and the projections {wanted['projections']} at once.",
        )
    # Exact paths; PEFT would else give every layer a module again. Patterns of layers would take them out.
    config = adapter.config | {"target_modules": sorted(kept), "layers_to_transform": None, "layers_pattern": None}
    return _save(adapter, Path(out), config, kept, {"operation": "restrict", **wanted, "modules": len(kept)})


def random_adapter(folder: str | Path, out: str | Path, *, seed: int) -> Path:
    """The adapter's random twin: for each module a random product of the same rank and Frobenius norm (float32).

    The null model of "any change of this size would do this".

    Args:
        folder: the adapter, as PEFT saved it.
        out: where the new one goes; must not be there.
        seed: a module's factors depend on it and on the module's path only.

    Returns:
        ``out``.

    Raises:
        AdapterError: not a plain LoRA; ``out`` is there.
        DamagedFileError: tensors that cannot be read, or are not finite.
        WriteError: ``out`` cannot be written.
    """
    import torch

    adapter = read_adapter(Path(folder))
    twins = {}
    for path, module in adapter.modules.items():
        generator = np.random.Generator(np.random.PCG64(stable_seed("random adapter", path, seed=seed)))
        a, b = (torch.from_numpy(generator.standard_normal(tuple(side.shape))) for side in (module.a, module.b))
        factor = (module.norm / _product_norm(a, b)) ** 0.5
        twins[path] = LoraModule(path, (a * factor).float(), (b * factor).float(), module.scale)
    return _save(adapter, Path(out), adapter.config, twins, {"operation": "random", "seed": seed, "modules": len(twins)})


def adapter_norms(folder: str | Path) -> pl.DataFrame:
    """How much each module is changed.

    Returns:
        ``module, layer, projection, rank, scale, norm`` (Frobenius, of s B A), one row a module, in order of layers.

    Raises:
        AdapterError, DamagedFileError: see :func:`restrict_adapter`.
    """
    modules = sorted(read_adapter(Path(folder)).modules.values(), key=lambda m: (-1 if m.layer is None else m.layer, m.path))
    schema = {
        "module": pl.String,
        "layer": pl.Int64,
        "projection": pl.String,
        "rank": pl.Int64,
        "scale": pl.Float64,
        "norm": pl.Float64,
    }
    return pl.DataFrame(
        [(m.path, m.layer, m.projection, m.a.shape[0], m.scale, m.scale * m.norm) for m in modules], schema=schema, orient="row"
    )


def write_adapter(out: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], beside: Mapping[str, Any]) -> Path:
    """A PEFT folder, whole or not at all; ``beside`` are further JSON files by name.

    Raises:
        AdapterError: ``out`` is there.
        WriteError: it cannot be written.
    """
    from safetensors.torch import save_file

    if out.exists():
        raise AdapterError(f"{out} is already there.", why="An adapter is never written over.", todo="Name another folder.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.tmp-", dir=out.parent))
        try:
            ordered = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
            save_file(ordered, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
            for name, value in {"adapter_config.json": dict(config), **beside}.items():
                text = json.dumps(value, ensure_ascii=False, indent=2, sort_keys=name == "adapter_config.json")
                (temporary / name).write_text(text + "\n", encoding="utf-8")
            (temporary / "adapter_model.safetensors").chmod(0o644)  # save_file and mkdtemp leave them to their owner alone
            temporary.chmod(0o755)
            temporary.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise WriteError(f"The adapter {out} cannot be written.", why=str(error)) from error
    return out


def _save(adapter: LoraAdapter, out: Path, config: dict[str, Any], modules: dict[str, LoraModule], done: dict[str, Any]) -> Path:
    tensors = {f"{_PREFIX}{m.path}.lora_{side}.weight": t for m in modules.values() for side, t in (("A", m.a), ("B", m.b))}
    source = {"adapter": str(adapter.folder), "sha256": adapter.sha256}
    return write_adapter(out, config, tensors, {RECORD: {"of": source, **done}})


def read_adapter(folder: Path) -> LoraAdapter:
    """The adapter of a folder, checked to be a plain LoRA with both sides of every module.

    Raises:
        AdapterError: no adapter folder, or another kind.
        DamagedFileError: tensors that cannot be read, or are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    for path in (file, weights):
        if not path.is_file():
            raise AdapterError(
                f"{folder} is no adapter folder.",
                why=f"It has no {path.name}.",
                todo="Give the folder that PEFT's save_pretrained wrote.",
            )
    try:
        config = json.loads(file.read_bytes())
        kind = config.get("peft_type")
    except (ValueError, AttributeError) as error:
        raise AdapterError(f"{file} is not valid JSON.", why=str(error)) from error
    other = next((name for name in ("use_dora", "lora_bias", "modules_to_save", "target_parameters") if config.get(name)), None)
    if kind != "LORA" or other is not None:
        what = f"of the kind {kind!r}" if kind != "LORA" else f"a LoRA with {other}"
        raise AdapterError(f"The adapter {folder} is {what}.", why="Only a plain LoRA is a sum of products B A, one a module.")
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise DamagedFileError(f"{weights} cannot be read.", why=str(error), todo="Copy the adapter again.") from error
    sides: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None or tensor.ndim != 2:
            raise AdapterError(f"The adapter {folder} holds {name!r}, which is no side of a product B A.")
        if not bool(tensor.isfinite().all()):
            raise DamagedFileError(f"{name} in {weights} holds NaN or infinity.")
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    if not sides:
        raise AdapterError(f"{weights} holds no tensors.")
    modules = {}
    for path, both in sides.items():
        if len(both) != 2 or both["A"].shape[0] != both["B"].shape[1]:
            raise AdapterError(f"The adapter {folder} lacks a side of {path!r}, or its sides do not fit each other.")
        modules[path] = LoraModule(path, both["A"], both["B"], _scale(config, path, both["A"].shape[0]))
    return LoraAdapter(folder, config, hashlib.sha256(weights.read_bytes()).hexdigest(), modules)


def _scale(config: Mapping[str, Any], path: str, rank: int) -> float:
    """The factor s of a module; patterns name modules by the end of their path, as PEFT has it."""
    patterns = config.get("alpha_pattern") or {}
    own = next((value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", path)), None)
    alpha = float(config.get("lora_alpha", 8) if own is None else own)
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _product_norm(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return float(((b.T @ b) * (a @ a.T)).sum().clamp(min=0.0).sqrt())
