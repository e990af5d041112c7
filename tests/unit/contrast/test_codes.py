"""Keys as numbers: they order, tell apart and come back as the columns do."""

from __future__ import annotations

import hypothesis.strategies as st
import polars as pl
import pytest
from hypothesis import given, settings

from symbolic_residue.contrast import _codes
from symbolic_residue.contrast._codes import encoded, key_codes, plain

ROWS = st.lists(
    st.tuples(
        st.sampled_from(["", "a", "b10", "b9", "ä", "漢", "Z", "𝔸"]),
        st.one_of(st.none(), st.integers(-3, 40)),
        st.one_of(st.integers(-3, 3), st.integers(-(2**62), 2**62)),
        st.sampled_from(["q1", "q10", "q2"]),
    ),
    min_size=1,
    max_size=30,
)
SCHEMA = {"example": pl.String, "head": pl.Int32, "row": pl.Int64, "cluster": pl.String}


@given(ROWS, st.permutations(list(SCHEMA)), st.sampled_from([2**62, 50]))
@settings(max_examples=120, deadline=None)
def test_codes_order_and_tell_apart_as_the_columns_do(rows: list[tuple], names: list[str], most: int) -> None:
    """With ``most`` at 50 every number is too large, so that ranks stand in."""
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row").with_row_index("at")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_codes, "_MOST", most)
        code = key_codes(encoded(frame, {}), names)
    assert code.min() >= 0  # pyright: ignore[reportOptionalOperand, reportOperatorIssue]
    assert frame[code.arg_sort()].select(names).equals(frame.sort(names, nulls_last=False).select(names))
    assert code.n_unique() == frame.select(names).n_unique()
    assert pl.DataFrame({"code": code, **frame.select(names).to_dict()}).n_unique() == code.n_unique()


@given(ROWS)
@settings(max_examples=40, deadline=None)
def test_texts_come_back(rows: list[tuple]) -> None:
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    there = encoded(frame, {"cluster": ("zz", "event")})
    assert plain(there).equals(frame)
    assert set(there.schema["cluster"].categories) == {*frame["cluster"], "zz", "event"}  # pyright: ignore[reportAttributeAccessIssue]
