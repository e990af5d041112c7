"""Dictionaries of features: sparse stand-ins for MLPs, layer by layer.

1. A layer's features respond to what its MLP reads: ``a = act(W_enc x + b_enc)``. Most of them are 0 at any position.
2. A transcoder predicts its own layer's MLP output: ``y = a W_dec + b_dec`` (+ ``x S`` with a skip connection; Dunefsky et al. 2024, Paulo et al. 2025).
   A cross-layer transcoder (CLT; Ameisen et al. 2025) predicts every MLP output from the features of its layer and of all before it:
   ``y_j = Σ_{i ≤ j} a_i W_dec[i→j] + b_dec[j]``.
3. Where a layer reads: ``resid_mid`` (the residual stream before the norm before the MLP), ``mlp_in`` (after that norm) or ``normalized`` (after it, without
   its weight and bias). What it predicts: ``mlp_out`` (after the norm that follows the MLP, where an architecture has one) or ``mlp`` (before it).
4. ``act``: ``relu``; ``topk`` keeps the k largest; ``jumprelu`` keeps what exceeds a threshold of the feature's own. On a given input what is kept equals its
   pre-activation: features are linear in what they read once it is known which are active.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args, Literal, Protocol

import torch
from torch import Tensor

from symbolic_residue.errors import DictionaryError, NonFiniteWeightsError

__all__ = ["Activation", "Dictionary", "LayerDictionary", "Predicts", "Reads", "Transcoders", "by_layer", "predicted"]

Reads = Literal["resid_mid", "mlp_in", "normalized"]
Predicts = Literal["mlp_out", "mlp"]
Kind = Literal["relu", "topk", "jumprelu"]

_BLOCK = 1 << 24
"""Pre-activations that are held at a time."""


@dataclass(frozen=True, eq=False)
class Activation:
    """How features respond to their pre-activations.

    Attributes:
        kind: ``relu``, ``topk`` or ``jumprelu``.
        k: of topk: how many are kept at a position.
        threshold: of jumprelu, ``[feature]``: what a pre-activation must exceed.
        signed: negative values are kept too, where they are among the k largest or above a negative threshold.
    """

    kind: Kind = "relu"
    k: int | None = None
    threshold: Tensor | None = None
    signed: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise DictionaryError(
                f"The activation {self.kind!r} is not known.",
                why="Features of another activation would get other values.",
                todo=f"Known: {', '.join(get_args(Kind))}.",
            )
        if self.kind == "topk" and (isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1):
            raise DictionaryError(
                f"TopK needs its k; it is {self.k!r}.",
                why="Which features are active at a position depends on it.",
                todo="Give k=, the number of features kept at a position: in the folder's config, to open_dictionary, or as -k on the command line.",
            )
        if (self.kind == "jumprelu") != (self.threshold is not None):
            raise DictionaryError(
                f"{self.kind} with {'a' if self.threshold is not None else 'no'} threshold.",
                why="JumpReLU has a threshold for each feature, and nothing else has.",
            )
        if self.kind != "topk" and self.k is not None:
            raise DictionaryError(f"{self.kind} with k = {self.k}.", why="Only TopK has a k.")
        if self.kind == "relu" and self.signed:
            raise DictionaryError("A ReLU keeps no negative values.")

    def __call__(self, pre: Tensor) -> Tensor:
        """Activations from pre-activations ``[..., feature]``."""
        if self.kind == "relu":
            return pre.relu()
        if self.kind == "topk":
            assert self.k is not None
            best = pre.topk(self.k, dim=-1)
            kept = torch.zeros_like(pre).scatter_(-1, best.indices, best.values)
        else:
            assert self.threshold is not None
            kept = torch.where(pre > self.threshold.to(pre), pre, torch.zeros_like(pre))
        return kept if self.signed else kept.relu()


@dataclass(frozen=True, eq=False)
class LayerDictionary:
    """The features of one layer.

    Attributes:
        layer: whose MLP's input they read.
        encoder: ``[feature, d_model]``.
        encoder_bias: ``[feature]``.
        decoders: for each layer whose MLP output they help to predict, ``[feature, d_model]``; the own layer alone in a transcoder.
        bias: ``[d_model]``: the constant in the prediction of the own layer's MLP output.
        activation: of the features.
        reads, predicts: see the module's text.
        skip: ``[d_model, d_model]`` or None: ``x @ skip`` is added to the prediction of the own layer's output.

    Raises:
        DictionaryError: shapes that do not fit, a layer without one feature that reads and writes.
        NonFiniteWeightsError: NaN or infinity.
    """

    layer: int
    encoder: Tensor
    encoder_bias: Tensor
    decoders: Mapping[int, Tensor]
    bias: Tensor
    activation: Activation
    reads: Reads
    predicts: Predicts
    skip: Tensor | None = None

    def __post_init__(self) -> None:
        for name, value, known in (("reads", self.reads, Reads), ("predicts", self.predicts, Predicts)):
            if value not in get_args(known):
                raise DictionaryError(f"{name}={value!r} is not known.", todo=f"Use one of: {', '.join(get_args(known))}.")
        if self.encoder.ndim != 2 or not len(self.encoder):
            raise self._off(f"Its encoder has shape {list(self.encoder.shape)}, not [feature, d_model].")
        count, width = self.encoder.shape
        wanted: dict[str, tuple[int, ...]] = {
            "encoder": (count, width), "encoder_bias": (count,), "bias": (width,), "skip": (width, width), "threshold": (count,),
        }  # fmt: skip
        for name, tensor in self.tensors().items():
            shape = wanted.get(name, (count, width))
            if tuple(tensor.shape) != shape:
                raise self._off(f"Its {name} has shape {list(tensor.shape)}; the encoder asks for {list(shape)}.")
            if not tensor.is_floating_point():
                raise self._off(f"Its {name} holds {str(tensor.dtype).removeprefix('torch.')}.")
            if not all(bool(torch.isfinite(part).all()) for part in tensor.split(4096)):
                raise NonFiniteWeightsError(
                    f"Layer {self.layer} of the dictionary has NaN or infinity in its {name}.",
                    why="Every edge through it would be NaN.",
                    todo="Get the file again, or train it anew.",
                )
        if min(self.decoders, default=-1) < self.layer:
            raise self._off(
                f"Its features write to layers {sorted(self.decoders)}.", "A feature can write to its own layer and to later ones."
            )
        k = self.activation.k
        if k is not None and k > count:
            raise self._off(f"TopK keeps {k} of {count} features.")
        if not bool(self.encoder.any()) or not any(bool(decoder.any()) for decoder in self.decoders.values()):
            raise self._off(
                "All its features are zero.",
                "They read or write nothing: it was never trained, or the file is not what it should be.",
            )

    def _off(self, what: str, why: str = "") -> DictionaryError:
        return DictionaryError(
            f"Layer {self.layer} of the dictionary cannot be used. {what}", why=why, todo="Get the file again, or train it anew."
        )

    @property
    def n_features(self) -> int:
        """How many."""
        return len(self.encoder)

    @property
    def d_model(self) -> int:
        """The width that it reads and writes."""
        return self.encoder.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """What it consists of, by name."""
        named = {"encoder": self.encoder, "encoder_bias": self.encoder_bias, "bias": self.bias}
        named |= {f"decoder.{layer}": self.decoders[layer] for layer in sorted(self.decoders)}
        if self.activation.threshold is not None:
            named["threshold"] = self.activation.threshold
        return named if self.skip is None else named | {"skip": self.skip}

    def encode(self, x: Tensor) -> Tensor:
        """Activations ``[position, feature]`` from what the layer reads, ``[position, d_model]``, in x's dtype."""
        return self.activation(x @ self.encoder.to(x).T + self.encoder_bias.to(x))

    def active(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions, features and activations of the features that are not 0, ``[active]`` each, in order of position and feature."""
        encoder, added = self.encoder.to(x).T, self.encoder_bias.to(x)
        found = []
        rows = max(1, _BLOCK // self.n_features)
        for start in range(0, len(x), rows):
            acts = self.activation(x[start : start + rows] @ encoder + added)
            position, feature = acts.nonzero(as_tuple=True)
            found.append((position + start, feature, acts[position, feature]))
        return tuple(torch.cat([one[i] for one in found]) for i in range(3))  # type: ignore[return-value]

    def encoder_rows(self, features: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Rows ``[n, d_model]`` and biases ``[n]`` of some features, on the features' device."""
        at = features.to(self.encoder.device)
        return self.encoder[at].to(features.device, dtype), self.encoder_bias[at].to(features.device, dtype)

    def decoder_rows(self, features: Tensor, layer: int, dtype: torch.dtype) -> Tensor:
        """What some features write, per unit of activation, into the prediction of a layer's MLP output, ``[n, d_model]``, on the features' device."""
        decoder = self.decoders[layer]
        return decoder[features.to(decoder.device)].to(features.device, dtype)


class Dictionary(Protocol):
    """What a graph needs of a dictionary: features of some layers, and where it comes from."""

    @property
    def layers(self) -> Mapping[int, LayerDictionary]:
        """Features by layer; layers that are missing keep their neurons."""
        ...

    @property
    def source(self) -> Mapping[str, Any]:
        """Format, model and scan as the files name them; plain data."""
        ...

    @property
    def sha256(self) -> str:
        """Of what it does: tensors, activations, places."""
        ...


@dataclass(frozen=True, eq=False)
class Transcoders:
    """A dictionary in memory (or mapped from its files): one transcoder a layer, or a cross-layer transcoder.

    Attributes:
        layers: features by layer; layers that are missing keep their neurons.
        source: ``format`` and what the files say of ``model`` and ``scan``; plain data.

    Raises:
        DictionaryError: no layers, or layers that do not fit together.
    """

    layers: Mapping[int, LayerDictionary]
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.layers:
            raise DictionaryError("The dictionary has no layers.")
        if any(number != one.layer or number < 0 for number, one in self.layers.items()):
            raise DictionaryError("Layers of the dictionary stand under other numbers than their own.")
        if len(widths := {one.d_model for one in self.layers.values()}) > 1:
            raise DictionaryError(f"Layers of the dictionary have different widths: {sorted(widths)}.")
        for number, one in self.layers.items():
            for target in one.decoders:
                if target not in self.layers:
                    raise DictionaryError(
                        f"Features of layer {number} write to layer {target}, which the dictionary does not have.",
                        why="Its bias, and what exactly is predicted there, are not known.",
                    )

    @property
    def kind(self) -> Literal["transcoders", "clt"]:
        """``clt`` where a feature writes to more than its own layer."""
        return "transcoders" if all(set(one.decoders) == {i} for i, one in self.layers.items()) else "clt"

    @property
    def d_model(self) -> int:
        """The width that it reads and writes."""
        return next(iter(self.layers.values())).d_model

    @property
    def sha256(self) -> str:
        """Of all tensors as stored, activations and places: the same for the same dictionary read from two formats in one dtype."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for number in sorted(self.layers):
            one = self.layers[number]
            head = [number, one.reads, one.predicts, one.activation.kind, one.activation.k, one.activation.signed]
            digest.update(json.dumps(head).encode())
            for name, tensor in one.tensors().items():
                digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def predict(self, inputs: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Predicted MLP outputs ``[position, d_model]`` of all its layers, from what each reads, ``[position, d_model]``."""
        acts = {i: one.encode(inputs[i]) for i, one in self.layers.items()}
        return {j: self.predict_layer(j, acts, inputs[j]) for j in self.layers}

    def predict_layer(self, layer: int, acts: Mapping[int, Tensor], x: Tensor) -> Tensor:
        """The predicted MLP output of a layer, ``[position, d_model]``.

        Args:
            layer: which.
            acts: features ``[position, feature]`` of it and of all layers below that write into it.
            x: what the layer reads, ``[position, d_model]``.
        """
        return predicted(self, layer, acts, x)


def predicted(dictionary: Dictionary, layer: int, acts: Mapping[int, Tensor], x: Tensor) -> Tensor:
    """A layer's predicted MLP output ``[..., d_model]`` from features ``[..., feature]`` and what it reads; see :meth:`Transcoders.predict_layer`."""
    one = dictionary.layers[layer]
    y = one.bias.to(x).expand_as(x)
    if one.skip is not None:
        y = y + x @ one.skip.to(x)
    for i, other in dictionary.layers.items():
        if layer in other.decoders:
            y = y + acts[i] @ other.decoders[layer].to(x)
    return y


def by_layer(layers: Iterable[LayerDictionary]) -> dict[int, LayerDictionary]:
    """Layers under their numbers, in order.

    Raises:
        DictionaryError: two for the same layer.
    """
    found: dict[int, LayerDictionary] = {}
    for one in layers:
        if one.layer in found:
            raise DictionaryError(f"There are two dictionaries for layer {one.layer}.", todo="Give the folder of one of them.")
        found[one.layer] = one
    return dict(sorted(found.items()))
