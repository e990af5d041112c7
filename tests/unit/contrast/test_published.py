"""The study's own formulas against cases worked out on paper, and what cannot be evaluated under either protocol."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import pytest
from contrast_records import long_table

from symbolic_residue.contrast import DEFECTS, deltas, gates, Options, verdict
from symbolic_residue.contrast import diff_of_diffs as compare
from symbolic_residue.errors import ConfigError, RecordError

FAST = Options(n_resamples=400)


def delta_table(cases: dict[int, dict[str, Sequence[float]]]) -> pl.DataFrame:
    """Layer → region → deltas of the examples, each a cluster."""
    rows = [
        {
            "model": "m", "condition": "c", "example": f"e{i}", "cluster": f"q{i}", "layer": layer, "head": None, "region": region,
            "segmentation": "full", "stratum": "C1", "query_offset": -1, "delta": value,
        }
        for layer, regions in cases.items() for region, values in regions.items() for i, value in enumerate(values)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema_overrides={"head": pl.Int32})


def letters(frame: pl.DataFrame, region: str) -> dict[int, str]:
    sign = {True: "1", False: "0", None: "-"}
    part = frame.filter(pl.col("region") == region).sort("layer")
    return {row["layer"]: "".join(sign[row[flag]] for flag in "ABCD") for row in part.iter_rows(named=True)}


def test_an_interval_on_paper() -> None:
    """Five deltas, four of .3 and one of −.1. A resample holds the −.1 k times, k ~ Binomial(5, 1/5), and its mean is .3 − .08 k.

    P(k ≥ 4) = 5 · .2⁴ · .8 + .2⁵ = .0064 + .0003 = .0067 and P(k ≥ 3) = 10 · .2³ · .8² + .0067 = .0579: the 2.5th percentile of 1000 draws is the mean
    at k = 3 (.06), as .0067 < .025 < .0579 by five and more standard errors of a share of 1000. P(k = 0) = .8⁵ = .328: the 97.5th is .3.
    Mean (4 · .3 − .1) / 5 = .22; share 4 / 5. So A, B, and C over a rival of mean .21 (not over one of .23).

    Mirrored, one of .3 and four of −.1: a mean of −.1 + .08 k, so the interval is [−.1, .14] and holds 0.
    """
    table = delta_table(
        {
            0: {"system": [0.3, 0.3, 0.3, 0.3, -0.1], "user": [0.21] * 5},
            1: {"system": [0.3, 0.3, 0.3, 0.3, -0.1], "user": [0.23] * 5},
            2: {"system": [0.3, -0.1, -0.1, -0.1, -0.1], "user": [-0.5] * 5},
        }
    )
    found = gates(table, protocol="published")
    assert letters(found.layers, "system") == {0: "1111", 1: "1100", 2: "0010"}
    rows = {row["layer"]: row for row in found.layers.filter(pl.col("region") == "system").iter_rows(named=True)}
    assert (rows[0]["value"], rows[0]["low"], rows[0]["high"]) == pytest.approx((0.22, 0.06, 0.30), abs=1e-12)
    assert rows[0]["share"] == pytest.approx(0.8)
    assert (rows[2]["value"], rows[2]["low"], rows[2]["high"]) == pytest.approx((-0.02, -0.10, 0.14), abs=1e-12)
    peak = found.peaks.filter(pl.col("region") == "system").row(0, named=True)
    assert (peak["peak_layer"], peak["peak_value"]) == (0, pytest.approx(0.22))


def test_the_share_at_its_limit_windows_and_peak_on_paper() -> None:
    """Ten deltas a layer, constant but where said, so that every resample has a mean on the same side.

    Layer 0: seven of +.2, three of −.1: share exactly .70, which passes; mean (1.4 − .3) / 10 = .11. A resample holds k of the −.1, mean .2 − .03 k, and is
    ≤ 0 from k = 7, where P(k ≥ 7) for Binomial(10, .3) = .0106 < .025, while P(k = 6) = .0368: the 2.5th percentile is .2 − .18 = .02 > 0.
    Layer 1: six of +.2, four of +0: zero is not positive, share .60 fails; mean .12, lowest resamples near .02: B passes.
    Layers 2, 3, 4: .1, .4, .3 for all: D. Layer 5: .2 for all, rival .2 for all: C needs *larger*, fails. Layer 6, 7: D. Layer 8: −.3 for all, rival −.4:
    B passes below zero, C passes, A fails.
    Windows: 2–4 alone (6–7 is two layers; 0 stands alone); its peak is layer 3. The peak of all is layer 3 with .4.
    """
    ten = [1.0] * 10

    def flat(value: float, rival: float) -> dict[str, list[float]]:
        return {"system": [value * one for one in ten], "user": [rival * one for one in ten]}

    table = delta_table(
        {
            0: {"system": [0.2] * 7 + [-0.1] * 3, "user": [0.0] * 10},
            1: {"system": [0.2] * 6 + [0.0] * 4, "user": [0.0] * 10},
            2: flat(0.1, 0.0), 3: flat(0.4, 0.3), 4: flat(0.3, 0.1), 5: flat(0.2, 0.2), 6: flat(0.1, 0.0), 7: flat(0.1, 0.0), 8: flat(-0.3, -0.4),
        }
    )  # fmt: skip
    found = gates(table, protocol="published")
    assert letters(found.layers, "system") == {
        0: "1111", 1: "0110", 2: "1111", 3: "1111", 4: "1111", 5: "1100", 6: "1111", 7: "1111", 8: "0110",
    }  # fmt: skip
    low = found.layers.filter((pl.col("region") == "system") & (pl.col("layer") == 0))["low"].item()
    assert low == pytest.approx(0.02, abs=1e-12)
    windows = found.windows.filter(pl.col("region") == "system")
    assert windows.select("first", "last", "layers", "peak_layer").rows() == [(2, 4, 3, 3)]
    assert windows["peak_value"].item() == pytest.approx(0.4)
    peak = found.peaks.filter(pl.col("region") == "system").row(0, named=True)
    assert (peak["peak_layer"], peak["peak_value"]) == (3, pytest.approx(0.4))
    # The share and the run may be asked for; nothing else.
    strict_share = gates(table, protocol="published", options=Options(share=0.71, run=2))
    assert letters(strict_share.layers, "system")[0] == "0110"
    assert strict_share.windows.filter(pl.col("region") == "system").select("first", "last").rows() == [(2, 4), (6, 7)]


def test_rule_outs_on_paper() -> None:
    """Two examples. Masses: a: event .5, C1 .10 .30 (mean .20), C2 .45; b: event .4, C1 .25, C2 .35; C4 of two others .60 .20.

    C2 − C1 = ((.45 − .20) + (.35 − .25)) / 2 = .175. C4 − C1, two samples: (.60 + .20) / 2 − (.20 + .25) / 2 = .175.
    With C2 of a alone the pairs are a alone: .25.
    """

    def record(example: str, stratum: str, mass: float, row: int) -> dict:
        return {
            "model": "m", "condition": "c", "example": example, "cluster": example, "layer": 0, "head": None, "region": "system", "segmentation": "full",
            "stratum": stratum, "query_offset": -1, "row": row, "mass": mass,
        }  # fmt: skip

    rows = [
        record("a", "event", 0.5, 9), record("a", "C1", 0.10, 2), record("a", "C1", 0.30, 3), record("a", "C2", 0.45, 8),
        record("b", "event", 0.4, 9), record("b", "C1", 0.25, 2), record("b", "C2", 0.35, 8),
        record("m", "C4", 0.60, 7), record("n", "C4", 0.20, 7),
    ]  # fmt: skip

    def ruled(rows: list[dict]) -> dict[str, tuple[float, int, int]]:
        frame = gates(deltas(pl.DataFrame(rows, schema_overrides={"head": pl.Int32})), protocol="published").rule_outs
        return {row["stratum"]: (row["value"], row["n"], row["control_n"]) for row in frame.iter_rows(named=True)}

    assert ruled(rows) == {"C2": (pytest.approx(0.175), 2, 2), "C4": (pytest.approx(0.175), 2, 2)}
    one = [row for row in rows if not (row["example"] == "b" and row["stratum"] == "C2")]
    assert ruled(one)["C2"] == (pytest.approx(0.25), 1, 1)


def test_options_that_the_formulas_do_not_have_are_refused() -> None:
    table = delta_table({0: {"system": [0.1, 0.2], "user": [0.0, 0.0]}})
    for options, name in (
        (Options(direction="down"), "direction"),
        (Options(alpha=0.1), "alpha"),
        (Options(reference="C2"), "reference"),
    ):
        with pytest.raises(ConfigError, match=f"no {name}"):
            gates(table, protocol="published", options=options)
    # Resamples and seed are the study's, whatever is given.
    plain, other = (
        gates(table, protocol="published", options=options) for options in (Options(), Options(seed=7, n_resamples=300))
    )
    assert plain.layers.equals(other.layers)


def test_each_known_defect_is_named() -> None:
    found = gates(delta_table({0: {"system": [0.1, 0.2], "user": [0.0, 0.0]}}), protocol="published")
    assert found.notes == DEFECTS
    labels = [defect.split(":")[0] for defect in DEFECTS]
    assert len(set(labels)) == len(labels)
    for label in ("Gate A", "Gate B, two-sided", "Gate B, units", "Gate B, family", "Gate C", "Gate D", "Rule-outs", "Offset 0"):
        assert label in labels


@pytest.mark.parametrize("protocol", ["strict", "published"])
def test_a_gate_whose_regions_are_absent_is_not_evaluated(protocol: str) -> None:
    # One region only: no rival, so neither C nor (published) what rests on it.
    alone = gates(delta_table({0: {"system": [0.1, 0.2, 0.1, 0.2, 0.1, 0.2, 0.1]}}), protocol=protocol, options=FAST).layers  # pyright: ignore[reportArgumentType]
    assert letters(alone, "system") == {0: "11--"}
    # A chat without a system turn: the region has no keys, and its mass is 0 in every row.
    records = long_table(effect={1: 0.1}, region="user", strata=("C1", "C2"))
    silent = records.with_columns(mass=pl.when(pl.col("region") == "system").then(0.0).otherwise("mass"))
    found = gates(deltas(silent), protocol=protocol, options=FAST)  # pyright: ignore[reportArgumentType]
    assert set(letters(found.layers, "system").values()) == {"----"}
    assert found.layers.filter(pl.col("region") == "system")["low"].null_count() == 12
    assert any("region system has no keys" in note for note in found.notes)
    assert letters(found.layers.filter(pl.col("segmentation") == "full"), "user")[1] == "1111"
    # One condition has it, the other lacks it: said of the other, judged in the first.
    both = pl.concat([deltas(records), deltas(records.with_columns(condition=pl.lit("off")).filter(pl.col("region") != "system"))])
    part = gates(both, protocol=protocol, options=FAST)  # pyright: ignore[reportArgumentType]
    assert [note for note in part.notes if "no keys" in note] == ["off (tuned): region system has no keys, so it is not evaluated."]
    with pytest.raises(RecordError, match="region toast"):
        gates(both, protocol=protocol, regions=["toast"])  # pyright: ignore[reportArgumentType]


def test_a_region_without_keys_has_no_verdict() -> None:
    frames = [
        deltas(
            long_table(effect={1: 0.1}, region="user", strata=("C1",), model=model, seed=seed).with_columns(
                mass=pl.when(pl.col("region") == "system").then(0.0).otherwise("mass")
            )
        )
        for seed, model in ((1, "tuned"), (2, "base"))
    ]
    ours, theirs = (gates(frame, options=FAST) for frame in frames)
    rows = verdict(ours, theirs, compare(*frames, options=FAST), options=FAST).filter(pl.col("region") == "system")
    assert rows["outcome"].unique().to_list() == ["undecided"]
    assert "no keys" in rows["why"][0]
