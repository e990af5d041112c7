"""Graphs on disk: ``graph.safetensors`` with the arrays, ``graph.json`` with everything else.

1. Tensors: ``edges [row, column]``, ``activations``, ``effects``, ``units [unit, (layer, position, neuron)]``, and the targets' rows ``target_direction
   target_constant target_place target_position``.
2. ``graph.json`` names the prompt, the targets, what the columns are, the rule, the model's provenance, the dictionary (by its sha256), and the
   sha256 of the tensors' file.
3. Both are written beside their place and moved into it. On reading, hash, shapes and indices are checked, and that every row still adds up.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from symbolic_residue.errors import DamagedFileError, VerificationError, WriteError
from symbolic_residue.graph._columns import Columns, Rows, Units
from symbolic_residue.graph._graph import Graph, TargetInfo

__all__ = ["load_graph", "save_graph"]

_ANEW = "Copy the folder again, or make the graph anew."
_FORMAT = 1
_ROWS = ("direction", "constant", "place", "position")


def save_graph(graph: Graph, folder: Path | str) -> Path:
    """Write a graph into a folder, made where it is missing; the folder comes back.

    Raises:
        WriteError: it cannot be written.
    """
    from safetensors.torch import save

    folder = Path(folder)
    units = torch.stack([graph.units.layer, graph.units.position, graph.units.neuron], 1)
    arrays = {"edges": graph.edges, "activations": graph.activations, "effects": graph.effects, "units": units}
    if graph.terms is not None:
        arrays["terms"] = graph.terms
    arrays |= {f"target_{name}": getattr(graph.target_rows, name) for name in _ROWS}
    data = save({name: array.detach().cpu().contiguous() for name, array in arrays.items()})
    record = {
        "format": _FORMAT,
        "ids": list(graph.ids),
        "tokens": list(graph.tokens),
        "targets": [asdict(target) for target in graph.targets],
        "columns": asdict(graph.columns),
        "rule": graph.rule,
        "uncapped": graph.uncapped,
        "local_error": graph.local_error,
        "provenance": graph.provenance,
        "labels": [list(words) for words in graph.labels],
        "dictionary": graph.dictionary,
        "tensors_sha256": hashlib.sha256(data).hexdigest(),
    }
    text = json.dumps(record, ensure_ascii=False, indent=1) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (("graph.safetensors", data), ("graph.json", text.encode("utf-8", "surrogatepass"))):
            part = folder / f".{name}.part"
            part.write_bytes(content)
            part.replace(folder / name)
    except OSError as error:
        raise WriteError(f"The graph cannot be written to {folder}.", why=str(error)) from error
    return folder


def load_graph(folder: Path | str) -> Graph:
    """Read a graph back.

    Raises:
        DamagedFileError: files missing, unreadable, not belonging together, or not adding up.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder)
    try:
        record: dict[str, Any] = json.loads((folder / "graph.json").read_bytes().decode("utf-8", "surrogatepass"))
        data = (folder / "graph.safetensors").read_bytes()
    except (OSError, ValueError) as error:
        raise DamagedFileError(
            f"{folder} holds no readable graph.", why=str(error), todo="Give the folder with graph.json and graph.safetensors."
        ) from error
    if record.get("format") != _FORMAT:
        raise DamagedFileError(f"graph.json in {folder} has format {record.get('format')!r}; this version reads {_FORMAT}.")
    if hashlib.sha256(data).hexdigest() != record.get("tensors_sha256"):
        raise DamagedFileError(
            f"graph.safetensors in {folder} is not the file that graph.json was written with.",
            why="Its sha256 differs: it is cut short, or from another graph.",
            todo=_ANEW,
        )
    try:
        tensors = load(data)
        columns = Columns(**record["columns"])
        targets = tuple(TargetInfo(**one) for one in record["targets"])
        units = Units.of(tensors["units"])
        rows = Rows(*(tensors[f"target_{name}"] for name in _ROWS))
        graph = Graph(
            tuple(record["ids"]), tuple(record["tokens"]), targets, units, tensors["activations"], tensors["effects"], tensors["edges"],
            columns, record["rule"], record["uncapped"], record["local_error"], rows, record["provenance"],
            tuple(tuple(words) for words in record.get("labels", ())),
            record.get("dictionary", {}), tensors.get("terms"),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, IndexError, SafetensorError) as error:
        raise DamagedFileError(
            f"The graph in {folder} lacks something.", why=f"{type(error).__name__}: {error}", todo=_ANEW
        ) from error
    _check(graph, folder)
    return graph


def _check(graph: Graph, folder: Path) -> None:
    n_units, columns = len(graph.units), graph.columns
    fits = (
        len(graph.tokens) == len(graph.ids) == columns.n_positions
        and columns.n_units == n_units == len(graph.activations) == len(graph.effects)
        and len(graph.target_rows) == graph.n_targets == len(graph.target_rows.direction)
        and tuple(graph.edges.shape) == (graph.n_targets + n_units, len(columns))
        and len(graph.labels) in (0, n_units)
        and (graph.terms is None or len(graph.terms) == graph.n_targets + n_units)
        and all(0 <= int(i) < columns.n_layers for i in graph.units.layer)
        and all(0 <= int(t) < columns.n_positions for t in graph.units.position)
    )
    if not fits:
        raise DamagedFileError(
            f"The parts of the graph in {folder} do not fit together.", why="Something was changed after it was kept.", todo=_ANEW
        )
    try:
        graph.require()
    except VerificationError as error:
        raise DamagedFileError(f"The graph in {folder} does not add up.", why=error.what, todo=_ANEW) from error
