from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from symbolic_residue.errors import SpanError
from symbolic_residue.prompts import Regions
from symbolic_residue.types import Span

NAMES = ("sink", "user", "answer", "special")


@st.composite
def regions(draw: st.DrawFn) -> Regions:
    labels = draw(st.lists(st.integers(0, len(NAMES) - 1), min_size=1, max_size=30))
    return Regions(NAMES, np.array(labels))


@st.composite
def changed(draw: st.DrawFn) -> tuple[Regions, list[str]]:
    """Regions after a few changes, and the same kept as a plain list of names."""
    value = draw(regions())
    model = value.per_token()
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from((*NAMES, "fact", "pad")))
        match draw(st.sampled_from(("span", "append", "pad"))):
            case "span":
                start = draw(st.integers(0, len(model) - 1))
                stop = draw(st.integers(start + 1, len(model)))
                value = value.with_span(name, start, stop)
                model[start:stop] = [name] * (stop - start)
            case "append":
                n = draw(st.integers(0, 5))
                value = value.append(n, name)
                model += [name] * n
            case "pad":
                left, right = draw(st.integers(0, 3)), draw(st.integers(0, 3))
                value = value.padded(left, right)
                model = ["pad"] * left + model + ["pad"] * right
    return value, model


@given(changed())
def test_every_token_has_exactly_the_region_that_the_changes_gave_it(case: tuple[Regions, list[str]]) -> None:
    value, model = case
    assert value.per_token() == model
    indicator = value.indicator(len(model))
    assert indicator.dtype == bool and indicator.shape == (len(model), len(value.names))
    assert (indicator.sum(axis=1) == 1).all()
    assert value.counts() == {name: model.count(name) for name in value.names}
    taken = np.concatenate([value.positions(name) for name in value.names])
    assert sorted(taken.tolist()) == list(range(len(model)))


@given(changed())
def test_spans_are_maximal_runs_and_give_the_regions_back(case: tuple[Regions, list[str]]) -> None:
    value, model = case
    spans = value.spans()
    assert [name for span in spans for name in [span.name] * len(span)] == model
    assert all(a.stop == b.start and a.name != b.name for a, b in itertools.pairwise(spans))
    again = Regions.from_spans(len(model), spans)
    assert again.per_token() == model


@given(st.integers(1, 20), st.lists(st.tuples(st.integers(-2, 22), st.integers(-2, 22), st.sampled_from(["a", "b"])), max_size=5))
def test_from_spans_takes_exactly_the_spans_that_fit_and_do_not_overlap(n: int, raw: list[tuple[int, int, str]]) -> None:
    expected: list[str] | None = ["other"] * n
    for start, stop, name in raw:
        if not 0 <= start < stop <= n or set(expected[start:stop]) != {"other"}:
            expected = None
            break
        expected[start:stop] = [name] * (stop - start)
    spans = [Span(*each) for each in raw]
    if expected is None:
        with pytest.raises(SpanError):
            Regions.from_spans(n, spans)
    else:
        made = Regions.from_spans(n, spans)
        assert made.per_token() == expected
        assert ("other" in made.names) == ("other" in expected)


def test_changes_leave_the_original_and_the_callers_array_alone() -> None:
    labels = np.array([0, 1, 1])
    value = Regions(NAMES, labels)
    labels[0] = 3
    value.with_span("fact", 0, 2)
    assert value.per_token() == ["sink", "user", "user"]
    with pytest.raises(ValueError, match="read-only"):
        value.labels[0] = 1


def test_equality_and_hash_look_at_names_and_labels() -> None:
    assert Regions(NAMES, np.array([0, 1])) == Regions(NAMES, np.array([0, 1], dtype=np.int32))
    assert hash(Regions(NAMES, np.array([0, 1]))) == hash(Regions(NAMES, np.array([0, 1])))
    assert Regions(NAMES, np.array([0, 1])) != Regions(NAMES, np.array([0, 2]))
    assert Regions(("a", "b"), np.array([0, 1])) != Regions(("a", "c"), np.array([0, 1]))


def test_pad_is_a_name_even_where_nothing_is_padded() -> None:
    assert Regions(NAMES, np.array([0])).padded(0, 0).names == (*NAMES, "pad")


def test_spans_of_nothing() -> None:
    assert Regions(NAMES, np.array([], dtype=np.int64)).spans() == []


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("a", "a"), [0]),
        (("a", ""), [0]),
        (("a",), [1]),
        (("a",), [-1]),
        (("a",), [[0]]),
        (("a",), [0.0]),
        (("a", "b"), [True]),
        ((), [0]),
    ],
)
def test_labels_that_are_no_partition_are_refused(names: tuple[str, ...], labels: list) -> None:
    with pytest.raises(SpanError):
        Regions(names, np.array(labels))


def test_wrong_requests_are_refused() -> None:
    value = Regions(NAMES, np.array([0, 1, 1]))
    for wrong in (
        lambda: value.indicator(4),
        lambda: value.positions("nothing"),
        lambda: value.with_span("x", 1, 1),
        lambda: value.with_span("x", -1, 2),
        lambda: value.with_span("x", 0, 4),
        lambda: value.with_span("", 0, 1),
        lambda: value.append(-1),
        lambda: value.padded(-1, 0),
        lambda: Regions.from_spans(3, [Span(0, 1)]),
    ):
        with pytest.raises(SpanError):
            wrong()
