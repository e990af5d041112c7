"""Pairs of prompts for patching, with their rows in step.

1. A pair is a source prompt (whose activations are taken) and a target prompt (into which they are put); the two may be one prompt, where the
   source and the target are two models.
2. A position class is a named set of ``(source row, target row)``. Rows that have no partner cannot be patched, so classes that do not pair
   one to one are refused, never cut to fit.
3. Rows count in the prompt's own tokens. Padding is taken off before anything runs, so that a padded and a bare prompt are the same pair.
4. The metric reads the last row of each prompt. In a causal model a row does not depend on later ones: to read at an earlier row, end the
   prompt there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TYPE_CHECKING

from torch import Tensor

from symbolic_residue.errors import PromptError, SpanError
from symbolic_residue.types import Span

if TYPE_CHECKING:
    from symbolic_residue.instrument import Batch
    from symbolic_residue.prompts import Prompt

__all__ = ["PatchPair", "PositionClass", "patch_pair", "patch_pairs"]

Rows = tuple[tuple[int, int], ...]
PositionClass = str | Span | tuple[Span, Span] | Sequence[int] | Sequence[tuple[int, int]]
"""``"all"``, ``"last"`` or a region's name; a span (or one for each prompt); rows; or explicit ``(source row, target row)`` pairs."""


@dataclass(frozen=True)
class PatchPair:
    """A source and a target prompt whose rows are in step; made by :func:`patch_pair`.

    Attributes:
        name: of the pair, in the tables.
        source: token ids ``[source row]``.
        target: token ids ``[target row]``.
        rows: position class → ``((source row, target row), …)``, counted from 0.
        cluster: what hangs together with this pair (its question, its template); intervals resample clusters.
    """

    name: str
    source: tuple[int, ...]
    target: tuple[int, ...]
    rows: Mapping[str, Rows]
    cluster: str

    def swapped(self) -> PatchPair:
        """The same pair in the other direction."""
        rows = {name: tuple((t, s) for s, t in pairs) for name, pairs in self.rows.items()}
        return PatchPair(self.name, self.target, self.source, rows, self.cluster)


def patch_pair(
    source: Prompt | Sequence[int] | Tensor,
    target: Prompt | Sequence[int] | Tensor | None = None,
    *,
    positions: Mapping[str, PositionClass] | Sequence[str] = ("all", "last"),
    name: str = "pair",
    cluster: str | None = None,
) -> PatchPair:
    """A pair with its position classes resolved to rows.

    Args:
        source: the prompt whose activations are taken: a ``Prompt``, or token ids ``[query]`` without padding.
        target: the prompt into which they are put; the source itself when left out (patching between two models).
        positions: the position classes by name: ``"all"`` (both prompts equally long), ``"last"``, a region that both prompts have, a ``Span`` or
            list of rows for both, two ``Span`` (source, target), or pairs ``(source row, target row)``. Negative rows count from each prompt's end.
        name: of the pair.
        cluster: see :class:`PatchPair`; the pair's own name when left out.

    Raises:
        PromptError: an empty prompt.
        SpanError: a class that is empty, out of range, names a region that a prompt lacks, or does not pair one to one.
    """
    target = source if target is None else target
    ids = _ids(source, "source"), _ids(target, "target")
    wanted = dict(positions) if isinstance(positions, Mapping) else {one: one for one in positions}
    if not wanted:
        raise SpanError("A pair needs at least one position class.", todo="Give positions=('all',), for instance.")
    rows = {label: _resolve(label, spec, (source, target), (len(ids[0]), len(ids[1]))) for label, spec in wanted.items()}
    return PatchPair(name, *ids, rows, name if cluster is None else cluster)


def patch_pairs(
    sources: Batch | Sequence[Any],
    targets: Batch | Sequence[Any] | None = None,
    *,
    positions: Mapping[str, PositionClass] | Sequence[str] = ("all", "last"),
    clusters: Sequence[str] | None = None,
) -> list[PatchPair]:
    """One pair for every source and target, named ``0, 1, …``; the padding of a ``Batch`` is taken off.

    Args:
        sources: a ``Batch``, or prompts.
        targets: as many; the sources themselves when left out.
        positions: as in :func:`patch_pair`, the same classes for all pairs.
        clusters: the cluster of each pair.

    Raises:
        PromptError: not as many sources as targets (or clusters), or none.
        SpanError: as in :func:`patch_pair`.
    """
    first, second = _unpadded(sources), None if targets is None else _unpadded(targets)
    if not first or (second is not None and len(second) != len(first)):
        raise PromptError(f"{len(first)} sources and {len(second or [])} targets make no pairs.", todo="Give as many of each.")
    if clusters is not None and len(clusters) != len(first):
        raise PromptError(f"There are {len(clusters)} clusters for {len(first)} pairs.", todo="Name the cluster of every pair.")
    return [
        patch_pair(
            one,
            None if second is None else second[i],
            positions=positions,
            name=str(i),
            cluster=None if clusters is None else str(clusters[i]),
        )
        for i, one in enumerate(first)
    ]


def _unpadded(prompts: Batch | Sequence[Any]) -> list[Any]:
    ids, mask = getattr(prompts, "ids", None), getattr(prompts, "mask", None)
    if ids is None or mask is None:
        return list(prompts)  # type: ignore[arg-type]
    regions = prompts.regions or (None,) * len(ids)  # type: ignore[union-attr]
    return [_Bare(row[keep.bool()].tolist(), region) for row, keep, region in zip(ids, mask, regions, strict=True)]


@dataclass(frozen=True)
class _Bare:
    """A sequence of a ``Batch`` without its padding."""

    ids: list[int]
    regions: Any


def _ids(prompt: Any, side: str) -> tuple[int, ...]:
    ids = getattr(prompt, "ids", prompt)
    ids = ids.tolist() if isinstance(ids, Tensor) else list(ids)
    if not ids or not all(isinstance(i, int) for i in ids):
        raise PromptError(f"The {side} prompt is no non-empty sequence of token ids.", todo="Give a Prompt or ids [query].")
    return tuple(ids)


def _resolve(label: str, spec: Any, prompts: tuple[Any, Any], lengths: tuple[int, int]) -> Rows:
    """The class as pairs of non-negative rows."""
    if spec == "all":
        if lengths[0] != lengths[1]:
            raise _not_aligned(label, *lengths)
        return tuple((i, i) for i in range(lengths[0]))
    if spec == "last":
        return ((lengths[0] - 1, lengths[1] - 1),)
    if isinstance(spec, str):
        sides = [_region(label, spec, prompt) for prompt in prompts]
    elif isinstance(spec, Span):
        sides = [list(spec.positions())] * 2
    else:
        items = list(spec)
        if len(items) == 2 and all(isinstance(one, Span) for one in items):
            sides = [list(one.positions()) for one in items]
        elif items and all(isinstance(one, int) for one in items):
            sides = [items, items]
        elif items and all(isinstance(one, tuple | list) and len(one) == 2 for one in items):
            sides = [[one[0] for one in items], [one[1] for one in items]]
        else:
            raise SpanError(
                f"The position class {label!r} is {spec!r}.", todo="Give 'all', 'last', a region, a Span, rows, or pairs of rows."
            )
    if len(sides[0]) != len(sides[1]):
        raise _not_aligned(label, len(sides[0]), len(sides[1]))
    if not sides[0]:
        raise SpanError(f"The position class {label!r} has no rows.")
    resolved = [[_row(label, row, n) for row in side] for side, n in zip(sides, lengths, strict=True)]
    if len(set(resolved[1])) != len(resolved[1]):
        raise SpanError(f"The position class {label!r} names a target row twice.", why="One row can hold one value.")
    return tuple(zip(*resolved, strict=True))


def _region(label: str, region: str, prompt: Any) -> list[int]:
    regions = getattr(prompt, "regions", None)
    if regions is None:
        raise SpanError(
            f"The position class {label!r} names the region {region!r}, but the prompt has no regions.",
            todo="Give prompts made by build_prompt, or rows.",
        )
    return regions.positions(region).tolist()


def _row(label: str, row: int, n: int) -> int:
    if not -n <= row < n:
        raise SpanError(f"The position class {label!r} names row {row} of a prompt with {n} tokens.")
    return row % n


def _not_aligned(label: str, n_source: int, n_target: int) -> SpanError:
    return SpanError(
        f"The position class {label!r} has {n_source} source rows and {n_target} target rows.",
        why="A row is patched with its partner, so rows must pair one to one.",
        todo="Give (source row, target row) pairs for the rows that correspond.",
    )
