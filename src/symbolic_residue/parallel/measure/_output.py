"""What the arms do to the next token, and how large a bias on siblings makes up for competition.

1. At every probe but the last: KL(standard ‖ arm) of the next-token distributions (nats), −ln p of the tree's next top token (its mean's exponential is the
   perplexity of the top path), and whether the best token is the one of standard decoding, where the top path stands alone.
2. Bias sweep: b is added to the scores of all siblings as later rows see them. ``ratio`` is the mean over layers, heads, siblings and sets of ln a_i(set,
   b) − ln a_i(alone, no bias), the sink left out: 0 where a sibling has what it had alone. ``kl`` is KL(b = 0 ‖ b).
"""

from __future__ import annotations

import torch
from torch import Tensor

from symbolic_residue.parallel._tree import Tree
from symbolic_residue.parallel.measure._replay import Seen

__all__ = ["next_tokens", "output_row"]


def next_tokens(seen: Seen, tree: Tree) -> tuple[list[int], Tensor]:
    """Rows of the probes that a further step follows, and the tree's top tokens there ``[row]``."""
    rows = [i for i, t in enumerate(seen.arranged.steps) if t + 1 < len(tree.steps)]
    return rows, torch.tensor([tree.steps[seen.arranged.steps[i] + 1].top.id for i in rows], dtype=torch.int64)


def output_row(seen: Seen, reference: Seen, tree: Tree) -> dict | None:
    """``kl nll agree n`` of an arm against a reference; None where no step follows a probe."""
    assert seen.log_p is not None and reference.log_p is not None
    rows, top = next_tokens(seen, tree)
    if not rows:
        return None
    mine, other = seen.log_p[rows].double().cpu(), reference.log_p[rows].double().cpu()
    kl = (other.exp() * (other - mine)).nansum(-1).clamp_min(0.0)  # 0 · ∞ is 0
    return {
        "kl": float(kl.mean()),
        "nll": float(-mine.gather(-1, top[:, None]).mean()),
        "agree": float((mine.argmax(-1) == other.argmax(-1)).double().mean()),
        "n": len(rows),
    }
