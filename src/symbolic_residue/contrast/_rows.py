"""Which rows are read: the event's, those before it, and the controls of the same answer.

All positions count in the whole sequence (prompt and answer). The event is the first token of the behaviour, at p. A control token at c is read
where it is emitted (offset −1: row c − 1) and where it is consumed (offset 0: row c).

C1  ``n`` tokens of the answer drawn at random, ``gap`` or more tokens away from the answer's start and from p; no special token and no token of the
behaviour. C2  the ``before`` rows just before the emitting one: rows p − 2, p − 3, …, for both offsets (the emitting row is no control of itself).
C3  rare tokens: of the tokens eligible for C1, those whose count in the corpus of all answers is in its lowest tenth (by occurrences; in a small corpus, where
tokens that occur once are more than that, these alone), the rarest first, at most ``n``. C4  the end of an answer without the behaviour that ended by
itself: the end token's rows. Answers that were cut have none.
C5  tokens of the answer that follow the same token as the behaviour's first, p itself left out.

A stratum that cannot be filled has no rows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from symbolic_residue.contrast._records import EVENT

__all__ = ["Row", "Rows", "choose_rows", "end_rows", "rare_tokens", "stable_seed"]


@dataclass(frozen=True, order=True)
class Row:
    """One row to read: ``row`` in the sequence, for a token of ``stratum``."""

    stratum: str
    query_offset: int
    row: int


@dataclass(frozen=True)
class Rows:
    """How many, and how far apart.

    Attributes:
        n: tokens of C1, and at most of C3 and C5.
        gap: least distance of C1 and C3 to the answer's start and to the event, tokens.
        before: rows of C2.
        lags: rows of the trajectory before the emitting row.
        offsets: which rows of a token: −1 emits it, 0 consumes it.
    """

    n: int = 5
    gap: int = 5
    before: int = 3
    lags: int = 10
    offsets: tuple[int, ...] = (-1, 0)


def choose_rows(
    ids: Sequence[int],
    prompt_len: int,
    event: int,
    *,
    example: str,
    rare: Collection[int],
    counts: Mapping[int, int],
    special: Collection[int],
    marker: Collection[int] = (),
    seed: int = 0,
    rows: Rows | None = None,
) -> list[Row]:
    """Rows of an answer that shows the behaviour.

    Args:
        ids: the whole sequence.
        prompt_len: where the answer starts.
        event: position of the behaviour's first token.
        example: its name: the draw of C1 depends on it and on ``seed``, on nothing else.
        rare: tokens that count as rare, ``counts`` their numbers in the corpus, see :func:`rare_tokens`.
        special: control tokens.
        marker: tokens of the behaviour.
        seed: of the draws.
        rows: how many.
    """
    plan = rows or Rows()
    out: list[Row] = []
    first = min(min(plan.offsets), -1)
    for offset in sorted({*plan.offsets, *range(first - plan.lags, first)}, reverse=True):
        if prompt_len - 1 <= event + offset < len(ids):
            out.append(Row(EVENT, offset, event + offset))
    banned = set(special) | set(marker)
    eligible = [c for c in range(prompt_len + plan.gap, event - plan.gap + 1) if ids[c] not in banned]
    drawn = np.random.Generator(np.random.PCG64(stable_seed(example, "C1", seed=seed))).permutation(len(eligible))[: plan.n]
    tokens = {
        "C1": sorted(eligible[i] for i in drawn),
        "C3": sorted((c for c in eligible if ids[c] in rare), key=lambda c: (counts.get(ids[c], 0), c))[: plan.n],
        "C5": [c for c in range(prompt_len + 1, event) if ids[c - 1] == ids[event - 1] and ids[c] not in banned][: plan.n],
    }
    for stratum, places in tokens.items():
        out += [Row(stratum, offset, c + offset) for c in places for offset in plan.offsets]
    just_before = [event - 2 - k for k in range(plan.before)]
    out += [Row("C2", offset, row) for row in just_before if row >= prompt_len for offset in plan.offsets]
    return out


def end_rows(ids: Sequence[int], prompt_len: int, ends: Collection[int], rows: Rows | None = None) -> list[Row]:
    """Rows of C4: of an answer without the behaviour, where it ended by itself; none where it was cut."""
    plan = rows or Rows()
    at = len(ids) - 1
    if at <= prompt_len or ids[at] not in ends:
        return []
    return [Row("C4", offset, at + offset) for offset in plan.offsets]


def rare_tokens(answers: Iterable[Sequence[int]], share: float = 0.10) -> tuple[frozenset[int], Counter[int]]:
    """Tokens that together make up at most ``share`` of all occurrences in the answers, the rarest first; and all counts.

    Rarity is counted, never read off the order of token ids. In a small corpus the tokens of the smallest count alone may be more than ``share``: then they
    are the rare ones, unless they are half of all occurrences or more.
    """
    counts: Counter[int] = Counter()
    for ids in answers:
        counts.update(ids)
    budget, rare = share * counts.total(), set()
    for size in sorted(set(counts.values())):
        group = [token for token, count in counts.items() if count == size]
        budget -= size * len(group)
        if budget < 0:
            break
        rare.update(group)
    if not rare and counts:
        least = min(counts.values())
        group = [token for token, count in counts.items() if count == least]
        if least * len(group) < counts.total() / 2:
            rare.update(group)
    return frozenset(rare), counts


def stable_seed(*parts: object, seed: int = 0) -> int:
    """A seed that depends on the parts and ``seed`` alone, the same in every process and version (SHA-256)."""
    text = "\x1f".join([*map(str, parts), str(seed)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
