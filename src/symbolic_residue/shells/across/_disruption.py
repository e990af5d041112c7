"""Attention disruption: how each head's attention differs from a matched control.

1. The rows read are the last ``rows`` of each prompt; a head's metric is averaged over them, so that each prompt gives one number.
2. *sink mass*: weight on position 0 and on a sink logit. All else is of what the sink leaves, ``p_j / Σ_{k>0} p_k`` over the other keys (the sink enters no
   mean): *self mass* (the row's own key), *local trapping* (keys of the row's own span), *entropy* (nats), *effective context* exp(entropy) (tokens),
   *distance* (row minus mean attended position, tokens).
3. Effect: mean over prompts of prompt − control, paired, with a bootstrap interval; ``effect`` is that over the standard deviation of the differences
   (Cohen's d_z).
4. p: sign flips over prompts; q: Benjamini-Hochberg over the heads, for each metric. The unit is a prompt, never a head. ``2 / 2^n`` is the smallest p that
   n prompts can have, so that one head alone among H needs n ≥ 1 + log2(H / 0.05) prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from symbolic_residue.errors import ConfigError, SpanError
from symbolic_residue.instrument import AttentionRead, collate, Instrument
from symbolic_residue.prompts import Prompt
from symbolic_residue.stats import benjamini_hochberg, bootstrap_columns, sign_flip_test
from symbolic_residue.types import Span

__all__ = ["FEWEST_PAIRS", "METRICS", "AttentionDisruption", "attention_disruption", "attention_metrics", "compare_attention"]

METRICS: dict[str, str] = {
    "sink mass": "share",
    "self mass": "share",
    "local trapping": "share",
    "entropy": "nats",
    "effective context": "tokens",
    "distance": "tokens",
}
"""Metric → unit."""

Array = NDArray[np.float64]
FEWEST_PAIRS = 6
"""Pairs below which no sign-flip p can reach 0.05."""
_FLIPS = 20_000


@dataclass(frozen=True)
class AttentionDisruption:
    """Every head's metrics beside the control.

    Attributes:
        frame: table ``disruption``: layer, head, metric, value, control, difference, low, high, effect, p, q, n, unit.
        dropped: heads and metrics left out because the sink had all of a row's weight somewhere.
        n: prompts.
        n_needed: prompts with which a single head could be found among all.
    """

    frame: pl.DataFrame = field(repr=False)
    dropped: int
    n: int
    n_needed: int

    def found(self, metric: str, level: float = 0.05) -> list[tuple[int, int]]:
        """(layer, head) with q ≤ ``level``, the largest effects first.

        Raises:
            ConfigError: no such metric.
        """
        if metric not in METRICS:
            raise ConfigError(f"There is no metric {metric!r}.", todo=f"Metrics: {', '.join(METRICS)}.")
        mine = self.frame.filter((pl.col("metric") == metric) & (pl.col("q") <= level))
        return [(r["layer"], r["head"]) for r in sorted(mine.to_dicts(), key=lambda r: -abs(r["difference"]))]

    def tables(self) -> dict[str, pl.DataFrame]:
        """``disruption``."""
        return {"disruption": self.frame}


def attention_metrics(
    instrument: Instrument, prompts: Sequence[Prompt], *, spans: Sequence[Span] | None = None, rows: int = 1
) -> dict[str, Array]:
    """The metrics of every head, ``[prompt, layer, head]`` over the layers with softmax attention; NaN where the sink has all the weight.

    Args:
        instrument: the model's instrument.
        prompts: of at least two tokens each.
        spans: each prompt's own span, for local trapping; its last eight tokens where left out.
        rows: how many last rows.

    Raises:
        ConfigError: no prompts, spans that are not one a prompt, or more rows than a prompt has after its first token.
        SpanError: a span outside its prompt.
    """
    if not prompts or rows < 1 or any(len(p) <= rows for p in prompts):
        raise ConfigError(f"{rows} rows cannot be read from every prompt.", todo="Give prompts longer than that.")
    mine = list(spans) if spans is not None else [Span(max(1, len(p) - 8), len(p)) for p in prompts]
    if len(mine) != len(prompts):
        raise ConfigError(f"{len(mine)} spans for {len(prompts)} prompts.", todo="Give one a prompt.")
    found: dict[str, list[Array]] = {name: [] for name in METRICS}
    for prompt, span in zip(prompts, mine, strict=True):
        n = len(prompt)
        if not 0 <= span.start < span.stop <= n:
            raise SpanError(f"The span {span.start}–{span.stop} does not lie in a prompt of {n} tokens.")
        read = AttentionRead(stats=("sink",), rows=tuple(range(-rows, 0)), weights=True)
        table = instrument.run(collate([prompt]), attention=read, keep_logits=1).attention
        assert table is not None
        weights = table["weights"][:, 0].double().cpu().numpy()  # [layer, head, row, key]
        extra = table["sink"][:, 0].double().cpu().numpy()
        at = np.arange(n - rows, n)
        rest = weights[..., 1:].sum(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            p = weights[..., 1:] / np.where(rest > 0, rest, np.nan)[..., None]
            surprise = np.where(p > 0, -p * np.log(np.where(p > 0, p, 1.0)), np.where(np.isnan(p), np.nan, 0.0))
        keys = np.arange(1, n)
        entropy = surprise.sum(-1)
        inside = (keys >= span.start) & (keys < span.stop)
        each = {
            "sink mass": weights[..., 0] + extra,
            "self mass": np.stack([p[..., i, row - 1] for i, row in enumerate(at)], -1),
            "local trapping": p[..., inside].sum(-1),
            "entropy": entropy,
            "effective context": np.exp(entropy),
            "distance": at - (p * keys).sum(-1),
        }
        for name, value in each.items():
            found[name].append(value.mean(-1))
    return {name: np.stack(values) for name, values in found.items()}


def attention_disruption(
    instrument: Instrument,
    prompt: Sequence[Prompt],
    control: Sequence[Prompt],
    *,
    spans: Sequence[Span] | None = None,
    control_spans: Sequence[Span] | None = None,
    rows: int = 1,
    seed: int = 0,
) -> AttentionDisruption:
    """Every head's attention on prompts against their matched controls.

    Args:
        instrument: the model's instrument.
        prompt, control: as many prompts as controls, in pairs; six at least.
        spans, control_spans, rows: see :func:`attention_metrics`.
        seed: of the resampling.

    Raises:
        ConfigError: prompts and controls that do not pair, or fewer than six pairs; besides what :func:`attention_metrics` raises.
    """
    n = len(prompt)
    if n != len(control):
        raise ConfigError(f"{n} prompts and {len(control)} controls do not pair.")
    _enough(n)
    here = attention_metrics(instrument, prompt, spans=spans, rows=rows)
    there = attention_metrics(instrument, control, spans=control_spans, rows=rows)
    return compare_attention(here, there, instrument.attention_layers, seed=seed)


def compare_attention(
    here: Mapping[str, Array], there: Mapping[str, Array], layers: Sequence[int], *, seed: int = 0
) -> AttentionDisruption:
    """The comparison alone, of metrics that were read before.

    Args:
        here, there: what :func:`attention_metrics` gave for prompts and for controls, in pairs; six at least.
        layers: those with softmax attention.
        seed: of the resampling.

    Raises:
        ConfigError: shapes that do not pair, or fewer than six pairs.
    """
    shapes = {array.shape for some in (here, there) for array in some.values()}
    if set(here) != set(METRICS) or set(there) != set(METRICS) or len(shapes) != 1:
        raise ConfigError("The metrics of prompts and controls do not pair.", why=f"Shapes: {sorted(shapes)}.")
    n, n_layers, n_heads = next(iter(shapes))
    if n_layers != len(layers):
        raise ConfigError(f"{n_layers} layers of metrics and {len(layers)} names.")
    _enough(n)
    frames, dropped = [], 0
    for metric, unit in METRICS.items():
        a, b = here[metric].reshape(n, -1), there[metric].reshape(n, -1)
        kept = np.flatnonzero(np.isfinite(a).all(0) & np.isfinite(b).all(0))
        dropped += a.shape[1] - len(kept)
        if not len(kept):
            continue
        difference = a[:, kept] - b[:, kept]
        mean, low, high = bootstrap_columns(difference, seed=seed)
        spread = difference.std(0, ddof=1)
        effect = np.divide(mean, spread, out=np.full_like(mean, np.nan), where=spread > 1e-12)
        p = np.atleast_1d(sign_flip_test(difference, seed=seed, n_resamples=_FLIPS))
        frames.append(
            pl.DataFrame(
                {
                    "layer": [layers[int(i) // n_heads] for i in kept],
                    "head": [int(i) % n_heads for i in kept],
                    "metric": [metric] * len(kept),
                    "value": a[:, kept].mean(0),
                    "control": b[:, kept].mean(0),
                    "difference": mean,
                    "low": low,
                    "high": high,
                    "effect": effect,
                    "p": p,
                    "q": benjamini_hochberg(p),
                    "n": [n] * len(kept),
                    "unit": [unit] * len(kept),
                }
            )
        )
    if not frames:
        raise ConfigError("The sink has all of the attention in every head, so no metric is defined.")
    return AttentionDisruption(pl.concat(frames), dropped, n, math.ceil(1 + math.log2(n_layers * n_heads / 0.05)))


def _enough(n: int) -> None:
    if n < FEWEST_PAIRS:
        raise ConfigError(f"{n} pairs of prompts are too few.", why="With fewer than six no sign-flip p can reach 0.05.")
