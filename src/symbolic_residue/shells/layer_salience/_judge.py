"""The four verdicts of LAYER-SALIENCE, from a residue's frames alone.

1. **salience collapse**: share of the counted tokens that are under the threshold in at least half of the layers, with Wilson's interval over tokens;
   control: the same share in eight ordinary texts of this length.
2. **premature deprioritization**: of the neglected tokens, the one whose CANCEL lowers ln P(answer) most: its fall minus that of random tokens
   cancelled in the same layers; median with its bootstrap over these draws (a draw may hit another word of the same fact, which a mean would follow).
   It fires only if the fall is past the criterion beyond tokens of matched distance as well. The worst of several tokens is compared with single
   draws; the criterion is set on texts without a planted failure that went through the same choice.
3. **bottleneck**: the largest fall of the mean log effective number of attended tokens from one layer to the next, bootstrapped over rows; control:
   the largest fall in each of the ordinary texts.
4. **ghosts**: KL under CANCEL of every cell with nearly no attention, minus KL under as many random cells, bootstrapped over the draws.

For 2 and 4 the control is in the number already, so a control past the criterion does not take a verdict back. n counts tokens (1), draws of the
control (2, 4) and rows of this text (3); tokens and rows of one text hang together, so these intervals say how sure the number is for this text, not
for others like it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from symbolic_residue.shells._verdict import judge, Verdict
from symbolic_residue.shells.layer_salience._residue import LayerSalienceResidue
from symbolic_residue.stats import bootstrap_mean, bootstrap_median, decide, Estimate, wilson

__all__ = ["MODES", "NEEDED", "largest_fall", "log_effective", "neglected_share", "tests_of", "verdicts"]

Array = NDArray[np.float64]
MODES = ("salience collapse", "premature deprioritization", "bottleneck", "ghosts")
SHELL = "layer-salience"
NEEDED = MODES[1]
_FLOOR = 1e-4
"""KL (nats) below which the output counts as unchanged: well above the rounding of float32 logits."""


def neglected_share(relative: Array, threshold: float) -> tuple[int, int]:
    """How many columns of ``relative [layer, token]`` are under the threshold in at least half of the layers, and how many there are."""
    under = relative < threshold
    return int(np.sum((2 * under.sum(0) >= len(under)) & under.any(0))), relative.shape[1]


def log_effective(effective: Array) -> Array:
    """``ln N``; a row that attends to nothing beside sink and self counts as attending to one token."""
    return np.log(np.maximum(effective, 1.0))


def largest_fall(effective: Array) -> tuple[int, Array]:
    """Of ``effective [layer, row]``: the place of the layer before the largest mean fall of ``ln N``, and the fall of each row there."""
    falls = -np.diff(log_effective(effective), axis=0)
    place = int(falls.mean(1).argmax())
    return place, falls[place]


def tests_of(
    cancels: pl.DataFrame, kind: str, control: str, *, position: int | None = None, threshold: float | None = None
) -> pl.DataFrame:
    """Rows of the table ``cancels`` of one kind and control."""
    found = cancels.filter((pl.col("kind") == kind) & (pl.col("control") == control))
    if position is not None:
        found = found.filter(pl.col("position") == position)
    return found if threshold is None else found.filter(pl.col("threshold") == threshold)


def verdicts(residue: LayerSalienceResidue) -> list[Verdict]:
    """The four verdicts, in the order of :data:`MODES`."""
    return [_collapse(residue), _deprioritization(residue), _bottleneck(residue), _ghosts(residue)]


def _collapse(residue: LayerSalienceResidue) -> Verdict:
    criteria, config = residue.config.criteria, residue.config
    cells = residue.frames["cells"].filter(pl.col("counted"))
    relative = _matrix(cells, "relative", "position")
    found, n = neglected_share(relative, config.threshold)
    shares = residue.frames["references"]["share"].to_numpy()
    return judge(
        SHELL,
        MODES[0],
        quantity=f"tokens under {config.threshold:g} of the uniform share in at least half of the layers",
        unit="share",
        value=wilson(found, n),
        control="the same in ordinary texts of this length",
        control_value=bootstrap_mean(shares, seed=residue.asked.seed),
        criterion=criteria.collapse,
        direction="above",
        criterion_source=criteria.source,
    )


def _deprioritization(residue: LayerSalienceResidue) -> Verdict:
    criteria, seed, cancels = residue.config.criteria, residue.asked.seed, residue.frames["cancels"]
    alone = tests_of(cancels, "token", "none")
    about = f"“{residue.asked.answer_text}”"
    if not len(alone):
        value = control = _nothing("no token is neglected")
        note, outcome = "No token is under the threshold in half of the layers.", "absent"
        matched = None
    else:
        worst = alone.sort("fall", "position", descending=[True, False]).row(0, named=True)
        drawn = tests_of(cancels, "token", "random")["fall"].to_numpy()
        near = tests_of(cancels, "token", "matched")["fall"].to_numpy()
        value, control = bootstrap_median(worst["fall"] - drawn, seed=seed), bootstrap_median(drawn, seed=seed)
        matched = bootstrap_median(worst["fall"] - near, seed=seed)
        token = residue.frames["tokens"].filter(pl.col("position") == worst["position"])["token"][0]
        note = (
            f"Token {worst['position']} “{token}”, hidden in {worst['cells']} layers, costs {about} {worst['fall']:.2f} nats; "
            f"tokens of matched distance {np.median(near):.2f} nats (median, n = {len(near)}). The worst of {len(alone)} neglected tokens."
        )
        outcome = None
    verdict = judge(
        SHELL,
        MODES[1],
        quantity=f"fall of ln P({about}) when a neglected token is cancelled, beyond random tokens (median)",
        unit="nats",
        value=value,
        control="the fall itself when random tokens are cancelled in the same layers",
        control_value=control,
        criterion=criteria.deprioritization,
        direction="above",
        criterion_source=criteria.source,
        control_must_be_clear=False,
        note=note,
    )
    if outcome is not None:
        return replace(verdict, outcome=outcome, note=note)
    if verdict.outcome == "fires" and matched is not None and decide(matched, criteria.deprioritization) != "fires":
        said = f"Beyond tokens of matched distance it is {matched.value:.2f} nats [{matched.low:.2f}, {matched.high:.2f}], not past the criterion."
        return replace(verdict, outcome="undecided", note=f"{note} {said}")
    return verdict


def _bottleneck(residue: LayerSalienceResidue) -> Verdict:
    criteria, seed = residue.config.criteria, residue.asked.seed
    rows = residue.frames["rows"]
    effective = _matrix(rows, "effective", "row")
    layers = sorted(rows["layer"].unique().to_list())
    references = residue.frames["references"]["drop"].drop_nulls().to_numpy()
    if len(layers) < 2:
        value, note = _nothing("one layer has no next"), "The model has a single layer with softmax attention."
    else:
        place, falls = largest_fall(effective)
        value = bootstrap_mean(falls, seed=seed)
        before, after = (float(np.exp(log_effective(effective)[at].mean())) for at in (place, place + 1))
        note = (
            f"From layer {layers[place]} to {layers[place + 1]}: {before:.1f} → {after:.1f} tokens (geometric mean over rows), "
            f"the largest fall of {len(layers) - 1}."
        )
    return judge(
        SHELL,
        MODES[2],
        quantity="largest fall of the log effective number of attended tokens between two layers",
        unit="nats",
        value=value,
        control="the largest fall in ordinary texts of this length",
        control_value=bootstrap_mean(references, seed=seed) if len(references) else _nothing("no ordinary text"),
        criterion=criteria.bottleneck,
        direction="above",
        criterion_source=criteria.source,
        note=note,
    )


def _ghosts(residue: LayerSalienceResidue) -> Verdict:
    criteria, seed, config, cancels = residue.config.criteria, residue.asked.seed, residue.config, residue.frames["cancels"]
    dose = config.ghost_threshold
    row = tests_of(cancels, "dose", "none", threshold=dose).row(0, named=True)
    drawn = tests_of(cancels, "dose", "random", threshold=dose)["kl"].to_numpy()
    near = tests_of(cancels, "dose", "matched", threshold=dose)["kl"].to_numpy()
    outcome, matched = None, None
    if not row["cells"]:
        value = control = _nothing("no cell has nearly no attention")
        note, outcome = f"No token is under {dose:g} of its uniform share in any layer.", "absent"
    else:
        value, control = bootstrap_mean(row["kl"] - drawn, seed=seed), bootstrap_mean(drawn, seed=seed)
        note = f"{row['cells']} cells of (layer, token) hidden: KL {row['kl']:.3f} nats."
        if len(near):
            matched = bootstrap_mean(row["kl"] - near, seed=seed)
            note += f" Positions of matched distance: {near.mean():.3f} nats (n = {len(near)})."
        if row["kl"] < _FLOOR:
            note, outcome = f"{note} The output is unchanged.", "absent"
    verdict = judge(
        SHELL,
        MODES[3],
        quantity=f"KL when every cell under {dose:g} of the uniform share is cancelled, beyond as many random cells",
        unit="nats",
        value=value,
        control="KL itself when as many random cells are cancelled",
        control_value=control,
        criterion=criteria.ghosts,
        direction="above",
        criterion_source=criteria.source,
        control_must_be_clear=False,
        note=note,
    )
    if outcome is not None:
        return replace(verdict, outcome=outcome, note=note)
    if verdict.outcome == "fires" and matched is not None and decide(matched, criteria.ghosts) != "fires":
        return replace(
            verdict, outcome="undecided", note=f"{note} Beyond those it is {matched.value:.3f} nats, not past the criterion."
        )
    return verdict


def _nothing(why: str) -> Estimate:
    return Estimate(0.0, float("nan"), float("nan"), 0, method=why)


def _matrix(frame: pl.DataFrame, column: str, along: str) -> Array:
    """``[layer, position]`` of a long frame."""
    ordered = frame.sort("layer", along)
    return ordered[column].to_numpy().reshape(ordered["layer"].n_unique(), -1)
