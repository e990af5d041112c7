"""Error accumulation: how the errors of a replacement grow from layer to layer.

1. A replacement makes a layer's ``target`` point from its ``source`` point: a transcoder (``mlp_in → mlp_out``), an autoencoder (``resid_post →
   resid_post``), or any function. It is put in place of the layer's own value in all rows but position 0, which is the attention sink and is left alone.
2. *Injected*: one layer alone is replaced. Relative error ``‖replaced − own‖ / ‖own‖``, and KL(model ‖ replaced model) of the output.
3. *Accumulated*: layers ≤ l are replaced, each fed by what the ones before left. Relative error of layer l's replaced value against the unreplaced model's,
   and KL.
4. *Control*: random errors of the same lengths at the same places, injected and accumulated: what any error of that size would do.
5. *Logit lens* (no replacement given): layer l alone is skipped (injected); all layers > l are skipped, which is the lens after layer l (accumulated).
   Control of the first: a random error of the length of what layer l adds; of the second: one of the length of what the skipped layers add, at the last layer.

A prompt gives one number a layer: the mean over its rows but the first. The interval is over prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.errors import ConfigError, ReadError
from symbolic_residue.instrument import collate, Edit, Instrument
from symbolic_residue.instrument import Replace as PutThere
from symbolic_residue.prompts import Prompt
from symbolic_residue.readout import lens_reads, logit_lens
from symbolic_residue.stats import bootstrap_columns

__all__ = ["ErrorAccumulation", "Replacement", "error_accumulation"]

Array = NDArray[np.float64]
Replacement = Callable[[int, Tensor], Tensor] | Mapping[int, Callable[[Tensor], Tensor]]
"""``(layer, source [1, row, d]) → target [1, row, d]``; or a function (or module) for each replaced layer."""

INJECTED, ACCUMULATED = "injected", "accumulated"
CONTROL = "control: random error of equal length, "


@dataclass(frozen=True)
class ErrorAccumulation:
    """Errors by layer.

    Attributes:
        layers: those replaced, ascending.
        values: (curve, series) → ``[prompt, layer]``; curves ``relative error`` (share) and ``KL`` (nats).
        frame: table ``curves``.
    """

    layers: tuple[int, ...]
    values: dict[tuple[str, str], Array] = field(repr=False)
    frame: pl.DataFrame = field(repr=False)

    @classmethod
    def pooled(cls, layers: Sequence[int], values: Mapping[tuple[str, str], Array], *, seed: int = 0) -> ErrorAccumulation:
        """Of values read before, ``[prompt, layer]`` for each (curve, series): means and intervals over prompts."""
        return cls(tuple(layers), dict(values), _frame(layers, values, seed))

    def tables(self) -> dict[str, pl.DataFrame]:
        """``curves``."""
        return {"curves": self.frame}


def error_accumulation(
    instrument: Instrument,
    prompts: Sequence[Prompt],
    replacement: Replacement | None = None,
    *,
    source: str = "resid_post",
    target: str = "resid_post",
    control: bool = True,
    seed: int = 0,
) -> ErrorAccumulation:
    """Relative errors and KL, layer by layer; six forwards a layer and prompt (lens: three), without control three (one).

    Args:
        instrument: the model's instrument.
        prompts: of at least two tokens each.
        replacement: see :data:`Replacement`; None is the logit lens.
        source, target: kinds of points: what a replacement reads and what it replaces.
        control: also random errors of the same lengths.
        seed: of the random errors and the resampling.

    Raises:
        ConfigError: no prompts or too short ones, no layer to replace, or a replacement that gives another shape or numbers that are not finite.
        ReadError: a point that the layers lack.
    """
    if not prompts or any(len(p) < 2 for p in prompts):
        raise ConfigError("Error accumulation needs prompts of at least two tokens.", why="The first row is left out.")
    if replacement is None:
        layers = tuple(range(instrument.parts.n_layers))
        generator = torch.Generator().manual_seed(seed)
        each = [_lens(instrument, prompt, layers, generator if control else None) for prompt in prompts]
    else:
        layers = _layers(instrument, replacement, source, target)
        generator = torch.Generator().manual_seed(seed)
        run = _Replaced(instrument, replacement, layers, source, target, generator)
        each = [run(prompt, control) for prompt in prompts]
    values = {key: np.stack([one[key] for one in each]) for key in each[0]}
    return ErrorAccumulation.pooled(layers, values, seed=seed)


def _layers(instrument: Instrument, replacement: Replacement, source: str, target: str) -> tuple[int, ...]:
    parts = instrument.parts
    there = [
        layer.index for layer in parts.layers if layer.absent(source) is None and layer.absent(target) is None  # type: ignore[arg-type]
    ]  # fmt: skip
    instrument.points([f"{source}.*", f"{target}.*"])
    asked = sorted(replacement) if isinstance(replacement, Mapping) else there
    if wrong := [layer for layer in asked if layer not in there]:
        raise ReadError(f"Layer {wrong[0]} has no {source} and {target} to replace.", todo=f"Layers that have both: {there}.")
    if not asked:
        raise ConfigError("There is no layer to replace.")
    return tuple(asked)


class _Replaced:
    """The runs of one prompt under one replacement."""

    def __init__(
        self, instrument: Instrument, replacement: Replacement, layers: Sequence[int], source: str, target: str, generator: Any
    ) -> None:
        self.instrument, self.replacement, self.layers = instrument, replacement, layers
        self.source, self.target, self.generator = source, target, generator

    def __call__(self, prompt: Prompt, control: bool) -> dict[tuple[str, str], Array]:
        batch = collate([prompt])
        rows = tuple(range(1, len(prompt)))
        reads = tuple({f"{kind}.{layer}" for layer in self.layers for kind in (self.source, self.target)})
        clean = self.instrument.run(batch, reads=reads)
        output = _log_p(clean["logits"])
        own = {layer: clean[f"{self.target}.{layer}"] for layer in self.layers}
        made = {layer: self._make(layer, clean[f"{self.source}.{layer}"], own[layer]) for layer in self.layers}

        def put(layer: int, value: Tensor) -> Edit:
            return PutThere(f"{self.target}.{layer}", rows=rows, value=value[:, 1:])

        def kl(edits: Sequence[Edit]) -> float:
            return _kl(output, _log_p(self.instrument.run(batch, edits=edits)["logits"]))

        out: dict[tuple[str, str], list[float]] = {}

        def note(curve: str, series: str, value: float) -> None:
            out.setdefault((curve, series), []).append(value)

        chain: list[Edit] = []
        random: list[Edit] = []
        for layer in self.layers:
            note("relative error", INJECTED, _relative(made[layer], own[layer]))
            note("KL", INJECTED, kl([put(layer, made[layer])]))
            # With a source that is the target, the value read under the chain is the layer's own, before its replacement.
            fed = self.instrument.run(batch, reads=(f"{self.source}.{layer}",), edits=chain, keep_logits=1)
            value = self._make(layer, fed[f"{self.source}.{layer}"], own[layer])
            chain.append(put(layer, value))
            note("relative error", ACCUMULATED, _relative(value, own[layer]))
            note("KL", ACCUMULATED, kl(chain))
            if control:
                noise = _noise(made[layer] - own[layer], self.generator)
                note("KL", CONTROL + INJECTED, kl([put(layer, own[layer] + noise)]))
                fed = self.instrument.run(batch, reads=(f"{self.target}.{layer}",), edits=random, keep_logits=1)
                random.append(put(layer, fed[f"{self.target}.{layer}"] + noise))
                note("KL", CONTROL + ACCUMULATED, kl(random))
        return {key: np.array(value) for key, value in out.items()}

    def _make(self, layer: int, source: Tensor, like: Tensor) -> Tensor:
        with torch.no_grad():
            made = (
                self.replacement[layer](source) if isinstance(self.replacement, Mapping) else self.replacement(layer, source)
            )  # fmt: skip
        if not isinstance(made, Tensor) or made.shape != like.shape or not bool(torch.isfinite(made).all()):
            got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise ConfigError(
                f"The replacement of layer {layer} gives {got}.", todo=f"It must give finite numbers of shape {tuple(like.shape)}."
            )
        return made.to(like)


def _noise(error: Tensor, generator: torch.Generator) -> Tensor:
    """A random error, as long in each row."""
    direction = torch.randn(error.shape, generator=generator).to(error)
    return direction / direction.norm(dim=-1, keepdim=True) * error.norm(dim=-1, keepdim=True)


def _lens(
    instrument: Instrument, prompt: Prompt, layers: Sequence[int], generator: torch.Generator | None
) -> dict[tuple[str, str], Array]:
    batch = collate([prompt])
    rows = tuple(range(1, len(prompt)))
    trace = instrument.run(batch, reads=lens_reads())
    output = _log_p(trace["logits"])
    depths = [trace["resid_pre.0"], *(trace[f"resid_post.{layer}"] for layer in layers)]
    lens = logit_lens(trace, instrument.parts, rows=rows)
    out: dict[tuple[str, str], Array] = {
        ("relative error", INJECTED): np.array([_relative(depths[i], depths[i + 1]) for i in layers]),
        ("relative error", ACCUMULATED): np.array([_relative(depths[i + 1], depths[-1]) for i in layers]),
        ("KL", ACCUMULATED): lens.kl[1:, 0].double().mean(-1).cpu().numpy(),
    }

    def kl(layer: int, value: Tensor) -> float:
        edits = [PutThere(f"resid_post.{layer}", rows=rows, value=value[:, 1:])]
        return _kl(output, _log_p(instrument.run(batch, edits=edits)["logits"]))

    out["KL", INJECTED] = np.array([kl(i, depths[i]) for i in layers])
    if generator is not None:
        final = depths[-1]
        own = [depths[i + 1] + _noise(depths[i + 1] - depths[i], generator) for i in layers]
        rest = [final + _noise(final - depths[i + 1], generator) for i in layers]
        out["KL", CONTROL + INJECTED] = np.array([kl(i, own[i]) for i in layers])
        out["KL", CONTROL + ACCUMULATED] = np.array([kl(layers[-1], rest[i]) for i in layers])
    return out


def _log_p(logits: Tensor) -> Tensor:
    return logits[0, 1:].double().log_softmax(-1)


def _kl(p: Tensor, q: Tensor) -> float:
    """Mean over rows, nats; rounding may leave −1e-9."""
    return max(0.0, float((p.exp() * (p - q)).sum(-1).mean()))


def _relative(value: Tensor, own: Tensor) -> float:
    """Mean over the rows but the first."""
    a, b = value[0, 1:].double(), own[0, 1:].double()
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1).clamp_min(1e-30)).mean())


def _frame(layers: Sequence[int], values: Mapping[tuple[str, str], Array], seed: int) -> pl.DataFrame:
    rows = []
    for (curve, series), array in values.items():
        mean, low, high = bootstrap_columns(array, seed=seed)
        for i, layer in enumerate(layers):
            known = bool(np.isfinite(low[i]))
            rows.append(
                {
                    "curve": curve,
                    "series": series,
                    "x": float(layer),
                    "x_unit": "layer",
                    "value": float(mean[i]),
                    "low": max(0.0, float(low[i])) if known else None,
                    "high": float(high[i]) if known else None,
                    "n": len(array),
                    "unit": "nats" if curve == "KL" else "share",
                }
            )
    return pl.DataFrame(rows, schema_overrides={"low": pl.Float64(), "high": pl.Float64()})
