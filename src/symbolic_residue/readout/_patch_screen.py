"""Attribution patching: the effect of every patch estimated from gradients, in two forwards and one backward for all cells.

1. To first order a patch changes the metric by ``(source − target) · ∂metric/∂activation`` at the target (Nanda 2023, "Attribution patching"; Syed et al.
   2023). One backward gives the gradient at all points; sums over rows and dimensions give each cell's estimate.
2. The gradient at a point is that of a zero added there, through the instrument's own edit, so that screen and sweep speak of the same places.
3. With ``steps=m`` the gradient is averaged over ``m`` midpoints of the straight path from the target's to the source's activation at that cell's
   component and rows, all its heads moving together (integrated gradients, Sundararajan et al. 2017; as in Marks et al. 2024 and Hanna et al. 2024). The heads'
   estimates then add up to the effect of patching them together, up to the rule's error of order 1/m².
4. An estimate is no patch: ``attribution_patching`` patches a random sample of the cells for real, and reports its agreement with them beside the
   estimates (rank correlation, sign, top k; intervals over pairs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import Add
from symbolic_residue.readout._patch_agreement import AGREEMENT_SCHEMA, screen_agreement
from symbolic_residue.readout._patch_cells import Cell, CELL_KEY, Heads, NotApplicable, plan_cells
from symbolic_residue.readout._patch_controls import Donors
from symbolic_residue.readout._patch_metric import bind_metric, evaluate, Metric, recovered
from symbolic_residue.readout._patch_pairs import PatchPair
from symbolic_residue.readout._patch_restart import frozen_parameters
from symbolic_residue.readout._patch_sweep import patch_sweep, Setting
from symbolic_residue.readout._patch_table import CELL_SCHEMA, column_intervals, Direction
from symbolic_residue.readout._patch_together import LayerRuns, together
from symbolic_residue.types import HEAD_POINTS

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument

__all__ = ["PatchScreen", "attribution_patching"]

SCREEN_SCHEMA: dict[str, Any] = CELL_SCHEMA | {
    "estimate": pl.Float64,
    "estimated_recovered": pl.Float64,
    "steps": pl.Int64,
    "reason": pl.String,
}


@dataclass(frozen=True, eq=False)
class PatchScreen:
    """The result of :func:`attribution_patching`.

    Attributes:
        frame: one row a pair and cell: the cell as in a sweep's table, ``source`` and ``target`` (metric), ``estimate`` of the effect (metric units),
            ``estimated_recovered`` (null with a ``reason`` where there is nothing to recover), ``steps`` (0: the gradient at the target alone).
        agreement: agreement with true patches of ``checked`` cells, see :func:`screen_agreement`; empty when none were checked.
        checked: how many cells were patched for real, drawn at random.
        missing: ``(layer, component, reason)`` of what the model does not have.
        seed: of the draw and of the resampling.
    """

    frame: pl.DataFrame
    agreement: pl.DataFrame
    checked: int
    missing: NotApplicable
    seed: int

    def table(self) -> pl.DataFrame:
        """One row a pair and cell."""
        return self.frame

    def tables(self) -> dict[str, pl.DataFrame]:
        """All tables by name, as other results have them."""
        return {"screen": self.frame, "screen_summary": self.summary(), "screen_agreement": self.agreement}

    def summary(self, *, level: float = 0.95) -> pl.DataFrame:
        """Mean estimate over pairs by cell, with its interval: ``layer component head positions estimate low high n`` (n: pairs or clusters)."""
        return column_intervals(self.frame, "estimate", seed=self.seed, level=level).rename({"mean": "estimate"})

    def top(self, k: int) -> pl.DataFrame:
        """The ``k`` cells with the largest mean absolute estimate over pairs, for ``patch_sweep(cells=…)``.

        Raises:
            ConfigError: ``k`` is not positive.
        """
        if k < 1:
            raise ConfigError(f"There are no {k} best cells.")
        by_cell = self.frame.group_by(CELL_KEY, maintain_order=True).agg(pl.col("estimate").abs().mean().alias("mean_abs_estimate"))
        return by_cell.sort("mean_abs_estimate", descending=True, maintain_order=True).head(k)


def attribution_patching(
    instrument: Instrument,
    pairs: Sequence[PatchPair],
    *,
    metric: Metric | Sequence[Metric],
    source: Instrument | None = None,
    layers: Sequence[int] | None = None,
    components: Sequence[str] = ("attn_out", "mlp_out", "z"),
    heads: Heads = "each",
    direction: Direction = "denoise",
    steps: int = 0,
    check: int = 32,
    floor: float = 0.01,
    max_batch: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> PatchScreen:
    """Estimate the effect of every patch by gradients.

    Args:
        instrument: of the model that would be patched; the other arguments up to ``direction`` are those of :func:`patch_sweep`.
        pairs: see there.
        metric: see there; it must be differentiable.
        source: see there.
        layers: see there.
        components: see there; a joint component's estimate is that of its parts together.
        heads: see there.
        direction: see there.
        steps: 0 for the gradient at the target; m for the mean over m points of the path to the source (m forwards and backwards from each layer on).
        check: how many cells, drawn at random, are patched for real to measure the agreement; 0 for none.
        floor: as in the sweep.
        max_batch: most runs at a time (with ``steps``, and for the check).
        seed: of the draw.
        progress: called with (pairs done, pairs in all).

    Raises:
        ConfigError: a metric without gradient; ``steps`` or ``check`` negative; otherwise as in :func:`patch_sweep`.
        ModelError, ReadError, EditError, InstrumentError: as in :func:`patch_sweep`.
    """
    if steps < 0 or check < 0 or max_batch < 1:
        raise ConfigError(f"steps={steps}, check={check}, max_batch={max_batch}: give 0 or more, and at least 1 run at a time.")
    setting = Setting(instrument, pairs, metric, source, direction)
    plan, missing = plan_cells(setting.target, setting.pairs, layers=layers, components=components, heads=heads)
    frames = []
    for number, (pair, one_metric) in enumerate(zip(setting.pairs, setting.metrics, strict=True)):
        run = _PairScreen(setting, pair, one_metric, plan)
        estimates = run.along_path(steps, max_batch) if steps else run.at_target()
        rows = []
        for cell in plan:
            value = estimates[cell]
            fraction, reason = recovered(run.target + value, run.source, run.target, floor)
            head = [pair.name, pair.cluster, setting.direction, cell.layer, cell.component, cell.head, cell.positions]
            rows.append([*head, run.source, run.target, value, None if reason else fraction, steps, reason])
        frames.append(pl.DataFrame(rows, schema=SCREEN_SCHEMA, orient="row"))
        if progress is not None:
            progress(number + 1, len(pairs))
    frame = pl.concat(frames)
    n_checked = min(check, len(plan))
    agreement = pl.DataFrame(schema=AGREEMENT_SCHEMA)
    if n_checked:
        drawn = np.sort(np.random.default_rng(seed).choice(len(plan), n_checked, replace=False))
        sample = frame.filter(pl.col("pair") == pairs[0].name)[drawn.tolist()].select(CELL_KEY)
        sweep = patch_sweep(
            instrument,
            pairs,
            metric=metric,
            source=source,
            layers=layers,
            components=components,
            heads=heads,
            direction=direction,
            controls=0,
            floor=floor,
            cells=sample,
            max_batch=max_batch,
            seed=seed,
        )
        agreement = screen_agreement(sweep, frame, k=max(1, n_checked // 4), seed=seed)
    return PatchScreen(frame, agreement, n_checked, missing, seed)


class _PairScreen:
    """Estimates of one pair."""

    def __init__(self, setting: Setting, pair: PatchPair, metric: Metric, plan: Sequence[Cell]) -> None:
        self.setting, self.pair, self.plan = setting, pair, plan
        self.source_walk, self.target_walk = setting.walks(pair, Donors(torch.tensor([pair.source]), ()))
        self.metric = bind_metric(metric, self.source_walk.logits[0])
        self.source = float(evaluate(self.metric, self.source_walk.logits)[0])
        self.target = float(evaluate(self.metric, self.target_walk.logits)[0])

    def _layers(self) -> Iterator[tuple[list[Cell], dict[tuple[str, str], Tensor], LayerRuns]]:
        """Layer by layer: its cells, and source − target ``[row, …]`` by kind and position class."""
        layers = {cell.layer for cell in self.plan}
        points = {layer: sorted({p for cell in self.plan if cell.layer == layer for p in cell.points}) for layer in layers}
        for runs in together(self.source_walk, self.target_walk, points, both=True):
            here = [cell for cell in self.plan if cell.layer == runs.layer]
            differences = {}
            for kind, label in sorted({(kind, cell.positions) for cell in here for kind in cell.kinds}):
                rows, point = self.pair.rows[label], f"{kind}.{runs.layer}"
                of, to = runs.source[point], runs.target[point]
                differences[kind, label] = of[0, [s for s, _ in rows]].to(to) - to[0, [t for _, t in rows]]
            yield here, differences, runs

    def at_target(self) -> dict[Cell, float]:
        """First-order estimates, from one backward."""
        start = self.target_walk.residual
        differences: dict[tuple[int, str, str], Tensor] = {}
        leaves: dict[str, Tensor] = {}
        for here, found, runs in self._layers():
            differences |= {(runs.layer, kind, label): value for (kind, label), value in found.items()}
            for point in sorted({point for cell in here for point in cell.points}):
                leaves[point] = torch.zeros_like(runs.target[point], requires_grad=True)
        edits = [Add(point, value=leaf) for point, leaf in leaves.items()]
        with frozen_parameters(self.target_walk.instrument.model):
            logits = self.target_walk.tail(0, start, edits, 1, grad=True)
            gradients = dict(zip(leaves, self._gradients(logits, list(leaves.values())), strict=True))
        estimates = {}
        for cell in self.plan:
            targets = [t for _, t in self.pair.rows[cell.positions]]
            parts = [
                (gradients[point][0, targets].float() * differences[cell.layer, kind, cell.positions].float(), kind)
                for kind, point in zip(cell.kinds, cell.points, strict=True)
            ]
            estimates[cell] = sum(_of_head(product, kind, cell.head) for product, kind in parts)
        return estimates

    def along_path(self, steps: int, max_batch: int) -> dict[Cell, float]:
        """Estimates from the mean gradient over midpoints of each component's path."""
        estimates: dict[Cell, float] = {}
        for here, differences, runs in self._layers():
            for component, label in dict.fromkeys((cell.component, cell.positions) for cell in here):
                cells = [cell for cell in here if (cell.component, cell.positions) == (component, label)]
                kinds = cells[0].kinds
                changes = [differences[kind, label] for kind in kinds]
                means = [torch.zeros_like(change, dtype=torch.float32) for change in changes]
                at = (torch.arange(steps, dtype=torch.float32) + 0.5) / steps
                for part in at.split(max_batch):
                    for mean, gradient in zip(means, self._on_path(cells[0], changes, part, runs.residual), strict=True):
                        mean += gradient / steps
                for cell in cells:
                    parts = zip(means, changes, kinds, strict=True)
                    estimates[cell] = sum(_of_head(mean * change.float(), kind, cell.head) for mean, change, kind in parts)
        return estimates

    def _on_path(self, cell: Cell, changes: Sequence[Tensor], at: Tensor, residual: Tensor) -> list[Tensor]:
        """Gradients at fractions ``at [step]`` of the path, summed over steps, ``[row, …]`` for each of the cell's points."""
        targets = [t for _, t in self.pair.rows[cell.positions]]
        leaves = []
        for change in changes:
            fractions = at.to(change).view(-1, *(1,) * change.dim())
            leaves.append((fractions * change).requires_grad_(True))
        edits = [Add(point, rows=targets, value=leaf) for point, leaf in zip(cell.points, leaves, strict=True)]
        with frozen_parameters(self.target_walk.instrument.model):
            logits = self.target_walk.tail(cell.layer, residual, edits, len(at), grad=True)
            return [gradient.float().sum(0) for gradient in self._gradients(logits, leaves)]

    def _gradients(self, logits: Tensor, leaves: list[Tensor]) -> list[Tensor]:
        """Gradients of the metric at the leaves; zeros where it does not depend on one.

        Raises:
            ConfigError: the metric has no gradient, or one that is not finite.
        """
        with torch.enable_grad():
            value = evaluate(self.metric, logits)
            if not value.requires_grad:
                raise ConfigError("The metric has no gradient.", todo="Use a differentiable metric, or patch_sweep.")
            found = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
        gradients = [torch.zeros_like(leaf) if gradient is None else gradient for gradient, leaf in zip(found, leaves, strict=True)]
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            raise ConfigError("The metric's gradient is NaN or infinite.", todo="Use patch_sweep, which needs no gradient.")
        return gradients


def _of_head(product: Tensor, kind: str, head: int | None) -> float:
    """Sum over rows and dimensions of ``[row, …]``, of one head where one is named."""
    if head is not None and kind in HEAD_POINTS:
        product = product[:, head]
    return float(product.sum())
