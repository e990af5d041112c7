"""Tuned against reference: what training did is called so, and nothing else is."""

from __future__ import annotations

import polars as pl
import pytest
from contrast_records import long_table

from symbolic_residue.contrast import deltas, diff_of_diffs, gates, Options, peak_shift, verdict
from symbolic_residue.errors import ConfigError, RecordError

FAST = Options(n_resamples=400)
RISE = {2: 0.06, 3: 0.08, 4: 0.06}


def judged(tuned: dict[int, float], base: dict[int, float], seed: int = 3, **options: object) -> dict:
    ours = deltas(long_table(seed=seed, effect=tuned, **options))  # pyright: ignore[reportArgumentType]
    theirs = deltas(long_table(seed=seed + 1000, effect=base, model="base", **options))  # pyright: ignore[reportArgumentType]
    table = verdict(gates(ours, options=FAST), gates(theirs, options=FAST), diff_of_diffs(ours, theirs, options=FAST), options=FAST)
    return table.filter((pl.col("region") == "system") & (pl.col("segmentation") == "full")).row(0, named=True)


@pytest.mark.parametrize(
    ("tuned", "base", "outcome"),
    [(RISE, {}, "induced"), (RISE, RISE, "present in base"), ({}, RISE, "reduced by training"), ({}, {}, "undecided")],
)
def test_planted_outcomes(tuned: dict[int, float], base: dict[int, float], outcome: str) -> None:
    row = judged(tuned, base)
    assert row["outcome"] == outcome, row
    if outcome in ("induced", "reduced by training"):
        assert row["layer"] == 3
        assert row["layers"] == "2 3 4"
    assert row["n"] == 48
    assert row["clusters"] == 12
    assert row["detectable"] > 0
    assert row["why"]


def test_a_gate_within_one_model_is_never_enough() -> None:
    """The tuned model passes all gates; so does its base: training did nothing."""
    ours, theirs = deltas(long_table(effect=RISE)), deltas(long_table(effect=RISE, model="base"))
    found = gates(ours, options=FAST)
    assert len(found.windows.filter(pl.col("region") == "system"))
    # The same seed: the two models are one, and every difference is exactly 0.
    difference = diff_of_diffs(ours, theirs, options=FAST)
    assert difference.frame["value"].abs().max() == 0
    table = verdict(found, gates(theirs, options=FAST), difference, options=FAST)
    assert set(table["outcome"]) <= {"present in base", "undecided"}


def test_no_training_effect_is_called_induced_in_at_most_one_of_twenty() -> None:
    fired = sum(
        judged(
            {},
            {},
            seed=seed,
            clusters=10,
            each=4,
            between=0.03,
            spread=0.005,
            layers=5,
            strata=("C1",),
            segmentations=("full",),
            rows=1,
        )["outcome"]
        != "undecided"
        for seed in range(60)
    )
    assert fired <= 6, fired


def test_differences_are_paired_by_example() -> None:
    """A common component of an example, a hundred times the effect, cancels."""
    ours = deltas(long_table(effect={1: 0.01}, spread=0.001, between=0.2, clusters=12, each=1, strata=("C1",)))
    theirs = deltas(long_table(effect={}, spread=0.001, between=0.2, clusters=12, each=1, strata=("C1",), model="base"))
    row = (
        diff_of_diffs(ours, theirs, options=FAST)
        .frame.filter((pl.col("region") == "system") & (pl.col("layer") == 1))
        .row(0, named=True)
    )
    assert row["value"] == pytest.approx(0.01, abs=1e-9)  # one seed: the noise is the same in both
    lost = theirs.filter(pl.col("example") != "q0.0")
    part = diff_of_diffs(ours, lost, options=FAST).frame
    assert part["n"].unique().to_list() == [11]
    assert part["unpaired"].unique().to_list() == [1]


def test_peaks_move() -> None:
    ours = deltas(long_table(effect={4: 0.1}, strata=("C1",)))
    theirs = deltas(long_table(effect={1: 0.1}, strata=("C1",), model="base", seed=5))
    row = peak_shift(ours, theirs, options=FAST).filter(pl.col("region") == "system").row(0, named=True)
    assert (row["tuned_peak"], row["reference_peak"], row["shift"], row["low"], row["high"]) == (4, 1, 3, 3.0, 3.0)
    flat = (
        peak_shift(deltas(long_table(strata=("C1",))), theirs, options=FAST).filter(pl.col("region") == "system").row(0, named=True)
    )
    assert flat["high"] - flat["low"] >= 1  # no peak: it is anywhere


def test_refusals() -> None:
    ours, theirs = deltas(long_table(clusters=3, each=2)), deltas(long_table(clusters=3, each=2, model="base"))
    difference = diff_of_diffs(ours, theirs, options=FAST)
    with pytest.raises(ConfigError, match="gives no verdict"):
        verdict(gates(ours, protocol="published"), gates(theirs, options=FAST), difference)
    with pytest.raises(RecordError, match="same two models"):
        verdict(gates(theirs, options=FAST), gates(ours, options=FAST), difference)
    with pytest.raises(RecordError, match="2 models"):
        diff_of_diffs(pl.concat([ours, theirs]), theirs)
    with pytest.raises(RecordError, match="different shape"):
        diff_of_diffs(ours, deltas(long_table(clusters=3, each=2, layers=4, model="base")))
    with pytest.raises(RecordError, match="force-feed"):
        diff_of_diffs(ours, theirs.with_columns(example=pl.lit("x") + pl.col("example")))
    with pytest.raises(RecordError, match="in common"):
        diff_of_diffs(ours, theirs.with_columns(condition=pl.lit("other")))
