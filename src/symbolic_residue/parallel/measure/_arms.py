"""One tree of tokens, arranged in several ways: who stands where, who sees whom, and which rows look.

1. An *arm* keeps the tree's tokens and changes one thing: where a set's tokens stand, who sees whom, which of them are there, or which tokens stand beside
   the top one.
2. *Probes* look. For every step from the second on, a probe is one more row: the step's most probable token at the step's own position, seeing the prompt,
   the tokens of earlier steps and itself, and seen by nobody. With isolated siblings at one position a probe is the top sibling's row; in the other arms it
   is that row freed from what is not asked (its own siblings, its own offset). All arms are read at the same probes.
3. ``singleton``: a probe for every sibling, which sees this one of its set only. ``moved``: the unique arrangement, and a probe for every sibling i, for
   whom the other tokens of the set stand (as copies) at the position of i. Against the unique arrangement this probe has the same distance to i, to the
   prompt and to all other sets; the position that the set now shares is the only thing that differs. Over all i of a set, the other tokens move nearer as
   much as away.
4. Every slot knows its *place*: the prompt's tokens, then the tree's. Copies have the place of what they copy, so arms can be compared key by key.

Pruned tokens stand in every arm as if they had stayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from symbolic_residue.errors import PromptError
from symbolic_residue.parallel._layout import Layout, Mode, NEVER, place, PROMPT, Scheme
from symbolic_residue.parallel._tree import Tree

__all__ = ["Arranged", "Builder", "Sight", "arrange", "sets_of", "sights_of"]


@dataclass(frozen=True, order=True)
class Sight:
    """A look at one token: the probe of step ``at`` looks at the token ``rank`` of the set of step ``step``."""

    step: int
    at: int
    rank: int


@dataclass
class Arranged:
    """Slots of one arm, its probes last.

    Attributes:
        layout: of all slots.
        visible: ``[1, row, key]`` bool.
        places: the place of each slot.
        n_places: how many places there are.
        rows: slots of the probes, ascending.
        steps: the step of each probe.
        probe_of: sight → index into ``rows``.
        place_of: sight → place of the token looked at.
    """

    layout: Layout
    visible: Tensor
    places: list[int]
    n_places: int
    rows: list[int]
    steps: list[int]
    probe_of: dict[Sight, int] = field(default_factory=dict)
    place_of: dict[Sight, int] = field(default_factory=dict)

    def slot(self, place: int) -> int:
        """The first slot of a place."""
        return self.places.index(place)


class Builder:
    """Slots in the making: each is added with the slots that it sees."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.ids: list[int] = []
        self.position: list[float] = []
        self.seat: list[float] = []
        self.step: list[int] = []
        self.rank: list[int] = []
        self.size: list[int] = []
        self.places: list[int] = []
        self.sees: list[list[int]] = []
        for i, token in enumerate(prompt):
            self.add(token, float(i), PROMPT, 0, 1, i, list(range(i)))

    def add(
        self, token: int, position: float, step: int, rank: int, size: int, place: int, sees: list[int], seat: float | None = None
    ) -> int:
        """One more slot that sees ``sees`` and itself; its number. ``seat``: the whole position that windows count, where it is another."""
        slot = len(self.ids)
        self.ids.append(token)
        self.position.append(position)
        self.seat.append(position if seat is None else seat)
        self.step.append(step)
        self.rank.append(rank)
        self.size.append(size)
        self.places.append(place)
        self.sees.append([*sees, slot])
        return slot

    def done(self, rows: list[int], n_places: int, device: torch.device | str) -> Arranged:
        """The arrangement; ``rows`` are its probes."""
        n = len(self.ids)
        visible = torch.zeros(1, n, n, dtype=torch.bool)
        for slot, sees in enumerate(self.sees):
            visible[0, slot, sees] = True

        def one(values: list, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.tensor([values], dtype=dtype, device=device)

        layout = Layout(
            one(self.ids),
            one(self.position, torch.float64),
            one(self.step),
            one(self.rank),
            one(self.size),
            one([NEVER] * n),
            one(self.seat, torch.float64),
        )
        return Arranged(layout, visible.to(device), self.places, n_places, rows, [self.step[r] for r in rows])


def sets_of(tree: Tree) -> list[int]:
    """Steps whose set has several tokens and that a later step can look at."""
    return [i for i, step in enumerate(tree.steps[:-1]) if len(step.tokens) > 1]


def sights_of(tree: Tree, reach: int) -> list[Sight]:
    """All looks at all tokens of all sets, from the ``reach`` steps after each."""
    last = len(tree.steps) - 1
    return [
        Sight(s, t, rank)
        for s in sets_of(tree)
        for t in range(s + 1, min(s + reach, last) + 1)
        for rank in range(len(tree.steps[s].tokens))
    ]


def _spread(size: int, most: int) -> list[int]:
    """At most ``most`` of the ranks, the same distances from both ends."""
    if size <= most:
        return list(range(size))
    return sorted({round(i * (size - 1) / (most - 1)) for i in range(most)}) if most > 1 else [0]


def arrange(
    tree: Tree,
    *,
    scheme: Scheme = "shared",
    epsilon: float = 0.0,
    mode: Mode = "isolated",
    keep: Sequence[Sequence[int]] | None = None,
    ids: Sequence[Sequence[int]] | None = None,
    reach: int = 1,
    alone: bool = False,
    moved: bool = False,
    most: int = 8,
    limit: int | None = None,
    device: torch.device | str = "cpu",
) -> Arranged:
    """The tree's tokens under one arm.

    Args:
        tree: the tokens.
        scheme, epsilon: where the tokens of a set stand.
        mode: what siblings see of their set. Probes see nothing of theirs.
        keep: ranks that are there, for each step; None: all.
        ids: other token ids, for each step; None: the tree's own.
        reach: how many steps after a set look at it.
        alone: the probes are those that see one sibling of a set (``singleton``).
        moved: the probes are those for which the set shares one sibling's position.
        most: with ``moved``, at most so many siblings of a set are looked at.
        limit: the model's context.
        device: of the tensors.

    Raises:
        PromptError: positions beyond the model's context.
    """
    n = len(tree.prompt)
    build = Builder(tree.prompt)
    prompt = list(range(n))
    starts, base, first_place = [], float(n), n
    slots: list[list[int]] = []
    positions: list[list[float]] = []
    first_places: list[int] = []
    tokens = [[t.id for t in step.tokens] for step in tree.steps] if ids is None else [list(row) for row in ids]
    before: list[list[int]] = []
    for s, step in enumerate(tree.steps):
        size = len(step.tokens)
        kept = list(range(size)) if keep is None else list(keep[s])
        where, after = place(scheme, base, size, epsilon)
        starts.append(base)
        first_places.append(first_place)
        positions.append(where)
        earlier = prompt + [slot for row in slots for slot in row]
        before.append(earlier)
        mine: list[int] = []
        next_slot = len(build.ids)
        for i, rank in enumerate(kept):
            own = {"isolated": [], "causal": mine[:i], "visible": [next_slot + j for j in range(len(kept)) if j != i]}[mode]
            seat = base if scheme == "offset" else None
            mine.append(build.add(tokens[s][rank], where[rank], s, rank, len(kept), first_place + rank, earlier + own, seat))
        slots.append(mine)
        base, first_place = after, first_place + size
    if limit is not None and base > limit:
        raise PromptError(
            f"The tree reaches position {base - 1:g} in the {scheme} arrangement, beyond the model's context of {limit}.",
            todo="Measure a tree of fewer steps or fewer siblings.",
        )
    build_probe = _Probes(build, tokens, starts, first_places, before)
    found: dict[Sight, int] = {}
    if not (alone or moved):
        last = {t: build_probe.add(t) for t in range(1, len(tree.steps))}
        ranks = [set(range(len(step.tokens)) if keep is None else keep[s]) for s, step in enumerate(tree.steps)]
        found = {sight: last[sight.at] for sight in sights_of(tree, reach) if sight.rank in ranks[sight.step]}
    else:
        copies: dict[tuple[int, int], list[int]] = {}
        for s in sets_of(tree):
            chosen = list(range(len(slots[s]))) if alone else _spread(len(slots[s]), most)
            for i in chosen:
                copies[s, i] = [slots[s][i]]
                if moved:
                    size = len(slots[s])
                    copies[s, i] += [
                        build.add(tokens[s][j], positions[s][i], s, j, size, first_places[s] + j, before[s])
                        for j in range(size)
                        if j != i
                    ]
        for sight in sights_of(tree, reach):
            if (sight.step, sight.rank) in copies:
                hidden = set(slots[sight.step])
                sees = [slot for slot in before[sight.at] if slot not in hidden] + copies[sight.step, sight.rank]
                found[sight] = build_probe.add(sight.at, sees)
    rows = build_probe.rows
    arranged = build.done(rows, first_place, device)
    at = {slot: i for i, slot in enumerate(rows)}
    arranged.probe_of = {sight: at[slot] for sight, slot in found.items()}
    arranged.place_of = {sight: first_places[sight.step] + sight.rank for sight in found}
    return arranged


class _Probes:
    """Adds probes behind everything else."""

    def __init__(
        self, build: Builder, tokens: list[list[int]], starts: list[float], first_places: list[int], before: list[list[int]]
    ) -> None:
        self.build, self.tokens, self.starts, self.first_places, self.before = build, tokens, starts, first_places, before
        self.rows: list[int] = []

    def add(self, t: int, sees: list[int] | None = None) -> int:
        """A probe of step t; its slot."""
        sees = self.before[t] if sees is None else sees
        slot = self.build.add(self.tokens[t][0], self.starts[t], t, 0, 1, self.first_places[t], sees)
        self.rows.append(slot)
        return slot
