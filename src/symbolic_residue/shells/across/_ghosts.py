"""Ghost units: strongly active, and yet without effect on the output.

1. *Activity* of a head or an MLP neuron at the last row: how far its output is from its mean over reference prompts, in units of its spread there (for a
   head the Euclidean distance over the root mean square distance). A neuron that never varies over the reference prompts has no spread and is left out.
2. *Total effect*: KL(output ‖ output with the unit set to its reference mean at the last row), nats; effects through all later layers count.
3. *Noise floor*: the 95th percentile of the mean effects of quiet units (those with activity under the median), drawn at random; never under rounding (1e-6
   nats).
4. A *ghost* is active (mean activity over ``active``), and its effect's whole interval over prompts lies under the floor. An active unit whose interval
   lies above is *effective*; others are *undecided*, as are all with fewer than six prompts.
5. The same units on matched prompts that succeed: their activity and effect there, and p of the effect's difference (sign flips over pairs), q over the
   units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import Add, collate, Edit, HeadReplace, Instrument, LastRow
from symbolic_residue.prompts import Prompt
from symbolic_residue.stats import benjamini_hochberg, bootstrap_columns, sign_flip_test

__all__ = ["GhostUnits", "ghost_units"]

Array = NDArray[np.float64]
Unit = tuple[str, int, int]
_ROUNDING = 1e-6
_FEWEST = 6
_CELLS = 32


@dataclass(frozen=True)
class GhostUnits:
    """Active units with their effects.

    Attributes:
        frame: table ``ghosts``: unit (head/neuron), layer, index, activity (spreads), effect, low, high (nats), floor, n, state (ghost/effective/undecided),
            success_activity, success_effect, difference, p, q; ghosts first.
        floor: the noise floor of heads and of neurons (nats); ``floor_n`` quiet units behind each.
    """

    frame: pl.DataFrame = field(repr=False)
    floor: dict[str, float]
    floor_n: dict[str, int]

    @property
    def ghosts(self) -> list[Unit]:
        """(head or neuron, layer, index) of the ghosts, the most active first."""
        return [(r["unit"], r["layer"], r["index"]) for r in self.frame.filter(pl.col("state") == "ghost").to_dicts()]

    def tables(self) -> dict[str, pl.DataFrame]:
        """``ghosts``."""
        return {"ghosts": self.frame}


def ghost_units(
    instrument: Instrument,
    prompts: Sequence[Prompt],
    succeeded: Sequence[Prompt],
    reference: Sequence[Prompt],
    *,
    active: float = 2.0,
    most: int = 32,
    quiet: int = 32,
    seed: int = 0,
) -> GhostUnits:
    """Find ghosts among heads and neurons.

    Args:
        instrument: the model's instrument.
        prompts: prompts that fail; ``succeeded`` the matched ones that succeed, in the same order. Two tokens each at least.
        reference: unrelated prompts, for means and spreads; eight at least.
        active: activity, in spreads, from which a unit counts as strongly active.
        most: the most active heads, and as many neurons, that are tested; ``quiet`` units of each kind for the floor.
        seed: of draws and resampling.

    Raises:
        ConfigError: prompts that do not pair or are too short, too few reference prompts, or fewer than three quiet units.
    """
    n = len(prompts)
    if not n or n != len(succeeded):
        raise ConfigError(f"{n} failing prompts and {len(succeeded)} that succeed do not pair.")
    if len(reference) < 8:
        raise ConfigError(
            f"{len(reference)} reference prompts are too few.", why="A unit's spread would be noise.", todo="Give eight or more."
        )
    if any(len(p) < 2 for p in (*prompts, *succeeded)):
        raise ConfigError("A prompt of one token has no row before its last.")
    usual = _activations(instrument, reference)
    here, there = (_activations(instrument, some) for some in (prompts, succeeded))
    rng = np.random.default_rng(seed)
    chosen: list[tuple[Unit, float, float]] = []
    calm: dict[str, list[Unit]] = {}
    for kind in ("head", "neuron"):
        scores, away = _activity(kind, here, usual), _activity(kind, there, usual)
        if not scores:
            continue
        order = sorted(scores, key=lambda unit: -scores[unit])
        chosen += [(unit, scores[unit], away[unit]) for unit in order if scores[unit] > active][:most]
        low = order[(len(order) + 1) // 2 :]
        calm[kind] = [low[int(i)] for i in rng.permutation(len(low))[:quiet]]
        if len(calm[kind]) < 3:
            raise ConfigError(f"{len(calm[kind])} quiet {kind}s are too few for a noise floor.", todo="Ask for at least three.")
    drawn = [unit for units in calm.values() for unit in units]
    units = [unit for unit, _, _ in chosen]
    effects = _effects(instrument, prompts, here, usual, [*units, *drawn])
    silent = dict(zip(drawn, effects[len(units) :].mean(1), strict=True))
    floor = {
        kind: max(_ROUNDING, float(np.quantile([silent[u] for u in some], 0.95, method="higher"))) for kind, some in calm.items()
    }
    rows: list[dict[str, Any]] = []
    if units:
        success = _effects(instrument, succeeded, there, usual, units)
        value, low, high = bootstrap_columns(effects[: len(units)].T, seed=seed)
        difference = (effects[: len(units)] - success).T
        p = np.atleast_1d(sign_flip_test(difference, seed=seed))
        q = benjamini_hochberg(p)
        for i, (unit, activity, away) in enumerate(chosen):
            limit = floor[unit[0]]
            # A mean of KLs is not negative; the t interval of few prompts could reach below.
            bounds = (max(0.0, float(low[i])), float(high[i]))
            state = (
                "undecided" if n < _FEWEST else "ghost" if bounds[1] <= limit else "effective" if bounds[0] > limit else "undecided"
            )
            rows.append(
                {
                    "unit": unit[0],
                    "layer": unit[1],
                    "index": unit[2],
                    "activity": activity,
                    "effect": float(value[i]),
                    "low": None if n < 2 else bounds[0],
                    "high": None if n < 2 else bounds[1],
                    "floor": limit,
                    "n": n,
                    "state": state,
                    "success_activity": away,
                    "success_effect": float(success[i].mean()),
                    "difference": float(difference[:, i].mean()),
                    "p": float(p[i]),
                    "q": float(q[i]),
                }
            )
    rank = {"ghost": 0, "effective": 1, "undecided": 2}
    rows.sort(key=lambda r: (rank[r["state"]], -r["activity"]))
    return GhostUnits(pl.DataFrame(rows, schema=_SCHEMA), floor, {kind: len(some) for kind, some in calm.items()})


def _activations(instrument: Instrument, prompts: Sequence[Prompt]) -> dict[tuple[str, int], Tensor]:
    """At the last row: ``head`` ``[prompt, head, d_head]`` and ``neuron`` ``[prompt, d_mlp]`` of every layer that has them, float64 on the CPU."""
    parts = instrument.parts
    points = {("head", i): f"z.{i}" for i in parts.attention_layers}
    points |= {("neuron", layer.index): f"mlp_act.{layer.index}" for layer in parts.layers if layer.absent("mlp_act") is None}
    found: dict[tuple[str, int], list[Tensor]] = {key: [] for key in points}
    for prompt in prompts:
        trace = instrument.run(collate([prompt]), reads=tuple(points.values()), keep_logits=1)
        for key, point in points.items():
            found[key].append(trace[point][0, -1].double().cpu())
    return {key: torch.stack(values) for key, values in found.items()}


def _activity(kind: str, here: dict[tuple[str, int], Tensor], usual: dict[tuple[str, int], Tensor]) -> dict[Unit, float]:
    """Mean activity over prompts of every unit of a kind, in spreads over the reference prompts."""
    out: dict[Unit, float] = {}
    for (of, layer), reference in usual.items():
        if of != kind:
            continue
        mean = reference.mean(0)
        away, spread = here[of, layer] - mean, reference - mean
        if kind == "head":
            away, spread = away.norm(dim=-1), spread.norm(dim=-1)
        root = spread.square().mean(0).sqrt()
        known = root > 1e-9 * (1 + mean.abs().amax())
        score = (away.abs().mean(0) / root.clamp_min(1e-30)).numpy()
        out |= {(kind, layer, int(i)): float(score[i]) for i in np.flatnonzero(known.numpy())}
    return out


def _effects(
    instrument: Instrument,
    prompts: Sequence[Prompt],
    here: dict[tuple[str, int], Tensor],
    usual: dict[tuple[str, int], Tensor],
    units: Sequence[Unit],
) -> Array:
    """KL of the output when a unit is set to its reference mean at the last row, ``[unit, prompt]`` in nats."""
    out = np.zeros((len(units), len(prompts)))
    for i, prompt in enumerate(prompts):
        row = LastRow(instrument, collate([prompt]))
        base = row.run()["logits"][0, -1].double().log_softmax(-1)
        for start in range(0, len(units), _CELLS):
            group = units[start : start + _CELLS]
            edits: list[Edit] = []
            for c, (kind, layer, index) in enumerate(group):
                mean = usual[kind, layer].mean(0)
                if kind == "head":
                    edits.append(HeadReplace(layer, index, mean[index].float(), rows=(-1,), batch=(c,)))
                else:  # only this unit is edited, so its activation is the one read before: adding the difference sets it to the mean
                    shift = torch.zeros_like(mean)
                    shift[index] = mean[index] - here[kind, layer][i, index]
                    edits.append(Add(f"mlp_act.{layer}", rows=(-1,), batch=(c,), value=shift.float()))
            logits = row.run(edits, copies=len(group))["logits"][:, -1].double().log_softmax(-1)
            kl = (base.exp() * (base - logits)).sum(-1).clamp_min(0.0)
            out[start : start + len(group), i] = kl.cpu().numpy()
    return out


_TEXT, _INT, _FLOAT = pl.String(), pl.Int64(), pl.Float64()
_SCHEMA: dict[str, pl.DataType] = {
    "unit": _TEXT,
    **dict.fromkeys(("layer", "index"), _INT),
    **dict.fromkeys(("activity", "effect", "low", "high", "floor"), _FLOAT),
    "n": _INT,
    "state": _TEXT,
    **dict.fromkeys(("success_activity", "success_effect", "difference", "p", "q"), _FLOAT),
}
