"""ShellIntegrator: every shell is run or refused with its reason; planted overlap is named, unrelated blame is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pytest
from tiny_models import build, tiny_tokenizer

from symbolic_residue import ShellIntegrator
from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.models import wrap
from symbolic_residue.shells import Progress, quiet, ShellBase, ValueCollapseConfig, ValueCollapseShell
from symbolic_residue.shells.across import blames_of

LAYERS, HEADS = 12, 8
TEXT = "The mill stands where the river turns. The mill stands where the"


@dataclass(frozen=True)
class Said:
    frames: dict[str, pl.DataFrame]

    def tables(self) -> dict[str, pl.DataFrame]:
        return self.frames


class Scores(ShellBase[dict[str, pl.DataFrame], Said]):
    """Blames random heads, and the planted ones most; its scores depend on the text."""

    name, operations = "scores", ("A", "B", "C")
    planted: tuple[tuple[int, int], ...] = ()

    def run(self, input_text: str, *, seed: int = 0, progress: Progress = quiet) -> dict[str, pl.DataFrame]:
        rng = np.random.default_rng([seed, len(input_text), self.config])
        value = rng.random((LAYERS, HEADS))
        for at in self.planted:
            value[at] += 10
        cells = [(i, j, "effect", float(value[i, j]), 0.0) for i in range(LAYERS) for j in range(HEADS)]
        return {"head_scores": pl.DataFrame(cells, schema=["layer", "head", "score", "value", "control"], orient="row")}

    def analyze_residue(self, residue: dict[str, pl.DataFrame], *, progress: Progress = quiet) -> Said:
        return Said(residue)


class Needy(Scores):
    name = "needy"

    def run(self, input_text: str, fact: str, *, seed: int = 0, progress: Progress = quiet) -> dict[str, pl.DataFrame]:  # type: ignore[override]
        assert fact in input_text
        return super().run(input_text, seed=seed)


class Finds(Needy):
    def asks(self, input_text: str) -> dict[str, Any]:
        if "." not in input_text:
            raise PromptError("There is no sentence here.")
        return {"fact": input_text.split(".")[0]}


@pytest.fixture(scope="module")
def loaded() -> Any:
    return wrap(build("llama"), tiny_tokenizer())


def shells(loaded: Any, planted: tuple[tuple[int, int], ...] = (), kind: type[Scores] = Scores) -> dict[str, Scores]:
    made = {f"s{i}": kind(config=i, loaded=loaded) for i in range(3)}
    for shell in made.values():
        shell.planted = planted
    return made


def test_planted_heads_are_named_and_unrelated_blame_is_not(loaded: Any) -> None:
    planted = ((2, 3), (5, 1), (9, 7))
    joint = ShellIntegrator(shells(loaded, planted))
    found = joint.integrated_attribution(joint.run_all(TEXT), n_draws=999)
    table = found.overlap
    assert table["level"].to_list() == ["head", "leading head"] * 3 + ["head"]  # three pairs, and all
    sets = table.filter(pl.col("level") == "head")
    assert (sets["q"] <= 0.05).all()
    assert (table["low"] <= table["expected"]).all() and (table["expected"] <= table["high"]).all()
    for row in sets.to_dicts():
        assert {"2.3", "5.1", "9.7"} <= set(row["shared_units"].split(", "))
    assert "share" in found.summary
    top = found.blame.filter(pl.col("by") == 3)
    assert {(r["layer"], int(r["unit"])) for r in top.to_dicts()} >= set(planted)
    alone = ShellIntegrator(shells(loaded))
    none = alone.integrated_attribution(alone.run_all(TEXT), n_draws=999)
    assert (none.overlap["q"] > 0.05).all()
    assert none.summary == "No overlap beyond chance; s0, s1 and s2 ran."


def test_the_crossed_control_shows_heads_that_are_blamed_anywhere(loaded: Any) -> None:
    joint = ShellIntegrator(shells(loaded, ((2, 3), (5, 1), (9, 7))))
    here, there = joint.run_all(TEXT), joint.run_all("Another text.")
    row = joint.integrated_attribution(here, elsewhere=[there], n_draws=99).overlap.row(0, named=True)
    assert row["crossed"] >= 3
    assert row["crossed_n"] == 2
    assert joint.integrated_attribution(here, n_draws=99).overlap["crossed"].null_count() == 7


def test_a_shell_that_needs_more_is_asked_given_or_refused_by_name(loaded: Any) -> None:
    some = {**shells(loaded), "needy": Needy(config=9, loaded=loaded)}
    joint = ShellIntegrator(some)
    refused = joint.run_all(TEXT)
    assert set(refused.findings) == {"s0", "s1", "s2"}
    assert "fact" in refused.refused["needy"]
    found = joint.integrated_attribution(refused, n_draws=99)
    assert found.refused == refused.refused
    assert found.summary.endswith("s0, s1 and s2 ran; needy was left out (needy needs more than a text: fact).")
    assert set(joint.run_all(TEXT, asked={"needy": {"fact": "mill"}}).findings) == set(some)
    finds = ShellIntegrator({**shells(loaded), "needy": Finds(config=9, loaded=loaded)})
    assert set(finds.run_all(TEXT).findings) == set(some)
    assert "no sentence" in finds.run_all("no stop").refused["needy"]


def test_what_cannot_be_integrated_is_refused(loaded: Any) -> None:
    other = Scores(config=0, loaded=wrap(build("llama", seed=5), tiny_tokenizer()))
    with pytest.raises(ConfigError, match="two shells"):
        ShellIntegrator({"a": other})
    with pytest.raises(ConfigError, match="different models"):
        ShellIntegrator({"a": other, "b": Scores(config=0, loaded=loaded)})
    joint = ShellIntegrator(shells(loaded))
    with pytest.raises(ConfigError, match="no shell 'x'"):
        joint.run_all(TEXT, asked={"x": {}})
    with pytest.raises(ConfigError, match="level"):
        joint.integrated_attribution(joint.run_all(TEXT), shares={"soul": 0.1})
    needy = ShellIntegrator({"a": Needy(config=1, loaded=loaded), "b": Needy(config=2, loaded=loaded)})
    with pytest.raises(PromptError, match="a: needy needs more"):
        needy.run_all(TEXT)
    mixed = ShellIntegrator({"a": Needy(config=1, loaded=loaded), "b": Scores(config=2, loaded=loaded)})
    with pytest.raises(ConfigError, match="needs two"):
        mixed.integrated_attribution(mixed.run_all(TEXT))


def test_shells_without_common_units_are_not_called_different(loaded: Any) -> None:
    class Layers(Scores):
        def analyze_residue(self, residue: dict[str, pl.DataFrame], *, progress: Progress = quiet) -> Said:
            cells = [("m", i, 1, 0.5) for i in range(LAYERS)]
            return Said({"maps": pl.DataFrame(cells, schema=["map", "layer", "position", "value"], orient="row")})

    joint = ShellIntegrator({"a": Scores(config=1, loaded=loaded), "b": Layers(config=2, loaded=loaded)})
    found = joint.integrated_attribution(joint.run_all(TEXT))
    assert found.overlap.is_empty()
    assert "Nothing was compared" in found.summary


def test_levels_are_read_from_the_tables() -> None:
    heads = pl.DataFrame(
        {"layer": [0, 0, 0], "head": [0, 1, 0], "target": ["a", "a", "b"], "dla": [-2.0, 1.0, 9.0], "confirmed": [True, None, None]}
    )
    components = pl.DataFrame(
        {
            "target": ["a"] * 4,
            "component": ["embedding", "attention", "mlp", "mlp"],
            "layer": [-1, 0, 0, 1],
            "contribution": [5.0, 1.0, -3.0, 0.5],
        }
    )
    tokens = pl.DataFrame({"position": [0, 1, 2], "token": ["x", " y", " z"], "influence": [4.0, -0.5, 0.0]})
    found = blames_of(Said({"heads": heads, "components": components, "tokens": tokens}))
    assert found["head"].units == ((0, "0"), (0, "1"))
    assert found["head"].score.tolist() == [2.0, 1.0]
    assert found["head"].confirmed is not None and found["head"].confirmed.tolist() == [True, False]
    assert found["layer"].score.tolist() == [2.0, 0.5]
    assert found["token"].units == ((-1, "1  y"), (-1, "2  z"))  # the sink is left out

    class Own(Said):
        def blame(self) -> dict[str, pl.DataFrame]:
            return {"feature": pl.DataFrame({"layer": [3], "unit": ["f7"], "score": [-1.5]})}

    assert blames_of(Own({}))["feature"].score.tolist() == [1.5]

    class Wrong(Said):
        def blame(self) -> dict[str, pl.DataFrame]:
            return {"feature": pl.DataFrame({"unit": ["f7"], "score": [-1.5]})}

    with pytest.raises(ConfigError, match="lacks layer"):
        blames_of(Wrong({}))


def test_value_collapse_is_integrated_and_drawn(loaded: Any) -> None:
    from symbolic_residue.figures import to_svg
    from symbolic_residue.store._schema import conform

    config = ValueCollapseConfig(variants=3, steps=2, top_heads=2, random_heads=2)
    joint = ShellIntegrator({"vc": ValueCollapseShell(loaded=loaded, config=config), "s": Scores(config=1, loaded=loaded)})
    told: list[float] = []
    results = joint.run_all(TEXT, progress=lambda what, share: told.append(share))
    assert told == sorted(told)
    assert len(results.tables()["verdicts"]) == 4
    found = joint.integrated_attribution(results)
    head = found.overlap.filter(pl.col("level") == "head").row(0, named=True)
    assert head["units"] == 8  # only heads that both score
    for name, frame in found.tables().items():
        conform(name, frame, "x")
    assert "shells that blame the head" in to_svg(joint.visualize_integrated(found), label="blame")


def test_a_shell_that_lists_only_tested_heads_is_read_by_its_scores_of_all() -> None:
    class Told:
        def tables(self) -> dict[str, pl.DataFrame]:
            heads = {"layer": [1], "head": [2], "target": ["x"], "dla": [0.5], "confirmed": [True]}
            scores = {
                "layer": [0, 0, 1, 1],
                "head": [0, 1, 0, 2],
                "score": ["s"] * 4,
                "value": [0.1, 0.2, 0.3, 0.9],
                "control": [0.0, 0.5, 0.0, 0.0],
            }
            return {"heads": pl.DataFrame(heads), "head_scores": pl.DataFrame(scores)}

    from symbolic_residue.shells.across._blame import blames_of

    found = blames_of(Told())["head"]
    assert found.units == ((0, "0"), (0, "1"), (1, "0"), (1, "2"))
    assert found.score.tolist() == pytest.approx([0.1, 0.3, 0.3, 0.9])
    assert found.confirmed is not None
    assert found.confirmed.tolist() == [False, False, False, True]


class Deep(Scores):
    """A model of 30 layers with 9 heads, whose scores grow with depth; one head may be planted, and nothing else is shared."""

    def run(self, input_text: str, *, seed: int = 0, progress: Progress = quiet) -> dict[str, pl.DataFrame]:
        rng = np.random.default_rng([seed, self.config])
        value = rng.gamma(2.0, 1.0, (30, 9)) * np.exp(0.15 * np.arange(30))[:, None]
        for layer, head in self.planted:
            value[layer, head] = 25 * np.median(value[layer])
        cells = [(i, j, "effect", float(value[i, j]), 0.0) for i in range(30) for j in range(9)]
        return {"head_scores": pl.DataFrame(cells, schema=["layer", "head", "score", "value", "control"], orient="row")}


def test_one_head_planted_for_two_shells_is_named_and_chance_is_not(loaded: Any) -> None:
    """The head that two shells share is named in nearly every draw; where nothing is shared, a sentence of overlap is said in at most 5 % (binomial spread
    allowed: 6 of 60 at most)."""
    joint = ShellIntegrator({"a": Deep(config=1, loaded=loaded), "b": Deep(config=2, loaded=loaded)})
    right, false = 0, 0
    for seed in range(60):
        at = (seed % 30, seed % 9)
        for planted in ((at,), ()):
            for shell in joint.shells.values():
                shell.planted = planted  # type: ignore[attr-defined]
            found = joint.integrated_attribution(joint.run_all(TEXT, seed=seed))
            sure = found.overlap.filter(pl.col("q") <= 0.05)
            if planted:
                right += f"{at[0]}.{at[1]}" in sure.filter(pl.col("level") == "leading head")["shared_units"].to_list()
            else:
                false += len(sure) > 0
    assert right >= 54
    assert false <= 6


def test_tests_that_can_show_nothing_do_not_count_among_the_others(loaded: Any) -> None:
    """Two shells that each confirm the same head of nine in its layer: p can be no less than 1/9, so it has no q, and the others' q do not grow by it."""

    class Sure(Deep):
        def run(self, input_text: str, *, seed: int = 0, progress: Progress = quiet) -> dict[str, pl.DataFrame]:
            tables = super().run(input_text, seed=seed)
            layer, head = self.planted[0]
            tested = {"layer": [layer], "head": [head], "target": ["x"], "dla": [1.0], "confirmed": [True]}
            return {**tables, "heads": pl.DataFrame(tested)}

    made = {"a": Sure(config=1, loaded=loaded), "b": Sure(config=2, loaded=loaded)}
    for shell in made.values():
        shell.planted = ((20, 3),)
    joint = ShellIntegrator(made)
    table = joint.integrated_attribution(joint.run_all(TEXT)).overlap
    rows = {row["level"]: row for row in table.to_dicts()}
    assert rows["confirmed head"]["p"] == pytest.approx(1 / 9)
    assert rows["confirmed head"]["q"] is None
    assert "could reach 0.05" in rows["confirmed head"]["null"]
    assert rows["leading head"]["p"] == pytest.approx(1 / 90)
    assert rows["leading head"]["q"] == pytest.approx(2 / 90)  # of two tests that can show something


def test_a_shell_that_scores_few_units_does_not_narrow_the_test_of_all(loaded: Any) -> None:
    class Few(Deep):
        def analyze_residue(self, residue: dict[str, pl.DataFrame], *, progress: Progress = quiet) -> Said:
            return Said({"head_scores": residue["head_scores"].head(5)})

    made = {f"s{i}": Deep(config=i, loaded=loaded) for i in range(3)} | {"few": Few(config=7, loaded=loaded)}
    joint = ShellIntegrator(made)
    row = (
        joint.integrated_attribution(joint.run_all(TEXT), n_draws=99)
        .overlap.filter(pl.col("first") == "all shells")
        .row(0, named=True)
    )
    assert row["units"] == 270
    assert row["second"] == "all pairs of s0, s1 and s2"


def test_what_is_kept_of_a_shell_is_enough_to_integrate_it(loaded: Any) -> None:
    from symbolic_residue.shells.across import blame_table, IntegratedRun, KeptBlame

    config = ValueCollapseConfig(variants=3, steps=2, top_heads=2, random_heads=2)
    joint = ShellIntegrator({"vc": ValueCollapseShell(loaded=loaded, config=config), "s": Scores(config=1, loaded=loaded)})
    results = joint.run_all(TEXT)
    kept = IntegratedRun(TEXT, {n: KeptBlame(blame_table(n, f)) for n, f in results.findings.items()}, {})
    one, two = joint.integrated_attribution(results, n_draws=99), joint.integrated_attribution(kept, n_draws=99)
    assert one.overlap.equals(two.overlap)
    assert one.blame.sort(one.blame.columns).equals(two.blame.sort(one.blame.columns))
