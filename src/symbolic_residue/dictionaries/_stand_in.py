"""A dictionary in the model's own forward: its features in the place of MLPs, live, set or held, beside an error that is held.

1. In the dictionary's layers an MLP's output becomes: what features write (in a cross-layer transcoder those of lower layers too), the decoder's bias, the skip
   connection of what is read in this run, and the *error*: what the dictionary left of the MLP's output on a prompt, held. With the prompt's own errors and
   nothing changed the run is the prompt's.
2. Features are live: computed in this run from what the layer then reads, by encoder and activation. A function may set them, mix them, or put others there;
   layers above and the same layer's write see what it left.
3. Where a norm follows the MLP and the dictionary predicts what goes into it (``mlp``), the error is held before that norm, which stays live.
4. Norms may be frozen at given scales: the skip and the write are then linear in what is read.
5. Without errors the model's own MLPs run, and what is changed about the live features is added to their outputs, decoder row by decoder row.

Layers that the dictionary does not have are the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.dictionaries._dictionary import Dictionary, LayerDictionary, predicted
from symbolic_residue.errors import DictionaryError, UnsupportedModelError
from symbolic_residue.instrument import AttentionRead, Edit, Instrument, Replace, Trace
from symbolic_residue.types import Point

if TYPE_CHECKING:
    from symbolic_residue.models import LayerParts, Norm, Parts

__all__ = ["Changed", "FrozenScales", "Standing", "require_model", "stand_in", "standing"]

Changed = Callable[[int, Tensor], Tensor]
"""Layer and live activations ``[sequence, row, feature]`` to those that are used."""


@dataclass(frozen=True, eq=False)
class Standing:
    """What a dictionary does on some sequences.

    Attributes:
        features: by layer, ``[sequence, row, feature]``.
        errors: by layer, ``[sequence, row, d_model]``: the MLP's output − the prediction, where the dictionary predicts it.
        logits: ``[sequence, vocab]`` of the last row.
    """

    features: Mapping[int, Tensor]
    errors: Mapping[int, Tensor]
    logits: Tensor


@dataclass(frozen=True, eq=False)
class FrozenScales:
    """Norms' scales by layer, ``[row]`` each: of the norm before the MLP, and of the one after it."""

    before: Mapping[int, Tensor]
    after: Mapping[int, Tensor]


def require_model(dictionary: Dictionary, parts: Parts) -> None:
    """Refuse a dictionary of another model.

    Raises:
        DictionaryError: another width, or layers that the model does not have.
    """
    for i, one in dictionary.layers.items():
        if i >= parts.n_layers or one.d_model != parts.d_model:
            raise DictionaryError(
                f"The dictionary has layer {i} of width {one.d_model}; the model has layers 0 to {parts.n_layers - 1} of width {parts.d_model}.",
                why="It was trained on another model.",
                todo="Give a dictionary of this model, or name the model that it is of.",
            )


def standing(
    instrument: Instrument, dictionary: Dictionary, ids: Tensor, first: int = 0, *, attention: AttentionRead | None = None
) -> Standing:
    """Features and errors of sequences ``[sequence, position]`` from a position on.

    ``attention``: what the runs that they are for read, or hold: by which attention is computed as it is there.

    Raises:
        DictionaryError: a dictionary of another model.
        UnsupportedModelError: a norm follows an MLP whose output before it cannot be had.
    """
    parts = instrument.parts
    require_model(dictionary, parts)
    kinds = {"mlp_out": {}, "read": {}, "inside": {}}
    for i, one in dictionary.layers.items():
        kinds["mlp_out"][i], kinds["read"][i] = f"mlp_out.{i}", _point(parts.layers[i], one)
        if _inside(parts.layers[i], one):
            if parts.layers[i].mlp_down is None:
                raise UnsupportedModelError(
                    f"Layer {i} has a norm after its MLP, and the dictionary predicts what goes into it.",
                    why="That is no point of a mixture of experts.",
                    todo="Use a dictionary of what comes after the norm (mlp_out).",
                )
            kinds["inside"][i] = f"mlp_act.{i}"
    trace = instrument.run(
        ids, reads=[name for names in kinds.values() for name in names.values()], attention=attention, keep_logits=1
    )
    features: dict[int, Tensor] = {}
    errors: dict[int, Tensor] = {}
    for j in sorted(dictionary.layers):
        layer, one = parts.layers[j], dictionary.layers[j]
        x = _read(layer, one, trace[kinds["read"][j]][:, first:], None)
        features[j] = one.encode(x)
        errors[j] = _true(layer, one, trace)[:, first:] - predicted(dictionary, j, features, x)
    assert trace.logits is not None
    return Standing(features, errors, trace.logits[:, -1])


def stand_in(
    parts: Parts,
    dictionary: Dictionary,
    errors: Mapping[int, Tensor] | None,
    changed: Changed,
    *,
    rows: Sequence[int] | None = None,
    scales: FrozenScales | None = None,
) -> list[Edit]:
    """Edits that put a dictionary in the place of its layers' MLPs in one forward.

    Args:
        parts: the model's.
        dictionary: of the model.
        errors: by layer, ``[sequence or 1, row, d_model]`` (:func:`standing`); None: the MLPs themselves run, and changes are added.
        changed: what becomes of the live features; they and what it gives may carry gradients.
        rows: rows that it stands in at, counted from the end; None: all of the forward's. Tensors hold these rows.
        scales: norms that are frozen, of the same rows; None: live.

    Raises:
        UnsupportedModelError: without errors, a norm between the prediction and the residual stream.
    """
    within = [i for i, one in dictionary.layers.items() if errors is None and _inside(parts.layers[i], one)]
    if within:
        raise UnsupportedModelError(
            f"Layer {within[0]} has a norm after its MLP, and the dictionary predicts what goes into it.",
            why="What is added there passes the norm together with the MLP's output, which is no point.",
            todo="Let the dictionary stand in for the MLPs.",
        )
    run = _Run(parts, dictionary, errors, changed, scales)
    edits: list[Edit] = []
    for i, one in dictionary.layers.items():
        edits.append(_Hear(_point(parts.layers[i], one), rows=rows, run=run, layer=i))
        edits.append(_Predict(f"mlp_out.{i}", rows=rows, run=run, layer=i))
    return edits


@dataclass(eq=False)
class _Run:
    parts: Parts
    dictionary: Dictionary
    errors: Mapping[int, Tensor] | None
    changed: Changed
    scales: FrozenScales | None
    heard: dict[int, Tensor] = field(default_factory=dict)
    features: dict[int, Tensor] = field(default_factory=dict)

    def write(self, j: int, own: Tensor) -> Tensor:
        """What goes into the residual stream after layer j's MLP, whose own write is given."""
        layer, one = self.parts.layers[j], self.dictionary.layers[j]
        x = _read(layer, one, self.heard.pop(j), None if self.scales is None else self.scales.before.get(j))
        live = one.encode(x)
        self.features[j] = self.changed(j, live) if self.errors is not None else self.changed(j, live) - live
        if self.errors is None:
            y = own / layer.mlp_scale
            for i, acts in self.features.items():
                if j in self.dictionary.layers[i].decoders:
                    y = y + acts @ self.dictionary.layers[i].decoders[j].to(x)
        else:
            y = predicted(self.dictionary, j, self.features, x) + self.errors[j].to(x)
        if _inside(layer, one):
            assert layer.post_mlp_norm is not None
            y = _normed(layer.post_mlp_norm, y, None if self.scales is None else self.scales.after.get(j))
        for i in [i for i in self.features if max(self.dictionary.layers[i].decoders) <= j]:
            del self.features[i]  # no later layer asks for them
        return (y * layer.mlp_scale).to(own)


@dataclass(frozen=True, eq=False)
class _Of(Replace):
    run: _Run | None = None
    layer: int = -1


@dataclass(frozen=True, eq=False)
class _Hear(_Of):
    """Keeps what a layer reads; changes nothing."""

    def act(self, chosen: Tensor, point: Point) -> Tensor:
        assert self.run is not None
        self.run.heard[self.layer] = chosen
        return chosen


@dataclass(frozen=True, eq=False)
class _Predict(_Of):
    """Puts the prediction and the error there."""

    def act(self, chosen: Tensor, point: Point) -> Tensor:
        assert self.run is not None
        return self.run.write(self.layer, chosen)


def _point(layer: LayerParts, one: LayerDictionary) -> str:
    if one.reads == "mlp_in":
        return f"mlp_in.{layer.index}"
    return f"{'resid_pre' if layer.parallel else 'resid_mid'}.{layer.index}"


def _inside(layer: LayerParts, one: LayerDictionary) -> bool:
    """A norm stands between the prediction and the residual stream."""
    return one.predicts == "mlp" and layer.post_mlp_norm is not None


def _read(layer: LayerParts, one: LayerDictionary, x: Tensor, scale: Tensor | None) -> Tensor:
    """What the features read, from the tensor at the point ``[sequence, row, d_model]``."""
    norm = layer.pre_mlp_norm
    return x if one.reads != "normalized" or norm is None else _normed(norm, x, scale, plain=True)


def _normed(norm: Norm, x: Tensor, scale: Tensor | None, *, plain: bool = False) -> Tensor:
    """A norm by its formula (``plain``: without gain and bias); ``scale [row]`` in place of its own."""
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    if norm.kind == "layer":
        y = y - y.mean(-1, keepdim=True)
    s = torch.rsqrt(y.square().mean(-1, keepdim=True) + norm.eps) if scale is None else scale.to(y)[..., None]
    y = y * s
    if not plain:
        y = y * norm.gain().to(y)
        bias = norm.bias()
        y = y if bias is None else y + bias.to(y)
    return y.to(x)


def _true(layer: LayerParts, one: LayerDictionary, trace: Trace) -> Tensor:
    """The MLP's output where the dictionary predicts it, ``[sequence, position, d_model]``."""
    if not _inside(layer, one):
        return trace[f"mlp_out.{layer.index}"] / layer.mlp_scale
    assert layer.mlp_down is not None
    with torch.no_grad():
        return layer.mlp_down(trace[f"mlp_act.{layer.index}"]) * layer.mlp_down_scale
