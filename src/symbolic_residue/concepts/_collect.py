"""One pass over texts: the residual stream and the heads' outputs at the token that stands for each text.

1. Every text is tokenised and its pooled positions found before anything runs, so that a text that cannot be used is refused first, by number.
2. Texts are sorted by length and run in padded batches. At each point the pooled rows are taken as the forward reaches it and the tensor is let go:
   besides the model and the token ids, memory holds one batch, and the pooled rows of all texts (``folder=``: in files, not in memory).
3. ``resid [text, d_model]`` is ``resid_post.L``; ``heads [text, head, d_head]`` is the input of the attention output projection, ``z.L``, cut into query
   heads. A gate of the architecture (qwen3_next) has acted on it already. Rows are float32, those of a float64 model float64.
4. A layer whose tokens are mixed by something else than softmax attention has no heads: it is listed in ``skipped`` with the reason. A mixer that runs beside
   attention (falcon_h1) is listed in ``beside``: what it writes is in the residual stream and in no head. A layer with attention whose heads did not
   arrive exactly once in a batch is an error, never a gap.
5. Another batch size, order of texts or side of padding changes nothing but rounding: the same sums in another order. The scan of state-space and linear
   attention mixers runs in chunks, in float32 whatever the model's dtype, and padding on the left moves the chunks: rows then differ by up to 1e-4 of their
   length, where other models differ by 1e-6. What padding holds reaches no text in either. Pad on the right (the default) where that matters.
6. With ``folder=`` a pass that was stopped, killed too, goes on after its last whole batch (``_row_files``); batches are cut from the same order, so with the
   same batch size the result is the same bit for bit. A finished folder is opened without running the model.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.concepts._pool import pooled_positions, Pooling
from symbolic_residue.concepts._readout_model import ReadoutModel
from symbolic_residue.concepts._row_files import read_rows, RowFiles
from symbolic_residue.errors import ConfigError, PromptError, ReadError, RunDamagedError
from symbolic_residue.instrument import Batch, collate, Instrument
from symbolic_residue.prompts import build_prompt
from symbolic_residue.types import Point

if TYPE_CHECKING:
    from symbolic_residue.models import Parts

__all__ = ["Pooled", "SkippedLayer", "collect", "open_pooled", "skipped_layers"]

Array = NDArray[np.floating]


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
        resid: layer → ``[text, d_model]``, ``resid_post`` at the pooled token.
        heads: layer with softmax attention → ``[text, head, d_head]``, the heads' outputs there; empty where none were asked for.
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
    anew: bool = False,
    progress: Callable[[int, int], None] | None = None,
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
        folder: where the pooled rows go, as ``.npy`` files; a pass that was stopped there goes on. None keeps them in memory
            (``4 · layers · (d_model + heads · d_head)`` bytes a text).
        anew: throw away what the folder holds.
        progress: called with (texts done, all texts), first with what the folder held.

    Raises:
        PromptError: no text, or texts that cannot be used, each by its number (too long for the context, empty, nothing to pool).
        ConfigError: an unknown pooling or layer, a batch size below 1.
        ReadError: a layer with attention whose heads were not captured, or activations that are not finite.
        RunExistsError: the folder holds rows of other texts, another model or other settings, or another process writes there.
        RunDamagedError: the folder's record cannot be read.
        WriteError: the disk is full, or the folder cannot be written.
    """
    parts = instrument.parts
    chosen = _layers(layers, parts.n_layers)
    if batch_size < 1:
        raise ConfigError(f"A batch of {batch_size} texts cannot be run.", todo="Give a batch size of 1 or more.")
    read = _prepare(instrument, texts, pooling, m, chat)
    n, kept_m = len(read), m if pooling == "mean_last_m" else None
    skipped, beside = skipped_layers(parts, chosen)
    without = {entry.layer for entry in skipped}
    shapes: dict[str, tuple[int, ...]] = {f"resid_{i}": (parts.d_model,) for i in chosen}
    if heads:
        shapes |= {f"heads_{i}": (parts.n_heads, parts.d_head) for i in chosen if i not in without}
    dtype = np.dtype(np.float64 if parts.embed.weight.dtype == torch.float64 else np.float32)
    lengths = np.array([len(ids) for ids, _ in read], dtype=np.int64)
    with ExitStack() as stack:
        files, done = None, np.zeros(n, dtype=bool)
        rows: dict[str, Array] = {}
        if folder is None:
            rows = {name: np.zeros((n, *shape), dtype=dtype) for name, shape in shapes.items()}
        else:
            model = ReadoutModel.of(instrument.loaded)
            settings = {
                "weights": model.weights_sha256, "adapter": model.adapter_sha256, "model dtype": model.dtype, "texts": _sha256(read),
                "number of texts": n, "pooling": pooling, "m": kept_m, "layers": list(chosen), "heads": heads,
            }  # fmt: skip
            about = {
                "model": model.model, "n_tokens": lengths.tolist(), "names": list(shapes), "skipped": [asdict(one) for one in skipped],
                "beside": [asdict(one) for one in beside],
            }  # fmt: skip
            files = stack.enter_context(RowFiles(folder, settings, about, shapes, n, dtype, anew=anew))
            done = files.done.copy()
        if progress is not None:
            progress(int(done.sum()), n)
        order = [i for i in sorted(range(n), key=lambda i: (lengths[i], i)) if not done[i]]
        for start in range(0, len(order), batch_size):
            at = order[start : start + batch_size]
            found = _run(instrument, [read[i] for i in at], at, tuple(shapes), side)
            if files is not None:
                files.write(at, found)
            for name, array in rows.items():
                array[at] = found[name]
            done[at] = True
            if progress is not None:
                progress(int(done.sum()), n)
        if files is not None:
            files.finish()
            rows = files.arrays()
    return _pooled(rows, lengths, pooling, kept_m, skipped, beside)


def open_pooled(folder: Path) -> Pooled:
    """What a finished :func:`collect` left in its folder, mapped for reading; no model is needed.

    Raises:
        RunDamagedError: there is none, it is not finished, or rows are not those that were written.
    """
    head, rows = read_rows(folder)
    try:
        skipped, beside = (tuple(SkippedLayer(**one) for one in head[key]) for key in ("skipped", "beside"))
        lengths, settings = np.array(head["n_tokens"], dtype=np.int64), head["settings"]
        return _pooled(rows, lengths, settings["pooling"], settings["m"], skipped, beside)
    except (KeyError, TypeError, ValueError) as error:
        raise RunDamagedError(
            f"The record of the rows in {folder} lacks something.", why=str(error), todo="Collect anew."
        ) from error


def _pooled(rows: dict[str, Array], lengths: NDArray[np.int64], *rest: Any) -> Pooled:
    resid: dict[int, Array] = {}
    heads: dict[int, Array] = {}
    for name, array in rows.items():
        kind, layer = name.split("_")
        (resid if kind == "resid" else heads)[int(layer)] = array
    return Pooled(resid, heads, lengths, *rest)


_Read = tuple[NDArray[np.int64], range]
"""A text as the model reads it: ids ``[key]`` and the pooled positions."""


def _run(instrument: Instrument, read: Sequence[_Read], at: Sequence[int], names: Sequence[str], side: Any) -> dict[str, Array]:
    """The pooled rows of one batch, ``[batch, …]`` a name."""
    batch = collate([ids.tolist() for ids, _ in read], side=side)
    rows, columns = _where(batch, [own for _, own in read])
    kinds = {"resid": "resid_post", "heads": "z"}
    points = {f"{kinds[(split := name.split('_'))[0]]}.{split[1]}": name for name in names}
    pooled: dict[str, Tensor] = {}
    seen: Counter[str] = Counter()

    def keep(point: Point, tensor: Tensor) -> None:
        seen[str(point)] += 1
        picked = tensor[rows.to(tensor.device), columns.to(tensor.device)].double()
        pooled[points[str(point)]] = picked.unflatten(0, (len(read), -1)).mean(1)

    instrument.run(batch, reads=tuple(points), keep_logits=1, on_read=keep)
    for point in points:
        if seen[point] != 1:
            raise ReadError(
                f"{point} was captured {seen[point]} times in a batch, not once.",
                why="The layer has this point, so a missing capture would be a gap that looks like a result.",
                todo="Check that nothing else replaces or skips the layer's modules.",
            )
    found = {name: tensor.cpu().numpy() for name, tensor in pooled.items()}
    for point, name in points.items():
        if wrong := [i for i, row in zip(at, found[name], strict=True) if not np.isfinite(row).all()]:
            raise ReadError(
                f"{point} is not finite in text {wrong[0]}.", todo="Look for overflow: load the model in float32 or bfloat16."
            )
    return found


def _where(batch: Batch, own: Sequence[range]) -> tuple[Tensor, Tensor]:
    """Row and column in the batch of every pooled position, as many a text."""
    rows = torch.arange(len(own)).repeat_interleave(len(own[0]))
    return rows, torch.tensor([lead + at for lead, of in zip(batch.lead, own, strict=True) for at in of])


def _sha256(read: Sequence[_Read]) -> str:
    """Of the token ids and pooled positions of all texts, in their order."""
    digest = hashlib.sha256()
    for ids, own in read:
        digest.update(np.array([len(ids), own.start, own.stop], dtype="<i8").tobytes() + ids.astype("<i8").tobytes())
    return digest.hexdigest()


def _prepare(instrument: Instrument, texts: Sequence[str], pooling: Pooling, m: int, chat: bool) -> list[_Read]:
    if isinstance(texts, str) or not len(texts):
        raise PromptError("There are no texts to read." if not len(texts) else "Give a list of texts, not one text.")
    read: list[_Read] = []
    wrong = []
    for i, text in enumerate(texts):
        try:
            prompt = build_prompt(instrument.loaded.tokenizer, text, chat=chat, max_tokens=instrument.parts.max_context)
            own = pooled_positions(prompt, pooling, m)
            read.append((np.array(prompt.ids, dtype=np.int64), own))
        except PromptError as error:
            wrong.append(f"text {i}: {error.what}")
    if wrong:
        more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
        raise PromptError(
            f"{len(wrong)} of {len(texts)} texts cannot be used: {' '.join(wrong[:5])}{more}",
            why="Leaving texts out unsaid would change what is compared.",
            todo="Mend them or take them out; nothing was run.",
        )
    return read


def _layers(layers: Sequence[int] | None, n_layers: int) -> tuple[int, ...]:
    if layers is None:
        return tuple(range(n_layers))
    if wrong := [i for i in layers if not -n_layers <= i < n_layers]:
        raise ConfigError(f"There is no layer {wrong[0]}.", todo=f"The model has layers 0 to {n_layers - 1}.")
    chosen = tuple(sorted({i % n_layers for i in layers}))
    if not chosen:
        raise ConfigError("No layer was asked for.", todo="Name at least one layer, or leave it out for all.")
    return chosen
