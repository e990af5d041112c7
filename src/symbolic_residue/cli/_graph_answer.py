"""What ``residue graph`` prints of a graph, its heads and its groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TYPE_CHECKING

import typer

from symbolic_residue.cli._common import echo_json

if TYPE_CHECKING:
    import polars as pl

    from symbolic_residue.graph import Circuit, Graph, GraphHeads, GroupLabel, Hint, Look, Supernodes

__all__ = ["answer", "unit_words"]

_SHOWN = 15
_GROUPS = 8


def answer(
    graph: Graph,
    heads: GraphHeads | None,
    groups: Supernodes | None,
    folder: Path,
    as_json: bool,
    circuit: Circuit | None = None,
) -> None:
    """Print what a graph says, as tables or as JSON."""
    from symbolic_residue.graph import graph_scores

    check, accounted, kept = graph.check(), graph.accounted(), graph.prune()
    nodes, first, first_share = _apart(graph)
    scores, errors = graph_scores(graph), graph.errors()
    if as_json:
        echo_json(
            {
                "folder": str(folder),
                "tokens": list(graph.tokens),
                "targets": [vars(target) for target in graph.targets],
                "nodes": len(graph),
                "dictionary": graph.dictionary or None,
                "scores": vars(scores),
                "rest": errors.to_dicts(),
                "adds_up": {"worst": check.worst, "tolerance": check.tolerance, "rows": len(check.relative)},
                "accounted": accounted.to_dicts(),
                "kept": {"units": int(kept.columns[: len(graph)].sum()), "edges": int(kept.edges.sum())},
                "most_influential": nodes.head(_SHOWN).to_dicts(),
                "first_position": {"units": len(first), "influence": first_share, "most_influential": first.head(3).to_dicts()},
                "heads": None if heads is None else _heads_json(graph, heads),
                "supernodes": None if groups is None else _groups_json(groups),
                "circuit": None if circuit is None else _circuit_json(circuit),
            }
        )
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from symbolic_residue.figures import visible

    console = Console(highlight=False)
    console.print(
        f"{len(graph.tokens)} tokens, {len(graph)} {unit_words(graph)} as nodes, {graph.n_targets} targets ({graph.columns.n_layers} layers)"
    )
    if graph.uncapped:
        console.print("The model soft-caps its logits: those before the cap are explained.")
    share = dict(zip(errors["layer"].to_list(), errors["influence"].to_list(), strict=True))
    for layer in graph.dictionary.get("layers", ()):
        fvu, l0 = (layer[name] for name in ("fvu", "l0"))
        if fvu is not None:
            console.print(
                f"Layer {layer['layer']}: features leave {fvu:.0%} of the MLP's variance over positions unexplained; {l0:.0f} are active a position; "
                f"its rest has {share[layer['layer']]:.1%} of the influence."
            )
    if graph.dictionary:
        console.print(
            f"Replacement score {scores.replacement:.3f}, completeness {scores.completeness:.3f} (as circuit-tracer defines them; 1: no rest, 0: all rest)."
        )
    table = Table(box=None, pad_edge=False, title="what each target is made of (logits)", title_justify="left", title_style="bold")
    kinds = accounted["kind"].unique(maintain_order=True).to_list()
    for name in ("target", "probability", "value", *kinds):
        table.add_column(name, justify="left" if name == "target" else "right", header_style="dim")
    for i, target in enumerate(graph.targets):
        parts = accounted["value"][i * len(kinds) : (i + 1) * len(kinds)].to_list()
        shown = "" if target.probability is None else f"{target.probability:.3f}"
        table.add_row(escape(visible(target.name)), shown, f"{target.value:.3f}", *(f"{part:.3f}" for part in parts))
    console.print(table)
    console.print(
        f"[dim]Every row adds up: at most {check.worst:.1e} of its edges' size is missing (rounding; refused above {check.tolerance:.0e}). "
        f"rest: the {unit_words(graph)} that are no nodes{', and what features leave unexplained' if graph.dictionary else ''}.[/]"
    )
    words = dict(zip(_keys(graph), graph.labels or [()] * len(graph), strict=True))
    table = Table(box=None, pad_edge=False, title=f"most influential {unit_words(graph)}", title_justify="left", title_style="bold")
    for name in ("layer", "unit", "at", "token", "activation", "effect", "influence", "raises"):
        table.add_column(name, justify="left" if name in ("token", "raises") else "right", header_style="dim")
    for row in nodes.head(_SHOWN).iter_rows(named=True):
        label = words[row["layer"], row["position"], row["neuron"]]
        table.add_row(
            str(row["layer"]),
            f"{'f' if row['kind'] == 'feature' else ''}{row['neuron']}",
            str(row["position"]),
            escape(visible(row["token"], spaces="ends")),
            f"{row['activation']:.3g}",
            f"{row['effect']:.3g}",
            f"{row['influence']:.3f}",
            escape(" ".join(visible(word, spaces="ends") for word in label)),
        )
    console.print(table)
    console.print(
        "[dim]effect: total, on the first target (logits). influence: share of absolute edges over all paths. raises: tokens it writes directly (a hint).[/]"
    )
    if len(first):
        console.print(
            f"Listed apart: position 0 ({escape(visible(graph.tokens[0], spaces='ends'))}) has {len(first)} of the {len(graph)} {unit_words(graph)} and "
            f"{first_share:.0%} of their influence. In most models it holds an attention sink, the same for most prompts: a difference of two prompts "
            "(residue graph diff) cancels it."
        )
    if groups is not None and groups.labels:
        told = sum(one.tells for one in groups.about)
        said = f"{len(groups)} groups of neurons fed and read alike"
        said += (
            f"; labels of {told} say more than those of random neurons (of each kind 1 in 20 would by chance):"
            if groups.about
            else ":"
        )
        console.print(escape(said))
        for label in groups.labels[:_GROUPS]:
            console.print(escape(f"  {visible(label)}"))
    if heads is not None:
        for line in _heads_said(graph, heads):
            console.print(escape(line))
    if circuit is not None:
        console.print(escape(circuit.said()))
    console.print(
        f"80 % of influence: {int(kept.columns[: len(graph)].sum())} {unit_words(graph)}, {int(kept.edges.sum())} edges. Kept in {escape(str(folder))}"
    )
    if (folder / "report.html").exists():
        typer.echo(f"report: {folder / 'report.html'}")


def _circuit_json(circuit: Circuit) -> dict[str, Any]:
    names = ("corrupted", "clean_difference", "corrupted_difference", "none_kept", "in_play", "kept", "reason")
    own = circuit.recovered()
    said = {name: getattr(circuit, name) for name in names}
    return said | {
        "recovered": own[0] if own else None,
        "random": circuit.recovered("random"),
        "pairs": 1,
        "chosen_on_this_pair": True,
    }


def _groups_json(groups: Supernodes) -> dict[str, Any]:
    def plain(hint: Hint) -> dict[str, Any]:
        values = [None if value != value else value for value in (hint.value, *hint.control)]
        return {"tokens": list(hint.tokens), "n": hint.n, "tells": hint.tells} | dict(
            zip(("value", "control_mean", "control_most"), values, strict=True)
        )

    def said(one: GroupLabel) -> dict[str, Any]:
        hints = {name: getattr(one, name) for name in ("fires", "acts", "writes")}
        return {name: None if hint is None else plain(hint) for name, hint in hints.items()}

    rows = [{"label": label, "units": len(members)} for label, members in zip(groups.labels, groups.members, strict=True)]
    numbers = {"silhouette": groups.silhouette, "control": groups.control}
    return {name: None if value != value else value for name, value in numbers.items()} | {
        "groups": [row | said(one) for row, one in zip(rows, groups.about, strict=True)] if groups.about else rows
    }


def _apart(graph: Graph) -> tuple[pl.DataFrame, pl.DataFrame, float]:
    """The units by influence, those of the first position apart (none where there is no other), and the share of all units' influence that those have."""
    nodes = graph.nodes()
    at_first = nodes["position"] == 0
    if len(graph.tokens) == 1:
        at_first = at_first & False
    first, total = nodes.filter(at_first), float(nodes["influence"].sum())
    return nodes.filter(~at_first), first, float(first["influence"].sum()) / total if total else 0.0


def _heads_json(graph: Graph, heads: GraphHeads) -> dict[str, Any]:
    return {
        "edges": len(heads),
        "influence": heads.share,
        "refused": heads.refused,
        "looks": [
            {name: getattr(look, name) for name in ("layer", "head", "query", "key", "score", "weight", "others", "carries")}
            | {"query_token": graph.tokens[look.query], "key_token": graph.tokens[look.key]}
            for look in heads.looks
        ],
    }


def _heads_said(graph: Graph, heads: GraphHeads) -> list[str]:
    """Which heads carry most, in words."""
    from symbolic_residue.figures import visible

    said = [f"{len(heads)} edges, {heads.share:.0%} of the influence of all kept ones, are split over heads in heads.safetensors."]
    if heads.refused:
        said.append(f"No head's score is split: {heads.refused}")
    return said + [_look_said(look, graph, visible) for look in heads.looks]


def _look_said(look: Look, graph: Graph, visible: Any) -> str:
    names = graph.column_names()
    at, there = (f"{visible(graph.tokens[t], spaces='ends')} @{t}" for t in (look.query, look.key))
    of_key = ", ".join(f"{names[c]} {term:+.2f}" for c, term in look.of_key[:3])
    beside = "" if look.others is None else f" (at other keys {look.others:.2f} on average)"
    return (
        f"Head {look.layer}.{look.head} at {at} looks at {there} (weight {look.weight:.2f}) and carries {look.carries:.1%} of their influence from there. "
        f"Its score {look.score:.2f}{beside}, by what stands at the key: {of_key}, all others {look.score - sum(t for _, t in look.of_key[:3]):+.2f}."
    )


def unit_words(graph: Graph) -> str:
    """What a graph's units are called."""
    layers = len(graph.feature_layers)
    return "neurons" if not layers else "features" if layers == graph.columns.n_layers else "features and neurons"


def _keys(graph: Graph) -> list[tuple[int, int, int]]:
    units = graph.units
    return list(zip(units.layer.tolist(), units.position.tolist(), units.neuron.tolist(), strict=True))
