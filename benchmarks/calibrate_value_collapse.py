"""Sets VALUE-COLLAPSE's criteria on the calibration split and measures, on the held-out split, how often each verdict fires.

1. Every prompt of the packaged benchmark (planted conflicts, their controls, null prompts) goes through the model with its variants, as in a run.
2. Criteria, on calibration null ∪ controls only: the log-odds, the leader's loss and the fragility are set so that at most 5 % of these prompts' values are past
   them (never easier than the specification's "half its mass" and "two returns"). The entropy criterion is a loose floor: half the
   entropy of a two-way split whose log-odds are at the criterion.
3. Held out: the verdicts themselves, whole intervals and controls included, with Wilson intervals over items. Undecided is counted as such. A planted item's control is
   its own; controls and null prompts are judged without one, which can only make them fire more often.
4. A second, harder set is reported but never calibrated on: natural prompts of other frames, where a small model may be torn although a reader is not.

Run: python benchmarks/calibrate_value_collapse.py [--write] [--measures FILE]   (about ten minutes on two cores; measured prompts are kept in FILE)
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from datetime import date
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import polars as pl
import torch
from rich.progress import track

from symbolic_residue import open_model
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import cache_dir
from symbolic_residue.prompts import benchmark, build_prompt, perturb
from symbolic_residue.shells import Criteria, ValueCollapseConfig, ValueCollapseResidue
from symbolic_residue.shells.value_collapse._judge import MODES, verdicts
from symbolic_residue.shells.value_collapse._observe import measure, observe
from symbolic_residue.shells.value_collapse._residue import Asked
from symbolic_residue.stats import js_divergence, quantile_criterion, wilson

HERE = Path(__file__).parent
CALIBRATION = HERE.parent / "src/symbolic_residue/shells/value_collapse/calibration.json"
RESULTS = HERE / "RESULTS.md"
DOCS = HERE.parent / "docs/value-collapse.md"
RATE = 0.05
VARIANTS = 12
TITLE = "## VALUE-COLLAPSE: how often each verdict fires"


def prompts_of(name: str) -> list[dict]:
    """Every prompt of a benchmark: id, side (planted, control, null), split, text."""
    out = []
    for item in benchmark(name):
        side = "null" if item.kind == "null" else "planted"
        out.append({"set": name, "id": item.id, "side": side, "split": item.split, "text": item.prompt})
        if item.control is not None:
            out.append({"set": name, "id": item.id, "side": "control", "split": item.split, "text": item.control})
    return out


def measure_all(instrument: Instrument, tokenizer, config: ValueCollapseConfig, todo: list[dict], store: Path) -> pl.DataFrame:
    """Measures of every prompt, long; what the file already holds is not measured again."""
    done = pl.read_parquet(store) if store.exists() else None
    have = set(done.select("set", "id", "side").unique().iter_rows()) if done is not None else set()
    frames = [done] if done is not None else []
    left = [p for p in todo if (p["set"], p["id"], p["side"]) not in have]
    for i, p in enumerate(track(left, "measuring")):
        texts = [p["text"], *(v.text for v in perturb(p["text"], seed=0, n=VARIANTS))]
        found = observe(instrument, [build_prompt(tokenizer, t) for t in texts], config)
        js = js_divergence(found.probability[1:], found.probability[:1])
        rows = measure(found, p["side"]).select("variant", "quantity", "value")
        extra = pl.DataFrame({"variant": list(range(1, len(js) + 1)), "quantity": ["js"] * len(js), "value": js.tolist()})
        frame = pl.concat([rows, extra]).with_columns(*(pl.lit(p[k]).alias(k) for k in ("set", "id", "side", "split")))
        frames.append(frame)
        if i % 20 == 19 or i == len(left) - 1:
            store.parent.mkdir(parents=True, exist_ok=True)
            frames = [pl.concat(frames)]
            frames[0].write_parquet(store)
    return pl.concat(frames)


def item_values(frame: pl.DataFrame, name: str) -> np.ndarray:
    """One value an item: the statistic that its verdict uses."""
    how = pl.col("value").median() if name == "js" else pl.col("value").mean()
    return frame.filter(pl.col("quantity") == name).group_by("id", "side").agg(how)["value"].to_numpy()


def set_criteria(frame: pl.DataFrame, source: str) -> Criteria:
    """Criteria from calibration null ∪ controls."""
    null = frame.filter((pl.col("split") == "calibration") & (pl.col("side") != "planted"))
    log_odds = quantile_criterion(item_values(null, "log_odds"), RATE, direction="below")
    p = 1 / (1 + math.exp(-log_odds))
    return Criteria(
        log_odds=round(log_odds, 3),
        entropy=round(-0.5 * (p * math.log(p) + (1 - p) * math.log(1 - p)), 3),
        returns=max(2.0, math.floor(quantile_criterion(item_values(null, "returns.layers"), RATE)) + 1.0),
        leader_loss=round(max(0.5, quantile_criterion(item_values(null, "leader_loss.layers"), RATE)), 3),
        fragility=round(quantile_criterion(item_values(null, "js"), RATE), 4),
        source=source,
    )


def outcomes(frame: pl.DataFrame, config: ValueCollapseConfig) -> pl.DataFrame:
    """Every item's verdicts: set, split, side, id, mode, outcome."""
    rows = []
    unrelated = pl.DataFrame({"side": ["unrelated"] * 2, "variant": [1, 2], "quantity": ["js"] * 2, "value": [0.5, 0.6]})
    clear = {"log_odds": 99.0, "entropy": 0.0, "held": 1.0, "returns.layers": 0.0, "leader_loss.layers": 0.0, "js": 0.0}
    for (name, split, side, item), own in frame.group_by("set", "split", "side", "id", maintain_order=True):
        measures = [own.select(pl.lit("prompt").alias("side"), "variant", "quantity", "value"), unrelated]
        if side == "planted":
            control = frame.filter((pl.col("set") == name) & (pl.col("id") == item) & (pl.col("side") == "control"))
            measures.append(control.select(pl.lit("control").alias("side"), "variant", "quantity", "value"))
        else:
            measures.append(
                pl.DataFrame(
                    [("control", v, q, x) for q, x in clear.items() for v in range(8)], schema=measures[0].schema, orient="row"
                )
            )
        asked = Asked(
            input_text="",
            messages=None,
            chat=False,
            control_text="",
            control_kind="given",
            candidates=[0, 1],
            candidate_source="mass",
            variants=[],
            control_variants=[],
            seed=0,
        )
        residue = ValueCollapseResidue(asked, config, {}, {"measures": pl.concat(measures)})
        rows += [(name, split, side, item, v.mode, v.outcome) for v in verdicts(residue)]
    return pl.DataFrame(rows, schema=["set", "split", "side", "id", "mode", "outcome"], orient="row")


def table(found: pl.DataFrame, name: str, split: str | None) -> list[str]:
    """Rows of the results table."""
    lines = [
        "| verdict | fires on null and controls | fires on planted conflicts | undecided (null and controls / planted) |",
        "|---|---|---|---|",
    ]
    here = found.filter((pl.col("set") == name) & ((pl.col("split") == split) if split else pl.lit(True)))
    for mode in (*MODES, "any of the four"):
        cells = []
        open_ones = []
        for planted in (False, True):
            part = here.filter((pl.col("side") == "planted") == planted)
            part = part.filter(pl.col("mode") == mode) if mode in MODES else part
            by_item = part.group_by("side", "id").agg(
                (pl.col("outcome") == "fires").any().alias("fires"), (pl.col("outcome") == "undecided").any().alias("open")
            )
            n, k = len(by_item), int(by_item["fires"].sum())
            e = wilson(k, n)
            cells.append(f"{k}/{n} = {k / n:.0%} [{e.low:.0%}, {e.high:.0%}]")
            open_ones.append(f"{int(by_item['open'].sum())}/{n}")
        lines.append(f"| {mode} | {cells[0]} | {cells[1]} | {' / '.join(open_ones)} |")
    return lines


def machine() -> str:
    """One line about where this ran."""
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"


def main() -> None:
    """Measure, calibrate, report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write calibration.json, RESULTS.md and the docs' table")
    parser.add_argument("--measures", type=Path, default=cache_dir() / "calibration" / "value_collapse.parquet")
    options = parser.parse_args()
    loaded = open_model("demo")
    config = ValueCollapseConfig.make(refiners=("layers",), criteria=Criteria(log_odds=1, entropy=0.1, fragility=1))
    todo = prompts_of("value-ambiguity") + prompts_of("value-ambiguity-natural")
    frame = measure_all(Instrument(loaded), loaded.tokenizer, config, todo, options.measures)
    own = frame.filter(pl.col("set") == "value-ambiguity")
    n_null = own.filter((pl.col("split") == "calibration") & (pl.col("side") != "planted")).select("side", "id").n_unique()
    source = f"at most {RATE:.0%} of {n_null} settled prompts of benchmark value-ambiguity (calibration split), demo model, {date.today()}"
    criteria = set_criteria(own, source)
    found = outcomes(frame, config.model_copy(update={"criteria": criteria}))
    lines = [
        TITLE,
        "",
        f"Demo model, {VARIANTS} variants a prompt, criteria from {n_null} settled prompts of the calibration split. Rates with 95 % Wilson intervals over items. {machine()}.",
        "",
        f"Criteria: log-odds below {criteria.log_odds} nats and entropy above {criteria.entropy} nats; returns ≥ {criteria.returns:g}; "
        f"leader's loss above {criteria.leader_loss}; median divergence above {criteria.fragility} nats.",
        "",
        "Held-out split of `value-ambiguity` (settled by construction: repetition, unanimity):",
        "",
        *table(found, "value-ambiguity", "held-out"),
        "",
        "Calibration split, for comparison:",
        "",
        *table(found, "value-ambiguity", "calibration"),
        "",
        "`value-ambiguity-natural`, both splits, not calibrated on (controls differ by a word or two and mention both candidates; null prompts are idioms, facts and "
        "sequences, which a small model need not find settled):",
        "",
        *table(found, "value-ambiguity-natural", None),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        payload = {
            "criteria": criteria.model_dump(),
            "model": loaded.provenance.model,
            "weights_sha256": loaded.provenance.weights_sha256,
            "rate": RATE,
            "n": n_null,
        }
        CALIBRATION.write_text(json.dumps(payload, indent=1, ensure_ascii=False) + "\n", "utf-8")
        put(RESULTS, text)
        if DOCS.exists() and "<!-- calibration -->" in DOCS.read_text("utf-8"):
            head, _, rest = DOCS.read_text("utf-8").partition("<!-- calibration -->")
            tail = rest.partition("<!-- /calibration -->")[2]
            body = "\n".join(lines[2:])
            DOCS.write_text(f"{head}<!-- calibration -->\n{body}\n<!-- /calibration -->{tail}", "utf-8")


def put(path: Path, text: str) -> None:
    """Replace the section that starts with the text's own title, or append it."""
    whole = path.read_text("utf-8") if path.exists() else "# Results\n\nWritten by the scripts in this folder.\n"
    title = text.split("\n", 1)[0]
    head, _, rest = whole.partition(title)
    after = rest.partition("\n## ")
    path.write_text(head.rstrip() + "\n\n" + text + ("\n## " + after[2] if after[1] else ""), "utf-8")


if __name__ == "__main__":
    main()
