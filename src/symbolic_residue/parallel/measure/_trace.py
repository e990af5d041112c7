"""One set's first two siblings, followed through the layers.

For the first set that a later step looks at, its most probable token and the next one, in the arms ``shared`` and ``unique``:

1. ``received``: the next step's probe's share of attention on it, the sink left out and the own key not counted, mean over heads.
2. ``value_norm``: ‖v‖ of its value vectors, mean over key-value heads.
3. ``write``: ‖Σ_h w_h v_h W_O,h‖, what the probe's attention takes from it into the residual stream (before any post-attention norm).
4. ``lens``: logit lens, log-probability of the token itself at its own row behind each layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from symbolic_residue.parallel._tree import Tree
from symbolic_residue.parallel.measure._arms import sets_of, Sight
from symbolic_residue.parallel.measure._replay import Seen
from symbolic_residue.readout import lens_logits

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument

__all__ = ["TRACE_READS", "trace_rows"]

TRACE_READS = ("v.*", "resid_post.*")


def trace_rows(arm: str, seen: Seen, tree: Tree, instrument: Instrument) -> list[dict]:
    """Rows of ``parallel_trace``; the arm was read with :data:`TRACE_READS`."""
    parts, s = instrument.parts, sets_of(tree)[0]
    out = []
    for rank in (0, 1):
        sight = Sight(s, s + 1, rank)
        row, place, token = seen.sights[sight], seen.arranged.place_of[sight], tree.steps[s].tokens[rank]
        slot = seen.arranged.slot(place)
        for i, layer in enumerate(seen.layers):
            part = parts.layers[layer]
            weights = seen.weights[i, :, row]
            others = weights[:, 1:].sum(-1)
            received = torch.where(others > 1e-12, weights[:, place] / others.clamp_min(1e-300), float("nan")).nanmean()
            v = seen.trace[f"v.{layer}"][0, slot].float()  # [kv_head, d_head]
            each = v.repeat_interleave(part.n_heads // len(v), 0) * weights[:, place, None].to(v)
            w_o = torch.stack([part.w_o(h) for h in range(part.n_heads)]).to(each)
            write = torch.einsum("hd,hdm->m", each, w_o).norm() * part.attn_scale
            own = lens_logits(parts, seen.trace[f"resid_post.{layer}"][0, slot])
            out.append(
                {
                    "arm": arm,
                    "step": s,
                    "rank": rank,
                    "token": token.text,
                    "layer": layer,
                    "received": float(received) if float(received) == float(received) else 0.0,
                    "value_norm": float(v.norm(dim=-1).mean()),
                    "write": float(write),
                    "lens": float(torch.log_softmax(own.float(), -1)[token.id]),
                }
            )
    return out
