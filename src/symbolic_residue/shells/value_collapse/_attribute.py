"""Who pulls toward which candidate: direct logit attribution, confirmed by interventions at the last row.

1. For every pair among the best candidates, attribute the logit difference over embedding, heads, biases and MLPs, for the prompt and every
   variant. The parts sum to the difference; the error is kept beside it.
2. The heads with the largest mean contribution (either sign) to the first pair are confirmed, or not, by mean ablation, patching from the control, random
   heads and specificity (``shells._confirm``). Variants of one prompt are near-copies: q says "the same on this prompt however it is worded", not "this
   head matters in general".
3. A token's influence: log-odds without − with an attention mask that hides it from the last row in every layer and head; positive speaks for
   the first candidate.

Units: nats of log-odds. Intervals are over variants of this prompt. Interventions act on the last row only: indirect effects through later layers of that row
count, those through earlier rows do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.instrument import AttentionMask, Edit, Instrument
from symbolic_residue.prompts import Prompt
from symbolic_residue.readout import direct_logit_attribution, dla_reads
from symbolic_residue.shells._confirm import confirm_heads, draw_heads, head_means, HeadTest, PairRuns
from symbolic_residue.shells._rows import LastRows

__all__ = ["Attribution", "attribute", "token_influence"]

Array = NDArray[np.float64]
Progress = Callable[[str, float], None]
_CACHED_AT_ONCE = 16384
_GROUPS = 64


@dataclass(frozen=True)
class Attribution:
    """Attribution of every candidate pair.

    Attributes:
        pairs: (a, b) token ids; contributions are to logit(a) − logit(b).
        heads: ``[pair, variant, layer, head]``; ``mlps``, ``mixers`` and ``biases`` ``[pair, variant, layer]``; ``embedding`` ``[pair, variant]``; ``constant``
            ``[pair]``. NaN where a layer has no such part.
        total, error: ``[pair, variant]``: the logit difference, and sum of parts minus it.
        toward: ``[candidate, layer, head]``: what each head writes toward a candidate's logit, minus its mean over candidates (prompt itself).
        tests: interventions on the first pair.
        random_effect: 95th percentile of the random heads' absolute mean effects; ``random_n`` heads.
    """

    pairs: list[tuple[int, int]]
    heads: Array
    mlps: Array
    mixers: Array
    biases: Array
    embedding: Array
    constant: Array
    total: Array
    error: Array
    toward: Array
    tests: list[HeadTest]
    random_effect: float
    random_n: int


def attribute(
    instrument: Instrument,
    prompts: Sequence[Prompt],
    control: Prompt,
    reference: Callable[[], tuple[Tensor, Tensor]],
    candidates: Sequence[int],
    *,
    top_heads: int,
    random_heads: int,
    attributed: int,
    seed: int,
    rows: LastRows | None = None,
    settled: LastRows | None = None,
    progress: Progress = lambda what, share: None,
) -> Attribution:
    """Attribute and confirm; see the module.

    Args:
        prompts: the prompt, then its variants.
        control: the disambiguated prompt to patch from.
        reference: gives :func:`head_means` over unrelated prompts, for means and patch controls; called only where heads are tested.
        candidates: token ids, best first.
        top_heads: how many heads to test; ``random_heads`` how many for the control.
        attributed: pairs among this many best candidates.
        rows: the prompts' last rows, where they are cached already; ``settled`` those of the control, which may be the first of several.
        progress: told what is going on, and the share done.
    """
    parts = instrument.parts
    best = list(candidates[:attributed])
    pairs = list(combinations(best, 2))
    targets: list[tuple[int, int | None]] = [*pairs, *((t, None) for t in best)]
    rows = rows or LastRows(instrument, prompts)
    found = [direct_logit_attribution(trace, parts, targets, rows=(-1,)) for trace in rows.plain(dla_reads(parts))]

    def joined(name: str, n: int = len(pairs)) -> Array:
        return np.concatenate([getattr(d, name)[:n, :, 0].double().cpu().numpy() for d in found], 1)

    heads = joined("heads")
    toward = found[0].heads[len(pairs) :, 0, 0].double().cpu().numpy()
    parts_of = (
        pairs,
        heads,
        joined("mlps"),
        joined("mixers"),
        joined("attention_bias"),
        joined("embedding"),
        found[0].constant[: len(pairs)].double().cpu().numpy(),
        joined("total"),
        joined("error"),
        toward - toward.mean(0),
    )
    mean_size = np.abs(heads[0].mean(0))
    # Layers without softmax attention have no heads to test, nor to draw as a control.
    there = np.isin(np.arange(parts.n_layers), parts.attention_layers)
    order = np.argsort(-np.where(there[:, None], mean_size, -1.0), axis=None)[: int(there.sum()) * parts.n_heads]
    chosen = [divmod(int(i), parts.n_heads) for i in order[: min(top_heads, order.size)]]
    others = [divmod(int(i), parts.n_heads) for i in order[len(chosen) :]]
    rng = np.random.default_rng(seed)
    drawn = draw_heads(others, random_heads, rng)

    if top_heads == 0:
        return Attribution(*parts_of, [], float("inf"), 0)
    means, each = reference()
    settled = settled or LastRows(instrument, [control])
    _, of_control = head_means(instrument, [control], rows=settled)
    a, b = pairs[0]
    at_control = settled.plain()[0]["logits"][0, -1].double()
    tested = confirm_heads(
        PairRuns(instrument, prompts, pairs[0], rows=rows),
        chosen,
        drawn,
        means=means,
        contribution=np.array([heads[0, :, layer, head].mean() for layer, head in chosen]),
        seed=seed,
        rng=rng,
        settled=of_control[0],
        settled_log_odds=float(at_control[a] - at_control[b]),
        unrelated=each[int(rng.integers(len(each)))],
        progress=progress,
    )
    return Attribution(*parts_of, tested.tests, tested.random_effect, tested.random_n)


def token_influence(instrument: Instrument, prompt: Prompt, pair: tuple[int, int], *, rows: LastRows | None = None) -> Array:
    """Each token's influence on the pair's log-odds, ``[token]`` in nats; see the module.

    Prompts of more than 64 tokens are hidden in runs of neighbouring tokens, whose influence is shared out equally.
    ``rows``: the prompt's last row, where it is cached already.
    """
    n = len(prompt)
    if n < 2:
        return np.zeros(n)
    rows = rows or LastRows(instrument, [prompt])
    (row,) = rows.rows
    assert row is not None
    a, b = pair

    def log_odds(logits: Tensor) -> Array:
        logits = logits[:, -1].double()
        return (logits[:, a] - logits[:, b]).cpu().numpy()

    base = float(log_odds(rows.plain()[0]["logits"])[0])
    groups = [g.tolist() for g in np.array_split(np.arange(n), min(n, _GROUPS))]
    copies = max(1, _CACHED_AT_ONCE // n)
    out = np.zeros(n)
    for start in range(0, len(groups), copies):
        batch = groups[start : start + copies]
        edits: list[Edit] = [AttentionMask(g, rows=(-1,), batch=(c,)) for c, g in enumerate(batch)]
        for g, hidden in zip(batch, log_odds(row.run(edits, copies=len(batch))["logits"]), strict=True):
            out[g] = (base - hidden) / len(g)
    return out
