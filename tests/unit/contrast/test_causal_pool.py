"""Pooling: hand-made cases, clusters as the unit, false-positive rate, shares of a measured total."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from symbolic_residue.contrast.causal import CAUSAL, EFFECTS, pool_effects
from symbolic_residue.errors import RecordError
from symbolic_residue.stats import flip_columns, max_t
from symbolic_residue.store import TABLES


def table(values: Any, clusters: list[str], *, controls: Any = None, **place: Any) -> pl.DataFrame:
    """Rows for ``values [example, layer]``."""
    where = {
        "analysis": "patch",
        "model": "tuned into base",
        "condition": "kind",
        "part": "mlp",
        "place": "all",
        "unit": "nats",
    } | place
    rows = [
        {
            **where, "example": f"e{i}", "cluster": clusters[i], "layer": None if np.shape(values)[1] == 1 else k, "value": float(values[i][k]),
            "control": None if controls is None else controls[i][k],
        }
        for i in range(len(values))
        for k in range(np.shape(values)[1])
    ]  # fmt: skip
    return pl.DataFrame([{name: row.get(name) for name in CAUSAL} for row in rows], schema=CAUSAL)


CLUSTERS = [f"q{i // 2}" for i in range(16)]


def test_means_intervals_and_p_are_those_of_the_statistics_room() -> None:
    rng = np.random.default_rng(0)
    values, controls = rng.normal(1, 1, (16, 4)), rng.normal(0, 1, (16, 4))
    out = pool_effects(table(values, CLUSTERS, controls=controls), seed=3)
    value, low, high = flip_columns(values, seed=3, clusters=CLUSTERS)
    for name, want in (("value", value), ("low", low), ("high", high)):
        assert out[name].to_numpy() == pytest.approx(want)
    assert out["control"].to_numpy() == pytest.approx(controls.mean(0))
    assert out["p"].to_numpy() == pytest.approx(max_t(values - controls, seed=3, n_resamples=2000, clusters=CLUSTERS))
    assert out["n"].to_list() == [16] * 4
    assert out["clusters"].to_list() == [8] * 4
    assert out.schema == pl.Schema(EFFECTS)
    assert ["item", *EFFECTS] == list(TABLES["contrast_effects"])
    shuffled = table(values, CLUSTERS, controls=controls).sample(fraction=1.0, shuffle=True, seed=1)
    assert pool_effects(shuffled, seed=3).equals(out)


def test_one_cluster_has_no_interval_and_no_p() -> None:
    out = pool_effects(table(np.ones((5, 2)), ["q0"] * 5), seed=0)
    assert out["value"].to_list() == [1.0, 1.0]
    for name in ("low", "high", "p"):
        assert out[name].null_count() == 2


def test_controls_that_only_some_examples_have_are_counted() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(1, 1, (16, 2))
    controls: list[list[float | None]] = [[0.5, 0.25]] * 6 + [[0.5, None]] + [[None, None]] * 9
    out = pool_effects(table(values, CLUSTERS, controls=controls), seed=0)
    assert out["control"].to_list() == [0.5, 0.25]
    assert set(out["why"]) == {"6 of 16 examples have a control"}
    assert out["p"].to_list() == pool_effects(table(values, CLUSTERS), seed=0)["p"].to_list()


def test_only_changes_and_differences_are_tested() -> None:
    values = -np.abs(np.random.default_rng(0).normal(5, 1, (16, 3)))
    for model, tested in (("tuned", False), ("base", False), ("tuned − base", True)):
        for analysis in ("lens", "components"):
            out = pool_effects(table(values, CLUSTERS, analysis=analysis, model=model), seed=0)
            assert (out["p"].null_count() == 0) is tested
    # few clusters and a log-probability near 0: Student's interval would pass it
    near = table(np.array([[-0.001], [-0.3], [-0.002], [-0.001]]), ["a", "b", "c", "d"], analysis="lens", model="tuned")
    assert pool_effects(near, seed=0)["high"].item() == 0.0


def test_no_more_false_positives_than_the_nominal_rate() -> None:
    rng, found = np.random.default_rng(1), 0
    for _ in range(200):
        shared = np.repeat(rng.normal(0, 1, (8, 6)), 2, axis=0)  # examples of a question hang together
        found += (
            float(pool_effects(table(shared + rng.normal(0, 0.3, (16, 6)), CLUSTERS), seed=0, n_resamples=400)["p"].min()) <= 0.05
        )  # pyright: ignore[reportArgumentType]
    assert found <= 18  # 5 % of 200 is 10; more than 18 has a chance of 0.6 %


def test_shares_of_the_total() -> None:
    rng = np.random.default_rng(2)
    total = rng.normal(4, 1, (16, 1))
    half = 0.5 * total @ np.ones((1, 2))
    frame = pl.concat([table(total, CLUSTERS, part="total"), table(half, CLUSTERS, controls=0.1 * half, part="mlp")])
    out = pool_effects(frame, seed=0)
    share = out.filter(pl.col("unit") == "share")
    assert share["value"].to_list() == pytest.approx([0.5, 0.5])
    assert share["low"].to_list() == pytest.approx([0.5, 0.5])  # the same share of every example: nothing varies
    assert share["high"].to_list() == pytest.approx([0.5, 0.5])
    assert share["control"].to_list() == pytest.approx([0.05, 0.05])
    assert out.filter(pl.col("part") == "total")["why"].item() is None
    # a total that is not there has no shares, and says so
    nothing = pl.concat([table(total - total.mean(), CLUSTERS, part="total"), table(half, CLUSTERS)])
    out = pool_effects(nothing, seed=0)
    assert not len(out.filter(pl.col("unit") == "share"))
    assert "touches 0" in out.filter(pl.col("part") == "total")["why"].item()
    with pytest.raises(RecordError, match="total"):
        pool_effects(pl.concat([table(total[:8], CLUSTERS[:8], part="total"), table(half, CLUSTERS)]), seed=0)


def test_tables_that_cannot_be_trusted_are_refused() -> None:
    good = table(np.ones((4, 2)), ["a", "a", "b", "b"])
    with pytest.raises(RecordError, match="lacks value"):
        pool_effects(good.drop("value"), seed=0)
    with pytest.raises(RecordError, match="NaN"):
        pool_effects(good.with_columns(value=pl.lit(float("nan"))), seed=0)
    with pytest.raises(RecordError, match="twice"):
        pool_effects(pl.concat([good, good]), seed=0)
    with pytest.raises(RecordError, match="lacks layers"):
        pool_effects(good[1:], seed=0)
    with pytest.raises(RecordError, match="two clusters"):
        pool_effects(good.with_columns(cluster=pl.Series(["a", "b"] * 4)), seed=0)
    with pytest.raises(RecordError, match="no cluster"):
        pool_effects(good.with_columns(cluster=pl.lit(None, pl.String)), seed=0)


def test_shares_are_given_exactly_where_the_total_says_so() -> None:
    """Totals about the edge, where flips and draws of clusters can disagree: the total's row decides."""
    rng, given = np.random.default_rng(5), 0
    for _ in range(60):
        total = np.repeat(rng.normal(0.75, 1.0, (8, 1)), 2, axis=0) + rng.normal(0, 0.2, (16, 1))
        frame = pl.concat([table(total, CLUSTERS, part="total"), table(0.5 * total, CLUSTERS, part="mlp")])
        out = pool_effects(frame, seed=0, n_resamples=400)
        whole = out.filter((pl.col("part") == "total") & (pl.col("unit") != "share")).row(0, named=True)
        shares = len(out.filter(pl.col("unit") == "share"))
        assert (shares == 0) == (whole["why"] is not None) == (whole["low"] <= 0 <= whole["high"])
        given += shares
    assert 10 < given < 50
