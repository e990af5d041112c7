"""Dictionaries on disk in a format of our own: ``dictionary.json`` and ``dictionary.safetensors``.

1. ``dictionary.json``: format, source, and for each layer what it reads and predicts, its activation, and the layers it writes to; the sha256 of what the
   dictionary does (see ``Transcoders.sha256``).
2. Tensors: ``{layer}.encoder``, ``{layer}.encoder_bias``, ``{layer}.bias``, ``{layer}.decoder.{target}``, and where there are any ``{layer}.threshold``,
   ``{layer}.skip``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from symbolic_residue.dictionaries._dictionary import Activation, by_layer, LayerDictionary, Transcoders
from symbolic_residue.dictionaries._files import read_json, read_tensors, Tensors, write_json, write_tensors
from symbolic_residue.errors import DamagedFileError

__all__ = ["read_own", "save_dictionary"]

_FORMAT = 1


def save_dictionary(dictionary: Transcoders, folder: Path | str) -> Path:
    """Write a dictionary into a folder, made where it is missing; the folder comes back.

    Raises:
        WriteError: it cannot be written.
    """
    folder = Path(folder)
    tensors = {
        f"{i}.{name}": t.detach().cpu().contiguous() for i, one in dictionary.layers.items() for name, t in one.tensors().items()
    }
    layers = [
        {
            "layer": i,
            "reads": one.reads,
            "predicts": one.predicts,
            "activation": one.activation.kind,
            "k": one.activation.k,
            "signed": one.activation.signed,
            "writes_to": sorted(one.decoders),
            "skip": one.skip is not None,
        }
        for i, one in dictionary.layers.items()
    ]
    record = {"format": _FORMAT, "source": dict(dictionary.source), "layers": layers, "sha256": dictionary.sha256}
    write_tensors(folder / "dictionary.safetensors", tensors)
    write_json(folder / "dictionary.json", record)
    return folder


def read_own(folder: Path) -> Transcoders:
    """A dictionary that :func:`save_dictionary` wrote.

    Raises:
        DamagedFileError: files that do not belong together, or lack something.
        DictionaryError: tensors that are not as the format has them.
    """
    config = read_json(folder / "dictionary.json")
    config.must("format", _FORMAT)
    tensors = read_tensors(folder / "dictionary.safetensors")
    try:
        layers = [_layer(one, tensors) for one in config.take("layers")]
        found = Transcoders(by_layer(layers), dict(config.take("source")))
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{config.path} lacks something.", why=f"{type(error).__name__}: {error}") from error
    tensors.finish()
    if found.sha256 != config.take("sha256"):
        raise DamagedFileError(
            f"The dictionary in {folder} is not the one that {config.path.name} was written with.", why="Its sha256 differs."
        )
    config.finish()
    return found


def _layer(entry: dict[str, Any], tensors: Tensors) -> LayerDictionary:
    i = entry["layer"]
    threshold = tensors.take(f"{i}.threshold") if entry["activation"] == "jumprelu" else None
    return LayerDictionary(
        i, tensors.take(f"{i}.encoder"), tensors.take(f"{i}.encoder_bias"), {j: tensors.take(f"{i}.decoder.{j}") for j in entry["writes_to"]},
        tensors.take(f"{i}.bias"), Activation(entry["activation"], entry["k"], threshold, entry["signed"]), entry["reads"], entry["predicts"],
        tensors.take(f"{i}.skip") if entry["skip"] else None,
    )  # fmt: skip
