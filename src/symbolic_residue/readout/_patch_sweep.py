"""Activation patching: put what a source run computed into a target run, place by place, and see how much of the source's output comes with it.

1. Source and target are two prompts of one model (clean into corrupted, or back), one prompt of two models (base, tuned, adapter), or both.
2. For each pair of prompts both runs are walked side by side, a few layers at a time. At each layer its cells (component × head × position class), and the
   same cells from control donors, run as one batch of repeats of the target, each with its own edit, restarting at that layer and at the first
   patched row.
3. Each run gives the metric at the last row. Effect = patched − target, in the metric's unit; recovered = effect / (source − target).
4. Every patch stands beside its controls (unrelated prompts, or the source's own rows shuffled): ``excess = recovered − mean of controls``.
5. Over pairs: means with bootstrap intervals that resample pairs (or their clusters), n counts pairs, never layers or heads; p values of
   the excess are family-wise over all cells of the sweep (max-T by sign flips).

Sources: Vig et al. 2020; Meng et al. 2022 (causal tracing); Wang et al. 2022; Zhang and Nanda 2023 ("Towards best practices of activation patching").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import Replace, Trace
from symbolic_residue.readout._patch_cells import Cell, CELL_KEY, check_same_architecture, Heads, plan_cells
from symbolic_residue.readout._patch_controls import Donors, make_donors
from symbolic_residue.readout._patch_metric import bind_metric, evaluate, Metric, recovered
from symbolic_residue.readout._patch_pairs import PatchPair
from symbolic_residue.readout._patch_restart import verify, Walk
from symbolic_residue.readout._patch_table import Direction, PatchSweep, SCHEMA
from symbolic_residue.readout._patch_together import LayerRuns, together

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument

__all__ = ["Setting", "patch_sweep"]

COMPONENTS = ("resid_pre", "attn_out", "mlp_out")


class Setting:
    """What a sweep and a screen share: both models, the pairs in their direction, a metric for each pair.

    Args:
        instrument: of the target model (of the source model under ``direction="noise"``).
        pairs: as given by the user.
        metric: one for all pairs, or one a pair.
        source: of the other model, or None for one model.
        direction: ``"denoise"``: pairs as they are; ``"noise"``: prompts and models exchange their roles.

    Raises:
        ConfigError: an unknown direction, not one metric a pair.
        ModelError: models that differ in architecture or tokenizer.
    """

    def __init__(
        self,
        instrument: Instrument,
        pairs: Sequence[PatchPair],
        metric: Metric | Sequence[Metric],
        source: Instrument | None,
        direction: Direction,
    ) -> None:
        if direction not in ("denoise", "noise"):
            raise ConfigError(f"direction={direction!r} is unknown.", todo="Use 'denoise' (source into target) or 'noise' (back).")
        other = instrument if source is None else source
        check_same_architecture(instrument, other)
        noise = direction == "noise"
        self.direction: Direction = direction
        self.target, self.source = (other, instrument) if noise else (instrument, other)
        self.pairs = [pair.swapped() if noise else pair for pair in pairs]
        self.metrics: list[Metric] = [metric] * len(pairs) if callable(metric) else list(metric)
        if len(self.metrics) != len(pairs):
            raise ConfigError(f"There are {len(self.metrics)} metrics for {len(pairs)} pairs.", todo="Give one, or one a pair.")

    def walks(self, pair: PatchPair, donors: Donors) -> tuple[Walk, Walk]:
        """Source (with its control prompts) and target before their first block; each model is verified the first time it is met."""
        source, target = Walk(self.source, donors.ids), Walk(self.target, torch.tensor([pair.target]))
        verify(target)
        verify(source)
        return source, target


def patch_sweep(
    instrument: Instrument,
    pairs: Sequence[PatchPair],
    *,
    metric: Metric | Sequence[Metric],
    source: Instrument | None = None,
    layers: Sequence[int] | None = None,
    components: Sequence[str] = COMPONENTS,
    heads: Heads = "each",
    direction: Direction = "denoise",
    controls: int | Sequence[Any] = 2,
    floor: float = 0.01,
    cells: pl.DataFrame | None = None,
    max_batch: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    on_cells: Callable[[pl.DataFrame], None] | None = None,
    resume: pl.DataFrame | None = None,
) -> PatchSweep:
    """Activation patching over layers × components × heads × position classes.

    Args:
        instrument: of the model that is patched.
        pairs: from :func:`patch_pair` or :func:`patch_pairs`; all with the same position classes.
        metric: ``logits [batch, vocab]`` (float32, last row) → ``[batch]``; one for all pairs, or one a pair.
        source: of the model that the values come from; the patched model itself when left out.
        layers: which; all when left out.
        components: ``resid_pre resid_mid resid_post attn_out mlp_out mixer_out z q k v``, or several patched at once, joined by ``+``.
        heads: at z, q, k, v: a cell for ``"each"`` head, or one for all ``"together"``.
        direction: ``"denoise"`` puts source into target; ``"noise"`` exchanges the two (prompts and models).
        controls: how many shuffles of the source's rows, or unrelated prompts (at least as long as the source). 0 leaves controls out, and the table
            says so by nulls. Each costs as much as the sweep itself.
        floor: smallest ``|source − target|``, in the metric's unit, at which a fraction is given.
        cells: only the cells in this frame (columns ``layer component head positions``), e.g. a screen's ``top``.
        max_batch: most runs at a time.
        seed: of the shuffles.
        progress: called with (cells done, cells in all).
        on_cells: called with each batch of finished cells (rows of the table), so that an interrupted sweep keeps them.
        resume: rows from an earlier sweep of the same settings; their cells are not run again.

    Raises:
        ConfigError: options that contradict each other, a metric of another shape or that is NaN, a ``resume`` table of another sweep.
        ModelError: two models that differ in architecture or tokenizer.
        ReadError, EditError, InstrumentError: see those.
    """
    setting = Setting(instrument, pairs, metric, source, direction)
    plan, missing = plan_cells(setting.target, setting.pairs, layers=layers, components=components, heads=heads, only=cells)
    if max_batch < 1 or not floor >= 0:
        raise ConfigError(f"max_batch={max_batch} and floor={floor} must be positive.")
    earlier = _Earlier(resume, setting)
    frames: list[pl.DataFrame] = []
    total = len(plan) * len(pairs)
    done = 0
    for number, (pair, one_metric) in enumerate(zip(setting.pairs, setting.metrics, strict=True)):
        todo, kept = earlier.split(pair, plan)
        frames.append(kept)
        done += len(kept)
        if not todo:
            continue
        donors = make_donors(pair, controls, np.random.default_rng((seed, number)))
        run = _PairRun(setting, pair, one_metric, donors, floor)
        earlier.check(kept, run)
        for finished in run.cells(todo, max_batch):
            frames.append(finished)
            done += len(finished)
            if on_cells is not None:
                on_cells(finished)
            if progress is not None:
                progress(done, total)
    table = pl.concat(frames)
    names = {pair.name: i for i, pair in enumerate(pairs)}
    kinds = {component: i for i, component in enumerate(components)}
    order = (
        pl.col("pair").replace_strict(names, return_dtype=pl.Int64),
        pl.col("layer"),
        pl.col("component").replace_strict(kinds, return_dtype=pl.Int64),
        pl.col("positions").replace_strict({label: i for i, label in enumerate(pairs[0].rows)}, return_dtype=pl.Int64),
        pl.col("head"),
    )
    return PatchSweep(table.sort(order, maintain_order=True), missing, seed, floor)


class _PairRun:
    """All cells of one pair."""

    def __init__(self, setting: Setting, pair: PatchPair, metric: Metric, donors: Donors, floor: float) -> None:
        self.setting, self.pair, self.donors, self.floor = setting, pair, donors, floor
        self.source_walk, self.target_walk = setting.walks(pair, donors)
        self.metric = bind_metric(metric, self.source_walk.logits[0])
        self.source = float(evaluate(self.metric, self.source_walk.logits[:1])[0])
        self.target = float(evaluate(self.metric, self.target_walk.logits)[0])

    def cells(self, todo: Sequence[Cell], max_batch: int) -> Iterator[pl.DataFrame]:
        """Frames of finished cells, layer by layer."""
        points = {
            layer: sorted({p for cell in todo if cell.layer == layer for p in cell.points}) for layer in {c.layer for c in todo}
        }
        for runs in together(self.source_walk, self.target_walk, points):
            # Cells of one position class share the rows that must run.
            for label in self.pair.rows:
                here = [cell for cell in todo if cell.layer == runs.layer and cell.positions == label]
                yield from self._of_class(here, runs, max_batch)

    def _of_class(self, here: Sequence[Cell], runs: LayerRuns, max_batch: int) -> Iterator[pl.DataFrame]:
        each = 1 + self.donors.count
        items = [(cell, donor) for cell in here for donor in range(each)]
        values: list[float] = []
        start = 0
        for first in range(0, len(items), max_batch):
            chunk = items[first : first + max_batch]
            first_row = self.target_walk.first_row(min(t for _, t in self.pair.rows[here[0].positions]))
            edits = [edit for i, (cell, donor) in enumerate(chunk) for edit in self._edits(cell, donor, runs.source, i, first_row)]
            logits = self.target_walk.tail(runs.layer, runs.residual, edits, len(chunk), first_row=first_row)
            values += evaluate(self.metric, logits).tolist()
            complete = len(values) // each
            if complete > start:
                rows = [self._row(here[i], values[i * each : (i + 1) * each]) for i in range(start, complete)]
                start = complete
                yield pl.DataFrame(rows, schema=SCHEMA, orient="row")

    def _edits(self, cell: Cell, donor: int, activations: Trace, repeat: int, first_row: int) -> list[Replace]:
        rows = self.pair.rows[cell.positions]
        sources, targets = [s for s, _ in rows], [t for _, t in rows]
        edits = []
        for kind, point in zip(cell.kinds, cell.points, strict=True):
            value: Tensor = self.donors.value(activations[point], donor, sources)
            chosen = None if cell.head is None else (cell.head,)
            if cell.head is not None:
                value = value[:, :, cell.head : cell.head + 1]
            # Attention gets the kept prefix's keys and values together with the new ones, so there rows count from the start.
            at = targets if kind in ("k", "v") else [t - first_row for t in targets]
            edits.append(Replace(point, rows=at, heads=chosen, batch=(repeat,), value=value))
        return edits

    def _row(self, cell: Cell, values: Sequence[float]) -> list[Any]:
        patched, *controls = values
        fraction, reason = recovered(patched, self.source, self.target, self.floor)
        effects = [value - self.target for value in controls]
        control = math.fsum(effects) / len(effects) / (self.source - self.target) if effects and reason is None else None
        head = [self.pair.name, self.pair.cluster, self.setting.direction, cell.layer, cell.component, cell.head, cell.positions]
        gained = None if reason else fraction
        return [*head, self.source, self.target, patched, patched - self.target, gained, control, effects, len(effects), reason]


class _Earlier:
    """Cells of an earlier sweep: taken over where they belong to this one."""

    def __init__(self, table: pl.DataFrame | None, setting: Setting) -> None:
        self.table = pl.DataFrame(schema=SCHEMA) if table is None else table
        if dict(self.table.schema) != SCHEMA:
            raise ConfigError("The table to resume from has other columns than a sweep's.", todo="Give rows of PatchSweep.table().")
        if bool((self.table["direction"] != setting.direction).any()):
            raise ConfigError("The table to resume from was patched in the other direction.")

    def split(self, pair: PatchPair, plan: Sequence[Cell]) -> tuple[list[Cell], pl.DataFrame]:
        """Cells still to run, and the rows of the others."""
        mine = self.table.filter(pl.col("pair") == pair.name)
        wanted = {cell.key for cell in plan}
        keys = [Cell(*row).key for row in mine.select(CELL_KEY).iter_rows()]
        if len(set(keys)) != len(keys):
            raise ConfigError(f"The table to resume from names cells of pair {pair.name!r} twice.")
        kept = mine.filter(pl.Series([key in wanted for key in keys], dtype=pl.Boolean))
        had = set(keys)
        return [cell for cell in plan if cell.key not in had], kept

    @staticmethod
    def check(kept: pl.DataFrame, run: _PairRun) -> None:
        """Refuse rows whose source or target value, or number of controls, is another than this sweep's."""
        if not len(kept):
            return
        scale = 1e-4 * (1 + abs(run.source) + abs(run.target))
        off = max(float((kept[name] - now).abs().max()) for name, now in (("source", run.source), ("target", run.target)))  # type: ignore[arg-type]
        if off > scale or bool((kept["control_n"] != run.donors.count).any()):
            raise ConfigError(
                f"The table to resume from belongs to another sweep (pair {run.pair.name!r}: source or target differ by {off:.2g}).",
                todo="Resume with the same prompts, models, metric and controls.",
            )
