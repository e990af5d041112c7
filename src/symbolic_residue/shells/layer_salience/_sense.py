"""SENSE: how much attention each token receives in each layer.

1. ``A [row, key]`` is a layer's attention averaged over heads. A token receives ``r_j = mean over the rows i that come after j and may see it of
   A_ij``: later tokens have fewer such rows, so the sum is divided by their number (the causal count), under a sliding window by the number inside
   it. A row's own key is left out, for a token that looks at itself is not being looked at; it is reported apart, and so is the sink (the first
   token).
2. Short rows give every key more. The *uniform share* of a token is the same mean with ``1 / (keys that row i sees)`` in place of ``A_ij``; the
   *relative* attention is ``r_j`` over it: 1 is what a row that looks nowhere in particular gives.
3. The value-weighted twin takes ``‖a_ij v_j W_O,h‖`` in place of ``a_ij``, divided by the mean ``‖v_j W_O,h‖`` over tokens and heads, so that it is
   the relative attention where all values are of one length. It is left out (NaN) in layers whose heads are gated, where keys and values do not give
   what a head writes.
4. The *effective number* of attended tokens of a row is ``exp(H)`` of ``A_ij`` over the tokens before it, sink and own key apart, scaled to sum to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import AttentionRead, Batch, Instrument
from symbolic_residue.models import Parts
from symbolic_residue.readout import value_weighted_attention

__all__ = ["Salience", "effective_number", "received", "sense", "uniform_share", "visible"]

Array = NDArray[np.float64]
_WEIGHTS_AT_ONCE = 60_000_000
"""Attention weights held at once; a longer text is read in several forwards, some layers each."""
FIRST_ROW = 5
"""Rows before this one see fewer than four tokens beside sink and self, and have no effective number worth the name."""


@dataclass(frozen=True)
class Salience:
    """Attention received in one text.

    Attributes:
        layers: the model's layer numbers along the layer axis.
        tokens: what each token shows.
        received: ``[layer, token]``: mean attention from later rows; NaN for the last token, which has none.
        uniform: ``[layer, token]``: the uniform share.
        weighted: ``[layer, token]``: the value-weighted twin, relative; NaN in gated layers.
        sink: ``[layer]``: mean attention of rows ≥ 1 on the first token.
        own: ``[layer]``: mean attention of rows ≥ 1 on their own key.
        others: ``[layer]``: mean attention of rows ≥ 1 on all other tokens.
        effective: ``[layer, row]``: effective number of attended tokens; NaN in the first rows.
        counted: positions that a token's share is counted over: no sink, no frame of a chat, not the last.
        last: ``[layer, head, token]``: value-weighted attention of the last row; NaN in gated layers.
        mean: ``[layer, row, token]``: attention averaged over heads.
        log_probability: ``[vocab]`` float64 of the next token.
        backend, mode: what computed the weights.
    """

    layers: tuple[int, ...]
    tokens: tuple[str, ...]
    received: Array
    uniform: Array
    weighted: Array
    sink: Array
    own: Array
    others: Array
    effective: Array
    counted: tuple[int, ...]
    last: Array = field(repr=False)
    mean: Array = field(repr=False)
    log_probability: Tensor = field(repr=False)
    backend: str = ""
    mode: str = ""

    @property
    def relative(self) -> Array:
        """``[layer, token]``: received over the uniform share."""
        return self.received / self.uniform

    def under(self, threshold: float) -> NDArray[np.bool_]:
        """``[layer, token]``: counted tokens that receive less than ``threshold`` of their uniform share."""
        out = np.zeros(self.received.shape, bool)
        at = list(self.counted)
        out[:, at] = self.relative[:, at] < threshold
        return out

    @property
    def frame(self) -> pl.DataFrame:
        """``layer, position, token, received, uniform, relative, weighted``, one row for each layer and token before the last."""
        n = len(self.tokens) - 1
        places = [(place, position) for place in range(len(self.layers)) for position in range(n)]
        index = tuple(np.array(places).T)
        return pl.DataFrame(
            {
                "layer": [self.layers[place] for place, _ in places],
                "position": [position for _, position in places],
                "token": [self.tokens[position] for _, position in places],
                "received": self.received[index],
                "uniform": self.uniform[index],
                "relative": self.relative[index],
                "weighted": self.weighted[index],
            }
        ).with_columns(pl.col("weighted").fill_nan(None))


def visible(n: int, window: int | None) -> NDArray[np.bool_]:
    """``[row, key]``: which keys each row may see, its own included."""
    row, key = np.arange(n)[:, None], np.arange(n)[None]
    seen = key <= row
    return seen if window is None else seen & (row - key < window)


def received(weights: Array, seen: NDArray[np.bool_]) -> Array:
    """``[token]``: mean of ``weights [row, key]`` over the rows after each token that may see it; NaN where there is none."""
    later = seen & ~np.eye(len(seen), dtype=bool)
    count = later.sum(0)
    total = np.where(later, weights, 0.0).sum(0)
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def uniform_share(seen: NDArray[np.bool_]) -> Array:
    """``[token]``: what :func:`received` is when every row spreads evenly over all keys that it sees."""
    return received(seen / seen.sum(1, keepdims=True), seen)


def effective_number(weights: Array) -> Array:
    """``[row]``: ``exp(entropy)`` of each row of ``weights [row, key]`` over the tokens before it, without sink and own key; NaN before ``FIRST_ROW``.

    A row that gives them nothing at all attends to none: 0.
    """
    n = len(weights)
    others = np.tril(weights, -1)
    others[:, 0] = 0.0
    total = others.sum(1, keepdims=True)
    p = np.divide(others, total, out=np.zeros_like(others), where=total > 0)
    log_p = np.log(p, out=np.zeros_like(p), where=p > 0)
    out = np.exp(-(p * log_p).sum(1))
    out[total[:, 0] <= 0] = 0.0
    out[: min(FIRST_ROW, n)] = np.nan
    return out


def mean_weights(instrument: Instrument, ids: Sequence[int]) -> Array:
    """``[layer, row, key]`` attention averaged over heads, of layers with softmax attention."""
    n = len(ids)
    out = []
    for layers in _pieces(instrument.parts, n, instrument.attention_layers):
        read = AttentionRead(stats=("self",), rows=tuple(range(n)), layers=layers, weights=True)
        trace = instrument.run(torch.tensor([list(ids)]), attention=read, keep_logits=1)
        assert trace.attention is not None
        out.append(trace.attention["weights"][:, 0].double().mean(1).cpu().numpy())
    return np.concatenate(out)


def sense(
    instrument: Instrument, batch: Batch, tokens: Sequence[str], counted: Sequence[int], layers: Sequence[int] | None = None
) -> Salience:
    """Read one text; see the module.

    Args:
        instrument: the model's.
        batch: of one sequence.
        tokens: what each token shows.
        counted: positions whose share is counted.
        layers: which; None takes all that have softmax attention.

    Raises:
        ConfigError: a layer that does not exist or has no softmax attention.
    """
    parts = instrument.parts
    wanted = _layers(instrument, layers)
    n = batch.ids.shape[1]
    means, weighted, last = [], [], []
    log_probability, backend, mode = torch.empty(0), "", ""
    for piece in _pieces(parts, n, wanted):
        plain = all(parts.layers[i].qkv_layout != "gated" for i in piece)
        read = AttentionRead(stats=("self",), rows=tuple(range(n)), layers=piece, weights=True)
        trace = instrument.run(batch, reads=[f"v.{i}" for i in piece if plain], attention=read, keep_logits=1)
        table = trace.attention
        assert table is not None
        backend, mode = table.backend, table.mode
        log_probability = torch.log_softmax(trace["logits"][0, -1].double(), -1).cpu()
        means.append(table["weights"][:, 0].double().mean(1).cpu().numpy())
        if plain:
            norms = value_weighted_attention(trace, parts).norms[:, 0].double().cpu().numpy()
            weights = table["weights"][:, 0].double().cpu().numpy()
            length = _value_norms(norms, weights)
            weighted.append(norms.mean(1) / np.nanmean(length[:, :, 1:], axis=(1, 2), keepdims=True))
            last.append(norms[:, :, -1])
        else:
            weighted.append(np.full((len(piece), n, n), np.nan))
            last.append(np.full((len(piece), parts.n_heads, n), np.nan))
    mean, twin = np.concatenate(means), np.concatenate(weighted)
    got, share, of_values, number = [], [], [], []
    for place, layer in enumerate(wanted):
        seen = visible(n, parts.attention_window(layer))
        got.append(received(mean[place], seen))
        share.append(uniform_share(seen))
        of_values.append(received(twin[place], seen))
        number.append(effective_number(mean[place]))
    uniform = np.stack(share)
    rows = np.arange(1, n)
    return Salience(
        layers=wanted,
        tokens=tuple(tokens),
        received=np.stack(got),
        uniform=uniform,
        weighted=np.stack(of_values) / uniform,
        sink=mean[:, 1:, 0].mean(1),
        own=mean[:, rows, rows].mean(1),
        others=np.tril(mean[:, 1:, 1:], -1).sum(2).mean(1),
        effective=np.stack(number),
        counted=tuple(counted),
        last=np.concatenate(last),
        mean=mean,
        log_probability=log_probability,
        backend=backend,
        mode=mode,
    )


def _value_norms(norms: Array, weights: Array) -> Array:
    """``‖v_j W_O,h‖ [layer, head, key]`` from its products with the weights: each key's own row, where the weight is largest in the column."""
    row = weights.argmax(2)[:, :, None]
    top, scale = np.take_along_axis(norms, row, 2)[:, :, 0], np.take_along_axis(weights, row, 2)[:, :, 0]
    return np.divide(top, scale, out=np.full_like(top, np.nan), where=scale > 0)


def _layers(instrument: Instrument, layers: Sequence[int] | None) -> tuple[int, ...]:
    there = instrument.attention_layers
    if layers is None:
        return there
    wanted = tuple(sorted({int(i) for i in layers}))
    wrong = [i for i in wanted if i not in there]
    if wrong or not wanted:
        raise ConfigError(
            f"Layer {wrong[0]} has no softmax attention to read." if wrong else "No layer was asked for.",
            todo=f"Layers that have it: {', '.join(map(str, there)) or 'none'}.",
        )
    return wanted


def _pieces(parts: Parts, n: int, layers: Sequence[int]) -> list[tuple[int, ...]]:
    """Layers in groups whose weights fit into memory."""
    size = max(1, _WEIGHTS_AT_ONCE // (parts.n_heads * n * n))
    return [tuple(layers[i : i + size]) for i in range(0, len(layers), size)]
