"""Which edit of the menu restores the right answer, how strong must it be, does it help elsewhere, and what does it cost?

1. Every failure's last row runs under every entry of the menu, many in one forward. An entry *restores* an answer where it becomes the most probable
   token. Failures that
   the model answers rightly unedited are none, and are left out (counted).
2. **Side effect** of an entry: KL divergence (nats) of the unedited next-token distribution from the edited one on unrelated prompts, mean with interval
   over prompts, and the share
   of them whose top token changes. An edit of the evidence has none there, so it acts on a random span of as many tokens. The side effect is also the
   measure of size that all
   kinds share: the *smallest* edit is the one with the least of it.
3. For each failure and kind: the smallest entry that restores it, and whether the same entry at a random place (the *twin*) does too. Steering uses the
   mean over the
   other failures' differences (leave one out), so that no failure is patched with its own control.
4. For each kind one entry is chosen on the search set: the most failures restored, the smaller side effect among equals. It is tested on held-out
   failures: share restored with
   Wilson's interval beside the twins' (``draws`` a failure), and an exact sign test over frames of restored − twin. It *heals* where the share's interval
   is above the twins'
   share and p ≤ 0.05 (Holm over kinds); *does not heal* where the interval is at or below it, else undecided. Nothing restored in the search set: not healed.

Edits act on the last row: what earlier rows computed stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import collate, Edit, Instrument, LastRow
from symbolic_residue.prompts import Prompt
from symbolic_residue.readout import direct_logit_attribution, dla_reads
from symbolic_residue.shells._verdict import bound
from symbolic_residue.shells.heal._failure import Failure
from symbolic_residue.shells.heal._menu import Cell, cell_of, Dose, KINDS, Menu, twin_of
from symbolic_residue.stats import bootstrap_mean, cluster_sign_flip, holm, wilson

__all__ = ["Healing", "heal"]

Array = NDArray[np.float64]
Progress = Callable[[str, float], None]
_CELLS = 32


@dataclass(frozen=True)
class Healing:
    """What the menu did.

    Attributes:
        heals: a row for each failure and kind: the smallest entry that restores it (table ``heals``).
        rules: a row for each kind: the entry chosen on the search set, tested on held-out failures (table ``heal_rules``).
        right: ids of given items that the model answers rightly, and that are no failures.
        summary: in one sentence.
    """

    heals: pl.DataFrame = field(repr=False)
    rules: pl.DataFrame = field(repr=False)
    right: tuple[str, ...]
    summary: str

    def tables(self) -> dict[str, pl.DataFrame]:
        """``heals`` and ``heal_rules``."""
        return {"heals": self.heals, "heal_rules": self.rules}

    def tensors(self) -> dict[str, Tensor]:
        """None."""
        return {}


class _Runs:
    """The last row of one prompt under many cells."""

    def __init__(self, instrument: Instrument, prompt: Prompt) -> None:
        self.prompt = prompt
        self.row = LastRow(instrument, collate([prompt]))
        self.base = self.row.run()["logits"][0, -1].double().cpu()

    def logits(self, cells: Sequence[Cell]) -> Tensor:
        """``[cell, vocab]`` float64."""
        out = self.base.repeat(len(cells), 1)
        acting = [i for i, cell in enumerate(cells) if cell.edit is not None]
        for start in range(0, len(acting), _CELLS):
            group = acting[start : start + _CELLS]
            edits: list[Edit] = [cells[i].edit(b) for b, i in enumerate(group)]  # type: ignore[misc]
            out[group] = self.row.run(edits, copies=len(group))["logits"][:, -1].double().cpu()
        for i, cell in enumerate(cells):
            if cell.tokens:
                out[i, list(cell.tokens)] += cell.nats
        return out


def heal(
    instrument: Instrument,
    failures: Sequence[Failure],
    *,
    held_out: Sequence[Failure],
    unrelated: Sequence[Prompt],
    menu: Menu | None = None,
    draws: int = 4,
    seed: int = 0,
    progress: Progress = lambda what, share: None,
) -> Healing:
    """Try the menu; see the module.

    Args:
        instrument: the model's instrument.
        failures: the search set; ``held_out`` others of the same kind, never used to choose.
        unrelated: prompts for the side effect.
        menu: kinds and doses.
        draws: random twins of an entry.
        seed: of twins and resampling.
        progress: told what is going on, and the share done.

    Raises:
        ConfigError: no failures or unrelated prompts, an id given twice, or ``draws`` under 1.
    """
    menu = menu or Menu()
    names = [f.id for f in (*failures, *held_out)]
    if not failures or not unrelated:
        raise ConfigError(
            "Healing needs failures and unrelated prompts.", todo="Give at least one of each; six and twelve say more."
        )
    if len(set(names)) != len(names):
        raise ConfigError("An id is given twice.", why="A failure that is in both sets would be held out from nothing.")
    if draws < 1:
        raise ConfigError(f"draws = {draws}.", todo="Give at least 1.")
    rng = np.random.default_rng(seed)
    progress("unedited", 0.0)
    runs = {f.id: _Runs(instrument, f.prompt) for f in (*failures, *held_out)}
    right = tuple(f.id for f in (*failures, *held_out) if int(runs[f.id].base.argmax()) == f.answer)
    search = [f for f in failures if f.id not in right]
    test = [f for f in held_out if f.id not in right]
    if not search:
        return Healing(_HEALS.clear(), _RULES.clear(), right, "Nothing fails in the search set, so there is nothing to heal.")
    directions = _directions(instrument, search, menu)
    entries = _entries(instrument, search, runs, menu)
    means = {layer: torch.stack(list(each.values())).mean(0) for layer, each in directions.items() if each}

    progress("side effects", 0.1)
    size = (max(len(f.evidence) for f in search), max(len(f.distractor) for f in search))
    effects = _side_effects(instrument, unrelated, entries, size, means, rng)
    restored, twins, probability = {}, {}, {}
    for i, failure in enumerate(search):
        progress("failures", 0.2 + 0.5 * i / len(search))
        others = {layer: _others(each, failure.id) for layer, each in directions.items()}
        restored[failure.id], probability[failure.id] = _apply(runs[failure.id], failure, entries, others)
        twins[failure.id] = _twins(runs[failure.id], failure, entries, others, instrument.parts.n_heads, 1, rng)[:, 0]
    rows = [
        row for f in search for row in _smallest(f, entries, effects, restored[f.id], twins[f.id], probability[f.id], runs[f.id])
    ]
    chosen = _choose(entries, effects, search, restored)
    tested = []
    for i, (kind, entry) in enumerate(chosen.items()):
        progress("held out", 0.7 + 0.3 * i / len(chosen))
        tested.append(
            _test(kind, entry, entries, effects, search, restored, test, runs, means, instrument.parts.n_heads, draws, rng, seed)
        )
    adjusted = [] if not tested else holm([row["p"] if row["p"] is not None else 1.0 for row in tested])
    for row, p in zip(tested, adjusted, strict=True):
        row["p_adjusted"] = float(p) if row["p"] is not None else None
        row["outcome"] = _outcome(row)
    heals = pl.DataFrame(rows, schema=_HEALS.schema)
    rules = pl.DataFrame(tested, schema=_RULES.schema)
    return Healing(heals, rules, right, _summary(tested, len(search), len(test), len(right)))


def _entries(instrument: Instrument, search: Sequence[Failure], runs: dict[str, _Runs], menu: Menu) -> list[Dose]:
    """Every entry of the menu on this model."""
    parts = instrument.parts
    found = [Dose("anchor", "evidence, all heads", s) for s in menu.anchor] if any(f.evidence for f in search) else []
    found += [Dose("inhibit", "distractor, all heads", s) for s in menu.inhibit] if any(f.distractor for f in search) else []
    if menu.head and menu.heads:
        sums = np.zeros((parts.n_layers, parts.n_heads))
        for f in search:
            trace = runs[f.id].row.run(reads=dla_reads(parts))
            pair = (f.answer, int(runs[f.id].base.argmax()))
            sums += np.nan_to_num(direct_logit_attribution(trace, parts, [pair], rows=(-1,)).heads[0, 0, 0].double().cpu().numpy())
        there = np.isin(np.arange(parts.n_layers), parts.attention_layers)
        order = np.argsort(-np.where(there[:, None], np.abs(sums), -1.0), axis=None)[
            : min(menu.heads, int(there.sum()) * parts.n_heads)
        ]
        for layer, head in (divmod(int(i), parts.n_heads) for i in order):
            found += [Dose("head", f"{layer}.{head}", s, layer, head) for s in menu.head]
    if any(f.control is not None for f in search):
        found += [Dose("steer", f"after layer {layer}", a, layer) for layer in _layers(parts.n_layers, menu) for a in menu.steer]
    if any(f.evidence for f in search):
        found += [Dose("bias", "tokens of the evidence", b) for b in menu.bias]
    return found


def _layers(n: int, menu: Menu) -> list[int]:
    return sorted({min(n - 1, max(0, round(share * n) - 1)) for share in menu.layers})


def _directions(instrument: Instrument, search: Sequence[Failure], menu: Menu) -> dict[int, dict[str, Tensor]]:
    """Layer → failure → control − failing prompt, ``[d_model]`` at the last row."""
    layers = _layers(instrument.parts.n_layers, menu) if menu.steer else []
    points = tuple(f"resid_post.{layer}" for layer in layers)
    out: dict[int, dict[str, Tensor]] = {layer: {} for layer in layers}
    for f in search:
        if f.control is not None and layers:
            here, there = (instrument.run(collate([p]), reads=points, keep_logits=1) for p in (f.prompt, f.control))
            for layer, point in zip(layers, points, strict=True):
                out[layer][f.id] = there[point][0, -1] - here[point][0, -1]
    return out


def _others(each: dict[str, Tensor], name: str) -> Tensor | None:
    kept = [direction for key, direction in each.items() if key != name]
    return torch.stack(kept).mean(0) if kept else None


def _apply(runs: _Runs, failure: Failure, entries: Sequence[Dose], directions: dict[int, Tensor | None]) -> tuple[Array, Array]:
    """``[entry]``: 1 where the answer is restored (NaN where the entry cannot act), and the answer's probability."""
    cells = [cell_of(e, failure.prompt, failure.evidence, failure.distractor, directions.get(e.layer)) for e in entries]
    return _restored(runs, failure, cells)


def _restored(runs: _Runs, failure: Failure, cells: Sequence[Cell | None]) -> tuple[Array, Array]:
    there = [i for i, cell in enumerate(cells) if cell is not None]
    hit, probability = np.full(len(cells), np.nan), np.full(len(cells), np.nan)
    if there:
        logits = runs.logits([cells[i] for i in there])  # type: ignore[misc]
        hit[there] = (logits.argmax(-1) == failure.answer).double().numpy()
        probability[there] = torch.softmax(logits, -1)[:, failure.answer].numpy()
    return hit, probability


def _twins(
    runs: _Runs,
    failure: Failure,
    entries: Sequence[Dose],
    directions: dict[int, Any],
    n_heads: int,
    draws: int,
    rng: np.random.Generator,
) -> Array:
    """``[entry, draw]``: 1 where a random twin restores the answer."""
    avoid = (*failure.evidence, *failure.distractor)
    sizes = (len(failure.evidence), len(failure.distractor))
    cells = [
        twin_of(e, failure.prompt, *sizes, avoid, directions.get(e.layer), n_heads, rng)[1] if _acts(e, failure) else None
        for e in entries
        for _ in range(draws)
    ]
    return _restored(runs, failure, cells)[0].reshape(len(entries), draws)


def _acts(entry: Dose, failure: Failure) -> bool:
    return (
        bool(failure.distractor if entry.kind == "inhibit" else failure.evidence)
        if entry.kind in ("anchor", "inhibit", "bias")
        else True
    )


def _side_effects(
    instrument: Instrument,
    unrelated: Sequence[Prompt],
    entries: Sequence[Dose],
    size: tuple[int, int],
    directions: dict[int, Tensor],
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """``[entry, prompt]``: KL of unedited from edited (nats), and whether the top token changes."""
    kl, changed = np.zeros((len(entries), len(unrelated))), np.zeros((len(entries), len(unrelated)))
    for i, prompt in enumerate(unrelated):
        runs = _Runs(instrument, prompt)
        cells = []
        for e in entries:
            if e.kind in ("head", "steer"):
                cell = cell_of(e, prompt, (), (), directions.get(e.layer))
            else:
                cell = twin_of(e, prompt, *size, (), None, 1, rng)[1]
            cells.append(cell if cell is not None else Cell(None))
        logits = runs.logits(cells)
        base = torch.log_softmax(runs.base, -1)
        kl[:, i] = (base.exp() * (base - torch.log_softmax(logits, -1))).sum(-1).clamp_min(0).numpy()
        changed[:, i] = (logits.argmax(-1) != runs.base.argmax()).double().numpy()
    return kl, changed


def _smallest(
    failure: Failure,
    entries: Sequence[Dose],
    effects: tuple[Array, Array],
    hit: Array,
    twin: Array,
    probability: Array,
    runs: _Runs,
) -> list[dict[str, Any]]:
    """For each kind that can act on the failure: its smallest entry that restores the answer, or its most helpful one."""
    before = float(torch.softmax(runs.base, -1)[failure.answer])
    rows = []
    for kind in KINDS:
        mine = [i for i, e in enumerate(entries) if e.kind == kind and not np.isnan(hit[i])]
        if not mine:
            continue
        good = [i for i in mine if hit[i] == 1]
        best = min(good, key=lambda i: effects[0][i].mean()) if good else max(mine, key=lambda i: probability[i])
        kl = bootstrap_mean(effects[0][best], seed=0)
        rows.append(
            {
                "failure": failure.id,
                "kind": kind,
                "place": entries[best].place,
                "dose": entries[best].dose,
                "restored": bool(good),
                "twin_restored": None if np.isnan(twin[best]) else bool(twin[best]),
                "probability_before": before,
                "probability_after": float(probability[best]),
                "side_kl": kl.value,
                "side_low": bound(kl.low),
                "side_high": bound(kl.high),
                "side_n": kl.n,
                "entries": len(mine),
                "entries_restoring": len(good),
            }
        )
    return rows


def _choose(
    entries: Sequence[Dose], effects: tuple[Array, Array], search: Sequence[Failure], restored: dict[str, Array]
) -> dict[str, int | None]:
    """Kind → the entry that restores most of the search set; None where no entry restores any."""
    chosen: dict[str, int | None] = {}
    for kind in KINDS:
        mine = [i for i, e in enumerate(entries) if e.kind == kind and not all(np.isnan(restored[f.id][i]) for f in search)]
        if mine:
            count = {i: int(sum(restored[f.id][i] == 1 for f in search)) for i in mine}
            best = min(mine, key=lambda i: (-count[i], effects[0][i].mean()))
            chosen[kind] = best if count[best] else None
    return chosen


def _test(
    kind: str,
    entry: int | None,
    entries: Sequence[Dose],
    effects: tuple[Array, Array],
    search: Sequence[Failure],
    restored: dict[str, Array],
    test: Sequence[Failure],
    runs: dict[str, _Runs],
    directions: dict[int, Tensor],
    n_heads: int,
    draws: int,
    rng: np.random.Generator,
    seed: int,
) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(_RULES.columns)
    found = 0 if entry is None else int(sum(restored[f.id][entry] == 1 for f in search))
    row |= {"kind": kind, "search_restored": found, "search_n": len(search)}
    if entry is None:
        return row
    dose = entries[entry]
    kl, changed = bootstrap_mean(effects[0][entry], seed=seed), wilson(int(effects[1][entry].sum()), effects[1].shape[1])
    row |= {"place": dose.place, "dose": dose.dose, "side_kl": kl.value, "side_low": bound(kl.low), "side_high": bound(kl.high)}
    row |= {"side_n": kl.n, "side_changed": changed.value}
    hits, controls, frames = [], [], []
    for f in test:
        hit = _apply(runs[f.id], f, [dose], {dose.layer: directions.get(dose.layer)})[0]
        if np.isnan(hit[0]):
            continue  # the prompt lacks what the entry acts on
        hits.append(float(hit[0]))
        controls.append(float(_twins(runs[f.id], f, [dose], dict(directions), n_heads, draws, rng)[0].mean()))
        frames.append(f.frame)
    if not hits:
        return row
    rate = wilson(int(sum(hits)), len(hits))
    row |= {"restored": int(sum(hits)), "n": len(hits), "rate": rate.value, "low": rate.low, "high": rate.high}
    row |= {"control_rate": float(np.mean(controls)), "control_n": len(hits) * draws}
    if len(set(frames)) > 1:
        row["p"] = float(cluster_sign_flip(np.array(hits) - np.array(controls), frames, seed=seed))
    return row


def _outcome(row: dict[str, Any]) -> str:
    if not row["search_restored"]:
        return "not healed"
    if row["rate"] is None:
        return "undecided"
    if row["low"] > row["control_rate"] and row["p_adjusted"] is not None and row["p_adjusted"] <= 0.05:
        return "heals"
    return "does not heal" if row["high"] <= row["control_rate"] or row["restored"] == 0 else "undecided"


def _summary(rows: Sequence[dict[str, Any]], n_search: int, n_test: int, n_right: int) -> str:
    good = [row for row in rows if row["outcome"] == "heals"]
    told = f"{n_search} failures to search on, {n_test} held out" + (f" ({n_right} items were answered rightly)" if n_right else "")
    if not good:
        return f"No edit of the menu is shown to heal: {told}."
    best = min(good, key=lambda row: row["side_kl"])
    return (
        f"{best['kind'].capitalize()} ({best['place']}, dose {best['dose']:g}) restores {best['restored']} of {best['n']} held-out failures, its random twins "
        f"{best['control_rate']:.2f} of them, at a side effect of {best['side_kl']:.3f} nats: {told}."
    )


_HEALS = pl.DataFrame(
    schema={
        "failure": pl.String,
        "kind": pl.String,
        "place": pl.String,
        "dose": pl.Float64,
        "restored": pl.Boolean,
        "twin_restored": pl.Boolean,
        **dict.fromkeys(("probability_before", "probability_after", "side_kl", "side_low", "side_high"), pl.Float64),
        **dict.fromkeys(("side_n", "entries", "entries_restoring"), pl.Int64),
    }
)
_RULES = pl.DataFrame(
    schema={
        "kind": pl.String,
        "place": pl.String,
        "dose": pl.Float64,
        "search_restored": pl.Int64,
        "search_n": pl.Int64,
        "restored": pl.Int64,
        "n": pl.Int64,
        **dict.fromkeys(("rate", "low", "high", "control_rate"), pl.Float64),
        "control_n": pl.Int64,
        **dict.fromkeys(("p", "p_adjusted", "side_kl", "side_low", "side_high"), pl.Float64),
        "side_n": pl.Int64,
        "side_changed": pl.Float64,
        "outcome": pl.String,
    }
)
