"""One pass over texts: the residual stream and the heads' outputs at the token that stands for each text.

1. Every text is tokenised and its pooled positions found before anything runs, so that a text that cannot be used is refused first, by number.
2. Texts are sorted by length and run in padded batches. At each point the pooled rows are taken as the forward reaches it and the tensor is let go:
   besides the model, memory holds one batch, and the pooled rows of all texts (``folder=``: in files, mapped, not in memory).
3. ``resid [text, d_model]`` is ``resid_post.L``; ``heads [text, head, d_head]`` is the input of the attention output projection, ``z.L``, cut into query
   heads. A gate of the architecture (qwen3_next) has acted on it already.
4. A layer whose tokens are mixed by something else than softmax attention has no heads: it is listed in ``skipped`` with the reason. A mixer that runs beside
   attention (falcon_h1) is listed in ``beside``: what it writes is in the residual stream and in no head. A layer with attention whose heads did not
   arrive exactly once a batch is an error, never a gap.
5. Another batch size or side of padding changes nothing but rounding (the same sums in another order).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.concepts._pool import pooled_positions, Pooling
from symbolic_residue.errors import ConfigError, PromptError, ReadError
from symbolic_residue.instrument import collate, Instrument
from symbolic_residue.prompts import build_prompt, Prompt
from symbolic_residue.types import Point

if TYPE_CHECKING:
    from symbolic_residue.models import Parts

__all__ = ["Pooled", "SkippedLayer", "collect", "skipped_layers"]

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SkippedLayer:
    """A layer, or a module of it, that the heads do not cover."""

    layer: int
    module: str
    """Its class."""

    reason: str


@dataclass(frozen=True, eq=False)
class Pooled:
    """What one pass over the texts left.

    Attributes:
        resid: layer → ``[text, d_model]`` float32, ``resid_post`` at the pooled token.
        heads: layer with softmax attention → ``[text, head, d_head]`` float32, the heads' outputs there; empty where none were asked for.
        n_tokens: length of each text in tokens, ``[text]``.
        pooling: which token; with ``m`` for ``mean_last_m``, else None.
        skipped: layers without heads.
        beside: mixers beside attention, whose writes are in no head.
    """

    resid: dict[int, Array]
    heads: dict[int, Array]
    n_tokens: NDArray[np.int64]
    pooling: Pooling
    m: int | None
    skipped: tuple[SkippedLayer, ...]
    beside: tuple[SkippedLayer, ...]

    def __len__(self) -> int:
        return len(self.n_tokens)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers read, in order."""
        return tuple(sorted(self.resid))


def skipped_layers(parts: Parts, layers: Sequence[int] | None = None) -> tuple[tuple[SkippedLayer, ...], tuple[SkippedLayer, ...]]:
    """Layers without heads, and mixers that run beside attention, each with the reason."""
    skipped, beside = [], []
    for i in range(parts.n_layers) if layers is None else layers:
        layer = parts.layers[i]
        module = type(layer.mixer).__name__ if layer.mixer is not None else "none"
        if (reason := layer.absent("z")) is not None:
            skipped.append(SkippedLayer(i, module, reason))
        elif layer.mixer is not None:
            beside.append(
                SkippedLayer(i, module, f"{module} runs beside softmax attention in layer {i}; what it writes is in no head.")
            )
    return tuple(skipped), tuple(beside)


def collect(
    instrument: Instrument,
    texts: Sequence[str],
    *,
    pooling: Pooling = "last",
    m: int = 16,
    layers: Sequence[int] | None = None,
    heads: bool = True,
    chat: bool = False,
    batch_size: int = 16,
    side: Literal["left", "right"] = "right",
    folder: Path | None = None,
) -> Pooled:
    """Run every text once and keep the pooled token of each.

    Args:
        instrument: the model; its loaded tokenizer reads the texts.
        texts: plain texts.
        pooling: which token stands for a text: ``last``, ``last_content`` or ``mean_last_m``.
        m: tokens of ``mean_last_m``.
        layers: which layers; None is all. Negative counts from the end.
        heads: whether the heads' outputs are read too.
        chat: render each text as a user's turn by the chat template.
        batch_size: texts a forward.
        side: where padding goes.
        folder: where the pooled rows go, as ``.npy`` files of float32; None keeps them in memory
            (``4 · layers · (d_model + heads · d_head)`` bytes a text).

    Raises:
        PromptError: no text, or texts that cannot be used, each by its number (too long for the context, empty, nothing to pool).
        ConfigError: an unknown pooling or layer, a batch size below 1.
        ReadError: a layer with attention whose heads were not captured, or activations that are not finite.
    """
    parts = instrument.parts
    chosen = _layers(layers, parts.n_layers)
    if batch_size < 1:
        raise ConfigError(f"A batch of {batch_size} texts cannot be run.", todo="Give a batch size of 1 or more.")
    prompts, positions = _prepare(instrument, texts, pooling, m, chat)
    skipped, beside = skipped_layers(parts, chosen)
    without = {entry.layer for entry in skipped}
    with_heads = tuple(i for i in chosen if i not in without) if heads else ()
    n = len(prompts)
    resid = {i: _store(folder, f"resid_{i}", (n, parts.d_model)) for i in chosen}
    out = {i: _store(folder, f"heads_{i}", (n, parts.n_heads, parts.d_head)) for i in with_heads}
    points = (*(f"resid_post.{i}" for i in chosen), *(f"z.{i}" for i in with_heads))
    order = sorted(range(n), key=lambda i: (len(prompts[i]), i))
    seen: Counter[Point] = Counter()
    n_batches = 0
    for start in range(0, n, batch_size):
        at = order[start : start + batch_size]
        batch = collate([prompts[i].ids for i in at], side=side)
        weights = torch.zeros(batch.ids.shape, dtype=torch.float64)
        for row, i in enumerate(at):
            own = positions[i]
            weights[row, batch.lead[row] + own.start : batch.lead[row] + own.stop] = 1 / len(own)

        def keep(point: Point, tensor: Tensor, at: list[int] = at, weights: Tensor = weights) -> None:
            seen[point] += 1
            (out if point.kind == "z" else resid)[point.layer][at] = _pool(tensor, weights)  # type: ignore[index]

        instrument.run(batch, reads=points, keep_logits=1, on_read=keep)
        n_batches += 1
    for name in points:
        point = Point.parse(name, parts.n_layers)[0]
        if seen[point] != n_batches:
            raise ReadError(
                f"{name} was captured in {seen[point]} of {n_batches} batches.",
                why="The layer has this point, so a missing capture would be a gap that looks like a result.",
                todo="Check that nothing else replaces or skips the layer's modules.",
            )
    for name, array in ((f"{kind}.{i}", a) for kind, arrays in (("resid_post", resid), ("z", out)) for i, a in arrays.items()):
        if not bool(np.isfinite(array).all()):
            raise ReadError(f"{name} is not finite in some text.", todo="Look for overflow: load the model in float32 or bfloat16.")
    lengths = np.array([len(p) for p in prompts], dtype=np.int64)
    return Pooled(resid, out, lengths, pooling, m if pooling == "mean_last_m" else None, skipped, beside)


def _pool(tensor: Tensor, weights: Tensor) -> Array:
    """``[batch, …]``: the weighted rows of ``[batch, query, …]``, only those with weight touched."""
    rows, columns = weights.nonzero(as_tuple=True)
    home = tensor.device
    picked = tensor[rows.to(home), columns.to(home)].double().cpu()
    scaled = picked * weights[rows, columns].reshape(-1, *[1] * (picked.dim() - 1))
    pooled = torch.zeros(len(weights), *picked.shape[1:], dtype=torch.float64).index_add_(0, rows, scaled)
    return pooled.float().numpy()


def _prepare(
    instrument: Instrument, texts: Sequence[str], pooling: Pooling, m: int, chat: bool
) -> tuple[list[Prompt], list[range]]:
    if isinstance(texts, str) or not len(texts):
        raise PromptError("There are no texts to read." if not len(texts) else "Give a list of texts, not one text.")
    prompts, positions, wrong = [], [], []
    for i, text in enumerate(texts):
        try:
            prompt = build_prompt(instrument.loaded.tokenizer, text, chat=chat, max_tokens=instrument.parts.max_context)
            positions.append(pooled_positions(prompt, pooling, m))
            prompts.append(prompt)
        except PromptError as error:
            wrong.append(f"text {i}: {error.what}")
    if wrong:
        more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
        raise PromptError(
            f"{len(wrong)} of {len(texts)} texts cannot be used: {' '.join(wrong[:5])}{more}",
            why="Leaving texts out unsaid would change what is compared.",
            todo="Mend them or take them out; nothing was run.",
        )
    return prompts, positions


def _layers(layers: Sequence[int] | None, n_layers: int) -> tuple[int, ...]:
    if layers is None:
        return tuple(range(n_layers))
    if wrong := [i for i in layers if not -n_layers <= i < n_layers]:
        raise ConfigError(f"There is no layer {wrong[0]}.", todo=f"The model has layers 0 to {n_layers - 1}.")
    chosen = tuple(sorted({i % n_layers for i in layers}))
    if not chosen:
        raise ConfigError("No layer was asked for.", todo="Name at least one layer, or leave it out for all.")
    return chosen


def _store(folder: Path | None, name: str, shape: tuple[int, ...]) -> Array:
    if folder is None:
        return np.zeros(shape, dtype=np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)
