"""Cross-run comparison: success against failure on matched prompts, feature by feature.

1. Features are any numbers of a run, one a prompt: ``run_features`` reads the lengths of what heads and MLPs write at the last row; an autoencoder's
   activations, or a table of one's own, do as well.
2. Difference: failure − success, paired; with ``clusters`` (prompts of one frame) their mean first, so that a cluster is one unit.
3. Interval: bootstrap over units; p: sign flips; q: Benjamini-Hochberg over the features. A feature that never differs has p = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import collate, Instrument
from symbolic_residue.prompts import Prompt
from symbolic_residue.readout import write_norms
from symbolic_residue.shells._confirm import in_pieces
from symbolic_residue.stats import benjamini_hochberg, bootstrap_columns, sign_flip_test

__all__ = ["CrossRun", "cross_run", "feature_names", "run_features"]

Array = NDArray[np.float64]
Feature = tuple[int, str]


@dataclass(frozen=True)
class CrossRun:
    """Features compared.

    Attributes:
        frame: table ``cross_run``: layer, feature, success, failure, difference, low, high, effect (d_z), p, q, n; the smallest p first.
        n: units (pairs, or clusters).
    """

    frame: pl.DataFrame = field(repr=False)
    n: int

    def found(self, level: float = 0.05) -> list[Feature]:
        """(layer, feature) with q ≤ ``level``."""
        return [(r["layer"], r["feature"]) for r in self.frame.filter(pl.col("q") <= level).to_dicts()]

    def tables(self) -> dict[str, pl.DataFrame]:
        """``cross_run``."""
        return {"cross_run": self.frame}


def run_features(instrument: Instrument, prompts: Sequence[Prompt]) -> tuple[list[Feature], Array]:
    """Lengths of what every head and MLP writes into the residual stream at the last row.

    Returns:
        (layer, ``head H`` or ``mlp``) of each feature, and ``[prompt, feature]`` in the residual stream's units.

    Raises:
        ConfigError: no prompts.
    """
    if not prompts:
        raise ConfigError("There are no prompts to read.")
    parts, names = instrument.parts, feature_names(instrument)
    mlps = [layer for layer, name in names if name == "mlp"]
    found = []
    for piece in in_pieces(prompts):
        trace = instrument.run(collate(piece), reads=("z.*", *(f"mlp_out.{layer}" for layer in mlps)), keep_logits=1)
        heads = write_norms(trace, parts, rows=(-1,))[list(parts.attention_layers), :, 0].double().cpu().numpy()
        columns = [heads.transpose(1, 0, 2).reshape(len(piece), -1)]
        columns += [trace[f"mlp_out.{layer}"][:, -1].double().norm(dim=-1).cpu().numpy()[:, None] for layer in mlps]
        found.append(np.concatenate(columns, 1))
    return names, np.concatenate(found)


def feature_names(instrument: Instrument) -> list[Feature]:
    """(layer, ``head H`` or ``mlp``) of what :func:`run_features` reads, in its order."""
    parts = instrument.parts
    names = [(layer, f"head {h}") for layer in parts.attention_layers for h in range(parts.n_heads)]
    return names + [(layer.index, "mlp") for layer in parts.layers if layer.absent("mlp_out") is None]


def cross_run(
    success: ArrayLike, failure: ArrayLike, features: Sequence[Feature], *, clusters: Sequence[Any] | None = None, seed: int = 0
) -> CrossRun:
    """Compare matched runs.

    Args:
        success, failure: ``[pair, feature]``, in the same order.
        features: (layer, name) of each feature; layer −1 where it has none.
        clusters: the frame of each pair.
        seed: of the resampling.

    Raises:
        ConfigError: shapes or labels that do not fit, numbers that are not finite, or fewer than two units.
    """
    a, b = np.asarray(success, np.float64), np.asarray(failure, np.float64)
    if a.ndim != 2 or a.shape != b.shape or a.shape[1] != len(features) or not a.size:
        raise ConfigError(
            f"Success {a.shape}, failure {b.shape} and {len(features)} features do not fit.", todo="Give [pair, feature] twice."
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ConfigError("Features hold NaN or infinity.")
    if clusters is not None:
        if len(clusters) != len(a):
            raise ConfigError(f"{len(clusters)} cluster labels for {len(a)} pairs.")
        _, index = np.unique(np.asarray(clusters), return_inverse=True)
        a, b = (np.stack([x[index == k].mean(0) for k in range(index.max() + 1)]) for x in (a, b))
    n = len(a)
    if n < 2:
        raise ConfigError(f"{n} unit has no spread.", todo="Give more pairs, of more than one frame.")
    difference = b - a
    mean, low, high = bootstrap_columns(difference, seed=seed)
    spread = difference.std(0, ddof=1)
    effect = np.divide(mean, spread, out=np.full_like(mean, np.nan), where=spread > 1e-12)
    p = np.atleast_1d(sign_flip_test(difference, seed=seed))
    frame = pl.DataFrame(
        {
            "layer": [layer for layer, _ in features],
            "feature": [name for _, name in features],
            "success": a.mean(0),
            "failure": b.mean(0),
            "difference": mean,
            "low": low,
            "high": high,
            "effect": effect,
            "p": p,
            "q": benjamini_hochberg(p),
            "n": [n] * len(features),
        },
        schema_overrides={"layer": pl.Int64(), "n": pl.Int64()},
    )
    return CrossRun(frame.sort("p", maintain_order=True), n)
