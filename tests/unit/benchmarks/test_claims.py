"""Verdicts of claims: the rule is a pure function of whole intervals, the page is made from the kept numbers alone, and every statement that was to be tested is on it."""

from __future__ import annotations

import importlib
import json
import math
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symbolic_residue.stats import Estimate, wilson

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

from claims._common import Bench, Claim, keep, Kept, Measured, outcome, read, words
from claims._rule import beyond, Bound, decide, reach, Rule, short_of, within

ROOT = Path(__file__).parents[3]
ISSUE = {
    "memtrace-power-law": "power law rather than exponential",
    "memtrace-types": "Names are retained longer than arbitrary facts, and numbers",
    "salience-long-range": "15 % of the heads are long-range",
    "salience-negligible": "60 % of the tokens are negligible after the middle layers",
    "salience-cancel": "0.01 attention leaves the output unchanged in 95 %",
    "value-collapse-three-steps": "beyond three steps rarely",
    "temporal-context-length": "stability falls with the length of the context",
    "temporal-sharp-at-30": "drops sharply near a shift of 30 tokens",
    "temporal-forward-backward": "forward hurt less than shifts backward",
    "instruction-conflict-threshold": "cosine conflict above 0.3",
    "value-collapse-last-layers": "final three layers resolve ambiguity",
}
"""Statements that were to be tested, by words that must stand on the page."""

ROW = re.compile(
    r"^\| \[(?P<statement>[^\]]+)\]\(#(?P<id>[\w-]+)\) \| (?P<shell>[\w-]+) \| [✓✗?] (?P<outcome>\w+) \|", re.MULTILINE
)


@pytest.fixture(scope="module")
def run() -> ModuleType:
    return importlib.import_module("claims.run")


def of(low: float, high: float, n: int = 20, method: str = "bootstrap") -> Estimate:
    return Estimate((low + high) / 2, low, high, n, method=method)


# -- the rule ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.51, 0.8, "supported"),
        (0.5, 0.8, "undecided"),  # touching is not beyond
        (0.41, 0.49, "undecided"),  # between the limits
        (0.3, 0.4, "undecided"),
        (0.3, 0.39, "contradicted"),
        (0.1, 0.9, "undecided"),
        (0.6, 0.6, "supported"),
    ],
)
def test_whole_intervals_strictly_beyond_the_limits_decide(low: float, high: float, expected: str) -> None:
    assert decide(beyond("x", 0.5, otherwise=0.4), {"x": of(low, high)}) == expected
    assert decide(short_of("x", -0.5, otherwise=-0.4), {"x": of(-high, -low)}) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.11, 0.19, "supported"),
        (0.1, 0.19, "undecided"),
        (0.11, 0.2, "undecided"),
        (0.05, 0.15, "undecided"),
        (0.01, 0.09, "contradicted"),
        (0.21, 0.3, "contradicted"),
        (0.2, 0.3, "undecided"),
        (0.05, 0.3, "undecided"),
    ],
)
def test_a_range_is_held_or_left_as_a_whole(low: float, high: float, expected: str) -> None:
    assert decide(within("x", 0.1, 0.2), {"x": of(low, high)}) == expected


def test_both_bounds_support_and_one_contradicts() -> None:
    rule = Rule((Bound("a", "above", 0), Bound("b", "above", 0)), (Bound("a", "below", 0), Bound("b", "below", 0)))
    up, across, down = of(0.1, 0.2), of(-0.1, 0.2), of(-0.2, -0.1)
    assert decide(rule, {"a": up, "b": up}) == "supported"
    assert decide(rule, {"a": up, "b": across}) == "undecided"
    assert decide(rule, {"a": up, "b": down}) == "contradicted"
    assert decide(rule, {"a": up}) == "undecided"


def test_no_interval_no_number_or_too_few_units_decide_nothing() -> None:
    rule = beyond("x", 0.5, least=6)
    assert decide(rule, {"x": Estimate(0.9, math.nan, math.nan, 30)}) == "undecided"
    assert decide(rule, {}) == "undecided"
    assert decide(rule, {"x": of(0.8, 0.9, n=5)}) == "undecided"
    assert decide(rule, {"x": of(0.8, 0.9, n=6)}) == "supported"


finite = st.floats(-5, 5).map(lambda x: round(x, 3))


@given(finite, finite, finite, st.floats(0, 2).map(lambda x: round(x, 3)))
def test_a_shifted_interval_is_decided_past_what_reach_says(value: float, one: float, two: float, shift: float) -> None:
    low, high = value - abs(one), value + abs(two)
    rule = beyond("x", 1.0, otherwise=-1.0)
    needed_up, needed_down = 1.0 + (value - low), -1.0 - (high - value)  # summed as reach() does, or a tie rounds otherwise
    for new, expected in ((needed_up + shift + 1e-6, "supported"), (needed_down - shift - 1e-6, "contradicted")):
        moved = Estimate(new, new - (value - low), new + (high - value), 9)
        assert decide(rule, {"x": moved}) == expected
    if decide(rule, {"x": Estimate(value, low, high, 9)}) == "undecided":
        assert needed_down <= value <= needed_up
        assert f"x above {needed_up:.3g} would" in reach(rule, {"x": Estimate(value, low, high, 9)})


def test_reach_searches_the_counts_of_a_proportion() -> None:
    rule = beyond("share", 0.95)
    said = reach(rule, {"share": wilson(50, 54)})
    assert "(no count of 54) would have supported" in said  # 54 of 54 still leaves 0.934 in the interval
    most = max(k for k in range(55) if wilson(k, 54).high < 0.95)
    assert f"at most {most}/54 contradicted" in said
    least = min(k for k in range(201) if wilson(k, 200).low > 0.95)
    assert f"at least {least}/200 would" in reach(rule, {"share": wilson(188, 200)})


def test_reach_says_when_both_sides_are_excluded() -> None:
    rule = beyond("x", 2.0, otherwise=-2.0)
    assert "excluded" in reach(rule, {"x": of(-1.9, 1.9)})
    assert "excluded" not in reach(rule, {"x": of(-2.1, 1.9)})
    assert "excluded" not in reach(beyond("x", 0.0), {"x": of(-1.0, 1.0)})
    assert reach(rule, {"x": Estimate(1.0, math.nan, math.nan, 1)}).startswith("No interval")
    assert reach(beyond("x", 0.0, least=6), {"x": of(-1.0, 1.0, n=5)}) == "x over 5 units, 6 are needed."


# -- what is kept, and the page ----------------------------------------------------------------------------------------------

CLAIM = Claim(
    "a-claim", "It is so.", "We look.", beyond("share", 0.5), "seen in {share:.2f} of {texts}", lambda bench: Measured({})
)
KEPT = Kept(
    "We look.", str(CLAIM.rule), {"share": Estimate(0.75, 0.5312, 0.9, 8)}, {"texts": 8}, "", "2026-01-01", "here", 1.5, [["a", 1]]
)


def test_kept_numbers_come_back_exactly(tmp_path: Path) -> None:
    kept = replace(KEPT, numbers=KEPT.numbers | {"none": Estimate(0.1, math.nan, math.nan, 1, method="one")})
    keep(tmp_path, "memtrace", {"a-claim": kept})
    found = read(tmp_path, "memtrace", [CLAIM])["a-claim"]
    assert found.numbers["share"] == KEPT.numbers["share"]
    assert math.isnan(found.numbers["none"].low)
    assert replace(found, numbers={}) == replace(kept, numbers={})
    assert outcome(CLAIM, found) == "supported"
    assert words(CLAIM, found) == "seen in 0.75 [0.53, 0.90] of 8"


def test_a_reworded_test_or_rule_must_be_measured_again(tmp_path: Path) -> None:
    keep(tmp_path, "memtrace", {"a-claim": KEPT})
    assert "a-claim" in read(tmp_path, "memtrace", [CLAIM])
    assert not read(tmp_path, "memtrace", [replace(CLAIM, test="We look twice.")])
    assert not read(tmp_path, "memtrace", [replace(CLAIM, rule=beyond("share", 0.4))])
    assert not read(tmp_path, "memtrace", [replace(CLAIM, id="another")])


def test_what_is_missing_is_said_and_decides_nothing() -> None:
    refused = replace(KEPT, numbers={}, refused="The text is too short.")
    assert outcome(CLAIM, refused) == "undecided"
    assert words(CLAIM, refused) == "not measured: The text is too short."
    assert words(CLAIM, replace(KEPT, numbers={})) == "too little was measured: texts 8"


def test_a_refused_measurement_is_kept_with_its_reason(run: ModuleType) -> None:
    from symbolic_residue.errors import PromptError

    def refuse(bench: Bench) -> Measured:
        raise PromptError("Too short.")

    kept = run.tested(replace(CLAIM, measure=refuse), Bench(None, lambda name: (None, [])))
    assert kept.refused.startswith("Too short.")
    assert (kept.test, kept.rule, kept.numbers) == (CLAIM.test, str(CLAIM.rule), {})


def test_the_page_is_made_from_what_is_kept_byte_for_byte(run: ModuleType) -> None:
    assert run.page(run.KEPT) == (ROOT / "docs" / "claims.md").read_text("utf-8")


def test_the_target_writes_the_page_without_a_model(run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\nclaims: $(READY)\n\t$(PY) benchmarks/claims/run.py --write\n" in (ROOT / "Makefile").read_text("utf-8")

    def opened() -> Bench:
        raise AssertionError("nothing is to be measured")

    monkeypatch.setattr(run, "opened", opened)
    monkeypatch.setattr(run, "PAGE", tmp_path / "claims.md")
    monkeypatch.setattr(sys, "argv", ["run.py", "--write"])
    run.main()
    assert (tmp_path / "claims.md").read_bytes() == (ROOT / "docs" / "claims.md").read_bytes()


def test_verdict_words_of_the_page_follow_from_the_json(run: ModuleType) -> None:
    page = (ROOT / "docs" / "claims.md").read_text("utf-8")
    rows = {m["id"]: m for m in ROW.finditer(page)}
    claims = {claim.id: (shell, claim) for shell in run.SHELLS for claim in run.claims_of(shell)}
    assert list(rows) == list(claims)
    for name, (shell, claim) in claims.items():
        row = json.loads((run.KEPT / f"{shell}.json").read_text("utf-8"))[name]
        numbers = {
            key: Estimate(**{k: math.nan if v is None else v for k, v in number.items()}) for key, number in row["numbers"].items()
        }
        met = {
            side: [_met(row["numbers"].get(b.number), b) for b in getattr(claim.rule, side)]
            for side in ("supported", "contradicted")
        }
        enough = all(key in numbers and numbers[key].n >= least for key, least in claim.rule.least.items())
        expected = (
            "undecided"
            if not enough
            else "supported"
            if all(met["supported"])
            else "contradicted"
            if any(met["contradicted"])
            else "undecided"
        )
        assert rows[name]["outcome"] == expected, name
        assert rows[name]["shell"] == shell
        section = page.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
        assert claim.test in section and str(claim.rule) in section and claim.stated in section
        assert f"**Outcome.** {run.SIGNS[expected]}: " in section
        assert ("**What the data could have seen.**" in section) == (expected == "undecided" and not row["refused"])


def _met(number: dict[str, Any] | None, bound: Bound) -> bool:
    """Written again, from the JSON alone."""
    if number is None or number["low"] is None:
        return False
    return number["low"] > bound.limit if bound.side == "above" else number["high"] < bound.limit


def test_a_changed_number_changes_the_verdict(run: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    shutil.copytree(run.KEPT, folder)
    file = folder / "temporal-inference.json"
    rows = json.loads(file.read_text("utf-8"))
    rows["temporal-context-length"]["numbers"]["long − alone"] |= {"value": 0.5, "low": 0.4, "high": 0.6}
    file.write_text(json.dumps(rows), "utf-8")
    found = {m["id"]: m["outcome"] for m in ROW.finditer(run.page(folder))}
    assert found["temporal-context-length"] == "contradicted"


def test_every_statement_that_was_to_be_tested_is_on_the_page() -> None:
    page = (ROOT / "docs" / "claims.md").read_text("utf-8")
    rows = {m["id"]: m["statement"] for m in ROW.finditer(page)}
    for name, said in ISSUE.items():
        assert said in rows[name]
        assert f"\n### {name}\n\n{rows[name]}\n\n**Test.** " in page


def test_claims_use_public_doors_only() -> None:
    for file in (ROOT / "benchmarks" / "claims").glob("*.py"):
        private = re.findall(
            r"^\s*(?:from|import) symbolic_residue[\w.]*\._\w+.*|^from symbolic_residue.* import _\w+",
            file.read_text("utf-8"),
            re.MULTILINE,
        )
        assert not private, f"{file.name}: {private}"


# -- the material ------------------------------------------------------------------------------------------------------------


def test_facts_are_new_and_balanced() -> None:
    from claims.material import facts, TORN

    from symbolic_residue.prompts import memory_items

    made = facts()
    assert len({f.fact for f in made}) == len(made) == 24
    assert not {f.frame for f in made} & {i.frame for i in memory_items()}
    for kind in ("name", "number", "word"):
        assert sum(f.token_type == kind for f in made) == 8
    prompts = [prompt for prompt, *_ in TORN]
    assert len(set(prompts)) == len(TORN) == 30
    for prompt, one, two in TORN:
        assert one != two and one.startswith(" ") and two.startswith(" ")
        assert prompt == prompt.rstrip()


def test_pairs_are_chosen_by_their_geometry_alone() -> None:
    import numpy as np
    from claims.material import alike, SAME

    from symbolic_residue.prompts import relation

    seen: list[str] = []

    def conflict(texts: list[str]) -> np.ndarray:
        seen.extend(texts)
        x = np.random.default_rng(0).uniform(0, 1, (len(texts), len(texts)))
        return (x + x.T) / 2

    found = alike(conflict, [], 12, 0.3)
    values = [value for *_, value in found]
    assert len(found) == 12 and values == sorted(values) and values[-1] <= 0.3
    assert all(relation(a, b) == "compatible" and (a.kind, a.value) != (b.kind, b.value) for a, b, _ in found)
    assert max(sum({a.kind, b.kind} == {x.kind, y.kind} for x, y, _ in found) for a, b, _ in found) <= SAME
    first = frozenset((found[0][0].text, found[0][1].text))
    seen.clear()
    assert first not in {frozenset((a.text, b.text)) for a, b, _ in alike(conflict, [first], 12, 0.3)}
