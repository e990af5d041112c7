"""Faithfulness: how few neurons (or features), all others at their values in the corrupted run, bring back the clean run's answer.

1. A score ranks the units in play (``_baselines``), largest first: layer × position × neuron, from the first position on at which the prompts differ.
2. The first n stay live, all others get the corrupted run's value (``_kept``); the metric is ``logit(answer) − logit(wrong)``.
3. ``recovered(n) = (metric(n) − metric(0)) / (metric(all) − metric(0))``: 0 with none kept, 1 with all, by measurement. It may leave 0 to 1: helpful
   neurons kept without the harmful ones overshoot. Of features with errors at the corrupted run's values (the default, see ``_kept_features``) 1 is the clean
   run, which all features together may miss: the rest is in the errors.
4. ``area``: recovered, cut to 0 … 1, over log2 n from n = 1 to all in play, by trapezoids between the measured n, divided by the length of that axis: 1 if
   one neuron were enough, 0 if all were needed. ``miss``: ``|1 − recovered|``, not cut, over the same axis: it counts an overshoot as an error.
   ``n80``, ``n90``: the n at which recovered first reaches 0.8 and 0.9, linear in log2 n between measured n.
5. Where keeping all does not raise the metric by ``floor`` above keeping none there is nothing to recover: the pair is listed with that reason, and has no
   numbers.
6. Over pairs (``compare_scores``): means and paired differences with bootstrap intervals; the pair is the unit, or the frame that several share. Draws of
   the random score are averaged inside each pair first. n80 and n90 are averaged as logarithms (geometric means).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from torch import Tensor

from symbolic_residue.dictionaries import Dictionary
from symbolic_residue.errors import ConfigError
from symbolic_residue.graph._baselines import ScoreName, SCORES
from symbolic_residue.graph._feature_scores import scores_of
from symbolic_residue.graph._features import require_dictionary
from symbolic_residue.graph._kept import check_ends, PairRun, ranks
from symbolic_residue.graph._kept_features import Errors, FeaturePairRun, run_units
from symbolic_residue.graph._pairs import token_pair, TokenPair
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import CounterfactualPair
from symbolic_residue.stats import cluster_bootstrap

if TYPE_CHECKING:
    from symbolic_residue.graph._graph import Graph

__all__ = ["Faithfulness", "compare_scores", "curve_numbers", "curves_of", "faithfulness", "graph_faithfulness", "log_counts"]

CURVE_SCHEMA: dict[str, Any] = {
    "score": pl.String,
    "draw": pl.Int64,
    "n": pl.Int64,
    "difference": pl.Float64,
    "recovered": pl.Float64,
}
SUMMARY_SCHEMA: dict[str, Any] = {
    "pair": pl.String,
    "category": pl.String,
    "frame": pl.String,
    "score": pl.String,
    "in_play": pl.Int64,
    "area": pl.Float64,
    "miss": pl.Float64,
    "n80": pl.Float64,
    "n90": pl.Float64,
    "reason": pl.String,
}
COMPARISON_SCHEMA: dict[str, Any] = {
    "category": pl.String,
    "score": pl.String,
    "measure": pl.String,
    "mean": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "difference": pl.Float64,
    "difference_low": pl.Float64,
    "difference_high": pl.Float64,
    "n": pl.Int64,
}


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Curves of one pair.

    Attributes:
        pair: in its tokenizer.
        in_play: neurons × positions that could be kept.
        clean, corrupted: logit difference of each prompt.
        none_kept: of the clean prompt with the corrupted run's MLPs.
        curves: one row a score, draw and n: ``score draw n difference recovered``.
        reason: why there is nothing to recover; None where there is.
        all_kept: with all in play kept.
        errors: whose values the errors of a dictionary had; None of neurons.
    """

    pair: TokenPair
    in_play: int
    clean: float
    corrupted: float
    none_kept: float
    curves: pl.DataFrame
    reason: str | None
    all_kept: float = math.nan
    errors: Errors | None = None

    def summary(self) -> pl.DataFrame:
        """One row a score (means over its draws; n80 and n90 as logarithms): ``pair category frame score in_play area miss n80 n90 reason``."""
        rows = []
        about = self.pair.pair
        for score in self.curves["score"].unique(maintain_order=True):
            of_score = self.curves.filter(pl.col("score") == score)
            head = (about.id, about.category, about.frame, score, self.in_play)
            if self.reason is not None:
                rows.append((*head, None, None, None, None, self.reason))
                continue
            drawn = [curve_numbers(one["n"].to_list(), one["recovered"].to_list()) for one in of_score.partition_by("draw")]
            area, miss = (sum(numbers) / len(drawn) for numbers in ([d[0] for d in drawn], [d[1] for d in drawn]))
            reached = [_geometric(few) for few in ([d[2] for d in drawn], [d[3] for d in drawn])]
            rows.append((*head, area, miss, *reached, None))
        return pl.DataFrame(rows, schema=SUMMARY_SCHEMA, orient="row")


def log_counts(in_play: int, points: int = 24) -> list[int]:
    """``points`` whole numbers: 0, and evenly in the logarithm from 1 to all (fewer where several round to one).

    Raises:
        ConfigError: fewer than 4 points.
    """
    if points < 4:
        raise ConfigError(f"{points} points are no curve.", todo="Give 4 or more.")
    steps = points - 2
    return sorted({0, in_play, *(round(in_play ** (k / steps)) for k in range(steps + 1))})


def curve_numbers(counts: Sequence[int], recovered: Sequence[float]) -> tuple[float, float, float | None, float | None]:
    """``(area, miss, n80, n90)`` of a curve, see the module; ``counts`` ascend, a 0 is left out of the axis; None where a share is not reached."""
    points = [(math.log2(n), f) for n, f in zip(counts, recovered, strict=True) if n > 0]
    if len(points) < 2 or any(b[0] <= a[0] for a, b in itertools.pairwise(points)):
        raise ConfigError("A curve needs two or more counts above 0, in ascending order.")
    length = points[-1][0] - points[0][0]
    area = miss = 0.0
    for (x0, f0), (x1, f1) in itertools.pairwise(points):
        area += (x1 - x0) * (min(max(f0, 0.0), 1.0) + min(max(f1, 0.0), 1.0)) / 2
        miss += (x1 - x0) * (abs(1 - f0) + abs(1 - f1)) / 2
    return area / length, miss / length, _reached(points, 0.8), _reached(points, 0.9)


def _geometric(values: Sequence[float | None]) -> float | None:
    """The geometric mean; None where a value is missing."""
    known = [math.log2(one) for one in values if one is not None]
    return 2 ** (sum(known) / len(known)) if len(known) == len(values) else None


def _reached(points: Sequence[tuple[float, float]], share: float) -> float | None:
    before: tuple[float, float] | None = None
    for x, f in points:
        if f >= share:
            return 2**x if before is None else 2 ** (before[0] + (x - before[0]) * (share - before[1]) / (f - before[1]))
        before = (x, f)
    return None


def faithfulness(
    instrument: Instrument,
    pair: CounterfactualPair | TokenPair,
    *,
    units: Literal["neurons"] | Dictionary = "neurons",
    errors: Errors = "corrupted",
    scores: Sequence[ScoreName] = SCORES,
    points: int = 24,
    draws: int = 3,
    steps: int = 5,
    seed: int = 0,
    floor: float = 0.1,
) -> Faithfulness:
    """The curves of one pair under several scores.

    Args:
        instrument: the model.
        pair: packaged or yours.
        units: ``neurons``, or a dictionary: its features, and the neurons of layers that it lacks.
        errors: of a dictionary: whose values they have; see ``_kept_features``.
        scores: see ``_baselines``.
        points: n of a curve, see :func:`log_counts`.
        draws: of ``random``.
        steps: of ``eap-ig``.
        seed: of ``random``.
        floor: least rise of the difference in logits from none to all kept.

    Raises:
        ConfigError: an unknown score, or an option out of range.
        PromptError: a pair that does not fit the tokenizer.
        DictionaryError: a dictionary of another model.
        UnsupportedModelError: neurons that are no single vector.
        VerificationError: keeping all units is not the clean run.
    """
    if not scores or draws < 1 or not floor > 0:
        raise ConfigError("Give at least one score, one draw and a floor above 0.")
    unknown = [one for one in scores if one not in SCORES]
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is no score.", todo=f"Use one of: {', '.join(SCORES)}.")
    run = _run(instrument, pair, units, errors)
    counts = log_counts(run.in_play, points)
    named: list[tuple[str, int, tuple[Tensor, ...]]] = []
    makers = scores_of(run, steps=steps, seed=seed)
    for name in dict.fromkeys(scores):
        for draw in range(draws if name == "random" else 1):
            made = scores_of(run, seed=seed + draw) if name == "random" else makers
            named.append((name, draw, made.score(name)))
    return curves_of(run, named, counts, floor)


def graph_faithfulness(
    graph: Graph,
    instrument: Instrument,
    pair: CounterfactualPair | TokenPair,
    *,
    dictionary: Dictionary | None = None,
    errors: Errors = "corrupted",
    points: int = 16,
    draws: int = 3,
    seed: int = 0,
    floor: float = 0.1,
) -> Faithfulness:
    """How much of a pair's difference a graph's own units bring back, its most influential first, beside as many drawn at random.

    The curve runs up to the graph's units that are in play (those before the first difference of the prompts are the same in both runs); its last point is
    what the graph holds. ``random`` draws as many units from all that are in play.

    Args:
        graph: of the pair's clean prompt.
        instrument: of its model.
        dictionary: the graph's, where it has one.
        pair: see :func:`faithfulness`, as are the other arguments.

    Raises:
        ConfigError: the graph is of another prompt, none of its units is in play, or the dictionary is missing or not the graph's.
        PromptError, UnsupportedModelError, VerificationError: as in :func:`faithfulness`.
    """
    require_dictionary(graph, dictionary)
    run = _run(instrument, pair, dictionary or "neurons", errors)
    if tuple(run.pair.clean.ids) != graph.ids:
        raise ConfigError(
            "The graph is not of the pair's clean prompt.", todo="Make it with attribute_prompt(instrument, token_pair.clean)."
        )
    scores, held = _placed(graph, run)
    if held < 2:
        raise ConfigError(f"{held} of the graph's units are in play.", todo="Make a graph of more nodes.")
    counts = [*log_counts(held, points), run.in_play]
    named: list[tuple[str, int, tuple[Tensor, ...]]] = [("graph", 0, scores)]
    named += [("random", draw, scores_of(run, seed=seed + draw).score("random")) for draw in range(draws)]
    found = curves_of(run, named, counts, floor)
    return replace(found, curves=found.curves.filter(pl.col("n") <= held))


def _run(
    instrument: Instrument, pair: CounterfactualPair | TokenPair, units: Literal["neurons"] | Dictionary, errors: Errors
) -> PairRun:
    return run_units(instrument, pair if isinstance(pair, TokenPair) else token_pair(instrument, pair), units, errors)


def _placed(graph: Graph, run: PairRun) -> tuple[tuple[Tensor, ...], int]:
    """The influence of a graph's units where they stand in the run, −1 for all others, and how many are in play."""
    influence = graph.influence()[: len(graph)].double()
    scores = [torch.full(one.shape, -1.0, dtype=torch.float64) for one in run.clean]
    held = 0
    for i, one in enumerate(scores):
        at = graph.units.at(i)
        at = at[graph.units.position[at] >= run.pair.first]
        row, number = graph.units.position[at] - run.pair.first, graph.units.neuron[at]
        cells = run.cells[i] if isinstance(run, FeaturePairRun) else None
        if cells is None:
            one[row, number] = influence[at]
        elif len(cells[0]):
            count = int(torch.cat([cells[1], number]).max()) + 1
            keys, wanted = cells[0] * count + cells[1], row * count + number
            place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
            there = keys[place] == wanted
            one[place[there]], at = influence[at[there]], at[there]
        else:
            at = at[:0]
        held += len(at)
    return tuple(scores), held


def curves_of(
    run: PairRun, named: Sequence[tuple[str, int, Sequence[Tensor]]], counts: Sequence[int], floor: float
) -> Faithfulness:
    """Curves over the counts, the first of which is 0 and the last all; both ends run once, for no order matters to them."""
    none: float | None = None
    every = whole = math.nan
    rows: list[tuple[str, int, int, float, float | None]] = []
    for name, draw, scores in named:
        order = ranks(scores)
        if none is None:
            found = run.kept(order, counts)
            none, every = float(found[0]), float(found[-1])
            if isinstance(run, FeaturePairRun):  # checked when it was made
                whole = run.whole
            else:
                check_ends(run, every)
                whole = every
        else:
            found = torch.cat(
                [
                    torch.tensor([none], dtype=torch.float64),
                    run.kept(order, counts[1:-1]),
                    torch.tensor([every], dtype=torch.float64),
                ]
            )
        gap = whole - none
        for n, value in zip(counts, found.tolist(), strict=True):
            rows.append((name, draw, n, value, (value - none) / gap if gap >= floor else None))
    assert none is not None
    reason = None
    if whole - none < floor:
        reason = f"nothing to recover: the difference is {whole:.2f} with all kept and {none:.2f} with none, not {floor:g} more"
    curves = pl.DataFrame(rows, schema=CURVE_SCHEMA, orient="row")
    errors = run.errors if isinstance(run, FeaturePairRun) else None
    return Faithfulness(run.pair, run.in_play, run.clean_difference, run.corrupted_difference, none, curves, reason, every, errors)


def compare_scores(
    summaries: pl.DataFrame, *, against: str = "eap-ig", by: Literal["pair", "frame"] = "pair", seed: int = 0, level: float = 0.95
) -> pl.DataFrame:
    """Means over pairs, and paired differences from one score.

    Args:
        summaries: rows of :meth:`Faithfulness.summary` of any number of pairs, the same scores for each.
        against: the score that the others are compared with.
        by: what is resampled: pairs, or the frames (of a category) that pairs share.
        seed: of the bootstrap.
        level: of the intervals, each by itself.

    Returns:
        One row a category (and ``all``), score and measure: ``mean low high`` over pairs, ``difference difference_low difference_high`` of score −
        ``against`` over the same pairs, ``n`` pairs (frames). For ``n80`` and ``n90`` the mean is geometric, and the difference is log2 of the ratio.

    Raises:
        ConfigError: no rows with numbers, a pair without the score ``against``, or with two rows of one score.
    """
    usable = summaries.filter(pl.col("reason").is_null())
    if usable.is_empty() or against not in set(usable["score"]):
        raise ConfigError(f"There is no pair with numbers of {against!r}.")
    if usable.select("pair", "score").is_duplicated().any():
        raise ConfigError("A pair has two rows of one score.")
    rows = []
    for category in ("all", *usable["category"].unique(maintain_order=True)):
        part = usable if category == "all" else usable.filter(pl.col("category") == category)
        base = part.filter(pl.col("score") == against)
        for score in part["score"].unique(maintain_order=True):
            both = part.filter(pl.col("score") == score).join(base, on="pair", suffix="_base", how="left", validate="1:1")
            for measure in ("area", "miss", "n80", "n90"):
                values = both.select("pair", "category", "frame", measure, f"{measure}_base").drop_nulls()
                if values.is_empty():
                    continue
                x, y = (values[name].to_numpy() for name in (measure, f"{measure}_base"))
                few = measure in ("n80", "n90")
                if few:
                    x, y = np.log2(x), np.log2(y)
                labels = (values["pair"] if by == "pair" else values["category"] + ": " + values["frame"]).to_list()
                mean = cluster_bootstrap(x, labels, seed=seed, level=level)
                apart = cluster_bootstrap(x - y, labels, seed=seed, level=level)
                bounds, differences = [mean.value, mean.low, mean.high], [apart.value, apart.low, apart.high]
                if few:
                    bounds = [max(2**one, 1.0) for one in bounds]  # NaN stays
                elif measure == "area":
                    bounds, differences = np.clip(bounds, 0, 1).tolist(), np.clip(differences, -1, 1).tolist()
                else:
                    bounds = np.maximum(bounds, 0).tolist()
                rows.append((category, score, measure, *bounds, *differences, mean.n))
    return pl.DataFrame(rows, schema=COMPARISON_SCHEMA, orient="row")
