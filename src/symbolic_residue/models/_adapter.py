"""LoRA adapters, checked against their base and merged into it.

1. The folder must hold ``adapter_config.json`` and ``adapter_model.safetensors``; only LoRA (and its DoRA form) is served, because
   only there the adapted weight is again one matrix.
2. Every tensor of the file is matched with the base: A ``[rank, in]``, B ``[out, rank]``, replaced weights in full. Nothing may be
   left over, so an adapter of another model cannot half apply.
3. PEFT loads it and merges it, W + (alpha / r) B A (Hu et al. 2021), so that the instrument reads a plain model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from symbolic_residue.errors import AdapterError, DamagedFileError, MissingExtraError
from symbolic_residue.models._cache import file_sha256
from symbolic_residue.models._provenance import AdapterRecord
from symbolic_residue.models._quiet import quiet

__all__ = ["merge_adapter"]

_PREFIX = "base_model.model."


def merge_adapter(model: Any, folder: Path, base: str) -> tuple[Any, AdapterRecord]:
    """The base with the adapter merged into its weights (in place), and the record of it.

    Args:
        model: the base, loaded.
        folder: the adapter's folder.
        base: the name by which the base was loaded.

    Raises:
        MissingExtraError: peft is not installed.
        AdapterError: not an adapter folder, another kind than LoRA, or tensors that do not fit the base.
        DamagedFileError: the adapter's safetensors cannot be read.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtraError("peft", "adapters", needed_for=f"loading the adapter {folder}") from error
    config = _config(folder)
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise AdapterError(
            f"The adapter folder {folder} has no adapter_model.safetensors.",
            why="Other formats are pickles, which can run code and are never loaded." if list(folder.glob("*.bin")) else "",
            todo="Save it with model.save_pretrained(folder), which writes safetensors.",
        )
    _check_tensors(model, weights, int(config.get("r") or 0))
    dtype = next(model.parameters()).dtype
    try:
        with quiet():
            merged = PeftModel.from_pretrained(model, str(folder), is_trainable=False).merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise AdapterError(f"The adapter {folder} does not load onto {base}.", why=str(error).strip()[:300]) from error
    merged = merged.to(dtype)
    named = config.get("base_model_name_or_path")
    record = AdapterRecord(
        path=str(folder.resolve()),
        sha256=file_sha256(weights),
        kind=str(config["peft_type"]),
        base=named,
        base_matches=named is not None and (named == base or str(Path(named).expanduser().resolve()) == base),
    )
    return merged, record


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    if not path.is_file():
        what = f"{folder} is no adapter folder." if folder.is_dir() else f"The adapter folder {folder} does not exist."
        raise AdapterError(what, why="It has no adapter_config.json.", todo="Give the folder that PEFT's save_pretrained wrote.")
    try:
        config = json.loads(path.read_bytes())
        kind = config.get("peft_type")
    except (ValueError, AttributeError) as error:
        raise AdapterError(f"{path} is not valid JSON.", why=str(error)) from error
    if kind != "LORA":
        raise AdapterError(
            f"The adapter {folder} is of the kind {kind!r}.",
            why="Only LoRA adapters merge into plain weight matrices.",
            todo="Use a LoRA.",
        )
    return config


def _check_tensors(model: Any, path: Path, rank: int) -> None:
    from safetensors import safe_open, SafetensorError

    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except SafetensorError as error:
        raise DamagedFileError(f"{path} cannot be read.", why=str(error), todo="Copy the adapter again.") from error
    if not shapes:
        raise AdapterError(f"{path} holds no tensors.")
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    for name, shape in shapes.items():
        inner = name.removeprefix(_PREFIX)
        target, _, part = inner.partition(".lora_")
        if part:
            module = modules.get(target)
            weight = getattr(module, "weight", None)
            if weight is None:
                raise AdapterError(
                    f"The adapter changes {target!r}, which the base does not have.", todo="Load it on its own base model."
                )
            n_out, n_in = weight.shape
            if type(module).__name__ in ("Conv1D", "Embedding"):
                n_out, n_in = n_in, n_out
            want = {"A.weight": (None, n_in), "B.weight": (n_out, None), "embedding_A": (None, n_in), "embedding_B": (n_out, None)}
            want |= {"magnitude_vector": (n_out,), "magnitude_vector.weight": (n_out,), "B.bias": (n_out,)}
            expected = want.get(part)
        else:
            expected = None if inner not in parameters else tuple(parameters[inner].shape)
        if expected is None:
            raise AdapterError(f"The adapter's tensor {name!r} fits nothing in the base.", todo="Load it on its own base model.")
        if len(shape) != len(expected) or any(e is not None and e != s for s, e in zip(shape, expected, strict=True)):
            sizes = ["rank" if size is None else size for size in expected]
            raise AdapterError(
                f"The adapter's tensor {name!r} has shape {list(shape)}; the base needs {sizes}.",
                why=f"The adapter (rank {rank}) was made for another base model.",
                todo="Load it on its own base model.",
            )
