"""Adapter surgery: which part of a LoRA carries the behaviour.

1. The adapter is a sum of changes ``s B A``, one a module. A part (the modules of some layers, or of some projections) is added to the loaded base in place,
   log P of the behaviour's first token is read over all examples, and the weights are put back from copies, bit for bit: the base is loaded once, whatever
   the number of parts.
2. Value: log P under the part less log P of the base, nats. The whole adapter is part and place ``all``; what a part has of it is a share (``pool_effects``).
   Shares of disjoint parts need not add up to 1: what they do together is not the sum of what each does alone.
3. Null models: other adapters cut in the same way (the random twin of equal norm, another behaviour's). The first one's value is the control of the tuned
   model's parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import nn

from symbolic_residue.contrast._adapters import LoraModule, read_adapter
from symbolic_residue.contrast._examples import Example
from symbolic_residue.contrast.causal._exchange import ALL
from symbolic_residue.contrast.causal._ready import check_examples, fields, log_probabilities
from symbolic_residue.contrast.causal._tables import causal_frame
from symbolic_residue.errors import AdapterError, ConfigError
from symbolic_residue.instrument import Instrument

__all__ = ["ALL_LAYERS", "grafted", "surgery"]

ALL_LAYERS = "all layers"


def surgery(
    base: Instrument,
    adapter: str | Path,
    examples: Sequence[Example],
    *,
    layer_ranges: Sequence[tuple[int, int]] | None = None,
    projections: Sequence[str | Sequence[str]] | None = None,
    nulls: Mapping[str, str | Path] | None = None,
    batch: int = 8,
) -> pl.DataFrame:
    """Effect of each part of an adapter.

    Args:
        base: the model that the adapter was made for, without it.
        adapter: PEFT folder of a plain LoRA.
        examples: with the behaviour.
        layer_ranges: (first, last), both in; by default quarters of the layers that the adapter changes.
        projections: names of modules, or several that go together; by default each that the adapter changes.
        nulls: name → PEFT folder of another adapter, cut in the same way (where it changes other modules, those that it has).
        batch: examples a forward.

    Returns:
        Columns as in ``CAUSAL``: ``model`` tuned and the names of the nulls, ``part`` projections joined by + or all, ``place`` layers a–b or all layers.

    Raises:
        AdapterError, DamagedFileError: adapters that are no plain LoRA, or do not fit the base; a range or projection that the adapter does not change.
        ConfigError: a null named as the tuned model or the base.
        RecordError, PromptError, InstrumentError: examples that cannot be asked.
    """
    check_examples(examples, base)
    folders = {"tuned": Path(adapter), **{name: Path(folder) for name, folder in (nulls or {}).items()}}
    if len(folders) != 1 + len(nulls or {}) or "base" in folders:
        raise ConfigError("A null model is named 'tuned' or 'base'.", todo="Give it a name of its own, such as 'random'.")
    read = {name: list(read_adapter(folder).modules.values()) for name, folder in folders.items()}
    mine = read["tuned"]
    ranges = _quarters(mine) if layer_ranges is None else [(int(a), int(b)) for a, b in layer_ranges]
    names = sorted({m.projection for m in mine}) if projections is None else projections
    groups = [(one,) if isinstance(one, str) else tuple(one) for one in names]
    plan: list[tuple[str, str, Any]] = [(ALL, ALL_LAYERS, lambda m: True)]
    plan += [(ALL, f"layers {a}–{b}", lambda m, a=a, b=b: m.layer is not None and a <= m.layer <= b) for a, b in ranges]
    plan += [("+".join(group), ALL_LAYERS, lambda m, group=group: any(m.named(name) for name in group)) for group in groups]
    for part, place, keeps in plan:
        if not any(keeps(m) for m in mine):
            raise AdapterError(f"The adapter {adapter} changes nothing in {part}, {place}.", todo="Leave this part out.")
    before = log_probabilities(base, examples, batch=batch)
    values: dict[tuple[str, str, str], list[float]] = {}
    for model, modules in read.items():
        for part, place, keeps in plan:
            with grafted(base.model, [m for m in modules if keeps(m)]):
                found = log_probabilities(base, examples, batch=batch)
            values[model, part, place] = [after - own for after, own in zip(found, before, strict=True)]
    first = next(iter(nulls or {}), None)
    return causal_frame(
        {
            "analysis": "surgery", "model": model, **fields(example), "part": part, "place": place, "value": found[i],
            "control": values[first, part, place][i] if first is not None and model == "tuned" else None, "unit": "nats",
        }
        for (model, part, place), found in values.items()
        for i, example in enumerate(examples)
    )  # fmt: skip


@contextmanager
def grafted(model: nn.Module, modules: Sequence[LoraModule]) -> Iterator[None]:
    """The model with these changes in its weights; on the way out the weights are as before, bit for bit.

    Args:
        model: a transformers model.
        modules: of a LoRA.

    Raises:
        AdapterError: a module that the model does not have, or of another shape.
    """
    weights: dict[str, nn.Parameter] = {}
    parts = dict(model.named_modules())
    for m in modules:
        weight = getattr(parts.get(m.path), "weight", None)
        shape = (m.b.shape[0], m.a.shape[1])
        turned = type(parts.get(m.path)).__name__ == "Conv1D"
        if not isinstance(weight, nn.Parameter) or tuple(weight.shape) != (shape[::-1] if turned else shape):
            raise AdapterError(
                f"The adapter's change of {m.path!r} fits nothing in the base.", todo="Use the base that it was made for."
            )
        weights[m.path] = weight
    kept = {path: weight.detach().clone() for path, weight in weights.items()}
    try:
        with torch.no_grad():
            for m in modules:
                weight = weights[m.path]
                change = m.scale * (m.b.to(weight.device, torch.float32) @ m.a.to(weight.device, torch.float32))
                weight.add_((change.T if type(parts[m.path]).__name__ == "Conv1D" else change).to(weight.dtype))
        yield
    finally:
        with torch.no_grad():
            for path, old in kept.items():
                weights[path].copy_(old)


def _quarters(modules: Sequence[LoraModule]) -> list[tuple[int, int]]:
    layers = sorted({m.layer for m in modules if m.layer is not None})
    n = min(4, len(layers))
    cuts = [round(i * len(layers) / n) for i in range(n + 1)] if n else []
    return [(layers[a], layers[b - 1]) for a, b in pairwise(cuts)]
