"""Interventions on a graph's units: what its edges predict, and what the model does.

1. A :class:`Change` sets one neuron or feature at one position: to a value, or to a factor of its value on the prompt (0 ablates it). It stays there, whatever
   it reads. A feature of a cross-layer transcoder changes what it writes into all its layers.
2. **Predicted.** An edge from a unit is its slope times its activation. ``direct``: Σ slope · change over the changed units. ``paths``: unchanged units answer,
   layer by layer, by their own rows: Δ_v = Σ_c slope[v, c] Δ_c; the targets' rows then sum all changes. What is not a unit of the graph (REST) does not answer.
3. **Observed.** The prompt is run again with the neurons set (the instrument's edit at ``mlp_act``), holding ``nothing``; the ``attention`` patterns; or
   ``all``: patterns, norms and every other unit, where ``direct`` is exact.
4. **Features** are set in the model with the dictionary in the place of its layers' MLPs and the errors held at the prompt's (``dictionaries.stand_in``):
   unchanged, that is the model on this prompt, exactly; changed, the other features answer by their encoders, and the skip connection by what is read. With
   ``mlps="model"`` the model's own MLPs answer, and decoder row × (new − live activation) is added to their outputs: what the change does to the model itself.
5. **Agreement** inside each prompt, then over prompts (the unit): Pearson's correlation, share of equal signs, and
   ``error = Σ|predicted − observed| / Σ|observed|`` (0 is exact, 1 is what predicting no change gets), each beside the same with the predictions shuffled
   among the prompt's interventions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args, Literal, TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from torch import Tensor

from symbolic_residue.dictionaries import Dictionary, FrozenScales, stand_in, Standing, standing
from symbolic_residue.errors import ConfigError, UnsupportedModelError
from symbolic_residue.graph._features import require_dictionary
from symbolic_residue.instrument import AttentionRead, Edit, FreezeNorm, Instrument, norm_scales, PatternReplace, Replace
from symbolic_residue.stats import bootstrap_mean
from symbolic_residue.types import Point

if TYPE_CHECKING:
    from symbolic_residue.graph._graph import Graph

__all__ = ["Change", "Hold", "intervene", "intervention_agreement", "predicted_change"]

Hold = Literal["nothing", "attention", "all"]

INTERVENTION_SCHEMA: dict[str, Any] = {
    "set": pl.Int64,
    "changed": pl.Int64,
    "before": pl.Float64,
    "observed": pl.Float64,
    "direct": pl.Float64,
    "paths": pl.Float64,
}
AGREEMENT_SCHEMA: dict[str, Any] = {
    "prediction": pl.String,
    "measure": pl.String,
    "mean": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "shuffled": pl.Float64,
    "n": pl.Int64,
    "interventions": pl.Int64,
}
_NORMS = ("pre_attn_norm", "pre_mlp_norm", "post_attn_norm", "post_mlp_norm")
_SAME = 1e-3
"""How far the model's own logit difference may be from the graph's target, relative to 1 or its size: float32."""


@dataclass(frozen=True)
class Change:
    """Set one neuron (or feature, by its number) to ``value``, or where that is None to ``factor`` times its value on the prompt."""

    layer: int
    position: int
    neuron: int
    factor: float = 0.0
    value: float | None = None


def predicted_change(graph: Graph, changes: Sequence[Change], *, paths: bool = True) -> Tensor:
    """What the edges say that each target changes by, ``[target]``.

    Args:
        graph: whose units are changed.
        changes: each unit once.
        paths: through the graph's other units, too; else the direct effects alone.

    Raises:
        ConfigError: no change, a neuron that is no unit of the graph or is named twice, or one of activation 0 that is given another value (its edges
            are 0 and hold no slope).
    """
    n_units, n_targets = len(graph), graph.n_targets
    activations = graph.activations.double()
    slopes = graph.edges[:, :n_units].double() / torch.where(activations == 0, 1.0, activations)
    change = torch.zeros(n_units, dtype=torch.float64)
    fixed = torch.zeros(n_units, dtype=torch.bool)
    for unit, new in _resolved(graph, changes):
        change[unit], fixed[unit] = new - activations[unit], True
    if paths:
        for layer in sorted(set(graph.units.layer.tolist())):
            here = ((graph.units.layer == layer) & ~fixed).nonzero()[:, 0]
            change[here] = (
                slopes[n_targets + here] @ change
            )  # units of this layer and above have changed by 0 so far, or have no edge
    return slopes[:n_targets] @ change


def _resolved(graph: Graph, changes: Sequence[Change]) -> list[tuple[int, float]]:
    """``(unit, new value)`` of every change."""
    if not changes:
        raise ConfigError("Nothing is changed.")
    cells = zip(graph.units.layer.tolist(), graph.units.position.tolist(), graph.units.neuron.tolist(), strict=True)
    number = {cell: i for i, cell in enumerate(cells)}
    found: dict[int, float] = {}
    for one in changes:
        n = len(graph.ids)
        cell = (one.layer, one.position % n if -n <= one.position < n else one.position, one.neuron)
        if cell not in number:
            raise ConfigError(f"{one} is no unit of the graph.", todo="Change units that are nodes: graph.nodes().")
        unit = number[cell]
        if unit in found:
            raise ConfigError(f"{one} is changed twice.")
        now = float(graph.activations[unit])
        new = one.factor * now if one.value is None else one.value
        if not np.isfinite(new):
            raise ConfigError(f"{one} is no finite value.")
        if now == 0 and new != 0:
            raise ConfigError(f"{one} was 0 on the prompt.", why="Its edges are 0 and say nothing of what it would write.")
        found[unit] = new
    return sorted(found.items())


@dataclass(frozen=True, eq=False)
class _SetUnits(Replace):
    """At ``mlp_act``: single entries of single sequences are set."""

    at: tuple[Tensor, Tensor, Tensor] = field(default_factory=lambda: (torch.zeros(0), torch.zeros(0), torch.zeros(0)))
    """Sequence, row, neuron."""

    def act(self, chosen: Tensor, point: Point) -> Tensor:
        out = chosen.clone()
        out[self.at] = self.value.to(out) if isinstance(self.value, Tensor) else self.value
        return out


def intervene(
    instrument: Instrument,
    graph: Graph,
    sets: Sequence[Sequence[Change]],
    *,
    answer: int,
    wrong: int,
    target: int = 0,
    hold: Hold = "nothing",
    dictionary: Dictionary | None = None,
    mlps: Literal["dictionary", "model"] = "dictionary",
    max_tokens: int = 1024,
) -> pl.DataFrame:
    """Run the prompt with sets of units changed, beside what the graph predicts.

    Args:
        instrument: the graph's model.
        graph: one of whose targets is ``logit(answer) − logit(wrong)`` at the last position.
        sets: each is one intervention.
        answer, wrong: token ids.
        target: which of the graph's targets that is.
        hold: what is held as it was on the prompt.
        dictionary: the graph's, where it has one.
        mlps: what answers in the dictionary's layers; see the module.
        max_tokens: rows run together.

    Returns:
        One row a set: ``set changed before observed direct paths``: the number of units, the logit difference before, and its change as observed and
        as predicted.

    Raises:
        ConfigError: no sets, an unknown ``hold`` or ``mlps``, a target that is another one, a dictionary that is missing or not the graph's; as in
            :func:`predicted_change`.
        UnsupportedModelError: neurons that are no single vector, in a layer that has neurons.
    """
    require_dictionary(graph, dictionary)
    if mlps not in ("dictionary", "model") or (mlps == "model" and hold == "all"):
        raise ConfigError(
            f"mlps={mlps!r} with hold={hold!r} is not defined.",
            why="Held MLPs answer to nothing." if mlps == "model" else "",
            todo="Use mlps='dictionary'; 'model' goes with hold='nothing' or 'attention'.",
        )
    if hold not in get_args(Hold):
        raise ConfigError(f"hold={hold!r} is not known.", todo=f"Use one of: {', '.join(get_args(Hold))}.")
    if not sets:
        raise ConfigError("There are no interventions.")
    if not 0 <= target < graph.n_targets:
        raise ConfigError(f"The graph has no target {target}.", todo=f"It has {graph.n_targets}.")
    parts = instrument.parts
    for layer in parts.layers:
        absent = layer.absent("mlp_act")
        if absent is not None and layer.index not in graph.feature_layers:
            raise UnsupportedModelError(
                absent,
                why="A neuron that is set must be an entry of one vector.",
                todo="Use a model without experts, or a dictionary of these layers.",
            )
    ids = torch.tensor(graph.ids)[None]
    predicted = [(predicted_change(graph, one, paths=False)[target], predicted_change(graph, one)[target]) for one in sets]
    held, before, scales = _held(instrument, graph, ids, hold, answer, wrong)
    value = graph.targets[target].value
    if not abs(before - value) <= _SAME * max(1.0, abs(value)):
        raise ConfigError(
            f"Target {target} of the graph is {graph.targets[target].name} = {value:.4f}, but the model gives these tokens {before:.4f}.",
            todo="Name the tokens of that target, at the last position.",
        )
    resolved = [_resolved(graph, one) for one in sets]
    on_prompt = None if dictionary is None else standing(instrument, dictionary, ids, attention=_patterns(ids, hold))
    step, observed = max(1, max_tokens // ids.shape[1]), []
    for start in range(0, len(sets), step):
        part = resolved[start : start + step]
        edits = [*held, *_setting(graph, part)]
        if dictionary is not None and on_prompt is not None:
            change = _FeaturesSet(graph, part, on_prompt if hold == "all" else None)
            errors = None if mlps == "model" else on_prompt.errors
            edits += stand_in(parts, dictionary, errors, change, scales=scales)
        logits = instrument.run(ids.repeat(len(part), 1), edits=edits, keep_logits=1).logits
        assert logits is not None
        observed += (_difference(instrument, logits[:, -1], answer, wrong) - before).tolist()
    rows = [
        (i, len(one), before, seen, float(direct), float(through))
        for i, (one, seen, (direct, through)) in enumerate(zip(resolved, observed, predicted, strict=True))
    ]
    return pl.DataFrame(rows, schema=INTERVENTION_SCHEMA, orient="row")


def _setting(graph: Graph, part: Sequence[Sequence[tuple[int, float]]]) -> list[Edit]:
    """The edits that set every sequence's neurons."""
    edits: list[Edit] = []
    for layer in sorted(set(graph.units.layer.tolist()) - graph.feature_layers):
        at, new = _entries(graph, part, layer)
        if len(new):
            edits.append(_SetUnits(f"mlp_act.{layer}", value=new, at=at))
    return edits


def _entries(graph: Graph, part: Sequence[Sequence[tuple[int, float]]], layer: int) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """(sequence, row, number) and the new value of what is set in a layer, ``[n]`` each."""
    units = graph.units
    flat = [
        (sequence, unit, new) for sequence, changes in enumerate(part) for unit, new in changes if int(units.layer[unit]) == layer
    ]
    sequence, unit = (torch.tensor([row[i] for row in flat], dtype=torch.long) for i in (0, 1))
    new = torch.tensor([row[2] for row in flat], dtype=torch.float64)
    return (sequence, units.position[unit], units.neuron[unit]), new


@dataclass(frozen=True, eq=False)
class _FeaturesSet:
    """Features of single sequences are set; the others are live, or as they were on the prompt."""

    graph: Graph
    part: Sequence[Sequence[tuple[int, float]]]
    held: Standing | None

    def __call__(self, layer: int, live: Tensor) -> Tensor:
        out = (live if self.held is None else self.held.features[layer].expand_as(live)).clone()
        at, new = _entries(self.graph, self.part, layer)
        out[at] = new.to(out)
        return out


def _difference(instrument: Instrument, logits: Tensor, answer: int, wrong: int) -> Tensor:
    """Of ``logits [batch, vocab]``, before any softcap."""
    cap = instrument.parts.logit_softcap
    both = logits[:, [answer, wrong]].double()
    both = both if cap is None else cap * torch.atanh(both / cap)
    return both[:, 0] - both[:, 1]


def _patterns(ids: Tensor, hold: Hold) -> AttentionRead | None:
    """The whole attention patterns, where they are held."""
    return None if hold == "nothing" else AttentionRead(stats=(), rows=tuple(range(-ids.shape[1], 0)), weights=True)


def _held(
    instrument: Instrument, graph: Graph, ids: Tensor, hold: Hold, answer: int, wrong: int
) -> tuple[list[Edit], float, FrozenScales | None]:
    """What keeps the run as the prompt has it, the prompt's logit difference, and the norms' scales of the layers of a dictionary."""
    parts, features = instrument.parts, graph.feature_layers
    layers = range(parts.n_layers)
    reads: list[str] = []
    if hold == "all":
        kinds = ("resid_pre", "resid_mid", "z", "mlp_act")
        reads = [f"{kind}.{i}" for i in layers for kind in kinds if parts.layers[i].absent(kind) is None]
        reads.append(f"resid_post.{parts.n_layers - 1}")
    trace = instrument.run(ids, reads=reads, attention=_patterns(ids, hold))
    assert trace.logits is not None
    edits: list[Edit] = []
    scales = None
    if trace.attention is not None:
        edits = [PatternReplace(trace.attention["weights"][i], None, (i,)) for i in parts.attention_layers]
    if hold == "all":
        names = [f"{name}.{i}" for i in layers for name in _NORMS if getattr(parts.layers[i], name) is not None]
        found = {
            name: norm_scales(trace, name, parts)
            for name in (*names, "final_norm")
            if not name.startswith("post_mlp_norm.") or parts.layers[int(name.partition(".")[2])].mlp_down is not None
        }
        edits += [FreezeNorm(name, scale) for name, scale in found.items()]
        edits += [Replace(f"mlp_act.{i}", value=trace[f"mlp_act.{i}"]) for i in layers if i not in features]
        scales = FrozenScales(
            *(
                {i: found[f"{kind}.{i}"][0] for i in features if f"{kind}.{i}" in found}
                for kind in ("pre_mlp_norm", "post_mlp_norm")
            )
        )
    return edits, float(_difference(instrument, trace.logits[:, -1], answer, wrong)[0]), scales


def intervention_agreement(frames: Sequence[pl.DataFrame], *, seed: int = 0, level: float = 0.95) -> pl.DataFrame:
    """How well predictions agree with what was observed, over prompts.

    Args:
        frames: from :func:`intervene`, one a prompt, each of three or more interventions.
        seed: of the shuffles and of the bootstrap.
        level: of the intervals.

    Returns:
        One row a prediction (``direct``, ``paths``) and measure (``correlation``, ``sign``, ``error``): ``mean low high`` over prompts, ``shuffled`` (the
        mean of the same measure with the predictions shuffled inside each prompt, 20 times), ``n`` prompts, ``interventions`` in all.

    Raises:
        ConfigError: no frames, or one of fewer than three interventions.
    """
    if not frames or any(len(frame) < 3 for frame in frames):
        raise ConfigError("Give the interventions of at least one prompt, three or more each.")
    generator = np.random.default_rng(seed)
    rows = []
    for prediction in ("direct", "paths"):
        found, shuffled = [], []
        for frame in frames:
            x, y = frame[prediction].to_numpy(), frame["observed"].to_numpy()
            found.append(_agreement(x, y))
            shuffled.append(np.mean([_agreement(generator.permutation(x), y) for _ in range(20)], axis=0))
        for i, (measure, least, most) in enumerate((("correlation", -1.0, 1.0), ("sign", 0.0, 1.0), ("error", 0.0, np.inf))):
            estimate = bootstrap_mean([one[i] for one in found], seed=seed, level=level)
            bounds = np.clip([estimate.value, estimate.low, estimate.high], least, most).tolist()
            control = float(np.mean([one[i] for one in shuffled]))
            rows.append((prediction, measure, *bounds, control, estimate.n, sum(map(len, frames))))
    return pl.DataFrame(rows, schema=AGREEMENT_SCHEMA, orient="row")


def _agreement(x: Any, y: Any) -> tuple[float, float, float]:
    """Correlation (0 where one of both is constant), share of equal signs, error."""
    spread = float(np.std(x) * np.std(y))
    correlation = float(((x - x.mean()) * (y - y.mean())).mean()) / spread if spread > 0 else 0.0
    size = float(np.abs(y).sum())
    return correlation, float((np.sign(x) == np.sign(y)).mean()), float(np.abs(x - y).sum()) / size if size > 0 else 0.0
