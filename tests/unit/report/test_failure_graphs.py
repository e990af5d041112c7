"""Graphs of failures in a report: means over prompts counted by hand, controls that are healthy only, no interval for one prompt, links that stay in the folder."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from report.across_run import across_tables, write_across

from symbolic_residue.report import render_report
from symbolic_residue.report._failure_graphs import failure_tables, pooled_parts
from symbolic_residue.stats import bootstrap_mean


def held(**changed: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    tables = across_tables() | changed
    return {name: tables[name].to_dicts() for name in ("failure_graphs", "failure_parts", "failure_units")}


def test_means_are_over_prompts_and_differences_over_pairs_with_a_healthy_control() -> None:
    rows = [row for row in held()["failure_parts"] if row["split"] == "span"]
    x, y = pooled_parts(rows, {"p0", "p1"})
    assert (x["part"], y["part"]) == ("x", "y")
    assert x["value"].value == pytest.approx(2.5) and x["value"].n == 3 and y["value"].value == pytest.approx(0.5)
    assert x["value"].value + y["value"].value == pytest.approx(np.mean([2.0, 3.0, 4.0]))  # the targets
    assert x["control"].value == -0.5 and x["control"].n == 2
    assert x["difference"].value == pytest.approx(np.mean([2.0, 3.0])) and x["difference"].n == 2
    assert x["difference"] == bootstrap_mean([2.0, 3.0], seed=0)
    assert pooled_parts(rows, set())[0]["difference"] is None


def test_a_part_that_a_prompt_lacks_is_nothing_there() -> None:
    rows = [row for row in held()["failure_parts"] if row["split"] == "span" and (row["failure"], row["part"]) != ("p0", "y")]
    _, y = pooled_parts(rows, {"p0"})
    assert y["value"].value == pytest.approx(1 / 3) and y["value"].n == 3 and y["control"].value == 0.0


def test_one_prompt_has_no_interval_and_a_share_stays_within_its_range() -> None:
    tables = across_tables()
    one = {name: tables[name].filter(pl.col("failure") == "p0") for name in ("failure_graphs", "failure_parts", "failure_units")}
    made = failure_tables(held(**one), ["span", "place"])
    assert len(made) == 2 and "n = 1 prompt: no interval, 1 with a healthy control" in made[0]["caption"]
    assert not any("[" in cell for cells, _ in made[0]["rows"] for cell in cells[1:])
    wild = tables["failure_parts"].with_columns(share=pl.when(pl.col("failure") == "p0").then(0.99).otherwise(0.02))
    shares = [cells[2] for cells, _ in failure_tables(held(failure_parts=wild), ["span"])[0]["rows"]]
    low, high = (float(x) for x in re.findall(r"[\d.]+", shares[0])[1:])
    assert low >= 0.0 and high == 1.0  # n = 3: the t interval would go on to 1.7


def test_a_neuron_is_counted_by_prompts_beside_healthy_controls() -> None:
    made = failure_tables(held())
    (units,) = [table for table in made if "neurons among" in table["caption"]]
    first = units["rows"][0][0]
    assert first[:3] == ["L3 #7", "3 of 3", "1 of 2"] and first[3] == "+1, +2, +3"
    assert all(cells[1] == "1 of 3" for cells, _ in units["rows"][1:])


def test_the_section_links_to_its_pages_and_says_why_there_is_none(tmp_path: Path) -> None:
    page = render_report(write_across(tmp_path / "run")).read_text("utf-8")
    start = page.index('<section aria-labelledby="item-1-graphs">')
    part = page[start : page.index("</section>", start)]
    links = re.findall(r'href="([^"]+)"', part)
    assert len(links) == 9 and all(link.startswith("graphs/value-collapse/0") and link.endswith("/report.html") for link in links)
    assert "The prompt has &lt;900&gt; tokens." in part and "<900>" not in part
    text = html.unescape(re.sub(r"<[^>]+>", "", part))
    assert (
        "no: it fails too" in text
        and "2 of 2 parts, which add up to +3 logits" in text
        and "3 prompts, 2 with a healthy control" in text
    )


def test_only_the_largest_layers_are_shown_and_the_sum_is_of_all() -> None:
    layers = [("p0", "collapse", "layer", f"layer {i}", float(i), i / 100, None, None) for i in range(20)]
    frame = pl.DataFrame(layers, schema=across_tables()["failure_parts"].schema, orient="row")
    (table,) = [t for t in failure_tables(held(failure_parts=frame)) if "which layer" in t["caption"]]
    assert [cells[0] for cells, _ in table["rows"]] == [f"layer {i}" for i in range(12, 20)]
    assert "8 of 20 parts, which add up to +190 logits" in table["caption"]


def test_the_tokens_that_carry_most_stand_with_their_places_on_both_sides() -> None:
    tokens = [("p0", "collapse", "token", f"{t} w {t}", (-1.0) ** t * t, 0.1, 9.0 - t, 0.1) for t in range(9)]
    tokens += [("p0", "collapse", "token", "constants", 0.5, 0.1, None, None)]
    frame = pl.DataFrame(tokens, schema=across_tables()["failure_parts"].schema, orient="row")
    (table,) = [t for t in failure_tables(held(failure_parts=frame)) if "tokens whose" in t["caption"]]
    ((name, failing, control), _), *others = table["rows"]
    assert name == "p0" and not others
    assert failing == "8 'w 8' +8; 7 'w 7' −7; 6 'w 6' +6; 5 'w 5' −5; 4 'w 4' +4; 3 'w 3' −3" and control.startswith(
        "0 'w 0' +9; 1 'w 1' +8"
    )


def test_ghosts_are_means_over_prompts_beside_healthy_controls() -> None:
    (table,) = [t for t in failure_tables(held()) if "Ghosts" in t["caption"]]
    rows = {cells[0]: cells[1:] for cells, _ in table["rows"]}
    assert rows["p1"] == ["0.6", "0.95", "0.4", "0.94"] and rows["mean over 3 prompts"][0].startswith("0.6 [")
    assert "Failing − healthy control: +0.15 [" in table["caption"] and table["caption"].endswith("n = 2 prompts")
    without = across_tables()["failure_graphs"].with_columns(pl.lit(None, pl.Float64).alias("ghosts"))
    assert not [t for t in failure_tables(held(failure_graphs=without)) if "Ghosts" in t["caption"] and t["rows"]]
