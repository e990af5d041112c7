"""How much attention one token gets in one arm against another, in four forms, and what competition alone would make of it.

With w_j the weight that a probe gives to key j, and K a set of keys that never holds the probe's own key, the share of token i is

    a_i = w_i / Σ_{j ∈ K} w_j        (i ∈ K)

and the outcome is ln a_i(arm) − ln a_i(reference), nats. The forms differ in K, which is taken in each arm among the keys that the probe sees there:

1. ``all keys``. 2. ``prompt excluded``: tokens of steps only. 3. ``sink excluded``: all but the sequence's first token. 4. ``distance matched``: i itself,
   and every key that both arms' probes see at the same distance (within 1e-4 positions), the sink left out. A pair where K holds i alone in either arm is
   left out, for its share is 1 whatever the model does; so is one whose weight is 0 (a window, underflow).
5. ``score``: ln w_i + lse of the arm minus the same of the reference: the change before the softmax, which no other key enters.

The competition null: alone, a sibling has the odds o_i = a_i / (1 − a_i) against the same other keys, e_i / R in the words of the softmax. Together they
would have the shares o_i / (1 + Σ o_j), and the set Σ o_i / (1 + Σ o_j). Then, exactly and sibling by sibling,

    drop = ln a_i(set) − ln a_i(alone) = by_competition + beyond,
    by_competition = ln o_i / (1 + Σ o_j) − ln o_i / (1 + o_i),    beyond = ln a_i(set) − ln o_i / (1 + Σ o_j).

Means: over the siblings (and probes) of a set first, then over sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from symbolic_residue.parallel.measure._arms import Sight
from symbolic_residue.parallel.measure._replay import Seen

__all__ = ["FORMS", "SHARES", "Competition", "collapse", "competition", "log_ratios"]

SHARES = ("all keys", "prompt excluded", "sink excluded", "distance matched")
FORMS = (*SHARES, "score")
_SAME = 1e-4


def _keys(seen: Seen, rows: list[int], form: str, n_prompt: int) -> Tensor:
    """``[pair, place]`` bool: the keys of a form (``distance matched``: before matching)."""
    keys = ~seen.distance[rows].isnan()
    if form == "prompt excluded":
        keys[:, :n_prompt] = False
    elif form != "all keys":
        keys[:, 0] = False
    return keys


def _log_odds(weights: Tensor, keys: Tensor, at: Tensor) -> Tensor:
    """``[layer, head, pair]``: ln of the weight of place ``at`` against the other ``keys [pair, place]``; NaN where it is undefined."""
    mine = weights.gather(-1, at[None, None, :, None].expand(*weights.shape[:2], -1, 1))[..., 0]
    others = (weights * keys.scatter(1, at[:, None], False)).sum(-1)
    defined = (mine > 0) & (others > 0) & keys.gather(1, at[:, None])[:, 0]
    return torch.where(defined, mine.log() - others.log(), float("nan"))


def log_ratios(arm: Seen, reference: Seen, n_prompt: int, sights: Sequence[Sight]) -> dict[str, Tensor]:
    """Form → ``[layer, head, pair]``: outcomes for the looks ``sights``, which both arms must have; NaN where undefined."""
    rows_a, rows_b = [arm.sights[s] for s in sights], [reference.sights[s] for s in sights]
    at = torch.tensor([arm.arranged.place_of[s] for s in sights])
    a, b = arm.weights[:, :, rows_a], reference.weights[:, :, rows_b]
    out = {}
    for form in SHARES:
        keys_a, keys_b = _keys(arm, rows_a, form, n_prompt), _keys(reference, rows_b, form, n_prompt)
        if form == "distance matched":
            same = (arm.distance[rows_a] - reference.distance[rows_b]).abs() < _SAME  # NaN is never the same
            same = same.scatter(1, at[:, None], True)
            keys_a, keys_b = keys_a & same, keys_b & same
        out[form] = logsigmoid(_log_odds(a, keys_a, at)) - logsigmoid(_log_odds(b, keys_b, at))
    index = at[None, None, :, None].expand(*a.shape[:2], -1, 1)
    score = [
        torch.where(w > 0, w.log() + lse, float("nan"))
        for w, lse in (
            (a.gather(-1, index)[..., 0], arm.lse[:, :, rows_a]),
            (b.gather(-1, index)[..., 0], reference.lse[:, :, rows_b]),
        )
    ]
    out["score"] = score[0] - score[1]
    return out


def collapse(values: Tensor, sets: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean over the last axis: within each set first, then over sets; and how many values are in it.

    Args:
        values: ``[…, pair]``, NaN where undefined.
        sets: the set of each pair.

    Returns:
        ``([…], […])``: the mean (NaN where nothing is defined) and the number of defined pairs.
    """
    groups = torch.tensor(sets)
    means = torch.stack([values[..., groups == s].nanmean(-1) for s in sorted(set(sets))], -1)
    return means.nanmean(-1), (~values.isnan()).sum(-1)


@dataclass
class Competition:
    """The set against its competition null. ``[layer, head, set]`` and, over siblings, ``[layer, head, sibling]``; NaN where undefined.

    Attributes:
        total, expected: share of the whole set, and by the null.
        drop, by_competition, beyond: nats.
        sets, siblings: the set of each entry.
    """

    total: Tensor
    expected: Tensor
    drop: Tensor
    by_competition: Tensor
    beyond: Tensor
    sets: list[int]
    siblings: list[int]


def competition(together: Seen, alone: Seen, n_prompt: int, form: str, sights: Sequence[Sight]) -> Competition:
    """The set seen at once against its siblings seen alone; ``sights`` holds all siblings of every set in it."""
    odds = []
    for seen in (together, alone):
        rows = [seen.sights[s] for s in sights]
        at = torch.tensor([seen.arranged.place_of[s] for s in sights])
        odds.append(_log_odds(seen.weights[:, :, rows], _keys(seen, rows, form, n_prompt), at))
    log_odds = odds[1]
    log_set, log_alone = logsigmoid(odds[0]), logsigmoid(log_odds)
    looks = sorted({(s.step, s.at) for s in sights})
    total, expected, null = [], [], torch.full_like(log_alone, float("nan"))
    for look in looks:
        mine = [i for i, s in enumerate(sights) if (s.step, s.at) == look]
        every = torch.logsumexp(log_odds[..., mine], -1)
        beside = softplus(every)  # ln (1 + Σ o)
        total.append(log_set[..., mine].exp().sum(-1))
        expected.append((every - beside).exp())
        null[..., mine] = log_odds[..., mine] - beside[..., None]
    return Competition(
        torch.stack(total, -1),
        torch.stack(expected, -1),
        log_set - log_alone,
        null - log_alone,
        log_set - null,
        [step for step, _ in looks],
        [s.step for s in sights],
    )
