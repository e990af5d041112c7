"""Similarity to shells: null rates by simulation, power on planted similarity, and what cannot be compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
    shell_prompts,
    shell_signature,
    SHELLS,
    ShellSignature,
    Signature,
)
from symbolic_residue.shells.signatures import READABLE_GROUPS
from symbolic_residue.shells.signatures._axes import make_axes
from symbolic_residue.shells.signatures._prompts import item_prompt
from symbolic_residue.shells.signatures._similarity import (
    _category_statistic,
    _exceeding,
    _label_null,
    _statistics,
    compare_categories,
    compare_one,
)
from symbolic_residue.stats import wilson

READ = [i for i, c in enumerate(COMPONENTS) if c.group in READABLE_GROUPS]
K = len(READ)


def padded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[item, component]`` with the readable components only."""
    out = np.full((len(values), len(COMPONENTS)), np.nan)
    out[:, READ] = values
    return out


def signatures(z: NDArray[np.float64]) -> list[Signature]:
    return [Signature(f"p{i}", row, "reading") for i, row in enumerate(padded(1 / (1 + np.exp(-z))))]


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


def simulated(
    n: int, worlds: Callable[[int], World], displaced: Callable[[World], dict[int, Any]], size: float = 3.0
) -> dict[str, Any]:
    """Maps of ``n`` worlds by the inner test: per map, whether any cell was called farther, similar; and the planted cell (4, 2)."""
    found: dict[str, list[bool]] = {"farther": [], "similar": [], "planted": []}
    for seed in range(n):
        world = worlds(seed)
        natural = world.natural(displaced(world))
        matrix = np.stack([s.values for prompts in natural.values() for s in prompts])
        labels = np.repeat(np.arange(12), 8)
        cells = compare_categories(matrix, labels, make_axes(world.shells(size), [matrix]), np.random.default_rng(seed), 99)
        both = np.maximum(cells.p, cells.p_toward) <= 0.05
        assert (cells.p_toward >= cells.p).all()
        for name, value in (("farther", cells.p.min() <= 0.05), ("similar", both.any()), ("planted", both[4, 2])):
            found[name].append(bool(value))
    return {name: np.array(values) for name, values in found.items()}


def test_no_similarity_where_there_is_none_five_hundred_times() -> None:
    """Categories that differ by chance only, shells with strong signatures: the label test is exact, so its rate is the level."""
    found = simulated(500, World, lambda w: {})
    assert found["similar"].mean() <= 0.01
    rate = wilson(int(found["farther"].sum()), 500)
    assert rate.low <= 0.05 <= rate.high  # neither above nor, being exact, below


def test_categories_that_differ_elsewhere_are_not_similar() -> None:
    """Every category is displaced in a direction of its own: farther, but not toward a shell."""
    found = simulated(150, lambda s: World(1000 + s), lambda w: {i: 2.0 * w.direction() for i in range(12)})
    assert found["farther"].mean() > 0.8
    assert found["similar"].sum() <= 2  # at 5 %, two or fewer of 150 have a chance of 2 %


def test_planted_similarity_is_found_among_categories_that_are_alike_and_that_differ() -> None:
    alike = simulated(60, lambda s: World(2000 + s), lambda w: {4: 2.0 * w.axes[2]})  # two thirds of the shell's shift
    assert alike["planted"].mean() >= 0.8
    differ = simulated(
        60, lambda s: World(2100 + s), lambda w: {i: 2.0 * w.direction() + (3.0 * w.axes[2] if i == 4 else 0) for i in range(12)}
    )
    assert differ["planted"].mean() >= 0.7


def test_planted_similarity_is_measured() -> None:
    sizes = []
    for seed in range(12):
        world = World(2000 + seed)
        found = generalization_map(world.natural({4: 3.0 * world.axes[2]}), world.shells(3.0), seed=seed, n_permutations=199).frame
        row = found.filter((found["category"] == "c4") & (found["shell"] == "s2")).row(0, named=True)
        assert row["outcome"] == "similar" and row["cosine"] > 0.6 and row["components"] == K
        assert (found["outcome"] == "similar").sum() == 1
        sizes.append(row["similarity"])
        assert row["low"] < row["similarity"] < row["high"] and row["n"] == 8 and row["shell_auc"] > 0.9 and row["shell_n"] == 48
    assert np.mean(sizes) == pytest.approx(1.0, abs=0.15)  # displaced as far as the planted items


def test_being_far_in_every_direction_is_not_being_toward() -> None:
    """A category as far along the axis as the planted items are, and much farther across it."""
    world = World(7)
    across = world.direction()
    across -= across @ world.axes[2] * world.axes[2]
    found = generalization_map(world.natural({4: 3 * world.axes[2] + 12 * across}), world.shells(3.0), n_permutations=199).frame
    row = found.filter((found["category"] == "c4") & (found["shell"] == "s2")).row(0, named=True)
    assert row["p"] <= 0.05 < row["p_toward"] and row["outcome"] == "not shown" and row["cosine"] < 0.447


def test_frames_are_permuted_as_wholes() -> None:
    """Prompts of one pattern hang together: eight prompts of two patterns each, patterns far apart, categories alike."""
    false = {True: 0, False: 0}
    for seed in range(60):
        world = World(4000 + seed)
        shells = world.shells(3.0)
        natural, frames = {}, {}
        for c in range(8):
            offsets = np.repeat(1.5 * world.rng.normal(size=(3, K)), 4, axis=0)
            natural[f"c{c}"] = signatures(world.draw(12) + offsets)
            frames[f"c{c}"] = [f"{c}{i // 4}" for i in range(12)]
        for whole in false:
            frame = generalization_map(natural, shells, frames=frames if whole else None, n_permutations=99, seed=seed).frame
            false[whole] += bool((frame["p"] <= 0.05).any())
            assert set(frame["n"]) == ({3} if whole else {12})
    assert false[True] <= 8 < 30 < false[False]
    with pytest.raises(ConfigError, match="12 prompts and 0 frames"):
        generalization_map(natural, shells, frames={})
    with pytest.raises(ConfigError, match="in the categories"):
        generalization_map(natural, shells, frames={c: ["one"] * 12 for c in natural})


def test_what_a_shell_lacks_is_missing_for_it_alone() -> None:
    """Oracle: the others' columns do not change; the shell's own are those of a comparison without the component."""
    world = World(11)
    shells, natural = world.shells(3.0), world.natural({4: 3.0 * world.axes[1]})
    lacking = shells[1].planted.copy()
    lacking[3, READ[5]] = np.nan
    holed = ShellSignature("s1", lacking, shells[1].null, shells[1].planted_frames, shells[1].null_frames)
    found = generalization_map(natural, [shells[0], holed], n_permutations=99)
    assert found.missing == {"s1": (COMPONENTS[READ[5]].name,)} and COMPONENTS[READ[5]].name in found.components
    by = {s: found.frame.filter(found.frame["shell"] == s) for s in ("s0", "s1")}
    assert set(by["s0"]["components"]) == {K} and set(by["s1"]["components"]) == {K - 1}
    whole = generalization_map(natural, [shells[0]], n_permutations=99).frame
    assert np.allclose(by["s0"]["similarity"].to_numpy(), whole["similarity"].to_numpy())
    without = [
        ShellSignature(s.shell, *(np.where(np.arange(len(COMPONENTS)) == READ[5], np.nan, m) for m in (s.planted, s.null)))
        for s in (shells[0], holed)
    ]
    bare = generalization_map(natural, without, n_permutations=99).frame
    assert np.allclose(by["s1"]["similarity"].to_numpy(), bare.filter(bare["shell"] == "s1")["similarity"].to_numpy())
    zero = np.nan_to_num(lacking)  # a zero in the hole would be a number like any other
    filled = generalization_map(natural, [shells[0], ShellSignature("s1", zero, shells[1].null)], n_permutations=99)
    assert not np.allclose(
        by["s1"]["similarity"].to_numpy(), filled.frame.filter(filled.frame["shell"] == "s1")["similarity"].to_numpy()
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 20.0))
def test_the_order_of_components_and_their_units_change_nothing(seed: int, factor: float) -> None:
    """Positions are invariant to a permutation of the components and to a scale of each (above the floor)."""
    rng = np.random.default_rng(seed)
    world = World(seed)
    shells = [ShellSignature(f"s{i}", *(padded(world.draw(12) + s * a) for s in (3.0, 0.0))) for i, a in enumerate(world.axes[:2])]
    natural = padded(world.draw(24))
    labels, order = np.repeat(np.arange(3), 8), rng.permutation(K)
    scale = factor ** rng.uniform(0.1, 1, K)

    def changed(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        return padded((matrix[:, READ] * 100 * scale)[:, order])

    turned = [ShellSignature(s.shell, changed(s.planted), changed(s.null)) for s in shells]
    cells = []
    for these, matrix in ((shells, natural), (turned, changed(natural))):
        axes = make_axes(these, [matrix])
        cells.append((compare_categories(matrix, labels, axes, np.random.default_rng(0), 39), axes))
    (one, a), (two, b) = cells
    for field in ("difference", "cosine", "p", "p_toward"):
        np.testing.assert_allclose(getattr(one, field), getattr(two, field), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose([x.shift for x in a], [x.shift for x in b], rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_planted_and_null_exchanged_turn_the_map_round(seed: int) -> None:
    """Symmetry: the axis changes its sign and nothing else; with two categories the one's displacement is minus the other's."""
    world = World(seed)
    shells = [ShellSignature("s", padded(world.draw(12) + 3 * world.axes[0]), padded(world.draw(12)))]
    swapped = [ShellSignature("s", shells[0].null, shells[0].planted)]
    natural, labels = padded(world.draw(14)), np.repeat([0, 1], [6, 8])
    one, two = (
        compare_categories(natural, labels, make_axes(s, [natural]), np.random.default_rng(0), 39) for s in (shells, swapped)
    )
    np.testing.assert_allclose(one.difference, -two.difference)
    np.testing.assert_allclose(one.difference[0], -one.difference[1])
    np.testing.assert_allclose(one.cosine[0], -one.cosine[1])


@pytest.mark.parametrize("tail", ["normal", "heavy"])
def test_p_values_of_the_label_test_are_uniform(tail: str) -> None:
    """One cell in two categories of unequal size, whatever the tails: P(p ≤ a) = a at every a, within four standard errors."""
    n, draws = 3000, 99
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1], [3, 11])
    p = np.empty(n)
    for i in range(n):
        x = rng.normal(size=(14, 1)) if tail == "normal" else rng.standard_cauchy((14, 1))
        p[i] = _exceeding(_category_statistic(x, labels)[0], _one_cell(x, labels, rng, draws))[0]
    for a in (0.05, 0.2, 0.5, 0.8):
        assert abs((p <= a).mean() - a) < 4 * np.sqrt(a * (1 - a) / n), (a, (p <= a).mean())


def _one_cell(x: NDArray[np.float64], labels: NDArray[np.int64], rng: np.random.Generator, draws: int) -> NDArray[np.float64]:
    return _statistics(x, rng.permuted(np.tile(labels, (draws, 1)), axis=1))[:, 0, 0]


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
    for a, b in zip(make_axes(shells, [one]), make_axes(shells, [two]), strict=True):
        assert np.array_equal(a.direction, b.direction) and np.array_equal(a.whitening, b.whitening)
    lacking = one.copy()
    lacking[0, READ[3]] = np.nan
    assert READ[3] not in make_axes(shells, [lacking])[0].components and READ[3] in a.components


def test_held_out_separation_of_nothing_is_about_one_half() -> None:
    values = [make_axes(World(s).shells(0.0), [])[0].separation.value for s in range(60)]
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
    hits = 0
    for seed in range(40):
        world = World(3000 + seed)
        one = signatures(world.draw(1) + 5.0 * world.axes[1])[0]
        frame = failure_similarity(one, world.shells(3.0), background=signatures(world.draw(96))).frame
        hits += frame.filter(frame["shell"] == "s1")["outcome"][0] == "similar"
    assert hits >= 32
    alone = failure_similarity(one, world.shells(3.0)).frame
    assert alone["p"].null_count() == alone["p_toward"].null_count() == len(alone) and set(alone["outcome"]) == {"undecided"}


def test_ranks_of_one_prompt_among_others_like_it_are_uniform() -> None:
    """Exact for any distribution: both p values at most a in a share a of worlds, within four standard errors."""
    n = 400
    p = np.empty((2, n))
    for seed in range(n):
        world = World(seed, shells=2)
        matrix, shells = padded(world.draw(40)), world.shells(3.0)
        cells = compare_one(matrix[0], matrix[1:], make_axes(shells, [matrix]), shells)
        p[:, seed] = cells.p.min(), cells.p_toward.min()
    for a in (0.1, 0.25, 0.5):
        assert (np.abs((p <= a).mean(1) - a) < 4 * np.sqrt(a * (1 - a) / n)).all(), (a, (p <= a).mean(1))


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
    with pytest.raises(ConfigError, match="8 prompts are no background"):
        failure_similarity(natural["c0"][0], shells, background=natural["c1"])


def test_a_shells_benchmark_is_read() -> None:
    instrument = Instrument(wrap(build("llama"), tiny_tokenizer()))
    found = read_shell(instrument, "value-collapse", most=5)
    assert found.planted.shape == found.null.shape == (5, len(COMPONENTS))
    assert len(set(found.planted_frames)) > 1
    from symbolic_residue.shells import ValueCollapseShell

    first = next(i for i in ValueCollapseShell.items() if i.split == "calibration" and not i.null)
    np.testing.assert_allclose(found.planted[0], read_signature(instrument, first.prompt).values, atol=2e-4)


@pytest.fixture(scope="module")
def roomy() -> Instrument:
    """A tiny model with room for prompts of every shell."""
    return Instrument(wrap(build("llama", max_position_embeddings=2048, num_hidden_layers=3), tiny_tokenizer()))


@pytest.mark.parametrize("shell", list(SHELLS))
def test_every_shell_has_a_signature_in_all_readable_components(roomy: Instrument, shell: str) -> None:
    prompts = shell_prompts(roomy, shell, most=4)
    planted, null = prompts
    assert len(planted) == len(null) == len(prompts.planted_frames) == len(set(prompts.planted_ids)) == 4
    assert not {p.text for p in planted} & {p.text for p in null}
    for prompt in [*planted, *null]:
        assert "".join(prompt.text[a:b] for a, b in prompt.offsets) == prompt.text and len(prompt.tokens) == len(prompt)
    found = read_shell(roomy, shell, most=4)
    assert not np.isnan(np.concatenate([found.planted, found.null])[:, READ]).any()
    context = [i for i, c in enumerate(COMPONENTS) if c.name == "context.length"]
    lengths = [round(64 * v / (1 - v)) for v in found.planted[:, context].ravel()]
    assert lengths == [len(p) for p in planted]


def test_the_prompt_of_an_item_is_the_one_that_its_shell_asks(roomy: Instrument) -> None:
    """Oracle: the shells' own runs of the same items keep the tokens that they read."""
    from symbolic_residue.shells import InstructionDisruptionConfig, InstructionDisruptionShell, MemtraceConfig, MemtraceShell

    config = MemtraceConfig.quick(distances=(0, 12, 40), draws=2, top_heads=0)
    for kind in ("fields", "null-near", "collision"):
        item = next(i for i in MemtraceShell.items() if i.split == "calibration" and i.kind == kind)
        shell = MemtraceShell(config=config, loaded=roomy.loaded)
        tokens = shell.run_item(item).frames["tokens"].sort("position")["token_id"].to_list()
        assert item_prompt(roomy, item).ids == tokens, kind
    item = next(i for i in InstructionDisruptionShell.items() if i.split == "calibration" and i.level == 2)
    shell = InstructionDisruptionShell(config=InstructionDisruptionConfig.quick(), loaded=roomy.loaded)
    from symbolic_residue.shells.instruction_disruption._ask import make_asked

    asked = make_asked([item.a, item.b], None, item.control, item.joint, shell.config.tasks, 0)
    frames = [f for f in shell._frames(asked, shell.config) if f.condition == "conflict" and f.order == "ab" and f.task == 0]
    assert item_prompt(roomy, item).ids == frames[0].prompt.ids


def test_items_that_are_no_prompts_are_refused(roomy: Instrument) -> None:
    from symbolic_residue.prompts import ShellItem

    with pytest.raises(ConfigError, match="no plain prompt"):
        item_prompt(roomy, ShellItem(id="x", kind="k", split="calibration"))


def test_the_map_is_drawn() -> None:
    world = World(2)
    found = generalization_map(world.natural({1: 3 * world.axes[0]}), world.shells(3.0), n_permutations=99)
    chart = found.chart().to_dict()
    values = next(v for v in chart["datasets"].values()) if "datasets" in chart else chart["data"]["values"]
    assert len(values) == 60 and any(v["similar"] for v in values)
    assert set(found.tables()) == {"similarities"} and "output.entropy" in found.components
