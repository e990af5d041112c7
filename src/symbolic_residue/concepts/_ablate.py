"""Do a concept's heads do anything? Mean ablation of the chosen heads against other heads of the same size.

The rules and numbers below were written before they were run on a trained model (design/decisions.md).

1. Scenarios are cut into two parts at random. On one part everything is chosen: the direction in each readout layer, the k heads, each head's mean
   over the negatives (the neutral tellings), the control sets. On the other part it is tried, and the other way round: every scenario is judged once,
   by heads that were chosen without it.
2. The heads' outputs at the pooled token are replaced by that mean, in positives and negatives alike. A scenario's contrast is mean positive − mean
   negative of the projections on the direction. ``lost`` = mean over scenarios of (contrast − contrast under ablation) / mean contrast: 0 nothing, 1
   all of it; it may pass both. Interval: bootstrap over scenarios (``bootstrap_ratio``).
3. Controls: sets of other heads matched in number by layer and in disturbance (``_choose``). One that disturbs less has its effect multiplied by what
   it falls short. ``p``: rank of the chosen heads' loss among the controls'. ``excess``: lost − mean of the controls, paired by scenario.
4. ``predicted``: what the heads write straight to the readout layer, Σ v · W_h (z_pos − z_neg) of the scenarios judged, as a share of the contrast;
   no later layer in between, no norm of the attention output.
5. Sanity: heads replaced by their own outputs (``self_drift``: the largest change of a projection, as a share of the mean contrast); heads replaced
   by their own class's mean (``own_mean``: what is lost then, about 0, for the mean contrast stays).
6. Verdict at the readout layer: ``carry``, p ≤ .05 and the interval of the excess above 0.10; ``not``, that interval below 0.10; else ``undecided``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.concepts._ablate_run import Readings, run_swaps, Swap, Tokens
from symbolic_residue.concepts._ablate_verdict import Ablation, FEWEST_CONTROLS, judge, PLAIN, SELF, Tried
from symbolic_residue.concepts._choose import check_heads, choose_heads, ChooseBy, Head, matched_sets, score_heads
from symbolic_residue.concepts._collect import Pooled
from symbolic_residue.concepts._design import Design, make_design
from symbolic_residue.concepts._directions import Directions
from symbolic_residue.concepts._estimators import fit, scenario_differences
from symbolic_residue.concepts._heads import output_weights
from symbolic_residue.concepts._pool import pooled_positions
from symbolic_residue.errors import ConfigError, ReadError
from symbolic_residue.instrument import collate, Instrument
from symbolic_residue.prompts import build_prompt, Prompt
from symbolic_residue.stats import generator
from symbolic_residue.types import Point

__all__ = ["ablate_heads"]

Array = NDArray[np.float64]
_DRIFT = 1e-2
"""How far a projection may be from the collected one, as a share of the largest: batches and padding round differently."""


def ablate_heads(
    instrument: Instrument,
    texts: Sequence[str],
    labels: Sequence[str],
    scenarios: Sequence[str | None],
    pooled: Pooled,
    directions: Directions,
    concept: str,
    *,
    layer: int | None = None,
    k: int = 10,
    by: ChooseBy = "selectivity",
    heads: Sequence[Head] | None = None,
    n_controls: int = 39,
    tokens: Tokens = "pooled",
    seed: int = 0,
) -> Ablation:
    """Ablate a concept's heads and see what is left of its readout.

    Args:
        instrument: the model that ``pooled`` was collected from.
        texts, labels, scenarios: of the corpus, one a row of ``pooled``.
        pooled: with heads.
        directions: say estimator, negatives, pooling and whether texts are a user's turn; directions are found anew on each part of the scenarios.
        concept: which.
        layer: readout layer; None is half of the model's layers, rounded down (the nearest that was collected).
        k: heads chosen, at most a quarter of those up to the readout layer.
        by: the score that they are chosen by.
        heads: (layer, head) to be tried in place of chosen ones, the same on both parts.
        n_controls: matched sets of other heads.
        tokens: ``pooled``: the pooled token alone; ``all``: every token but the first, by the head's mean over the neutral tellings' tokens.
        seed: of the parts and the control sets.

    Raises:
        ConfigError: an option out of range, a concept or layer that is not there, no scenarios with both tellings, or fewer than four of them.
        ReadError: no heads were collected, a named head's layer has none, or ``pooled`` is not what this model gives.
    """
    design, layers, reach = _checked(
        instrument, texts, labels, scenarios, pooled, directions, concept, layer, tokens, k, n_controls
    )
    named = None if heads is None else check_heads(heads, instrument.parts, reach)
    prompts = [build_prompt(instrument.loaded.tokenizer, texts[i], chat=directions.chat) for i in map(int, design.rows)]
    positions = [pooled_positions(p, directions.pooling, directions.m or 16) for p in prompts]
    means = _token_means(instrument, prompts, design, reach) if tokens == "all" else None
    order = generator(seed).permutation(design.n_folds)
    parts = [np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])]
    tried = [
        _part(
            instrument, pooled, design, directions, layers, reach, parts[1 - i], parts[i], k, by, named, n_controls, seed + i, prompts,
            positions, means,
        )
        for i in range(2)
    ]  # fmt: skip
    return judge(concept, layers, by if named is None else "named", tokens, seed, named is not None, tried)


def _checked(
    instrument: Instrument,
    texts: Sequence[str],
    labels: Sequence[str],
    scenarios: Sequence[str | None],
    pooled: Pooled,
    directions: Directions,
    concept: str,
    layer: int | None,
    tokens: Tokens,
    k: int,
    n_controls: int,
) -> tuple[Design, tuple[int, ...], tuple[int, ...]]:
    """Design; the readout layer and later ones; layers whose heads may be tried."""
    if len(texts) != len(pooled):
        raise ConfigError(
            f"There are {len(texts)} texts and {len(pooled)} collected rows.", todo="Give the texts that were collected."
        )
    if not pooled.heads:
        raise ReadError("No heads were collected.", todo="Collect with heads=True from a model with softmax attention.")
    if tokens not in ("pooled", "all"):
        raise ConfigError(f"tokens={tokens!r} is unknown.", todo="Use 'pooled' or 'all'.")
    if k < 1:
        raise ConfigError(f"The top {k} heads are none.", todo="Give k of 1 or more.")
    if n_controls < 1:
        raise ConfigError(f"{n_controls} controls are none.", todo=f"Ask for {FEWEST_CONTROLS} or more.")
    directions.vector(concept, directions.layers[0])
    design = make_design(labels, scenarios, concept, directions.against)
    if not design.paired or design.n_folds < 4:
        raise ConfigError(
            f"{concept!r} has {design.n_folds if design.paired else 0} scenarios with positives and negatives.",
            why="Heads are chosen on some scenarios and judged on others.",
            todo="Give four or more, each told under the concept and neutrally.",
        )
    n = instrument.parts.n_layers
    if layer is None:
        layer = min(pooled.layers, key=lambda i: (abs(i - n // 2), i))
    if layer not in pooled.layers:
        raise ConfigError(f"Layer {layer} was not collected.", todo=f"Layers: {', '.join(map(str, pooled.layers))}.")
    later = tuple(sorted({i for i in (3 * n // 4, n - 1) if i in pooled.layers and i > layer}))
    reach = tuple(i for i in sorted(pooled.heads) if i <= layer)
    if not reach:
        raise ConfigError(f"No layer up to {layer} has heads.", todo="Read at a later layer.")
    return design, (layer, *later), reach


def _part(
    instrument: Instrument,
    pooled: Pooled,
    design: Design,
    directions: Directions,
    layers: tuple[int, ...],
    reach: tuple[int, ...],
    train: NDArray[np.intp],
    judged_folds: NDArray[np.intp],
    k: int,
    by: ChooseBy,
    named: tuple[Head, ...] | None,
    n_controls: int,
    seed: int,
    prompts: Sequence[Prompt],
    positions: Sequence[range],
    means: dict[int, dict[int, Array]] | None,
) -> Tried:
    """Choose on ``train``, try on ``judged_folds``."""
    training, judged = design.only(train.tolist()), design.only(judged_folds.tolist())
    vectors: dict[int, Array] = {}
    for i in layers:
        raw = fit(np.asarray(pooled.resid[i][training.rows], dtype=np.float64), training, directions.estimator)
        vectors[i] = raw / np.linalg.norm(raw)
    scores = score_heads(pooled, training, instrument.parts, reach, vectors[layers[0]])
    there = sum(len(one.raw_norm) for one in scores.values())
    chosen = named or choose_heads(scores, min(k, max(1, there // 4)), by)
    controls = matched_sets(scores, chosen, n_controls, seed)
    x = {i: np.asarray(pooled.heads[i][judged.rows], dtype=np.float64) for i in reach}
    if means is None:
        mean = {i: one.negative_mean[None] for i, one in scores.items()}
        own = {i: one.negative_mean + judged.positive[:, None, None] * one.delta for i, one in scores.items()}
        swaps = [Swap({}), Swap.of(chosen, mean), Swap.of(chosen, x), Swap.of(chosen, own)]
    else:
        at = [int(row) for row in training.rows if int(row) in means]
        mean = {i: np.mean([means[row][i] for row in at], axis=0)[None] for i in reach}
        # A head's own outputs differ from token to token; no one value stands for them.
        swaps = [Swap({}), Swap.of(chosen, mean), Swap({}), Swap({})]
    swaps += [Swap.of(one.heads, mean) for one in controls]
    local = np.flatnonzero(np.isin(design.fold, judged_folds)).tolist()
    found = run_swaps(
        instrument,
        [prompts[i] for i in local],
        [positions[i] for i in local],
        swaps,
        vectors,
        tokens="pooled" if means is None else "all",
    )
    _same_model(found, pooled, judged, layers[0], vectors[layers[0]])
    wrote = {
        i: np.einsum("nhd,hdm,m->nh", x[i], output_weights(instrument.parts, i), vectors[layers[0]], optimize=True) for i in reach
    }
    direct = np.stack(
        [sum((wrote[i][:, h] for i, h in some), np.zeros(len(local))) for some in (chosen, *(c.heads for c in controls))]
    )
    change = found.projections[layers[0]]
    return Tried(
        chosen,
        controls,
        {i: _contrasts(value, judged) for i, value in found.projections.items()},
        _averages(found.kl, judged),
        None if found.nll is None else _averages(found.nll, judged),
        _contrasts(direct, judged),
        float(np.abs(change[SELF] - change[PLAIN]).max()),
    )


def _contrasts(values: Array, design: Design) -> Array:
    """``[row, text]`` to ``[row, scenario]``: mean positive − mean negative."""
    return scenario_differences(values.T, design).T


def _averages(values: Array, design: Design) -> Array:
    """``[row, text]`` to ``[row, scenario]``: mean over a scenario's texts, positives and negatives weighing the same."""
    weights = np.zeros((design.n_strata, values.shape[1]))
    weights[design.stratum, np.arange(values.shape[1])] = np.abs(design.weights()) * design.n_strata / 2
    return values @ weights.T


def _same_model(found: Readings, pooled: Pooled, judged: Design, layer: int, v: Array) -> None:
    expected = np.asarray(pooled.resid[layer][judged.rows], dtype=np.float64) @ v
    size = max(float(np.abs(expected).max()), float(np.linalg.norm(pooled.resid[layer][judged.rows], axis=1).max()) * 0.1)
    if float(np.abs(found.projections[layer][PLAIN] - expected).max()) > _DRIFT * size:
        raise ReadError(
            f"Layer {layer} reads otherwise than what was collected.",
            why="The texts, their pooling or the model are not those of the collected activations.",
            todo="Collect again with this model.",
        )


def _token_means(
    instrument: Instrument, prompts: Sequence[Prompt], design: Design, layers: Sequence[int], batch_size: int = 16
) -> dict[int, dict[int, Array]]:
    """Row of each negative → layer → mean of the heads' outputs over its tokens but the first, ``[head, d_head]``."""
    at = np.flatnonzero(~design.positive).tolist()
    found: dict[int, dict[int, Array]] = {int(design.rows[i]): {} for i in at}
    for start in range(0, len(at), batch_size):
        some = at[start : start + batch_size]
        batch = collate([prompts[i] for i in some], side="left")

        def keep(point: Point, tensor: Tensor, some: Sequence[int] = some, lead: Sequence[int] = batch.lead) -> None:
            assert point.layer is not None
            for j, i in enumerate(some):
                found[int(design.rows[i])][point.layer] = tensor[j, lead[j] + 1 :].double().mean(0).cpu().numpy()

        with torch.no_grad():
            instrument.run(batch, reads=[f"z.{i}" for i in layers], keep_logits=1, on_read=keep)
    return found
