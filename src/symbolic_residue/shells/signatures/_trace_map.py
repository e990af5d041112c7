"""Trace map: where in depth and text a prompt leaves residue, layer × token.

1. ``write``: how much a layer changes the residual stream at a token, ``ln(‖after − before‖ / ‖before‖)``, in standard deviations from the mean over the
   tokens of reference prompts at the same layer. 0 is ordinary; the first token (the sink) is left out on both sides.
2. ``overruled``: the logit lens's probability of its best token, where that is not what the row finally says, else 0: what the model computed there and
   did not deliver. It takes a vocabulary-sized product for every layer and token, so only the last tokens are read (``last``).
3. The curve ``overruled`` gives the mean over those tokens by layer beside the same for the reference prompts, with an interval over prompts. One prompt's
   own line has no interval: its tokens are not samples.

"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import torch

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.instrument import collate, Instrument
from symbolic_residue.prompts import build_prompt, natural_prompts, Prompt
from symbolic_residue.readout import lens_reads, logit_lens
from symbolic_residue.stats import bootstrap_mean, bound

__all__ = ["TraceMap", "trace_map"]

_REFERENCE_ROWS = 4


@dataclass(frozen=True)
class TraceMap:
    """Layer × token intensities of one prompt.

    Attributes:
        prompt: what was read.
        frames: tables ``maps``, ``curves`` and ``tokens``.
        n_reference: reference prompts.
    """

    prompt: Prompt
    frames: dict[str, pl.DataFrame] = field(repr=False)
    n_reference: int

    def tables(self) -> dict[str, pl.DataFrame]:
        """For a run folder, without the ``item`` column."""
        return self.frames

    def chart(self, which: str = "overruled") -> Any:
        """One of the maps as an Altair chart (needs the ``figures`` extra)."""
        from symbolic_residue.figures import layer_token_map

        return layer_token_map(self.frames["maps"], self.frames["tokens"], which)


def trace_map(
    instrument: Instrument,
    prompt: Prompt | str,
    *,
    reference: Sequence[Prompt | str] | None = None,
    last: int = 16,
    seed: int = 0,
) -> TraceMap:
    """The trace map of one prompt.

    Args:
        instrument: the model's instrument.
        prompt: text without a chat template, or a built prompt, of two tokens or more.
        reference: prompts that say what is ordinary, six or more; the first of each category of ``natural_prompts`` when left out.
        last: tokens at the end that the lens reads.
        seed: of the interval.

    Raises:
        ConfigError: too few reference prompts, or ``last`` under 1.
        PromptError: a prompt that is empty, too long, or of one token.
    """
    if last < 1:
        raise ConfigError(f"last = {last}: a map needs at least one token.")
    if reference is None:
        reference = [p.prompt for p in natural_prompts() if p.id.endswith("-01")]
    if len(reference) < 6:
        raise ConfigError(f"{len(reference)} reference prompts do not say what is ordinary.", todo="Give six or more.")
    tokenizer, limit = instrument.loaded.tokenizer, instrument.parts.max_context
    built = [build_prompt(tokenizer, p, max_tokens=limit) if isinstance(p, str) else p for p in (prompt, *reference)]
    if min(map(len, built)) < 2:
        raise PromptError("A prompt of one token is all sink.", todo="Give a longer one.")
    mine, *others = built
    write, overruled = _read(instrument, mine, last)
    found = [_read(instrument, one, _REFERENCE_ROWS) for one in others]
    ordinary = np.concatenate([w for w, _ in found], 1)
    spread = ordinary.std(1, ddof=1)
    score = np.divide(write - ordinary.mean(1)[:, None], spread[:, None], out=np.zeros_like(write), where=spread[:, None] > 0)
    n_layers, n = score.shape[0], len(mine)
    maps = [
        ("write", layer, position + 1, float(score[layer, position]), "sd of reference tokens")
        for layer in range(n_layers)
        for position in range(n - 1)
    ]
    start = n - overruled.shape[1]
    maps += [
        ("overruled", layer, start + i, float(overruled[layer, i]), "probability")
        for layer in range(n_layers)
        for i in range(n - start)
    ]
    lines = []
    for layer in range(n_layers):
        control = bootstrap_mean([float(o[layer].mean()) for _, o in found], seed=seed)
        lines.append(("prompt", float(layer), float(overruled[layer].mean()), None, None, 1))
        lines.append(
            ("control: reference prompts", float(layer), control.value, bound(control.low), bound(control.high), control.n)
        )
    curves = pl.DataFrame(
        lines,
        schema={"series": pl.String, "x": pl.Float64, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64, "n": pl.Int64},
        orient="row",
    )
    curves = curves.with_columns(curve=pl.lit("overruled"), x_unit=pl.lit("layer"), unit=pl.lit("probability"))
    tokens = pl.DataFrame(
        {
            "position": list(range(n)),
            "token_id": mine.ids,
            "token": mine.tokens,
            "region": mine.regions.per_token(),
            "char_start": [a for a, _ in mine.offsets],
            "char_end": [b for _, b in mine.offsets],
        }
    ).with_columns(influence=pl.lit(None, pl.Float64), attention=pl.lit(None, pl.Float64))
    frames = {
        "maps": pl.DataFrame(maps, schema=["map", "layer", "position", "value", "unit"], orient="row"),
        "curves": curves.select("curve", "series", "x", "x_unit", "value", "low", "high", "n", "unit").sort("series", "x"),
        "tokens": tokens,
    }
    return TraceMap(mine, frames, len(others))


@torch.no_grad()
def _read(instrument: Instrument, prompt: Prompt, last: int) -> tuple[np.ndarray, np.ndarray]:
    """``write [layer, token after the first]`` and ``overruled [layer, last tokens]``."""
    parts = instrument.parts
    trace = instrument.run(collate([prompt]), reads=lens_reads(), keep_logits=1)
    stream = torch.stack([trace["resid_pre.0"][0], *(trace[f"resid_post.{i}"][0] for i in range(parts.n_layers))]).double()
    before = stream[:-1].norm(dim=-1).clamp_min(1e-30)
    change = (stream[1:] - stream[:-1]).norm(dim=-1).clamp_min(1e-30)
    n = min(last, len(prompt) - 1)
    lens = logit_lens(trace, parts, rows=tuple(range(-n, 0)))
    final = lens.top[-1, 0]
    wrong = torch.where(lens.top[1:, 0] == final, 0.0, lens.top_probability[1:, 0])
    return (change / before).log()[:, 1:].cpu().numpy(), wrong.double().cpu().numpy()
