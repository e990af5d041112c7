"""What the verdict promises, over many simulated studies: false calls, power, null models.

A study is a condition; its deltas are made as matrices. Examples of a cluster share most of their noise, layers share most of theirs, and both models have
the same large rise, so that every gate within a model passes and the call rests on the difference alone.
"""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from scipy import stats as sps

from symbolic_residue.contrast import DenseDeltas, diff_of_diffs, gates, Options, peak_shift, verdict
from symbolic_residue.contrast._stack import Place, Stack
from symbolic_residue.stats import max_t

FAST = Options(n_resamples=500)
SIZES = {
    "12 equal": [4] * 12,
    "8 equal": [4] * 8,
    "6 equal": [4] * 6,
    "10 unequal": [1, 1, 2, 2, 3, 3, 4, 6, 9, 12],
    "8, one large": [1] * 7 + [20],
}
LAYERS = 6


def noise(rng: np.random.Generator, sizes: list[int], layers: int = LAYERS) -> np.ndarray:
    """``[example, layer]`` of variance 1: .8 of it is of the cluster, .7 of each part is common to the layers."""
    labels = np.repeat(np.arange(len(sizes)), sizes)

    def part(n: int) -> np.ndarray:
        return np.sqrt(0.7) * rng.normal(size=(n, 1)) + np.sqrt(0.3) * rng.normal(size=(n, layers))

    return np.sqrt(0.8) * part(len(sizes))[labels] + np.sqrt(0.2) * part(len(labels))


def model(name: str, values: list[np.ndarray], sizes: list[int]) -> DenseDeltas:
    """One condition a study; ``values [example, layer]`` of the region, and another region far below it."""
    labels = tuple(f"q{i}" for i, n in enumerate(sizes) for _ in range(n))
    names = tuple(f"{label}.{i}" for i, label in enumerate(labels))
    of = {}
    for study, value in enumerate(values):
        for region, x in (("system", value), ("user", np.zeros_like(value) - 1e-6)):
            of[Place(name, f"s{study:04}", "full", -1, region), "C1", 0, "delta"] = Stack(x, names, labels)
    return DenseDeltas(tuple((layer, None) for layer in range(values[0].shape[1])), of)


def called(tuned: DenseDeltas, base: DenseDeltas, nulls: tuple[DenseDeltas, ...] = (), options: Options = FAST) -> pl.DataFrame:
    ours, theirs = (gates(given, regions=["system"], options=options) for given in (tuned, base))
    found = verdict(
        ours,
        theirs,
        diff_of_diffs(tuned, base, options=options),
        nulls=[diff_of_diffs(null, base, options=options) for null in nulls],
        options=options,
    )
    return found.filter(pl.col("region") == "system")


def at_most(rate: float, n: int) -> int:
    """The most calls of ``n`` that a true rate leaves with a chance of 99 %."""
    return int(sps.binom.ppf(0.99, n, rate))


def null_studies(sizes: list[int], n: int, seed: int, options: Options = FAST) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    tuned, base = ([8.0 + noise(rng, sizes) for _ in range(n)] for _ in range(2))
    return called(model("tuned", tuned, sizes), model("base", base, sizes), options=options)


@pytest.mark.parametrize("kind", list(SIZES))
def test_no_difference_is_called_induced_in_at_most_one_of_twenty(kind: str) -> None:
    found = null_studies(SIZES[kind], 400, seed=1)
    # All gates within the models pass: only the difference keeps it back.
    assert set(found["outcome"]) <= {"induced", "present in base", "reduced by training"}
    # Two-sided 5 %, family-wise over the layers: a rise in half of it.
    assert (found["outcome"] == "induced").sum() <= at_most(0.025, 400)
    assert found["outcome"].is_in(["induced", "reduced by training"]).sum() <= at_most(0.05, 400)


@pytest.mark.scale
@pytest.mark.parametrize("kind", list(SIZES))
def test_the_same_over_twelve_hundred_more_studies(kind: str) -> None:
    # With 500 of 1,024 flips, the same for every study, ten unequal clusters gave 7.0 % of 4,000; with all of them 4.9 % of 22,400.
    found = pl.concat([null_studies(SIZES[kind], 400, seed=seed) for seed in (2, 3, 4)])
    assert found["outcome"].is_in(["induced", "reduced by training"]).sum() <= at_most(0.05, 1200)


def test_the_verdict_calls_where_max_t_does_and_nowhere_else() -> None:
    """Where all gates pass within both models, the two steps (interval, family-wise p) are no laxer and no stricter than the p alone."""
    rng, sizes, n = np.random.default_rng(7), SIZES["10 unequal"], 200
    labels = np.repeat(np.arange(10), sizes)
    tuned, base = ([8.0 + noise(rng, sizes) for _ in range(n)] for _ in range(2))
    found = called(model("tuned", tuned, sizes), model("base", base, sizes)).sort("condition")
    alone = [bool(max_t(t - b, seed=0, clusters=labels).min() <= 0.05) for t, b in zip(tuned, base, strict=True)]
    assert sum(alone) > 0
    assert found["outcome"].is_in(["induced", "reduced by training"]).to_list() == alone


def test_what_any_tuning_moves_is_called_without_null_models_and_not_with_them() -> None:
    """Every adapter adds the same shift, of two of an example's standard deviations, beside noise of its own."""
    rng, n, sizes = np.random.default_rng(3), 300, SIZES["12 equal"]
    shift = np.linspace(1.0, 2.0, LAYERS)
    tuned, base, random, other = ([8.0 + s + noise(rng, sizes) for _ in range(n)] for s in (shift, 0.0, shift, shift))
    models = [
        model(name, values, sizes) for name, values in (("tuned", tuned), ("base", base), ("random", random), ("other", other))
    ]
    without = called(models[0], models[1])
    assert (without["outcome"] == "induced").mean() >= 0.9
    one = called(models[0], models[1], (models[2],))
    assert (one["outcome"] == "induced").sum() <= at_most(0.05, n)
    two = called(models[0], models[1], (models[2], models[3]))
    assert (two["outcome"] == "induced").sum() <= (one["outcome"] == "induced").sum()
    # What goes as far beyond the nulls as they go beyond the base is still seen.
    more = model("tuned", [value + 2.0 for value in tuned], sizes)
    assert (called(more, models[1], (models[2], models[3]))["outcome"] == "induced").mean() >= 0.8


def test_one_null_model_does_not_stand_for_all_that_could_be_drawn() -> None:
    """Where each adapter draws a shift of its own, a lone null is often the smaller one: examples are the unit, not adapters. The page says so."""
    rng, n, sizes = np.random.default_rng(4), 100, SIZES["12 equal"]
    tuned, *nulls = ([8.0 + 3 * rng.normal() + noise(rng, sizes) for _ in range(n)] for _ in range(10))
    base = model("base", [8.0 + noise(rng, sizes) for _ in range(n)], sizes)
    ours = model("tuned", tuned, sizes)
    given = [model(f"null {i}", values, sizes) for i, values in enumerate(nulls)]
    rates = [float((called(ours, base, tuple(given[:k]))["outcome"] == "induced").mean()) for k in (1, 9)]
    assert 0.1 <= rates[0] <= 0.35  # of rises, half of all, about half are larger than one null's
    assert rates[1] <= 0.1


@pytest.mark.parametrize("kind", ["12 equal", "8 equal", "6 equal", "10 unequal"])
def test_the_detectable_effect_is_detected_in_four_of_five(kind: str) -> None:
    rng, n, sizes = np.random.default_rng(5), 400, SIZES[kind]
    base = model("base", [8.0 + noise(rng, sizes) for _ in range(n)], sizes)
    quiet = [8.0 + noise(rng, sizes) for _ in range(n)]
    still = diff_of_diffs(model("tuned", quiet, sizes), base, options=FAST).frame.filter(
        (pl.col("region") == "system") & (pl.col("layer") == 2)
    )
    size = float(np.sqrt((still["detectable"] ** 2).mean()))  # pyright: ignore[reportArgumentType, reportOperatorIssue]
    lifted = [value + size * (np.arange(LAYERS) == 2) for value in quiet]
    found = called(model("tuned", lifted, sizes), base)
    # Strongly unequal clusters: .75 was measured; the docstring of detectable_effect says so.
    floor = 0.70 if kind == "10 unequal" else 0.8 - 2.33 * np.sqrt(0.16 / n)
    assert (found["outcome"] == "induced").mean() >= floor
    assert (found["outcome"] == "induced").mean() <= 0.97  # nor is it overstated by much


@given(st.integers(0, 10**6), st.floats(0.0, 20.0), st.sampled_from(list(SIZES)), st.booleans())
@settings(max_examples=25, deadline=None)
def test_gates_within_a_model_never_give_induced(seed: int, rise: float, kind: str, same: bool) -> None:
    """Whatever the tuned model shows, a reference that shows the same leaves nothing to call induced."""
    rng, sizes = np.random.default_rng(seed), SIZES[kind]
    value = rise + noise(rng, sizes)
    found = called(model("tuned", [value], sizes), model("base", [value if same else value + 0.5], sizes))
    assert found["outcome"].item() != "induced"


@pytest.mark.parametrize("kind", ["6 equal", "10 unequal"])
def test_the_interval_of_a_peaks_shift_is_not_too_narrow(kind: str) -> None:
    """Peaks two layers apart; 300 studies: what 95 % covers is at least that (2.33 standard errors of it are 3 points)."""
    rng, n, sizes = np.random.default_rng(8), 300, SIZES[kind]
    hill = [4.0 * np.exp(-0.5 * ((np.arange(10) - at) / 2) ** 2) for at in (3, 5)]
    theirs, ours = ([h + noise(rng, sizes, 10) for _ in range(n)] for h in hill)
    found = peak_shift(model("tuned", ours, sizes), model("base", theirs, sizes), options=FAST).filter(pl.col("region") == "system")
    assert len(found) == n
    assert ((found["low"] <= 2) & (found["high"] >= 2)).mean() >= 0.92
    assert ((found["low"] > 0) & (found["shift"] > 0)).mean() >= 0.1  # it is not so wide that nothing is said
