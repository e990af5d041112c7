"""Who pulls toward which candidate: direct logit attribution, confirmed by interventions at the last row.

1. For every pair among the best candidates, attribute the logit difference over embedding, heads, biases and MLPs, for the prompt and every
   variant. The parts sum to the difference; the error is kept beside it.
2. The heads with the largest mean contribution (either sign) to the first pair are *mean-ablated*: their output at the last row is replaced by
   its mean over unrelated reference prompts. Effect = log-odds with the ablation − without, per variant, with interval; p by sign flips over
   variants, q by Benjamini-Hochberg over the heads tested. Control: the same for heads drawn at random from the others; its 95th percentile is
   the size that an effect must exceed.
3. The same heads are *patched* with their output on the control prompt; ``recovered`` is the share of the way from the prompt's log-odds to the
   control's. Its control is the same patch from an unrelated prompt.
4. *Specificity*: the same ablations' effects on random pairs among the prompt's 100 best tokens; p is the share of pairs (plus one) that the ablation
   moves at least as far as the pair in question. It asks whether the head acts on this choice, not on everything.
5. A head is confirmed if the effect is the same under rewording (q ≤ 0.05), larger than the random heads', specific (p ≤ 0.05), and goes against
   the head's own contribution. With fewer than six prompts or no random heads nothing can be confirmed, and the field is None. Variants of
   one prompt are near-copies: q says "the same on this prompt however it is worded", not "this head matters in general".
6. A token's influence: log-odds without − with an attention mask that hides it from the last row in every layer and head; positive speaks for
   the first candidate.

Units: nats of log-odds. Intervals are over variants of this prompt. Interventions act on the last row only: indirect effects through later layers of that row
count, those through earlier rows do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.instrument import AttentionMask, collate, Edit, HeadReplace, Instrument, LastRow
from symbolic_residue.prompts import Prompt
from symbolic_residue.readout import direct_logit_attribution, dla_reads
from symbolic_residue.stats import benjamini_hochberg, bootstrap_columns, bootstrap_mean, empirical_p, sign_flip_test

__all__ = ["Attribution", "attribute", "head_means", "token_influence"]

Array = NDArray[np.float64]
Progress = Callable[[str, float], None]
_TOKENS_AT_ONCE = 4096
_GROUPS = 64
_BEST = 100
_RANDOM_PAIRS = 200
_FEWEST = 6
"""Prompts below which no sign-flip p can reach 0.05."""


@dataclass(frozen=True)
class HeadTest:
    """One head's interventions on the first pair.

    Attributes:
        layer, head: which.
        ablation: mean effect over variants (nats), with ``low`` and ``high``.
        p, q: sign-flip p over variants, Benjamini-Hochberg q over the heads tested.
        specificity: p of the pair's effect among random pairs of good tokens.
        recovered: share of the way to the control, None where the control hardly differs; ``recovered_control`` from an unrelated prompt.
        confirmed: see the module; None where it cannot be said.
    """

    layer: int
    head: int
    ablation: float
    low: float
    high: float
    p: float
    q: float
    specificity: float
    recovered: float | None
    recovered_control: float | None
    confirmed: bool | None


@dataclass(frozen=True)
class Attribution:
    """Attribution of every candidate pair.

    Attributes:
        pairs: (a, b) token ids; contributions are to logit(a) − logit(b).
        heads: ``[pair, variant, layer, head]``; ``mlps`` and ``biases`` ``[pair, variant, layer]``; ``embedding`` ``[pair, variant]``; ``constant`` ``[pair]``.
        total, error: ``[pair, variant]``: the logit difference, and sum of parts minus it.
        toward: ``[candidate, layer, head]``: what each head writes toward a candidate's logit, minus its mean over candidates (prompt itself).
        tests: interventions on the first pair.
        random_effect: 95th percentile of the random heads' absolute mean effects; ``random_n`` heads.
    """

    pairs: list[tuple[int, int]]
    heads: Array
    mlps: Array
    biases: Array
    embedding: Array
    constant: Array
    total: Array
    error: Array
    toward: Array
    tests: list[HeadTest]
    random_effect: float
    random_n: int


def _pieces(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    size = max(1, _TOKENS_AT_ONCE // max(map(len, prompts)))
    return [list(prompts[i : i + size]) for i in range(0, len(prompts), size)]


def head_means(instrument: Instrument, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    """Heads' outputs at the last row over reference prompts: mean ``[layer, head, d_head]``, and each prompt's ``[prompt, layer, head, d_head]``."""
    each = []
    for piece in _pieces(prompts):
        trace = instrument.run(collate(piece), reads=("z.*",), keep_logits=1)
        each.append(torch.stack([trace[f"z.{i}"][:, -1] for i in range(instrument.parts.n_layers)], 1))
    joined = torch.cat(each)
    return joined.mean(0), joined


class _Rerun:
    """Log-odds of the pair at the last row of several prompts, under edits of that row."""

    def __init__(self, instrument: Instrument, prompts: Sequence[Prompt], pair: tuple[int, int]) -> None:
        self.pair, self.instrument = pair, instrument
        self.pieces = [collate(piece) for piece in _pieces(prompts)]
        # One token alone has no prefix to share.
        self.rows = [LastRow(instrument, batch) if batch.ids.shape[1] > 1 else None for batch in self.pieces]

    def __call__(self, edits: Sequence[Edit] = ()) -> Array:
        """``[prompt]``: log-odds of the pair."""
        return self.pairs([self.pair], edits)[:, 0]

    def pairs(self, pairs: Sequence[tuple[int, int]], edits: Sequence[Edit] = ()) -> Array:
        """``[prompt, pair]``: log-odds of several pairs from one forward."""
        a, b = (list(side) for side in zip(*pairs, strict=True))
        out = []
        for batch, row in zip(self.pieces, self.rows, strict=True):
            trace = row.run(edits) if row is not None else self.instrument.run(batch, edits=edits)
            logits = trace["logits"][:, -1].double()
            out.append((logits[:, a] - logits[:, b]).cpu().numpy())
        return np.concatenate(out)


def attribute(
    instrument: Instrument,
    prompts: Sequence[Prompt],
    control: Prompt,
    reference: Sequence[Prompt],
    candidates: Sequence[int],
    *,
    top_heads: int,
    random_heads: int,
    attributed: int,
    seed: int,
    progress: Progress = lambda what, share: None,
) -> Attribution:
    """Attribute and confirm; see the module.

    Args:
        prompts: the prompt, then its variants.
        control: the disambiguated prompt to patch from.
        reference: unrelated prompts, for means and patch controls.
        candidates: token ids, best first.
        top_heads: how many heads to test; ``random_heads`` how many for the control.
        attributed: pairs among this many best candidates.
        progress: told what is going on, and the share done.
    """
    parts = instrument.parts
    best = list(candidates[:attributed])
    pairs = list(combinations(best, 2))
    targets: list[tuple[int, int | None]] = [*pairs, *((t, None) for t in best)]
    found = [
        direct_logit_attribution(instrument.run(collate(piece), reads=dla_reads(parts), keep_logits=1), parts, targets)
        for piece in _pieces(prompts)
    ]

    def joined(name: str, n: int = len(pairs)) -> Array:
        return np.concatenate([getattr(d, name)[:n, :, 0].double().cpu().numpy() for d in found], 1)

    heads = joined("heads")
    toward = found[0].heads[len(pairs) :, 0, 0].double().cpu().numpy()
    mean_size = np.abs(heads[0].mean(0))
    order = np.argsort(-mean_size, axis=None)
    chosen = [divmod(int(i), parts.n_heads) for i in order[: min(top_heads, order.size)]]
    others = [divmod(int(i), parts.n_heads) for i in order[len(chosen) :]]
    rng = np.random.default_rng(seed)
    drawn = [others[int(i)] for i in rng.permutation(len(others))[:random_heads]]

    means, each = head_means(instrument, reference)
    _, of_control = head_means(instrument, [control])
    unrelated = each[int(rng.integers(len(each)))]
    rerun = _Rerun(instrument, prompts, pairs[0])
    base = rerun()
    goal = float(_Rerun(instrument, [control], pairs[0])()[0])
    # Patching can only be judged where the control is clearly elsewhere: by more than a tenth of a nat, its interval over variants on one side of 0.
    way = goal - base
    mean_way = bootstrap_mean(way, seed=seed)
    judged = abs(mean_way.value) > 0.1 and mean_way.excludes(0.0)
    asked = [pairs[0], *_random_pairs(rerun, pairs[0], rng)]
    bases = rerun.pairs(asked)

    def effect(layer: int, head: int, value: Tensor) -> Array:
        """``[variant]``: change of the pair's log-odds."""
        return rerun([HeadReplace(layer, head, value, rows=(-1,))]) - base

    jobs = len(chosen) * 3 + len(drawn)
    done = 0

    def tick(what: str) -> None:
        nonlocal done
        done += 1
        progress(what, done / jobs)

    effects, specificity, recovered, recovered_control = [], [], [], []
    for layer, head in chosen:
        every = rerun.pairs(asked, [HeadReplace(layer, head, means[layer, head], rows=(-1,))]) - bases
        effects.append(every[:, 0])
        moved = np.abs(every.mean(0))
        specificity.append(empirical_p(float(moved[0]), moved[1:], "greater"))
        tick("ablating heads")
        if judged:  # ratios of means: a variant that is at the control already would make its own ratio explode
            recovered.append(float(effect(layer, head, of_control[0, layer, head]).mean() / mean_way.value))
            tick("patching heads")
            recovered_control.append(float(effect(layer, head, unrelated[layer, head]).mean() / mean_way.value))
            tick("patching heads")
    random_sizes = []
    for layer, head in drawn:
        random_sizes.append(abs(float(effect(layer, head, means[layer, head]).mean())))
        tick("ablating random heads")
    limit = float(np.quantile(random_sizes, 0.95, method="higher")) if random_sizes else float("inf")

    matrix = np.stack(effects, 1)
    value, low, high = bootstrap_columns(matrix, seed=seed)
    p = np.atleast_1d(sign_flip_test(matrix, seed=seed))
    q = benjamini_hochberg(p)
    sayable = len(prompts) >= _FEWEST and bool(drawn)
    passed = [
        q[i] <= 0.05 and abs(value[i]) > limit and specificity[i] <= 0.05 and value[i] * heads[0, :, layer, head].mean() < 0
        for i, (layer, head) in enumerate(chosen)
    ]
    tests = [
        HeadTest(
            layer=layer,
            head=head,
            ablation=float(value[i]),
            low=float(low[i]),
            high=float(high[i]),
            p=float(p[i]),
            q=float(q[i]),
            specificity=float(specificity[i]),
            recovered=recovered[i] if judged else None,
            recovered_control=recovered_control[i] if judged else None,
            confirmed=bool(passed[i]) if sayable else None,
        )
        for i, (layer, head) in enumerate(chosen)
    ]
    return Attribution(
        pairs=pairs,
        heads=heads,
        mlps=joined("mlps"),
        biases=joined("attention_bias"),
        embedding=joined("embedding"),
        constant=found[0].constant[: len(pairs)].double().cpu().numpy(),
        total=joined("total"),
        error=joined("error"),
        toward=toward - toward.mean(0),
        tests=tests,
        random_effect=limit,
        random_n=len(drawn),
    )


def _random_pairs(rerun: _Rerun, pair: tuple[int, int], rng: np.random.Generator) -> list[tuple[int, int]]:
    """Pairs drawn from the prompt's best tokens, the pair in question left out."""
    row, batch = rerun.rows[0], rerun.pieces[0]
    trace = row.run() if row is not None else rerun.instrument.run(batch)
    best = trace["logits"][0, -1].topk(min(_BEST, trace["logits"].shape[-1])).indices.tolist()
    drawn = [tuple(int(best[i]) for i in rng.choice(len(best), 2, replace=False)) for _ in range(_RANDOM_PAIRS)]
    return [(a, b) for a, b in drawn if {a, b} != set(pair)]


def token_influence(instrument: Instrument, prompt: Prompt, pair: tuple[int, int]) -> Array:
    """Each token's influence on the pair's log-odds, ``[token]`` in nats; see the module.

    Prompts of more than 64 tokens are hidden in runs of neighbouring tokens, whose influence is shared out equally.
    """
    n = len(prompt)
    if n < 2:
        return np.zeros(n)
    row = LastRow(instrument, collate([prompt]))
    a, b = pair

    def log_odds(edits: list[Edit], copies: int) -> Array:
        logits = row.run(edits, copies=copies)["logits"][:, -1].double()
        return (logits[:, a] - logits[:, b]).cpu().numpy()

    base = float(log_odds([], 1)[0])
    groups = [g.tolist() for g in np.array_split(np.arange(n), min(n, _GROUPS))]
    copies = max(1, min(16, 2 * _TOKENS_AT_ONCE // n))
    out = np.zeros(n)
    for start in range(0, len(groups), copies):
        batch = groups[start : start + copies]
        edits: list[Edit] = [AttentionMask(g, rows=(-1,), batch=(c,)) for c, g in enumerate(batch)]
        for g, hidden in zip(batch, log_odds(edits, len(batch)), strict=True):
            out[g] = (base - hidden) / len(g)
    return out
