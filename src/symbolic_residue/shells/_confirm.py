"""Heads confirmed by interventions at the last row, for any shell.

1. The quantity is a log-odds (nats) at the last row of each prompt: of one pair of tokens for all prompts, or of a pair for each.
2. *Mean ablation*: a head's output at the last row is replaced by its mean over unrelated reference prompts. Effect = log-odds with the ablation − without,
   per prompt,
   with a bootstrap interval; p by sign flips over prompts, q by Benjamini-Hochberg over the heads tested. With ``clusters`` (prompts of one frame or one
   fact), both resample clusters.
3. *Control*: the same for heads drawn at random from the others; the 95th percentile of their absolute mean effects is the size that an effect must exceed.
4. *Patching*: the head's output is replaced by that of a run in which the answer is settled; ``recovered`` is the share of the way there, beside the same
   patch from an unrelated prompt.
   It is judged only where that run is clearly elsewhere: by more than a tenth of a nat, with an interval over prompts on one side of 0.
5. *Specificity*: the same ablation's effect on random pairs among each prompt's 100 best tokens; p is the share of pairs (plus one) that it moves at least as
   far as the pair in question. It
   asks whether the head acts on this choice, not on everything.
6. A head is confirmed if the effect is the same over prompts (q ≤ 0.05), larger than the random heads' and than 0.01 nats (:data:`SMALLEST`), specific
   (p ≤ 0.05), and goes against the head's own contribution. (In a model where no head does anything, one of them still does so most
   steadily.) With fewer than six
   units (prompts, or clusters) or no random heads nothing can be confirmed, and the field is None.

Interventions act on the last row only: indirect effects through later layers of that row count, those through earlier rows do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.instrument import Edit, HeadReplace, Instrument
from symbolic_residue.prompts import Prompt
from symbolic_residue.shells._rows import in_pieces, LastRows
from symbolic_residue.stats import (
    benjamini_hochberg,
    bootstrap_columns,
    bootstrap_mean,
    cluster_bootstrap,
    cluster_sign_flip,
    empirical_p,
    sign_flip_test,
)

__all__ = ["SMALLEST", "HeadConfirmation", "HeadTest", "PairRuns", "confirm_heads", "draw_heads", "head_means", "in_pieces"]

Array = NDArray[np.float64]
Progress = Callable[[str, float], None]
Pair = tuple[int, int]
_BEST = 100
_RANDOM_PAIRS = 200
_CELLS_AT_ONCE = 32
_CACHED_AT_ONCE = 16384
_ROWS_AT_ONCE = 256
SMALLEST = 0.01
"""Nats of log-odds: an effect below this moves the odds by less than a hundredth and is none, however steady."""
_FEWEST = 6
"""Units below which no sign-flip p can reach 0.05."""


@dataclass(frozen=True)
class HeadTest:
    """One head's interventions.

    Attributes:
        layer, head: which.
        ablation: mean effect over prompts (nats), with ``low`` and ``high``.
        p, q: sign-flip p over prompts (or clusters), Benjamini-Hochberg q over the heads tested.
        specificity: p of the pair's effect among random pairs of good tokens.
        recovered: share of the way to the settled run, None where it was not asked for or hardly differs; ``recovered_control`` from an unrelated prompt.
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
class HeadConfirmation:
    """Interventions on several heads.

    Attributes:
        tests: one a head, in the order asked.
        random_effect: 95th percentile of the random heads' absolute mean effects (inf without any); ``random_n`` heads.
    """

    tests: list[HeadTest]
    random_effect: float
    random_n: int

    @property
    def confirmed(self) -> list[tuple[int, int]]:
        """(layer, head) of the confirmed ones."""
        return [(t.layer, t.head) for t in self.tests if t.confirmed]


def head_means(instrument: Instrument, prompts: Sequence[Prompt], *, rows: LastRows | None = None) -> tuple[Tensor, Tensor]:
    """Heads' outputs at the last row over reference prompts: mean ``[layer, head, d_head]``, and each prompt's ``[prompt, layer, head, d_head]``.

    ``rows``: the prompts' last rows, where they are cached already.
    Layers without softmax attention have no heads; NaN stands in their place, so that nothing can be patched from them unseen.
    """
    layers = instrument.attention_layers
    each = []
    for trace in (rows or LastRows(instrument, prompts)).plain(("z.*",)):
        found = torch.stack([trace[f"z.{i}"][:, -1] for i in layers], 1)
        whole = found.new_full((len(found), instrument.parts.n_layers, *found.shape[2:]), float("nan"))
        whole[:, list(layers)] = found
        each.append(whole)
    joined = torch.cat(each)
    return joined.mean(0), joined


def draw_heads(others: Sequence[tuple[int, int]], n: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """``n`` of the heads that are not tested, drawn without replacement (all, where there are fewer)."""
    return [others[int(i)] for i in rng.permutation(len(others))[:n]]


class PairRuns:
    """Log-odds of token pairs at the last row of several prompts, under edits of that row.

    Args:
        instrument: the model's instrument.
        prompts: the prompts, or how many there are where their rows are cached.
        pair: (a, b) for all prompts, or one for each; the log-odds is logit(a) − logit(b).
        rows: the prompts' last rows, where they are cached already.
    """

    def __init__(
        self, instrument: Instrument, prompts: Sequence[Prompt] | int, pair: Pair | Sequence[Pair], *, rows: LastRows | None = None
    ) -> None:
        if isinstance(prompts, int):
            assert rows is not None, "the rows of prompts that are not given must be cached"
            self.last, n = rows, prompts
        else:
            self.last, n = rows or LastRows(instrument, prompts), len(prompts)
        single = isinstance(pair[0], int)
        self.own: list[Pair] = [pair] * n if single else list(pair)  # type: ignore[list-item, arg-type]
        self.instrument = instrument
        self.pieces, self.rows = self.last.pieces, self.last.rows

    def __call__(self, edits: Sequence[Edit] = ()) -> Array:
        """``[prompt]``: log-odds of each prompt's own pair."""
        return _log_odds(self.logits(edits), [[pair] for pair in self.own])[:, 0]

    def pairs(self, pairs: Sequence[Pair], edits: Sequence[Edit] = ()) -> Array:
        """``[prompt, pair]``: log-odds of several pairs, the same for all prompts, from one forward."""
        return self.of([pairs] * len(self.own), edits)

    def of(self, pairs: Sequence[Sequence[Pair]], edits: Sequence[Edit] = ()) -> Array:
        """``[prompt, pair]``: log-odds of several pairs of each prompt, from one forward."""
        return _log_odds(self.logits(edits), pairs)

    def heads(
        self,
        cells: Sequence[tuple[int, int, Tensor]],
        pairs: Sequence[Sequence[Pair]],
        told: Callable[[int], None] = lambda n: None,
    ) -> Array:
        """Log-odds ``[cell, prompt, pair]`` with one head's output at the last row replaced in each cell: many cells in one forward.

        Args:
            cells: (layer, head, value ``[d_head]``).
            pairs: for each prompt as many as for any other.
            told: called with the number of cells done since it was called last.
        """
        out = [np.zeros((len(cells), 0, len(pairs[0])))]
        first = 0
        for batch, row in zip(self.pieces, self.rows, strict=True):
            n, width = batch.ids.shape
            mine = pairs[first : first + n]
            first += n
            size = max(1, min(_CELLS_AT_ONCE, _CACHED_AT_ONCE // (n * width), _ROWS_AT_ONCE // n)) if row is not None else 1
            found = []
            for start in range(0, len(cells), size):
                group = cells[start : start + size]
                if row is None:
                    layer, head, value = group[0]
                    trace = self.instrument.run(batch, edits=[HeadReplace(layer, head, value, rows=(-1,))])
                else:
                    # Copy c of sequence i is batch index i · copies + c.
                    edits = [
                        HeadReplace(layer, head, value, rows=(-1,), batch=range(c, n * len(group), len(group)))
                        for c, (layer, head, value) in enumerate(group)
                    ]
                    trace = row.run(edits, copies=len(group))
                logits = trace["logits"][:, -1].double().cpu().reshape(n, len(group), -1)
                found += [_log_odds(logits[:, c], mine) for c in range(len(group))]
                told(len(group))
            out.append(np.stack(found) if found else np.zeros((0, n, len(pairs[0]))))
        return np.concatenate(out, 1)

    def logits(self, edits: Sequence[Edit] = ()) -> Tensor:
        """``[prompt, vocab]`` float64, on the CPU."""
        traces = self.last.run(edits) if edits else self.last.plain()
        return torch.cat([trace["logits"][:, -1].double().cpu() for trace in traces])


def confirm_heads(
    runs: PairRuns,
    chosen: Sequence[tuple[int, int]],
    drawn: Sequence[tuple[int, int]],
    *,
    means: Tensor,
    contribution: Array,
    seed: int,
    rng: np.random.Generator,
    settled: Tensor | None = None,
    settled_log_odds: float | None = None,
    unrelated: Tensor | None = None,
    clusters: Sequence[str] | None = None,
    progress: Progress = lambda what, share: None,
) -> HeadConfirmation:
    """Ablate, patch, and confirm; see the module.

    Args:
        runs: the prompts with their pairs.
        chosen: (layer, head) to test; ``drawn`` those of the control.
        means: ``[layer, head, d_head]`` from :func:`head_means` over unrelated prompts.
        contribution: ``[chosen]``: each head's own mean contribution to the log-odds (DLA, nats); its ablation must go against it.
        seed: of resampling; ``rng`` draws the random pairs.
        settled, settled_log_odds, unrelated: ``[layer, head, d_head]`` of the settled run and of an unrelated one, and the settled run's log-odds of the
            pair; all or none.
        clusters: a name for each prompt.
        progress: told what is going on, and the share done.
    """
    logits = runs.logits()
    asked = [[own, *others] for own, others in zip(runs.own, _random_pairs(logits, runs.own, rng), strict=True)]
    bases = _log_odds(logits, asked)
    base = bases[:, 0]
    judged, way = False, float("nan")
    if settled is not None and settled_log_odds is not None and unrelated is not None:
        mean_way = bootstrap_mean(settled_log_odds - base, seed=seed)
        way = mean_way.value
        judged = abs(way) > 0.1 and mean_way.excludes(0.0)

    done, jobs = 0, len(runs.pieces) * (len(chosen) * (3 if judged else 1) + len(drawn))

    def many(what: str, heads: Sequence[tuple[int, int]], values: Tensor, of: Sequence[Sequence[Pair]]) -> Array:
        """``[head, prompt, pair]``: change of the log-odds with each head replaced by its entry in ``values``."""

        def told(n: int) -> None:
            nonlocal done
            done += n
            progress(what, done / jobs)

        return runs.heads([(layer, head, values[layer, head]) for layer, head in heads], of, told) - bases[:, : len(of[0])]

    own = [[pair] for pair in runs.own]
    every = many("ablating heads", chosen, means, asked)
    moved = np.abs(every.mean(1))
    specificity = [empirical_p(float(m[0]), m[1:], "greater") for m in moved]
    recovered, recovered_control = [], []
    if judged:  # ratios of means: a prompt that is there already would make its own ratio explode
        assert settled is not None
        assert unrelated is not None
        recovered = (many("patching heads", chosen, settled, own)[:, :, 0].mean(1) / way).tolist()
        recovered_control = (many("patching heads", chosen, unrelated, own)[:, :, 0].mean(1) / way).tolist()
    random_sizes = np.abs(many("ablating random heads", drawn, means, own)[:, :, 0].mean(1)).tolist()
    limit = float(np.quantile(random_sizes, 0.95, method="higher")) if random_sizes else float("inf")
    if not chosen:
        return HeadConfirmation([], limit, len(drawn))

    matrix = every[:, :, 0].T
    if clusters is None:
        value, low, high = bootstrap_columns(matrix, seed=seed)
        p = np.atleast_1d(sign_flip_test(matrix, seed=seed))
        units = len(base)
    else:
        found = [cluster_bootstrap(column, clusters, seed=seed) for column in matrix.T]
        value, low, high = (np.array([getattr(e, name) for e in found]) for name in ("value", "low", "high"))
        p = np.array([float(cluster_sign_flip(column, clusters, seed=seed)) for column in matrix.T])
        units = len(set(clusters))
    q = benjamini_hochberg(p)
    sayable = units >= _FEWEST and bool(drawn)
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
            confirmed=bool(
                q[i] <= 0.05 and abs(value[i]) > max(limit, SMALLEST) and specificity[i] <= 0.05 and value[i] * contribution[i] < 0
            )
            if sayable
            else None,
        )
        for i, (layer, head) in enumerate(chosen)
    ]
    return HeadConfirmation(tests, limit, len(drawn))


def _log_odds(logits: Tensor, pairs: Sequence[Sequence[Pair]]) -> Array:
    """``[prompt, pair]`` of ``logits [prompt, vocab]``: logit(a) − logit(b)."""
    index = torch.tensor([list(each) for each in pairs])
    return (logits.gather(1, index[..., 0]) - logits.gather(1, index[..., 1])).numpy()


def _random_pairs(logits: Tensor, owns: Sequence[Pair], rng: np.random.Generator) -> list[list[Pair]]:
    """For each prompt as many pairs drawn from its best tokens, its own pair left out."""
    found = []
    for row, own in zip(logits, owns, strict=True):
        best = row.topk(min(_BEST, len(row))).indices.tolist()
        pairs: list[Pair] = []
        for _ in range(50 * _RANDOM_PAIRS):  # a vocabulary of two has no other pair
            if len(pairs) == _RANDOM_PAIRS:
                break
            a, b = (int(best[i]) for i in rng.choice(len(best), 2, replace=False))
            if {a, b} != set(own):
                pairs.append((a, b))
        found.append(pairs)
    return found
