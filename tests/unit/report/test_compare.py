"""Runs compared: nothing is shown where nothing differs, a planted difference is, and runs that do not match are refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from symbolic_residue.cli import main
from symbolic_residue.errors import ConfigError, StoreError
from symbolic_residue.report import compare_runs, render_comparison
from symbolic_residue.report._compare import _adjusted, _rows
from symbolic_residue.stats import holm, sign_flip_test
from symbolic_residue.store import RunFolder

MODES = ("drift", "decay", "nullification")
CRITERION = 0.5
Values = dict[str, np.ndarray]
EVIL = "<script>window.pwned=1</script>"


def outcome(value: float) -> str:
    return "fires" if value > CRITERION + 0.1 else "absent" if value < CRITERION - 0.1 else "undecided"


def verdict_rows(values: Values, i: int, **change: Any) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "shell": "probe",
                "mode": mode,
                "outcome": outcome(x[i]),
                "quantity": "fall",
                "unit": "nats",
                "value": float(x[i]),
                "low": float(x[i]) - 0.1,
                "high": float(x[i]) + 0.1,
                "n": 12,
                "control": "the same text",
                "control_value": 0.0,
                "control_low": -0.1,
                "control_high": 0.1,
                "control_n": 12,
                "criterion": CRITERION,
                "direction": "above",
                "criterion_source": "given",
                "note": "",
            }
            | change
            for mode, x in values.items()
        ]
    )


def write(
    path: Path,
    values: Values,
    *,
    model: str = "a",
    config: dict[str, Any] | None = None,
    kind: str = "shells",
    prefix: str = "item",
    prompt: str = "Prompt",
    planted: dict[int, str] | None = None,
    skip: tuple[int, ...] = (),
    **change: Any,
) -> Path:
    n = len(next(iter(values.values())))
    provenance = {"model": model, "weights_sha256": model * 8, "dtype": "float32", "seed": 0}
    with RunFolder.create(path, kind=kind, command="residue", provenance=provenance, config=config or {"seed": 0}) as run:
        for i in range(n):
            if i in skip:
                continue
            row = {
                "prompt": f"{prompt} {i}",
                "text": None,
                "chat": False,
                "n_tokens": 3,
                "seed": 0,
                "status": "done",
                "error": None,
                "summary": "",
            }
            tables = {"items": pl.DataFrame([row]), "verdicts": verdict_rows(values, i, **change)}
            if planted is not None:
                about = {
                    "shell": "probe",
                    "benchmark": "bench",
                    "benchmark_item": f"{i}",
                    "kind": "null" if i not in planted else "made",
                }
                tables["shell_items"] = pl.DataFrame(
                    [
                        about
                        | {
                            "frame": f"pattern {i // 4}",
                            "split": "held-out",
                            "null": i not in planted,
                            "planted": planted.get(i, ""),
                        }
                    ]
                )
            run.write_item(f"{prefix}-{i:02d}", tables)
    return path


def draw(rng: np.random.Generator, n: int = 24, shift: dict[str, float] | None = None) -> tuple[Values, Values]:
    """Two runs of the same items: a level of each item, noise of each run, and a shift in the second."""
    first, second = {}, {}
    for mode in MODES:
        level = rng.normal(CRITERION, 0.4, n)
        first[mode] = level + rng.normal(0, 0.2, n)
        second[mode] = level + rng.normal(0, 0.2, n) + (shift or {}).get(mode, 0.0)
    return first, second


def frame(values: Values) -> pl.DataFrame:
    n = len(next(iter(values.values())))
    return pl.concat([verdict_rows(values, i).with_columns(item=pl.lit(f"item-{i:02d}")) for i in range(n)])


def rows(first: Values, second: Values) -> list[dict[str, Any]]:
    about = pl.DataFrame(schema={"item": pl.String, "null": pl.Boolean, "planted": pl.String})
    return _adjusted(_rows("a", frame(first), "b", frame(second), about, None, 0))


# -- what is shown -------------------------------------------------------------------------------------------------------------


def test_false_alarms_under_the_null_stay_under_the_level() -> None:
    """100 pairs of runs that differ by noise: a comparison with anything shown at all is a false alarm (values and outcomes: two families of 0.05)."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(100):
        found = rows(*draw(rng, n=16))
        alarms += any(row["shown"] for row in found)
    # Two families of 5 % each: at most 10 % expected; 18 of 100 lies above the 99 % quantile of that binomial.
    assert alarms <= 18


def test_a_planted_difference_is_found_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    hits, others = 0, 0
    for _ in range(30):
        found = {row["mode"]: row for row in rows(*draw(rng, shift={"decay": 0.4}))}
        hits += "value higher" in found["decay"]["shown"]
        others += any(found[mode]["shown"] for mode in MODES if mode != "decay")
        assert found["decay"]["low"] < 0.4 + 0.2
    assert hits >= 28
    assert others <= 7


def test_numbers_are_those_of_their_definitions(tmp_path: Path) -> None:
    first, second = draw(np.random.default_rng(2), shift={"decay": -0.5})
    found = compare_runs([write(tmp_path / "a", first), write(tmp_path / "b", second, model="b")], seed=3)
    assert found.frame["mode"].to_list() == list(MODES)
    p = [float(sign_flip_test(second[mode] - first[mode], seed=3)) for mode in MODES]
    assert found.frame["p"].to_list() == pytest.approx(p)
    assert found.frame["p_adjusted"].to_list() == pytest.approx(holm(p).tolist())
    row = found.frame.row(1, named=True)
    moved = second["decay"] - first["decay"]
    assert row["difference"] == pytest.approx(moved.mean())
    assert row["low"] < moved.mean() < row["high"] < 0
    assert row["effect"] == pytest.approx(moved.mean() / moved.std(ddof=1))
    outcomes = [(outcome(x), outcome(y)) for x, y in zip(first["decay"], second["decay"], strict=True)]
    assert row["only_base"] == outcomes.count(("fires", "absent"))
    assert row["only_other"] == outcomes.count(("absent", "fires"))
    assert row["n_undecided"] == sum("undecided" in pair for pair in outcomes)
    assert row["n_decided"] + row["n_undecided"] == 24
    assert row["rate_base"] == pytest.approx(sum(x == "fires" for x, _ in outcomes) / 24)
    assert row["shown"].startswith("value lower")
    assert "probe decay value lower" in found.summary
    assert found.differs == {"b": ["model: 'a' → 'b'", "weights_sha256: 'aaaaaaaa' → 'bbbbbbbb'"]}


def test_the_order_of_the_items_does_not_matter_and_exchange_turns_the_sign(tmp_path: Path) -> None:
    first, second = draw(np.random.default_rng(3), shift={"drift": 0.4})
    a, b = write(tmp_path / "a", first), write(tmp_path / "b", second, model="b")
    there, back = compare_runs([a, b]).frame, compare_runs([b, a]).frame
    assert there["difference"].to_list() == pytest.approx((-back["difference"]).to_list())
    assert there["p"].to_list() == back["p"].to_list()
    assert there["only_base"].to_list() == back["only_other"].to_list()


def test_the_same_numbers_twice_differ_in_nothing(tmp_path: Path) -> None:
    first, _ = draw(np.random.default_rng(4))
    found = compare_runs([write(tmp_path / "a", first), write(tmp_path / "b", first)])
    assert found.frame["p"].to_list() == [1.0] * 3
    assert found.frame["outcome_p"].to_list() == [1.0] * 3
    assert found.frame["shown"].to_list() == [""] * 3
    assert found.differs == {"b": []}
    assert "no difference is shown in 3 rows" in found.summary


def test_planted_and_null_items_are_never_pooled(tmp_path: Path) -> None:
    """A fall on the planted items alone: the null ones' row shows nothing, and items made for another mode stand apart."""
    rng = np.random.default_rng(5)
    first, second = draw(rng, n=40)
    planted = dict.fromkeys(range(20), "decay")
    second["decay"] = second["decay"] + np.where(np.arange(40) < 20, 1.0, 0.0)
    found = compare_runs([write(tmp_path / "a", first, planted=planted), write(tmp_path / "b", second, planted=planted)]).frame
    sides = {(row["mode"], row["side"]): row for row in found.iter_rows(named=True)}
    assert set(sides) == {("decay", "planted"), *((m, "null") for m in MODES), ("drift", "other"), ("nullification", "other")}
    assert {row["n"] for row in sides.values()} == {20}
    assert "value higher" in sides["decay", "planted"]["shown"]
    assert sides["decay", "null"]["shown"] == ""


def test_patterns_are_units_and_copies_no_evidence(tmp_path: Path) -> None:
    """Each of six patterns four times over: with items as units a chance difference looks certain; with patterns it does not."""
    rng = np.random.default_rng(6)
    first = {"decay": np.repeat(rng.normal(0.5, 0.3, 6), 4)}
    second = {"decay": first["decay"] + np.repeat([0.3, 0.2, 0.4, -0.1, 0.3, 0.2], 4)}
    planted = dict.fromkeys(range(24), "decay")
    runs = [write(tmp_path / "a", first, planted=planted), write(tmp_path / "b", second, planted=planted)]
    by_item, by_frame = compare_runs(runs), compare_runs(runs, frames=True)
    one, two = by_item.frame.row(0, named=True), by_frame.frame.row(0, named=True)
    assert (one["units"], two["units"], by_frame.frames) == (24, 6, 6)
    assert one["p"] < 0.01 < two["p"]
    assert two["p"] == pytest.approx(float(sign_flip_test(np.array([0.3, 0.2, 0.4, -0.1, 0.3, 0.2]), seed=0)))
    given = compare_runs(runs, frames={f"item-{i:02d}": f"{i // 4}" for i in range(24)})
    assert given.frame["p"].to_list() == by_frame.frame["p"].to_list()


def test_missing_values_and_few_items_are_said(tmp_path: Path) -> None:
    first, second = draw(np.random.default_rng(7), n=4)
    first["decay"][0] = np.nan
    frame = compare_runs([write(tmp_path / "a", first), write(tmp_path / "b", second)]).frame
    assert frame["n"].to_list() == [4, 3, 4]
    assert frame["note"][0] == "4 units: too few for a p of 0.05 here; 7 are enough."  # 2 ** -6 is the first power under 0.05 / 3
    assert all("too few" in note for note in frame["note"])
    assert frame["p_adjusted"].null_count() == 3
    for values in (first, second):
        values["decay"][:] = np.nan
    row = compare_runs([write(tmp_path / "c", first), write(tmp_path / "d", second)]).frame.row(1, named=True)
    assert (row["n"], row["difference"], row["p_adjusted"]) == (0, None, None)


def test_rows_that_can_show_nothing_do_not_weaken_the_others(tmp_path: Path) -> None:
    """A mode with nine clear differences beside eleven modes with two: alone p = 2 ** -8 survives, with all twelve in Holm's family it would as well; with forty
    it would not, and it must not matter how many rows were never able."""
    n = 9
    clear = {"decay": np.linspace(0.1, 0.2, n)}
    first: Values = dict(clear)
    second: Values = {"decay": clear["decay"] + np.linspace(0.3, 0.5, n)}
    for i in range(40):
        few = np.full(n, np.nan)
        few[:2] = 0.2
        first[f"few-{i}"] = few
        second[f"few-{i}"] = few + 0.1
    found = compare_runs([write(tmp_path / "a", first), write(tmp_path / "b", second)])
    row = found.frame.filter(pl.col("mode") == "decay").row(0, named=True)
    assert row["p"] == pytest.approx(2**-8)
    assert row["p_adjusted"] == pytest.approx(2**-8)  # the only row that can show anything; Holm over 41 would give 0.16
    assert "value higher" in row["shown"]
    assert len(found.unable) == 40
    assert found.needed == 1 + int(np.ceil(np.log2(41 / 0.05)))


# -- refusals ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "say"),
    [
        ({"config": {"seed": 0, "shells": {"probe": {"top_heads": 2}}}}, "config.shells"),
        ({"config": {"seed": 1}}, "config.seed: 0 → 1"),
        ({"kind": "diagnose"}, "kind"),
        ({"prefix": "other"}, "no finished item in common|different items"),
        ({"skip": (1, 2)}, "--common"),
        ({"prompt": "Another"}, "another prompt"),
        ({"criterion": 0.7}, "another criterion"),
        ({"unit": "share"}, "another unit"),
        ({"shell": "somebody"}, "do not both judge"),
    ],
)
def test_runs_that_do_not_match_are_refused(tmp_path: Path, change: dict[str, Any], say: str) -> None:
    first, second = draw(np.random.default_rng(8), n=8)
    runs = [write(tmp_path / "a", first), write(tmp_path / "b", second, **change)]
    with pytest.raises(ConfigError, match=say):
        compare_runs(runs)


def test_common_items_are_compared_on_request(tmp_path: Path) -> None:
    first, second = draw(np.random.default_rng(9), n=8)
    runs = [write(tmp_path / "a", first), write(tmp_path / "b", second, skip=(1, 5))]
    found = compare_runs(runs, common=True)
    assert found.left_out == ["item-01", "item-05"]
    assert found.frame["n"].to_list() == [6, 6, 6]
    other = write(tmp_path / "c", second, prefix="other")
    with pytest.raises(ConfigError, match="no finished item in common"):
        compare_runs([runs[0], other], common=True)


def test_other_refusals(tmp_path: Path) -> None:
    first, _ = draw(np.random.default_rng(10), n=8)
    run = write(tmp_path / "a", first)
    with pytest.raises(ConfigError, match="two runs"):
        compare_runs([run])
    with pytest.raises(ConfigError, match="named twice"):
        compare_runs([run, tmp_path / "." / "a"])
    with pytest.raises(StoreError):
        compare_runs([run, tmp_path / "nothing"])
    with pytest.raises(ConfigError, match="sentence pattern"):
        compare_runs([run, write(tmp_path / "b", first)], frames=True)


# -- page and command line -----------------------------------------------------------------------------------------------------


def test_the_page_shows_every_row_and_runs_nothing(tmp_path: Path) -> None:
    first, second = draw(np.random.default_rng(11), shift={"decay": 0.5})
    runs = [write(tmp_path / "a", first), write(tmp_path / "b", second, model=EVIL)]
    found = compare_runs(runs)
    page = render_comparison(found, tmp_path / "sub" / "page.html")
    text = page.read_text("utf-8")
    assert "<script" not in text
    assert "default-src &#39;none&#39;" in text
    assert "<svg" in text
    assert all(text.count(f"<td>{mode}</td>") == 1 for mode in MODES)
    assert "value higher" in text
    assert render_comparison(found, page).read_text("utf-8") == text
    assert [entry.name for entry in page.parent.iterdir()] == ["page.html"]


def test_three_runs_one_family_of_tests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = draw(np.random.default_rng(12), shift={"decay": 0.5})
    runs = [write(tmp_path / name, values, model=name) for name, values in (("a", first), ("b", second), ("c", first))]
    assert main(["shells", "compare", *map(str, runs), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [row["other"] for row in said["modes"]] == ["b"] * 3 + ["c"] * 3
    assert [row["p_adjusted"] for row in said["modes"]] == pytest.approx(holm([row["p"] for row in said["modes"]]).tolist())
    assert Path(said["report"]).name == "compare-b-c.html"
    assert main(["shells", "compare", *map(str, runs[:2]), "--no-report"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "decay" in out
    assert "value higher" in out
    assert "weights_sha256" in out
    assert main(["runs", "validate", str(runs[0])]) == 0


def test_the_command_refuses_in_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = draw(np.random.default_rng(13), n=8)
    a, b = write(tmp_path / "a", first), write(tmp_path / "b", second, config={"seed": 5})
    assert main(["shells", "compare", str(a), str(b)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "config.seed" in err
