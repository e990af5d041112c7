"""Each figure draws, says what it should, and refuses what it cannot show truly."""

from __future__ import annotations

import builtins
import re
from html import unescape
from xml.etree import ElementTree

import polars as pl
import pytest
from report.synthetic_run import item_tables, PAIR, SCRIPT

from symbolic_residue import figures
from symbolic_residue.errors import ConfigError, MissingExtraError

DRAW = {
    "verdicts": figures.verdict_intervals,
    "traces": figures.probability_traces,
    "heads": figures.head_map,
    "attention": figures.attention_by_region,
    "components": figures.components,
    "ov": figures.ov_strength,
}


@pytest.fixture(scope="module")
def tables():
    return item_tables("q", n_layers=4, n_heads=3)


def texts(svg: str) -> list[str]:
    return [unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


@pytest.mark.parametrize("name", DRAW)
def test_every_figure_is_legible_svg(tables, name):
    svg = figures.to_svg(DRAW[name](tables[name]), label="a < b")
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == "a < b"
    sizes = [float(size) for size in re.findall(r'font-size="([\d.]+)px"', svg)]
    assert sizes
    assert min(sizes) >= 10
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    assert float(root.attrib["width"]) <= 720  # an A4 page, upright, at full size


@pytest.mark.parametrize("name", DRAW)
def test_a_missing_column_an_empty_table_and_two_items_are_refused(tables, name):
    draw, frame = DRAW[name], tables[name]
    with pytest.raises(ConfigError, match="no rows"):
        draw(frame.clear())
    with pytest.raises(ConfigError, match="2 items"):
        draw(pl.concat([frame, frame.with_columns(item=pl.lit("other"))]))
    with pytest.raises(ConfigError, match="lacks the columns"):
        draw(
            frame.drop(
                frame.columns[-1]
                if name not in ("verdicts", "traces", "heads")
                else {"verdicts": "value", "traces": "share", "heads": "dla"}[name]
            )
        )


def test_traces_show_the_refiners_in_order_and_at_most_six_candidates(tables):
    extra = [tables["traces"]]
    for index in range(8):
        extra.append(tables["traces"].filter(token=" both").with_columns(token=pl.lit(f"c{index}"), share=pl.lit(0.001 * index)))
    svg = figures.to_svg(figures.probability_traces(pl.concat(extra)))
    words = texts(svg)
    titles = [word for word in words if word.split(":")[0] in ("rollout", "soft", "layers")]
    assert [title.split(":")[0] for title in titles] == ["rollout", "soft", "layers"]
    assert {"·yes", "·no", "·both", "c7", "c6", "c5"} <= set(words)
    assert "c4" not in words


def test_lens_shows_the_last_positions_and_outlines_the_final_token(tables):
    chart = figures.lens_heatmap(tables["lens"], tables["tokens"], last=5)
    words = texts(figures.to_svg(chart))
    n = tables["tokens"].height
    shown = {int(word.rsplit(" ", 1)[1]) for word in words if re.search(r" \d+$", word)}
    assert shown == set(range(n - 5, n))
    cells = next(iter(chart.to_dict()["datasets"].values()))
    final = tables["lens"].filter(layer=3, position=n - 1)["top_token"][0]
    expected = tables["lens"].filter(pl.col("position") >= n - 5, pl.col("top_token") == final).height
    assert sum(cell["final"] for cell in cells) == expected > 0
    assert len(cells) == 4 * 5


def test_lens_can_be_coloured_by_the_answer_and_refuses_no_positions(tables):
    svg = figures.to_svg(figures.lens_heatmap(tables["lens"], tables["tokens"], colour="answer_probability"))
    assert "probability of the final top token" in texts(svg)
    with pytest.raises(ConfigError, match="at least one"):
        figures.lens_heatmap(tables["lens"], tables["tokens"], last=0)


def test_head_map_outlines_just_the_confirmed_heads(tables):
    heads = tables["heads"].with_columns(confirmed=(pl.col("layer") == 2) & (pl.col("head") == 1))
    svg = figures.to_svg(figures.head_map(heads))
    assert svg.count('stroke-width="2.2"') == 1
    two = pl.concat([heads, heads.with_columns(target=pl.lit("other"))])
    words = texts(figures.to_svg(figures.head_map(two)))
    assert f"toward {PAIR.replace(' yes', '·yes', 1)}" in words
    assert "toward other" in words


def test_attention_averages_over_heads_and_stacks_the_sink_first():
    frame = pl.DataFrame(
        {"item": "q", "layer": 0, "head": [0, 0, 1, 1], "region": ["user", "sink", "user", "sink"], "mass": [0.2, 0.8, 0.6, 0.4]}
    )  # fmt: skip
    data = next(iter(figures.attention_by_region(frame).to_dict()["datasets"].values()))
    means = {row["region"]: row["mass"] for row in data}
    assert means == pytest.approx({"user": 0.4, "sink": 0.6})
    assert {row["region"]: row["rank"] for row in data}["sink"] == 0


def test_components_running_sum_ends_at_the_sum_of_the_parts(tables):
    datasets = figures.components(tables["components"]).to_dict()["datasets"].values()
    running = next(data for data in datasets if "total" in data[0])
    assert running[0]["place"] == "emb"
    assert running[-1]["total"] == pytest.approx(tables["components"]["contribution"].sum())


def test_nan_is_left_out_not_drawn(tables):
    frame = tables["verdicts"].with_columns(low=pl.lit(float("nan")), high=None, control_value=None)
    svg = figures.to_svg(figures.verdict_intervals(frame))
    assert "NaN" not in svg
    ElementTree.fromstring(svg)


def test_model_text_stays_text(tables):
    frame = tables["ov"].with_columns(token=pl.lit(SCRIPT + ' id="a" \u202e\x00'))
    svg = figures.to_svg(figures.ov_strength(frame))
    assert "<script" not in svg
    ElementTree.fromstring(svg)  # a raw NUL would not parse
    assert any("⟨U+202E⟩" in word or "…" in word for word in texts(svg))


def test_ids_of_two_figures_do_not_meet(tables):
    first = figures.to_svg(figures.head_map(tables["heads"]))
    second = figures.to_svg(figures.lens_heatmap(tables["lens"], tables["tokens"]))
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for svg, own in zip((first, second), ids, strict=True):
        assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= own


def test_svg_is_the_same_each_time_and_png_is_png(tables):
    assert figures.to_svg(figures.ov_strength(tables["ov"])) == figures.to_svg(figures.ov_strength(tables["ov"]))
    small, large = (figures.to_png(figures.ov_strength(tables["ov"]), scale) for scale in (1, 2))
    assert small.startswith(b"\x89PNG")
    width = [int.from_bytes(png[16:20], "big") for png in (small, large)]
    assert width[1] == pytest.approx(2 * width[0], abs=2)
    with pytest.raises(ConfigError, match="above 0"):
        figures.to_png(figures.ov_strength(tables["ov"]), 0)


@pytest.mark.parametrize(("module", "package"), [("altair", "altair"), ("vl_convert", "vl-convert-python")])
def test_without_the_extra_the_pip_line_is_named(tables, monkeypatch, module, package):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == module:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    chart = figures.ov_strength(tables["ov"])
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=re.escape(package)) as caught:
        figures.ov_strength(tables["ov"]) if module == "altair" else figures.to_svg(chart)
    assert caught.value.todo == "pip install 'symbolic-residue[figures]'"
