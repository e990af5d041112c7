"""Which ranking of neurons is most faithful? Curves of the packaged counterfactual pairs on the demo model, and how well edges predict interventions.

1. Pairs are cut in halves by the SHA-256 of their id. Everything that was chosen (the points of ``mixed``, the default ranking) was chosen on some pairs of the even
   half; what is reported is the odd half, with all scores. The even half is run with a few scores, for comparison.
2. Each pair's summary is appended to ``--records`` as soon as it is there, and a pair that stands there is not run again.
3. Interventions: on ``PROMPTS`` pairs of the odd half, a graph of 300 neurons of the clean prompt for its logit difference; its 12 most influential neurons and 12
   spread evenly over the others are ablated one at a time. One row a pair, appended to the same file.
4. ``--write`` puts the table into RESULTS.md.

Run: python benchmarks/graph_faithfulness.py [--records FILE] [--write]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import polars as pl
import torch
from _common import machine, write_section

from symbolic_residue import open_model
from symbolic_residue.graph import (
    attribute_prompt,
    Change,
    compare_scores,
    faithfulness,
    Hold,
    intervene,
    intervention_agreement,
    PairScores,
    run_pair,
    SCORES,
    token_pair,
)
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import counterfactual_pairs
from symbolic_residue.stats import bootstrap_mean

POINTS, DRAWS, STEPS, SEED = 24, 2, 5, 0
PROMPTS = 30
HOLDS: tuple[Hold, ...] = ("nothing", "attention", "all")
EVEN_SCORES = ("mixed", "eap-ig", "relp", "magnitude", "random")
NAMES = {
    "mixed": "mixed runs, 2 points",
    "eap-ig": "EAP-IG, 5 steps",
    "ig gauss": "EAP-IG, 2 Gauss points",
    "relp": "RelP, rule half",
    "relp ends": "RelP, mean of both ends",
    "direct": "direct effect",
    "atp": "AtP (gradient at clean)",
    "magnitude": "change × decoder norm",
    "random": f"random, {DRAWS} draws",
}
COST = {"mixed": 2, "eap-ig": 5, "ig gauss": 2, "relp": 1, "relp ends": 2, "direct": 1, "atp": 1, "magnitude": 0, "random": 0}


def odd(name: str) -> bool:
    """Whether a pair is in the half that is reported."""
    return bool(hashlib.sha256(name.encode()).digest()[-1] % 2)


def run(records: Path) -> None:
    """Every pair that is not there yet, the reported half first."""
    done = {row["pair"] for row in read(records)}
    todo = sorted(
        (p for p in counterfactual_pairs() if p.id not in done),
        key=lambda p: (not odd(p.id), hashlib.sha256(p.id.encode()).digest()),
    )
    instrument = Instrument(open_model("demo"))
    for number, pair in enumerate(todo):
        start = time.process_time()
        found = faithfulness(
            instrument, pair, scores=SCORES if odd(pair.id) else EVEN_SCORES, points=POINTS, draws=DRAWS, steps=STEPS, seed=SEED
        )
        record: dict[str, Any] = {
            "pair": pair.id,
            "seconds": time.process_time() - start,
            "tokens": len(found.pair.clean.ids),
            "ends": [found.clean, found.corrupted, found.none_kept],
            "summary": found.summary().to_dicts(),
        }
        with records.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{number + 1}/{len(todo)} {pair.id} {record['seconds']:.1f} s", flush=True)


def run_interventions(records: Path) -> None:
    """The first pairs of the reported half."""
    done = {row["intervened"] for row in lines(records) if "intervened" in row}
    chosen = sorted((p for p in counterfactual_pairs() if odd(p.id)), key=lambda p: hashlib.sha256(p.id.encode()).digest())[
        :PROMPTS
    ]
    instrument = Instrument(open_model("demo"))
    for pair in chosen:
        if pair.id in done:
            continue
        tokens = token_pair(instrument, pair)
        graph = attribute_prompt(instrument, tokens.clean, targets=[(tokens.answer, tokens.wrong)], max_nodes=300)
        nodes = graph.nodes().select("layer", "position", "neuron").rows()
        sets = [[Change(*node)] for node in (*nodes[:12], *nodes[12::24])]
        asked = {"answer": tokens.answer, "wrong": tokens.wrong}
        frames = {hold: intervene(instrument, graph, sets, hold=hold, **asked).to_dicts() for hold in HOLDS}
        held = graph.faithfulness(instrument, tokens, points=4, draws=DRAWS).curves
        last = held.filter(pl.col("n") == held["n"].max())
        own = {score: last.filter(pl.col("score") == score)["recovered"].to_list() for score in ("graph", "random")}
        units = PairScores(run_pair(instrument, tokens)).top("mixed", last["n"][0])
        of_pair = attribute_prompt(instrument, tokens.clean, targets=[(tokens.answer, tokens.wrong)], nodes=units)
        kept = of_pair.faithfulness(instrument, tokens, points=4, draws=1).curves.filter(pl.col("score") == "graph")
        own["mixed"] = [kept["recovered"][-1]]
        with records.open("a") as file:
            file.write(json.dumps({"intervened": pair.id, "frames": frames, "own": own, "n": last["n"][0]}) + "\n")
        print(f"interventions {pair.id}", flush=True)


def read(records: Path) -> list[dict[str, Any]]:
    """The pairs that stand there."""
    return [row for row in lines(records) if "pair" in row]


def lines(records: Path) -> list[dict[str, Any]]:
    """All that stands there."""
    return [json.loads(line) for line in records.read_text().splitlines()] if records.exists() else []


def interval(row: dict[str, Any], digits: int, *names: str) -> str:
    """Mean or difference with its interval."""
    mean, low, high = (row[name] for name in names)
    sign = "+" if names[0] == "difference" else ""
    return f"{mean:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def table(summaries: pl.DataFrame) -> list[str]:
    """One row a score over all categories."""
    found = compare_scores(summaries, seed=SEED)
    framed = compare_scores(summaries, by="frame", seed=SEED)
    lines = [
        "| ranking | passes down | area | area − EAP-IG(5), pairs resampled | the same, frames resampled | miss | N80 | N90 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    of_all = found.filter(pl.col("category") == "all")
    order = of_all.filter(pl.col("measure") == "area").sort("mean", descending=True)["score"]
    for score in order:
        mine = {row["measure"]: row for row in of_all.filter(pl.col("score") == score).iter_rows(named=True)}
        frames = framed.filter((pl.col("category") == "all") & (pl.col("score") == score) & (pl.col("measure") == "area")).row(
            0, named=True
        )
        apart = ("difference", "difference_low", "difference_high")
        reference = score == "eap-ig"
        cells = [
            NAMES[score],
            str(COST[score]),
            interval(mine["area"], 3, "mean", "low", "high"),
            "–" if reference else interval(mine["area"], 3, *apart),
            "–" if reference else interval(frames, 3, *apart),
            interval(mine["miss"], 2, "mean", "low", "high"),
            interval(mine["n80"], 0, "mean", "low", "high"),
            interval(mine["n90"], 0, "mean", "low", "high"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def by_category(summaries: pl.DataFrame) -> list[str]:
    """Area and N80 of a few scores, and the paired difference, one row a category."""
    found = compare_scores(summaries, seed=SEED)
    lines = [
        "| category | pairs | area: mixed | EAP-IG(5) | RelP half | random | mixed − EAP-IG(5) | N80: mixed | EAP-IG(5) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for category in found["category"].unique(maintain_order=True):
        part = found.filter(pl.col("category") == category)

        def one(score: str, measure: str, part: pl.DataFrame = part) -> dict[str, Any]:
            return part.filter((pl.col("score") == score) & (pl.col("measure") == measure)).row(0, named=True)

        areas = [interval(one(s, "area"), 2, "mean", "low", "high") for s in ("mixed", "eap-ig", "relp", "random")]
        few = [interval(one(s, "n80"), 0, "mean", "low", "high") for s in ("mixed", "eap-ig")]
        apart = interval(one("mixed", "area"), 3, "difference", "difference_low", "difference_high")
        lines.append("| " + " | ".join([category, str(one("mixed", "area")["n"]), *areas, apart, *few]) + " |")
    return lines


def section(records: Path) -> str:
    """The text for RESULTS.md."""
    rows = read(records)
    everything = pl.concat(
        [pl.DataFrame(row["summary"], schema_overrides={"reason": pl.String}, infer_schema_length=None) for row in rows],
        how="vertical_relaxed",
    )
    halves = {half: everything.filter(pl.col("pair").map_elements(odd, return_dtype=pl.Boolean) == half) for half in (True, False)}
    out = ["## Faithfulness of rankings of neurons (`graph_faithfulness.py`)", "", machine(torch.get_num_threads()), ""]
    for half, title in ((True, "The half that nothing was chosen on"), (False, "The other half")):
        part = halves[half]
        if part.is_empty():
            continue
        mine = [row for row in rows if odd(row["pair"]) == half]
        left = sorted({(r["pair"], r["reason"]) for r in part.filter(pl.col("reason").is_not_null()).iter_rows(named=True)})
        n = part["pair"].n_unique()
        seconds = sum(row["seconds"] for row in mine)
        out += [
            f"{title}: {n} of its {sum(odd(p.id) == half for p in counterfactual_pairs())} pairs, the first by hash, of which {len(left)} have nothing to recover{': ' + '; '.join(f'{p} ({why})' for p, why in left) if left else ''}. "
            f"{min(r['tokens'] for r in mine)} to {max(r['tokens'] for r in mine)} tokens, {int(part['in_play'].min())} to {int(part['in_play'].max())} neurons in play "  # type: ignore[arg-type]
            f"(median {int(part['in_play'].median())}); {seconds:.0f} s of processor time, {seconds / n:.1f} s a pair with {part['score'].n_unique()} scores.",  # type: ignore[arg-type]
            "",
            *table(part),
            "",
        ]
        if half:
            out += [*by_category(part), ""]
    return "\n".join([*out, *interventions(lines(records))])


def interventions(rows: list[dict[str, Any]]) -> list[str]:
    """Agreement of predictions with what was observed, and what a graph's own units bring back."""
    mine = [row for row in rows if "intervened" in row]
    if not mine:
        return []
    out = [
        f"Interventions: {len(mine)} clean prompts of that half, single neurons of a graph of 300 ablated one at a time. Means over prompts; in round brackets the same "
        "with the predictions shuffled inside each prompt.",
        "",
        "| held | prediction | correlation | same sign | error | prompts | interventions |",
        "|---|---|---|---|---|---|---|",
    ]
    for hold in HOLDS:
        found = intervention_agreement([pl.DataFrame(row["frames"][hold]) for row in mine], seed=SEED)
        for prediction in ("direct", "paths"):
            part = {row["measure"]: row for row in found.filter(pl.col("prediction") == prediction).iter_rows(named=True)}
            cells = [
                f"{interval(part[m], 2, 'mean', 'low', 'high')} ({part[m]['shuffled']:.2f})"
                for m in ("correlation", "sign", "error")
            ]
            one = part["sign"]
            out.append("| " + " | ".join([hold, prediction, *cells, str(one["n"]), str(one["interventions"])]) + " |")
    own = {
        s: [sum(row["own"][s]) / len(row["own"][s]) for row in mine if None not in row["own"][s]]
        for s in ("graph", "mixed", "random")
    }
    means = {s: bootstrap_mean(values, seed=SEED) for s, values in own.items()}
    said = {s: f"{m.value:.2f} [{m.low:.2f}, {m.high:.2f}]" for s, m in means.items()}
    counts = sorted(row["n"] for row in mine)
    return [
        *out,
        "",
        f"The graphs' own neurons in play ({counts[0]} to {counts[-1]}, median {counts[len(counts) // 2]}), kept together, recover {said['graph']} of the difference; as many "
        f"of a graph whose neurons ``mixed`` chose {said['mixed']}; as many drawn at random {said['random']} (n = {means['graph'].n} pairs).",
        "",
    ]


def main() -> None:
    """Run what is missing, print the section, and write it where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--records", type=Path, default=Path("graph_faithfulness.jsonl"))
    parser.add_argument("--only-table", action="store_true", help="run nothing")
    parser.add_argument("--write", action="store_true", help="put the section into RESULTS.md")
    asked = parser.parse_args()
    if not asked.only_table:
        run(asked.records)
        run_interventions(asked.records)
    text = section(asked.records)
    print(text)
    if asked.write:
        write_section(text)


if __name__ == "__main__":
    main()
