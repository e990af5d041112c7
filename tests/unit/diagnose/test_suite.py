"""Items chosen from a benchmark, and several shells in one run folder: planted and null items side by side, counted by hand."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tiny_models import build, tiny_tokenizer

from symbolic_residue.cli import main
from symbolic_residue.diagnose import choose_items, item_name
from symbolic_residue.errors import ConfigError
from symbolic_residue.report._suite import suite_heads, suite_rows
from symbolic_residue.shells import config_class, make_shell, shell_class, ShellBase, SHELLS
from symbolic_residue.store import RunFolder, validate


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build("llama", max_position_embeddings=4096).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", SHELLS)
def test_every_registered_shell_keeps_the_common_shape(name: str) -> None:
    kind, config = shell_class(name), config_class(name)
    assert issubclass(kind, ShellBase)
    assert kind.name == name
    assert len(kind.operations) == 3
    assert all(callable(getattr(kind, f"{operation.lower()}_operation")) for operation in kind.operations)
    assert config.quick(top_heads=0).top_heads == 0  # type: ignore[attr-defined]
    assert all(field.description or _documented(config, option) for option, field in config.model_fields.items())
    items = kind.items()
    assert len(items) >= 40
    assert len({item.id for item in items}) == len(items)
    for split in ("calibration", "held-out"):
        mine = [item for item in items if item.split == split]
        assert sum(item.null for item in mine) >= 20
        assert sum(not item.null for item in mine) >= 20
    assert not any(item.modes for item in items if item.null)


def _documented(config: type, option: str) -> bool:
    """Whether a string stands under the field, in the class or one it comes from."""
    import ast
    import inspect

    for kind in config.__mro__:
        if not kind.__module__.startswith("symbolic_residue"):
            continue
        body = ast.parse(inspect.getsource(kind)).body[0].body  # type: ignore[attr-defined]
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and getattr(field.target, "id", "") == option:
                return isinstance(text, ast.Expr) and isinstance(getattr(text.value, "value", None), str)
    return False


def test_items_are_half_planted_half_null_spread_and_always_the_same() -> None:
    first = choose_items("value-collapse", 8)
    assert first == choose_items("value-collapse", 8)
    assert [item.null for item in first].count(True) == 4
    assert {item.split for item in first} == {"held-out"}
    assert len({item.kind for item in first if not item.null}) > 1
    assert len(choose_items("value-collapse", 1)) == 1
    assert not choose_items("value-collapse", 1)[0].null
    every = choose_items("value-collapse", split="all")
    assert len(every) == len(choose_items("value-collapse")) + len(choose_items("value-collapse", split="calibration"))
    assert choose_items("value-collapse", 10_000) == choose_items("value-collapse")


@pytest.mark.parametrize(("options", "said"), [({"split": "test"}, "split"), ({"n": 0}, "at least one")])
def test_what_cannot_be_chosen_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        choose_items("value-collapse", **options)
    with pytest.raises(ConfigError, match="no shell"):
        choose_items("mirror")
    with pytest.raises(ConfigError, match="no shell"):
        make_shell("mirror", None)  # type: ignore[arg-type]


def test_a_run_of_shells_from_the_command_line(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "180")
    words = ["shells", "run", "--model", model, "--shell", "value-collapse", "-n", "2", "--no-attribution", "--output", "run"]
    assert main(words) == 1  # the tiny tokenizer lacks the planted item's words: failed, with its reason; the null item is done
    said = capsys.readouterr().out
    assert "report.html" in said
    assert "is not one token" in said  # the failed item, with its reason
    assert "null (false alarms)" in said
    assert "\nvalue-collapse" in said and "\n  confidence fragility" in said  # a line of its own for each shell
    assert "0/1 [0, 79] %" in said  # Wilson knows how little one item is
    assert validate("run") == []
    run = RunFolder.open("run")
    items = run.table("shell_items")
    assert items["null"].to_list().count(True) == 1
    assert items["item"].to_list() == [item_name("value-collapse", item) for item in choose_items("value-collapse", 2)]
    assert run.table("heads")["ablation"].is_null().all()
    assert run.table("items")["status"].to_list().count("failed") == 1
    rows = suite_rows(run.table("verdicts"), items)
    assert {row["side"] for row in rows} == {"null"}
    assert len(rows) == 4
    assert main([*words, "--resume"]) == 1  # nothing left to do but what cannot be done
    assert main(["shells", "run", "--model", model, "--shell", "mirror"]) not in (0, 70)


def test_more_items_are_the_same_and_further_ones() -> None:
    """So that a run can be enlarged: whatever is chosen for n is chosen for every larger n."""
    for shell in ("value-collapse", "memtrace"):
        chosen = [{item.id for item in choose_items(shell, n)} for n in range(1, 41)]
        assert all(one < two for one, two in pairwise(chosen))
        assert [len(one) for one in chosen] == list(range(1, 41))
        kinds = {item.kind for item in choose_items(shell)}
        met = {item.kind for item in choose_items(shell, 16)}
        assert len(met) >= min(len(kinds), 5)  # spread over the file, where kinds stand together


def test_a_run_is_enlarged_and_compared_without_measuring_twice(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two models, four items; the comparison says how many are needed and how to get them; the larger runs measure only what is new."""
    from symbolic_residue.shells import ValueCollapseShell

    monkeypatch.chdir(tmp_path)
    build("llama", seed=3, max_position_embeddings=4096).save_pretrained("other")
    tiny_tokenizer().save_pretrained("other")
    words = ["shells", "run", "--shell", "value-collapse", "--no-attribution", "--no-report"]
    for name, where in (("a", model), ("b", "other")):
        assert main([*words, "-m", where, "-o", name, "--items", "4"]) == 1  # the tiny tokenizer lacks words of the planted items
    capsys.readouterr()
    assert main(["shells", "compare", "a", "b"]) == 0
    said = capsys.readouterr().out
    found = re.search(r"(\d+) of (\d+) rows have too few items to show a difference; (\d+) are enough.", said)
    assert found is not None and 0 < int(found[1]) <= int(found[2])
    more = re.search(r"--items (\d+) gives", said)
    assert more is not None and "--reuse" in said
    n, needed = int(more[1]), int(found[3])
    assert sum(item.null for item in choose_items("value-collapse", n)) >= needed
    asked: list[str] = []
    real = ValueCollapseShell.run_item

    def run_item(self: Any, item: Any, **options: Any) -> Any:
        asked.append(item.id)
        return real(self, item, **options)

    monkeypatch.setattr(ValueCollapseShell, "run_item", run_item)
    assert main([*words, "-m", model, "-o", "c", "--items", "6", "--reuse", "a"]) == 1
    have = RunFolder.open("a").done_items()
    assert len(have) == 2
    assert sorted(asked) == sorted(i.id for i in choose_items("value-collapse", 6) if item_name("value-collapse", i) not in have)
    one, two = RunFolder.open("a"), RunFolder.open("c")
    for name in ("verdicts", "tokens", "candidates"):
        assert two.table(name).filter(pl.col("item").is_in(one.done_items())).sort("item").equals(one.table(name).sort("item")), (
            name
        )
    assert validate("c") == []
    assert main(["shells", "compare", "a", "c", "--common", "--no-report"]) == 0
    for words_, said in (
        ([*words, "-m", "other", "-o", "d", "--items", "6", "--reuse", "a"], "provenance"),
        ([*words, "-m", model, "-o", "e", "--items", "6", "--seed", "1", "--reuse", "a"], "seed"),
    ):
        assert main(words_) == 2
        assert said in capsys.readouterr().err


def test_lists_cards_and_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shells", "list", "--json"]) == 0
    assert [row["shell"] for row in json.loads(capsys.readouterr().out)] == list(SHELLS)
    assert main(["benchmark", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["shell"] for row in rows} == set(SHELLS)
    for row in rows:
        assert row["items"] == sum(count for name, count in row.items() if " " in name)
        assert main(["benchmark", row["benchmark"], "--card"]) == 0
        assert len(capsys.readouterr().out) > 500
    path = tmp_path / "items.jsonl"
    assert main(["benchmark", "value-collapse", "--export", str(path)]) == 0
    assert len(path.read_text("utf-8").splitlines()) == rows[[r["shell"] for r in rows].index("value-collapse")]["items"]
    assert main(["benchmark", "value-collapse", "--export", str(path)]) != 0
    assert main(["benchmark", "no-such"]) not in (0, 70)


def _verdicts(outcomes: list[tuple[str, str, str, float]]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"item": item, "shell": "s", "mode": mode, "outcome": outcome, "value": value, "quantity": "q", "unit": "nats",
             "criterion": 1.0, "direction": "above"}
            for item, mode, outcome, value in outcomes
        ]
    )  # fmt: skip


def test_sides_are_never_pooled() -> None:
    items = pl.DataFrame(
        {"item": ["a", "b", "c", "d"], "shell": "s", "null": [False, False, False, True], "planted": ["m", "m", "k, l", ""]}
    )
    verdicts = _verdicts(
        [("a", "m", "fires", 2.0), ("b", "m", "undecided", 4.0), ("c", "m", "fires", 9.0), ("d", "m", "absent", 0.0)]
    )
    rows = {row["side"]: row for row in suite_rows(verdicts, items)}
    assert (rows["planted"]["n"], rows["planted"]["fires"], rows["planted"]["undecided"]) == (2, 1, 1)
    assert rows["planted"]["value"] == pytest.approx(3.0)
    assert (rows["null"]["n"], rows["null"]["rate"]) == (1, 0.0)
    assert (rows["other"]["n"], rows["other"]["rate"]) == (1, 1.0)
    assert rows["null"]["value_low"] is None  # one item has no interval
    assert rows["null"]["high"] > 0.5  # and Wilson knows how little it is


def test_no_interval_leaves_the_range_of_its_unit_and_n_counts_what_was_measured() -> None:
    items = pl.DataFrame({"item": ["a", "b", "c"], "shell": "s", "null": True, "planted": ""})
    verdicts = _verdicts([("a", "m", "absent", 0.0), ("b", "m", "absent", 1.0), ("c", "m", "undecided", float("nan"))])
    for unit, low, high in (("share", 0.0, 1.0), ("probability", 0.0, 1.0), ("returns", 0.0, None), ("nats", None, None)):
        (row,) = suite_rows(verdicts.with_columns(unit=pl.lit(unit)), items)
        assert (row["n"], row["value_n"], row["value"]) == (3, 2, 0.5)
        assert row["value_low"] == low if low is not None else row["value_low"] < 0
        assert row["value_high"] == high if high is not None else row["value_high"] > 1


def test_heads_are_listed_from_two_items_on() -> None:
    items = pl.DataFrame({"item": ["a", "b", "c"], "shell": "s", "null": False, "planted": "m"})
    heads = pl.DataFrame(
        [("a", 1, 2, 0.3, True), ("b", 1, 2, 0.2, True), ("c", 1, 2, 0.1, False), ("a", 0, 0, 0.3, True), ("b", 0, 0, None, True)],
        schema=["item", "layer", "head", "ablation", "confirmed"],
        orient="row",
    )
    assert suite_heads(heads, items) == [{"shell": "s", "layer": 1, "head": 2, "items": 2, "tested": 3}]
