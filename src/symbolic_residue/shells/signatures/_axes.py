"""A shell's axis: from its null items to its planted ones, in components that every prompt has.

1. A shell's benchmark items are read at the last row of the prompt that the shell puts its question with (``_prompts``), so that they and natural prompts
   are measured in the same way.
2. *Components*: of the groups asked for, those measured in every item of the shell and in every tested prompt. What a shell's items lack is missing for
   that shell alone: it has no part in its axis, and nothing is put in its place. Fewer than three are no signature.
3. *Scale*: each component's standard deviation within planted and within null items, pooled over the shells that measure the same components, and at least
   0.02 of its range (nulls may be so alike that a component hardly varies). Components hang together; the pooled correlations, shrunk by a fifth to none, are
   taken out (whitening), so that a few strong common factors do not decide what is similar. The tested prompts take no part in either.
4. *Axis*: mean of planted − mean of null in that space, at unit length. A position along it has no origin of its own: only differences count. Positions do not
   change when components are put in another order, nor (but for the floor of the scale) when one is measured in another unit.
5. *Held out*: the items are cut into five parts by frame (by item where a side has one frame), each part is scored on the axis of the other four. From
   these scores come the AUC of planted against null and the *shift*, mean planted − mean null: the shell's own unit of similarity. A shell whose AUC
   interval does not clear ½ has no signature, and nothing is similar to it.

"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import Instrument
from symbolic_residue.shells._base import Progress, quiet
from symbolic_residue.shells.signatures._components import COMPONENTS, READABLE_GROUPS
from symbolic_residue.shells.signatures._prompts import shell_prompts
from symbolic_residue.shells.signatures._read import read_signatures
from symbolic_residue.shells.signatures._signature import Signature, signature_matrix
from symbolic_residue.stats import auc, Estimate

__all__ = ["Axis", "ShellSignature", "make_axes", "read_shell", "shell_signature", "unit"]

Array = NDArray[np.float64]
_FEWEST_ITEMS = 4
_FEWEST_COMPONENTS = 3
_LEAST_SCALE = 0.02
_PARTS = 5
_SHRINKAGE = 0.2


@dataclass(frozen=True, eq=False)
class ShellSignature:
    """The signatures of a shell's planted and null items.

    Attributes:
        shell: its name.
        planted, null: ``[item, component]``, NaN = not measured.
        planted_frames, null_frames: the frame of each item: items of one frame are held out together; empty where every item is
            its own.
    """

    shell: str
    planted: Array = field(repr=False)
    null: Array = field(repr=False)
    planted_frames: tuple[str, ...] = field(default=(), repr=False)
    null_frames: tuple[str, ...] = field(default=(), repr=False)


def shell_signature(
    shell: str,
    planted: Sequence[Signature],
    null: Sequence[Signature],
    *,
    planted_frames: Sequence[str] = (),
    null_frames: Sequence[str] = (),
) -> ShellSignature:
    """A shell's signature from the signatures of its items.

    Args:
        shell: its name.
        planted, null: at least four each.
        planted_frames, null_frames: one each; every item is a frame of its own when left out.

    Raises:
        ConfigError: too few items, or frames that do not match them.
    """
    sides = []
    for what, items, frames in (("planted", planted, planted_frames), ("null", null, null_frames)):
        if len(items) < _FEWEST_ITEMS:
            raise ConfigError(
                f"{shell} has {len(items)} {what} items.", why=f"A signature needs {_FEWEST_ITEMS} or more of each side."
            )
        if frames and len(frames) != len(items):
            raise ConfigError(f"{shell} has {len(items)} {what} items and {len(frames)} frames.")
        sides.append(tuple(frames) or tuple(map(str, range(len(items)))))
    return ShellSignature(shell, signature_matrix(planted), signature_matrix(null), *sides)


def read_shell(
    instrument: Instrument, shell: str, *, split: str = "calibration", most: int | None = None, progress: Progress = quiet
) -> ShellSignature:
    """A shell's signature from its packaged benchmark, each item read at the last row of its prompt (see :func:`shell_prompts`).

    Args:
        instrument: the model's instrument.
        shell: a key of ``SHELLS``.
        split: whose items are read.
        most: at most so many of each side, spread over the split.
        progress: told how far it is.

    Raises:
        ConfigError: no such shell.
        PromptError: an item that does not fit the model's context.
    """
    found = shell_prompts(instrument, shell, split=split, most=most)
    read = read_signatures(
        instrument, [*found.planted, *found.null], names=[*found.planted_ids, *found.null_ids], progress=progress
    )
    n = len(found.planted)
    return shell_signature(shell, read[:n], read[n:], planted_frames=found.planted_frames, null_frames=found.null_frames)


@dataclass(frozen=True, eq=False)
class Axis:
    """The axis of one shell.

    Attributes:
        shell: its name.
        components: indices into ``COMPONENTS`` of those that take part.
        missing: names of the components that the tested prompts have and this shell's items lack.
        scale: ``[component used]`` standard deviation within planted and within null items.
        whitening: ``[component used, dimension]``: what a vector of components is multiplied with.
        direction: ``[dimension]`` of unit length.
        shift: mean planted − mean null along the axis, held out.
        separation: AUC of planted against null, held out.
    """

    shell: str
    components: NDArray[np.int64]
    missing: tuple[str, ...]
    scale: Array
    whitening: Array
    direction: Array
    shift: float
    separation: Estimate

    def scaled(self, values: Array) -> Array:
        """``[…, component]`` → ``[…, dimension]`` in the axis's space."""
        return values[..., self.components] @ self.whitening

    def positions(self, values: Array) -> Array:
        """``[…, component]`` → ``[…]`` along the axis."""
        return self.scaled(values) @ self.direction

    @property
    def has_signature(self) -> bool:
        """Whether planted items stand clear of null ones, held out."""
        return self.separation.above(0.5) and self.shift > 0


def make_axes(
    shells: Sequence[ShellSignature], tested: Sequence[Array], groups: tuple[str, ...] = READABLE_GROUPS
) -> tuple[Axis, ...]:
    """One axis a shell, on the components that its own items and all tested prompts have.

    Args:
        shells: with distinct names.
        tested: matrices ``[prompt, component]`` that will be compared; only *whether* they are measured counts here.
        groups: of components.

    Raises:
        ConfigError: no shells, a name twice, or too few shared components.
    """
    names = [s.shell for s in shells]
    if not names or len(set(names)) != len(names):
        raise ConfigError("Give at least one shell, each once.")
    asked = np.array([c.group in groups for c in COMPONENTS])
    for matrix in tested:
        asked &= ~np.isnan(matrix).any(0)
    has = [asked & ~np.isnan(s.planted).any(0) & ~np.isnan(s.null).any(0) for s in shells]
    found = []
    for s, known in zip(shells, has, strict=True):
        used = np.flatnonzero(known)
        if len(used) < _FEWEST_COMPONENTS:
            raise ConfigError(
                f"{len(used)} components are measured in all items of {s.shell} and all prompts.", why=f"A comparison needs {_FEWEST_COMPONENTS} or more.",
                todo="Compare signatures that were made in the same way, such as readings with readings.",
            )  # fmt: skip
        alike = [
            m[:, used] for other, theirs in zip(shells, has, strict=True) if theirs[used].all() for m in (other.planted, other.null)
        ]
        scale, whitening = _whitening(alike, used)
        planted, null = s.planted[:, used] @ whitening, s.null[:, used] @ whitening
        held = _held_out(planted, null, _parts(s.planted_frames, len(planted)), _parts(s.null_frames, len(null)))
        missing = tuple(COMPONENTS[i].name for i in np.flatnonzero(asked & ~known))
        direction = unit(planted.mean(0) - null.mean(0))
        found.append(Axis(s.shell, used, missing, scale, whitening, direction, float(held[0].mean() - held[1].mean()), auc(*held)))
    return tuple(found)


def _whitening(sides: Sequence[Array], used: NDArray[np.int64]) -> tuple[Array, Array]:
    """Scale ``[component used]``, and ``[component used, dimension]``: scale and correlations within the sides taken out."""
    residual = np.concatenate([m - m.mean(0) for m in sides])
    within = np.sqrt((residual**2).sum(0) / (len(residual) - len(sides)))
    scale = np.maximum(within, [_LEAST_SCALE * (COMPONENTS[i].high - COMPONENTS[i].low) for i in used])
    standard = residual / scale
    correlation = (1 - _SHRINKAGE) * standard.T @ standard / (len(residual) - len(sides)) + _SHRINKAGE * np.eye(len(used))
    values, vectors = np.linalg.eigh(correlation)
    return scale, (vectors / np.sqrt(values)) @ vectors.T / scale[:, None]


def unit(direction: Array) -> Array:
    """Vectors ``[…, dimension]`` at length 1; zero stays zero."""
    size = np.linalg.norm(direction, axis=-1, keepdims=True)
    return np.divide(direction, size, out=np.zeros_like(direction), where=size > 0)


def _parts(frames: Sequence[str], n: int) -> NDArray[np.int64]:
    """The part of each of ``n`` items: whole frames, or items where there is one frame only, or none is known."""
    names = list(dict.fromkeys(frames))
    if len(names) < 2:
        return np.arange(n) % _PARTS
    return np.array([names.index(f) % _PARTS for f in frames])


def _held_out(planted: Array, null: Array, of_planted: NDArray[np.int64], of_null: NDArray[np.int64]) -> tuple[Array, Array]:
    """Positions of all items on axes that were made without their part, about the middle of the items that made it."""
    scores = np.empty(len(planted)), np.empty(len(null))
    for part in range(_PARTS):
        one, other = planted[of_planted != part], null[of_null != part]
        if not len(one) or not len(other):  # all frames of a side are in this part
            one, other = (one if len(one) else planted), (other if len(other) else null)
        axis, middle = unit(one.mean(0) - other.mean(0)), (one.mean(0) + other.mean(0)) / 2
        scores[0][of_planted == part] = (planted[of_planted == part] - middle) @ axis
        scores[1][of_null == part] = (null[of_null == part] - middle) @ axis
    return scores
