"""The report says what the folder holds: everything that is there, nothing that is not, and no text of the run as markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from html.parser import HTMLParser

import polars as pl
import pytest
from report.synthetic_run import item_tables, NASTY, SCRIPT, write_run

from symbolic_residue.errors import ConfigError, MissingExtraError, RunDamagedError, StoreError
from symbolic_residue.report import export_figures, render_report

VOID = {"meta", "br", "wbr", "img", "link", "input", "hr"}
SVG_ALONE = {"path", "rect", "line", "circle", "stop"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.headings: list[int] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "script", "title"):
            self.text.append(data)

    def said(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def page_of(run) -> Page:
    return Page(render_report(run).read_text("utf-8"))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("full") / "run")
    started = time.perf_counter()
    path = render_report(run)
    return run, path, time.perf_counter() - started, Page(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("nasty") / "run", nasty=True, n_layers=3, n_heads=2, failed=1)
    text = render_report(run).read_text("utf-8")
    return text, Page(text)


def test_a_typical_item_is_small_and_quick(full):
    _, path, seconds, _ = full
    assert path.name == "report.html"
    assert path.stat().st_size < 3_000_000
    assert seconds < 10


def test_the_same_folder_gives_the_same_bytes(full):
    run, path, _, _ = full
    before = path.read_bytes()
    assert render_report(run).read_bytes() == before


def test_every_section_is_there_in_order_with_its_numbers(full):
    said = full[3].said()
    parts = [
        "Undecided between “ yes” and “ no”: flatness fires (log-odds of the top two 0.07 nats [0.02, 0.12])",
        "SmolLM2-135M-Instruct · 39 tokens · chat · seed 0",
        "no interval (n = 1)",
        "The prompt, token by token",
        "Largest influences",
        "Does it settle?",
        "returns to an earlier leader",
        "Logit lens",
        "The last 24 of 39 positions",
        "Heads behind the difference",
        "12 of 270 heads",
        "Where the last row looks",
        "Grey: the first token",
        "Attention and MLP by layer",
        "the parts must add up",
        "Sensitivity to small edits",
        "OV strength",
        "What would change this verdict",
        "flatness becomes absent",
        "How this was made",
        "residue diagnose demo --prompts questions.jsonl",
        "weights_sha256 " + "5f" * 32,
        "criteria.flatness 0.5",
        'pl.read_parquet("run/tables/heads")',
    ]
    places = []
    start = 0
    for part in parts:
        assert part in said[start:], part
        start = said.index(part, start)
        places.append(start)
    assert places == sorted(places)


def test_every_head_row_shows_its_own_numbers(full):
    run = full[0]
    said = full[3].said()
    heads = pl.read_parquet(run / "tables" / "heads")
    confirmed = heads.filter("confirmed").to_dicts()
    assert confirmed
    for row in confirmed:
        sign = re.escape("+" if row["dla"] > 0 else "−")
        line = rf"{row['layer']}\.{row['head']} {sign}\S+ \[\S+, \S+\] 24 \S+ \[\S+, \S+\] 0\.11 \(64\) 0\.01 "
        assert re.search(line, said), row
    assert said.count("✓ yes") == len(confirmed) + 1  # and the one edit that changed the top token


def test_the_two_lines_load_a_table(full):
    run, _, _, _ = full
    assert pl.read_parquet(run / "tables" / "verdicts").height == 4


def test_tokens_carry_their_numbers_and_colours(full):
    tokens = [attrs for attrs in full[3].all("span") if attrs.get("class") == "t"]
    assert len(tokens) == 39
    assert "influence not measured" in tokens[0]["title"]
    assert "style" not in tokens[0]
    assert re.search(
        r"position 1 · “system” \(id 101\) · region special · influence [+−]0\.\d+ nats · attention 0\.\d+", tokens[1]["title"]
    )
    assert tokens[1]["style"].startswith("background:#")


def test_the_page_is_sealed(full):
    text = full[1].read_text("utf-8")
    page = full[3]
    policy = next(attrs["content"] for attrs in page.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split("script-src")[1]
    script = re.search(r"<script>(.*?)</script>", text, re.S)[1]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert not page.all("link")
    for tag, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs), tag
        assert not re.match(r"(?!#|data:)", attrs.get("href") or attrs.get("src") or "#"), (tag, attrs)
    assert "url(" not in re.sub(r"url\(#[^)]*\)", "", text)
    assert "@import" not in text


def test_accessibility_basics(full):
    page = full[3]
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert all(attrs.get("scope") in ("row", "col") for attrs in page.all("th"))
    assert all(attrs.get("role") == "img" and attrs.get("aria-label") for attrs in page.all("svg"))
    assert page.all("html")[0]["lang"] == "en"
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    for attrs in page.all("a"):
        assert attrs["href"][1:] in ids


def test_nasty_strings_are_shown_and_never_markup(nasty):
    text, page = nasty
    assert len(page.all("script")) == 1
    assert not page.all("img")
    for character in ("\u202e", "\u202c", "\x00", "\ud7ff"):
        assert character not in text
    said = page.said()
    assert "⟨U+202E⟩" in said
    assert "␀" in said
    assert "{{7*7}}" in said.replace(" ", "")
    assert SCRIPT in said
    assert "PromptError: the prompt is too long. " + SCRIPT in said
    shown = "".join(attrs["title"].split("“")[1].split("” (id")[0] for attrs in page.all("span") if attrs.get("class") == "t")
    assert NASTY.replace(" ", "·").replace("\u202e", "⟨U+202E⟩").replace("\u202c", "⟨U+202C⟩").replace("\x00", "␀").replace("\t", "⇥").replace(
        "\ud7ff", "⟨U+D7FF⟩"
    ) in shown  # fmt: skip


ALL = tuple(name for name in item_tables("q", n_layers=1, n_heads=1) if name != "items")


@pytest.mark.parametrize("missing", ALL)
def test_any_one_table_may_be_missing(tmp_path, missing):
    said = page_of(write_run(tmp_path / "run", omit=(missing,), n_layers=2, n_heads=2)).said()
    sections = {"refiners": 0, "transfer": 0, "dla_check": 0, "attention_stats": 0, "candidates": 0}
    assert said.count("Not measured in this run.") == sections.get(missing, 1)


def test_all_tables_may_be_missing(tmp_path):
    page = page_of(write_run(tmp_path / "run", omit=ALL))
    assert page.said().count("Not measured in this run.") == 10
    assert "No verdict was reached in this run." in page.said()
    assert "Is a tomato a fruit?" in page.said()


@pytest.mark.parametrize(
    ("status", "said"),
    [("interrupted", "This run was interrupted. 1 of 4 items are done"), ("running", "had not finished when this report was made")],
)
def test_an_unfinished_run_says_so_before_anything_else(tmp_path, status, said):
    page = page_of(write_run(tmp_path / "run", status=status, n_layers=2, n_heads=2))
    text = page.said()
    assert said in text
    assert text.index(said) < text.index("Undecided between")


def test_a_run_with_nothing_finished(tmp_path):
    page = page_of(write_run(tmp_path / "run", items=0, failed=2))
    said = page.said()
    assert "No item of this run is finished" in said
    assert "2 items failed" in said
    assert said.count("PromptError: the prompt is too long.") == 2


def test_several_items_have_an_overview_that_leads_to_them(tmp_path):
    page = page_of(write_run(tmp_path / "run", items=3, failed=1, n_layers=2, n_heads=2))
    links = {attrs["href"] for attrs in page.all("a")}
    assert {"#item-1", "#item-2", "#item-3"} <= links
    said = page.said()
    assert "4 items" in said
    assert "3 of 4 items done" in said
    assert said.index("4 items") < said.index("Undecided between")
    assert len([1 for attrs in page.all("span") if (attrs.get("class") or "").startswith("badge")]) == 3 * 4


def test_past_thirty_items_only_the_first_are_in_full_and_the_page_says_so(tmp_path):
    slim = tuple(name for name in ALL if name not in ("verdicts", "candidates"))
    page = page_of(write_run(tmp_path / "run", items=33, omit=slim))
    said = page.said()
    assert "The first 30 finished items are shown in full below" in said
    assert len([1 for attrs in page.all("article") if attrs.get("class") == "item"]) == 30
    assert "q032" in said


def test_the_sentence_of_the_question_itself_comes_first(tmp_path):
    from symbolic_residue.store import RunFolder

    tables = item_tables("q", n_layers=1, n_heads=1)
    tables["items"] = tables["items"].with_columns(summary=pl.lit("The model cannot choose."))
    with RunFolder.create(tmp_path / "run", kind="shell", command="x", provenance={}, config={}) as run:
        run.write_item("q", {name: tables[name] for name in ("items", "verdicts", "candidates")})
    said = page_of(tmp_path / "run").said()
    assert "The model cannot choose." in said
    assert "Undecided between" not in said
    assert "model not recorded" in said
    assert "Not recorded." in said  # no provenance: said, not hidden


def test_optional_values_may_be_missing(tmp_path):
    from symbolic_residue.store import MAY_BE_MISSING, RunFolder

    tables = item_tables("q", n_layers=2, n_heads=2)
    for name, frame in tables.items():
        tables[name] = frame.with_columns(pl.lit(None, frame.schema[column]).alias(column) for column in MAY_BE_MISSING[name])
    with RunFolder.create(tmp_path / "run", kind="shell", command="x", provenance={}, config={}) as run:
        run.write_item("q", tables)
    said = page_of(tmp_path / "run").said()
    assert not re.search(r"\b(None|nan|NaN)\b", said)
    assert "Influence of the tokens: not measured in this run." in said


def test_a_reading_shows_its_last_row(tmp_path):
    from symbolic_residue.store import RunFolder

    tables = item_tables("q", n_layers=2, n_heads=2)
    rows = [tables["attention"].with_columns(row=pl.lit(row, pl.Int64)) for row in (3, 8)]
    with RunFolder.create(tmp_path / "run", kind="read", command="x", provenance={}, config={}) as run:
        run.write_item("q", {"items": tables["items"], "tokens": tables["tokens"], "readout_mass": pl.concat(rows)})
    page = page_of(tmp_path / "run")
    assert "Row 8 is the last that was asked" in page.said()
    assert any("Attention mass" in (attrs["aria-label"] or "") for attrs in page.all("svg"))


def test_the_page_reads_only_the_folder(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", n_layers=2, n_heads=2)
    expected = render_report(run).read_bytes()
    moved = tmp_path / "elsewhere" / "run"
    moved.parent.mkdir()
    run.rename(moved)
    monkeypatch.chdir(tmp_path)
    assert render_report(moved).read_bytes() == expected


def test_damage_is_refused(tmp_path):
    with pytest.raises(StoreError):
        render_report(tmp_path / "nowhere")
    run = write_run(tmp_path / "run", n_layers=1, n_heads=1)
    shard = next((run / "tables" / "heads").iterdir())
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(RunDamagedError):
        render_report(run)
    assert not (run / "report.html").exists()


def test_figures_are_written_once_per_item_and_format(tmp_path):
    run = write_run(tmp_path / "run", items=2, n_layers=2, n_heads=2)
    files = export_figures(run)
    names = sorted(path.name for path in files)
    assert len(set(files)) == len(files) == 2 * 8 * 2
    assert all(path.parent == run / "figures" and path.stat().st_size > 500 for path in files)
    assert "q000-head_map.svg" in names
    assert "q001-lens_entropy.png" in names
    assert (run / "figures" / "q000-head_map.png").read_bytes().startswith(b"\x89PNG")
    only = export_figures(run, ("svg",))
    assert {path.suffix for path in only} == {".svg"}
    with pytest.raises(ConfigError, match="svg or png"):
        export_figures(run, ("pdf",))


def test_item_ids_become_safe_and_distinct_file_names(tmp_path):
    from symbolic_residue.store import RunFolder

    with RunFolder.create(tmp_path / "run", kind="shell", command="x", provenance={}, config={}) as run:
        for item in ("../a", "..:a", "果物", "q" * 300):
            tables = item_tables(item, n_layers=1, n_heads=1)
            run.write_item(item, {name: tables[name] for name in ("items", "ov")})
    files = export_figures(tmp_path / "run", ("svg",))
    assert len({path.name for path in files}) == 4
    assert all(path.parent == tmp_path / "run" / "figures" for path in files)
    assert all(len(path.name) < 100 and path.name.isascii() for path in files)


def test_without_altair_the_pip_line_is_named(tmp_path, monkeypatch):
    import sys

    run = write_run(tmp_path / "run", n_layers=1, n_heads=1)
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(MissingExtraError):
        render_report(run)
    assert not (run / "report.html").exists()


def test_a_manifest_note_and_odd_settings_are_shown(tmp_path):
    run = write_run(tmp_path / "run", status="interrupted", n_layers=1, n_heads=1, omit=ALL)
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    manifest["note"] = "Stopped by \u202e hand"
    manifest["config"] = {"empty": [], "nested": [{"a": None}], "text": "", "flag": True}
    (run / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    said = page_of(run).said()
    assert "Stopped by ⟨U+202E⟩ hand" in said
    for line in ("empty (empty)", "nested[0].a none", "text (empty)", "flag True"):
        assert line in said
