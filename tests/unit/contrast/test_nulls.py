"""Null models: what any tuning does is not called induced."""

from __future__ import annotations

import polars as pl
import pytest
from contrast_records import long_table

from symbolic_residue.contrast import deltas, diff_of_diffs, DiffOfDiffs, gates, Options, verdict
from symbolic_residue.errors import RecordError
from symbolic_residue.store import TABLES

FAST = Options(n_resamples=400)
RISE = {2: 0.06, 3: 0.08, 4: 0.06}


def made(effect: dict[int, float], model: str, seed: int, **options: object) -> pl.DataFrame:
    return deltas(long_table(seed=seed, effect=effect, model=model, strata=("C1", "C2"), **options))  # pyright: ignore[reportArgumentType]


BASE = made({}, "base", 100)


def against_base(effect: dict[int, float], model: str, seed: int, **options: object) -> DiffOfDiffs:
    return diff_of_diffs(made(effect, model, seed, **options), BASE, options=FAST)


def judged(effect: dict[int, float], nulls: list[DiffOfDiffs], base: pl.DataFrame = BASE) -> dict:
    ours = made(effect, "tuned", 1)
    table = verdict(
        gates(ours, options=FAST), gates(base, options=FAST), diff_of_diffs(ours, base, options=FAST), nulls=nulls, options=FAST
    )
    assert {"item": pl.String, **table.schema}.keys() == TABLES["contrast_verdicts"].keys()
    return table.filter((pl.col("region") == "system") & (pl.col("segmentation") == "full")).row(0, named=True)


def test_without_null_models_the_verdict_says_so() -> None:
    row = judged(RISE, [])
    assert (row["outcome"], row["nulls"], row["beyond_nulls"], row["margin"], row["null_p"]) == ("induced", None, None, None, None)
    assert "no null model was given" in row["why"]


def test_what_a_null_model_does_as_well_is_not_induced() -> None:
    row = judged(RISE, [against_base(RISE, "random", 2)])
    assert (row["outcome"], row["nulls"], row["beyond_nulls"]) == ("undecided", "random", False)
    assert "a null model (random) moves as far" in row["why"]
    assert row["margin_low"] <= 0 <= row["margin_high"]


def test_what_goes_beyond_every_null_model_is_induced() -> None:
    weak, still = against_base({3: 0.02}, "random", 2), against_base({}, "other", 3)
    row = judged(RISE, [weak, still])
    assert (row["outcome"], row["layer"], row["nulls"], row["beyond_nulls"]) == ("induced", 3, "random, other", True)
    # The nearest null: .08 − .02.
    assert row["margin_low"] < 0.06 < row["margin_high"]
    assert row["margin"] == pytest.approx(0.06, abs=0.02)
    assert row["null_p"] <= 0.05
    assert "larger than in the null models (random, other)" in row["why"]
    # One null that does it all is enough to take it back.
    assert judged(RISE, [weak, against_base(RISE, "same", 4)])["outcome"] == "undecided"


def test_a_null_model_that_moves_as_far_the_other_way_is_no_weaker() -> None:
    fall = against_base({layer: -size for layer, size in RISE.items()}, "random", 2)
    row = judged(RISE, [fall])
    assert (row["outcome"], row["beyond_nulls"]) == ("undecided", False)


def test_a_reduction_needs_to_go_beyond_as_well() -> None:
    base = made(RISE, "base", 100)
    same = diff_of_diffs(made({}, "random", 2), base, options=FAST)
    still = diff_of_diffs(made(RISE, "random", 2), base, options=FAST)
    assert judged({}, [same], base)["outcome"] == "present in base"
    row = judged({}, [still], base)
    assert (row["outcome"], row["beyond_nulls"]) == ("reduced by training", True)
    assert row["margin_high"] < 0


def test_margins_are_paired_by_example() -> None:
    """What all models share of an example, a hundred times the effect, cancels; examples that the null lacks are left out."""
    given = {"spread": 0.001, "between": 0.2, "clusters": 12, "each": 1}
    ours, base, null = (
        made(effect, model, 5, **given) for effect, model in (({1: 0.01}, "tuned"), ({}, "base"), ({1: 0.002}, "random"))
    )
    lost = null.filter(pl.col("example") != "q0.0")
    found = verdict(
        gates(ours, options=FAST), gates(base, options=FAST), diff_of_diffs(ours, base, options=FAST),
        nulls=[diff_of_diffs(lost, base, options=FAST)], options=FAST,
    ).filter((pl.col("region") == "system") & (pl.col("segmentation") == "full")).row(0, named=True)  # fmt: skip
    assert found["margin"] == pytest.approx(0.008, abs=1e-9)


def test_a_null_model_that_was_not_read_at_a_place_says_nothing_there() -> None:
    part = made({}, "random", 2).filter(pl.col("region") != "system")
    row = judged(RISE, [diff_of_diffs(part, BASE, options=FAST)])
    assert (row["outcome"], row["nulls"]) == ("induced", None)
    assert "no null model" in row["why"]


def test_refusals() -> None:
    other_base = diff_of_diffs(made({}, "random", 2), made({}, "elsewhere", 3), options=FAST)
    with pytest.raises(RecordError, match="compared with 'elsewhere'"):
        judged(RISE, [other_base])
    with pytest.raises(RecordError, match="its own null model"):
        judged(RISE, [against_base({}, "tuned", 2)])
    with pytest.raises(RecordError, match="against C2"):
        judged(RISE, [diff_of_diffs(made({}, "random", 2), BASE, stratum="C2", options=FAST)])
    away = pl.concat([BASE, BASE.with_columns(example=pl.lit("x") + pl.col("example"))])
    strange = made({}, "random", 2).with_columns(example=pl.lit("x") + pl.col("example"))
    with pytest.raises(RecordError, match="force-feed"):
        judged(RISE, [diff_of_diffs(strange, away, options=FAST)])
