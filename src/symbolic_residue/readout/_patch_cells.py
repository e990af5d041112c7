"""Cells of a patching sweep: layer × component × head × position class; which exist, which do not, and whether two models can be patched.

1. A component is a point's kind. ``a+b`` patches both at once (``q+k``: where heads look; ``v``: what they move).
2. ``z``, ``q``, ``k`` and ``v`` have a cell for each of their heads (key-value heads at ``k`` and ``v``), or one for all together; joint components
   always take all heads together.
3. What a layer does not have (``resid_mid`` in a parallel block, attention in a recurrent layer of a hybrid) is listed with the reason, and never
   counted as zero.
4. ``q`` and ``k`` are rotated by their position, so a row's value means something else at another row: pairs with shifted rows are refused there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TYPE_CHECKING

import polars as pl

from symbolic_residue.errors import ConfigError, ModelError, ReadError
from symbolic_residue.readout._patch_pairs import PatchPair
from symbolic_residue.types import HEAD_POINTS

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument

__all__ = ["CELL_KEY", "Cell", "Heads", "NotApplicable", "check_same_architecture", "plan_cells"]

CELL_KEY = ["layer", "component", "head", "positions"]
"""Columns that name a cell; ``head`` is null where the component has none, or takes all."""

Heads = Literal["each", "together"]
NotApplicable = list[tuple[int, str, str]]
"""``(layer, component, reason)``."""

_PATCHABLE = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mixer_out", "z", "q", "k", "v")
_SIZES = ("family", "n_layers", "n_heads", "n_kv_heads", "d_model", "d_head", "d_mlp", "vocab_size", "windows", "logit_softcap")
_NOT_THE_ARCHITECTURE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache"}


@dataclass(frozen=True, order=True)
class Cell:
    """What one patch replaces: a component of a layer, at the rows of a position class."""

    layer: int
    component: str
    head: int | None
    positions: str

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of its points."""
        return tuple(self.component.split("+"))

    @property
    def points(self) -> tuple[str, ...]:
        """The points that it replaces together."""
        return tuple(f"{kind}.{self.layer}" for kind in self.kinds)

    @property
    def key(self) -> tuple[int, str, int, str]:
        """A key that sorts, with −1 for no head."""
        return (self.layer, self.component, -1 if self.head is None else self.head, self.positions)


def plan_cells(
    instrument: Instrument,
    pairs: Sequence[PatchPair],
    *,
    layers: Sequence[int] | None,
    components: Sequence[str],
    heads: Heads,
    only: pl.DataFrame | None = None,
) -> tuple[list[Cell], NotApplicable]:
    """The cells of a sweep in the order in which they run, and what is not applicable.

    Args:
        instrument: of the target model.
        pairs: all with the same position classes.
        layers: which; all when None (negative ones count from the end).
        components: kinds of points, or several joined by ``+``.
        heads: a cell for each head, or one for all.
        only: keep the cells whose ``CELL_KEY`` columns are in this frame.

    Raises:
        ConfigError: no pair, names that repeat, classes that differ, unknown components, shifted rows at q or k, cells that are not there.
        ReadError: nothing of what was asked exists in this model.
    """
    _check_pairs(pairs)
    parts = instrument.parts
    if heads not in ("each", "together"):
        raise ConfigError(f"heads={heads!r} is unknown.", todo="Use 'each' or 'together'.")
    if not components or len(set(components)) != len(components):
        raise ConfigError(
            "Components must be given, each once.", todo="For instance components=('resid_pre', 'attn_out', 'mlp_out')."
        )
    for kind in {kind for component in components for kind in component.split("+")}:
        if kind not in _PATCHABLE:
            raise ConfigError(
                f"{kind!r} is no component that can be patched.", todo=f"Use {', '.join(_PATCHABLE)}, or some joined by '+'."
            )
        shifted = any(s != t for pair in pairs for rows in pair.rows.values() for s, t in rows)
        if kind in ("q", "k") and shifted and parts.position_embed is None:
            raise ConfigError(
                f"{kind} cannot be patched between rows at different positions.",
                why="Queries and keys are rotated by their position, so the same vector means something else at another row.",
                todo="Use prompts whose rows are at the same positions, or patch z, v or the residual stream.",
            )
    chosen = list(range(parts.n_layers)) if layers is None else [_layer(i, parts.n_layers) for i in layers]
    counts = {"z": parts.n_heads, "q": parts.n_heads, "k": parts.n_kv_heads, "v": parts.n_kv_heads}
    cells: list[Cell] = []
    missing: NotApplicable = []
    for layer in sorted(set(chosen)):
        for component in components:
            reason = _why_not(instrument, layer, component)
            if reason:
                missing.append((layer, component, reason))
                continue
            each = component in HEAD_POINTS and heads == "each"
            numbers: list[int | None] = list(range(counts[component])) if each else [None]
            cells += [Cell(layer, component, head, label) for label in pairs[0].rows for head in numbers]
    if only is not None:
        cells = _only(cells, only)
    if not cells:
        raise ReadError(
            "Nothing of what is to be patched exists in this model.",
            why="; ".join(sorted({reason for _, _, reason in missing})),
            todo="Choose other components or layers.",
        )
    return cells, missing


def check_same_architecture(target: Instrument, source: Instrument) -> None:
    """Two models whose activations mean the same places.

    Raises:
        ModelError: sizes, config entries, dtypes or tokenizers differ; the message says which.
    """
    if source is target:
        return
    differing = [
        f"{name} ({_short(getattr(source.parts, name, None))} and {_short(getattr(target.parts, name, None))})"
        for name in _SIZES
        if getattr(source.parts, name, None) != getattr(target.parts, name, None)
    ]
    a, b = (_architecture(instrument) for instrument in (source, target))
    if not differing:
        differing = [
            f"config {name} ({_short(a.get(name))} and {_short(b.get(name))})"
            for name in sorted(a | b)
            if a.get(name) != b.get(name)
        ]
    dtypes = [next(instrument.model.parameters()).dtype for instrument in (source, target)]
    if dtypes[0] != dtypes[1]:
        differing.append(f"dtype ({dtypes[0]} and {dtypes[1]})")
    vocabularies = [_vocabulary(instrument) for instrument in (source, target)]
    if None not in vocabularies and vocabularies[0] != vocabularies[1]:
        differing.append("tokenizer vocabulary")
    if differing:
        raise ModelError(
            f"Source and target model differ in: {', '.join(differing)}.",
            why="An activation is put at the same place of the other model, so both must have the same places and read the same ids.",
            todo="Patch between checkpoints or adapters of one architecture with one tokenizer.",
        )


def _check_pairs(pairs: Sequence[PatchPair]) -> None:
    if not pairs:
        raise ConfigError("There is no pair to patch.", todo="Make some with patch_pair or patch_pairs.")
    names = [pair.name for pair in pairs]
    if len(set(names)) != len(names):
        raise ConfigError("Pair names repeat.", todo="Give every pair its own name.")
    for pair in pairs:
        if list(pair.rows) != list(pairs[0].rows):
            raise ConfigError(
                f"Pair {pair.name!r} has the position classes {list(pair.rows)}, pair {names[0]!r} has {list(pairs[0].rows)}.",
                todo="Give all pairs the same classes.",
            )


def _layer(layer: int, n_layers: int) -> int:
    if not -n_layers <= layer < n_layers:
        raise ConfigError(f"There is no layer {layer} in a model of {n_layers} layers.")
    return layer % n_layers


def _why_not(instrument: Instrument, layer: int, component: str) -> str | None:
    """Why a layer has no such component, or None where it has."""
    parts = instrument.parts.layers[layer]
    return next((reason for kind in component.split("+") if (reason := parts.absent(kind))), None)  # type: ignore[arg-type]


def _only(cells: Sequence[Cell], only: pl.DataFrame) -> list[Cell]:
    lacking = [name for name in CELL_KEY if name not in only.columns]
    if lacking:
        raise ConfigError(f"The frame of cells lacks the columns {lacking}.", todo=f"It needs {CELL_KEY}.")
    wanted = {Cell(*row).key for row in only.select(CELL_KEY).unique().iter_rows()}
    unknown = wanted - {cell.key for cell in cells}
    if unknown:
        raise ConfigError(
            f"{len(unknown)} of the cells asked for are not in this sweep, {min(unknown)} among them.",
            todo="Give the layers, components and position classes that they come from.",
        )
    return [cell for cell in cells if cell.key in wanted]


def _architecture(instrument: Instrument) -> dict[str, Any]:
    """The config's entries that shape the computation."""
    config = instrument.model.config.to_diff_dict()  # type: ignore[union-attr, operator]
    return {name: value for name, value in config.items() if name not in _NOT_THE_ARCHITECTURE and not name.endswith("token_id")}


def _vocabulary(instrument: Instrument) -> dict[str, int] | None:
    tokenizer = getattr(instrument.loaded, "tokenizer", None)
    return None if tokenizer is None else tokenizer.get_vocab()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "…"
