"""Patching between two models that read the same ids: parts of the donor's run put into the recipient's.

1. Donor and recipient run the same ids up to the row that emits the behaviour. In layer L, with A the attention patterns, V the values and O the output
   projection (its bias and a norm after it included), attention writes ``A V O`` into the residual stream. d is the donor, r the recipient:

   residual    the residual stream after layer L, the donor's
   mlp         what the MLP writes, the donor's
   attention   ``A_d V_d O_d``: what attention writes, the donor's
   qk          ``A_d V_r O_r``: the donor's patterns in every head, on the values that the recipient's own run has there (live: it follows earlier edits)
   ov          ``A_r V_d O_d``: what the donor's attention, reading the donor's residual stream, writes under the recipient's patterns

   So qk moves where heads look and nothing else; ov moves what they carry, weights of v and o and the stream that they read, and leaves the looking alone.
   What the donor's MLP or attention writes also carries what earlier changes made it read: a part that recovers need not be the part that was trained.
2. *Places* are classes of rows; what is replaced is a row's residual stream, MLP output, attention output, or pattern (row = query). ``all`` is every row,
   ``emitting row`` the last; names of buckets (``labels``) are the rows of that bucket, the emitting one left out.
3. One layer at a time, and all layers at once (layer null; all values from the donor's plain run; for ov from the donor's run under the recipient's patterns
   in all layers). The residual stream of all layers at once would be that of the last, and is not run.
4. Value: log P(first token) under the patch less the recipient's own, nats. A row ``part`` total has donor − recipient: what there is to recover. Shares
   are taken when examples are pooled (``pool_effects``), not an example at a time, where a total near 0 would make them anything.
5. Control: an equally large change that is not the donor's. At tensors the recipient's own plus a random direction of the length of ``donor − recipient`` in
   each row; at patterns the difference of patterns moved to other heads of the layer (none where a layer has one head), cut at 0, rows scaled to their sums.
6. A run restarts at the patched layer and, where attention is the only token mixer, at the first patched row (``readout.Walk``). The recipient patched with
   itself is unchanged within rounding (tested in every family).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from torch import Tensor

from symbolic_residue.contrast._examples import Example
from symbolic_residue.contrast._rows import stable_seed
from symbolic_residue.contrast.causal._ready import check_examples, check_places, EMITTING, fields, first_token, log_probability
from symbolic_residue.contrast.causal._tables import causal_frame
from symbolic_residue.errors import ConfigError, ReadError
from symbolic_residue.instrument import AttentionRead, Edit, Instrument, PatternReplace, Replace
from symbolic_residue.readout import check_same_architecture, verify_restart, Walk

__all__ = ["ALL", "DIRECTIONS", "PARTS", "TOTAL", "Cell", "exchange", "patch_models", "rows_of"]

PARTS = ("residual", "mlp", "attention", "qk", "ov")
TUNED_INTO_BASE, BASE_INTO_TUNED = "tuned into base", "base into tuned"
DIRECTIONS = (TUNED_INTO_BASE, BASE_INTO_TUNED)
ALL, TOTAL = "all", "total"
_POINT = {"residual": "resid_post", "mlp": "mlp_out", "attention": "attn_out", "qk": "attn_out", "ov": "attn_out"}


@dataclass(frozen=True)
class Cell:
    """One patch: a part of a layer (None: of all) at the rows of a place; ``control``: the equally large change instead."""

    part: str
    place: str
    layer: int | None
    control: bool = False


def patch_models(
    tuned: Instrument,
    base: Instrument,
    examples: Sequence[Example],
    *,
    labels: Sequence[Sequence[str]] | None = None,
    parts: Sequence[str] = PARTS,
    places: Sequence[str] = (ALL, EMITTING),
    layers: Sequence[int] | None = None,
    together: bool = True,
    directions: Sequence[str] = DIRECTIONS,
    controls: bool = True,
    seed: int = 0,
    max_batch: int = 16,
    on_example: Callable[[pl.DataFrame], None] | None = None,
) -> pl.DataFrame:
    """Patches from tuned into base and back.

    Args:
        tuned, base: the models; both read the same ids.
        examples: with the behaviour.
        labels: of each example, the bucket of every token (``segment(…)["full"]``); needed for places that are buckets.
        parts: some of residual, mlp, attention, qk, ov.
        places: ``all``, ``emitting row``, and names of buckets. An example without rows of a bucket has none in the table there: missing, not zero.
        layers: one by one; all where None, none where empty. Layers that lack a part are left out (refused where named).
        together: also all layers at once (not the residual stream).
        directions: ``tuned into base``, ``base into tuned``.
        controls: also the equally large change that is not the donor's; doubles the cost.
        seed: of the controls.
        max_batch: patches of one example that run together.
        on_example: called with each example's rows as they are done.

    Returns:
        Columns as in ``CAUSAL``; a run costs about (rows that run) × (layers from the patched one on) of a forward for each patch.

    Raises:
        ConfigError: unknown parts, places or directions, labels that do not fit.
        ReadError: a layer that does not have the part.
        RecordError, PromptError, InstrumentError, ModelError: examples or models that cannot be patched.
    """
    check_same_architecture(base, tuned)
    check_examples(examples, tuned, base)
    for given, known, what in ((parts, PARTS, "part"), (directions, DIRECTIONS, "direction")):
        if not given or len(set(given)) < len(given) or not set(given) <= set(known):
            raise ConfigError(f"{what}s={tuple(given)!r}.", todo=f"Use some of: {', '.join(known)}.")
    if not places or len(set(places)) < len(places):
        raise ConfigError(f"places={tuple(places)!r}.", todo="Name some, each once.")
    if labels is not None and len(labels) != len(examples):
        raise ConfigError(f"There are labels for {len(labels)} examples of {len(examples)}.")
    check_places([place for place in places if place not in (ALL, EMITTING)], labels or ())
    plan = _plan(tuned, parts, layers, together)
    frames = []
    for number, example in enumerate(examples):
        where = {place: found for place in places if (found := rows_of(example, None if labels is None else labels[number], place))}
        tools = {TUNED_INTO_BASE: (tuned, base), BASE_INTO_TUNED: (base, tuned)}
        cells = [
            Cell(part, place, layer, control)
            for part, layer in plan for place in where for control in ((False, True) if controls else (False,))
        ]  # fmt: skip
        rows = exchange(example, {name: tools[name] for name in directions}, cells, where, seed=seed, max_batch=max_batch)
        frame = causal_frame({"analysis": "patch", **fields(example), "unit": "nats", **row} for row in rows)
        frames.append(frame)
        if on_example is not None:
            on_example(frame)
    return pl.concat(frames)


def rows_of(example: Example, labels: Sequence[str] | None, place: str) -> list[int]:
    """Rows of a place among those up to the emitting one.

    Raises:
        ConfigError: a bucket without labels, or labels that are not one a token.
    """
    assert example.event is not None
    last = example.event - 1
    if place == ALL:
        return list(range(last + 1))
    if place == EMITTING:
        return [last]
    if labels is None:
        raise ConfigError(
            f"The place {place!r} needs labels.", todo=f"Give the bucket of every token, or use {ALL!r} and {EMITTING!r}."
        )
    if len(labels) < example.event:
        raise ConfigError(f"Example {example.id!r} has {len(example.ids)} tokens and {len(labels)} labels.")
    return [row for row in range(last) if labels[row] == place]


def _plan(tool: Instrument, parts: Sequence[str], layers: Sequence[int] | None, together: bool) -> list[tuple[str, int | None]]:
    """(part, layer), layer by layer; None: all that have it."""
    n = tool.parts.n_layers
    if layers is not None and (wrong := [layer for layer in layers if not 0 <= layer < n]):
        raise ConfigError(f"There is no layer {wrong[0]} in a model of {n} layers.")
    out: list[tuple[str, int | None]] = []
    for part in parts:
        having = _having(tool, part)
        if layers is not None and (lacking := [layer for layer in layers if layer not in having]):
            reason = tool.parts.layers[lacking[0]].absent(_POINT[part])  # pyright: ignore[reportArgumentType]
            raise ReadError(f"Layer {lacking[0]} has no {part} to patch.", why=reason or "", todo=f"Layers that have it: {having}.")
        out += [(part, layer) for layer in (having if layers is None else sorted(set(layers)))]
        if together and part != "residual":
            out.append((part, None))
    if not out:
        raise ConfigError("Nothing would be patched.", todo="Name layers, or together=True.")
    return sorted(out, key=lambda cell: (-1 if cell[1] is None else cell[1], parts.index(cell[0])))


def _having(tool: Instrument, part: str) -> list[int]:
    having = [layer.index for layer in tool.parts.layers if layer.absent(_POINT[part]) is None]  # pyright: ignore[reportArgumentType]
    if not having:
        raise ReadError(f"No layer of this model has {part} to patch.", why=tool.parts.layers[0].absent(_POINT[part]) or "")  # pyright: ignore[reportArgumentType]
    return having


class _Side:
    """One model on one example: its plain run, taken layer by layer, and its attention patterns.

    Attributes:
        log_p: of the token, in the plain run.
        weights: ``[layer, 1, head, row, key]`` of all attention layers, or None where they are not needed.
    """

    def __init__(self, tool: Instrument, ids: Tensor, token: int, *, weights: bool) -> None:
        self.tool, self.walk, self.token = tool, Walk(tool, ids), token
        verify_restart(self.walk)
        self.log_p = float(log_probability(self.walk.logits, [token])[0])
        self.start: Tensor = self.walk.residual
        self.weights: Tensor | None = None
        if weights:
            table = tool.run(
                ids, attention=AttentionRead(stats=(), weights=True, rows=tuple(range(ids.shape[1]))), keep_logits=1
            ).attention
            assert table is not None
            self.weights = table["weights"]
        self._plain: dict[str, Tensor] = {}
        self._before: dict[int, Tensor] = {}
        self._turned: dict[tuple[int, int | None], dict[int, Tensor]] = {}

    def pattern(self, layer: int) -> Tensor:
        """``[1, head, row, key]``."""
        assert self.weights is not None
        return self.weights[self.tool.attention_layers.index(layer)]

    def read(self, points: Sequence[str], layer: int | None) -> None:
        """Keep these points of a layer and the stream before it; with None those of all layers, from a forward of its own (the walk stays where it is)."""
        if layer is None:
            trace = self.tool.run(self.walk.ids, reads=points, keep_logits=1) if points else {}
            self._plain = {name: trace[name] for name in points}
        else:
            names = [*points, f"resid_pre.{layer}"]
            trace = self.walk.advance(layer + 1, names)
            self._plain = {name: trace[name] for name in names}

    def forget(self) -> None:
        """The points read so far are not needed any more."""
        self._plain.clear()
        self._turned.clear()

    def __getitem__(self, point: str) -> Tensor:
        return self._plain[point]

    def under(self, other: _Side, layer: int | None) -> dict[int, Tensor]:
        """What attention writes, ``[1, row, d_model]`` a layer, when it looks where the other model's does: in one layer on the plain stream, or in all."""
        key = (id(other), layer)
        if key not in self._turned:
            layers = self.tool.attention_layers if layer is None else (layer,)
            edits = [PatternReplace(other.pattern(one), None, (one,)) for one in layers]
            points = [f"attn_out.{one}" for one in layers]
            if layer is None:
                trace = self.tool.run(self.walk.ids, reads=points, edits=edits, keep_logits=1)
            else:
                scout = copy.copy(self.walk)
                scout.layer, scout.residual = layer, self[f"resid_pre.{layer}"]
                trace = scout.advance(layer + 1, points, edits)
            self._turned[key] = {one: trace[f"attn_out.{one}"] for one in layers}
        return self._turned[key]


def exchange(
    example: Example,
    tools: Mapping[str, tuple[Instrument, Instrument]],
    cells: Sequence[Cell],
    where: Mapping[str, Sequence[int]],
    *,
    seed: int,
    max_batch: int,
) -> list[dict[str, Any]]:
    """All patches of one example.

    Args:
        example: which.
        tools: direction → (donor, recipient).
        cells: what is patched; controls beside what they control.
        where: place → rows.
        seed: of the controls.
        max_batch: patches that run together.

    Returns:
        Rows with ``model part place layer value control``.
    """
    token = first_token(example)
    ids = torch.tensor([list(example.ids[: example.event])])
    needs = any(cell.part in ("qk", "ov") for cell in cells)
    sides: dict[int, _Side] = {}
    for both in tools.values():
        for tool in both:
            if id(tool) not in sides:
                sides[id(tool)] = _Side(tool, ids, token, weights=needs)
    rows: list[dict[str, Any]] = []
    for name, (donor, recipient) in tools.items():
        rows.append({"model": name, "part": TOTAL, "place": ALL, "value": sides[id(donor)].log_p - sides[id(recipient)].log_p})
    layers = sorted({cell.layer for cell in cells}, key=lambda layer: -1 if layer is None else layer)
    for layer in layers:
        here = [cell for cell in cells if cell.layer == layer]
        parts = {cell.part for cell in here}
        of = {part: [layer] if layer is not None else _having(next(iter(tools.values()))[1], part) for part in parts}
        points = sorted({f"{_POINT[part]}.{one}" for part, some in of.items() for one in some if part != "qk"})
        for side in sides.values():
            side.read(points, layer)
        for name, (donor, recipient) in tools.items():
            give, take = sides[id(donor)], sides[id(recipient)]
            values = _run(give, take, here, of, where, layer, name, example, seed, max_batch)
            rows += _beside(here, values, name)
        for side in sides.values():
            side.forget()
    return rows


def _run(
    give: _Side,
    take: _Side,
    cells: Sequence[Cell],
    of: Mapping[str, Sequence[int]],
    where: Mapping[str, Sequence[int]],
    layer: int | None,
    name: str,
    example: Example,
    seed: int,
    max_batch: int,
) -> dict[Cell, float | None]:
    """log P under each patch less the recipient's own; None for a control that cannot be."""
    out: dict[Cell, float | None] = {}
    first_layer = 0 if layer is None else layer
    residual = take.start if layer is None else take[f"resid_pre.{layer}"]
    groups: dict[int, list[tuple[Cell, list[tuple[str, int, Tensor]]]]] = {}
    for cell in cells:
        rows = list(where[cell.place])
        found = [(one, _value(give, take, cell, one, rows, name, example, seed)) for one in of[cell.part]]
        if any(value is None for _, value in found):
            out[cell] = None
            continue
        groups.setdefault(take.walk.first_row(min(rows)), []).append(
            (cell, [(cell.part, one, v) for one, v in found if v is not None])
        )
    for first_row, items in groups.items():
        for start in range(0, len(items), max_batch):
            chunk = items[start : start + max_batch]
            edits: list[Edit] = []
            for i, (cell, values) in enumerate(chunk):
                rows = [row - first_row for row in where[cell.place]]
                for part, one, value in values:
                    if part == "qk":
                        edits.append(PatternReplace(value, rows, (one,), batch=(i,)))
                    else:
                        edits.append(Replace(f"{_POINT[part]}.{one}", rows=rows, batch=(i,), value=value))
            logits = take.walk.tail(first_layer, residual, edits, len(chunk), first_row=first_row)
            log_p = log_probability(logits, [take.token] * len(chunk)).tolist()
            out |= {cell: value - take.log_p for (cell, _), value in zip(chunk, log_p, strict=True)}
    return out


def _value(
    give: _Side, take: _Side, cell: Cell, layer: int, rows: list[int], name: str, example: Example, seed: int
) -> Tensor | None:
    """What is put at the rows of one layer: ``[1, row, d_model]``, or ``[1, head, row, key]`` for qk."""
    if cell.part == "qk":
        donor, own = give.pattern(layer)[:, :, rows], take.pattern(layer)[:, :, rows]
        return _moved(donor, own, _generator(cell, layer, name, example, seed)) if cell.control else donor
    point = f"{_POINT[cell.part]}.{layer}"
    donor = give.under(take, cell.layer)[layer] if cell.part == "ov" else give[point]
    if not cell.control:
        return donor[:, rows]
    own = take[point]
    generator = _generator(cell, layer, name, example, seed)
    noise = torch.randn(own.shape, generator=generator, dtype=torch.float64)[:, rows].to(own.device)
    length = (donor[:, rows].double() - own[:, rows].double()).norm(dim=-1, keepdim=True)
    return (own[:, rows].double() + noise / noise.norm(dim=-1, keepdim=True) * length).to(own.dtype)


def _moved(donor: Tensor, own: Tensor, generator: torch.Generator) -> Tensor | None:
    """The recipient's patterns with the change of another head: each head gets that of the head a random step further."""
    n_heads = own.shape[1]
    if n_heads < 2:
        return None
    step = int(torch.randint(1, n_heads, (1,), generator=generator))
    changed = (own.double() + (donor.double() - own.double()).roll(step, dims=1)).clamp_min(0.0)
    sums = changed.sum(-1, keepdim=True)
    scaled = changed * (own.double().sum(-1, keepdim=True) / sums.masked_fill(sums == 0, 1.0))
    return torch.where(sums > 0, scaled, own.double()).to(own.dtype)


def _generator(cell: Cell, layer: int, name: str, example: Example, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(stable_seed(example.condition, example.id, name, cell.part, layer, seed=seed) % 2**63)


def _beside(cells: Sequence[Cell], values: Mapping[Cell, float | None], name: str) -> list[dict[str, Any]]:
    rows = []
    for cell in cells:
        if not cell.control:
            control = values.get(Cell(cell.part, cell.place, cell.layer, True))
            rows.append(
                {
                    "model": name,
                    "part": cell.part,
                    "place": cell.place,
                    "layer": cell.layer,
                    "value": values[cell],
                    "control": control,
                }
            )
    return rows
