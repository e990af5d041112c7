"""Directions on disk: ``readout.safetensors`` with ``layer_<i>.vectors`` and its companions, ``readout.json`` with everything else.

1. ``layer_<i>.vectors`` is ``[n_concepts, d_model]`` float32 with rows of length 1; ``.norms``, ``.positive_mean``, ``.negative_mean`` and
   ``.negative_sd`` are ``[n_concepts]``.
2. ``readout.json`` names concepts (the order of the rows), layers, hidden_size, dtype, estimator, pooling, the model with the hash of its weights, the corpus's
   hash, and the sha256 of the tensors' file: a file that was swapped is refused, and so is another model.
3. Both files are written beside their place and moved into it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TYPE_CHECKING

import numpy as np

from symbolic_residue.concepts._directions import Directions, ReadoutModel
from symbolic_residue.errors import DamagedFileError, ModelError, WriteError

if TYPE_CHECKING:
    from symbolic_residue.models import LoadedModel

__all__ = ["load_directions", "save_directions"]

_KINDS = ("vectors", "norms", "positive_mean", "negative_mean", "negative_sd")
_FORMAT = 1


def save_directions(directions: Directions, folder: Path) -> Path:
    """Write ``readout.safetensors`` and ``readout.json`` into a folder, made where it is missing; the folder comes back.

    Raises:
        WriteError: they cannot be written.
    """
    from safetensors.numpy import save

    folder = Path(folder)
    tensors = {
        f"layer_{i}.{kind}": np.ascontiguousarray(getattr(directions, kind)[i]) for i in directions.layers for kind in _KINDS
    }
    data = save(tensors)
    model = directions.model
    record = {
        "format": _FORMAT,
        "concepts": list(directions.concepts),
        "layers": list(directions.layers),
        "hidden_size": model.hidden_size,
        "n_layers": model.n_layers,
        "dtype": model.dtype,
        "estimator": directions.estimator,
        "against": directions.against,
        "pooling": directions.pooling,
        "m": directions.m,
        "chat": directions.chat,
        "model": model.model,
        "weights_sha256": model.weights_sha256,
        "adapter_sha256": model.adapter_sha256,
        "corpus_sha256": directions.corpus_sha256,
        "tensors_sha256": hashlib.sha256(data).hexdigest(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (("readout.safetensors", data), ("readout.json", (json.dumps(record, indent=2) + "\n").encode())):
            part = folder / f".{name}.part"
            part.write_bytes(content)
            part.replace(folder / name)
    except OSError as error:
        raise WriteError(f"The directions cannot be written to {folder}.", why=str(error)) from error
    return folder


def load_directions(folder: Path, loaded: LoadedModel | None) -> Directions:
    """Read directions back, for a model.

    Args:
        folder: with ``readout.safetensors`` and ``readout.json``.
        loaded: the model that they are to be used with; None reads them without using them on a model.

    Raises:
        DamagedFileError: files missing, unreadable, or not belonging together.
        ModelError: they belong to another model.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = Path(folder)
    try:
        record: dict[str, Any] = json.loads((folder / "readout.json").read_text("utf-8"))
        data = (folder / "readout.safetensors").read_bytes()
    except (OSError, ValueError) as error:
        raise DamagedFileError(
            f"{folder} holds no readable directions.",
            why=str(error),
            todo="Give the folder with readout.json and readout.safetensors.",
        ) from error
    try:
        model = ReadoutModel(
            record["model"],
            record["weights_sha256"],
            record["adapter_sha256"],
            record["dtype"],
            record["hidden_size"],
            record["n_layers"],
        )
        concepts, layers, stated = tuple(record["concepts"]), record["layers"], record["tensors_sha256"]
        settings = {key: record[key] for key in ("estimator", "pooling", "m", "against", "chat", "corpus_sha256")}
        known = record["format"] == _FORMAT
    except (KeyError, TypeError) as error:
        raise DamagedFileError(f"readout.json in {folder} lacks {error}.") from error
    if not known:
        raise DamagedFileError(f"readout.json in {folder} has format {record['format']!r}; this version reads {_FORMAT}.")
    if loaded is not None and (reason := model.why_not(ReadoutModel.of(loaded))) is not None:
        raise ModelError(
            f"The directions in {folder} belong to another model ({model.model}).",
            why=f"{reason} A direction of another model means nothing.",
            todo="Load that model, or find the directions of this one.",
        )
    if hashlib.sha256(data).hexdigest() != stated:
        raise DamagedFileError(
            f"readout.safetensors in {folder} is not the file that readout.json was written with.", why="Its sha256 differs."
        )
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise DamagedFileError(f"readout.safetensors in {folder} cannot be read.", why=str(error)) from error
    arrays: dict[str, dict[int, Any]] = {kind: {} for kind in _KINDS}
    for i in layers:
        for kind in _KINDS:
            found = tensors.get(f"layer_{i}.{kind}")
            shape = (len(concepts), model.hidden_size) if kind == "vectors" else (len(concepts),)
            if found is None or found.shape != shape:
                raise DamagedFileError(f"readout.safetensors in {folder} has no layer_{i}.{kind} of shape {shape}.")
            if kind != "negative_sd" and not bool(np.isfinite(found).all()):
                raise DamagedFileError(f"layer_{i}.{kind} in readout.safetensors of {folder} is not finite.")
            arrays[kind][i] = found
    return Directions(concepts, **arrays, **settings, model=model)
