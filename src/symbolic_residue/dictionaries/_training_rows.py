"""What MLPs read and write on texts, kept in files: the rows that a dictionary is trained on.

1. Each text is cut into pieces of ``context`` tokens; what the tokenizer puts before a text (a BOS) is put before every piece. The pieces are put in one
   random order (by seed), so that a file holds pieces of many texts.
2. The first position of every piece, whatever token stands there, is left out: of the rows and of every mean and scale. It holds the attention sink, where
   many models write vectors that are hundreds of times larger than anywhere else: one such row in a hundred would be most of the squared error. How large it
   is here is measured and kept (``Rows.first``). ``evaluate_dictionary`` leaves it out too. A graph replaces the MLP at position 0 all the same: features there
   have not been trained, and the error node holds what they miss.
   Some pieces have a second sink, at position 1 mostly (massive activations: Sun et al. 2024). A row is left out, in all layers, where what some layer writes
   is more than 10,000 times the median of its file in squared norm; ``Rows.left_out`` counts them.
3. Files of bounded size: ``rows-00000.safetensors`` holds ``x.{layer}`` and ``y.{layer}`` ``[row, d_model]``, and in float64 what means and scales need. ``x``
   is ``mlp_in``; ``y`` is ``mlp_out`` over the architecture's factor. A file is written beside its place and moved into it: one that is there is whole.
4. Activations that are not finite, or do not fit the dtype that they are kept in, are refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.dictionaries._coder import Scales
from symbolic_residue.dictionaries._files import read_json, read_tensors, write_json, write_tensors
from symbolic_residue.dictionaries._plan import TrainingPlan
from symbolic_residue.errors import DamagedFileError, NonFiniteWeightsError, PromptError, RunExistsError, WriteError
from symbolic_residue.instrument import collate, Instrument

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Piece", "Rows", "collect_rows", "cut_pieces"]

_MASSIVE = 1e4
"""Times the median squared norm. Chosen after looking at the demo model: second sinks are at 680,000 in layer 11, ordinary spaces at 2000 in layer 2."""

_FORWARD = 8
"""Pieces a forward. Another number would change the rows by rounding."""


@dataclass(frozen=True)
class Piece:
    """Tokens that the model reads at once: ``lead`` of them come before the text."""

    ids: tuple[int, ...]
    lead: int

    @property
    def rows(self) -> int:
        """Positions that are kept."""
        return len(self.ids) - max(1, self.lead)


def cut_pieces(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], context: int) -> list[Piece]:
    """Texts as pieces of at most ``context`` tokens, in order; a rest of one token is left out.

    Raises:
        PromptError: no texts, or empty ones (by number).
    """
    if isinstance(texts, str) or not len(texts):
        raise PromptError("There are no texts to train on." if not len(texts) else "Give a list of texts, not one text.")
    if empty := [i for i, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]:
        raise PromptError(
            f"{len(empty)} of {len(texts)} texts are empty: number {', '.join(map(str, empty[:5]))}.", todo="Take them out."
        )
    call: Any = tokenizer
    whole, plain = (list(call("a", add_special_tokens=special)["input_ids"]) for special in (True, False))
    at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    lead = whole[:at]
    size = context - len(lead)
    if size < 1:
        raise PromptError(f"Pieces of {context} tokens leave none for the text.", todo="Give a longer context.")
    pieces = []
    for text in texts:
        ids = list(call(text, add_special_tokens=False, verbose=False)["input_ids"])
        cut = [Piece((*lead, *ids[start : start + size]), len(lead)) for start in range(0, len(ids), size)]
        pieces += [piece for piece in cut if piece.rows > 0]
    return pieces


class Rows:
    """The finished files.

    Attributes:
        layers: whose rows they are.
        counts: rows a file.
        scales: means and scales over all rows.
        left_out: rows that were as large as sinks.
        first: a layer: mean squared norm at the first position over the mean elsewhere, ``(of what is read, of what is written)``.
        largest: a layer: the share of Σ|y − mean|² that the largest row holds, at most 1; in 1/n it is one row like others.
    """

    def __init__(self, paths: Sequence[Path], layers: Sequence[int]) -> None:
        self.paths, self.layers = list(paths), list(layers)
        self._open: dict[int, dict[str, Tensor]] = {}
        sums: dict[str, Tensor] = {}
        self.counts: list[int] = []
        self.left_out = 0
        largest: dict[int, float] = dict.fromkeys(layers, 0.0)
        for path in self.paths:
            tensors = read_tensors(path)
            for name in (
                "n",
                "first_n",
                *(f"{kind}.{i}" for kind in ("sum_x", "sum_y", "square_x", "square_y", "first_x", "first_y") for i in layers),
            ):
                one = tensors.take(name)
                sums[name] = sums[name] + one if name in sums else one
            for i in layers:
                largest[i] = max(largest[i], float(tensors.take(f"largest.{i}")))
            self.left_out += int(tensors.take("left_out"))
            self.counts.append(len(tensors.take(f"x.{layers[0]}")))
        n, first_n = float(sums["n"]), float(sums["first_n"])
        mean: dict[str, dict[int, Tensor]] = {"x": {}, "y": {}}
        scale: dict[str, dict[int, float]] = {"x": {}, "y": {}}
        self.first, self.largest = {}, {}
        for i in layers:
            for kind in "xy":
                mean[kind][i] = sums[f"sum_{kind}.{i}"] / n
                spread = float(sums[f"square_{kind}.{i}"]) - n * float(mean[kind][i].square().sum())
                if not spread > 1e-12 * float(sums[f"square_{kind}.{i}"]):
                    raise PromptError(
                        f"What layer {i}'s MLP {'reads' if kind == 'x' else 'writes'} is the same at all {n:.0f} positions.",
                        why="There is nothing to learn from it.",
                        todo="Give more, and more various, texts.",
                    )
                scale[kind][i] = (spread / (n * len(mean[kind][i]))) ** 0.5
            self.first[i] = tuple(float(sums[f"first_{k}.{i}"]) / first_n / (float(sums[f"square_{k}.{i}"]) / n) for k in "xy")
            self.largest[i] = min(1.0, largest[i] / (scale["y"][i] ** 2 * n * len(mean["y"][i])))
        self.scales = Scales(mean["x"], scale["x"], mean["y"], scale["y"])

    def __len__(self) -> int:
        return sum(self.counts)

    def batches(self, batch: int, seed: int, skip: int = 0) -> Iterator[tuple[dict[int, Tensor], dict[int, Tensor]]]:
        """Batches without end, ``(x, y)`` of unit scale, ``[batch, d_model]`` a layer; the same for the same seed.

        Args:
            batch: rows each; what is left at the end of a pass over all rows comes in no batch of that pass.
            seed: of the order: files are gone through in random order, their rows too.
            skip: batches that are not wanted.
        """
        each = len(self) // batch
        number = skip
        while True:
            epoch, start = divmod(number, each)
            order = self._order(seed, epoch)
            for at in range(start, each):
                yield self._take(order[at * batch : (at + 1) * batch])
                number += 1

    def _order(self, seed: int, epoch: int) -> Tensor:
        """``(file, row)`` of one pass, ``[row, 2]``."""
        draw = torch.Generator().manual_seed((seed << 20) + epoch)
        parts = []
        for file in torch.randperm(len(self.counts), generator=draw).tolist():
            rows = torch.randperm(self.counts[file], generator=draw)
            parts.append(torch.stack([torch.full_like(rows, file), rows], 1))
        return torch.cat(parts)

    def _take(self, where: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        files = where[:, 0].unique_consecutive().tolist()
        self._open = {file: self._open.get(file) or self._load(file) for file in files}
        x, y = {}, {}
        for i in self.layers:
            for found, name, mean, scale in (
                (x, f"x.{i}", self.scales.mean_in[i], self.scales.scale_in[i]), (y, f"y.{i}", self.scales.mean_out[i], self.scales.scale_out[i]),
            ):  # fmt: skip
                rows = torch.cat([self._open[file][name][where[where[:, 0] == file, 1]] for file in files])
                found[i] = (rows.float() - mean.float()) / scale
        return x, y

    def _load(self, file: int) -> dict[str, Tensor]:
        tensors = read_tensors(self.paths[file])
        return {f"{kind}.{i}": tensors.take(f"{kind}.{i}") for i in self.layers for kind in "xy"}


def collect_rows(
    instrument: Instrument,
    pieces: Sequence[Piece],
    plan: TrainingPlan,
    folder: Path,
    *,
    of: Mapping[str, Any],
    file_bytes: int,
    progress: Callable[[int, int], None],
) -> Rows:
    """Run the pieces that no file holds yet, and open all files. Files that hold more layers than the plan's serve too.

    Args:
        instrument: the model.
        pieces: what it reads.
        plan: with its layers named.
        folder: of the files; made where it is missing.
        of: whose rows they are: plain data that must be the same to go on.
        file_bytes: about the size of a file; one holds at least a piece. Files that are there keep theirs.
        progress: called with (pieces done, all pieces).

    Raises:
        PromptError: fewer rows than a batch.
        RunExistsError: the folder holds rows of another model, other texts or settings, or lacks layers.
        NonFiniteWeightsError: activations that are not finite, or too large for the dtype.
        DamagedFileError: a file that is cut short, or holds something else.
        WriteError: the disk is full, or would be.
    """
    assert plan.layers is not None
    n = sum(piece.rows for piece in pieces)
    if n < plan.batch:
        raise PromptError(
            f"The texts have {n} positions to train on (the first of every piece is left out); a batch is {plan.batch}.",
            todo="Give more text, or a smaller batch.",
        )
    wanted = sorted(plan.layers)
    layers, file_bytes = _whose(
        folder, {**of, "context": plan.context, "stored": plan.stored, "seed": plan.seed}, wanted, file_bytes
    )
    each = 2 * len(layers) * instrument.parts.d_model * (2 if plan.stored == "float16" else 4)
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(plan.seed)).tolist()
    groups: list[list[int]] = [[]]
    most, held = max(1, file_bytes // each), 0
    for i in order:
        if groups[-1] and held + pieces[i].rows > most:
            groups.append([])
            held = 0
        groups[-1].append(i)
        held += pieces[i].rows
    paths = [folder / f"rows-{number:05d}.safetensors" for number in range(len(groups))]
    _room(folder, each * sum(pieces[i].rows for group, path in zip(groups, paths, strict=True) if not path.exists() for i in group))
    done = 0
    for group, path in zip(groups, paths, strict=True):
        progress(done, len(pieces))
        if path.exists():
            _check(path, sum(pieces[i].rows for i in group), layers)
        else:
            gathered = _Gathered(layers, plan)
            inside = sorted(group, key=lambda i: len(pieces[i].ids))
            for start in range(0, len(inside), _FORWARD):
                _run(instrument, [pieces[i] for i in inside[start : start + _FORWARD]], gathered)
                progress(done + min(start + _FORWARD, len(inside)), len(pieces))
            write_tensors(path, gathered.tensors())
        done += len(group)
    progress(done, len(pieces))
    found = Rows(paths, wanted)
    if len(found) < plan.batch:
        raise PromptError(
            f"{found.left_out} of {n} rows are as large as sinks; {len(found)} are left, and a batch is {plan.batch}."
        )
    return found


def _whose(folder: Path, of: dict[str, Any], wanted: list[int], file_bytes: int) -> tuple[list[int], int]:
    """The layers and the size of the files in the folder, which says whose they are."""
    path = folder / "rows.json"
    if not path.exists():
        write_json(path, {"of": of, "layers": wanted, "file_bytes": file_bytes})
        return wanted, file_bytes
    record = read_json(path)
    its, layers = record.need("of", dict), record.need("layers", list)
    if differs := sorted(key for key in {*of, *its} if of.get(key) != its.get(key)):
        raise RunExistsError(
            f"{folder} holds activations of others ({', '.join(differs)} differ).", todo="Choose another folder, or remove it."
        )
    if missing := sorted({*wanted} - {*layers}):
        raise RunExistsError(f"The activations in {folder} lack layer {missing[0]}.", todo="Choose another folder, or remove it.")
    return layers, record.need("file_bytes", int)


class _Gathered:
    """Rows of one file as they come."""

    def __init__(self, layers: Sequence[int], plan: TrainingPlan) -> None:
        self.layers, self.dtype = layers, torch.float16 if plan.stored == "float16" else torch.float32
        self.rows: dict[str, list[Tensor]] = {f"{kind}.{i}": [] for i in layers for kind in "xy"}
        self.first: dict[str, float] = dict.fromkeys(self.rows, 0.0)
        self.first_n = 0

    def add(self, name: str, kept: Tensor, first: Tensor) -> None:
        """Rows ``[row, d_model]``, and those of the first positions."""
        if not bool(torch.isfinite(kept).all() and torch.isfinite(first).all()):
            raise NonFiniteWeightsError(
                f"What layer {name[2:]}'s MLP {'reads' if name[0] == 'x' else 'writes'} is not finite on these texts.",
                todo="Look for overflow: load the model in float32 or bfloat16.",
            )
        small = kept.to(self.dtype)
        if not bool(torch.isfinite(small).all()):
            raise NonFiniteWeightsError(
                f"What layer {name[2:]}'s MLP {'reads' if name[0] == 'x' else 'writes'} does not fit into float16.",
                why=f"Its largest entry is {float(kept.abs().max()):.3g}.",
                todo="Give stored='float32'.",
            )
        self.rows[name].append(small.cpu())
        self.first[name] += float(first.double().square().sum())

    def tensors(self) -> dict[str, Tensor]:
        """The rows, and what means and scales need, of what is kept (rounded as it is)."""
        found = {name: torch.cat(parts) for name, parts in self.rows.items()}
        size = torch.stack([found[f"y.{i}"].float().square().sum(-1) for i in self.layers])
        usual = size.median(-1, keepdim=True).values
        kept = ~((size > _MASSIVE * usual) & (usual > 0)).any(0)
        found = {name: rows[kept] for name, rows in found.items()}
        left_out = torch.tensor(float((~kept).sum()))
        for name, rows in list(found.items()):
            kind, i = name.split(".")
            wide = rows.double()
            found[f"sum_{kind}.{i}"], found[f"square_{kind}.{i}"] = wide.sum(0), wide.square().sum()
            found[f"first_{kind}.{i}"] = torch.tensor(self.first[name], dtype=torch.float64)
            if kind == "y":
                found[f"largest.{i}"] = (wide - wide.mean(0)).square().sum(-1).max()
        n = len(found[f"x.{self.layers[0]}"])
        return found | {"n": torch.tensor(float(n)), "left_out": left_out, "first_n": torch.tensor(float(self.first_n))}


def _run(instrument: Instrument, pieces: Sequence[Piece], into: _Gathered) -> None:
    batch = collate([piece.ids for piece in pieces], side="right")
    keep = torch.zeros_like(batch.mask, dtype=torch.bool)
    for row, piece in enumerate(pieces):
        keep[row, max(1, piece.lead) : len(piece.ids)] = True
    names = {f"mlp_in.{i}": f"x.{i}" for i in into.layers} | {f"mlp_out.{i}": f"y.{i}" for i in into.layers}

    def take(point: Any, tensor: Tensor) -> None:
        name = names[str(point)]
        wide = tensor.float()
        if name[0] == "y":
            wide = wide / instrument.parts.layers[int(name[2:])].mlp_scale
        into.add(name, wide[keep.to(wide.device)], wide[:, 0])

    instrument.run(batch, reads=tuple(names), keep_logits=1, on_read=take)
    into.first_n += len(pieces)


def _check(path: Path, rows: int, layers: Sequence[int]) -> None:
    """A file that was there holds what it should.

    Raises:
        DamagedFileError: it does not.
    """
    tensors = read_tensors(path)
    names = [f"{kind}.{i}" for i in layers for kind in "xy"]
    left_out = int(tensors.take("left_out")) if "left_out" in tensors else 0
    if any(name not in tensors or len(tensors.take(name)) + left_out != rows for name in names):
        raise DamagedFileError(f"{path} does not hold the rows that it should.", todo="Remove it: it is made again.")


def _room(folder: Path, needed: int) -> None:
    """There is room on the disk.

    Raises:
        WriteError: there is not.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise WriteError(
            f"The activations will take {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free at {folder}.",
            todo="Free some space, name fewer layers, or give less text.",
        )
