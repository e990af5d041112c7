"""Attention knock-out at the row that emits: does it matter that the model looks at a region there?

1. At the emitting row only, in all layers and heads (or the layers given), a share ``dose`` of the weight on the region's keys is taken away and goes to the
   row's other keys in proportion to what they have: the row keeps its sum, the region exactly ``1 − dose`` of its weight in every head. Earlier rows are as
   they were.
2. Value: change of log P of the behaviour's first token, nats; one dose after the other is the dose-response. The row's own key belongs to no region.
3. Control: random keys in the region's place, outside of it, no sinks and not the row's own key, the same in every head. ``match="mass"``: keys are drawn
   until their mean weight (over the layers and heads, in the plain run) reaches the region's, and the dose is scaled so that the mean weight taken is the
   same; ``match="number"``: as many keys as the region has. Where there are too few keys outside there is no control. Several draws, seeded by the example;
   their mean is the control.
4. tuned − base: a region that the behaviour needs in both models is not what training made.

All runs of an example are the last row against kept keys and values (``LastRow``): a knock-out costs a row, not a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl

from symbolic_residue.contrast._examples import Example
from symbolic_residue.contrast._rows import stable_seed
from symbolic_residue.contrast.causal._emission import DIFFERENCE
from symbolic_residue.contrast.causal._ready import check_examples, check_places, fields, first_token, log_probability
from symbolic_residue.contrast.causal._tables import causal_frame
from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import AttentionRead, collate, Edit, Instrument, LastRow, PatternScale
from symbolic_residue.readout import check_same_architecture

__all__ = ["DOSES", "RANDOM_KEYS", "REGION", "knock_out"]

DOSES = (0.25, 0.5, 0.75, 1.0)
REGION, RANDOM_KEYS = "region", "random keys"
Keys = tuple[tuple[int, ...], float]
"""Keys, and the factor on the dose."""


def knock_out(
    tuned: Instrument,
    base: Instrument,
    examples: Sequence[Example],
    labels: Sequence[Sequence[str]],
    regions: Sequence[str],
    *,
    doses: Sequence[float] = DOSES,
    layers: Sequence[int] | None = None,
    match: Literal["mass", "number"] = "mass",
    draws: int = 3,
    seed: int = 0,
    max_batch: int = 16,
    on_example: Callable[[pl.DataFrame], None] | None = None,
) -> pl.DataFrame:
    """Dose-response of the behaviour to less attention on a region.

    Args:
        tuned, base: the models; both read the same ids.
        examples: with the behaviour.
        labels: of each example, the bucket of every token (``segment(…)["full"]``).
        regions: buckets whose keys lose weight. An example without keys of a region has no row in the table there: missing,
            not zero.
        doses: shares of the region's weight that are taken, in (0, 1].
        layers: which; all where None.
        match: what the random keys have in common with the region.
        draws: random sets of keys; 0 leaves the control out.
        seed: of the draws.
        max_batch: knock-outs of one example that run together.
        on_example: called with each example's rows as they are done.

    Returns:
        Columns as in ``CAUSAL``: ``part`` the region, ``place`` region (with its control) and random keys (the control by itself), ``model`` tuned, base,
        tuned − base.

    Raises:
        ConfigError: doses, layers or regions that cannot be, labels that do not fit.
        EditError: a row that sees the region only.
        RecordError, PromptError, InstrumentError, ModelError: examples or models that cannot be asked.
    """
    check_same_architecture(base, tuned)
    check_examples(examples, tuned, base)
    if not doses or len(set(doses)) < len(doses) or not all(0 < dose <= 1 for dose in doses):
        raise ConfigError(f"doses={tuple(doses)!r}.", todo="Give shares in (0, 1], each once.")
    if not regions or len(set(regions)) < len(regions) or draws < 0 or match not in ("mass", "number"):
        raise ConfigError(
            f"regions={tuple(regions)!r}, draws={draws}, match={match!r}.", todo="Name regions, each once; draws is 0 or more."
        )
    having = tuned.attention_layers
    if layers is not None and (not layers or set(layers) - set(having)):
        raise ConfigError(f"layers={tuple(layers)!r}.", todo=f"Layers with softmax attention: {', '.join(map(str, having))}.")
    chosen = tuple(having if layers is None else sorted(set(layers)))
    if len(labels) != len(examples):
        raise ConfigError(f"There are labels for {len(labels)} examples of {len(examples)}.")
    check_places(regions, labels)
    frames = []
    for example, own in zip(examples, labels, strict=True):
        if example.event is not None and len(own) < example.event:
            raise ConfigError(f"Example {example.id!r} has {len(example.ids)} tokens and {len(own)} labels.")
        found = {
            name: _one(tool, example, own, regions, doses, chosen, match, draws, seed, max_batch)
            for name, tool in (("tuned", tuned), ("base", base))
        }
        frames.append(_frame(example, found))
        if on_example is not None:
            on_example(frames[-1])
    return pl.concat(frames)


Cells = dict[tuple[str, float], tuple[float, float | None]]
"""(region, dose) → change by the region's keys, and mean change by random keys."""


def _one(
    tool: Instrument,
    example: Example,
    labels: Sequence[str],
    regions: Sequence[str],
    doses: Sequence[float],
    layers: tuple[int, ...],
    match: str,
    draws: int,
    seed: int,
    max_batch: int,
) -> Cells:
    assert example.event is not None
    last = example.event - 1
    row = LastRow(tool, collate([list(example.ids[: example.event])]))
    plain = row.run(attention=AttentionRead(stats=(), weights=True, rows=(-1,)) if draws else None)
    token = first_token(example)
    own = float(log_probability(plain["logits"][:, -1], [token])[0])
    mass = np.zeros(example.event)
    if draws:
        assert plain.attention is not None
        at = [plain.attention.layers.index(layer) for layer in layers]
        mass = plain.attention["weights"][at, 0, :, 0].double().mean((0, 1)).cpu().numpy()
    runs: list[tuple[str, float, Keys]] = []
    for region in regions:
        keys = tuple(k for k in range(last) if labels[k] == region)
        if not keys:
            continue
        outside = [k for k in range(1, last) if labels[k] not in (region, "sink")]
        sets: list[Keys] = [(keys, 1.0)]
        for draw in range(draws):
            order = np.random.Generator(
                np.random.PCG64(stable_seed(example.condition, example.id, region, draw, seed=seed))
            ).permutation(outside)
            if (drawn := _matched(order.tolist(), keys, mass, match)) is not None:
                sets.append(drawn)
        runs += [(region, dose, one) for dose in doses for one in sets]
    changes: dict[tuple[str, float], list[float]] = {}
    for start in range(0, len(runs), max_batch):
        chunk = runs[start : start + max_batch]
        edits: list[Edit] = [
            PatternScale(1 - dose * factor, keys, rows=(-1,), layers=layers, batch=(i,), renormalise="others")
            for i, (_, dose, (keys, factor)) in enumerate(chunk)
        ]
        logits = row.run(edits, copies=len(chunk))["logits"][:, -1]
        for (region, dose, _), value in zip(chunk, log_probability(logits, [token] * len(chunk)).tolist(), strict=True):
            changes.setdefault((region, dose), []).append(value - own)
    return {key: (first, float(np.mean(rest)) if rest else None) for key, (first, *rest) in changes.items()}


def _matched(order: Sequence[int], keys: Sequence[int], mass: np.ndarray[Any, Any], match: str) -> Keys | None:
    """Keys in their random order until they match the region, and the factor on the dose; None where there are too few."""
    if match == "number":
        return (tuple(sorted(order[: len(keys)])), 1.0) if len(order) >= len(keys) else None
    wanted, running = float(mass[list(keys)].sum()), np.cumsum(mass[list(order)])
    if not len(order) or running[-1] < wanted or wanted <= 0:
        return None
    n = int(np.searchsorted(running, wanted)) + 1
    return tuple(sorted(order[:n])), min(1.0, wanted / float(running[n - 1]))


def _frame(example: Example, found: dict[str, Cells]) -> pl.DataFrame:
    tuned, base = found["tuned"], found["base"]
    both = found | {DIFFERENCE: {key: (value - base[key][0], _minus(other, base[key][1])) for key, (value, other) in tuned.items()}}
    rows = []
    for model, cells in both.items():
        for (region, dose), (value, control) in cells.items():
            one = {"analysis": "knock-out", "model": model, **fields(example), "part": region, "dose": float(dose), "unit": "nats"}
            rows.append({**one, "place": REGION, "value": value, "control": control})
            if control is not None:
                rows.append({**one, "place": RANDOM_KEYS, "value": control})
    return causal_frame(rows)


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
