"""One follow-up by its name, with the choices that a study makes where nobody chose.

patch  what is cheap in full, what is dear in part: every part of every layer at the emitting row (one row each); the residual stream of up to six layers,
       evenly spread, at the rows of each bucket; every part but the residual stream in all layers at once at all rows. Controls beside the first and the last.
knock-out  every bucket of the labels that has keys, four doses, random keys of equal mass.
surgery  quarters of the layers, and each projection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from symbolic_residue.contrast._examples import Example
from symbolic_residue.contrast.causal._emission import emission_components, emission_lens
from symbolic_residue.contrast.causal._exchange import ALL, PARTS, patch_models
from symbolic_residue.contrast.causal._knockout import knock_out
from symbolic_residue.contrast.causal._mediation import exchange_patterns
from symbolic_residue.contrast.causal._ready import check_examples, EMITTING
from symbolic_residue.contrast.causal._surgery import surgery
from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import Instrument

__all__ = ["ANALYSES", "follow_up"]

ANALYSES = ("lens", "components", "patch", "mediation", "knock-out", "surgery")
_BUCKETS = ("sink", "system", "user", "assistant_header", "answer")
_SPREAD = 6


def follow_up(
    analysis: str,
    tuned: Instrument,
    base: Instrument,
    examples: Sequence[Example],
    *,
    labels: Sequence[Sequence[str]] | None = None,
    adapter: str | Path | None = None,
    references: Mapping[str, Instrument] | None = None,
    nulls: Mapping[str, str | Path] | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """One number an example for one of ``ANALYSES``.

    Args:
        analysis: which.
        tuned, base: the models; both read the same ids.
        examples: with the behaviour.
        labels: of each example, the bucket of every token; patch and knock-out need them.
        adapter: folder of the LoRA that makes tuned of base; surgery needs it.
        references: name → another model, for mediation.
        nulls: name → folder of another adapter, for surgery.
        seed: of the controls.

    Returns:
        Columns as in ``CAUSAL``.

    Raises:
        ConfigError: no such analysis, or what it needs was not given.
        ResidueError: what the analysis refuses.
    """
    if analysis not in ANALYSES:
        raise ConfigError(f"{analysis!r} is no causal follow-up.", todo=f"Use one of: {', '.join(ANALYSES)}.")
    check_examples(examples, tuned, base)
    if analysis == "lens":
        return emission_lens(tuned, base, examples, seed=seed)
    if analysis == "components":
        return emission_components(tuned, base, examples, seed=seed)
    if analysis == "mediation":
        return exchange_patterns(tuned, base, examples, references=references, seed=seed)
    if analysis == "surgery":
        if adapter is None:
            raise ConfigError("Surgery needs the adapter's folder.", why="A tuned model without one has no parts to take away.")
        return surgery(base, adapter, examples, nulls=nulls)
    if labels is None or len(labels) != len(examples):
        raise ConfigError(f"{analysis} needs labels.", todo="Give the bucket of every token of each example.")
    regions = [
        name
        for name in _BUCKETS
        if any(name in own[: (example.event or 0) - 1] for example, own in zip(examples, labels, strict=True))
    ]
    if analysis == "knock-out":
        return knock_out(tuned, base, examples, labels, regions, seed=seed)
    return _patches(tuned, base, examples, labels, regions, seed)


def _patches(
    tuned: Instrument,
    base: Instrument,
    examples: Sequence[Example],
    labels: Sequence[Sequence[str]],
    places: Sequence[str],
    seed: int,
) -> pl.DataFrame:
    n = tuned.parts.n_layers
    spread = sorted({round((i + 1) * n / _SPREAD) - 1 for i in range(_SPREAD)} & set(range(n)))
    options: dict[str, Any] = {"labels": labels, "seed": seed}
    some = [part for part in PARTS if part != "residual"]
    frames = [
        patch_models(tuned, base, examples, places=(EMITTING,), together=False, **options),
        patch_models(tuned, base, examples, places=places, parts=("residual",), layers=spread, controls=False, **options),
        patch_models(tuned, base, examples, places=(ALL,), parts=some, layers=[], **options),
    ]
    return pl.concat(frames).unique(["model", "condition", "example", "part", "place", "layer"], keep="first", maintain_order=True)
