"""The quality report of a set of directions: how good each is, beside what it would be without a concept.

1. Per concept and layer: held-out AUC by leaving one scenario out (``_held_out``) with its interval and its permutation null, ratio of variance between to
   within classes on the held-out scores, and the single numbers of ``_quality_parts``; the nearest concepts by cosine.
2. Labels are permuted within scenarios, the same draws in every layer. Nulls from permuted labels are made for the difference of means only; other
   estimators have intervals and null None.
3. Concepts with fewer than 5 positives are measured but not ranked, and the report says so. Where nothing can be held out (one scenario) there is no AUC,
   and whatever comes from held-out scores has value None with the reason.
4. Where heads were collected, every concept has the ``per_head`` block.
5. A layer is chosen by looking, so its p value (``p_model``) is family-wise over the layers (``_null``). ``p_concepts`` is Holm's over the ranked concepts,
   of the smallest p of each (``p_smallest``: the concept, in whichever layer). The interval of the chosen layer's AUC knows nothing of that choice.
6. ``other_negatives``: in the chosen layer, the held-out AUC of the same concept against the other negatives (the other concepts where the report is against
   neutral tellings, and the other way round), which takes out what all texts under a concept share. Its p is corrected for nothing.
7. ``similarity``: cosines of the directions with their null (``_similarity``). With the corpus given: ``words_alone``, what words tell without any model, and
   the stated families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TYPE_CHECKING

import numpy as np

from symbolic_residue.concepts._collect import Pooled
from symbolic_residue.concepts._corpus import BASELINE, Corpus
from symbolic_residue.concepts._design import Against, Design, draw_labels, make_design
from symbolic_residue.concepts._directions import Directions
from symbolic_residue.concepts._heads import decompose_heads
from symbolic_residue.concepts._heads_block import per_head_block
from symbolic_residue.concepts._held_out import fold_auc, held_out_null, held_out_scores, variance_ratio
from symbolic_residue.concepts._null import max_t_p, standardised
from symbolic_residue.concepts._quality_parts import (
    alignment,
    estimate_block,
    length_cosine,
    length_leak,
    mlp_columns,
    mlp_cosine,
    mlp_null,
    null_block,
    pc_share,
    scenario_leak,
)
from symbolic_residue.concepts._rows import label_weights, Rows
from symbolic_residue.concepts._similarity import permuted_weights, similarity_blocks
from symbolic_residue.concepts._words_alone import words_alone
from symbolic_residue.errors import ConfigError
from symbolic_residue.stats import bound, generator, holm, wilson

if TYPE_CHECKING:
    from symbolic_residue.models import Parts

__all__ = ["MIN_POSITIVES", "quality_report"]

MIN_POSITIVES = 5
"""Fewer positives than that are not ranked."""
LEVEL = 0.05
"""Family-wise level at which a layer may be chosen for its AUC."""
_SMALL = 200
"""Draws of the nulls that are not permutations of labels."""
_NEAREST = 3
_ONE = "Without one scenario no positive or no negative is left, so nothing can be held out."


def quality_report(
    pooled: Pooled,
    labels: Sequence[str],
    scenarios: Sequence[str | None],
    directions: Directions,
    parts: Parts,
    *,
    n_draws: int = 1000,
    seed: int = 0,
    corpus: Corpus | None = None,
    progress: Callable[[str], None] | None = None,
    done: Mapping[str, dict[str, Any]] | None = None,
    keep: Callable[[str, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """The content of ``quality.json``: plain data.

    Args:
        pooled: of :func:`collect`, the texts that the directions were found on.
        labels, scenarios: one a text.
        directions: of these texts.
        parts: the model's parts (MLP columns, output weights).
        n_draws: permutations of the labels; 1000 or more.
        seed: of everything drawn.
        corpus: that the texts are of, for ``words_alone`` and ``families``.
        progress: called with each concept as it begins.
        done: concepts' blocks of an earlier call with the same arguments, which are taken over.
        keep: called with each concept's name and block once it is whole.

    Raises:
        ConfigError: too few draws, or labels that do not fit.
    """
    if n_draws < 1000:
        raise ConfigError(f"{n_draws} permutations are too few.", why="The tails would be noise.", todo="Draw 1000 or more.")
    if len(labels) != len(pooled):
        raise ConfigError(f"There are {len(labels)} labels for {len(pooled)} texts.", todo="Give one label a text.")
    neurons = _neurons(directions, parts, seed)
    concepts: dict[str, Any] = {}
    for concept in directions.concepts:
        if done is not None and concept in done:
            concepts[concept] = done[concept]
            continue
        if progress is not None:
            progress(concept)
        design = make_design(labels, scenarios, concept, directions.against)
        drawn = draw_labels(design, n_draws, seed)
        all_labels = np.concatenate([design.positive[None], drawn])
        layers, drawn_auc = {}, {}
        for i in directions.layers:
            layers[str(i)], drawn_auc[i] = _layer(pooled, labels, scenarios, directions, concept, design, all_labels, i, seed)
            layers[str(i)]["mlp"] = neurons[i, concept]
        chosen = _chosen(layers, drawn_auc)
        ranked = design.n_pos >= MIN_POSITIVES
        concepts[concept] = {
            "n_pos": design.n_pos,
            "n_neg": design.n_neg,
            "n_scenarios": design.n_folds,
            "paired": design.paired,
            "left_out": design.left_out,
            "positive_rows": design.rows[design.positive].tolist(),
            "smallest_p": design.smallest_p,
            "ranked": ranked,
            "why_not_ranked": None if ranked else f"{design.n_pos} positives; {MIN_POSITIVES} are needed.",
            "chosen": chosen,
            "other_negatives": _other_negatives(pooled, labels, scenarios, directions, concept, chosen["layer"], n_draws, seed),
            "layers": layers,
        }
        if pooled.heads and design.n_neg < 2:
            concepts[concept]["per_head"] = {"value": None, "reason": "There is one negative, which has no spread."}
        elif pooled.heads:
            found = decompose_heads(pooled, labels, scenarios, concept, parts, directions, n_draws=n_draws, seed=seed)
            concepts[concept]["per_head"] = per_head_block(found)
        if keep is not None:
            keep(concept, concepts[concept])
    ranking = {
        str(i): sorted(
            (c for c in concepts if concepts[c]["ranked"] and concepts[c]["layers"][str(i)]["auc"]["value"] is not None),
            key=lambda c, i=i: -concepts[c]["layers"][str(i)]["auc"]["value"],
        )
        for i in directions.layers
    }
    tested = [c for c in concepts if concepts[c]["ranked"] and concepts[c]["chosen"]["p_model"] is not None]
    for c, p in zip(tested, holm([concepts[c]["chosen"]["p_smallest"] for c in tested]) if tested else (), strict=True):
        concepts[c]["chosen"]["p_concepts"] = float(p)
    weights = permuted_weights(labels, scenarios, directions, _SMALL, seed) if directions.estimator == "difference" else None
    similarity = similarity_blocks(pooled, directions, weights)
    for i, block in similarity.items():
        for concept, share in zip(directions.concepts, block.pop("ridge_r2"), strict=True):
            concepts[concept]["layers"][i]["ridge_r2"] = share
    return {
        "model": asdict(directions.model),
        "estimator": directions.estimator,
        "against": directions.against,
        "pooling": directions.pooling,
        "m": directions.m,
        "corpus_sha256": directions.corpus_sha256,
        "families": None if corpus is None else {name: list(members) for name, members in corpus.families.items()},
        "words_alone": None if corpus is None else _words(corpus),
        "similarity": similarity,
        "n_draws": n_draws,
        "n_draws_small": _SMALL,
        "seed": seed,
        "concepts": concepts,
        "ranking_by_auc": ranking,
        "not_ranked": {c: one["why_not_ranked"] for c, one in concepts.items() if not one["ranked"]},
    }


def _neurons(directions: Directions, parts: Parts, seed: int) -> dict[tuple[int, str], dict[str, Any]]:
    """``mlp`` of every layer and concept, one layer's MLP at a time."""
    random = generator(seed).normal(size=(_SMALL, directions.model.hidden_size))
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for i in directions.layers:
        columns = mlp_columns(parts.layers[i])
        if isinstance(columns, str):
            found |= {(i, concept): {"value": None, "reason": columns} for concept in directions.concepts}
            continue
        null = mlp_null(columns, random)
        for concept in directions.concepts:
            found[i, concept] = mlp_cosine(directions.vector(concept, i).astype(np.float64), columns, null)
    return found


def _layer(
    pooled: Pooled,
    texts: Sequence[str],
    scenarios: Sequence[str | None],
    directions: Directions,
    concept: str,
    design: Design,
    labels: Any,
    i: int,
    seed: int,
) -> tuple[dict[str, Any], Any]:
    x = Rows(pooled.resid[i], design.rows)
    plain = directions.estimator == "difference"
    scores: Any = None
    shares, ratios = None, None
    if _can_hold_out(design):
        if plain:
            scores, shares, ratios = held_out_null(x, design, labels)
        else:
            scores = held_out_scores(x, design, directions.estimator)
    block: dict[str, Any] = {
        "auc": dict.fromkeys(("low", "high"))
        | {"value": None, "n": design.n_folds, "n_counts": "scenarios" if design.paired else "folds", "method": _ONE}
        if scores is None
        else estimate_block(fold_auc(scores, design), "scenarios" if design.paired else "folds")
    }
    if shares is not None and ratios is not None:
        block["auc"] |= {key: value for key, value in null_block(shares).items() if key != "value"}
        block["between_within"] = null_block(ratios)
    else:
        block["auc"] |= {"null_mean": None, "null_sd": None, "p": None, "p_model": None}
        ratio = None if scores is None else float(variance_ratio(scores[None], labels[:1])[0])
        block["between_within"] = {"value": ratio, "null_mean": None, "p": None}
    if design.paired and scores is not None:
        gaps = [scores[(design.stratum == s) & design.positive].mean() - scores[(design.stratum == s) & ~design.positive].mean()
                for s in range(design.n_strata)]  # fmt: skip
        block["pairs_in_order"] = estimate_block(wilson(int(np.count_nonzero(np.array(gaps) > 0)), len(gaps)), "scenarios")
    v = directions.vector(concept, i).astype(np.float64)
    at = directions.concepts.index(concept)
    vectors = directions.vectors[i].astype(np.float64)
    cosines = vectors @ v
    order = [j for j in np.argsort(-np.abs(cosines), kind="stable") if j != at][:_NEAREST]
    permuted = None
    if plain:
        permuted = x.sums(label_weights(design, labels[1 : _SMALL + 1]))
        permuted /= np.maximum(np.linalg.norm(permuted, axis=1, keepdims=True), 1e-300)
    neutral = np.flatnonzero([label == BASELINE for label in texts])
    names = np.array(["" if scenarios[r] is None else f"={scenarios[r]}" for r in design.rows])
    block |= {
        "pc_share": pc_share(pooled.resid[i], design, scenarios, _SMALL, seed),
        "alignment": alignment(x, design, scenarios),
        "nearest": [[directions.concepts[j], float(np.clip(cosines[j], -1, 1))] for j in order],
        "length": {"r": None, "reason": _ONE}
        if scores is None
        else length_leak(scores, pooled.n_tokens[design.rows].astype(np.float64), design),
        "length_direction": length_cosine(v, pooled.resid[i], pooled.n_tokens, neutral, permuted),
        "scenario": {"value": None, "reason": _ONE}
        if scores is None
        else scenario_leak(scores, np.unique(names, return_inverse=True)[1], design.positive, _SMALL, seed),
    }
    return block, shares


def _other_negatives(
    pooled: Pooled,
    labels: Sequence[str],
    scenarios: Sequence[str | None],
    directions: Directions,
    concept: str,
    layer: int | None,
    n_draws: int,
    seed: int,
) -> dict[str, Any]:
    """Held-out AUC in one layer against the negatives that the report is not about."""
    rival: Against = "baseline" if directions.against == "others" else "others"
    none = {"against": rival, "layer": layer, "auc": None}
    try:
        design = make_design(labels, scenarios, concept, rival)
    except ConfigError as error:
        return none | {"reason": error.what}
    if layer is None or not _can_hold_out(design):
        return none | {"reason": _ONE}
    x = Rows(pooled.resid[layer], design.rows)
    if directions.estimator != "difference":
        scores = held_out_scores(x, design, directions.estimator)
        return none | {"auc": estimate_block(fold_auc(scores, design), "scenarios" if design.paired else "folds") | {"p": None}}
    drawn = np.concatenate([design.positive[None], draw_labels(design, n_draws, seed)])
    scores, shares, _ = held_out_null(x, design, drawn)
    block = estimate_block(fold_auc(scores, design), "scenarios" if design.paired else "folds")
    return none | {"auc": block | {key: value for key, value in null_block(shares).items() if key != "value"}}


def _can_hold_out(design: Design) -> bool:
    """Whether both classes are left without any one fold."""
    return design.n_folds > 1 and all(
        design.positive[kept].any() and not design.positive[kept].all()
        for kept in (design.fold != fold for fold in range(design.n_folds))
    )


def _chosen(layers: dict[str, dict[str, Any]], drawn: dict[int, Any]) -> dict[str, Any]:
    """The layer to show, with p over the layers; writes ``p_model`` into the layers' blocks. Whichever layer is chosen, its p is paid for."""
    if any(one["auc"]["value"] is None for one in layers.values()):
        return {"layer": None, "rule": _ONE, "p_model": None, "p_smallest": None, "p_concepts": None}
    if any(one is None for one in drawn.values()):
        best = max(layers, key=lambda i: layers[i]["auc"]["value"])
        return {"layer": int(best), "rule": "largest held-out AUC, chosen by looking; no null", "p_model": None, "p_smallest": None,
                "p_concepts": None}  # fmt: skip
    z = standardised(np.stack([drawn[i] for i in drawn], axis=1))
    p = max_t_p(z[0], z.max(1))
    for i, one in zip(drawn, p, strict=True):
        layers[str(i)]["auc"]["p_model"] = float(one)
    small = [i for i, one in zip(drawn, p, strict=True) if one <= LEVEL]
    best = max(small, key=lambda i: layers[str(i)]["auc"]["value"]) if small else list(drawn)[int(p.argmin())]
    rule = f"largest held-out AUC among the layers with p ≤ {LEVEL} over all layers; without one, the smallest p"
    return {
        "layer": best,
        "rule": rule,
        "p_model": layers[str(best)]["auc"]["p_model"],
        "p_smallest": float(p.min()),
        "p_concepts": None,
    }


def _words(corpus: Corpus) -> dict[str, Any]:
    """Concept → negatives → AUC by words alone; value None where it could not be had."""
    found: dict[str, Any] = {}
    for row in words_alone(corpus):
        auc = row.auc
        value, low, high = (bound(x) for x in (auc.value, auc.low, auc.high))
        found.setdefault(row.concept, {})[row.against] = {
            "value": value, "low": low, "high": high, "n": auc.n, "n_counts": "scenarios", "method": auc.method,
        }  # fmt: skip
    return found
