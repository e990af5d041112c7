"""Edits: what may be changed in a forward, as data.

1. Every edit is a frozen dataclass that names a place, the entries it acts on, and the value. The instrument applies them; nothing else does.
2. **Order.** At one place, edits act in the order given, each on what the one before it left. Between places the order is that of the forward, whatever
   the order of the list: positions, the block's input, the frozen norm, q, k and v, the pattern, z, the attention's output, and so on. Within a layer's
   attention: biases and masks are added to the scores (they add up, so their order is free), softmax, then every ``PatternReplace``, then every
   ``PatternScale``, each kind in the order given. A read at the same place sees the edited value.
3. **Which entries.** ``rows``, ``heads``, ``keys``, ``layers`` and ``batch`` are indices: negative counts from the end, ``None`` is all, and an empty index
   is none, so that the edit does nothing. ``batch`` restricts an edit to some sequences of the batch: many different edits run in one forward.
4. **Values** take dtype and device of what they change and broadcast over the selected entries. NaN and infinity are refused (a bias may be −∞).

Positions count in the padded sequence that the model receives. ``rows`` and ``keys`` do too.

Where ``s`` are the scores, ``p = softmax(s)``: a bias ``b`` on keys K multiplies their odds by ``e^b``; a mask is ``b = −∞``; ``PatternScale`` multiplies ``p``
itself, and with ``renormalise`` equals the bias ``ln factor`` (exactly, where the row has no sink logit).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from symbolic_residue.errors import EditError
from symbolic_residue.instrument._apply import apply_tensor_edits, as_index, check_finite, fit, resolve
from symbolic_residue.types import Point

__all__ = [
    "NORM_NAMES",
    "Add",
    "AttentionBias",
    "AttentionEdit",
    "AttentionMask",
    "Edit",
    "FreezeNorm",
    "HeadReplace",
    "HeadScale",
    "Index",
    "MeanAblate",
    "PatternReplace",
    "PatternScale",
    "Positions",
    "Replace",
    "Resample",
    "ResampleAblate",
    "Scale",
    "Steer",
    "ZeroAblate",
    "apply_tensor_edits",
    "resolve",
]

Index = Sequence[int] | None
"""Entries of one axis: negative counts from the end, None is all, empty is none."""

NORM_NAMES = ("pre_attn_norm", "pre_mlp_norm", "post_attn_norm", "post_mlp_norm")
"""Norms of a block; each takes its layer, as in ``pre_attn_norm.3``. The last norm is ``final_norm``."""

SUM_TOLERANCE = 1e-3
"""How far above 1 a row of a given attention pattern may sum (rounding of patterns kept in half precision)."""


def _freeze_indices(edit: Any, *names: str) -> None:
    """Indices as tuples: the edit keeps its meaning whatever happens to the caller's list."""
    for name in names:
        object.__setattr__(edit, name, as_index(getattr(edit, name), name))


@dataclass(frozen=True, eq=False)
class _TensorEdit:
    """An edit of the tensor at one point: ``[batch, query, d]``, or ``[batch, query, head, d_head]`` at z, q, k, v."""

    point: str
    rows: Index = None
    heads: Index = None
    batch: Index = None

    def __post_init__(self) -> None:
        _freeze_indices(self, "rows", "heads", "batch")


@dataclass(frozen=True, eq=False)
class Add(_TensorEdit):
    """Add ``value`` (broadcast over the selected entries), e.g. a steering vector ``[d_model]``."""

    value: Tensor | float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(self.value, f"The value for {self.point}")

    def act(self, chosen: Tensor, point: Point) -> Tensor:
        """``chosen + value``."""
        return chosen + fit(self.value, chosen, point)


@dataclass(frozen=True, eq=False)
class Replace(_TensorEdit):
    """Put ``value`` there (broadcast over the selected entries): activation patching, zero and mean ablation."""

    value: Tensor | float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(self.value, f"The value for {self.point}")

    def act(self, chosen: Tensor, point: Point) -> Tensor:
        """``value``."""
        return fit(self.value, chosen, point)


@dataclass(frozen=True, eq=False)
class Resample(Replace):
    """Replace by another sequence's activation, drawn for each selected sequence by a seeded generator (made by ``ResampleAblate``).

    The draw depends on the seed, the number of donors and the number of selected sequences only, so edits at several points with one seed
    take all of a sequence's values from one and the same donor. :meth:`draws` says which.

    Attributes:
        value: the donors, ``[n, row, d]``, at a head point ``[n, row, head, d_head]``: other runs' tensors at the selected rows (and heads). A row or
            head axis of 1 stands for all.
        seed: of the draw, with replacement.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.value, Tensor) or self.value.dim() < 3 or not len(self.value):
            shape = tuple(self.value.shape) if isinstance(self.value, Tensor) else self.value
            raise EditError(f"Donors for {self.point} are {shape}.", todo="Give a tensor [n, row, …] with at least one donor.")

    def draws(self, n: int) -> tuple[int, ...]:
        """Which donor each of ``n`` selected sequences gets."""
        assert isinstance(self.value, Tensor)
        generator = torch.Generator().manual_seed(self.seed)
        return tuple(torch.randint(len(self.value), (n,), generator=generator).tolist())

    def act(self, chosen: Tensor, point: Point) -> Tensor:
        """The drawn donors' values."""
        assert isinstance(self.value, Tensor)
        if self.value.dim() != chosen.dim():
            raise EditError(
                f"Donors of shape {tuple(self.value.shape)} do not fit {point}, where {tuple(chosen.shape)} entries are selected."
            )
        return fit(self.value[list(self.draws(len(chosen)))], chosen, point)


@dataclass(frozen=True, eq=False)
class Scale(_TensorEdit):
    """Multiply by ``factor``; 1 does nothing, bit for bit."""

    factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(self.factor, f"The factor for {self.point}")

    def act(self, chosen: Tensor, point: Point) -> Tensor:
        """``chosen · factor``."""
        return chosen * self.factor


def HeadScale(layer: int, head: int, factor: float, *, rows: Index = None, batch: Index = None) -> Scale:
    """Scale one head's output (``z``); 0 knocks it out, 1 does nothing."""
    return Scale(f"z.{layer}", rows=rows, heads=(head,), batch=batch, factor=factor)


def HeadReplace(layer: int, head: int, value: Tensor, *, rows: Index = None, batch: Index = None) -> Replace:
    """Replace one head's output (``z``, ``[d_head]`` or ``[batch, row, 1, d_head]``): mean ablation with its mean, patching with another run's."""
    return Replace(f"z.{layer}", rows=rows, heads=(head,), batch=batch, value=value)


def Steer(
    point: str,
    direction: Tensor,
    strength: float,
    *,
    rows: Index = None,
    heads: Index = None,
    batch: Index = None,
    normalise: bool = True,
) -> Add:
    """Add ``strength`` times a direction.

    Args:
        point: where.
        direction: ``[d]``, or any shape that broadcasts over the selected entries, with ``d`` last.
        strength: with ``normalise`` the length of what is added, in the activation's units; else a factor on the direction as it is.
        rows: rows that are steered; with heads and batch as everywhere.
        heads: heads, at z, q, k, v.
        batch: sequences.
        normalise: divide the direction by its Euclidean length first.

    Raises:
        EditError: a direction of length zero under ``normalise``, or NaN or infinity.
    """
    check_finite(direction, f"The direction for {point}")
    check_finite(strength, f"The strength for {point}")
    if normalise:
        length = direction.double().norm(dim=-1, keepdim=True)
        if not bool((length > 0).all()):
            raise EditError(f"The direction for {point} has length zero.", todo="Give another, or normalise=False.")
        direction = (direction.double() / length).to(torch.promote_types(direction.dtype, torch.float32))
    return Add(point, rows=rows, heads=heads, batch=batch, value=direction * strength)


def ZeroAblate(point: str, *, rows: Index = None, heads: Index = None, batch: Index = None) -> Replace:
    """Put zeros there."""
    return Replace(point, rows=rows, heads=heads, batch=batch, value=0.0)


def MeanAblate(point: str, mean: Tensor, *, rows: Index = None, heads: Index = None, batch: Index = None) -> Replace:
    """Put a mean there: ``[d]``, ``[row, d]`` for a mean of each selected row, or with a head axis at head points (``mean_activation`` makes it)."""
    return Replace(point, rows=rows, heads=heads, batch=batch, value=mean)


def ResampleAblate(
    point: str, donor: Tensor, seed: int, *, rows: Index = None, heads: Index = None, batch: Index = None
) -> Resample:
    """Put a randomly drawn donor there, one for each selected sequence: ``donor [n, row, …]``; the edit's ``draws`` tells which donors."""
    return Resample(point, rows=rows, heads=heads, batch=batch, value=donor, seed=seed)


@dataclass(frozen=True)
class AttentionBias:
    """Add ``value`` to the scores (before softmax) of chosen rows on chosen keys; +ln c multiplies the odds of a key by c.

    Raises:
        EditError: NaN or +∞; an index that holds no integers.
    """

    value: float
    keys: Sequence[int]
    rows: Index = None
    layers: Index = None
    heads: Index = None
    batch: Index = None

    def __post_init__(self) -> None:
        if self.value != self.value or self.value == float("inf"):
            raise EditError(f"An attention bias of {self.value} is not defined.")
        _freeze_indices(self, "keys", "rows", "layers", "heads", "batch")
        if self.keys is None:
            raise EditError("An attention bias needs its keys.", why="The same bias on every key changes nothing.")


def AttentionMask(
    keys: Sequence[int], rows: Index = None, layers: Index = None, heads: Index = None, batch: Index = None
) -> AttentionBias:
    """Hide keys from rows: the bias −∞. A row's own key may be hidden, but never every key that it can see."""
    return AttentionBias(float("-inf"), keys, rows, layers, heads, batch)


@dataclass(frozen=True)
class PatternScale:
    """Multiply the attention weights (after softmax) of chosen rows on chosen keys by ``factor``; 1 does nothing.

    With ``renormalise`` the row is scaled back to the sum that it had before (1, or less where the family has sink logits): factor 0 is then the
    mask, factor c the bias ``ln c``. With ``renormalise="others"`` the keys have exactly ``factor`` of their weight afterwards, and the difference goes to the
    row's other keys in proportion to theirs. Without it, the row's sum changes: weight is taken away from keys and given to none.

    Raises:
        EditError: a factor that is negative, NaN or infinite; an index that holds no integers.
    """

    factor: float
    keys: Sequence[int]
    rows: Index = None
    layers: Index = None
    heads: Index = None
    batch: Index = None
    renormalise: bool | Literal["others"] = False

    def __post_init__(self) -> None:
        check_finite(self.factor, "The factor on attention weights")
        if self.renormalise not in (True, False, "others"):
            raise EditError(f"renormalise={self.renormalise!r} is unknown.", todo="Use True, False or 'others'.")
        if self.factor < 0:
            raise EditError(
                f"Attention weights cannot be scaled by {self.factor}.",
                why="Weights below zero are no distribution: entropy and masses are not defined on them.",
                todo="Scale the head's output instead (HeadScale).",
            )
        _freeze_indices(self, "keys", "rows", "layers", "heads", "batch")
        if self.keys is None:
            raise EditError(
                "Scaling attention weights needs the keys.", todo="For all keys alike, scale the head's output: HeadScale."
            )


@dataclass(frozen=True, eq=False)
class PatternReplace:
    """Freeze the attention pattern: the given weights are used in place of softmax's.

    Attributes:
        weights: ``[batch or 1, head or 1, row, key]`` over the selected sequences, heads and rows and all keys; with a leading ``layer`` axis when
            several layers are named (``AttentionTable["weights"]`` of a read of the same rows and layers fits). Values are finite and not negative.
            A row may sum to less than 1 (a pattern with a sink; see :meth:`sums`), to more than ``1 + 1e-3`` it may not.
        rows: the rows along the row axis; None is all.
        layers: the layers along the layer axis.

    Raises:
        EditError: NaN, infinity, negative weights, sums above 1, a layer axis that does not fit ``layers``.
    """

    weights: Tensor
    rows: Index
    layers: Sequence[int]
    heads: Index = None
    batch: Index = None

    def __post_init__(self) -> None:
        _freeze_indices(self, "rows", "layers", "heads", "batch")
        if self.layers is None:
            raise EditError("Replacing attention patterns needs the layers.", todo="Write layers=(3,).")
        several = len(self.layers) > 1
        shape = tuple(self.weights.shape)
        fits = (len(shape) == 5 and shape[0] == len(self.layers)) or (len(shape) == 4 and not several)
        if self.layers and not fits:
            wanted = f"[{len(self.layers)}, batch or 1, head or 1, row, key]" if several else "[batch or 1, head or 1, row, key]"
            raise EditError(f"Attention weights of shape {shape} do not fit {len(self.layers)} layers.", todo=f"Give {wanted}.")
        check_finite(self.weights, "A given attention pattern")
        if bool((self.weights < 0).any()):
            raise EditError("A given attention pattern holds negative weights.")
        top = float(self.sums().max()) if self.weights.numel() else 0.0
        if top > 1 + SUM_TOLERANCE:
            raise EditError(
                f"A row of the given attention pattern sums to {top:.4g}, more than 1.",
                why="Softmax gives at most 1; more would scale the head's output unseen.",
                todo="Divide by the row's sum; for a larger output use HeadScale.",
            )

    def sums(self) -> Tensor:
        """What each row sums to, ``[layer?, batch or 1, head or 1, row]`` in float64: less than 1 where weight went to a sink."""
        return self.weights.double().sum(-1)

    def of_layer(self, position: int) -> Tensor:
        """The weights of the layer at this place in ``layers``, ``[batch or 1, head or 1, row, key]``."""
        return self.weights[position] if self.weights.dim() == 5 else self.weights


@dataclass(frozen=True, eq=False)
class FreezeNorm:
    """Use given denominators in a norm instead of its own, so that it becomes linear in its input.

    ``norm(x) = γ ⊙ x · s + β`` with ``s = 1/√(mean(x²) + ε)`` taken from another run (``norm_scales``). In a LayerNorm the mean stays live: it is
    linear in ``x`` already, ``norm(x) = γ ⊙ (x − mean(x)) · s + β``, so the result is linear (RMS) or affine (with β) either way.

    Attributes:
        norm: ``pre_attn_norm.L``, ``pre_mlp_norm.L``, ``post_attn_norm.L``, ``post_mlp_norm.L`` or ``final_norm``. Where two names are one module
            (parallel blocks), freezing either freezes it.
        scale: ``s``, positive, ``[batch or 1, row]`` (or ``[row]``) over the selected sequences and rows.

    Raises:
        EditError: an unknown norm; a scale that is not positive and finite, or has another shape.
    """

    norm: str
    scale: Tensor
    rows: Index = None
    batch: Index = None

    def __post_init__(self) -> None:
        _freeze_indices(self, "rows", "batch")
        if not re.fullmatch(rf"(?:{'|'.join(NORM_NAMES)})\.\d+|final_norm", self.norm):
            raise EditError(f"{self.norm!r} is no norm.", todo=f"Use one of {', '.join(f'{n}.L' for n in NORM_NAMES)}, final_norm.")
        check_finite(self.scale, f"The scale for {self.norm}")
        if self.scale.dim() not in (1, 2):
            raise EditError(f"The scale for {self.norm} has shape {tuple(self.scale.shape)}.", todo="Give [batch or 1, row].")
        if bool((self.scale <= 0).any()):
            raise EditError(f"The scale for {self.norm} holds zero or negative numbers.", why="1/√(mean(x²) + ε) is positive.")


@dataclass(frozen=True, eq=False)
class Positions:
    """Override the position ids, ``[batch or 1, query]`` (a jump in positions without any text).

    Positions may be fractional where the family rotates queries and keys (rope): an angle exists for every real number. Learned positions (gpt2, opt)
    must be whole; others are refused when the edit meets the model.

    Raises:
        EditError: NaN, infinity, or ids that are no numbers.
    """

    position_ids: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.position_ids, Tensor) or self.position_ids.dtype == torch.bool:
            raise EditError("Position ids are a tensor of numbers, [batch or 1, query].")
        check_finite(self.position_ids, "The position ids")


AttentionEdit = AttentionBias | PatternScale | PatternReplace
"""Edits inside the attention function."""

Edit = Add | Replace | Scale | AttentionBias | PatternScale | PatternReplace | FreezeNorm | Positions
