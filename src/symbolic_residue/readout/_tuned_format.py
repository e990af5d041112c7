"""Tuned lenses of the public tuned-lens package: a folder with ``config.json`` and the translators' parameters.

1. ``config.json`` gives ``d_model``, ``num_hidden_layers``, the base model's name, and in newer lenses ``unembed_hash``. Translator ``i`` reads
   ``hidden_states[i]``, so it is depth ``i``; its output is added to the residual.
2. Parameters are ``i.weight [d_model, d_model]`` and ``i.bias [d_model]``, from ``params.safetensors`` where there is one, else from ``params.pt``
   through torch's ``weights_only`` loader: it makes tensors and refuses anything else in the pickle.
3. The model is recognised by ``unembed_hash``: the sha256 of the unembedding as NumPy prints it to one decimal. A lens without a hash is taken only
   on the caller's word.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from symbolic_residue.errors import DamagedFileError, ModelError

if TYPE_CHECKING:
    from symbolic_residue.models import Parts

__all__ = ["read_public_lens", "unembed_hash"]


def unembed_hash(w_u: Tensor) -> str:
    """The package's hash of an unembedding ``[vocab, d_model]``."""
    with np.printoptions(edgeitems=3, threshold=1000, linewidth=75, suppress=False, legacy=False):
        return hashlib.sha256(np.array_str(w_u.float().cpu().numpy(), precision=1).encode()).hexdigest()


def read_public_lens(folder: Path, parts: Parts, *, assume_same_model: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors ``depth.matrix`` and ``depth.bias``, and a record of where they come from.

    Raises:
        DamagedFileError: files missing or unreadable.
        ModelError: made for another model, or for one that it does not name by hash.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{folder.name} has no readable config.json.", why=str(error)) from error
    sizes = config.get("num_hidden_layers"), config.get("d_model")
    if sizes != (parts.n_layers, parts.d_model):
        raise ModelError(
            f"The tuned lens is for {sizes[0]} layers of width {sizes[1]}; this model has {parts.n_layers} of width {parts.d_model}."
        )
    stated = config.get("unembed_hash")
    if stated is None and not assume_same_model:
        raise ModelError(
            f"The tuned lens does not say by hash which model it is for (it names {config.get('base_model_name_or_path')!r}).",
            why="Translators of another model give numbers that mean nothing.",
            todo="If you know that it is this model, give assume_same_model=True.",
        )
    if stated is not None and stated != unembed_hash(parts.w_u):
        raise ModelError(
            f"The tuned lens belongs to another model ({config.get('base_model_name_or_path')!r}).", why="The unembeddings differ."
        )
    state = {name.removeprefix("layer_translators."): tensor for name, tensor in _state(folder).items()}
    wanted = {f"{i}.weight" for i in range(parts.n_layers)}
    if not wanted <= set(state):
        raise DamagedFileError(f"{folder.name} lacks the translator {sorted(wanted - set(state))[0]!r}.")
    zero = torch.zeros(parts.d_model)
    tensors = {f"{i}.matrix": state[f"{i}.weight"] for i in range(parts.n_layers)}
    tensors |= {f"{i}.bias": state.get(f"{i}.bias", zero) for i in range(parts.n_layers)}
    how = "the caller's word" if stated is None else "hash of the unembedding"
    return tensors, {"source": "tuned-lens package", "base_model": str(config.get("base_model_name_or_path")), "recognised_by": how}


def _state(folder: Path) -> dict[str, Tensor]:
    safe, pickled = folder / "params.safetensors", folder / "params.pt"
    if safe.exists():
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(safe)
        except (SafetensorError, OSError) as error:
            raise DamagedFileError(f"{safe.name} cannot be read as safetensors.", why=str(error)) from error
    if not pickled.exists():
        raise DamagedFileError(f"{folder.name} has neither params.safetensors nor params.pt.")
    try:
        state = torch.load(pickled, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise DamagedFileError(
            f"{pickled.name} holds more than tensors, or is damaged; it was not loaded.",
            why="A pickle can run any code; only torch's weights-only loader is used.",
            todo="Where you trust its maker, convert it elsewhere: safetensors.torch.save_file(torch.load('params.pt'), 'params.safetensors').",
        ) from error
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise DamagedFileError(f"{pickled.name} is no table of tensors.")
    return state
