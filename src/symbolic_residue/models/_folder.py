"""A model folder, checked before transformers sees it.

1. ``config.json`` is there and names an architecture of the family table, with plain weights.
2. The weights are safetensors, all shards that the index names; pickles are named and refused.
3. A tokenizer is there.
4. Every safetensors file's header agrees with the file's length, so a truncated copy is told apart from a wrong model.
"""

from __future__ import annotations

import json
from pathlib import Path

from symbolic_residue.errors import DamagedFileError, ModelFolderError, UnsupportedModelError
from symbolic_residue.models._bind import check_family

__all__ = ["check_folder"]


def check_folder(folder: Path) -> list[Path]:
    """The safetensors of a model folder, sorted, after checking that they and the config can be used.

    Raises:
        ModelFolderError: something is missing, named.
        UnsupportedModelError: an architecture outside the family table, or quantised weights.
        DamagedFileError: config or safetensors that cannot be read in full.
    """
    if not folder.is_dir():
        what = f"{folder} is a file, not a model folder." if folder.exists() else f"The folder {folder} does not exist."
        raise ModelFolderError(what, todo="Give a folder with config.json, safetensors and a tokenizer.")
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise ModelFolderError(f"The folder {folder} has no config.json.", todo="Give a folder that save_pretrained wrote.")
    try:
        config = json.loads(config_path.read_bytes())
        model_type, quantised = config.get("model_type"), config.get("quantization_config")
    except (ValueError, AttributeError) as error:
        raise DamagedFileError(f"{config_path} is not valid JSON.", why=str(error)) from error
    check_family(model_type)
    if quantised:
        raise UnsupportedModelError(
            f"The weights in {folder} are quantised ({quantised.get('quant_method', 'unknown')}).",
            why="Quantised linears have no plain weight matrix to read.",
            todo="Use the unquantised checkpoint.",
        )
    names = _weight_names(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")):
        raise ModelFolderError(
            f"The folder {folder} has no tokenizer.", why="Neither tokenizer.json nor another tokenizer file is there."
        )
    files = [folder / name for name in sorted(names)]
    for file in files:
        _check_safetensors(file)
    return files


def _weight_names(folder: Path) -> set[str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise DamagedFileError(f"{index} cannot be read.", why=f"{type(error).__name__}: {error}") from error
    elif (folder / "model.safetensors").is_file():
        names = {"model.safetensors"}
    else:
        pickles = sorted(path.name for path in [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
        raise ModelFolderError(
            f"The folder {folder} has no model.safetensors.",
            why=f"{pickles[0]} is a pickle, which can run code and is never loaded."
            if pickles
            else "There are no weights to load.",
            todo="Save the model with save_pretrained, which writes safetensors.",
        )
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise ModelFolderError(f"The folder {folder} lacks {len(missing)} of {len(names)} weight files: {', '.join(missing[:3])}.")
    return names


def _check_safetensors(file: Path) -> None:
    from safetensors import safe_open, SafetensorError

    try:
        with safe_open(file, framework="pt") as opened:  # reads the header and compares it with the file's length
            opened.keys()
    except (SafetensorError, OSError) as error:
        raise DamagedFileError(
            f"{file} is truncated or damaged ({file.stat().st_size:,} bytes).",
            why=str(error),
            todo="Copy or fetch the model again.",
        ) from error
