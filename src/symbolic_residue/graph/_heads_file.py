"""Heads of a graph on disk, beside it: ``heads.safetensors`` with the parts of edges, ``heads.json`` with the looks.

1. Tensors: ``edges [edge, (row, column)]``, ``loadings [edge, layer, head]``, ``bypass [edge]``.
2. ``heads.json`` names the sha256 of both tensors' files, its own and the graph's, how much of the influence the edges hold, and each look with its terms.
3. On reading, the hashes are checked, the shapes and indices, that parts add up to the graph's edges, and that terms and what is left add up to the scores.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from symbolic_residue.errors import DamagedFileError, WriteError
from symbolic_residue.graph._carried import GraphHeads, Look
from symbolic_residue.graph._graph import Graph, TOLERANCE
from symbolic_residue.graph._heads import HeadLoadings

__all__ = ["load_heads", "save_heads"]

_FORMAT = 1


def save_heads(heads: GraphHeads, folder: Path | str) -> Path:
    """Write heads into the folder of their graph, which is there already; the folder comes back.

    Raises:
        WriteError: there is no graph, or the files cannot be written.
    """
    from safetensors.torch import save

    folder = Path(folder)
    one = heads.loadings
    arrays = {"edges": torch.stack([one.row, one.column], 1), "loadings": one.loadings, "bypass": one.bypass}
    data = save({name: array.detach().cpu().contiguous() for name, array in arrays.items()})
    try:
        record = {
            "format": _FORMAT,
            "graph_sha256": _digest((folder / "graph.safetensors").read_bytes()),
            "tensors_sha256": _digest(data),
            "error": one.error,
            "share": heads.share,
            "refused": heads.refused,
            "looks": [asdict(look) for look in heads.looks],
        }
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
        for name, content in (("heads.safetensors", data), ("heads.json", text.encode())):
            part = folder / f".{name}.part"
            part.write_bytes(content)
            part.replace(folder / name)
    except OSError as error:
        raise WriteError(f"The heads cannot be written to {folder}.", why=str(error), todo="Keep the graph there first.") from error
    return folder


def load_heads(graph: Graph, folder: Path | str) -> GraphHeads | None:
    """The heads kept beside a graph; None where there are none.

    Raises:
        DamagedFileError: files that are unreadable, of another graph, or do not add up.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder)
    if not (folder / "heads.json").exists():
        return None
    try:
        record: dict[str, Any] = json.loads((folder / "heads.json").read_bytes())
        data, of_graph = ((folder / name).read_bytes() for name in ("heads.safetensors", "graph.safetensors"))
        if record["format"] != _FORMAT:
            raise DamagedFileError(f"heads.json in {folder} has format {record['format']!r}; this version reads {_FORMAT}.")
        for name, content, wanted in (("heads", data, "tensors_sha256"), ("graph", of_graph, "graph_sha256")):
            if _digest(content) != record[wanted]:
                raise DamagedFileError(
                    f"{name}.safetensors in {folder} is not the file that heads.json was written with.",
                    why="Its sha256 differs.",
                    todo="Make the graph again.",
                )
        tensors = load(data)
        row, column = tensors["edges"].unbind(1)
        loadings = HeadLoadings(row, column, tensors["loadings"], tensors["bypass"], float(record["error"]))
        found = GraphHeads(loadings, float(record["share"]), tuple(map(_look, record["looks"])), str(record["refused"]))
        fits = _fits(found, graph)
    except (OSError, KeyError, TypeError, ValueError, IndexError, RuntimeError, SafetensorError) as error:
        raise DamagedFileError(f"The heads in {folder} are not readable.", why=f"{type(error).__name__}: {error}") from error
    if not fits:
        raise DamagedFileError(f"The heads in {folder} do not fit their graph, or do not add up.", todo="Make the graph again.")
    return found


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _look(one: dict[str, Any]) -> Look:
    lists = {name: tuple(tuple(term) for term in one[name]) for name in ("pairs", "of_query", "of_key")}
    return Look(**{**one, **lists, "edge": tuple(one["edge"])})


def _fits(found: GraphHeads, graph: Graph) -> bool:
    one, shape = found.loadings, graph.columns
    n = len(one.row)
    if not (one.loadings.dim() == 3 and one.loadings.shape[:2] == (n, shape.n_layers) and one.bypass.shape == (n,)):
        return False
    if n and not (bool((one.row >= 0).all()) and bool((one.column >= 0).all())):
        return False
    edges = graph.edges[one.row, one.column].double()
    gap = one.loadings.double().sum((1, 2)) + one.bypass.double() - edges
    if bool((gap.abs() > TOLERANCE * graph.row_sizes()[one.row]).any()):
        return False
    return all(_look_fits(look, graph, one.loadings.shape[2]) for look in found.looks)


def _look_fits(look: Look, graph: Graph, n_heads: int) -> bool:
    shape, width = graph.columns, len(graph.columns)
    sums = (
        ([*(t for _, _, t in look.pairs)], look.pairs_left),
        ([*(t for _, t in look.of_query)], look.query_left),
        ([*(t for _, t in look.of_key)], look.key_left),
    )
    columns = [c for a, b, _ in look.pairs for c in (a, b)] + [c for c, _ in (*look.of_query, *look.of_key)]
    return (
        0 <= look.layer < shape.n_layers
        and 0 <= look.head < n_heads
        and 0 <= look.key <= look.query < shape.n_positions
        and 0 <= look.edge[0] < len(graph.edges)
        and all(0 <= c < width for c in (*columns, look.edge[1]))
        and all(
            abs(sum(terms) + left - look.score) <= TOLERANCE * (sum(map(abs, terms)) + abs(left) + 1e-9) for terms, left in sums
        )
    )
