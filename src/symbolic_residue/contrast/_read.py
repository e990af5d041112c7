"""Readout and force-feed: one forward a sequence, and the masses of the rows asked for.

1. The saved ids run through a model as they are: the tuned one that wrote them, or any reference (base, other adapter, random adapter). Nothing is drawn.
2. Each row's attention is summed by bucket, exactly and without the T × T matrix. Both segmentations are read in one forward: keys are grouped by
   the pair of their buckets, and a bucket is the sum of its groups. The row's own key is ``self``.
3. The buckets of a row sum to 1 (checked, a sink logit's weight counted as ``sink``); a row that does not is refused.
4. Sequences of similar length run together, padded on either side; the rows of one are read in all and the others' dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from symbolic_residue.contrast._examples import Example
from symbolic_residue.contrast._records import RECORDS
from symbolic_residue.contrast._rows import Row
from symbolic_residue.contrast._segment import BUCKETS
from symbolic_residue.errors import InstrumentError
from symbolic_residue.instrument import AttentionRead, collate, Instrument
from symbolic_residue.prompts import Regions

__all__ = ["REGIONS", "Reading", "read_examples", "to_records"]

REGIONS = (*BUCKETS, "self")
"""Regions of a row, in the order of a reading's last axis."""

_SUM_TOLERANCE = 2e-3


@dataclass(frozen=True)
class Reading:
    """The rows of one example under one model.

    Attributes:
        example: which.
        rows: in the order of the first axis.
        masses: for each segmentation ``[row, layer, head, region]`` float32, regions as in ``REGIONS``.
        layers: numbers of the layers.
    """

    example: Example
    rows: tuple[Row, ...]
    masses: dict[str, NDArray[np.float32]]
    layers: tuple[int, ...]


def read_examples(
    instrument: Instrument,
    examples: Sequence[Example],
    buckets: Sequence[dict[str, list[str]]],
    rows: Sequence[Sequence[Row]],
    *,
    batch: int = 4,
    side: str = "left",
    on_reading: Callable[[Reading], None] | None = None,
) -> list[Reading]:
    """Masses of the asked rows.

    Args:
        instrument: the model that reads.
        examples: what it reads.
        buckets: of each example, from ``segment``.
        rows: of each example.
        batch: sequences a forward.
        side: where padding goes, ``left`` or ``right``.
        on_reading: called with each reading as it comes, in the order of length.

    Returns:
        In the order of the examples; those without rows are left out.

    Raises:
        InstrumentError: a row whose buckets do not sum to 1.
    """
    order = sorted((i for i in range(len(examples)) if rows[i]), key=lambda i: (len(examples[i].ids), i))
    found: dict[int, Reading] = {}
    for start in range(0, len(order), batch):
        group = order[start : start + batch]
        some = [examples[i] for i in group]
        read = _forward(instrument, some, [buckets[i] for i in group], [rows[i] for i in group], side)
        for i, reading in zip(group, read, strict=True):
            found[i] = reading
            if on_reading is not None:
                on_reading(reading)
    return [found[i] for i in sorted(found)]


def _forward(
    instrument: Instrument,
    examples: Sequence[Example],
    buckets: Sequence[dict[str, list[str]]],
    rows: Sequence[Sequence[Row]],
    side: str,
) -> list[Reading]:
    batch = collate([list(example.ids) for example in examples], side=side)  # pyright: ignore[reportArgumentType]
    names = list(buckets[0])
    pairs = sorted({pair for one in buckets for pair in zip(*(one[name] for name in names), strict=True)})
    regions = [
        Regions(
            tuple("|".join(pair) for pair in pairs),
            np.array([pairs.index(pair) for pair in zip(*(one[name] for name in names), strict=True)]),
        )
        for one in buckets
    ]
    asked = sorted({batch.lead[i] + row.row for i, own in enumerate(rows) for row in own})
    trace = instrument.run(
        batch, attention=AttentionRead(regions=regions, stats=("mass", "sink"), rows=tuple(asked), split_self=True), keep_logits=1
    )
    table = trace.attention
    assert table is not None
    mass = table["mass"].float().numpy()  # [layer, batch, head, row, region]
    sink = table["sink"].float().numpy()  # [layer, batch, head, row]
    column = {int(row): j for j, row in enumerate(table.rows)}
    out = []
    for i, own in enumerate(rows):
        at = [column[batch.lead[i] + row.row] for row in own]
        here = np.moveaxis(mass[:, i][:, :, at], 2, 0)  # [row, layer, head, region]
        masses = {}
        for k, name in enumerate(names):
            whole = np.zeros((*here.shape[:3], len(REGIONS)), np.float32)
            for j, label in enumerate(table.regions):
                region = "self" if label == "self" else label.split("|")[k]
                whole[..., REGIONS.index(region)] += here[..., j]
            whole[..., REGIONS.index("sink")] += np.moveaxis(sink[:, i][:, :, at], 2, 0)
            off = float(np.abs(whole.sum(-1) - 1).max())
            if not off <= _SUM_TOLERANCE:
                raise InstrumentError(
                    f"The buckets of a row of example {examples[i].id!r} sum to 1 ± {off:.3g}.",
                    why="A mass that does not add up is counted twice or lost.",
                    todo="Report this with the model's name; read with backend='dense' to see which is right.",
                )
            masses[name] = whole
        out.append(Reading(examples[i], tuple(own), masses, tuple(table.layers)))
    return out


def to_records(readings: Sequence[Reading], model: str, *, heads: bool = False) -> pl.DataFrame:
    """The long table of readings (columns of ``RECORDS`` and ``row``).

    Args:
        readings: of one model.
        model: its name in the table.
        heads: one record a head; otherwise the mean over heads, ``head`` null.
    """
    frames = []
    for reading in readings:
        for segmentation, masses in reading.masses.items():
            values = masses if heads else masses.mean(axis=2, keepdims=True)
            index = np.indices(values.shape).reshape(4, -1)
            row_of = reading.rows
            frames.append(
                pl.DataFrame(
                    {
                        "model": pl.repeat(model, values.size, eager=True),
                        "condition": pl.repeat(reading.example.condition, values.size, eager=True),
                        "example": pl.repeat(reading.example.id, values.size, eager=True),
                        "cluster": pl.repeat(reading.example.question, values.size, eager=True),
                        "layer": np.array(reading.layers, np.int32)[index[1]],
                        "head": pl.Series(index[2].astype(np.int32))
                        if heads
                        else pl.repeat(None, values.size, dtype=pl.Int32, eager=True),
                        "region": pl.Series(REGIONS)[index[3]],
                        "segmentation": pl.repeat(segmentation, values.size, eager=True),
                        "stratum": pl.Series([row.stratum for row in row_of])[index[0]],
                        "query_offset": np.array([row.query_offset for row in row_of], np.int32)[index[0]],
                        "row": np.array([row.row for row in row_of], np.int64)[index[0]],
                        "mass": np.clip(values.reshape(-1).astype(np.float64), 0.0, None),
                    }
                )
            )
    columns = {**{name: kind for name, kind in RECORDS.items() if name != "mass"}, "row": pl.Int64(), "mass": RECORDS["mass"]}
    return pl.concat(frames) if frames else pl.DataFrame(schema=columns)
