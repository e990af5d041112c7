"""Published statements about the shells, each as a test that is stated before it is run, on the demo model.

1. Each statement has a quantity, a unit of resampling, and the region of values that would support it; both are written down in ``STATEMENTS`` before anything is measured.
2. It is *supported* if the whole 95 % interval lies inside that region, *contradicted* if it lies wholly outside, else *undecided*.
3. Measurements are seeded; those of one statement go into the page together with their n.
4. ``--write`` puts the table into ``docs/claims.md``. Statements hold for the model named there and for texts of this kind, and for nothing else.

Run: python benchmarks/claims.py [--only NAME …] [--write]      (or: make claims)
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics  # type: ignore[import-untyped]
from typing import Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from _common import machine
from rich.console import Console

from symbolic_residue.instrument import AttentionRead, collate
from symbolic_residue.models import load_model, LoadedModel
from symbolic_residue.prompts import benchmark, build_prompt
from symbolic_residue.readout import lens_logits, lens_reads
from symbolic_residue.shells import ValueCollapseConfig, ValueCollapseShell
from symbolic_residue.stats import bootstrap_mean, Estimate, wilson

PAGE = Path(__file__).parent.parent / "docs" / "claims.md"
SEED = 0
Outcome = Literal["supported", "contradicted", "undecided"]


@dataclass(frozen=True)
class Statement:
    """One statement and its test.

    Attributes:
        name: for the command line.
        says: the statement.
        quantity: what is measured, its unit, and what is resampled.
        region: values (low, high) that would support it, ends included.
        measure: the estimate, and what else a reader should know.
    """

    name: str
    says: str
    quantity: str
    region: tuple[float, float]
    measure: Callable[[Bench], tuple[Estimate, str]]


class Bench:
    """The model, and what several statements need."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.shell = ValueCollapseShell(loaded=loaded, config=ValueCollapseConfig())
        self.instrument = self.shell.instrument

    def texts(self, n: int, length: int) -> list[list[int]]:
        """``n`` pieces of ``length`` tokens of plain English prose (Python's own help texts), each of another page."""
        found = []
        for name in sorted(topics):
            prose = re.sub(r"\s+", " ", topics[name])
            ids = self.loaded.tokenizer(prose)["input_ids"]
            if len(ids) >= length + 32:
                found.append(ids[32 : 32 + length])
        if len(found) < n:
            raise SystemExit(f"only {len(found)} texts of {length} tokens")
        rng = np.random.default_rng(SEED)
        return [found[int(i)] for i in rng.permutation(len(found))[:n]]


def judge(estimate: Estimate, region: tuple[float, float]) -> Outcome:
    """See the module."""
    low, high = region
    if not estimate.has_interval:
        return "undecided"
    if low <= estimate.low and estimate.high <= high:
        return "supported"
    return "contradicted" if estimate.high < low or estimate.low > high else "undecided"


# -- measurements ------------------------------------------------------------------------------------------------------------------


def long_range_heads(bench: Bench) -> tuple[Estimate, str]:
    """Share of heads that send more than half of their attention outside the first token more than 64 tokens back."""
    shares, sizes = [], []
    rows = tuple(range(256, 512, 16))
    for ids in bench.texts(24, 512):
        table = bench.instrument.run(
            torch.tensor([ids]), attention=AttentionRead(stats=(), rows=rows, weights=True), keep_logits=1
        ).attention
        assert table is not None
        w = table["weights"][:, 0].double()  # [layer, head, row, key]
        w[..., 0] = 0.0
        distance = torch.tensor(rows)[:, None] - torch.arange(512)[None]
        far = (w * (distance > 64)).sum(-1).mean(-1)
        whole = w.sum(-1).mean(-1)
        share = far / whole.clamp_min(1e-12)
        shares.append(float((share > 0.5).double().mean()))
        sizes.append(float((share > 0.25).double().mean()))
    return bootstrap_mean(shares, seed=SEED), f"With more than a quarter instead of half: {np.mean(sizes):.0%} of heads."


def late_refinement(bench: Bench) -> tuple[Estimate, str]:
    """Share of prompts whose top candidate changes between the third and the eighth soft refinement."""
    changed, helped, could = 0, 0, 0
    items = [item for item in benchmark("value-ambiguity") if not item.null]
    for item in items:
        assert item.control is not None
        assert item.candidates is not None
        found = bench.shell.stabilize_operation(item.control, 8, refiner="soft", candidates=item.candidates)
        share = found.trace(0)
        third, last = int(share[min(3, len(share) - 1)].argmax()), int(share[-1].argmax())
        changed += third != last
        right = item.candidates.index(item.answer)  # type: ignore[arg-type]
        could += third != right
        helped += third != right and last == right
    note = f"Of {could} prompts that were wrong after three steps, {helped} became right."
    return wilson(changed, len(items)), note


def stability_by_length(bench: Bench) -> tuple[Estimate, str]:
    """Change of the log-odds of the two best candidates of a settled prompt for each doubling of unrelated text before it (nats)."""
    items = [item for item in benchmark("value-ambiguity") if item.null][:32]
    filler = bench.texts(len(items), 1024)
    lengths = [0, 32, 64, 128, 256, 512, 1024]
    gaps = []
    for item, text in zip(items, filler, strict=True):
        own = build_prompt(bench.loaded.tokenizer, item.prompt).ids
        prompts = [[*text[len(text) - n :], *own] for n in lengths]
        logits = [bench.instrument.run(collate([p]), keep_logits=1)["logits"][0, -1].double() for p in prompts]
        best = logits[0].topk(2).indices
        gaps.append([float(one[best[0]] - one[best[1]]) for one in logits])
    table = np.array(gaps)
    x = np.log2(np.array(lengths[1:], float))
    slopes = np.polyfit(x, table[:, 1:].T, 1)[0]
    means = ", ".join(f"{n}: {m:.2f}" for n, m in zip(lengths, table.mean(0), strict=True))
    return bootstrap_mean(slopes, seed=SEED), f"Mean log-odds by tokens of text before the prompt: {means} nats."


def last_layers(bench: Bench) -> tuple[Estimate, str]:
    """Share of the final log-odds between the two candidates of a planted conflict that arises in the last three layers (logit lens)."""
    shares, flips = [], []
    parts = bench.instrument.parts
    for item in benchmark("value-ambiguity"):
        if item.null:
            continue
        assert item.candidates is not None
        prompt = build_prompt(bench.loaded.tokenizer, item.prompt)
        a, b = (bench.loaded.tokenizer(c, add_special_tokens=False)["input_ids"][0] for c in item.candidates)
        trace = bench.instrument.run(collate([prompt]), reads=lens_reads(), keep_logits=1)
        final = trace["logits"][0, -1].double()
        before = lens_logits(parts, trace[f"resid_post.{parts.n_layers - 4}"][0, -1]).double()
        after, early = float(final[a] - final[b]), float(before[a] - before[b])
        flips.append(after * early < 0)
        # Shares of a difference near zero explode: weigh by its size, as a ratio of sums over prompts.
        shares.append((abs(after), abs(after) - math.copysign(1.0, after) * early))
    table = np.array(shares)
    rng = np.random.default_rng(SEED)
    draws = rng.integers(0, len(table), (4000, len(table)))
    ratios = table[draws, 1].sum(1) / table[draws, 0].sum(1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    value = float(table[:, 1].sum() / table[:, 0].sum())
    note = f"The leader before the last three layers is another in {np.mean(flips):.0%} of {len(flips)} prompts."
    return Estimate(value, float(low), float(high), len(table), method="bootstrap of a ratio of sums over prompts"), note


STATEMENTS = (
    Statement(
        "long-range-heads",
        "About 15 % of attention heads are long-range.",
        "share of heads with more than half of their attention (first token left out) over 64 tokens back; texts of 512 tokens, rows from 256 on; resampled: texts",
        (0.10, 0.20),
        long_range_heads,
    ),
    Statement(
        "late-refinement",
        "Refinement beyond three steps rarely helps.",
        "share of settled prompts whose top candidate changes between steps 3 and 8 of soft refinement; unit: prompts; “rarely” is at most 10 %",
        (0.0, 0.10),
        late_refinement,
    ),
    Statement(
        "stability-by-length",
        "Stability falls with the length of the context.",
        "change of the log-odds of the two best tokens of a settled prompt for each doubling of unrelated text before it, nats; resampled: prompts",
        (-math.inf, -1e-9),
        stability_by_length,
    ),
    Statement(
        "last-layers",
        "The final three layers resolve ambiguity.",
        "share of the final log-odds between two candidates in conflict that arises in the last three layers (logit lens); resampled: prompts; “resolve” is more than half",
        (0.5, math.inf),
        last_layers,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=[s.name for s in STATEMENTS])
    parser.add_argument("--write", action="store_true", help="put the table into docs/claims.md")
    options = parser.parse_args()
    bench = Bench(load_model("demo"))
    console = Console()
    rows = []
    for statement in STATEMENTS:
        if options.only and statement.name not in options.only:
            continue
        with console.status(statement.name):
            estimate, note = statement.measure(bench)
        outcome = judge(estimate, statement.region)
        low, high = statement.region
        wanted = f"≤ {high:g}" if low in (-math.inf, 0.0) else f"≥ {low:g}" if high == math.inf else f"{low:g} to {high:g}"
        wanted = "below 0" if low == -math.inf else wanted
        value = f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}], n = {estimate.n}"
        rows.append(f"| {statement.says} | {statement.quantity} | {wanted} | {value} | **{outcome}** | {note} |")
        console.print(rows[-1], markup=False, soft_wrap=True)
    if options.write:
        if options.only:
            raise SystemExit("--write needs all statements: leave --only out")
        head = PAGE.read_text("utf-8").partition("<!-- table -->")[0]
        table = ["<!-- table -->", f"Machine: {machine()}. Model: {bench.loaded.provenance.model}.", "",
                 "| statement | quantity | would support it | measured [95 %] | outcome | beside it |", "|---|---|---|---|---|---|", *rows, ""]  # fmt: skip
        PAGE.write_text(head + "\n".join(table), "utf-8")


if __name__ == "__main__":
    main()
