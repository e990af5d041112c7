"""``residue graph export``: a kept graph in the JSON that Neuronpedia and circuit-tracer's viewer read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from symbolic_residue.cli._common import echo_json, Json
from symbolic_residue.errors import RunExistsError

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(help="A kept graph's folder.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; default neuronpedia.json in the folder.", show_default=False),
    ] = None,
    slug: Annotated[str | None, typer.Option("--slug", help="Its name in a web address.", show_default=False)] = None,
    scan: Annotated[str | None, typer.Option("--scan", help="The model's name on the site.", show_default=False)] = None,
    node_threshold: Annotated[float, typer.Option("--node-threshold", help="Share of influence that the kept nodes hold.")] = 0.8,
    edge_threshold: Annotated[float, typer.Option("--edge-threshold", help="The same of edges.")] = 0.98,
    supernodes: Annotated[
        bool, typer.Option("--supernodes/--no-supernodes", help="Group neurons that are fed and read alike.")
    ] = True,
    json: Json = False,
) -> None:
    """Write a kept graph, pruned, as Neuronpedia's graph JSON, with the heads and labelled groups that were kept with it (groups: at the same thresholds)."""
    from symbolic_residue.graph import load_graph, load_heads, load_supernodes, write_neuronpedia

    path = output or run / "neuronpedia.json"
    if path.exists():
        raise RunExistsError(f"{path} exists already.", todo="Name another --output.")
    graph = load_graph(run)
    kept: dict[str, Any] = {"node_threshold": node_threshold, "edge_threshold": edge_threshold}
    groups = load_supernodes(graph, run) if supernodes else None
    if supernodes and (groups is None or (groups.node_threshold, groups.edge_threshold) != (node_threshold, edge_threshold)):
        groups = graph.supernodes(**kept)
    data = graph.to_neuronpedia(slug=slug, scan=scan, supernodes=groups or [], heads=load_heads(graph, run), **kept)
    write_neuronpedia(data, path)
    said = {"file": str(path), "nodes": len(data["nodes"]), "links": len(data["links"]), "slug": data["metadata"]["slug"]}
    if json:
        echo_json(said)
        return
    typer.echo(f"{said['nodes']} nodes and {said['links']} links, {said['slug']}: {path}")
