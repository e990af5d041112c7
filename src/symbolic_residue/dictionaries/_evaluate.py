"""How well a dictionary stands in for the MLPs, layer by layer, on prompts.

1. ``fvu``: share of an MLP's write into the residual stream (its variance about the mean over positions of all prompts) that the prediction leaves
   unexplained. 0 is perfect; the mean itself has 1; above 1 it is worse than the mean. ``largest``: the share of that variance that one position holds: near
   1 a second sink is among the positions, and ``fvu`` is about it alone.
2. ``l0``: mean number of active features at a position.
3. ``kl``: KL(model ‖ model with this layer's MLP replaced by the prediction) of the next token, in nats, mean over positions. ``kl_mean`` is its
   control: the same with the mean write in the MLP's place; a prediction that does no better has explained nothing that matters.
4. ``kl_up_to``: the same with this layer and all of the dictionary's below it replaced at once, each reading what those below left: how errors add up.
   ``kl_mean_up_to`` is its control: the same layers' mean writes in their place.
5. The first position is left as the model has it and enters no mean: it holds the attention sink. Intervals: bootstrap over prompts (``n`` of them), not
   over positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import polars as pl
import torch
from torch import Tensor

from symbolic_residue.dictionaries._stand_in import require_model
from symbolic_residue.errors import PromptError
from symbolic_residue.instrument import Replace
from symbolic_residue.stats import bootstrap_columns, bootstrap_ratio, bound

if TYPE_CHECKING:
    from symbolic_residue.dictionaries._dictionary import LayerDictionary, Transcoders
    from symbolic_residue.instrument import Instrument, Trace
    from symbolic_residue.models import LayerParts

__all__ = ["EVALUATED", "error_curves", "evaluate_dictionary"]

EVALUATED = ("fvu", "l0", "kl", "kl_mean", "kl_up_to", "kl_mean_up_to")
"""What a dictionary is measured by, a layer."""

_LEAST = 3
"""Tokens of a prompt: the first is left out, and a variance needs two."""


def evaluate_dictionary(
    instrument: Instrument, dictionary: Transcoders, prompts: Sequence[Sequence[int]], *, seed: int = 0
) -> pl.DataFrame:
    """Measure a dictionary on prompts.

    Args:
        instrument: the model.
        dictionary: of this model.
        prompts: token ids, prompt by prompt.
        seed: of the bootstrap.

    Returns:
        One row a layer of the dictionary: ``layer n``, and ``fvu l0 kl kl_mean kl_up_to kl_mean_up_to``, each with ``_low`` and ``_high`` (95 %; null where
        there are too few prompts for an interval); ``largest``.

    Raises:
        DictionaryError: another width, or layers that the model does not have.
        PromptError: no prompts, or one of fewer than 3 tokens.
    """
    parts = instrument.parts
    require_model(dictionary, parts)
    if not prompts or any(len(ids) < _LEAST for ids in prompts):
        raise PromptError("A prompt is missing, or has fewer than 3 tokens.", todo="Give prompts of 3 tokens and more.")
    layers = sorted(dictionary.layers)
    with torch.no_grad():
        total = {i: torch.zeros(parts.d_model, dtype=torch.float64) for i in layers}
        for ids in prompts:
            trace = instrument.run(torch.tensor([list(ids)]), reads=[f"mlp_out.{i}" for i in layers], keep_logits=1)
            for i in layers:
                total[i] += trace[f"mlp_out.{i}"][0, 1:].double().sum(0)
        count = sum(len(ids) - 1 for ids in prompts)
        means = {i: one / count for i, one in total.items()}
        found = [_prompt(instrument, dictionary, torch.tensor(list(ids)), means) for ids in prompts]
    rows = []
    for i in layers:
        table = torch.tensor(
            [one[i] for one in found], dtype=torch.float64
        ).numpy()  # [prompt, (error, spread, l0, kl, kl_mean, kl_up_to, kl_mean_up_to, largest)]
        _, low, high = bootstrap_ratio(table[:, :1], table[:, 1], seed=seed)
        spread = float(table[:, 1].sum())
        fvu = (float(table[:, 0].sum()) / spread if spread else math.nan, low[0], high[0])
        others = bootstrap_columns(table[:, 2:-1], seed=seed)
        row: dict[str, float | int | None] = {"layer": i, "n": len(prompts)}
        for name, numbers in zip(EVALUATED, [fvu, *zip(*others, strict=True)], strict=True):
            row |= {name + end: bound(x, least=0) for end, x in zip(("", "_low", "_high"), numbers, strict=True)}
        row["largest"] = float(table[:, -1].max()) / spread if spread else math.nan
        rows.append(row)
    floats = {f"{name}{end}": pl.Float64 for name in EVALUATED for end in ("", "_low", "_high")} | {"largest": pl.Float64}
    return pl.DataFrame(rows, schema={"layer": pl.Int64, "n": pl.Int64, **floats})


_CURVES = {
    "kl_up_to": "dictionary, layers up to this one",
    "kl": "dictionary, this layer alone",
    "kl_mean_up_to": "control: mean writes, layers up to this one",
    "kl_mean": "control: mean write, this layer alone",
}


def error_curves(table: pl.DataFrame) -> pl.DataFrame:
    """How errors add up over the layers, as the table that ``figures.curves`` draws: ``curve series x x_unit value low high n unit``.

    Args:
        table: from :func:`evaluate_dictionary`.
    """
    parts = [
        table.select(
            pl.lit("KL of the next token").alias("curve"),
            pl.lit(series).alias("series"),
            pl.col("layer").alias("x"),
            pl.lit("layer").alias("x_unit"),
            pl.col(name).alias("value"),
            pl.col(f"{name}_low").alias("low"),
            pl.col(f"{name}_high").alias("high"),
            "n",
            pl.lit("nats").alias("unit"),
        )
        for name, series in _CURVES.items()
    ]
    return pl.concat(parts)


def _prompt(instrument: Instrument, dictionary: Transcoders, ids: Tensor, means: Mapping[int, Tensor]) -> dict[int, list[float]]:
    """Of one prompt, a layer: squared error and spread summed over positions, the means of l0 and of the four KLs, the spread of one position at most."""
    parts, layers, n = instrument.parts, sorted(dictionary.layers), len(ids)
    rows = tuple(range(1 - n, 0))
    reads = {i: _point(parts.layers[i], dictionary.layers[i]) for i in layers}
    plain = instrument.run(ids[None], reads=[*reads.values(), *(f"mlp_out.{i}" for i in layers)])
    acts: dict[int, Tensor] = {}
    live: dict[int, Tensor] = {}
    below: list[Replace] = []
    means_below: list[Replace] = []
    found: dict[int, list[float]] = {}
    before: Trace = plain
    for step, i in enumerate(layers):
        layer, one = parts.layers[i], dictionary.layers[i]
        x = _input(layer, one, plain[reads[i]][0])
        x_live = _input(layer, one, before[reads[i]][0 if step == 0 else 2])
        acts[i], live[i] = one.encode(x), one.encode(x_live)
        wrote, predicted = plain[f"mlp_out.{i}"][0, 1:], _write(layer, one, dictionary.predict_layer(i, acts, x))[1:]
        below.append(
            Replace(f"mlp_out.{i}", value=_write(layer, one, dictionary.predict_layer(i, live, x_live))[1:], rows=rows, batch=(2,))
        )
        means_below.append(Replace(f"mlp_out.{i}", value=means[i].to(predicted), rows=rows, batch=(3,)))
        edits = [
            Replace(f"mlp_out.{i}", value=predicted, rows=rows, batch=(0,)),
            Replace(f"mlp_out.{i}", value=means[i].to(predicted), rows=rows, batch=(1,)),
            *below,
            *means_below,
        ]
        following = [reads[layers[step + 1]]] if step + 1 < len(layers) else []
        before = instrument.run(ids[None].repeat(4, 1), reads=following, edits=edits)
        error = float((wrote - predicted).double().square().sum())
        about = (wrote.double() - means[i]).square().sum(-1)
        assert plain.logits is not None and before.logits is not None
        kl = _kl(plain.logits[0, 1:], before.logits[:, 1:])
        found[i] = [error, float(about.sum()), float((acts[i][1:] != 0).sum()) / (n - 1), *kl.tolist(), float(about.max())]
    return found


def _kl(model: Tensor, other: Tensor) -> Tensor:
    """KL(model ‖ other) ``[batch]`` in nats, mean over positions, of logits ``[position, vocab]`` and ``[batch, position, vocab]``."""
    p, q = model.double().log_softmax(-1), other.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean(-1).clamp(min=0)


def _point(layer: LayerParts, one: LayerDictionary) -> str:
    if one.reads == "mlp_in":
        return f"mlp_in.{layer.index}"
    return f"{'resid_pre' if layer.parallel else 'resid_mid'}.{layer.index}"


def _input(layer: LayerParts, one: LayerDictionary, x: Tensor) -> Tensor:
    """What is read, from the tensor at the point."""
    norm = layer.pre_mlp_norm
    if one.reads != "normalized" or norm is None:
        return x
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    if norm.kind == "layer":
        y = y - y.mean(-1, keepdim=True)
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + norm.eps)).to(x.dtype)


def _write(layer: LayerParts, one: LayerDictionary, y: Tensor) -> Tensor:
    """What a prediction adds to the residual stream."""
    norm = layer.post_mlp_norm
    return (norm.module(y) if one.predicts == "mlp" and norm is not None else y) * layer.mlp_scale
