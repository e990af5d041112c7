"""The attribution graph of a failing prompt beside that of its matched control: what in the prompt, in which layers, by which neurons.

1. The target is the failure's own (``_failing``), at the same tokens on both prompts. Where they have as many tokens, both graphs have the union of the neurons
   that each chooses, and their difference is one (as of ``graph.attribute_pair``); else each has its own, and they stand side by side.
2. Each target divides in five ways, and each division adds up to its value (logits): by *kind* (neurons, embeddings, rest, bias, constant) and by *layer* of
   what writes directly; by *place*: the position of what writes directly; by *span* and by *token*: what embeddings are worth over all paths. What constants
   are worth on the way is a part of its own, as is the first token (the attention sink).
3. A part's share is its size over the sum of the sizes of all parts: parts cancel, and a part of a small sum can be larger than the sum.
4. Spans of a control of as many tokens are the same places, whatever they say there; of one of another length the same runs of tokens, where they stand in it.

One prompt is one observation. What a graph says holds in the replacement with attention patterns and norms held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
import torch
from torch import Tensor

from symbolic_residue.errors import PromptError
from symbolic_residue.graph import (
    attribute_prompt,
    Difference,
    freeze,
    ghosts,
    Graph,
    promoted_tokens,
    read_targets,
    relevance,
    Units,
)
from symbolic_residue.instrument import Instrument
from symbolic_residue.shells.across._failing import Aimed, FailingPrompt, prompt_of

__all__ = ["LONGEST", "FailureGraphs", "explain_failure"]

LONGEST = 512
"""Tokens of the longest prompt that gets a graph here."""
_TOP = 10
_GHOSTS, _DIRECTIONS = 500, 16
_ROUNDING = 1e-5
"""Of a division's sizes: constants below it are no part (most architectures have none)."""
FIRST, LAST, ELSEWHERE, CONSTANTS = "first token", "last token", "elsewhere", "constants"


@dataclass(frozen=True, eq=False)
class FailureGraphs:
    """A failure explained.

    Attributes:
        aimed: the prompt and its target.
        failing, control: graphs; None where there is no control.
        difference: failing − control, where both have as many tokens.
        parts: ``split part value share control_value control_share``: see the module; of the control null where it lacks the part or is not there.
        ghosts: of a silence, for each side the share of its largest neurons that move the target no more than random directions, and the mean of the same
            share for those directions (``graph.ghosts``); empty for other targets.
        units: ``side rank layer position token neuron activation effect other_effect raises``: the neurons of largest total effect on each side;
            ``other_effect`` is the same neuron's on the other side, where both graphs have it.
    """

    aimed: Aimed
    failing: Graph
    control: Graph | None
    difference: Difference | None
    parts: pl.DataFrame
    units: pl.DataFrame
    ghosts: tuple[tuple[float, float], ...] = ()

    @property
    def compared(self) -> str:
        """``difference``, ``side by side`` or ``no control``."""
        return "no control" if self.control is None else "side by side" if self.difference is None else "difference"

    @property
    def control_value(self) -> float | None:
        """The target on the control, logits."""
        return None if self.control is None else self.control.targets[0].value

    @property
    def healthy(self) -> bool | None:
        """Whether the control does not fail: its target is below 0."""
        return None if self.control_value is None else self.control_value < 0

    @property
    def worst_row(self) -> float:
        """What is missing of a row, at most, over the sizes of its edges."""
        return max(graph.check().worst for graph in (self.failing, self.control) if graph is not None)


def explain_failure(
    instrument: Instrument,
    aimed: Aimed,
    *,
    nodes: int = 200,
    kept: tuple[Graph, Graph | None] | None = None,
    longest: int = LONGEST,
) -> FailureGraphs:
    """Make the graphs of a failure, or take kept ones, and divide its target.

    Args:
        instrument: the model's.
        aimed: prompt and target.
        nodes: neurons that each prompt chooses.
        kept: its graphs, where they were made before.
        longest: tokens of the longest prompt.

    Raises:
        PromptError: a longer one.
        UnsupportedModelError, VerificationError, ConfigError: as of ``graph.attribute_prompt``.
    """
    prompt = aimed.prompt
    control = prompt.control
    most = max(len(prompt.ids), len(control or ()))
    if most > longest:
        raise PromptError(f"The prompt or its control has {most} tokens.", why=f"Graphs of failures are made up to {longest}.")
    effects = [_effects(instrument, aimed, ids, nodes) for ids in (prompt.ids, control) if ids is not None]
    failing, beside = kept or _made(instrument, aimed, [units for units, _ in effects])
    same = beside is not None and len(beside.ids) == len(failing.ids)
    spans = _spans(prompt, len(prompt.ids))
    theirs = {} if control is None else spans if same else _spans(_matched(prompt, control), len(control))
    mine = _divided(failing, effects[0][1], spans)
    other = {} if beside is None else _divided(beside, effects[1][1], theirs)
    both = mine if beside is None else [*mine, *(key for key in other if key not in mine)]
    rows = []
    for split, part in both:
        rows.append((split, part, *mine.get((split, part), (0.0, 0.0)), *other.get((split, part), (None, None))))
    parts = pl.DataFrame(rows, schema=_PARTS, orient="row")
    difference = Difference(failing, beside, (nodes, nodes)) if same and beside is not None else None
    haunted = [graph for graph in (failing, beside) if graph is not None] if aimed.kind == "silence" else []
    found = [ghosts(instrument, graph, count=_GHOSTS, directions=_DIRECTIONS) for graph in haunted]
    shares = tuple((one.share, one.control[0]) for one in found)
    return FailureGraphs(aimed, failing, beside, difference, parts, _units(failing, beside if same else None, beside), shares)


def _effects(instrument: Instrument, aimed: Aimed, ids: Sequence[int], nodes: int) -> tuple[Units, Tensor]:
    """The neurons of largest total effect on the target, and every embedding's ``[position]``."""
    with torch.no_grad():
        local = freeze(instrument, torch.tensor(ids))
        with torch.device(local.device):
            target = read_targets(instrument, local, [aimed.contrast], -1, "half")[0]
        found = relevance(local, target.direction, position=target.position)
        return found.top(nodes).to("cpu"), found.embeddings.double().cpu()


def _made(instrument: Instrument, aimed: Aimed, chosen: Sequence[Units]) -> tuple[Graph, Graph | None]:
    """As ``graph.attribute_pair`` where both have as many tokens; units are chosen already, with the embeddings' effects."""
    sides = [ids for ids in (aimed.prompt.ids, aimed.prompt.control) if ids is not None]
    if len(sides) == 2 and len(sides[0]) == len(sides[1]):
        triples = torch.cat([torch.stack([one.layer, one.position, one.neuron], 1) for one in chosen])
        chosen = [Units.of(torch.unique(triples, dim=0))] * 2
    found = []
    for ids, units in zip(sides, chosen, strict=True):
        prompt = prompt_of(instrument.loaded.tokenizer, ids)
        graph = attribute_prompt(instrument, prompt, targets=[aimed.contrast], nodes=units)
        labels = promoted_tokens(instrument.parts, instrument.loaded.tokenizer, graph.units, graph.activations)
        found.append(replace(graph, labels=tuple(map(tuple, labels))))
    return found[0], found[1] if len(found) > 1 else None


def _spans(prompt: FailingPrompt, n: int) -> dict[str, list[int]]:
    """Every position once: the first and the last token, the spans that are known, and what is left."""
    left = dict.fromkeys(range(n))
    found: dict[str, list[int]] = {}
    for name, places in {FIRST: (0,), LAST: (n - 1,), **prompt.spans}.items():
        mine = sorted(p for p in places if p in left)
        for p in mine:
            del left[p]
        if mine:
            found[name] = mine
    if left:
        found[ELSEWHERE] = list(left)
    return found


def _matched(prompt: FailingPrompt, control: Sequence[int]) -> FailingPrompt:
    """The prompt's spans where the same runs of tokens stand in a control of another length."""
    spans: dict[str, tuple[int, ...]] = {}
    for name, places in prompt.spans.items():
        found: set[int] = set()
        for start, stop in _runs(sorted(places)):
            wanted = tuple(prompt.ids[start:stop])
            for at in range(len(control) - len(wanted) + 1):
                if tuple(control[at : at + len(wanted)]) == wanted:
                    found |= set(range(at, at + len(wanted)))
        spans[name] = tuple(sorted(found))
    return replace(prompt, spans=spans)


def _runs(places: Sequence[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for p in places:
        if runs and runs[-1][1] == p:
            runs[-1] = (runs[-1][0], p + 1)
        else:
            runs.append((p, p + 1))
    return runs


def _divided(graph: Graph, total: Tensor, spans: dict[str, list[int]]) -> dict[tuple[str, str], tuple[float, float]]:
    """(split, part) → (value, share); the parts of a split add up to the target."""
    row, shape, value = graph.edges[0].double(), graph.columns, graph.targets[0].value
    units, n = len(graph), shape.n_positions
    rest = row[shape.rest].view(shape.n_layers, n)
    bias = row[shape.bias].view(shape.n_layers, n) if shape.biased else torch.zeros_like(rest)
    of_units = torch.zeros(shape.n_layers, n, dtype=torch.float64)
    of_units.index_put_((graph.units.layer, graph.units.position), row[:units], accumulate=True)
    written = of_units + rest + bias  # [layer, position]
    embedded, constant = row[shape.embeddings], float(row[shape.constant])
    at = written.sum(0) + embedded
    kinds = {
        "neurons that are nodes": of_units,
        "other neurons": rest,
        "embeddings": embedded,
        **({"biases": bias} if shape.biased else {}),
    }
    splits: dict[str, dict[str, float]] = {
        "kind": {name: float(part.sum()) for name, part in kinds.items()} | {CONSTANTS: constant},
        "layer": {"embeddings": float(embedded.sum())}
        | {f"layer {i}": float(written[i].sum()) for i in range(shape.n_layers)}
        | {CONSTANTS: constant},
        "place": {name: float(at[places].sum()) for name, places in spans.items()} | {CONSTANTS: constant},
        "span": {name: float(total[places].sum()) for name, places in spans.items()},
        "token": {f"{t} {token}": float(total[t]) for t, token in enumerate(graph.tokens)},
    }
    for split in ("span", "token"):
        splits[split][CONSTANTS] = value - sum(splits[split].values())
    found = {}
    for split, parts in splits.items():
        size = sum(map(abs, parts.values()))
        if abs(parts[CONSTANTS]) <= _ROUNDING * size:
            del parts[CONSTANTS]
        for name, part in parts.items():
            found[split, name] = (part, abs(part) / size if size else 0.0)
    return found


def _units(failing: Graph, aligned: Graph | None, control: Graph | None) -> pl.DataFrame:
    rows: list[tuple[Any, ...]] = []
    for side, graph, other in (("failing", failing, aligned), ("control", control, failing if aligned is not None else None)):
        if graph is None:
            continue
        order = graph.effects.abs().argsort(descending=True, stable=True)[:_TOP].tolist()
        for rank, u in enumerate(order, 1):
            i, t, neuron = (int(x[u]) for x in (graph.units.layer, graph.units.position, graph.units.neuron))
            there = None if other is None else float(other.effects[u])
            raises = " ".join(graph.labels[u]) if graph.labels else None
            rows.append(
                (side, rank, i, t, graph.tokens[t], neuron, float(graph.activations[u]), float(graph.effects[u]), there, raises)
            )
    return pl.DataFrame(rows, schema=_UNITS, orient="row")


_PARTS: dict[str, type[pl.DataType]] = {
    "split": pl.String,
    "part": pl.String,
    **dict.fromkeys(("value", "share", "control_value", "control_share"), pl.Float64),
}
_UNITS: dict[str, type[pl.DataType]] = {
    "side": pl.String,
    **dict.fromkeys(("rank", "layer", "position"), pl.Int64),
    "token": pl.String,
    "neuron": pl.Int64,
    **dict.fromkeys(("activation", "effect", "other_effect"), pl.Float64),
    "raises": pl.String,
}
