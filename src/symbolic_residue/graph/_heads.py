"""Through which heads an edge goes: every edge as a sum over heads, and what passes no attention.

1. An edge is a sum over paths: from the source's position straight up the residual stream, and through one frozen head or several, one after another.
2. Every path that passes attention passes a *first* head: the one that takes what the source wrote out of the source's position (or keeps it there). The
   edge is the sum over first heads, and the *bypass*: the path through none, which exists only within a position.
3. The pull-down of a row's direction (``_sweep``) has, above each layer, the direction ``g`` that every path further up gives. A head's part is then
   ``Σ_q A[h, q, k] g_q W_O,h · (w W_V,h)`` for a source that wrote ``w`` at position ``k`` below: the head's own term of what the sweep sums over heads.
4. The parts add up to the edge (checked).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl
import torch
from torch import Tensor

from symbolic_residue.dictionaries import Dictionary
from symbolic_residue.errors import ConfigError, VerificationError
from symbolic_residue.graph._columns import layer_sources, unit_rows
from symbolic_residue.graph._device import on
from symbolic_residue.graph._features import local_of
from symbolic_residue.graph._graph import Graph, TOLERANCE
from symbolic_residue.graph._local import LocalModel
from symbolic_residue.graph._maps import attend
from symbolic_residue.graph._sweep import sweep_down

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument

__all__ = ["HeadLoadings", "arrived", "head_loadings", "routes", "strongest_edges"]


@dataclass(frozen=True, eq=False)
class HeadLoadings:
    """Edges as sums over the first head that each path passes.

    Attributes:
        row, column: ``[edge]``: which edges of the graph.
        loadings: ``[edge, layer, head]``.
        bypass: ``[edge]``: what passes no attention; 0 between positions.
        error: largest difference between a sum and its edge, relative to the sum of its row's edges' sizes.
    """

    row: Tensor
    column: Tensor
    loadings: Tensor
    bypass: Tensor
    error: float

    def top(self, k: int = 3) -> pl.DataFrame:
        """The ``k`` largest heads of every edge: ``row column layer head loading share`` (share of the sum of sizes, bypass among them)."""
        rows = []
        size = self.loadings.abs().flatten(1).sum(1) + self.bypass.abs()
        n_heads = self.loadings.shape[2]
        best = self.loadings.abs().flatten(1).topk(min(k, self.loadings[0].numel()), dim=1).indices if len(self.row) else []
        for e, chosen in enumerate(best):
            for index in chosen.tolist():
                layer, head = divmod(index, n_heads)
                value = float(self.loadings[e, layer, head])
                rows.append(
                    (int(self.row[e]), int(self.column[e]), layer, head, value, abs(value) / float(size[e]) if size[e] else 0.0)
                )
        schema = {
            "row": pl.Int64,
            "column": pl.Int64,
            "layer": pl.Int64,
            "head": pl.Int64,
            "loading": pl.Float64,
            "share": pl.Float64,
        }
        return pl.DataFrame(rows, schema=schema, orient="row")


def strongest_edges(graph: Graph, count: int) -> Tensor:
    """The ``count`` largest edges from neurons and embeddings, ``[edge, (row, column)]``."""
    allowed = torch.zeros(len(graph.columns), dtype=torch.bool)
    allowed[: len(graph.units)] = True
    allowed[graph.columns.embeddings] = True
    size = graph.edges.abs() * allowed
    best = size.flatten().topk(min(count, int((size > 0).sum()))).indices.sort().values
    return torch.stack([best // len(graph.columns), best % len(graph.columns)], 1)


def head_loadings(
    instrument: Instrument,
    graph: Graph,
    edges: Tensor | None = None,
    *,
    local: LocalModel | None = None,
    dictionary: Dictionary | None = None,
    budget: int = 4096,
) -> HeadLoadings:
    """Split edges over heads.

    Args:
        instrument: the model that the graph is of.
        graph: the graph.
        edges: ``[edge, (row, column)]``, from neurons, embeddings and (by position) rests; None takes the 1000 largest.
        local: of the same prompt, where the caller has it.
        dictionary: of the graph, where it has one.
        budget: row-positions held at a time.

    Raises:
        ConfigError: an edge that is not there, or from a column that is no write at one position; another dictionary than the graph's.
        VerificationError: the parts do not add up to the edges: another model, or another prompt.
    """
    edges = strongest_edges(graph, 1000) if edges is None else edges
    columns = graph.columns
    if (
        edges.dim() != 2
        or edges.shape[1:] != (2,)
        or bool((edges < 0).any())
        or bool((edges >= torch.tensor(graph.edges.shape, device=edges.device)).any())
    ):
        raise ConfigError(f"Edges of shape {tuple(edges.shape)} are not all in a graph of {tuple(graph.edges.shape)}.")
    local = local_of(instrument, graph, local, dictionary)
    with torch.no_grad(), on(local.device):
        asked, edges = edges, edges.to(local.device)
        used, of_edge = torch.unique(edges[:, 1], return_inverse=True)
        born, position, held = _straight(local, graph, used)
        units = graph.units.to(local.device)
        rows = graph.target_rows.to(local.device) + unit_rows(local, units, graph.rule)
        needed, row_of_edge = torch.unique(edges[:, 0], return_inverse=True)
        few = type(rows)(*(getattr(rows, name)[needed] for name in ("direction", "constant", "place", "position")))
        n_heads = local.parts.n_heads
        found = torch.zeros(len(edges), len(local.layers), n_heads, dtype=local.dtype)

        def visit(layer: int, numbers: Tensor, g: Tensor) -> None:
            place = torch.full((len(few),), -1)
            place[numbers] = torch.arange(len(numbers))
            here = (place[row_of_edge] >= 0) & (born[of_edge] < layer) & (position[of_edge] < g.shape[1])
            at = here.nonzero()[:, 0]
            if not len(at):
                return
            block = local.layers[layer]
            w_v, w_o = block.attention_weights()
            z = _by_head(block.pattern(0, g.shape[1]), w_o, g)  # [head, row, key, d_head]
            group = n_heads // block.parts.n_kv_heads
            value = (held[layer] @ w_v).view(len(used), block.parts.n_kv_heads, -1).repeat_interleave(group, 1)
            picked = z[:, place[row_of_edge[at]], position[of_edge[at]]]  # [head, edge, d_head]
            found[at, layer] = torch.einsum("hed,ehd->eh", picked, value[of_edge[at]])

        sweep_down(local, few, units, columns, budget=budget, visit=visit)
        same = few.position[row_of_edge] == position[of_edge]
        above = few.place[row_of_edge] > 2 * born[of_edge] + 1
        straight = torch.zeros(len(edges), dtype=local.dtype)
        for layer in range(len(local.layers) + 1):
            at = (few.place[row_of_edge] // 2 == layer).nonzero()[:, 0]
            straight[at] = (few.direction[row_of_edge[at]] * held[layer][of_edge[at]]).sum(1)
        bypass = torch.where(same & above, straight, torch.zeros_like(straight))
        found, bypass, edges = found.cpu(), bypass.cpu(), asked.cpu()
        wanted = graph.edges[edges[:, 0], edges[:, 1]]
        size = graph.row_sizes()[edges[:, 0]]
        missing = (found.sum((1, 2)) + bypass - wanted).abs() / size
        error = float(missing.max()) if len(edges) else 0.0
    if error > TOLERANCE:
        raise VerificationError(
            f"Heads and bypass miss an edge by {error:.1e} of its row's size.",
            why="The graph is of another model or prompt, or something is wrong.",
            todo="Make the graph with this model.",
        )
    return HeadLoadings(edges[:, 0], edges[:, 1], found, bypass, error)


def routes(local: LocalModel, graph: Graph, edges: Tensor, heads: Tensor, *, budget: int = 4096) -> Tensor:
    """Where a head puts what it takes from an edge's source: one (layer, head) an edge, ``[edge, query]``; the sum over queries is the head's part.

    Args:
        local: the replacement model that the graph was made in.
        graph: the graph.
        edges: ``[edge, (row, column)]``, as of :func:`head_loadings`.
        heads: ``[edge, (layer, head)]``.
        budget: row-positions held at a time.

    Raises:
        ConfigError: an edge from a column that is no write at one position.
    """
    with torch.no_grad(), on(local.device):
        edges, heads = edges.to(local.device), heads.to(local.device)
        used, of_edge = torch.unique(edges[:, 1], return_inverse=True)
        born, position, held = _straight(local, graph, used)
        units = graph.units.to(local.device)
        needed, row_of_edge = torch.unique(edges[:, 0], return_inverse=True)
        rows = graph.target_rows.to(local.device) + unit_rows(local, units, graph.rule)
        few = type(rows)(*(getattr(rows, name)[needed] for name in ("direction", "constant", "place", "position")))
        group = local.parts.n_heads
        found = torch.zeros(len(edges), graph.columns.n_positions, dtype=local.dtype)

        def visit(layer: int, numbers: Tensor, g: Tensor) -> None:
            place = torch.full((len(few),), -1)
            place[numbers] = torch.arange(len(numbers))
            at = ((place[row_of_edge] >= 0) & (heads[:, 0] == layer) & (born[of_edge] < layer)).nonzero()[:, 0]
            if not len(at):
                return
            block = local.layers[layer]
            w_v, w_o = block.attention_weights()
            pattern, size = block.pattern(0, g.shape[1]), w_o.shape[0] // group
            for e in at.tolist():
                head, key = int(heads[e, 1]), int(position[of_edge[e]])
                if key >= g.shape[1]:
                    continue
                kv = head // (group // block.parts.n_kv_heads)
                value = held[layer][of_edge[e]] @ w_v[:, kv * size : (kv + 1) * size]
                written = value @ w_o[head * size : (head + 1) * size]
                found[e, : g.shape[1]] = pattern[head, :, key] * (g[place[row_of_edge[e]]] @ written)

        sweep_down(local, few, units, graph.columns, budget=budget, visit=visit)
    return found.cpu()


def arrived(local: LocalModel, graph: Graph, columns: Tensor, layer: int, n: int) -> Tensor:
    """What columns have put into the stream that a layer's attention reads, at positions ``0 … n − 1``: ``[column, position, d_model]``.

    Args:
        local: the replacement model that the graph was made in.
        graph: the graph.
        columns: ``[column]``: units, embeddings and rests by position, ascending.
        layer: whose attention reads.
        n: positions.

    Raises:
        ConfigError: a column that is no write at one position.
    """
    with torch.no_grad(), on(local.device):
        _, position, held = _straight(local, graph, columns.to(local.device))
        here = (position < n).nonzero()[:, 0]
        moved = torch.zeros(
            len(position), n, local.embedded.shape[1], dtype=local.dtype
        )  # what attention has moved; the rest is in ``held``
        for i in range(layer):
            block = local.layers[i]
            whole = moved.clone()
            whole[here, position[here]] += held[i][here]
            added = whole.clone()
            attend(block, block.attention_weights(), added)
            skipped = None if block.skip is None else block.skip.push(moved if block.parallel else moved + added - whole, slice(n))
            moved += added - whole
            if skipped is not None:
                moved += skipped
        moved[here, position[here]] += held[layer][here]
    return moved


def _by_head(pattern: Tensor, w_o: Tensor, g: Tensor) -> Tensor:
    """``[head, row, key, d_head]``: what each head pulls down from directions ``g [row, position, d_model]``, before its values' weights."""
    n, p, d = g.shape
    n_heads = len(pattern)
    o = (g.reshape(n * p, d) @ w_o.T).view(n, p, n_heads, -1).permute(2, 1, 0, 3).reshape(n_heads, p, -1)
    z = torch.bmm(pattern.transpose(1, 2), o)
    return z.view(n_heads, p, n, -1).permute(0, 2, 1, 3)


def _straight(local: LocalModel, graph: Graph, used: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Layer after whose MLP each column begins (−1 for embeddings), its position, and for each layer (and the end) what it has put by then into the residual
    stream of its own position, attention apart: ``[column, d_model]`` each. It changes above the beginning only in a dictionary: features of a cross-layer
    transcoder write again, and skip connections pass on what is there."""
    columns, units = graph.columns, graph.units.to(local.device)
    born, position = torch.zeros(len(used), dtype=torch.long), torch.zeros(len(used), dtype=torch.long)
    x = torch.zeros(len(used), local.embedded.shape[1], dtype=local.dtype)
    for number, column in enumerate(used.tolist()):
        if column < len(units):
            born[number], position[number] = units.layer[column], units.position[column]
        elif columns.embeddings.start <= column < columns.embeddings.stop:
            born[number], position[number] = -1, column - columns.embeddings.start
            x[number] = local.embedded[position[number]]
        elif columns.rest.start <= column < columns.rest.stop and columns.by_position:
            born[number], position[number] = divmod(column - columns.rest.start, columns.n_positions)
        else:
            raise ConfigError(
                f"Column {column} ({graph.column_names()[column]}) is no write at one position.",
                why="A bias enters at two places of a layer, and a rest by layer at all positions.",
                todo="Ask for edges from units, embeddings, or rests by position.",
            )
    is_rest = (used >= columns.rest.start) & (used < columns.rest.stop)
    place = torch.full((len(columns),), -1)
    place[used] = torch.arange(len(used))
    held = [x]
    for j, source in enumerate(layer_sources(local, units)):
        skip = local.layers[j].skip
        if skip is not None:
            x = x + skip.push(x, position)
        here = place[source.at]
        rests = (is_rest & (born == j)).nonzero()[:, 0]
        if bool((here >= 0).any()) or len(rests):
            x = x.clone()
            x[here[here >= 0]] += source.write[here >= 0]
            x[rests] += source.rest[position[rests]]
        held.append(x)
    return born, position, held
