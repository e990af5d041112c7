"""Null attribution: why end-of-text came first, and who was overruled.

1. For each prompt the quantity is ``logit(end) − logit(best content token)`` at the last row (nats of log-odds); where it is positive the model ends.
   Content tokens are all but the end tokens and the tokenizer's special ones.
2. Direct logit attribution splits it over heads, MLPs, other mixers, biases and the embedding; the parts sum to it (the error is kept).
3. *Overruled*: components whose part is negative (they push content) by an interval over prompts, on prompts that end. Those with positive parts *silence*.
   With matched controls: the same log-odds' parts on them, and q of the difference (sign flips over pairs, over all components).
4. The strongest heads of either kind are confirmed as every shell's heads are (``shells._confirm``: mean ablation, random heads, specificity). MLPs are
   mean-ablated at the last row: confirmed where q ≤ 0.05 over the MLPs tested, the effect is larger than every MLP's that was not tested, and goes against
   the part.

The unit is a prompt; with fewer than six nothing is confirmed. Source of the attribution: Elhage et al. 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.instrument import collate, Instrument, MeanAblate
from symbolic_residue.prompts import Prompt
from symbolic_residue.readout import direct_logit_attribution, dla_reads
from symbolic_residue.shells._confirm import confirm_heads, draw_heads, head_means, HeadTest, in_pieces, PairRuns
from symbolic_residue.stats import benjamini_hochberg, bootstrap_columns, bootstrap_mean, Estimate, sign_flip_test

__all__ = ["Ending", "NullAttribution", "end_tokens", "endings", "null_attribution"]

Array = NDArray[np.float64]
_FEWEST = 6


@dataclass(frozen=True)
class Ending:
    """What stands first at the end of one prompt.

    Attributes:
        end, content: the best end token and the best content token.
        difference: logit(end) − logit(content), nats.
        end_probability, content_probability: of the two.
        rank: of the end token among all, from 1.
    """

    end: int
    content: int
    difference: float
    end_probability: float
    content_probability: float
    rank: int

    @property
    def ended(self) -> bool:
        """Whether the end comes before every content token: the model is silent."""
        return self.difference > 0


@dataclass(frozen=True)
class NullAttribution:
    """Why the model ends instead of speaking.

    Attributes:
        pairs: (end token, best content token) of each prompt.
        ended: ``[prompt]``: whether end comes first.
        difference: logit(end) − logit(content), mean over prompts (nats).
        error: largest distance between the parts' sum and the difference.
        frame: table ``overruled``: component, layer, head, contribution, low, high, n, role (pushes content/silences/unclear), ablation, ablation_low,
            ablation_high, q, confirmed, control, control_q; the strongest first.
        tests: the heads' interventions.
        control: the same log-odds on the matched controls, mean; None without controls.
    """

    pairs: list[tuple[int, int]]
    ended: NDArray[np.bool_]
    difference: Estimate
    error: float
    frame: pl.DataFrame = field(repr=False)
    tests: list[HeadTest] = field(repr=False)
    control: Estimate | None = None

    def overruled(self, *, confirmed: bool = False) -> list[str]:
        """Components that push content and are overruled, the strongest first: ``head 3.4``, ``mlp 7``.

        Raises:
            PromptError: no prompt ends, so nothing is overruled.
        """
        if not self.ended.any():
            raise PromptError("The model ends none of these prompts, so no component is overruled.")
        mine = self.frame.filter(pl.col("role") == "pushes content")
        if confirmed:
            mine = mine.filter(pl.col("confirmed").fill_null(False))
        return [
            f"head {r['layer']}.{r['head']}" if r["component"] == "head" else f"{r['component']} {r['layer']}"
            for r in mine.to_dicts()
        ]

    def tables(self) -> dict[str, pl.DataFrame]:
        """``overruled``."""
        return {"overruled": self.frame}


def null_attribution(
    instrument: Instrument,
    prompts: Sequence[Prompt],
    reference: Sequence[Prompt],
    *,
    controls: Sequence[Prompt] | None = None,
    end: Sequence[int] | None = None,
    top: int = 8,
    random_heads: int = 24,
    seed: int = 0,
) -> NullAttribution:
    """Attribute ``logit(end) − logit(best content token)``.

    Args:
        instrument: the model's instrument.
        prompts: prompts that end (or do not; see ``ended``). Those that end give the attribution; where none does, all do.
        reference: unrelated prompts, for the means of ablations.
        controls: for each prompt its matched control, whose parts of the same log-odds stand beside.
        end: end tokens; the tokenizer's and the generation config's where left out. The best of them counts.
        top: heads, and MLPs, that are tested; ``random_heads`` the heads of the control.
        seed: of resampling and draws.

    Raises:
        ConfigError: no prompts or reference prompts, controls that do not pair, no end token, or one outside the vocabulary; soft-capped logits, whose parts
            do not add up.
    """
    parts = instrument.parts
    if not prompts or not reference:
        raise ConfigError("Null attribution needs prompts and unrelated reference prompts.")
    if parts.logit_softcap is not None:
        raise ConfigError(
            "The model soft-caps its logits.", why="The parts of an attribution do not add up to a capped difference."
        )
    if controls is not None and len(controls) != len(prompts):
        raise ConfigError(f"{len(prompts)} prompts and {len(controls)} controls do not pair.")
    found = endings(instrument, prompts, end=end)
    pairs = [(one.end, one.content) for one in found]
    ended = np.array([one.ended for one in found])
    kept = [i for i in range(len(prompts)) if ended[i] or not ended.any()]
    asked, own = [prompts[i] for i in kept], [pairs[i] for i in kept]

    heads, others, error, difference = _attributed(instrument, asked, own)
    beside = None if controls is None else _attributed(instrument, [controls[i] for i in kept], own)
    means, _ = head_means(instrument, reference)
    strength = np.where(np.isnan(heads).any(0), -1.0, np.abs(np.nan_to_num(heads).mean(0)))
    order = [divmod(int(i), parts.n_heads) for i in np.argsort(-strength, axis=None, kind="stable")]
    there = [(layer, head) for layer, head in order if layer in parts.attention_layers]
    rng = np.random.default_rng(seed)
    chosen, drawn = there[:top], draw_heads(there[top:], random_heads, rng)
    runs = PairRuns(instrument, asked, own)
    part = np.array([heads[:, layer, head].mean() for layer, head in chosen])
    tested = confirm_heads(runs, chosen, drawn, means=means, contribution=part, seed=seed, rng=rng).tests
    mlps = {layer: others["mlp", layer] for kind, layer in others if kind == "mlp"}
    of_mlps = _mlp_tests(instrument, runs, mlps, reference, top, seed)
    rows = [
        _row(
            "head", layer, head, heads[:, layer, head], seed, next((t for t in tested if (t.layer, t.head) == (layer, head)), None)
        )
        for layer, head in there
    ]
    rows += [
        _row(kind, layer, -1, value, seed, of_mlps.get(layer) if kind == "mlp" else None) for (kind, layer), value in others.items()
    ]
    if beside is not None:
        here = {("head", layer, head): heads[:, layer, head] for layer, head in there}
        here |= {(kind, layer, -1): value for (kind, layer), value in others.items()}
        _beside(rows, here, beside[0], beside[1], seed)
    rows.sort(key=lambda r: -abs(r["contribution"]))
    frame = pl.DataFrame(rows, schema=_SCHEMA)
    control = None if beside is None else bootstrap_mean(beside[3], seed=seed)
    return NullAttribution(pairs, ended, bootstrap_mean(difference, seed=seed), error, frame, tested, control)


def end_tokens(instrument: Instrument, end: Sequence[int] | None = None) -> list[int]:
    """The tokens that end a text: those given, else the tokenizer's and the generation config's.

    Raises:
        ConfigError: there is none, or one is outside the vocabulary.
    """
    if end is not None:
        ends = sorted({int(t) for t in end})
    else:
        given = getattr(getattr(instrument.model, "generation_config", None), "eos_token_id", None)
        several = list(given) if isinstance(given, (list, tuple)) else [given]
        ends = sorted({int(t) for t in (*several, instrument.loaded.tokenizer.eos_token_id) if t is not None})
    vocab = instrument.parts.w_u.shape[0]
    if not ends or not all(0 <= t < vocab for t in ends):
        raise ConfigError(f"{ends} are no end tokens of a vocabulary of {vocab}.", todo="Give end=[id, …].")
    return ends


def endings(instrument: Instrument, prompts: Sequence[Prompt], *, end: Sequence[int] | None = None) -> list[Ending]:
    """What stands first at the end of each prompt: the best end token, or the best content token; one forward a batch.

    Raises:
        ConfigError: no prompts; besides what :func:`end_tokens` raises.
    """
    if not prompts:
        raise ConfigError("There are no prompts to read.")
    ends = end_tokens(instrument, end)
    vocab = instrument.parts.w_u.shape[0]
    barred = sorted({t for t in (*ends, *instrument.loaded.tokenizer.all_special_ids) if t < vocab})
    found = []
    for piece in in_pieces(prompts):
        logits = instrument.run(collate(piece), keep_logits=1)["logits"][:, -1].double().cpu()
        for row, p in zip(logits.numpy(), logits.softmax(-1).numpy(), strict=True):
            content = row.copy()
            content[barred] = -np.inf
            a, b = ends[int(row[ends].argmax())], int(content.argmax())
            found.append(Ending(a, b, float(row[a] - row[b]), float(p[a]), float(p[b]), int((row > row[a]).sum()) + 1))
    return found


def _beside(
    rows: list[dict[str, Any]],
    here: dict[tuple[str, int, int], Array],
    heads: Array,
    others: dict[tuple[str, int], Array],
    seed: int,
) -> None:
    """Each component's part on the controls, and q of the difference over all of them."""
    known = [r for r in rows if r["component"] == "head" or (r["component"], r["layer"]) in others]
    away = [
        heads[:, r["layer"], r["head"]] if r["component"] == "head" else others[r["component"], r["layer"]] for r in known
    ]  # fmt: skip
    mine = [here[r["component"], r["layer"], r["head"]] for r in known]
    q = benjamini_hochberg(np.atleast_1d(sign_flip_test(np.stack(mine, 1) - np.stack(away, 1), seed=seed)))
    for row, value, one in zip(known, away, q, strict=True):
        row["control"], row["control_q"] = float(value.mean()), float(one)


def _attributed(
    instrument: Instrument, prompts: Sequence[Prompt], own: Sequence[tuple[int, int]]
) -> tuple[Array, dict[tuple[str, int], Array], float, Array]:
    """Heads ``[prompt, layer, head]``; other parts ``[prompt]`` by kind and layer; the largest error; the difference ``[prompt]``."""
    heads, others, errors, totals = [], {}, [0.0], []
    first = 0
    for piece in in_pieces(prompts):
        mine = own[first : first + len(piece)]
        first += len(piece)
        targets = list(dict.fromkeys(mine))
        found = direct_logit_attribution(
            instrument.run(collate(piece), reads=dla_reads(instrument.parts), keep_logits=1), instrument.parts, targets
        )
        for i, pair in enumerate(mine):
            t = targets.index(pair)
            heads.append(found.heads[t, i, 0].double().cpu().numpy())
            errors.append(abs(float(found.error[t, i, 0])))
            totals.append(float(found.total[t, i, 0]))
            pieces: dict[tuple[str, int], float] = {
                ("embedding", -1): float(found.embedding[t, i, 0]),
                ("constant", -1): float(found.constant[t]),
            }
            for kind, tensor in (("mlp", found.mlps), ("mixer", found.mixers), ("attention bias", found.attention_bias)):
                pieces |= {(kind, layer): float(x) for layer, x in enumerate(tensor[t, i, 0])}
            for key, value in pieces.items():
                others.setdefault(key, []).append(value)
    kept = {key: np.array(v) for key, v in others.items() if not np.isnan(v).any() and np.any(v)}
    return np.stack(heads), kept, max(errors), np.array(totals)


def _mlp_tests(
    instrument: Instrument, runs: PairRuns, mlps: dict[int, Array], reference: Sequence[Prompt], top: int, seed: int
) -> dict[int, dict[str, Any]]:
    if not mlps:
        return {}
    points = [f"mlp_out.{layer}" for layer in mlps]
    total: dict[str, Any] = dict.fromkeys(points, 0.0)
    for piece in in_pieces(reference):
        trace = instrument.run(collate(piece), reads=points, keep_logits=1)
        for point in points:
            total[point] = total[point] + trace[point][:, -1].sum(0)
    base = runs()
    effects = {
        layer: runs([MeanAblate(f"mlp_out.{layer}", total[f"mlp_out.{layer}"] / len(reference), rows=(-1,))]) - base
        for layer in mlps
    }
    order = sorted(mlps, key=lambda layer: -abs(mlps[layer].mean()))
    chosen, rest = order[:top], order[top:]
    limit = max((abs(effects[layer].mean()) for layer in rest), default=None)
    matrix = np.stack([effects[layer] for layer in chosen], 1)
    value, low, high = bootstrap_columns(matrix, seed=seed)
    q = benjamini_hochberg(np.atleast_1d(sign_flip_test(matrix, seed=seed)))
    sayable = len(base) >= _FEWEST and limit is not None
    return {
        layer: {
            "ablation": value[i],
            "low": low[i],
            "high": high[i],
            "q": q[i],
            "confirmed": bool(q[i] <= 0.05 and abs(value[i]) > limit and value[i] * mlps[layer].mean() < 0) if sayable else None,
        }
        for i, layer in enumerate(chosen)
    }


def _row(kind: str, layer: int, head: int, values: Array, seed: int, test: Any) -> dict[str, Any]:
    mean = bootstrap_mean(values, seed=seed)
    role = "pushes content" if mean.below(0.0) else "silences" if mean.above(0.0) else "unclear"
    given = (
        test
        if isinstance(test, dict) or test is None
        else {name: getattr(test, name) for name in ("ablation", "low", "high", "q", "confirmed")}
    )
    done = given or {}
    return {
        "component": kind,
        "layer": layer,
        "head": head,
        "contribution": mean.value,
        "low": mean.low if mean.has_interval else None,
        "high": mean.high if mean.has_interval else None,
        "n": mean.n,
        "role": role,
        "ablation": done.get("ablation"),
        "ablation_low": done.get("low"),
        "ablation_high": done.get("high"),
        "q": done.get("q"),
        "confirmed": done.get("confirmed"),
        "control": None,
        "control_q": None,
    }


_FLOAT = pl.Float64()
_SCHEMA: dict[str, pl.DataType] = {
    "component": pl.String(),
    **dict.fromkeys(("layer", "head"), pl.Int64()),
    **dict.fromkeys(("contribution", "low", "high"), _FLOAT),
    "n": pl.Int64(),
    "role": pl.String(),
    **dict.fromkeys(("ablation", "ablation_low", "ablation_high", "q"), _FLOAT),
    "confirmed": pl.Boolean(),
    **dict.fromkeys(("control", "control_q"), _FLOAT),
}
