"""A shell's axis: from its null items to its planted ones, in components that every prompt has.

1. A shell's benchmark items are read as plain prompts (``read_shell``), so that they and natural prompts are measured in the same way.
2. *Components*: those of the groups asked for that are measured in every item of every shell and in every tested prompt. Fewer than three are no
   signature.
3. *Scale*: each component's standard deviation within planted and within null items, pooled over the shells, and at least 0.02 of its range (nulls may be
   so alike that a component hardly varies). Components hang together; the pooled correlations, shrunk by a fifth to none, are taken out (whitening), so
   that a few strong common factors do not decide what is similar. The tested prompts take no part in either.
4. *Axis*: mean of planted − mean of null in that space, at unit length. A position along it has no origin of its own: only differences count.
5. *Held out*: the items are cut into five parts by frame (by item where a side has one frame), each part is scored on the axis of the other four. From
   these scores come the AUC of planted against null and the *shift*, mean planted − mean null: the shell's own unit of similarity. A shell whose AUC
   interval does not clear ½ has no signature, and nothing is similar to it.

"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import Instrument
from symbolic_residue.shells._base import Progress, quiet
from symbolic_residue.shells._registry import shell_class
from symbolic_residue.shells.signatures._components import COMPONENTS, READABLE_GROUPS
from symbolic_residue.shells.signatures._read import read_signatures
from symbolic_residue.shells.signatures._signature import Signature, signature_matrix
from symbolic_residue.stats import auc, Estimate

__all__ = ["Axes", "ShellSignature", "make_axes", "read_shell", "shell_prompts", "shell_signature", "unit"]

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
        planted_frames, null_frames: the frame of each item: items of one frame are held out together.
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
    """A shell's signature from its packaged benchmark, each item read as a plain prompt.

    Args:
        instrument: the model's instrument.
        shell: a key of ``SHELLS``.
        split: whose items are read.
        most: at most so many of each side, spread over the split.
        progress: told how far it is.

    Raises:
        ConfigError: no such shell, or one without a benchmark of plain prompts.
    """
    planted, null = _items(shell, split, most)
    together = planted + null
    found = read_signatures(
        instrument, [str(text_of(item)) for item in together], names=[item.id for item in together], progress=progress
    )
    n = len(planted)
    frames = [item.frame or item.kind for item in together]
    return shell_signature(shell, found[:n], found[n:], planted_frames=frames[:n], null_frames=frames[n:])


def shell_prompts(shell: str, *, split: str = "calibration", most: int | None = None) -> tuple[list[str], list[str]]:
    """The planted and the null items of a shell's packaged benchmark, as texts.

    Args:
        shell: a key of ``SHELLS``.
        split: whose items.
        most: at most so many of each side, spread over the split.

    Raises:
        ConfigError: no such shell, or one without a benchmark of plain prompts.
    """
    planted, null = _items(shell, split, most)
    return [str(text_of(item)) for item in planted], [str(text_of(item)) for item in null]


def _items(shell: str, split: str, most: int | None) -> tuple[list[Any], list[Any]]:
    items = [item for item in shell_class(shell).items() if item.split == split and text_of(item) is not None]
    if not items:
        raise ConfigError(
            f"The items of {shell} are no plain prompts.",
            why="The shell makes its prompts of them, so the text that a reader is shown is not what the model reads.",
            todo="Give the signatures of such prompts, or of the shell's runs, to shell_signature.",
        )
    chosen = []
    for null in (False, True):
        side = [item for item in items if item.null is null]
        if most is not None and len(side) > most:
            side = [side[int(i)] for i in np.linspace(0, len(side) - 1, most).round()]
        chosen.append(side)
    return chosen[0], chosen[1]


def text_of(item: Any) -> str | None:
    """What the model reads of an item: its ``prompt`` or ``text``; None where the shell makes a prompt of it (padding, a conversation, a pair)."""
    return next((value for value in (getattr(item, name, None) for name in ("prompt", "text")) if isinstance(value, str)), None)


@dataclass(frozen=True, eq=False)
class Axes:
    """The axes of several shells on shared components.

    Attributes:
        components: indices into ``COMPONENTS``.
        scale: ``[component used]`` standard deviation within planted and within null items.
        whitening: ``[component used, dimension]``: what a vector of components is multiplied with.
        axes: ``[shell, dimension]`` of unit length.
        shift: ``[shell]`` mean planted − mean null along the axis, held out.
        separation: AUC of planted against null, held out, one a shell.
    """

    components: NDArray[np.int64]
    scale: Array
    whitening: Array
    axes: Array
    shift: Array
    separation: tuple[Estimate, ...]

    def scaled(self, values: Array) -> Array:
        """``[…, component]`` → ``[…, dimension]`` in the axes' space."""
        return values[..., self.components] @ self.whitening

    @property
    def has_signature(self) -> NDArray[np.bool_]:
        """``[shell]``: whether planted items stand clear of null ones, held out."""
        return np.array([e.above(0.5) for e in self.separation]) & (self.shift > 0)


def make_axes(shells: Sequence[ShellSignature], tested: Sequence[Array], groups: tuple[str, ...] = READABLE_GROUPS) -> Axes:
    """Axes on the components that all shells' items and all tested prompts have.

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
    everything = [*(m for s in shells for m in (s.planted, s.null)), *tested]
    known = np.all([~np.isnan(m).any(0) for m in everything], axis=0)
    used = np.array([i for i, c in enumerate(COMPONENTS) if c.group in groups and known[i]], dtype=np.int64)
    if len(used) < _FEWEST_COMPONENTS:
        raise ConfigError(
            f"{len(used)} components are measured in all of these.", why=f"A comparison needs {_FEWEST_COMPONENTS} or more.",
            todo="Compare signatures that were made in the same way, such as readings with readings.",
        )  # fmt: skip
    scale, whitening = _whitening([m[:, used] for s in shells for m in (s.planted, s.null)], used)
    axes, shift, separation = [], [], []
    for s in shells:
        planted, null = s.planted[:, used] @ whitening, s.null[:, used] @ whitening
        axes.append(unit(planted.mean(0) - null.mean(0)))
        held = _held_out(planted, null, _parts(s.planted_frames), _parts(s.null_frames))
        separation.append(auc(*held))
        shift.append(held[0].mean() - held[1].mean())
    return Axes(used, scale, whitening, np.stack(axes), np.array(shift), tuple(separation))


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


def _parts(frames: Sequence[str]) -> NDArray[np.int64]:
    """The part of each item: whole frames, or items where there is one frame only."""
    names = list(dict.fromkeys(frames))
    if len(names) < 2:
        return np.arange(len(frames)) % _PARTS
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
