"""A folder of directions: texts in, activations and directions out, made once and gone on with where it was stopped.

::

    FOLDER/corpus.jsonl, corpus.json        the texts as they were read, and what is stated about them
    FOLDER/training.json                    settings, hashes of model and texts
    FOLDER/activations/                     resid_<layer>.npy, heads_<layer>.npy: pooled rows (see :func:`collect`)
    FOLDER/readout.safetensors, readout.json    the directions

1. :func:`prepare_training` judges corpus, options and every text's tokens before anything runs or is written. A concept with too few texts is let through:
   it is measured and not ranked.
2. ``into(folder)`` writes the texts, runs them batch by batch, and finds the directions; what is there and whole is not done again. A folder of other texts,
   settings or weights is refused with what differs; batch size and side of padding may change (rounding only).
3. :func:`open_concept_run` maps the activations, does not load them, and checks that texts, activations and directions belong together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args, Literal, TYPE_CHECKING

from symbolic_residue.concepts._collect import collect, open_pooled, Pooled
from symbolic_residue.concepts._corpus import BASELINE, Corpus
from symbolic_residue.concepts._design import Against, make_design
from symbolic_residue.concepts._directions import Directions, find_directions, ReadoutModel
from symbolic_residue.concepts._estimators import Estimator
from symbolic_residue.concepts._packaged import packaged_corpus
from symbolic_residue.concepts._pool import pooled_positions, Pooling
from symbolic_residue.concepts._read import read_corpus, write_corpus
from symbolic_residue.concepts._readout_file import load_directions, save_directions
from symbolic_residue.concepts._record import read_json, write_json
from symbolic_residue.concepts._validate import require_valid, Violation
from symbolic_residue.errors import (
    ConfigError,
    CorpusError,
    DamagedFileError,
    PromptError,
    RunDamagedError,
    RunExistsError,
    StoreError,
    WriteError,
)
from symbolic_residue.prompts import build_prompt

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument
    from symbolic_residue.models import LoadedModel

__all__ = ["ConceptRun", "Training", "open_concept_run", "prepare_training", "train_concepts"]

Progress = Callable[[str, float], None]
_FORMAT = 1
_RECORD = "training.json"
_ACTIVATIONS = "activations"


@dataclass(frozen=True, eq=False)
class ConceptRun:
    """What a folder holds.

    Attributes:
        folder: where.
        corpus: the texts, in the order of the rows of ``pooled``.
        labels, scenarios: one a text.
        pooled: activations, mapped from files.
        directions: of every concept and layer.
        seed: of everything drawn from it.
    """

    folder: Path
    corpus: Corpus
    labels: tuple[str, ...]
    scenarios: tuple[str | None, ...]
    pooled: Pooled
    directions: Directions
    seed: int


@dataclass(frozen=True, eq=False)
class Training:
    """A training that was judged and can begin; see :func:`prepare_training`.

    Attributes:
        instrument, corpus: what is run.
        settings: whatever changes the result; the same to go on.
        model: whose activations they will be.
        warnings: of the corpus, and concepts with too few texts.
        batch_size, side: how texts are run.
    """

    instrument: Instrument
    corpus: Corpus
    settings: dict[str, Any]
    model: ReadoutModel
    warnings: list[Violation] = field(default_factory=list)
    batch_size: int = 16
    side: Literal["left", "right"] = "right"

    def check(self, folder: Path) -> bool:
        """Whether the folder holds a beginning of this very training.

        Raises:
            RunExistsError: it holds another one, with what differs.
            RunDamagedError: it holds one that cannot be read.
        """
        path = Path(folder) / _RECORD
        if not path.exists():
            return False
        record = read_json(path)
        odd = [
            f"{name} is {new!r} and was {old!r}"
            for name, new in self._identity().items()
            if (old := (record.get("made_of") or {}).get(name)) != new
        ]
        if odd:
            raise RunExistsError(
                f"{folder} holds another training.",
                why="; ".join(odd) + ".",
                todo="Choose another folder, or the same texts, model and options.",
            )
        return True

    def into(self, folder: Path, progress: Progress | None = None) -> ConceptRun:
        """Do what is not yet done of it in a folder, which is made where it is missing.

        Args:
            folder: where.
            progress: called with what is being done and the share of the whole that is done.

        Raises:
            RunExistsError, RunDamagedError: as :meth:`check`; StoreError: files that do not belong together.
            ReadError: activations that are not finite, or were not captured.
            WriteError: the folder cannot be written.
        """
        folder, tell = Path(folder), progress or _silent
        if not self.check(folder):
            write_json(folder / _RECORD, {"format": _FORMAT, "made_of": self._identity()})
        self._texts(folder)
        texts = [one.text for one in self.corpus.texts]
        s = self.settings
        tell("texts", 0.0)
        pooled = collect(
            self.instrument, texts, pooling=s["pooling"], m=s["m"] or 16, layers=s["layers"], chat=s["chat"],
            batch_size=self.batch_size, side=self.side, folder=folder / _ACTIVATIONS,
            progress=lambda done, of: tell(f"{done} of {of} texts", 0.9 * done / of),
        )  # fmt: skip
        tell("directions", 0.9)
        if not self._found(folder):
            found = find_directions(
                pooled, [one.concept for one in self.corpus.texts], [one.scenario for one in self.corpus.texts], self.model,
                estimator=s["estimator"], against=s["against"], chat=s["chat"], corpus_sha256=self.corpus.sha256,
            )  # fmt: skip
            save_directions(found, folder)
        tell("done", 1.0)
        return open_concept_run(folder, self.instrument.loaded)

    def _found(self, folder: Path) -> bool:
        """Whether the directions are there and can be read; the same ones are found again where they cannot."""
        if not (folder / "readout.json").exists():
            return False
        try:
            return load_directions(folder, None).corpus_sha256 == self.corpus.sha256
        except DamagedFileError:
            return False

    def _identity(self) -> dict[str, Any]:
        """Whatever changes the numbers, flat."""
        model = {key: value for key, value in asdict(self.model).items() if key != "model"}
        return self.settings | {f"model {key}": value for key, value in model.items()} | {"texts_sha256": _texts_sha(self.corpus)}

    def _texts(self, folder: Path) -> None:
        """The texts as a file; one that was cut short is written again."""
        path = folder / "corpus.jsonl"
        try:
            there = read_corpus(path)
            if _texts_sha(there) == _texts_sha(self.corpus) and there.meanings == self.corpus.meanings:
                return
        except CorpusError:
            pass
        try:
            for file in (path, path.with_suffix(".json")):
                file.unlink(missing_ok=True)
        except OSError as error:
            raise WriteError(f"{path} cannot be written.", why=str(error)) from error
        write_corpus(self.corpus, path)


def prepare_training(
    instrument: Instrument,
    corpus: Corpus | str | Path | None = None,
    *,
    pooling: Pooling = "last",
    m: int = 16,
    layers: Sequence[int] | None = None,
    estimator: Estimator = "difference",
    against: Against = "baseline",
    concepts: Sequence[str] | None = None,
    chat: bool = False,
    batch_size: int = 16,
    side: Literal["left", "right"] = "right",
    seed: int = 0,
) -> Training:
    """Judge a training before anything runs.

    Args:
        instrument: the model.
        corpus: a corpus, its folder or JSONL file; None is the packaged one.
        pooling, m, layers, chat, batch_size, side: as for :func:`collect`.
        estimator, against: as for :func:`find_directions`.
        concepts: only these (of the others no text is run); None is all.
        seed: of everything that is drawn from the folder later.

    Raises:
        CorpusError: a corpus that cannot be used; file and line are named.
        ConfigError: an option out of range, an unknown concept, a concept without negatives.
        PromptError: texts that cannot be pooled.
    """
    parts, tokenizer = instrument.parts, instrument.loaded.tokenizer
    for value, known, called in ((estimator, get_args(Estimator), "estimator"), (side, ("left", "right"), "side of padding")):
        if value not in known:
            raise ConfigError(f"{value!r} is no {called}.", todo=f"Use one of: {', '.join(known)}.")
    if batch_size < 1:
        raise ConfigError(f"A batch of {batch_size} texts cannot be run.", todo="Give a batch size of 1 or more.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"{seed!r} is no seed.", todo="Give a whole number of 0 or more.")
    chosen = _layers(layers, parts.n_layers)
    found = corpus if isinstance(corpus, Corpus) else packaged_corpus() if corpus is None else read_corpus(corpus)
    found = replace(found, texts=tuple(replace(one, text=one.text.strip()) for one in found.texts))  # as a file would keep them
    if concepts is not None:
        if unknown := [name for name in concepts if name not in found.concepts]:
            raise ConfigError(f"There is no concept {unknown[0]!r}.", todo=f"Concepts: {', '.join(found.concepts)}.")
        found = found.select(concepts=concepts)
    context = {} if parts.max_context is None else {"tokenizer": tokenizer, "context": parts.max_context}
    warnings = require_valid(found, allow=("too few texts",), **context)
    labels, scenarios = [one.concept for one in found.texts], [one.scenario for one in found.texts]
    for name in dict.fromkeys(label for label in labels if label != BASELINE):
        make_design(labels, scenarios, name, against)
    if set(labels) <= {BASELINE}:
        raise CorpusError("The corpus has no text under a concept.", todo="Give tellings beside the neutral ones.")
    for one in found.texts:
        try:
            pooled_positions(build_prompt(tokenizer, one.text, chat=chat, max_tokens=parts.max_context), pooling, m)
        except PromptError as error:
            place = f"{one.file}:{one.line}: " if one.file else ""
            raise PromptError(f"{place}{error.what}", why=error.why, todo=error.todo) from error
    settings = {
        "pooling": pooling,
        "m": m if pooling == "mean_last_m" else None,
        "layers": list(chosen),
        "estimator": estimator,
        "against": against,
        "chat": chat,
        "template_sha256": instrument.loaded.provenance.template_sha256 if chat else None,
        "seed": seed,
    }
    return Training(instrument, found, settings, ReadoutModel.of(instrument.loaded), warnings, batch_size, side)


def train_concepts(
    instrument: Instrument,
    corpus: Corpus | str | Path | None,
    folder: Path,
    *,
    pooling: Pooling = "last",
    m: int = 16,
    layers: Sequence[int] | None = None,
    estimator: Estimator = "difference",
    against: Against = "baseline",
    concepts: Sequence[str] | None = None,
    chat: bool = False,
    batch_size: int = 16,
    side: Literal["left", "right"] = "right",
    seed: int = 0,
    progress: Progress | None = None,
) -> ConceptRun:
    """Directions of every concept of a corpus, in a folder; called again it goes on where it was stopped.

    Args:
        folder: made where it is missing.
        progress: called with what is being done and the share of the whole that is done.
        instrument, corpus, pooling, m, layers, estimator, against, concepts, chat, batch_size, side, seed: as for :func:`prepare_training`.

    Raises:
        CorpusError, ConfigError, PromptError: as :func:`prepare_training`, before anything runs or is written.
        RunExistsError: the folder holds a training of other texts, settings or weights.
    """
    plan = prepare_training(
        instrument, corpus, pooling=pooling, m=m, layers=layers, estimator=estimator, against=against, concepts=concepts, chat=chat,
        batch_size=batch_size, side=side, seed=seed,
    )  # fmt: skip
    return plan.into(Path(folder), progress)


def open_concept_run(folder: str | Path, loaded: LoadedModel | None = None) -> ConceptRun:
    """Read a folder of directions.

    Args:
        folder: made by :func:`train_concepts`.
        loaded: the model that it is to be used with; None reads it without using it on a model.

    Raises:
        StoreError: there is no such folder, or it holds no finished training.
        RunDamagedError: files that are cut short, hold no finite numbers, or do not belong together.
        DamagedFileError: directions that cannot be read; ModelError: those of another model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise StoreError(f"There is no folder {folder}.", todo="Make one with: residue concepts train")
    if not (folder / _RECORD).exists():
        raise StoreError(f"{folder} holds no directions of concepts.", todo="Make them with: residue concepts train")
    record = read_json(folder / _RECORD)
    if record.get("format") != _FORMAT:
        raise RunDamagedError(f"{folder / _RECORD} has format {record.get('format')!r}; this version reads {_FORMAT}.")
    if not (folder / "readout.json").exists():
        raise StoreError(f"The training in {folder} is not finished.", todo="Go on with the command that began it.")
    directions = load_directions(folder, loaded)
    try:
        corpus = read_corpus(folder / "corpus.jsonl")
        made_of = record["made_of"]
        stated, seed = made_of["texts_sha256"], int(made_of["seed"])
    except CorpusError as error:
        raise RunDamagedError(f"The texts in {folder} cannot be read.", why=str(error)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise RunDamagedError(f"{folder / _RECORD} lacks {error}.") from error
    if _texts_sha(corpus) != stated or directions.corpus_sha256 != corpus.sha256:
        raise RunDamagedError(f"{folder / 'corpus.jsonl'} is not the corpus that the directions were found on.")
    pooled = open_pooled(folder / _ACTIVATIONS)
    if len(pooled) != len(corpus.texts) or pooled.layers != directions.layers:
        raise RunDamagedError(f"The activations in {folder} do not belong to its directions.")
    labels, scenarios = tuple(one.concept for one in corpus.texts), tuple(one.scenario for one in corpus.texts)
    return ConceptRun(folder, corpus, labels, scenarios, pooled, directions, seed)


def _texts_sha(corpus: Corpus) -> str:
    """Of the texts in their order, which the rows of the activations follow."""
    rows = (json.dumps([one.concept, one.scenario, one.text]) for one in corpus.texts)
    return hashlib.sha256("\n".join(rows).encode("utf-8")).hexdigest()


def _layers(layers: Sequence[int] | None, n_layers: int) -> tuple[int, ...]:
    if layers is None:
        return tuple(range(n_layers))
    if wrong := [i for i in layers if not -n_layers <= i < n_layers]:
        raise ConfigError(f"There is no layer {wrong[0]}.", todo=f"The model has layers 0 to {n_layers - 1}.")
    if not layers:
        raise ConfigError("No layer was asked for.", todo="Name at least one layer, or leave it out for all.")
    return tuple(sorted({i % n_layers for i in layers}))


def _silent(what: str, share: float) -> None:
    pass
