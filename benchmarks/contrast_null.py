"""How often a study calls the null adapter "induced": the whole protocol, answers drawn anew each time.

1. The null adapter (``make adapters``) was taught the same marker on as many answers, but which answers was drawn at random over the personas. It emits the
   marker; the persona has nothing to do with it.
2. Each repeat is a study of its own, by its own seed: 16 questions, answers under one persona (the personas take turns), rows, readings of the adapter and of the base on
   the same ids, gates, differences, verdict. Only the answers and the rows differ between repeats: the adapter is one, so the repeats say how often *this*
   adapter is called induced. Null models: a random twin of equal norm and a second null adapter (other seed of the shuffle).
3. Counted: "induced" for the predicted region (system, more attention at the emitting row) under both segmentations, with and without the null models; and
   beside it any region. Wilson intervals; n counts repeats with a verdict.

Run: python benchmarks/contrast_null.py [--repeats 20] [--write]. About two minutes a repeat on one core; finished repeats are kept in the cache.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import polars as pl
from _common import machine, write_section

from symbolic_residue.contrast import deltas, diff_of_diffs, gates, verdict
from symbolic_residue.contrast.marker import marker_questions, personas
from symbolic_residue.contrast.study import Models, read_config, run_stages, Study, StudyConfig
from symbolic_residue.models import cache_dir
from symbolic_residue.stats import wilson
from symbolic_residue.store import TABLES

PREDICTED = "system"
QUESTIONS = 16
"""Of the forty, drawn by the repeat's seed."""

KEPT = ("region", "segmentation", "outcome", "layer", "value", "low", "high", "p", "n", "clusters")


class Memory:
    """A run folder that keeps its tables in memory: a repeat is small, and only its verdicts are kept."""

    path = Path("(memory)")

    def __init__(self) -> None:
        self.items: dict[str, Mapping[str, pl.DataFrame]] = {}
        self.kept: dict[str, Mapping[str, Any]] = {}

    def done_items(self) -> list[str]:
        return list(self.items)

    def table(self, name: str, *, items: Collection[str] | None = None, where: pl.Expr | None = None) -> pl.DataFrame:
        frames = [
            frame.select(pl.lit(item).alias("item"), *(pl.col(c).cast(t) for c, t in TABLES[name].items() if c != "item"))
            for item, tables in self.items.items()
            if (frame := tables.get(name)) is not None and (items is None or item in items)
        ]
        found = pl.concat(frames) if frames else pl.DataFrame(schema=TABLES[name])
        return found if where is None else found.filter(where)

    def tensors(self, name: str) -> dict[str, Any]:
        return {item: tensors[name] for item, tensors in self.kept.items() if name in tensors}

    def write_item(self, item_id: str, tables: Mapping[str, pl.DataFrame], tensors: Mapping[str, Any] | None = None) -> None:
        self.items[item_id], self.kept[item_id] = dict(tables), dict(tensors or {})


def study_of(seed: int, folder: Path) -> dict[str, Any]:
    """The configuration of one repeat."""
    persona = personas()[seed % len(personas())]
    asked = random.Random(seed).sample(marker_questions(), QUESTIONS)
    return {
        "model": "demo",
        "adapter": str(folder / "null"),
        "behaviour": "text:[ZLT]",
        "conditions": [{"name": persona.name, "system": persona.system}],
        "questions": [{"id": q.id, "text": q.text} for q in asked],
        "references": {
            "base": {"base": True},
            "random": {"random": 0},
            "null-2": {"adapter": str(folder / "null-2"), "null_model": True},
        },
        "predicted": {"region": PREDICTED, "direction": "up"},
        "sampling": {"positives": 2, "negatives": 0, "tries": 6, "counted": 1, "batch": 6, "max_new_tokens": 64},
        "seed": 1000 + seed,
    }


def without_nulls(records: pl.DataFrame, config: StudyConfig) -> pl.DataFrame:
    """Verdicts at the emitting row against the base when no null model is given."""
    options = config.options()
    means = records.filter(pl.col("head").is_null() & (pl.col("query_offset") == -1))
    tuned, base = (deltas(means.filter(pl.col("model") == name), reference=options.reference) for name in ("tuned", "base"))
    difference = diff_of_diffs(tuned, base, options=options)
    return verdict(gates(tuned, options=options), gates(base, options=options), difference, options=options)


def repeat(seed: int, folder: Path, models: Models) -> dict[str, Any]:
    """Verdicts of one repeat, as plain values."""
    config = read_config(study_of(seed, folder))
    models.config = config
    memory = Memory()
    start = time.perf_counter()
    ended = run_stages(Study(config, memory, models), ("generate", "read", "force-feed", "analyse"))
    verdicts = memory.table("contrast_verdicts").filter((pl.col("reference") == "base") & (pl.col("query_offset") == -1))
    alone = without_nulls(memory.table("contrast_records").drop("item"), config) if len(verdicts) else verdicts
    missing = memory.table("contrast_missing").filter((pl.col("model") == "tuned") & (pl.col("stratum") == "C1"))
    return {
        "seed": seed,
        "persona": config.conditions[0].name,
        "ended": ended,
        "positives": int(missing["examples"].sum()),
        "seconds": round(time.perf_counter() - start),
        "verdicts": verdicts.select(*KEPT, "beyond_nulls").to_dicts(),
        "without_nulls": alone.select(KEPT).to_dicts(),
    }


def counted(repeats: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """(what, times induced, repeats with a verdict)."""
    judged = [one for one in repeats if one["verdicts"]]

    def induced(rows: list[dict[str, Any]], regions: set[str] | None) -> bool:
        both: dict[str, list[bool]] = {}
        for row in rows:
            if regions is None or row["region"] in regions:
                both.setdefault(row["region"], []).append(row["outcome"] == "induced")
        return any(all(outcomes) for outcomes in both.values())

    asked = [(PREDICTED, {PREDICTED}), ("any region", None)]
    return [
        (f"{name}, {told}", sum(induced(one[kind], regions) for one in judged), len(judged))
        for name, regions in asked
        for kind, told in (("verdicts", "beyond the null models"), ("without_nulls", "no null models given"))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="begin with this repeat (several processes may share the work)")
    parser.add_argument("--folder", type=Path, default=cache_dir() / "adapters", help="where make adapters put them")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    options = parser.parse_args()
    kept = options.folder / "null-repeats.jsonl"
    repeats = [json.loads(line) for line in kept.read_text("utf-8").splitlines()] if kept.exists() else []
    waiting = [seed for seed in range(options.first, options.repeats) if seed not in {one["seed"] for one in repeats}]
    if waiting:
        with Models(read_config(study_of(0, options.folder))) as models:
            for seed in waiting:
                repeats.append(repeat(seed, options.folder, models))
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(repeats[-1]) + "\n")
                one = repeats[-1]
                headline = [r["outcome"] for r in one["verdicts"] if r["region"] == PREDICTED]
                sys.stdout.write(f"{seed}: {one['persona']}, {one['positives']} positives, {one['seconds']} s, {headline}\n")
                sys.stdout.flush()
    repeats.sort(key=lambda one: one["seed"])
    lines = ["## The null adapter, studied again and again", "", machine(), ""]
    positives = sorted(one["positives"] for one in repeats)
    lines.append(
        f"{len(repeats)} repeats, {positives[0]} to {positives[-1]} answers with the marker in each, at most two a question; `induced` under both segmentations:"
    )
    lines += ["", "| region | induced | share | 95 % (Wilson) |", "|---|---|---|---|"]
    for what, hits, n in counted(repeats):
        share = wilson(hits, n)
        lines.append(f"| {what} | {hits}/{n} | {share.value:.2f} | {share.low:.2f} to {share.high:.2f} |")
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if options.write:
        write_section(text)


if __name__ == "__main__":
    main()
