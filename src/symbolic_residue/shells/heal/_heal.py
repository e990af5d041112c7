"""Which edit of the menu restores the right answer, how strong must it be, does it help elsewhere, and what does it cost?

1. Every failure runs under every entry of the menu, many in one forward. An entry *restores* an answer where the failure's measure (log-odds of the
   right answer, or the share of greedy answers that its program passes: ``shells/_failure``) rises above its limit. Failures that are right
   unedited are none, and are left out (counted).
2. **Side effect** of an entry: KL divergence (nats) of the unedited next-token distribution from the edited one on unrelated prompts, mean with
   interval over prompts, and the share of them whose top token changes, with its interval. An edit of the evidence has none there, so it acts on a
   random span of as many tokens. The side effect is also the measure of size that all kinds share: the *smallest* edit is the one with the least of
   it.
3. For each failure and kind: the smallest entry that restores it, and whether the same entry at a random place (the *twin*) does too. Steering uses
   the mean over the other failures' differences (leave one out), so that no failure is patched with its own control.
4. For each kind one entry is chosen on the search set: the most failures restored, the smaller side effect among equals. It is tested on held-out
   failures beside ``draws`` random twins each (``_rule``). Nothing restored in the search set: not healed.

Edits act on the last row (of an answer: on it and on every row after it): what earlier rows computed stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import Prompt
from symbolic_residue.readout import direct_logit_attribution, dla_reads
from symbolic_residue.shells._failure import Failure
from symbolic_residue.shells.heal._menu import Cell, cell_of, Dose, KINDS, Menu, OF_EVIDENCE, random_cell, twin_of
from symbolic_residue.shells.heal._rule import judge_rules, rule_columns
from symbolic_residue.shells.heal._runs import Rows, Runs, UNEDITED
from symbolic_residue.shells.heal._tables import Healing, heals_frame, rules_frame, SideEffects, summarise

__all__ = ["heal"]

Array = NDArray[np.float64]
Progress = Callable[[str, float], None]
Directions = dict[int, Tensor | None]


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
    runs, before = Runs(instrument), {}
    for i, f in enumerate((*failures, *held_out)):
        progress("unedited", 0.15 * i / len(names))
        before[f.id] = runs.unedited(f)
    right = tuple(f.id for f in (*failures, *held_out) if before[f.id] > f.limit)
    search = [f for f in failures if f.id not in right]
    test = [f for f in held_out if f.id not in right]
    if not search:
        told = f" ({len(right)} items were answered rightly)"
        return Healing(
            heals_frame([]), rules_frame([]), right, f"Nothing fails in the search set, so there is nothing to heal{told}."
        )
    progress("heads and directions", 0.15)
    search_runs = _Search(runs, search, menu)
    entries, directions = search_runs.entries, search_runs.directions
    means: Directions = {layer: torch.stack(list(each.values())).mean(0) for layer, each in directions.items() if each}
    progress("side effects", 0.25)
    size = tuple(max(len(getattr(a, name)) for f in search for a in f.asks) for name in ("evidence", "distractor"))
    effects = _side_effects(instrument, unrelated, entries, size, means, rng)
    rows, measured = [], {}
    for i, failure in enumerate(search):
        progress("failures", 0.3 + 0.45 * i / len(search))
        others = {layer: _others(each, failure.id) for layer, each in directions.items()}
        measured[failure.id] = runs.measure(failure, [_cells(ask, entries, others) for ask in failure.asks])
        best = _smallest(failure, entries, effects, measured[failure.id])
        twins = _twins(runs, failure, [entries[b] for b, _, _ in best], others, 1, rng)[:, 0]
        for (b, n, good), twin in zip(best, twins, strict=True):
            rows.append(
                {
                    "failure": failure.id,
                    "kind": entries[b].kind,
                    "place": entries[b].place,
                    "dose": entries[b].dose,
                    "restored": bool(good),
                    "twin_restored": None if np.isnan(twin) else bool(twin > failure.limit),
                    "measure": failure.measure,
                    "before": before[failure.id],
                    "after": float(measured[failure.id][b]),
                    "limit": failure.limit,
                    "prompts": len(failure.asks),
                    **effects.columns(b, seed=0),
                    "entries": n,
                    "entries_restoring": good,
                }
            )
    rules = _chosen(entries, effects, search, measured, seed)
    picked = [row["entry"] for row in _with_entry(rules)]
    results: list[list[tuple[float, Array]]] = [[] for _ in picked]
    for i, failure in enumerate(test):
        progress("held out", 0.75 + 0.25 * i / len(test))
        own = runs.measure(failure, [_cells(ask, [entries[e] for e in picked], means) for ask in failure.asks]) if picked else []
        twins = _twins(runs, failure, [entries[e] for e in picked], means, draws, rng)
        for k in range(len(picked)):
            results[k].append((float(own[k]), twins[k]))
    for row, found in zip(_with_entry(rules), results, strict=True):
        row |= _tested(found, test, seed)
    judge_rules(rules)
    return Healing(heals_frame(rows), rules_frame(rules), right, summarise(rules, len(search), len(test), len(right)))


def _with_entry(rules: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The kinds of which some entry restored anything."""
    return [row for row in rules if row["entry"] is not None]


class _Search:
    """What the search set says of the model: the heads with the most to do with the answers, and the way to the controls.

    Attributes:
        entries: every entry of the menu on this model.
        directions: layer → failure → control − failing prompt, ``[d_model]`` at the last row, mean over prompts.
    """

    def __init__(self, runs: Runs, search: Sequence[Failure], menu: Menu) -> None:
        parts = runs.instrument.parts
        layers = sorted({min(parts.n_layers - 1, max(0, round(share * parts.n_layers) - 1)) for share in menu.layers})
        steered = layers if menu.steer and any(a.control is not None for f in search for a in f.asks) else []
        self.directions: dict[int, dict[str, Tensor]] = {layer: {} for layer in steered}
        self._sums = np.zeros((parts.n_layers, parts.n_heads))
        points = tuple(f"resid_post.{layer}" for layer in steered)
        for f in search:
            differences: list[Tensor] = []
            for ask in f.asks:
                rows = runs.rows(ask.ids)
                if menu.head and menu.heads and ask.answer is not None:
                    self._attribute(runs, rows, ask)
                if points and ask.control is not None:
                    here = rows.row.run(reads=points)
                    there = Rows(runs.instrument, ask.control).row.run(reads=points)
                    differences.append(torch.stack([there[p][0, -1] - here[p][0, -1] for p in points]))
            if differences:
                mean = torch.stack(differences).mean(0)
                for layer, direction in zip(steered, mean, strict=True):
                    self.directions[layer][f.id] = direction
        self.entries = self._entries(search, menu, steered, parts)

    def _attribute(self, runs: Runs, rows: Rows, ask: Any) -> None:
        if ask.given:
            rows = Rows(runs.instrument, (*ask.ids, *ask.given))
        trace = rows.row.run(reads=dla_reads(runs.instrument.parts))
        wrong = ask.wrong
        if wrong is None:
            logits = trace["logits"][0, -1].double().cpu().clone()
            logits[ask.answer] = -torch.inf
            wrong = int(logits.argmax())
        found = direct_logit_attribution(trace, runs.instrument.parts, [(ask.answer, wrong)], rows=(-1,)).heads[0, 0, 0]
        self._sums += np.nan_to_num(found.double().cpu().numpy())

    def _entries(self, search: Sequence[Failure], menu: Menu, steered: Sequence[int], parts: Any) -> list[Dose]:
        said, against = (any(getattr(a, name) for f in search for a in f.asks) for name in ("evidence", "distractor"))
        found = [Dose("anchor", "evidence, all heads", s) for s in menu.anchor] if said else []
        found += [Dose("inhibit", "distractor, all heads", s) for s in menu.inhibit] if against else []
        if menu.head and menu.heads and self._sums.any():
            there = np.isin(np.arange(parts.n_layers), parts.attention_layers)
            most = min(menu.heads, int(there.sum()) * parts.n_heads)
            order = np.argsort(-np.where(there[:, None], np.abs(self._sums), -1.0), axis=None)[:most]
            for layer, head in (divmod(int(i), parts.n_heads) for i in order):
                found += [Dose("head", f"{layer}.{head}", s, layer, head) for s in menu.head]
        found += [Dose("steer", f"after layer {layer}", a, layer) for layer in steered for a in menu.steer]
        return found + ([Dose("bias", "tokens of the evidence", b) for b in menu.bias] if said else [])


def _others(each: dict[str, Tensor], name: str) -> Tensor | None:
    kept = [direction for key, direction in each.items() if key != name]
    return torch.stack(kept).mean(0) if kept else None


def _cells(ask: Any, entries: Sequence[Dose], directions: Directions) -> list[Cell | None]:
    return [cell_of(e, ask.ids, ask.evidence, ask.distractor, directions.get(e.layer)) for e in entries]


def _twins(
    runs: Runs, failure: Failure, entries: Sequence[Dose], directions: Directions, draws: int, rng: np.random.Generator
) -> Array:
    """The measure ``[entry, draw]`` under random twins; NaN where the entry cannot act. A twin is one head or direction for all of a failure's prompts."""
    made: list[list[Cell | None]] = [[] for _ in failure.asks]
    for e in entries:
        for _ in range(draws):
            moved, direction = twin_of(e, directions.get(e.layer), runs.instrument.parts.n_heads, rng)
            for cells, ask in zip(made, failure.asks, strict=True):
                if e.kind in OF_EVIDENCE:
                    span = ask.distractor if e.kind == "inhibit" else ask.evidence
                    cells.append(random_cell(e, ask.ids, len(span), (*ask.evidence, *ask.distractor), rng) if span else None)
                else:
                    cells.append(cell_of(moved, ask.ids, (), (), direction))
    return runs.measure(failure, made).reshape(len(entries), draws) if entries else np.zeros((0, draws))


def _side_effects(
    instrument: Instrument,
    unrelated: Sequence[Prompt],
    entries: Sequence[Dose],
    size: Sequence[int],
    directions: Directions,
    rng: np.random.Generator,
) -> SideEffects:
    kl, changed = np.zeros((len(entries), len(unrelated))), np.zeros((len(entries), len(unrelated)))
    for i, prompt in enumerate(unrelated):
        rows = Rows(instrument, prompt.ids)
        base = rows.logits([UNEDITED])[0]
        log_p = torch.log_softmax(base, -1)
        cells = [
            random_cell(e, prompt.ids, size[e.kind == "inhibit"], (), rng)
            if e.kind in OF_EVIDENCE
            else cell_of(e, prompt.ids, (), (), directions.get(e.layer))
            for e in entries
        ]
        for start in range(0, len(cells), 32):
            logits = rows.logits([cell or UNEDITED for cell in cells[start : start + 32]])
            at = slice(start, start + len(logits))
            kl[at, i] = (log_p.exp() * (log_p - torch.log_softmax(logits, -1))).sum(-1).clamp_min(0).numpy()
            changed[at, i] = (logits.argmax(-1) != base.argmax()).double().numpy()
    return SideEffects(kl, changed)


def _smallest(failure: Failure, entries: Sequence[Dose], effects: SideEffects, measured: Array) -> list[tuple[int, int, int]]:
    """For each kind that can act on the failure: its smallest entry that restores the answer, or its most helpful one; how many entries acted, and restored."""
    out = []
    for kind in KINDS:
        mine = [i for i, e in enumerate(entries) if e.kind == kind and not np.isnan(measured[i])]
        good = [i for i in mine if measured[i] > failure.limit]
        if mine:
            out.append((min(good, key=effects.size) if good else max(mine, key=lambda i: measured[i]), len(mine), len(good)))
    return out


def _chosen(
    entries: Sequence[Dose], effects: SideEffects, search: Sequence[Failure], measured: dict[str, Array], seed: int
) -> list[dict[str, Any]]:
    """A row for each kind: the entry that restores most of the search set; ``entry`` None where no entry restores any."""
    rows = []
    for kind in KINDS:
        mine = [i for i, e in enumerate(entries) if e.kind == kind and not all(np.isnan(measured[f.id][i]) for f in search)]
        if not mine:
            continue
        count = {i: sum(bool(measured[f.id][i] > f.limit) for f in search) for i in mine}
        best = min(mine, key=lambda i: (-count[i], effects.size(i)))
        row = {"kind": kind, "search_restored": count[best], "search_n": len(search), "entry": best if count[best] else None}
        if count[best]:
            row |= {"place": entries[best].place, "dose": entries[best].dose, **effects.columns(best, seed)}
        rows.append(row)
    return rows


def _tested(found: Sequence[tuple[float, Array]], test: Sequence[Failure], seed: int) -> dict[str, Any]:
    """The chosen entry on the held-out failures that it can act on."""
    acting = [(f, own, twins) for f, (own, twins) in zip(test, found, strict=True) if not (np.isnan(own) or np.isnan(twins).any())]
    if not acting:
        return {}
    share = any(f.steps for f, _, _ in acting)
    return {
        "measure": acting[0][0].measure,
        **rule_columns(
            [float(own > f.limit) for f, own, _ in acting],
            [[float(t > f.limit) for t in twins] for f, _, twins in acting],
            [f.frame for f, _, _ in acting],
            gains=[own - float(np.mean(twins)) for _, own, twins in acting],
            within=(-1.0, 1.0) if share else (-np.inf, np.inf),
            seed=seed,
        ),
    }
