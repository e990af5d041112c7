"""Arrays give what the long table gives."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from contrast_records import long_table, REGIONS

from symbolic_residue.contrast import deltas, dense_deltas, DenseDeltas, diff_of_diffs, gates, Options, peak_shift, select_heads
from symbolic_residue.errors import RecordError

FAST = Options(n_resamples=300)


def arrays(records: pl.DataFrame) -> tuple[dict[str, np.ndarray], pl.DataFrame]:
    """The long table as arrays ``[row, layer, head, region]`` and their rows."""
    key = ["condition", "example", "cluster", "stratum", "query_offset", "row"]
    rows = records.select(key).unique(maintain_order=True)
    heads = int(records["head"].max() or 0) + 1  # pyright: ignore[reportArgumentType]
    layers = records["layer"].n_unique()
    order = records.join(rows.with_row_index("at"), on=key).with_columns(pl.col("head").fill_null(0))
    found = {}
    for (name,), part in order.partition_by("segmentation", as_dict=True).items():
        array = np.zeros((len(rows), layers, heads, len(REGIONS)))
        region = part["region"].replace_strict({region: i for i, region in enumerate(REGIONS)}).to_numpy()
        array[part["at"].to_numpy(), part["layer"].to_numpy(), part["head"].to_numpy(), region] = part["mass"].to_numpy()
        found[str(name)] = array
    return found, rows


def both(heads: int | None, **options: object) -> tuple[pl.DataFrame, DenseDeltas]:
    records = long_table(
        effect={1: 0.05}, heads=heads, layers=3, lags=10, unpaired=True, strata=("C1", "C2"), clusters=8, each=2, **options
    )  # pyright: ignore[reportArgumentType]
    masses, rows = arrays(records)
    return deltas(records), dense_deltas(masses, rows, model=str(records["model"][0]), regions=REGIONS, heads=heads is not None)


def near(a: pl.DataFrame, b: pl.DataFrame) -> None:
    assert a.schema == b.schema
    assert len(a) == len(b)
    for name, kind in a.schema.items():
        if kind == pl.Float64:
            x, y = a[name].fill_null(-9).to_numpy(), b[name].fill_null(-9).to_numpy()
            assert np.allclose(x, y, atol=1e-12), name
        else:
            assert a[name].equals(b[name]), name


@pytest.mark.parametrize("heads", [None, 3])
def test_gates_differences_peaks_and_heads_are_the_same(heads: int | None) -> None:
    table, dense = both(heads)
    base_table, base = both(heads, seed=7, model="base")
    for by_head in (False, True) if heads else (False,):
        one, two = (gates(given, heads=by_head, options=FAST) for given in (table, dense))
        for name in ("layers", "rule_outs", "trajectory", "windows", "peaks"):
            near(getattr(one, name), getattr(two, name))
        assert one.notes == two.notes
        near(
            diff_of_diffs(table, base_table, heads=by_head, options=FAST).frame,
            diff_of_diffs(dense, base, heads=by_head, options=FAST).frame,
        )
    one, two = (gates(given, protocol="published") for given in (table, dense))
    near(one.layers, two.layers)
    near(one.rule_outs, two.rule_outs)
    near(peak_shift(table, base_table, options=FAST), peak_shift(dense, base, options=FAST))
    if heads:
        near(select_heads(table, base_table, options=FAST), select_heads(dense, base, options=FAST))


def test_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = both(2)
    monkeypatch.setattr("symbolic_residue.contrast._dense._CHUNK", 40)
    _, pieces = both(2)
    assert whole.of.keys() == pieces.of.keys()
    assert all(np.array_equal(whole.of[key].values, pieces.of[key].values) for key in whole.of)


def test_refusals() -> None:
    records = long_table(clusters=3, each=1, layers=2, heads=2, segmentations=("full",))
    masses, rows = arrays(records)

    def made(array: np.ndarray = masses["full"], table: pl.DataFrame = rows, **options: object) -> DenseDeltas:
        return dense_deltas(array, table, model="m", regions=REGIONS, **options)  # pyright: ignore[reportArgumentType]

    assert made().columns == ((0, None), (1, None))
    hole = masses["full"].copy()
    hole[3, 0, 0, 0] = np.nan
    with pytest.raises(RecordError, match="NaN"):
        made(hole)
    with pytest.raises(RecordError, match="between 0 and 1"):
        made(masses["full"] * 5)
    with pytest.raises(RecordError, match="axes"):
        made(masses["full"][:-1])
    with pytest.raises(RecordError, match="one name a layer"):
        made(layers=[0])
    with pytest.raises(RecordError, match="no column stratum"):
        made(table=rows.drop("stratum"))
    with pytest.raises(RecordError, match="no event rows"):
        made(table=rows.with_columns(stratum=pl.lit("C1")))
    with pytest.raises(RecordError, match="two event rows"):
        made(table=rows.with_columns(stratum=pl.lit("event")))
    with pytest.raises(RecordError, match="2 clusters"):
        made(table=rows.with_columns(cluster=pl.when(pl.col("stratum") == "C2").then(pl.lit("z")).otherwise("cluster")))
    with pytest.raises(RecordError, match="empty places"):
        made(table=rows.with_columns(cluster=pl.lit(None, pl.String)))
    with pytest.raises(RecordError, match="single heads"):
        gates(made(), heads=True)
