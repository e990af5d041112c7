"""Published statements about refinement and indecision, on the items of ``value-ambiguity``."""

from __future__ import annotations

import numpy as np
import polars as pl

from claims._common import Bench, Claim, compared, Measured
from symbolic_residue.instrument import collate
from symbolic_residue.prompts import build_prompt
from symbolic_residue.readout import lens_logits, lens_reads
from symbolic_residue.shells import ValueCollapseConfig, ValueCollapseShell
from symbolic_residue.stats import cluster_bootstrap

STEPS = 8
EARLY = 3


def beyond_three_steps(bench: Bench) -> Measured:
    """Share of the whole L1 movement of eight refinement steps that comes after the third."""
    shell = ValueCollapseShell(loaded=bench.loaded, config=ValueCollapseConfig.make(tolerance=1e-9, steps=STEPS))
    said, values, clusters = [], [], []
    for refiner in ("rollout", "soft"):
        late, same = [], []
        for item in [i for i in shell.items() if i.split == "held-out" and not i.null]:
            found = shell.stabilize_operation(item.prompt, STEPS, refiner=refiner, candidates=item.candidates)
            share = found.trace(0)
            if len(share) <= EARLY:
                continue
            late.append(float(share[EARLY].argmax() == share[-1].argmax()))
            same.append(item.frame or item.kind)
        values += late
        clusters += [f"{refiner} {name}" for name in same]
        said.append(f"{refiner}: {np.mean(late):.2f} of {len(late)} prompts")
    value = cluster_bootstrap(values, clusters, seed=0)
    numbers = f"leader after step 3 = leader after step {STEPS} in {value.value:.2f} [{value.low:.2f}, {value.high:.2f}] of traces ({'; '.join(said)}; resampled by frame)"
    return compared(value, above=0.9, otherwise=0.75, numbers=numbers)


def last_three_layers(bench: Bench) -> Measured:
    """Whether the last three layers are where the lens's leader among the two candidates becomes the final one."""
    loaded = bench.loaded
    shell = ValueCollapseShell(loaded=loaded)
    parts = shell.instrument.parts
    items = [i for i in shell.items() if i.split == "held-out" and not i.null]
    resolved, moved, middle = [], [], []
    for item in items:
        ids = [loaded.tokenizer.encode(c, add_special_tokens=False)[0] for c in item.candidates]
        trace = shell.instrument.run(collate([build_prompt(loaded.tokenizer, item.prompt)]), reads=lens_reads(), keep_logits=1)
        by_depth = []
        for depth in range(parts.n_layers + 1):
            resid = trace["resid_pre.0"] if depth == 0 else trace[f"resid_post.{depth - 1}"]
            logits = lens_logits(parts, resid[:, -1])[0].double()
            by_depth.append(float(logits[ids[0]] - logits[ids[1]]))
        signs = np.sign(by_depth)
        settled = max((d for d in range(len(signs)) if signs[d] != signs[-1]), default=-1) + 1
        resolved.append(float(settled > parts.n_layers - 3))
        steps = np.abs(np.diff(by_depth))
        moved.append(float(steps[-3:].sum() / steps.sum()))
        middle.append(float(steps[:-3].sum() / steps.sum()))
    clusters = [item.frame or item.kind for item in items]
    share = cluster_bootstrap(moved, clusters, seed=0)
    late = cluster_bootstrap(resolved, clusters, seed=0)
    uniform = 3 / parts.n_layers
    numbers = (
        f"the last 3 of {parts.n_layers} layers make {share.value:.2f} [{share.low:.2f}, {share.high:.2f}] of the lens log-odds' movement (uniform: {uniform:.2f}), n = {len(items)} prompts, "
        f"resampled by frame; the final leader takes over there in {late.value:.2f} [{late.low:.2f}, {late.high:.2f}] of them"
    )
    return compared(share, above=0.5, otherwise=0.5, numbers=numbers)


def flatness_under_null(bench: Bench) -> Measured:
    """Whether flatness separates torn prompts from settled ones on items not used for its criterion."""
    verdicts = bench.table("value-collapse", "verdicts", split="held-out").filter(pl.col("mode") == "flatness")
    planted = verdicts.filter(~pl.col("null"))
    fires = [float(x == "fires") for x in planted["outcome"]]
    value = cluster_bootstrap(fires, planted["frame"].to_list(), seed=0)
    null = verdicts.filter("null")
    false = sum(x == "fires" for x in null["outcome"])
    numbers = f"flatness fires on {value.value:.2f} [{value.low:.2f}, {value.high:.2f}] of {len(fires)} torn prompts (resampled by frame) and on {false} of {null.height} settled ones"
    return compared(value, above=0.5, otherwise=0.5, numbers=numbers)


CLAIMS = [
    Claim(
        "value-collapse-three-steps",
        "Refining a distribution beyond three steps rarely changes its leader.",
        "Held-out torn prompts, refiners rollout and soft, 8 steps with the candidates given. Share of traces (n = prompts × 2 refiners, resampled by frame) in which the leading candidate "
        "after step 3 is the one after the last step. Supported above .90, contradicted below .75.",
        beyond_three_steps,
    ),
    Claim(
        "value-collapse-last-layers",
        "The final three layers resolve ambiguity.",
        "Held-out torn prompts, logit lens at the last row, log-odds of the two candidates by depth. Share of the total movement (sum of absolute steps) made by the last three layers, mean "
        "over prompts, resampled by frame. Supported above .50, contradicted below; the uniform share stands beside.",
        last_three_layers,
    ),
    Claim(
        "value-collapse-flat",
        "Two equally supported continuations leave the model undecided between them.",
        "Held-out torn prompts: share on which the flatness verdict fires, resampled by frame; settled prompts beside. Supported above .50, contradicted below.",
        flatness_under_null,
    ),
]
