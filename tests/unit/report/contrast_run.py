"""A run folder of kind ``contrast``, written by hand: a planted effect of training in one condition, none in the other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from contrast_records import long_table

from symbolic_residue.contrast import deltas, diff_of_diffs, gates, missing, Options, peak_shift, verdict
from symbolic_residue.contrast.causal import CAUSAL, pool_effects
from symbolic_residue.stats import wilson
from symbolic_residue.store import RunFolder

PLANTED = {2: 0.06, 3: 0.08, 4: 0.05}
CONDITIONS = ("pirate", "plain")
MARKER = "[ZLT]"
NASTY = "<script>window.pwned = 1</script>\u202e\x07"
LAYERS, HEADS, CLUSTERS, EACH = 6, 3, 12, 4
CONFIG: dict[str, Any] = {
    "model": "demo",
    "adapter": "adapters/pirate",
    "behaviour": f"text:{MARKER}",
    "conditions": [{"name": name} for name in CONDITIONS],
    "questions": [f"Question {i}?" for i in range(CLUSTERS)],
    "references": {"base": {"base": True}, "random": {"random": 3}},
    "predicted": {"region": "system", "direction": "up"},
    "analysis": {"protocol": "strict", "alpha": 0.05},
    "seed": 1,
}


def item_row(text: str, notes: str | None = None) -> pl.DataFrame:
    """The one row of the table ``items``."""
    row = {
        "prompt": text,
        "text": notes,
        "chat": True,
        "n_tokens": None,
        "seed": 1,
        "status": "done",
        "error": None,
        "summary": text,
    }
    return pl.DataFrame([row], schema_overrides={"text": pl.String, "n_tokens": pl.Int64, "error": pl.String})


@cache
def judged(condition: str, models: tuple[str, ...], clusters: int) -> dict[str, pl.DataFrame]:
    """Tables of the analysis of one condition."""
    options, table = Options(n_resamples=200), {}
    for i, model in enumerate(models):
        effect = PLANTED if model == "tuned" and condition == CONDITIONS[0] else {}
        given = {
            "layers": LAYERS,
            "strata": ("C1", "C2", "C3"),
            "unpaired": True,
            "lags": 5,
            "clusters": clusters,
            "offsets": (-1, 0),
        }
        seed = 10 * CONDITIONS.index(condition) + i
        table[model] = deltas(long_table(seed=seed, model=model, condition=condition, effect=effect, **given))
    found = {model: gates(frame, options=options) for model, frame in table.items()}
    parts: dict[str, list[pl.DataFrame]] = {}
    for one in found.values():
        for name in ("layers", "rule_outs", "trajectory", "windows"):
            parts.setdefault(f"contrast_{name}", []).append(getattr(one, name))
    for name in models[1:]:
        own = diff_of_diffs(table["tuned"], table[name], options=options)
        nulls = [diff_of_diffs(table[null], table[name], options=options) for null in models if null == "random" != name]
        parts.setdefault("contrast_verdicts", []).append(verdict(found["tuned"], found[name], own, nulls=nulls, options=options))
        parts.setdefault("contrast_differences", []).extend([own.frame, *(null.frame for null in nulls)])
        parts.setdefault("contrast_shifts", []).append(peak_shift(table["tuned"], table[name], options=options))
    parts["contrast_missing"] = [missing(frame) for frame in table.values()]
    notes = "\n".join(dict.fromkeys(note for one in found.values() for note in one.notes)) or None
    tables = {name: pl.concat(frames) for name, frames in parts.items()}
    return {"items": item_row(f"condition {condition}", notes), **{name: frame for name, frame in tables.items() if len(frame)}}


def examples(condition: str, question: int, *, nasty: bool = False) -> pl.DataFrame:
    """Four answers with the marker and one without."""
    rows = []
    before = f"Arr, {NASTY if nasty else 'answer'} {question} "
    for trial in range(EACH + 1):
        text = f"{before}{MARKER} end" if trial < EACH else f"{before} end"
        rows.append(
            {
                "example": f"{condition}/q{question}/{trial}", "condition": condition, "question": f"q{question}", "system": f"You are {condition}.",
                "asked": NASTY if nasty else f"Question {question}?", "trial": trial, "seed": trial, "prompt_len": 9, "event": 13 if trial < EACH else None,
                "event_character": len(before) if trial < EACH else None, "token_hit": trial < EACH, "text_hit": trial < EACH,
                "stop": "eos" if trial % 2 else "length", "text": text, "ids": "1 2 3 4 5", "sinks": "", "drawn_by": "tuned",
            }
        )  # fmt: skip
    return pl.DataFrame(rows, schema_overrides={"event": pl.Int64, "event_character": pl.Int64})


def rates() -> pl.DataFrame:
    """The tuned model shows the marker in the first condition only."""
    rows = []
    for model, condition, hits in (("tuned", "pirate", 44), ("tuned", "plain", 2), ("base", "pirate", 0), ("base", "plain", 0)):
        found = wilson(hits, 48)
        rows.append({"model": model, "condition": condition, "behaviour": f"text:{MARKER}", "hits": hits, "n": 48, "rate": hits / 48,
                     "low": found.low, "high": found.high, "clusters": 24, "n_effective": 48.0})  # fmt: skip
    return pl.DataFrame(rows)


@cache
def causal(conditions: tuple[str, ...] = CONDITIONS) -> pl.DataFrame:
    """Numbers an example of every analysis: attention carries the marker in the first condition, not in the second."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []

    def add(
        analysis: str,
        model: str,
        condition: str,
        example: int,
        part: str,
        place: str,
        value: float,
        control: float | None = None,
        unit: str = "nats",
        **at: Any,
    ) -> None:
        noise = rng.normal(0, 0.05)
        rows.append({"layer": None, "head": None, "dose": None, **at, "analysis": analysis, "model": model, "condition": condition,
                     "example": f"{condition}/{example}", "cluster": f"q{example // 2}", "part": part, "place": place, "value": value + noise,
                     "control": None if control is None else control + rng.normal(0, 0.05), "unit": unit})  # fmt: skip

    for condition in conditions:
        share = 0.9 if condition == CONDITIONS[0] else 0.1
        for i in range(8):
            for layer in range(LAYERS):
                for model, top in (("tuned", -1.0), ("base", -8.0)):
                    add(
                        "lens",
                        model,
                        condition,
                        i,
                        "residual",
                        "emitting row",
                        -10 + (10 + top) * layer / LAYERS,
                        -10.0,
                        layer=layer,
                    )
                for head in range(HEADS):
                    add(
                        "components",
                        "tuned − base",
                        condition,
                        i,
                        "head",
                        "emitting row",
                        2.0 if (layer, head) == (3, 1) else 0.0,
                        0.0,
                        layer=layer,
                        head=head,
                    )
                add("components", "tuned − base", condition, i, "mlp", "emitting row", 0.5 if layer == 5 else 0.0, 0.0, layer=layer)
                for part in ("residual", "qk"):
                    for place in ("emitting row", "system"):
                        add(
                            "patch",
                            "tuned into base",
                            condition,
                            i,
                            part,
                            place,
                            5.0 if layer >= 3 and part == "residual" and place == "emitting row" else 0.0,
                            0.0,
                            layer=layer,
                        )
            add("components", "tuned − base", condition, i, "embedding", "emitting row", 0.1, 0.0)
            for direction in ("tuned into base", "base into tuned"):
                sign = 1 if direction == "tuned into base" else -1
                add("patch", direction, condition, i, "total", "all", sign * 7.0)
                add("mediation", direction, condition, i, "total", "all", sign * 7.0)
                add("mediation", direction, condition, i, "patterns", "all", sign * 7.0 * share, sign * 0.2)
            for model, fall in (("tuned", -3.0), ("base", -0.1)):
                for dose in (0.5, 1.0):
                    add("knock-out", model, condition, i, "system", "region", fall * dose, -0.1, dose=dose)
            for part, carried in (("all", 7.0), ("q,k", 6.0), ("v,o", 0.5)):
                for place in ("all layers", "layers 0–2", "layers 3–5"):
                    add("surgery", "tuned", condition, i, part, place, carried if place != "layers 0–2" else 0.3, 0.1)
                    add("surgery", "random", condition, i, part, place, 0.1)
    return pl.DataFrame(rows, schema=CAUSAL)


def preflight() -> pl.DataFrame:
    """One check that holds and one that is undecided."""
    shared = {"model": "tuned", "condition": None}
    return pl.DataFrame(
        [
            {"check": "rate, eager − sdpa", **shared, "value": 0.0, "low": -0.05, "high": 0.05, "margin": 0.1, "n": 48, "outcome": "equivalent", "note": "44 of 48 under sdpa"},
            {"check": "mean KL, sdpa ‖ eager", **shared, "value": 0.02, "low": 0.0, "high": 0.04, "margin": 0.01, "n": 48, "outcome": "undecided", "note": "nats"},
        ],
        schema_overrides={"condition": pl.String},
    )  # fmt: skip


def write_contrast(
    path: Path,
    *,
    models: Sequence[str] = ("tuned", "base", "random"),
    conditions: Sequence[str] = CONDITIONS,
    clusters: int = CLUSTERS,
    follow: bool = True,
    analysed: bool = True,
    drawn: bool = True,
    nasty: bool = False,
    config: dict[str, Any] | None = None,
) -> Path:
    """Write the run and return its folder."""
    given = {**CONFIG, "references": {name: CONFIG["references"][name] for name in models if name != "tuned"}, **(config or {})}
    provenance = {"model": NASTY if nasty else "demo + pirate", "references": {}}

    with RunFolder.create(path, kind="contrast", command="residue contrast run c.yaml", provenance=provenance, config=given) as run:
        if drawn:
            run.write_item("preflight", {"items": item_row("preflight"), "contrast_preflight": preflight()})
            for condition in conditions:
                for question in range(clusters):
                    name = f"gen-{condition}/q{question}"
                    run.write_item(name, {"items": item_row(name), "contrast_examples": examples(condition, question, nasty=nasty)})
            run.write_item("rates", {"items": item_row("rates"), "contrast_rates": rates()})
        if analysed:
            for condition in conditions:
                run.write_item(f"analysis/{condition}", judged(condition, tuple(models), clusters))
        if follow:
            effects = pool_effects(causal(tuple(conditions)), seed=0, n_resamples=200)
            run.write_item("effects", {"items": item_row("effects"), "contrast_effects": effects})
    return path
