"""Training a dictionary on a model's own activations: transcoders, or a cross-layer transcoder.

1. The activations are collected once and kept in files (``_training_rows``): the first position of every piece of text is in none of them.
2. The dictionary is fitted to them with Adam (Kingma & Ba 2015), gradients cut at norm 1 (``_coder`` has prediction and loss). Transcoders: Dunefsky et al.
   2024; cross-layer transcoders: Ameisen et al. 2025, "Circuit tracing"; TopK: Gao et al. 2024; JumpReLU: Rajamanoharan et al. 2024.
3. A step depends on the parameters, Adam's moments, the features' silence and its own number alone: these are kept, and a training that was stopped or
   killed goes on with the same numbers as one that was not (on the same machine, with as many threads: sums in another order round otherwise).
4. The folder says whose it is: another model, other texts or settings are refused. When the training is done the dictionary is in it, in our own format, and
   the activations and the state are taken away.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TYPE_CHECKING

import filelock
import polars as pl
import torch
from torch import Tensor

from symbolic_residue.dictionaries._coder import Coder
from symbolic_residue.dictionaries._dictionary import Transcoders
from symbolic_residue.dictionaries._files import read_tensors, write_json, write_tensors
from symbolic_residue.dictionaries._own import read_own, save_dictionary
from symbolic_residue.dictionaries._plan import TrainingPlan
from symbolic_residue.dictionaries._training_rows import collect_rows, cut_pieces, Piece, Rows
from symbolic_residue.errors import ConfigError, DamagedFileError, DictionaryError, RunDamagedError, RunExistsError, WriteError
from symbolic_residue.instrument import Instrument

if TYPE_CHECKING:
    from symbolic_residue.models import LoadedModel

__all__ = ["TrainedDictionary", "text_sha256", "train_dictionary", "trained_texts"]

Progress = Callable[[str, int, int], None]
_FORMAT = 1
_RECORD = ("loss", "unexplained", "active", "dead")
_SLOTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, eq=False)
class TrainedDictionary:
    """What a training left.

    Attributes:
        dictionary: the features.
        folder: holds it (``open_dictionary``) and ``training.json``: how it was made, and of which texts.
        records: a row a step: ``step loss unexplained active dead``: what was minimised, the mean over layers of the unexplained share of the MLP's output in
            this batch, the mean number of active features of a layer at a position, and the number of dead features of all layers.
        layers: a row a layer: ``layer first_read first_written largest``: mean squared norm at the first position (left out) over the mean elsewhere,
            of what is read and what is written; the share of the squared deviations of what is written that one row holds.
        tokens: positions trained on, in the texts.
        left_out: positions that were left out, beside the first of every piece, because they hold a second sink.
    """

    dictionary: Transcoders
    folder: Path
    records: pl.DataFrame
    layers: pl.DataFrame
    tokens: int
    left_out: int


def train_dictionary(
    loaded: LoadedModel,
    texts: Sequence[str],
    folder: Path | str,
    plan: TrainingPlan,
    *,
    anew: bool = False,
    activations: Path | str | None = None,
    save_every: int = 100,
    file_bytes: int = 256 << 20,
    progress: Progress | None = None,
) -> TrainedDictionary:
    """Train a dictionary; the same call goes on where it was stopped, and opens what is finished.

    Args:
        loaded: the model.
        texts: documents. What is to be held out is the caller's to leave out.
        folder: of the dictionary; made where it is missing.
        plan: what is trained, and how.
        anew: throw away what the folder holds of another training.
        activations: a folder for the collected activations, which stay there and serve other plans of the same texts, context, stored and seed with no layers
            that these lack; None: inside ``folder``, taken away when it is done.
        save_every: steps between two kept states.
        file_bytes: about the size of a file of activations.
        progress: called with what is done (``activations``, in pieces of text, or ``training``, in steps), how much of it, and of how much.

    Raises:
        ConfigError: layers that the model does not have.
        PromptError: no texts, empty ones, or fewer tokens than a batch.
        RunExistsError: the folder holds another dictionary or training, or another process writes there.
        RunDamagedError, DamagedFileError: what it holds cannot be read.
        NonFiniteWeightsError: activations that are not finite.
        DictionaryError: the training diverged.
        WriteError: the disk is full, or the folder cannot be written; the last state is kept.
        KeyboardInterrupt: the state is kept; the same call goes on.
    """
    folder, tell = Path(folder), progress or (lambda what, done, total: None)
    plan = _with_layers(plan, loaded)
    pieces = cut_pieces(loaded.tokenizer, texts, plan.context)
    record = loaded.provenance
    of = {
        "model": record.model, "weights_sha256": record.weights_sha256, "adapter_sha256": record.adapter.sha256 if record.adapter else None,
        "dtype": record.dtype, "texts_sha256": _pieces_sha256(pieces),
    }  # fmt: skip
    settings = of | {"plan": plan.settings()}
    with _held(folder):
        head = _begin(folder, settings, texts, anew)
        if head["finished"]:
            return _finished(folder, head)
        instrument = Instrument(loaded)
        rows = collect_rows(
            instrument, pieces, plan, Path(activations or folder / "activations"), of=of, file_bytes=file_bytes,
            progress=lambda done, total: tell("activations", done, total),
        )  # fmt: skip
        fit = _Fit(plan, rows, loaded.parts.d_model, instrument.device, folder / "state.safetensors")
        fit.run(save_every, tell)
        source = {"format": "symbolic_residue", "model": record.model, "scan": None, "weights_sha256": record.weights_sha256}
        save_dictionary(fit.coder.export(rows.scales, source), folder)
        head |= {
            "finished": True,
            "tokens": len(rows),
            "left_out": rows.left_out,
            "records": {name: [row[i] for row in fit.records] for i, name in enumerate(_RECORD)},
            "first": {str(i): list(pair) for i, pair in rows.first.items()},
            "largest": {str(i): share for i, share in rows.largest.items()},
        }
        write_json(folder / "training.json", head)
        (folder / "state.safetensors").unlink(missing_ok=True)
        shutil.rmtree(folder / "activations", ignore_errors=True)
        return _finished(folder, head)


def text_sha256(text: str) -> str:
    """By which a document that was trained on is known again."""
    return hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()


def trained_texts(folder: Path | str) -> frozenset[str]:
    """Hashes (:func:`text_sha256`) of the documents that a dictionary was trained on; none where its folder does not say.

    Raises:
        RunDamagedError: ``training.json`` cannot be read.
    """
    path = Path(folder) / "training.json"
    return frozenset(_read(path).get("texts", ())) if path.is_file() else frozenset()


def _with_layers(plan: TrainingPlan, loaded: LoadedModel) -> TrainingPlan:
    parts = loaded.parts
    there = {i: parts.layers[i].absent("mlp_in") or parts.layers[i].absent("mlp_out") for i in range(parts.n_layers)}
    if plan.layers is None:
        found = tuple(i for i, why in there.items() if why is None)
        if not found:
            raise ConfigError("The model has no layer with an MLP.", why=str(there[0]))
        return replace(plan, layers=found)
    for i in plan.layers:
        if i not in there or there[i] is not None:
            raise ConfigError(
                f"The model has no MLP in layer {i}.", why=there.get(i) or "", todo=f"Its layers are 0 to {parts.n_layers - 1}."
            )
    return replace(plan, layers=tuple(sorted(plan.layers)))


def _pieces_sha256(pieces: Sequence[Piece]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(json.dumps([piece.lead, piece.ids]).encode())
    return digest.hexdigest()


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise RunExistsError(
            f"{folder} is being written by another training.", todo="Wait for it, or name another folder."
        ) from error
    except OSError as error:
        raise WriteError(f"{folder} cannot be written.", why=str(error), todo="Choose another folder.") from error
    try:
        yield
    finally:
        lock.release()


def _begin(folder: Path, settings: dict[str, Any], texts: Sequence[str], anew: bool) -> dict[str, Any]:
    """The record of this training: the folder's, or a new one."""
    path = folder / "training.json"
    if path.exists() and not anew:
        head = _read(path)
        mine, its = ({**one, **one.get("plan", {}), "plan": None} for one in (settings, head.get("settings", {})))
        if differs := sorted(key for key in {*mine, *its} if mine.get(key) != its.get(key)):
            raise RunExistsError(
                f"{folder} holds a training of other settings ({', '.join(differs)}).",
                why="A dictionary is of one model, one set of texts and one plan.",
                todo="Choose another folder, or begin anew.",
            )
        return head
    if not path.exists() and (folder / "dictionary.json").exists():
        raise RunExistsError(f"{folder} holds a dictionary that was not trained there.", todo="Choose another folder.")
    if anew:
        for name in ("dictionary.json", "dictionary.safetensors", "state.safetensors", "training.json"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "activations", ignore_errors=True)
    head = {"format": _FORMAT, "settings": settings, "texts": sorted({text_sha256(text) for text in texts}), "finished": False}
    write_json(path, head)
    return head


def _read(path: Path) -> dict[str, Any]:
    try:
        head = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunDamagedError(f"{path} cannot be read.", why=str(error), todo="Begin anew.") from error
    if not isinstance(head, dict) or head.get("format") != _FORMAT or "finished" not in head:
        raise RunDamagedError(f"{path} is of another format than {_FORMAT}.", todo="Begin anew.")
    return head


def _finished(folder: Path, head: dict[str, Any]) -> TrainedDictionary:
    try:
        records = pl.DataFrame({"step": range(1, len(head["records"]["loss"]) + 1), **head["records"]})
        layers = pl.DataFrame(
            [(int(i), *pair, head["largest"][i]) for i, pair in head["first"].items()],
            schema={"layer": pl.Int64, "first_read": pl.Float64, "first_written": pl.Float64, "largest": pl.Float64}, orient="row",
        )  # fmt: skip
        return TrainedDictionary(read_own(folder), folder, records, layers, head["tokens"], head["left_out"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunDamagedError(f"{folder / 'training.json'} lacks something.", why=str(error), todo="Begin anew.") from error


class _Fit:
    """The optimisation so far, which can be kept and gone on with."""

    def __init__(self, plan: TrainingPlan, rows: Rows, d_model: int, device: torch.device, path: Path) -> None:
        self.plan, self.rows, self.path, self.device = plan, rows, path, device
        self.coder = Coder(plan, d_model, device)
        self.silent = {i: torch.zeros(plan.features, dtype=torch.int64, device=device) for i in self.coder.layers}
        self.records: list[tuple[float, ...]] = []
        self.whole = True
        self.optimizer = torch.optim.Adam(list(self.coder.trained.values()), lr=plan.learning_rate, foreach=False)

    def run(self, save_every: int, tell: Progress) -> None:
        """All steps that are left."""
        self.load()
        plan = self.plan
        batches = self.rows.batches(plan.batch, plan.seed, skip=len(self.records))
        tell("training", len(self.records), plan.steps)
        try:
            while len(self.records) < plan.steps:
                self.step(*next(batches))
                tell("training", len(self.records), plan.steps)
                if len(self.records) % save_every == 0 or len(self.records) == plan.steps:
                    self.save()
        except KeyboardInterrupt:
            if self.whole:  # a step that was cut must not be kept
                self.save()
            raise

    def step(self, x: dict[int, Tensor], y: dict[int, Tensor]) -> None:
        """One step on a batch.

        Raises:
            DictionaryError: the loss or a gradient is not finite.
        """
        plan, number = self.plan, len(self.records)
        self.optimizer.param_groups[0]["lr"] = plan.rate(number)
        self.optimizer.zero_grad(set_to_none=True)
        dead = {i: one >= plan.dead_after for i, one in self.silent.items()}
        x, y = ({i: one.to(self.device) for i, one in part.items()} for part in (x, y))
        loss = self.coder.loss(x, y, dead, number)
        loss.total.backward()
        self.coder.before_step()
        norm = torch.nn.utils.clip_grad_norm_(list(self.coder.trained.values()), 1.0, foreach=False)
        if not bool(loss.total.isfinite() & norm.isfinite()):
            raise DictionaryError(
                f"The training diverged at step {number + 1}: its loss is not finite.",
                todo="Lower the learning rate, and begin anew.",
            )
        self.whole = False
        self.optimizer.step()
        self.coder.after_step()
        for i, fired in loss.fired.items():
            self.silent[i] = torch.where(fired, 0, self.silent[i] + plan.batch)
        self.records.append(
            (float(loss.total.detach()), loss.unexplained, loss.active, float(sum(int(one.sum()) for one in dead.values())))
        )
        self.whole = True

    def save(self) -> None:
        """Keep the state: one file, whole or not at all."""
        tensors = {f"parameter {name}": one.detach().cpu() for name, one in self.coder.parameters.items()}
        tensors |= {f"silent {i}": one.cpu() for i, one in self.silent.items()}
        tensors["records"] = torch.tensor(self.records, dtype=torch.float64).reshape(-1, len(_RECORD))
        for name, one in self.coder.trained.items():
            tensors |= {f"{slot} {name}": self.optimizer.state[one][slot].cpu() for slot in _SLOTS if one in self.optimizer.state}
        write_tensors(self.path, tensors)

    def load(self) -> None:
        """Go on from the kept state, where there is one.

        Raises:
            DamagedFileError: it is cut short, or of another training.
        """
        if not self.path.exists():
            return
        kept = read_tensors(self.path)
        try:
            self.records = [tuple(row) for row in kept.take("records").tolist()]
            with torch.no_grad():
                for name, one in self.coder.parameters.items():
                    one.copy_(kept.take(f"parameter {name}"))
            self.silent = {i: kept.take(f"silent {i}").to(self.device) for i in self.silent}
            if self.records:
                step = torch.tensor(float(len(self.records)))
                for name, one in self.coder.trained.items():
                    slots = {slot: kept.take(f"{slot} {name}").clone().to(self.device) for slot in _SLOTS}
                    self.optimizer.state[one] = {"step": step.clone(), **slots}
            kept.finish()
        except (DictionaryError, RuntimeError) as error:
            raise DamagedFileError(f"{self.path} is not the state of this training.", why=str(error), todo="Remove it.") from error
