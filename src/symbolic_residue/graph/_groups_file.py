"""Labelled groups of a graph on disk, beside it: ``supernodes.json``, plain data that names the graph's tensors by sha256."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from symbolic_residue.errors import DamagedFileError, WriteError
from symbolic_residue.graph._graph import Graph
from symbolic_residue.graph._group_labels import Example, GroupLabel, Hint
from symbolic_residue.graph._supernodes import Supernodes

__all__ = ["load_supernodes", "save_supernodes"]

_FORMAT = 1


def save_supernodes(groups: Supernodes, folder: Path | str) -> Path:
    """Write groups into the folder of their graph, which is there already; the folder comes back.

    Raises:
        WriteError: there is no graph, or the file cannot be written.
    """
    folder = Path(folder)
    try:
        record = {"format": _FORMAT, "graph_sha256": _digest(folder), "groups": _finite(asdict(groups))}
        part = folder / ".supernodes.json.part"
        part.write_bytes(
            (json.dumps(record, ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode("utf-8", "surrogatepass")
        )
        part.replace(folder / "supernodes.json")
    except OSError as error:
        raise WriteError(
            f"The groups cannot be written to {folder}.", why=str(error), todo="Keep the graph there first."
        ) from error
    return folder


def load_supernodes(graph: Graph, folder: Path | str) -> Supernodes | None:
    """The groups kept beside a graph; None where there are none.

    Raises:
        DamagedFileError: a file that is unreadable, or of another graph.
    """
    folder = Path(folder)
    path = folder / "supernodes.json"
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
        if record["format"] != _FORMAT:
            raise DamagedFileError(f"supernodes.json in {folder} has format {record['format']!r}; this version reads {_FORMAT}.")
        if record["graph_sha256"] != _digest(folder):
            raise DamagedFileError(
                f"supernodes.json in {folder} is not of the graph there.", why="Its sha256 differs.", todo="Make the graph again."
            )
        one = record["groups"]
        members = tuple(tuple(int(u) for u in group) for group in one["members"])
        found = Supernodes(
            tuple(map(str, one["labels"])), members, _number(one["silhouette"]), _number(one["control"]), tuple(map(_about, one["about"])),
            float(one["node_threshold"]), float(one["edge_threshold"]),
        )  # fmt: skip
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"The groups in {folder} are not readable.", why=f"{type(error).__name__}: {error}") from error
    units = [u for group in members for u in group]
    fits = len(found.labels) == len(members) and len(found.about) in (0, len(members)) and all(0 <= u < len(graph) for u in units)
    if not fits or len(set(units)) < len(units):
        raise DamagedFileError(f"The groups in {folder} do not fit their graph.", todo="Make the graph again.")
    return found


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "graph.safetensors").read_bytes()).hexdigest()


def _finite(value: Any) -> Any:
    """Plain data in which what is no number is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _hint(one: dict[str, Any]) -> Hint:
    mean, most = one["control"]
    return Hint(tuple(one["tokens"]), _number(one["value"]), (_number(mean), _number(most)), int(one["n"]))


def _about(one: dict[str, Any]) -> GroupLabel:
    fires = None if one["fires"] is None else _hint(one["fires"])
    return GroupLabel(
        str(one["text"]),
        _hint(one["writes"]),
        _hint(one["acts"]),
        fires,
        int(one["first"]),
        tuple(Example(**e) for e in one["examples"]),
    )
