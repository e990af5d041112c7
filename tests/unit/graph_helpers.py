"""Tiny models for tests of attribution graphs: in float64 throughout, so that sums can be asked to hold to 1e-12."""

from __future__ import annotations

from typing import Any

import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.graph import LocalModel, relevance, Rows, unit_rows, Units
from symbolic_residue.instrument import AttentionRead, FreezeNorm, Instrument, norm_scales, PatternReplace, Replace
from symbolic_residue.models import wrap

IDS = torch.arange(5, 17)


def instrument_of(name: str, seed: int = 0, **changes: Any) -> Instrument:
    """A tiny model in float64. transformers computes RMS norms in float32 whatever the model's dtype: here they follow their formula."""
    model = build(name, seed, **changes).double()
    model.config._experts_implementation = "eager"  # the grouped product knows no float64
    loaded = wrap(model, tiny_tokenizer())
    parts = loaded.parts
    norms = [parts.final_norm]
    for layer in parts.layers:
        norms += [n for n in (layer.pre_attn_norm, layer.pre_mlp_norm, layer.post_attn_norm, layer.post_mlp_norm) if n is not None]
    for norm in norms:
        norm.module.forward = norm.formula
    return Instrument(loaded, backend="dense")


def top_units(local: LocalModel, direction: torch.Tensor, count: int, rule: str = "half") -> Units:
    """The neurons with the largest total effect on a direction at the last position."""
    return relevance(local, direction, rule=rule).top(count)  # type: ignore[arg-type]


def with_logit(local: LocalModel, units: Units, a: int, b: int, rule: str = "half") -> Rows:
    """A logit difference and the units as rows, the difference first."""
    weights = torch.zeros(local.vocab_size, dtype=local.dtype)
    weights[a], weights[b] = 1, -1
    direction, constant = local.logit_direction(weights)
    target = Rows(direction[None], constant[None], torch.tensor([local.end]), torch.tensor([len(local) - 1]))
    return target + unit_rows(local, units, rule)  # type: ignore[arg-type]


def frozen_edits(instrument: Instrument) -> list[object]:
    """Edits that hold the model to its local replacement: patterns, norms and MLP outputs as the prompt has them."""
    parts = instrument.parts
    layers = range(parts.n_layers)
    kinds = ("resid_pre", "resid_mid", "z", "mlp_act", "mlp_out")
    points = [f"{k}.{i}" for i in layers for k in kinds if parts.layers[i].absent(k) is None]
    read = AttentionRead(stats=(), rows=tuple(range(-len(IDS), 0)), weights=True)
    trace = instrument.run(IDS[None], reads=[*points, f"resid_post.{layers[-1]}"], attention=read)
    edits: list[object] = []
    for i in layers:
        edits.append(PatternReplace(rows=None, layers=(i,), weights=trace.attention["weights"][i]))
        edits.append(Replace(point=f"mlp_out.{i}", value=trace[f"mlp_out.{i}"]))
        for kind in ("pre_attn_norm", "pre_mlp_norm", "post_attn_norm"):
            if getattr(parts.layers[i], kind) is not None:
                edits.append(FreezeNorm(norm=f"{kind}.{i}", scale=norm_scales(trace, f"{kind}.{i}", parts)))
    edits.append(FreezeNorm(norm="final_norm", scale=norm_scales(trace, "final_norm", parts)))
    return edits
