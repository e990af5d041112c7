"""Entropy of attention beside its maximum, and what each head does.

1. Entropy: H = −Σ w ln w over all keys that a probe sees, its own and the sink among them, beside ln(keys seen). ``rest``: the same of the weights without
   the sink (the first token) and the own key, made to sum to 1, beside ln of their number. Means over probes and heads.
2. Heads, read in standard decoding (the top path alone), means over probes: ``sink``, the first token's share of all keys but the own; of the rest,
   ``local``, the share of keys at most 4 positions away, ``distance``, and ``entropy_share`` = H / ln(keys).
3. Induction: prompt and top path are read twice in a row (at most 64 tokens). In the second reading, the weight on the token that came after the row's own
   token the first time; ``control`` is the token after that one.
4. Classes, the first that holds: ``induction`` (≥ 0.3, and ≥ 3 × control), ``sink`` (≥ 0.5), ``diffuse`` (entropy_share ≥ 0.8), ``local`` (≥ 0.5), else
   ``long-range``. The bounds are conventions, set before anything was measured with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.instrument import AttentionRead
from symbolic_residue.parallel.measure._replay import Seen

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument
    from symbolic_residue.parallel._tree import Tree

__all__ = ["HEAD_NUMBERS", "entropy_rows", "head_kind", "head_rows", "induction"]

HEAD_NUMBERS = ("sink", "local", "distance", "entropy_share", "induction", "control")
NEAR = 4
_TWICE = 64


def _rest(seen: Seen) -> tuple[Tensor, Tensor]:
    """Weights without sink and own key as shares ``[layer, head, row, place]`` (NaN where nothing is left), and how many keys ``[layer, row]``."""
    rest = seen.weights.clone()
    rest[..., 0] = 0.0
    total = rest.sum(-1, keepdim=True)
    keys = torch.stack([seen.visible(i)[:, 1:].sum(-1) for i in range(len(seen.layers))])
    return torch.where(total > 1e-12, rest / total.clamp_min(1e-300), float("nan")), keys


def entropy_rows(arm: str, seen: Seen) -> list[dict]:
    """Rows of ``parallel_entropy``."""
    rest, keys = _rest(seen)
    whole = torch.special.entr(seen.weights).sum(-1) + torch.special.entr(seen.own)
    left = torch.special.entr(rest).sum(-1)
    out = []
    for i, layer in enumerate(seen.layers):
        count = seen.visible(i).sum(-1)
        use = keys[i] > 1
        if not bool(use.any()):
            continue
        out.append(
            {
                "arm": arm,
                "layer": layer,
                "entropy": float(whole[i].mean()),
                "most": float((count + 1).double().log().mean()),
                "rest": float(left[i][:, use].nanmean()),
                "rest_most": float(keys[i][use].double().log().mean()),
                "n": len(count),
            }
        )
    return [row for row in out if row["rest"] == row["rest"]]


def induction(instrument: Instrument, tree: Tree) -> tuple[Tensor, Tensor]:
    """``[layer, head]`` each: mean weight on the token after the row's own token of the first reading, and on the one after that."""
    ids = [*tree.prompt, *tree.path][:_TWICE]
    limit = instrument.parts.max_context
    ids = ids[: (limit or 2 * len(ids)) // 2]
    n = len(ids)
    rows = torch.arange(n, max(2 * n - 2, n + 1))
    table = instrument.run(
        torch.tensor([ids * 2]), attention=AttentionRead(stats=("lse",), rows=tuple(rows.tolist()), weights=True), keep_logits=1
    ).attention
    assert table is not None
    weights = table["weights"][:, 0].double().cpu()
    found = []
    for ahead in (1, 2):
        index = (rows - n + ahead).clamp_max(n - 1)[None, None, :, None].expand(*weights.shape[:3], 1)
        found.append(weights.gather(-1, index)[..., 0].mean(-1))
    return found[0], found[1]


def head_kind(numbers: dict[str, float]) -> str:
    """The class of a head, by the criteria above."""
    if numbers["induction"] >= 0.3 and numbers["induction"] >= 3 * numbers["control"]:
        return "induction"
    if numbers["sink"] >= 0.5:
        return "sink"
    if numbers["entropy_share"] >= 0.8:
        return "diffuse"
    return "local" if numbers["local"] >= 0.5 else "long-range"


def head_rows(seen: Seen, repeated: tuple[Tensor, Tensor]) -> list[dict]:
    """Rows of ``parallel_heads`` from the standard arm and :func:`induction`."""
    rest, keys = _rest(seen)
    sink = seen.weights[..., 0] / seen.weights.sum(-1).clamp_min(1e-300)
    distance = seen.distance.nan_to_num(0.0)
    near = (distance <= NEAR) & ~seen.distance.isnan()
    local, away = (rest * near).sum(-1), (rest * distance).sum(-1)
    spread = torch.special.entr(rest).sum(-1)
    out = []
    for i, layer in enumerate(seen.layers):
        use = keys[i] > 1
        if not bool(use.any()):
            continue
        share = spread[i][:, use] / keys[i][use].double().log()
        for head in range(seen.weights.shape[1]):
            numbers = {
                "sink": float(sink[i, head].mean()),
                "local": float(local[i, head].nanmean()),
                "distance": float(away[i, head].nanmean()),
                "entropy_share": float(share[head].nanmean()),
                "induction": float(repeated[0][i, head]),
                "control": float(repeated[1][i, head]),
            }
            if any(v != v for v in numbers.values()):  # all on the sink: nothing is left to describe
                numbers = {name: v if v == v else 0.0 for name, v in numbers.items()}
            out.append({"layer": layer, "head": head, **numbers, "kind": head_kind(numbers), "n": int(use.sum())})
    return out
