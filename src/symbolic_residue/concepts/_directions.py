"""Directions of concepts in the residual stream, and the scores that they give.

1. For each concept and layer a direction is fitted (``_estimators``) on the pooled residual stream, and brought to length 1; its norm before that is kept.
   Of ``difference`` the norm is in the residual stream's units; of the others it has no unit.
2. ``positive_mean``, ``negative_mean``, ``negative_sd`` are of the training texts' projections ``x · v`` (residual stream's units): where a score stands.
   They are not held out; what a direction is worth is in the quality report.
3. The model is named by its reference and by the hash of its weights (and of its adapter): a direction of another model means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.concepts._collect import Pooled
from symbolic_residue.concepts._corpus import BASELINE
from symbolic_residue.concepts._design import Against, make_design
from symbolic_residue.concepts._estimators import Estimator, fit
from symbolic_residue.concepts._pool import Pooling
from symbolic_residue.concepts._readout_model import ReadoutModel
from symbolic_residue.concepts._rows import Rows
from symbolic_residue.errors import ConfigError

__all__ = ["Directions", "ReadoutModel", "find_directions"]

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Directions:
    """Unit directions of concepts, layer by layer.

    Attributes:
        concepts: along the first axis of every array.
        vectors: layer → ``[concept, d_model]`` float32, each of length 1.
        norms: layer → ``[concept]``: length before.
        positive_mean, negative_mean, negative_sd: layer → ``[concept]``: projections of the training texts (sd with ddof 1; NaN of one negative).
        estimator, pooling, m, against: how they were made.
        model: whose they are.
        chat: whether texts were rendered as a user's turn.
        corpus_sha256: of the texts, "" where not given.
    """

    concepts: tuple[str, ...]
    vectors: Mapping[int, Array]
    norms: Mapping[int, Array]
    positive_mean: Mapping[int, Array]
    negative_mean: Mapping[int, Array]
    negative_sd: Mapping[int, Array]
    estimator: Estimator
    pooling: Pooling
    m: int | None
    against: Against
    model: ReadoutModel
    chat: bool = False
    corpus_sha256: str = ""

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers with directions, in order."""
        return tuple(sorted(self.vectors))

    def vector(self, concept: str, layer: int) -> Array:
        """One unit direction ``[d_model]``.

        Raises:
            ConfigError: no such concept or layer here.
        """
        if concept not in self.concepts or layer not in self.vectors:
            known = f"Concepts: {', '.join(self.concepts)}; layers: {', '.join(map(str, self.layers))}."
            raise ConfigError(f"There is no direction of {concept!r} in layer {layer}.", todo=known)
        return self.vectors[layer][self.concepts.index(concept)]

    def scores(self, x: NDArray[np.floating], layer: int, *, z: bool = False) -> NDArray[np.float64]:
        """Projections of activations ``[…, d_model]`` of a layer on every direction, ``[…, concept]``.

        Args:
            x: ``resid_post`` of the layer.
            layer: which.
            z: as standard scores against the training negatives, (x · v − mean) / sd.

        Raises:
            ConfigError: no directions of this layer, or activations of another width.
        """
        if layer not in self.vectors:
            raise ConfigError(f"There are no directions of layer {layer}.", todo=f"Layers: {', '.join(map(str, self.layers))}.")
        if np.shape(x)[-1:] != (self.model.hidden_size,):
            raise ConfigError(f"Activations of width {np.shape(x)[-1:]} do not fit directions of {self.model.hidden_size}.")
        raw = np.asarray(x, dtype=np.float64) @ self.vectors[layer].T.astype(np.float64)
        return (raw - self.negative_mean[layer]) / self.negative_sd[layer] if z else raw


def find_directions(
    pooled: Pooled,
    labels: Sequence[str],
    scenarios: Sequence[str | None],
    model: ReadoutModel,
    *,
    concepts: Sequence[str] | None = None,
    estimator: Estimator = "difference",
    against: Against = "baseline",
    chat: bool = False,
    corpus_sha256: str = "",
) -> Directions:
    """Directions of every concept in every layer that was read.

    Args:
        pooled: of :func:`collect`, one row a text.
        labels: the concept of each text; ``baseline`` for the neutral telling.
        scenarios: the scenario of each text, or None.
        model: whose activations they are: ``ReadoutModel.of(loaded)``.
        concepts: which; None is all labels but ``baseline``, in order of appearance.
        estimator: ``difference``, ``logistic`` or ``lda``.
        against: the negatives: ``baseline``, ``others`` or ``all``.
        chat, corpus_sha256: kept with the result.

    Raises:
        ConfigError: labels that do not fit the texts, a concept without positives or negatives, an option out of range.
    """
    if len(labels) != len(pooled):
        raise ConfigError(f"There are {len(labels)} labels for {len(pooled)} texts.", todo="Give one label a text.")
    names = tuple(dict.fromkeys(label for label in labels if label != BASELINE)) if concepts is None else tuple(concepts)
    if not names or len(set(names)) < len(names):
        raise ConfigError("No concept was given." if not names else "A concept is named twice.")
    designs = [make_design(labels, scenarios, name, against) for name in names]
    arrays: dict[str, dict[int, Array]] = {k: {} for k in ("vectors", "norms", "positive_mean", "negative_mean", "negative_sd")}
    for layer in pooled.layers:
        rows: dict[str, list[object]] = {k: [] for k in arrays}
        for design in designs:
            x = Rows(pooled.resid[layer], design.rows)
            raw = fit(x, design, estimator)
            norm = float(np.linalg.norm(raw))
            projection = x.project(raw / norm)
            negatives = projection[~design.positive]
            rows["vectors"].append(raw / norm)
            rows["norms"].append(norm)
            rows["positive_mean"].append(projection[design.positive].mean())
            rows["negative_mean"].append(negatives.mean())
            rows["negative_sd"].append(negatives.std(ddof=1) if len(negatives) > 1 else np.nan)
        for name, values in rows.items():
            arrays[name][layer] = np.array(values, dtype=np.float32)
    return Directions(
        names, **arrays, estimator=estimator, pooling=pooled.pooling, m=pooled.m, against=against, model=model, chat=chat,
        corpus_sha256=corpus_sha256,
    )  # fmt: skip
