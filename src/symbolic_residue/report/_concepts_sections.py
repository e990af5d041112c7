"""Sections of the page of a concepts run, as plain values: facts, similarity of the directions, concentration of the heads, skipped layers."""

from __future__ import annotations

from typing import Any

from symbolic_residue.figures import diverging_colour, number
from symbolic_residue.report._concepts_answer import p_text
from symbolic_residue.report._concepts_load import ConceptsRun
from symbolic_residue.report._contrast_load import grid

__all__ = ["concentration_table", "facts", "head_notes", "similarity"]

MOST_CELLS = 40_000
"""Cells of all similarity maps together; a run of more shows every second, third … layer, and says so."""
_LIMIT = 0.5


def facts(run: ConceptsRun) -> list[tuple[str, str]]:
    """What was measured, and how, as (name, value)."""
    q = run.quality
    model = q["model"]
    texts = sum(one["concept"] in q["concepts"] for one in run.texts)
    n = sorted({one["n_scenarios"] for one in q["concepts"].values()})
    return [
        ("model", f"{model['model']}, {model['n_layers']} layers, d_model {model['hidden_size']}, {model['dtype']}"),
        ("weights", _short(model["weights_sha256"]) + (f", adapter {_short(model['adapter_sha256'])}" if model.get("adapter_sha256") else "")),
        ("corpus", f"{len(q['concepts'])} concepts, {n[0] if n[0] == n[-1] else f'{n[0]} to {n[-1]}'} scenarios each"
         + (f", {texts} tellings under a concept" if texts else "") + f"; sha256 {_short(q.get('corpus_sha256'))}"),
        ("pooling", str(q["pooling"]) + (f", m = {q['m']}" if q.get("m") else "")),
        ("directions", f"estimator {q['estimator']}, against {_AGAINST.get(q['against'], q['against'])}"),
        ("nulls", f"{q['n_draws']:,d} permutations of labels within scenarios; {q.get('n_draws_small', '—')} draws of the others; seed {q['seed']}"),
    ]  # fmt: skip


_AGAINST = {"baseline": "the neutral tellings", "others": "the other concepts", "all": "neutral tellings and other concepts"}


def _short(sha: Any) -> str:
    return f"{str(sha)[:16]}…" if sha else "not recorded"


def similarity(run: ConceptsRun) -> dict[str, Any]:
    """The maps of cosines, one a layer: ``layers`` (chosen first one open), ``names`` in families, ``families``, ``left_out``."""
    order = sorted(range(len(run.concepts)), key=lambda i: _family_rank(run, run.concepts[i]))
    names = [run.concepts[i] for i in order]
    families: list[tuple[str, int]] = []
    for name in names:
        family = run.family(name) or "no family"
        if families and families[-1][0] == family:
            families[-1] = (family, families[-1][1] + 1)
        else:
            families.append((family, 1))
    starts = {sum(count for _, count in families[:k]) for k in range(len(families))}
    step = -(-len(run.layers) * len(names) ** 2 // MOST_CELLS)
    shown = sorted({*run.layers[::step], run.middle})
    maps = []
    for layer in shown:
        block = run.quality["similarity"].get(str(layer))
        if block is None:
            continue
        null = block["null_mean"]
        rows = []
        for a, i in enumerate(order):
            cells = []
            for b, j in enumerate(order):
                value = block["cosines"][i][j]
                stands_out = block["p_layer"] is not None and i != j and block["p_layer"][i][j] <= 0.05
                cells.append(
                    {
                        "text": "" if i == j else f"{value:.2f}".replace("-", "−"),
                        "colour": None if i == j else diverging_colour(value - (null or 0.0), _LIMIT),
                        "stands_out": stands_out, "starts": b in starts and b > 0,
                    }
                )  # fmt: skip
            rows.append({"name": names[a], "starts": a in starts and a > 0, "cells": cells})
        maps.append({"layer": layer, "rows": rows, "said": _cosine_words(run, block, order, names), "open": layer == run.middle})
    return {
        "maps": maps, "names": names, "starts": starts - {0}, "families": families if len(families) > 1 else [], "left_out": len(run.layers) - len(shown),
        "null": any(run.quality["similarity"][str(one["layer"])]["null_mean"] is not None for one in maps),
    }  # fmt: skip


def _family_rank(run: ConceptsRun, concept: str) -> int:
    families = list(run.quality["families"] or {})
    family = run.family(concept)
    return families.index(family) if family is not None else len(families)


def _cosine_words(run: ConceptsRun, block: dict[str, Any], order: list[int], names: list[str]) -> str:
    """Mean cosine within and between families, beside the null, and how many pairs stand out."""
    groups: dict[str, list[float]] = {}
    clear = 0
    for a in range(len(order)):
        for b in range(a):
            one, two = run.family(names[a]), run.family(names[b])
            key = f"within {one}" if one is not None and one == two else "between families" if one and two else "other pairs"
            groups.setdefault(key, []).append(block["cosines"][order[a]][order[b]])
            clear += block["p_layer"] is not None and block["p_layer"][order[a]][order[b]] <= 0.05
    parts = [f"{key} {number(sum(v) / len(v))} ({len(v)} pair{'' if len(v) == 1 else 's'})" for key, v in groups.items()]
    if not parts:
        return "One concept: there are no pairs."
    if len(parts) == 1:
        parts = [parts[0].replace("other pairs", "all pairs")]
    said = f"Mean cosine: {', '.join(parts)}."
    if block["null_mean"] is None:
        return f"{said} No null: permuted labels give one for the difference of means only."
    total = len(order) * (len(order) - 1) // 2
    return (
        f"{said} Under permuted labels {number(block['null_mean'])}, 95 % of pairs in [{number(block['null_low'])}, {number(block['null_high'])}]. "
        f"{clear} of {total} pairs differ from it (p ≤ 0.05 over the layer's pairs)."
    )


def concentration_table(run: ConceptsRun) -> dict[str, Any] | None:
    """A row a concept: in how many layers its heads are fewer than under permuted labels, and the strongest such layer."""
    cells, all_whole = [], True
    for concept, one in run.quality["concepts"].items():
        layers = (one.get("per_head") or {}).get("layers") or {}
        if not layers:
            continue
        small = [i for i in layers if layers[i]["participation_null"]["p"] <= 0.05]
        best = min(layers, key=lambda i: (layers[i]["participation_null"]["p"], int(i)))
        b = layers[best]
        null, top = b["participation_null"], b["concentration_null"]
        whole = b["k"] == b["n_heads"]
        all_whole &= whole
        cells.append(
            [
                concept, f"{len(small)} of {len(layers)}", number(0.05 * len(layers)), best,
                f"{number(b['participation_ratio'])} of {b['n_heads']}", f"{number(null['mean'])} ± {number(null['sd'])}", p_text(null["p"]),
                f"{b['k']} of {b['n_heads']}", "1 by definition" if whole else number(b["head_concentration"]), number(b["uniform"]),
                "—" if whole else f"{number(top['mean'])} ± {number(top['sd'])}", "—" if whole else p_text(top["p"]),
            ]
        )  # fmt: skip
    columns = {"concept": False, "layers with p ≤ 0.05": True, "expected by chance": True, "smallest p in layer": True, "heads taking part": True,
               "under permuted labels": True, "p": True, "k": True, "share of the top k": True, "equal heads": True, "top k under permuted labels": True,
               "p of the share": True}  # fmt: skip
    if all_whole:  # k is every head: the share is 1 whatever the texts
        columns, cells = dict(list(columns.items())[:7]), [row[:7] for row in cells]
    return grid("How concentrated a concept's differences are over the heads of a layer", columns, cells) if cells else None


def head_notes(run: ConceptsRun) -> dict[str, Any]:
    """What the heads do not cover: skipped layers, mixers beside attention, notes; and why concepts have no heads."""
    blocks = {c: one.get("per_head") or {} for c, one in run.quality["concepts"].items()}
    first: dict[str, Any] = next((block for block in blocks.values() if block.get("layers")), {})
    rows = [
        [str(one["layer"]), one["module"], one["reason"], kind]
        for key, kind in (("skipped_layers", "no heads"), ("mixers_beside_attention", "beside the heads"))
        for one in first.get(key, [])
    ]
    columns = {"layer": True, "module": False, "reason": False, "what": False}
    return {
        "notes": first.get("notes", []),
        "skipped": grid("Layers and modules that the heads do not cover", columns, rows) if rows else None,
        "without": [
            (c, block.get("reason") or "Heads were not collected.") for c, block in blocks.items() if not block.get("layers")
        ],
        "n_draws": first.get("n_draws"),
    }
