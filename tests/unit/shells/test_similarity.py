"""Similarity to shells: null rates by simulation, power on planted similarity, and what cannot be compared."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import wrap
from symbolic_residue.shells import (
    COMPONENTS,
    failure_similarity,
    generalization_map,
    read_shell,
    read_signature,
    shell_signature,
    ShellSignature,
    Signature,
)
from symbolic_residue.shells.signatures import READABLE_GROUPS
from symbolic_residue.shells.signatures._axes import make_axes
from symbolic_residue.shells.signatures._similarity import _category_statistic, _label_null
from symbolic_residue.stats import wilson

READ = [i for i, c in enumerate(COMPONENTS) if c.group in READABLE_GROUPS]
K = len(READ)


def signatures(z: NDArray[np.float64]) -> list[Signature]:
    out = np.full((len(z), len(COMPONENTS)), np.nan)
    out[:, READ] = 1 / (1 + np.exp(-z))
    return [Signature(f"p{i}", row, "reading") for i, row in enumerate(out)]


class World:
    """Synthetic signatures: correlated components, shells with axes of their own, categories that are alike unless displaced."""

    def __init__(self, seed: int, shells: int = 5) -> None:
        self.rng = np.random.default_rng(seed)
        self.mix = self.rng.normal(size=(K, 6))
        self.axes = [self.direction() for _ in range(shells)]

    def direction(self) -> NDArray[np.float64]:
        d = self.rng.normal(size=K)
        return d / np.linalg.norm(d)

    def draw(self, n: int) -> NDArray[np.float64]:
        return 0.25 * self.rng.normal(size=(n, 6)) @ self.mix.T + 0.5 * self.rng.normal(size=(n, K))

    def shells(self, size: float) -> list[ShellSignature]:
        return [
            shell_signature(f"s{i}", signatures(self.draw(24) + size * axis), signatures(self.draw(24)))
            for i, axis in enumerate(self.axes)
        ]

    def natural(self, displaced: dict[int, NDArray[np.float64]] | None = None) -> dict[str, list[Signature]]:
        return {f"c{i}": signatures(self.draw(8) + (displaced or {}).get(i, np.zeros(K))) for i in range(12)}


def test_no_similarity_where_there_is_none_five_hundred_times() -> None:
    """Categories that differ by chance only, shells with strong signatures: any of 60 cells called similar in at most 5 % of maps."""
    false = labels = 0
    n = 500
    for seed in range(n):
        world = World(seed)
        frame = generalization_map(world.natural(), world.shells(3.0), seed=seed, n_permutations=99).frame
        assert set(frame["outcome"]) <= {"similar", "not shown"}
        false += bool((frame["outcome"] == "similar").any())
        labels += bool((frame["p"] <= 0.05).any())
    assert false / n <= 0.05
    assert wilson(labels, n).low <= 0.05  # the permutation of labels alone is exact: its rate is the level


def test_categories_that_differ_elsewhere_are_not_similar() -> None:
    """Every category is displaced in a direction of its own: the labels say so, the random axes say that it is not toward a shell."""
    false = labels = 0
    for seed in range(60):
        world = World(1000 + seed)
        displaced = {i: 2.0 * world.direction() for i in range(12)}
        frame = generalization_map(world.natural(displaced), world.shells(3.0), seed=seed, n_permutations=199).frame
        labels += bool((frame["p"] <= 0.05).any())
        false += bool((frame["outcome"] == "similar").any())
    assert labels >= 50 and false <= 6


def test_planted_similarity_is_found_and_measured() -> None:
    hits, others, sizes = 0, 0, []
    for seed in range(40):
        world = World(2000 + seed)
        found = generalization_map(world.natural({4: 3.0 * world.axes[2]}), world.shells(3.0), seed=seed, n_permutations=199)
        row = found.frame.filter((found.frame["category"] == "c4") & (found.frame["shell"] == "s2")).row(0, named=True)
        hits += row["outcome"] == "similar"
        others += (found.frame["outcome"] == "similar").sum() - (row["outcome"] == "similar")
        sizes.append(row["similarity"])
        assert row["low"] < row["similarity"] < row["high"] and row["n"] == 8 and row["shell_auc"] > 0.9 and row["shell_n"] == 48
    assert hits >= 28 and others <= 3
    assert np.mean(sizes) == pytest.approx(1.0, abs=0.15)  # displaced as far as the planted items


def test_a_shell_without_a_signature_has_nothing_similar() -> None:
    world = World(5)
    found = generalization_map(world.natural(), world.shells(0.0), n_permutations=99).frame
    assert set(found["outcome"]) == {"no signature"} and found["similarity"].null_count() == len(found)


def test_the_label_test_is_a_permutation_test() -> None:
    """Oracle: the statistic of one cell by its formula, and the null's size under relabelling drawn one by one."""
    rng = np.random.default_rng(0)
    position, labels = rng.normal(size=(20, 3)), np.repeat(np.arange(4), 5)
    found = _category_statistic(position, labels)
    mine, rest = position[labels == 1, 2], position[labels != 1, 2]
    want = (mine.mean() - rest.mean()) / (position[:, 2].std(ddof=1) * np.sqrt(1 / 5 + 1 / 15))
    assert found[1, 2] == pytest.approx(want)
    one_by_one = [_category_statistic(position, rng.permutation(labels)).max() for _ in range(3000)]
    drawn = _label_null(position, labels, rng, 3000)
    for q in (0.5, 0.9):
        assert np.quantile(drawn, q) == pytest.approx(np.quantile(one_by_one, q), abs=0.12)


def test_the_tested_prompts_have_no_part_in_the_axes() -> None:
    world = World(9)
    shells = world.shells(2.0)
    one, two = (np.stack([s.values for s in signatures(world.draw(8) + shift)]) for shift in (0.0, 4.0))
    a, b = make_axes(shells, [one]), make_axes(shells, [two])
    assert np.array_equal(a.axes, b.axes) and np.array_equal(a.whitening, b.whitening)
    lacking = one.copy()
    lacking[0, READ[3]] = np.nan
    assert READ[3] not in make_axes(shells, [lacking]).components and READ[3] in a.components


def test_held_out_separation_of_nothing_is_about_one_half() -> None:
    values = [make_axes(World(s).shells(0.0), []).separation[0].value for s in range(60)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.05)


def test_seeds_and_the_order_of_categories() -> None:
    world = World(3)
    natural, shells = world.natural({0: 2 * world.axes[0]}), world.shells(3.0)
    one, again = (generalization_map(natural, shells, seed=4, n_permutations=99).frame for _ in range(2))
    assert one.equals(again)
    turned = generalization_map(dict(reversed(natural.items())), shells, seed=4, n_permutations=99).frame
    joined = one.join(turned, on=["category", "shell"])
    assert np.allclose(joined["similarity"], joined["similarity_right"])


def test_one_failure_against_its_background() -> None:
    hits = false = 0
    for seed in range(40):
        world = World(3000 + seed)
        shells, background = world.shells(3.0), signatures(world.draw(96))
        for shift in (0.0, 4.0):
            one = signatures(world.draw(1) + shift * world.axes[1])[0]
            frame = failure_similarity(one, shells, background=background, seed=seed, n_permutations=199).frame
            similar = frame.filter(frame["outcome"] == "similar")["shell"].to_list()
            if shift:
                hits += "s1" in similar
            else:
                false += bool(similar)
    assert hits >= 24 and false <= 5
    alone = failure_similarity(one, shells, seed=0, n_permutations=199).frame
    assert alone["p"].null_count() == len(alone) and "similar" not in set(alone["outcome"])
    assert alone.filter(alone["shell"] == "s1")["outcome"][0] == "undecided"


def test_refusals() -> None:
    world = World(1)
    shells, natural = world.shells(1.0), world.natural()
    with pytest.raises(ConfigError, match="permutations"):
        generalization_map(natural, shells, n_permutations=5)
    with pytest.raises(ConfigError, match="'c0' has 1"):
        generalization_map(natural | {"c0": natural["c0"][:1]}, shells)
    with pytest.raises(ConfigError, match="1 categories"):
        generalization_map({"c0": natural["c0"]}, shells)
    with pytest.raises(ConfigError, match="each once"):
        generalization_map(natural, [shells[0], shells[0]])
    with pytest.raises(ConfigError, match="3 planted items"):
        shell_signature("s", natural["c0"][:3], natural["c1"])
    with pytest.raises(ConfigError, match="frames"):
        shell_signature("s", natural["c0"], natural["c1"], planted_frames=["a"])
    apart = Signature.of("x", {"context.length": 0.5})
    with pytest.raises(ConfigError, match="0 components"):
        failure_similarity(apart, shells)


def test_a_shells_benchmark_is_read_as_plain_prompts() -> None:
    instrument = Instrument(wrap(build("llama"), tiny_tokenizer()))
    found = read_shell(instrument, "value-collapse", most=5)
    assert found.planted.shape == found.null.shape == (5, len(COMPONENTS))
    assert len(set(found.planted_frames)) > 1
    from symbolic_residue.shells import ValueCollapseShell

    first = next(i for i in ValueCollapseShell.items() if i.split == "calibration" and not i.null)
    np.testing.assert_allclose(found.planted[0], read_signature(instrument, first.prompt).values, atol=2e-4)


def test_items_that_are_no_plain_prompts_are_refused() -> None:
    with pytest.raises(ConfigError, match="no plain prompts"):
        read_shell(Instrument(wrap(build("llama"), tiny_tokenizer())), "memtrace", most=4)


def test_the_map_is_drawn() -> None:
    world = World(2)
    found = generalization_map(world.natural({1: 3 * world.axes[0]}), world.shells(3.0), n_permutations=99)
    chart = found.chart().to_dict()
    values = next(v for v in chart["datasets"].values()) if "datasets" in chart else chart["data"]["values"]
    assert len(values) == 60 and any(v["similar"] for v in values)
    assert set(found.tables()) == {"similarities"} and "output.entropy" in found.components
