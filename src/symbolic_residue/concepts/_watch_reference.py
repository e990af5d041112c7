"""What the scores of ordinary tokens are: the neutral tellings, token by token, as the reference of every watched token.

1. Training texts stand for a concept by their last token; a token in the middle is another population. So all tokens of the neutral tellings are scored, but
   the first (the attention sink) and those of a chat template.
2. Each telling is scored by directions found without its scenario. The tellings are the directions' negatives: by directions that knew them they would
   lie too low, and every new text too high.
3. ``mean`` and ``sd`` are over these tokens; scenarios are the sample (tokens of a text depend on each other).
4. Controls: directions of labels permuted within scenarios (differences of means, whatever the estimator), scored in the same way, each with its own mean and
   sd. Concepts of the same design share the draws.
5. A layer's reference is kept in ``watch/reference/layer_<i>.safetensors`` beside the hash of the directions; it is made where it is missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.concepts._corpus import BASELINE
from symbolic_residue.concepts._design import Design, draw_labels, make_design
from symbolic_residue.concepts._estimators import Estimator, fit
from symbolic_residue.concepts._record import read_json
from symbolic_residue.concepts._study import ConceptRun
from symbolic_residue.errors import ConfigError, ReadError, WriteError
from symbolic_residue.instrument import collate
from symbolic_residue.prompts import build_prompt, Prompt

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument

__all__ = ["N_CONTROLS", "LayerReference", "counted_positions", "watch_reference"]

Array = NDArray[np.float64]
N_CONTROLS = 99
"""Directions of permuted labels a concept; with the concept's own 100, so that the smallest p is .01."""
_FORMAT = "1"
_FRAME = ("sink", "special", "assistant_header")
_BUDGET = 256 * 2**20
"""Bytes of directions held at a time; more layers take another pass over the neutral tellings."""


@dataclass(frozen=True, eq=False)
class LayerReference:
    """One layer's reference.

    Attributes:
        layer: which.
        scores: ``[token, concept]``: neutral tokens on directions found without their scenario; NaN for a concept that cannot be held out.
        unit: ``[token]``: the scenario of each, by number.
        control: ``[concept, control, d_model]``: unit directions of permuted labels, of all scenarios.
        control_mean, control_sd: ``[concept, control]``.
    """

    layer: int
    scores: Array
    unit: NDArray[np.int64]
    control: Array
    control_mean: Array
    control_sd: Array

    @property
    def n_units(self) -> int:
        """Scenarios."""
        return len(np.unique(self.unit))

    @property
    def mean(self) -> Array:
        """``[concept]``."""
        return self.scores.mean(0)

    @property
    def sd(self) -> Array:
        """``[concept]``."""
        return self.scores.std(0, ddof=1)

    def neutral_z(self) -> list[Array]:
        """Each scenario's tokens ``[token, concept]`` as z by the mean and sd of the *other* scenarios' tokens."""
        found = []
        for unit in np.unique(self.unit):
            own = self.unit == unit
            rest = self.scores[~own]
            found.append((self.scores[own] - rest.mean(0)) / rest.std(0, ddof=1))
        return found


def counted_positions(prompt: Prompt) -> list[int]:
    """Positions that count: all but the first and those of a chat template."""
    frame = {at for at, name in enumerate(prompt.regions.names) if name in _FRAME}
    return [i for i, label in enumerate(prompt.regions.labels) if i > 0 and int(label) not in frame]


def watch_reference(
    run: ConceptRun,
    instrument: Instrument,
    layers: Sequence[int],
    *,
    batch_size: int = 16,
    progress: Callable[[str, float], None] | None = None,
) -> dict[int, LayerReference]:
    """References of some layers, read where they are there, made and kept where not.

    Args:
        run: of :func:`open_concept_run` with this model.
        instrument: the model.
        layers: layers that have directions.
        batch_size: texts a forward.
        progress: called with what is done and the share of it.

    Raises:
        ConfigError: no such layer, or neutral tellings of fewer than three scenarios.
        ReadError: activations that are not finite, or that do not vary.
        WriteError: a file cannot be written.
    """
    if wrong := [i for i in layers if i not in run.directions.layers]:
        raise ConfigError(
            f"There are no directions of layer {wrong[0]}.", todo=f"Layers: {', '.join(map(str, run.directions.layers))}."
        )
    texts = [i for i, label in enumerate(run.labels) if label == BASELINE]
    names = [f"={run.scenarios[i]}" if run.scenarios[i] is not None else str(i) for i in texts]
    if len(set(names)) < 3:
        raise ConfigError(
            f"There are neutral tellings of {len(set(names))} scenarios.",
            why="The reference of a watched token is the tokens of neutral tellings, each judged by the others.",
            todo="Train on a corpus with neutral tellings (baseline) of three or more scenarios.",
        )
    whose = read_json(run.folder / "readout.json")["tensors_sha256"]
    plan = _Plan(run, texts, names)
    found: dict[int, LayerReference] = {}
    missing = []
    for i in sorted(set(layers)):
        kept = _read(run.folder, i, whose, plan)
        if kept is None:
            missing.append(i)
        else:
            found[i] = kept
    d = run.directions.model.hidden_size
    at_once = max(1, _BUDGET // (8 * len(run.directions.concepts) * (1 + N_CONTROLS) * d))
    for start in range(0, len(missing), at_once):
        some = missing[start : start + at_once]
        if progress is not None:
            progress("reference: neutral tellings", start / len(missing))
        for reference in _make(plan, instrument, some, batch_size):
            _write(run.folder, reference, whose, run.seed)
            found[reference.layer] = reference
    return found


class _Plan:
    """Designs, permuted labels, and which rows belong to each scenario of a neutral telling."""

    def __init__(self, run: ConceptRun, texts: list[int], names: list[str]) -> None:
        self.run, self.texts = run, texts
        order = {name: at for at, name in enumerate(dict.fromkeys(names))}
        self.unit = [order[name] for name in names]
        of = np.array([order.get(f"={s}", -1) if s is not None else order.get(str(i), -1) for i, s in enumerate(run.scenarios)])
        directions = run.directions
        self.designs = [make_design(run.labels, run.scenarios, c, directions.against) for c in directions.concepts]
        self.labels = [np.concatenate([d.positive[None], draw_labels(d, N_CONTROLS, run.seed)]) for d in self.designs]
        self.of = [of[design.rows] for design in self.designs]
        """Of each concept ``[row of the design]``: the unit of its scenario, or −1."""

    def directions(self, layer: int) -> list[_Sums]:
        """Of every concept."""
        return [
            _Sums(np.asarray(self.run.pooled.resid[layer][design.rows], dtype=np.float64), design, labels, of, self.run)
            for design, labels, of in zip(self.designs, self.labels, self.of, strict=True)
        ]


class _Sums:
    """A concept's direction and its controls in one layer, of all scenarios or without one of them."""

    def __init__(self, x: Array, design: Design, labels: NDArray[np.bool_], of: NDArray[np.intp], run: ConceptRun) -> None:
        self.x, self.design, self.labels, self.of = x, design, labels, of
        self.estimator: Estimator = run.directions.estimator
        if design.paired:
            self.weights = design.weights(labels)
            self.total = self.weights @ x
        else:
            self.sums = labels.astype(np.float64) @ x, (~labels).astype(np.float64) @ x

    def all(self) -> Array:
        """Controls of all scenarios, ``[control, d_model]``."""
        return self._unit(np.zeros(len(self.x), dtype=bool))[1:]

    def without(self, unit: int) -> Array | None:
        """``[1 + control, d_model]``: the direction, then the controls, found without a unit; None where too little is left."""
        own = self.of == unit
        left = self.design.positive[~own]
        if not left.any() or left.all():
            return None
        found = self._unit(own)
        if self.estimator != "difference":
            rest = self.design if not own.any() else replace(self.design, fold=own.astype(np.intp)).without(1)
            found[0] = fit(self.x[~own], rest, self.estimator)
            found[0] /= np.linalg.norm(found[0])
        return found

    def _unit(self, own: NDArray[np.bool_]) -> Array:
        if self.design.paired:  # without its scenario the other scenarios weigh alike still; their common factor goes with the norm
            raw = self.total - self.weights[:, own] @ self.x[own] if own.any() else self.total.copy()
        else:
            mine = self.labels[:, own].astype(np.float64)
            n_pos, n_neg = self.labels[:, ~own].sum(1)[:, None], (~self.labels[:, ~own]).sum(1)[:, None]
            positive = (self.sums[0] - mine @ self.x[own]) / np.maximum(n_pos, 1)
            negative = (self.sums[1] - (1 - mine) @ self.x[own]) / np.maximum(n_neg, 1)
            raw = np.where((n_pos > 0) & (n_neg > 0), positive - negative, 0.0)
        size = np.linalg.norm(raw, axis=1, keepdims=True)
        return np.divide(raw, size, out=np.zeros_like(raw), where=size > 0)


def _make(plan: _Plan, instrument: Instrument, layers: Sequence[int], batch_size: int) -> list[LayerReference]:
    run = plan.run
    sums = {i: plan.directions(i) for i in layers}
    prompts = [
        build_prompt(
            instrument.loaded.tokenizer, run.corpus.texts[i].text, chat=run.directions.chat, max_tokens=instrument.parts.max_context
        )
        for i in plan.texts
    ]
    units: list[int] = []
    scores: dict[int, list[Array]] = {i: [] for i in layers}
    spread = {i: _Spread(len(plan.designs)) for i in layers}
    for start in range(0, len(prompts), batch_size):
        some = prompts[start : start + batch_size]
        batch = collate([prompt.ids for prompt in some], side="right")
        hidden: dict[int, Any] = {}
        instrument.run(
            batch,
            reads=tuple(f"resid_post.{i}" for i in layers),
            keep_logits=1,
            on_read=lambda point, tensor, hidden=hidden: hidden.update({point.layer or 0: tensor.double().cpu().numpy()}),
        )
        for row, prompt in enumerate(some):
            at, unit = counted_positions(prompt), plan.unit[start + row]
            units += [unit] * len(at)
            for i in layers:
                h = hidden[i][row, at]
                if not np.isfinite(h).all():
                    raise ReadError(f"resid_post.{i} is not finite in a neutral telling.")
                found = np.full((len(at), len(plan.designs)), np.nan)
                for c, one in enumerate(sums[i]):
                    v = one.without(unit)
                    if v is not None:
                        every = h @ v.T
                        found[:, c] = every[:, 0]
                        spread[i].add(c, every[:, 1:])
                scores[i].append(found)
    references = []
    for i in layers:
        mean, sd = spread[i].finish()
        control = np.stack([one.all() for one in sums[i]])
        reference = LayerReference(i, np.concatenate(scores[i]), np.array(units, dtype=np.int64), control, mean, sd)
        held = np.isfinite(reference.scores).all(0)
        if held.any() and not (reference.sd[held] > 0).all():
            raise ReadError(f"The neutral tokens of layer {i} do not vary along a direction.")
        references.append(reference)
    return references


class _Spread:
    """Mean and sd of controls over tokens that come in parts."""

    def __init__(self, n_concepts: int) -> None:
        self.n = np.zeros((n_concepts, 1))
        self.mean = np.zeros((n_concepts, N_CONTROLS))
        self.squares = np.zeros((n_concepts, N_CONTROLS))

    def add(self, concept: int, values: Array) -> None:
        """``[token, control]``."""
        k, m = len(values), values.mean(0) if len(values) else 0.0
        before = self.n[concept, 0]
        delta = m - self.mean[concept]
        self.n[concept] += k
        self.squares[concept] += ((values - m) ** 2).sum(0) + delta**2 * before * k / max(before + k, 1)
        self.mean[concept] += delta * k / max(before + k, 1)

    def finish(self) -> tuple[Array, Array]:
        """``[concept, control]`` mean and sd; NaN without tokens."""
        few = self.n < 2
        sd = np.sqrt(self.squares / np.maximum(self.n - 1, 1))
        return np.where(few, np.nan, self.mean), np.where(few, np.nan, sd)


def _path(folder: Path, layer: int) -> Path:
    return folder / "watch" / "reference" / f"layer_{layer}.safetensors"


def _write(folder: Path, reference: LayerReference, whose: str, seed: int) -> None:
    from safetensors.numpy import save

    tensors = {
        "scores": reference.scores,
        "unit": reference.unit,
        "control_mean": reference.control_mean,
        "control_sd": reference.control_sd,
    }
    data = save(
        {name: np.ascontiguousarray(value) for name, value in tensors.items()},
        metadata={"format": _FORMAT, "tensors_sha256": whose, "seed": str(seed), "controls": str(N_CONTROLS)},
    )
    path = _path(folder, reference.layer)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise WriteError(f"{path} cannot be written.", why=str(error)) from error


def _read(folder: Path, layer: int, whose: str, plan: _Plan) -> LayerReference | None:
    """The kept reference; None where it is missing, cannot be read, or was made of other directions: it is then made (again)."""
    from safetensors import safe_open, SafetensorError

    with suppress(SafetensorError, OSError, KeyError), safe_open(_path(folder, layer), framework="numpy") as file:
        stated = file.metadata() or {}
        expected = {"format": _FORMAT, "tensors_sha256": whose, "seed": str(plan.run.seed), "controls": str(N_CONTROLS)}
        if stated == expected:
            kept = {name: file.get_tensor(name) for name in ("scores", "unit", "control_mean", "control_sd")}
            control = np.stack([one.all() for one in plan.directions(layer)])
            return LayerReference(layer, kept["scores"], kept["unit"], control, kept["control_mean"], kept["control_sd"])
    return None
