"""Models, prompts and the oracle that the patching tests share."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from tiny_models import build

from symbolic_residue.instrument import Instrument, Replace
from symbolic_residue.models import bind
from symbolic_residue.readout import PatchPair


def instrument_of(model: Any, tokenizer: Any = None) -> Instrument:
    return Instrument(SimpleNamespace(model=model, parts=bind(model), tokenizer=tokenizer))  # type: ignore[arg-type]


def tiny(name: str, seed: int = 0, **changes: Any) -> Instrument:
    return instrument_of(build(name, seed=seed, **changes))


def prompt(seed: int, n: int = 9) -> torch.Tensor:
    return torch.randint(4, 384, (n,), generator=torch.Generator().manual_seed(seed))


def metric_of(
    instrument: Instrument, ids: tuple[int, ...], metric: Callable[[torch.Tensor], torch.Tensor], edits: Any = ()
) -> float:
    """The metric after one whole forward of one sequence."""
    trace = instrument.run(torch.tensor([ids]), edits=edits)
    return float(metric(trace["logits"][:, -1].float())[0])


def one_at_a_time(
    target: Instrument,
    pair: PatchPair,
    metric: Callable[[torch.Tensor], torch.Tensor],
    row: dict[str, Any],
    source: Instrument | None = None,
) -> float:
    """Oracle: read the source in a whole forward, patch one cell in another whole forward."""
    sources, targets = zip(*pair.rows[row["positions"]], strict=True)
    points = [f"{kind}.{row['layer']}" for kind in row["component"].split("+")]
    taken = (source or target).run(torch.tensor([pair.source]), reads=points)
    edits = []
    for point in points:
        value, heads = taken[point][:, list(sources)], None
        if row["head"] is not None:
            value, heads = value[:, :, [row["head"]]], (row["head"],)
        edits.append(Replace(point, rows=targets, heads=heads, value=value))
    return metric_of(target, pair.target, metric, edits)
