"""Induction and previous-token heads: how much they do so before and after a jump in position, and what their ablation costs.

1. Sequences ``r r`` of ``half`` distinct random tokens, and plain ones of ``2 · half``. *Induction* score: mean attention from the rows of the second
   half to the token after the earlier copy; control: the same key on plain text. *Previous token*: attention to the token before, on plain text; control:
   the key two before.
2. *After the shift*: the second half's positions are ``distance`` larger (or smaller) and the text is the same. Previous token: only the first row of
   the second half then sees a jump, so only it is read.
3. *Ablation on repeated sequences*: a head's output is replaced, in every row, by its mean over rows and sequences of the plain text. Effect =
   log-probability of the repeated token (mean over the second half but its first token, nats a token) with − without; n = sequences. Control: heads drawn
   at random, the 95th percentile of their sizes. Confirmed: q ≤ 0.05 over the heads tested, effect below 0, larger than the random heads' and than 0.01 nats,
   and more so than on the plain text.
4. *Ablation on the text*: the same heads in the rows of the continuation, unshifted; effect on the log-probability of the true tokens (window), n =
   places, which overlap: q says that the effect is the same all over this passage.

Six units or more are needed for a sign-flip p of 0.05: with fewer nothing can be confirmed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import AttentionRead, HeadReplace, Instrument, Positions
from symbolic_residue.shells._confirm import draw_heads, SMALLEST
from symbolic_residue.shells.temporal_inference._config import Direction, TemporalInferenceConfig
from symbolic_residue.shells.temporal_inference._runs import Tail, TextRuns
from symbolic_residue.stats import benjamini_hochberg, bootstrap_columns, sign_flip_test

__all__ = ["HeadBehaviours", "ablate_on_text", "behaviours", "head_tests"]

Array = NDArray[np.float64]
Head = tuple[int, int]
_FEWEST = 6


@dataclass(frozen=True)
class HeadBehaviours:
    """What heads do on random sequences; model, seed and shift decide it, not the text.

    Attributes:
        scores: table ``head_scores``.
        chosen: (layer, head) of the heads to test, strongest first; ``behaviour`` of each; ``drawn`` the control's.
        mean: ``[layer, head, d_head]`` of the heads' outputs on plain text.
        tests: table ``head_tests`` of the ablations on repeated sequences.
    """

    scores: pl.DataFrame
    chosen: list[Head]
    behaviour: list[str]
    drawn: list[Head]
    mean: Tensor
    tests: pl.DataFrame


def behaviours(
    instrument: Instrument, config: TemporalInferenceConfig, distance: int, direction: Direction, *, seed: int, ablate: bool = True
) -> HeadBehaviours:
    """Scores before and after the shift, and ablations; see the module.

    Raises:
        ConfigError: a vocabulary or context too small for the sequences.
    """
    half, n, parts = config.half, config.sequences, instrument.parts
    repeated, plain = _sequences(instrument, n, half, seed)
    rows = np.arange(half, 2 * half)
    read = AttentionRead(stats=("lse",), rows=tuple(rows.tolist()), weights=True)
    layers = instrument.attention_layers
    jumped = _jump(half, distance, direction, parts.max_context) if parts.position_ids else None

    def weights(ids: Tensor, moved: bool) -> Tensor:
        trace = instrument.run(
            ids, attention=read, edits=(Positions(jumped),) if moved and jumped is not None else (), keep_logits=1
        )
        assert trace.attention is not None
        return trace.attention["weights"].double().cpu()  # [layer, batch, head, row, key]

    def mean_on(w: Tensor, keys: NDArray[np.int64], which: slice) -> Array:
        """``[sequence, layer, head]``: mean over rows of the attention to one key a row."""
        at = torch.arange(half)[which]
        return w[..., at, torch.tensor(keys)[which]].mean(-1).permute(1, 0, 2).numpy()

    every, seam = slice(None), slice(0, 1)
    scores: list[tuple[str, Array, Array]] = []
    sides = (("before", False), ("after the shift", True)) if jumped is not None else (("before", False),)
    for name, moved in sides:
        on_repeated, on_plain = weights(repeated, moved), weights(plain, moved)
        scores.append(
            (f"induction {name}", mean_on(on_repeated, rows - half + 1, every), mean_on(on_plain, rows - half + 1, every))
        )
        which = seam if moved else every
        scores.append((f"previous token {name}", mean_on(on_plain, rows - 1, which), mean_on(on_plain, rows - 2, which)))
    frame = pl.concat([_score_frame(name, value, control, layers, seed) for name, value, control in scores])
    order = {name: _ranked(value.mean(0) - control.mean(0), layers) for name, value, control in scores[:2]}
    n_induction = config.top_heads - config.top_heads // 3
    chosen = order["induction before"][:n_induction]
    behaviour = ["induction"] * len(chosen)
    previous = [h for h in order["previous token before"] if h not in chosen][: config.top_heads // 3]
    chosen, behaviour = chosen + previous, behaviour + ["previous token"] * len(previous)
    rng = np.random.default_rng(seed)
    drawn = draw_heads([h for h in order["induction before"] if h not in chosen], config.random_heads, rng)
    trace = instrument.run(plain, reads=("z.*",), keep_logits=1)
    mean = torch.full((parts.n_layers, parts.n_heads, trace[f"z.{layers[0]}"].shape[-1]), float("nan"))
    for layer in layers:
        mean[layer] = trace[f"z.{layer}"].mean((0, 1)).float().cpu()
    tests = head_tests([], [], np.zeros((0, n)), np.zeros((0, n)), "", seed)
    if ablate and chosen:
        effects = _ablations(instrument, repeated, half, [*chosen, *drawn], mean)
        on_plain = _ablations(instrument, plain, half, chosen, mean)
        names = [f"repeated sequences: {b}" for b in behaviour]
        tests = head_tests(chosen, names, effects[: len(chosen)], effects[len(chosen) :], "nats a token", seed, elsewhere=on_plain)
    return HeadBehaviours(frame, chosen, behaviour, drawn, mean, tests)


def head_tests(
    chosen: Sequence[Head],
    behaviour: Sequence[str],
    effects: Array,
    random: Array,
    unit: str,
    seed: int,
    *,
    elsewhere: Array | None = None,
) -> pl.DataFrame:
    """Table ``head_tests``: one row a head.

    Args:
        chosen: the heads; ``behaviour`` what each is tested for.
        effects: ``[head, n]``: with − without the ablation; ``random`` the same of the random heads.
        elsewhere: ``[head, n]`` on text where the behaviour has nothing to do: the effect must be larger here.
    """
    rows = []
    if len(chosen):
        value, low, high = bootstrap_columns(effects.T, seed=seed)
        p = np.atleast_1d(sign_flip_test(effects.T, seed=seed))
        q = benjamini_hochberg(p)
        limit = float(np.quantile(np.abs(random.mean(1)), 0.95, method="higher")) if len(random) else None
        sayable = effects.shape[1] >= _FEWEST and limit is not None
        for i, (layer, head) in enumerate(chosen):
            more = elsewhere is None or value[i] < elsewhere[i].mean()
            ok = bool(q[i] <= 0.05 and value[i] < 0 and limit is not None and abs(value[i]) > max(limit, SMALLEST) and more)
            numbers = (
                float(value[i]),
                float(low[i]),
                float(high[i]),
                effects.shape[1],
                unit,
                limit,
                len(random),
                float(p[i]),
                float(q[i]),
            )
            rows.append((layer, head, behaviour[i], *numbers, ok if sayable else None))
    names = ("layer", "head", "behaviour", "effect", "low", "high", "n", "unit", "control", "control_n", "p", "q", "confirmed")
    kinds = (
        pl.Int64,
        pl.Int64,
        pl.String,
        *(pl.Float64,) * 3,
        pl.Int64,
        pl.String,
        pl.Float64,
        pl.Int64,
        pl.Float64,
        pl.Float64,
        pl.Boolean,
    )
    return pl.DataFrame(rows, schema=dict(zip(names, kinds, strict=True)), orient="row")


def ablate_on_text(
    runs: TextRuns,
    cuts: Sequence[int],
    window: int,
    heads: HeadBehaviours,
    seed: int,
    told: Callable[[float], None] = lambda share: None,
) -> pl.DataFrame:
    """Table ``head_tests`` of the ablations on the text's true continuation."""
    tails, edits = [], []
    for layer, head in [*heads.chosen, *heads.drawn]:
        for cut in cuts:
            ids = runs.ids[cut : cut + window + 1]  # the row of the first token predicts the second
            tails.append(Tail(cut, tuple(ids), tuple(range(cut, cut + len(ids))), len(ids) - 1))
            edits.append((HeadReplace(layer, head, heads.mean[layer, head]),))
    base = np.array([runs.log_p[cut + 1 : cut + window + 1].mean() for cut in cuts])
    found = np.array([row.mean() for row in runs.score(tails, edits)]).reshape(-1, len(cuts)) - base
    told(1.0)
    k = len(heads.chosen)
    return head_tests(heads.chosen, [f"this text: {b}" for b in heads.behaviour], found[:k], found[k:], "nats a token", seed)


def _sequences(instrument: Instrument, n: int, half: int, seed: int) -> tuple[Tensor, Tensor]:
    tokenizer, parts = instrument.loaded.tokenizer, instrument.parts
    special = set(tokenizer.all_special_ids)
    pool = np.array([i for i in range(min(parts.vocab_size, len(tokenizer))) if i not in special])
    if 2 * half > len(pool) or (parts.max_context is not None and 2 * half > parts.max_context):
        raise ConfigError(f"Random sequences of {2 * half} tokens do not fit the model.", todo="Use a smaller half.")
    rng = np.random.default_rng(seed)
    plain = torch.tensor(np.stack([rng.permutation(pool)[: 2 * half] for _ in range(n)]))
    return torch.cat([plain[:, :half], plain[:, :half]], 1), plain


def _jump(half: int, distance: int, direction: Direction, limit: int | None) -> Tensor | None:
    """Positions of a sequence whose second half is moved; None where the model has no room for it."""
    base = 0 if direction == "forward" else distance
    second = half + distance if direction == "forward" else half
    positions = torch.tensor([[*range(base, base + half), *range(second, second + half)]])
    return positions if limit is None or int(positions.max()) < limit else None


def _score_frame(name: str, value: Array, control: Array, layers: Sequence[int], seed: int) -> pl.DataFrame:
    n, _, n_heads = value.shape
    columns = [np.clip(bound, 0.0, 1.0) for part in (value, control) for bound in bootstrap_columns(part.reshape(n, -1), seed=seed)]
    data = dict(zip(("value", "low", "high", "control", "control_low", "control_high"), columns, strict=True))
    at = [(layer, head) for layer in layers for head in range(n_heads)]
    frame = pl.DataFrame({"layer": [a[0] for a in at], "head": [a[1] for a in at], "score": [name] * len(at), **data})
    return frame.with_columns(n=pl.lit(n, pl.Int64), unit=pl.lit("share of attention"))


def _ranked(score: Array, layers: Sequence[int]) -> list[Head]:
    """(layer, head) by ``score [attention layer, head]``, largest first."""
    return [(layers[int(i) // score.shape[1]], int(i) % score.shape[1]) for i in np.argsort(-score, axis=None, kind="stable")]


def _ablations(instrument: Instrument, ids: Tensor, half: int, heads: Sequence[Head], mean: Tensor, at_once: int = 8) -> Array:
    """``[head, sequence]``: change of the mean log-probability of the second half's tokens but the first (nats a token)."""

    def log_p(copies: int, edits: Sequence[HeadReplace]) -> Array:  # type: ignore[valid-type]
        many = ids.repeat(copies, 1)
        logits = instrument.run(many, edits=edits, keep_logits=half)["logits"][:, :-1].double()
        found = logits.gather(-1, many[:, half + 1 :, None].to(logits.device))[..., 0] - logits.logsumexp(-1)
        return found.mean(1).cpu().numpy().reshape(copies, len(ids))

    base = log_p(1, ())[0]
    out = []
    for first in range(0, len(heads), at_once):
        group = heads[first : first + at_once]
        edits = [
            HeadReplace(layer, head, mean[layer, head], batch=range(c * len(ids), (c + 1) * len(ids)))
            for c, (layer, head) in enumerate(group)
        ]
        out.append(log_p(len(group), edits) - base)
    return np.concatenate(out) if out else np.zeros((0, len(ids)))
