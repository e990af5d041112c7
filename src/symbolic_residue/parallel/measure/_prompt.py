"""One prompt measured: all arms of its tree, as tables.

Arms (see ``_arms``): ``shared`` (isolated, all of a set at one position), ``offset ε``, ``unique``, ``moved``, ``visible`` (siblings see each other),
``singleton``, ``unrelated`` (siblings other than the top one replaced by random tokens), ``expanded`` and ``unexpanded`` (a seeded coin for each set
decides whether it stands whole or as its top token alone; a second run takes the other side of each coin, so every set is seen both ways among sets drawn
alike), ``standard`` (top path alone).

Contrasts, arm against reference, over the looks that both have:

* ``moved``/``unique``, ``shared``/``offset ε``: sharing a position, at equal distance, with the same tokens. Sets that ε would spread over a whole position
  are left out.
* ``shared``/``unique``: the same with distances as they come, for comparison.
* ``shared``/``visible``: isolation. ``shared``/``singleton``: everything that company does. ``shared``/``unrelated``, ``expanded``/``unexpanded``,
  ``shared``/``standard``: the top token among its siblings, among random tokens, alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, TYPE_CHECKING

import torch

from symbolic_residue.errors import PromptError
from symbolic_residue.parallel._rotary import check_rotary
from symbolic_residue.parallel._tree import Tree
from symbolic_residue.parallel.measure._arms import arrange, Arranged, sets_of, Sight
from symbolic_residue.parallel.measure._config import MeasureConfig
from symbolic_residue.parallel.measure._forms import collapse, competition, log_ratios
from symbolic_residue.parallel.measure._output import output_row
from symbolic_residue.parallel.measure._pruned import pruning_rows
from symbolic_residue.parallel.measure._published import published_rows
from symbolic_residue.parallel.measure._replay import EditsOf, replay, Seen
from symbolic_residue.parallel.measure._scaling import scaling_rows
from symbolic_residue.parallel.measure._spread import entropy_rows, head_rows, induction
from symbolic_residue.parallel.measure._trace import TRACE_READS, trace_rows
from symbolic_residue.parallel.measure._within import intra_rows, set_slots
from symbolic_residue.stats import generator

if TYPE_CHECKING:
    import polars as pl

    from symbolic_residue.instrument import Instrument

__all__ = ["TABLES", "measure_prompt"]

TABLES: dict[str, tuple[str, ...]] = {
    "parallel_arms": ("arm", "reference", "form", "layer", "head", "value", "n"),
    "parallel_competition": (
        *("form", "layer", "head", "total", "expected", "drop", "by_competition", "beyond", "excess", "n", "sets"),
    ),
    "parallel_output": ("arm", "kl", "nll", "agree", "n"),
    "parallel_entropy": ("arm", "layer", "entropy", "most", "rest", "rest_most", "n"),
    "parallel_heads": ("layer", "head", "sink", "local", "distance", "entropy_share", "induction", "control", "kind", "n"),
    "parallel_intra": ("mode", "size", "layer", "query_rank", "key_rank", "value", "n"),
    "parallel_published": ("arm", "keys", "sets", "others", "value", "naive_p", "samples"),
    "parallel_bias": ("bias", "ratio", "kl", "nll", "n"),
    "parallel_scaling": ("size", "layer", "total", "expected", "drop", "by_competition", "beyond"),
    "parallel_trace": ("arm", "step", "rank", "token", "layer", "received", "value_norm", "write", "lens"),
    "parallel_pruning": ("step", "rank", "probability", "judged", "attention", "pruned"),
}
"""Table → its columns, what :func:`measure_prompt` returns."""

_WHOLE = {"layer", "head", "n", "sets", "samples", "size", "step", "rank", "query_rank", "key_rank"}
_TEXT = {"arm", "reference", "form", "kind", "mode", "keys", "token"}


def measure_prompt(
    instrument: Instrument,
    tree: Tree,
    config: MeasureConfig | None = None,
    *,
    edits: EditsOf | None = None,
    checked: bool = False,
) -> dict[str, pl.DataFrame]:
    """Measure one tree under all arms.

    Args:
        instrument: of the model that grew the tree.
        tree: the tokens. How it was placed and whether it was pruned does not matter: arms place all of its tokens anew.
        config: how.
        edits: edits of every forward (what the model is made to do in an arrangement); rows and keys count in slots.
        checked: the model's positions were checked before.

    Returns:
        Table → frame (:data:`TABLES`), tables without rows included.

    Raises:
        PromptError: no set that a later step looks at, unknown ids, or positions beyond the model's context.
        UnsupportedModelError: positions that cannot be shared.
        InstrumentError: a model in training mode.
    """
    config = config or MeasureConfig()
    if not sets_of(tree):
        raise PromptError(
            "The tree has no set of several tokens with a step after it.",
            why="Nothing shares a position, so there is nothing to measure.",
            todo="Grow it with a lower threshold or for more steps.",
        )
    size = instrument.parts.vocab_size
    if any(not 0 <= t < size for t in (*tree.prompt, *(t.id for step in tree.steps for t in step.tokens))):
        raise PromptError(f"The tree holds a token id outside of the model's 0 to {size - 1}.", why="Another model grew it.")
    if not checked:
        check_rotary(instrument)
    run = _Run(instrument, tree, config, edits)
    run.all()
    return {name: _frame(name, rows) for name, rows in run.rows.items()}


class _Run:
    """All arms of one tree."""

    def __init__(self, instrument: Instrument, tree: Tree, config: MeasureConfig, edits: EditsOf | None) -> None:
        self.instrument, self.tree, self.config, self.edits = instrument, tree, config, edits
        self.n = len(tree.prompt)
        # Of the prompt too: coins that fall alike in all prompts would be one coin.
        self.seed = 2 * (zlib.crc32(" ".join(map(str, tree.prompt)).encode()) + 2**32 * config.seed)
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}

    def arranged(self, **how: Any) -> Arranged:
        limit = self.instrument.parts.max_context
        return arrange(
            self.tree, reach=self.config.reach, most=self.config.most_ranks, limit=limit, device=self.instrument.device, **how
        )

    def look(self, arranged: Arranged, **how: Any) -> Seen:
        return replay(self.instrument, arranged, edits=self.edits, **how)

    def all(self) -> None:
        """Every arm; what is not needed any more is let go."""
        tree, config = self.tree, self.config
        standard = self.look(self.arranged(keep=[[0]] * len(tree.steps)), logits=True)
        self.watch("standard", standard, standard)
        self.rows["parallel_heads"] = head_rows(standard, induction(self.instrument, tree))
        self.rows["parallel_published"] = published_rows("standard", standard, tree)
        shared = self.look(self.arranged(), logits=True, reads=TRACE_READS)
        self.watch("shared", shared, standard)
        self.rows["parallel_trace"] = trace_rows("shared", shared, tree, self.instrument)
        shared.trace.clear()
        self.rows["parallel_published"] += published_rows("shared", shared, tree)
        self.rows["parallel_pruning"] = pruning_rows(shared, tree, config.pruning)
        top_only = lambda sight: sight.rank == 0  # noqa: E731
        self.contrast("shared", shared, "standard", standard, top_only)
        for epsilon in config.epsilons:
            name = f"offset {epsilon:g}"
            offset = self.look(self.arranged(scheme="offset", epsilon=epsilon), logits=True)
            self.watch(name, offset, standard)
            within = lambda sight, e=epsilon: e * (len(tree.steps[sight.step].tokens) - 1) / 2 < 1  # noqa: E731
            self.contrast("shared", shared, name, offset, within)
        self.unique(shared, standard)
        self.modes(shared, standard)
        alone = self.look(self.arranged(alone=True))
        self.contrast("shared", shared, "singleton", alone)
        self.compete(shared, alone, {form: form for form in ("all keys", "sink excluded")})
        unrelated = self.look(self.arranged(ids=self.replaced()), logits=True)
        self.watch("unrelated", unrelated, standard)
        self.contrast("shared", shared, "unrelated", unrelated, top_only)
        self.coins()
        self.sweep(shared, alone)
        if config.sizes:
            self.rows["parallel_scaling"] = scaling_rows(self.instrument, tree, config.sizes, self.edits)

    def unique(self, shared: Seen, standard: Seen) -> None:
        """The unique arrangement, and the moved one."""
        unique = self.look(self.arranged(scheme="unique"), logits=True, reads=TRACE_READS)
        self.watch("unique", unique, standard)
        self.rows["parallel_trace"] += trace_rows("unique", unique, self.tree, self.instrument)
        unique.trace.clear()
        self.contrast("shared", shared, "unique", unique)
        moved = self.look(self.arranged(scheme="unique", moved=True))
        self.contrast("moved", moved, "unique", unique)
        alone = self.look(self.arranged(scheme="unique", alone=True))
        self.compete(unique, alone, {"sink excluded": "sink excluded, unique positions"})

    def modes(self, shared: Seen, standard: Seen) -> None:
        """Siblings that see each other."""
        slots = [slot for _, some in set_slots(self.tree) for slot in some]
        for mode in ("visible", "causal"):
            seen = self.look(self.arranged(mode=mode), logits=True, extra=slots)
            self.rows["parallel_intra"] += intra_rows(mode, seen, self.tree)
            self.watch(mode, seen, standard)
            if mode == "visible":
                self.contrast("shared", shared, mode, seen)

    def coins(self) -> None:
        """Randomised expansion: both sides of each coin."""
        whole = [list(range(len(step.tokens))) for step in self.tree.steps]
        coin = torch.from_numpy(generator(self.seed).random(len(whole)) < 0.5)
        first, second = (
            self.look(self.arranged(keep=[ranks if bool(c) else [0] for ranks, c in zip(whole, side, strict=True)]))
            for side in (coin, ~coin)
        )
        heads = [sight for sight in first.sights if sight.rank == 0 and bool(coin[sight.step])]
        tails = [sight for sight in first.sights if sight.rank == 0 and not bool(coin[sight.step])]
        parts = [log_ratios(a, b, self.n, some) for a, b, some in ((first, second, heads), (second, first, tails)) if some]
        values = {form: torch.cat([part[form] for part in parts], -1) for form in parts[0]}
        self.keep("expanded", "unexpanded", first, values, [s.step for s in (*heads, *tails)])

    def replaced(self) -> list[list[int]]:
        """The tree's ids with random tokens for all siblings but the top one."""
        tokenizer = getattr(self.instrument.loaded, "tokenizer", None)
        special = set() if tokenizer is None else set(tokenizer.all_special_ids)
        size = self.instrument.parts.vocab_size if tokenizer is None else min(self.instrument.parts.vocab_size, len(tokenizer))
        rng = generator(self.seed + 1)
        out = []
        for step in self.tree.steps:
            ids = [step.top.id]
            barred = special | {t.id for t in step.tokens}
            while len(ids) < len(step.tokens):
                drawn = int(rng.integers(size))
                if drawn not in barred:
                    barred.add(drawn)
                    ids.append(drawn)
            out.append(ids)
        return out

    def watch(self, arm: str, seen: Seen, standard: Seen) -> None:
        """Entropy and next tokens of an arm."""
        self.rows["parallel_entropy"] += entropy_rows(arm, seen)
        row = output_row(seen, standard, self.tree)
        if row is not None:
            self.rows["parallel_output"].append({"arm": arm, **row})

    def contrast(
        self, arm: str, seen: Seen, reference: str, other: Seen, only: Callable[[Sight], bool] = lambda sight: True
    ) -> None:
        """Outcomes of two arms over the looks that both have."""
        sights = [s for s in sorted(seen.sights) if s in other.sights and only(s)]
        if sights:
            self.keep(arm, reference, seen, log_ratios(seen, other, self.n, sights), [s.step for s in sights])

    def keep(self, arm: str, reference: str, seen: Seen, values: dict[str, torch.Tensor], sets: Sequence[int]) -> None:
        """Rows of ``parallel_arms``."""
        for form, found in values.items():
            mean, n = collapse(found, sets)
            for (i, head), value in _cells(mean):
                row = {"arm": arm, "reference": reference, "form": form, "layer": seen.layers[i], "head": head}
                self.rows["parallel_arms"].append(row | {"value": value, "n": int(n[i, head])})

    def compete(self, shared: Seen, alone: Seen, forms: dict[str, str]) -> None:
        """Rows of ``parallel_competition``: form → its name there."""
        sights = sorted(shared.sights)
        for form, name in forms.items():
            found = competition(shared, alone, self.n, form, sights)
            per_set = {key: collapse(getattr(found, key), found.sets)[0] for key in ("total", "expected")}
            excess, sets = collapse(found.total.log() - found.expected.log(), found.sets)
            per = {key: collapse(getattr(found, key), found.siblings) for key in ("drop", "by_competition", "beyond")}
            n = per["beyond"][1]
            for (i, head), value in _cells(excess):
                numbers = {key: float(t[i, head]) for key, t in (*per_set.items(), *((k, v[0]) for k, v in per.items()))}
                row = {"form": name, "layer": shared.layers[i], "head": head, **numbers, "excess": value}
                self.rows["parallel_competition"].append(row | {"n": int(n[i, head]), "sets": int(sets[i, head])})

    def sweep(self, shared: Seen, alone: Seen) -> None:
        """Rows of ``parallel_bias``."""
        if not self.config.biases:
            return
        arranged, sights = shared.arranged, sorted(shared.sights)
        for bias in (0.0, *self.config.biases):
            seen = shared if not bias else self.look(arranged, bias=bias, logits=True)
            found = log_ratios(seen, alone, self.n, sights)["sink excluded"]
            row = output_row(seen, shared, self.tree)
            mean, n = collapse(found, [s.step for s in sights])
            if row is None or bool(mean.isnan().all()):
                continue
            ratio = float(mean.nanmean(1).nanmean())
            self.rows["parallel_bias"].append({"bias": bias, "ratio": ratio, "kl": row["kl"], "nll": row["nll"], "n": int(n.max())})


def _cells(values: torch.Tensor):
    """((layer index, head), value) where there is a finite value."""
    for at in values.isfinite().nonzero().tolist():
        yield tuple(at), float(values[tuple(at)])


def _frame(name: str, rows: list[dict[str, Any]]) -> pl.DataFrame:
    import polars as pl

    kinds = {
        c: pl.Int64() if c in _WHOLE else pl.String() if c in _TEXT else pl.Boolean() if c == "pruned" else pl.Float64()
        for c in TABLES[name]
    }
    return pl.DataFrame([{c: row[c] for c in kinds} for row in rows], schema=kinds)
