"""How a set's attention grows with its size: 2 to 20 tokens at one place.

At the place of the tree's first set, behind the top path so far, stand the 20 most probable tokens of the model's own distribution there, isolated, at one
position. One forward holds a probe for each size k (it sees the first k) and one for each token alone; all are the next step's top token. Total, null and
drop are those of ``_forms``, the sink left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from symbolic_residue.parallel._tree import Tree
from symbolic_residue.parallel.measure._arms import Builder, sets_of, Sight
from symbolic_residue.parallel.measure._forms import competition
from symbolic_residue.parallel.measure._replay import EditsOf, replay

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument

__all__ = ["scaling_rows"]


def scaling_rows(instrument: Instrument, tree: Tree, sizes: tuple[int, ...], edits: EditsOf | None = None) -> list[dict]:
    """Rows of ``parallel_scaling``; sizes beyond the vocabulary are left out."""
    s, most = sets_of(tree)[0], max(sizes)
    context = [*tree.prompt, *tree.path[:s]]
    with torch.no_grad():
        ids = torch.tensor([context], device=instrument.device)
        logits = instrument.model(input_ids=ids, use_cache=False).logits[0, -1]
    tokens = logits.float().topk(min(most, len(logits))).indices.tolist()
    n = len(context)
    build = Builder(context)
    before = list(range(n))
    slots = [build.add(t, float(n), 0, rank, len(tokens), n + rank, before) for rank, t in enumerate(tokens)]
    top, place = tree.steps[s + 1].top.id, n + len(tokens)
    sizes = tuple(k for k in sizes if k <= len(tokens))
    rows = [build.add(top, float(n + 1), 1, 0, 1, place, before + slots[:k]) for k in sizes]
    rows += [build.add(top, float(n + 1), 1, 0, 1, place, [*before, slot]) for slot in slots]
    arranged = build.done(rows, place + 1, instrument.device)
    seen = replay(instrument, arranged, edits=edits)
    out = []
    for i, k in enumerate(sizes):
        sights = [Sight(0, 1, rank) for rank in range(k)]
        arranged.place_of = {sight: n + sight.rank for sight in sights}
        arranged.probe_of = dict.fromkeys(sights, i)
        together = _held(seen, arranged.probe_of)
        alone = _held(seen, {sight: len(sizes) + sight.rank for sight in sights})
        found = competition(together, alone, n, "sink excluded", sights)
        for at, layer in enumerate(seen.layers):
            numbers = {
                name: float(getattr(found, name)[at].nanmean())
                for name in ("total", "expected", "drop", "by_competition", "beyond")
            }
            if all(v == v for v in numbers.values()):
                out.append({"size": k, "layer": layer, **numbers})
    return out


def _held(seen, probe_of):
    """The same forward, with other probes for the sights."""
    from dataclasses import replace

    return replace(seen, arranged=replace(seen.arranged, probe_of=probe_of))
