"""The page of a contrast: the answer first, every number beside its control, what was not run with its command, and nothing from a run as markup."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from report.contrast_run import CONDITIONS, MARKER, NASTY, write_contrast

from symbolic_residue.report import export_figures, render_report
from symbolic_residue.report._contrast_samples import marked_text

SECTIONS = ("preflight", "rates", "strata", "layers", "heads", "causal", "samples", "method", "provenance")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render_report(write_contrast(tmp_path_factory.mktemp("contrast") / "run")).read_text("utf-8")


def section(page: str, name: str) -> str:
    start = page.index(f'<section aria-labelledby="{name}">') if name != "provenance" else page.index('<section class="provenance"')
    return page[start : page.index("</section>", start)]


def words(part: str) -> str:
    return " ".join(unescape(re.sub("<[^>]*>", " ", part)).split())


def table_rows(part: str) -> list[list[str]]:
    return [
        [words(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL)]
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", part, re.DOTALL)
    ]


def test_the_first_screen_answers_in_words_and_numbers(page: str) -> None:
    answer = section(page, "answer")
    assert page.index('id="answer"') < page.index('id="preflight"')
    assert "training made the model look at system more (pirate)" in words(answer)
    assert "attention mediates it (pirate)" in words(answer)
    row = next(row for row in table_rows(answer) if row[:2] == ["pirate", "system"])
    shown = dict(zip(table_rows(answer)[0], row, strict=True))
    assert shown["verdict"] == "induced"
    assert re.fullmatch(r"\+0\.0\d+ \[\+0\.0\d+, \+0\.\d+\]", shown["tuned − base [interval]"])
    assert (shown["layer"], shown["answers"], shown["questions"], shown["segmentations"]) == ("3", "48", "12", "agree")
    assert float(shown["p"].replace("−", "-")) <= 0.05
    assert float(shown["could be seen"]) > 0
    assert re.match(r"random [+−][\d.e−]+ \[.*\]: tuned moves further", shown["null models"])


def test_every_section_stands_with_its_figures(page: str) -> None:
    for name in SECTIONS:
        assert section(page, name)
    per_condition = (
        "event − control by layer and region",
        "tuned − base by layer and region",
        "event against each control",
        "rows up to the event",
        "every region at layer",
    )
    for condition in CONDITIONS:
        for label in per_condition:
            assert f'aria-label="{condition}: {label}' in section(page, "layers"), (condition, label)
        assert section(page, "causal").count(f'aria-label="{condition}: ') == 5
    assert section(page, "rates").count("<svg") == 1
    assert "Layers where the two models peak" in section(page, "layers")
    assert page.count('role="img"') == len(re.findall("<svg", page))


def test_preflight_rates_and_strata_have_their_numbers(page: str) -> None:
    assert ["rate, eager − sdpa", "all", "0 [−0.05, +0.05]", "± 0.1", "48", "equivalent", "44 of 48 under sdpa"] in table_rows(
        section(page, "preflight")
    )
    rate = next(row for row in table_rows(section(page, "rates")) if row[:2] == ["pirate", "tuned"])
    assert (rate[3], rate[5]) == ("44", "48")
    strata = {row[1][:2]: row for row in table_rows(section(page, "strata")) if row[0] == "pirate"}
    assert strata["C1"][2:] == ["48", "48", "0"]


def test_gates_are_listed_for_each_model_and_segmentation(page: str) -> None:
    layers = section(page, "layers")
    for model in ("tuned", "base", "random"):
        for segmentation in ("full", "content"):
            assert f"system, {model}, segmentation {segmentation}." in words(layers)
    gates = layers[layers.index("system, tuned, segmentation full") :]
    row = next(row for row in table_rows(gates) if row[0] == "3")
    assert row[4:8] == ["✓"] * 4
    assert "not evaluated" in words(layers)  # C5 has no rows


def test_mediation_stands_with_its_control_and_criterion(page: str) -> None:
    rows = [row for row in table_rows(section(page, "causal")) if row[:2] == ["pirate", "tuned into base"]]
    assert rows[0][5:7] == ["0.5", "attention-mediated"]
    assert float(rows[0][3].split()[0]) == pytest.approx(0.9, abs=0.05)
    assert rows[0][4].startswith("+0.0")


def test_answers_are_shown_with_the_marker_marked(page: str) -> None:
    part = section(page, "samples")
    assert part.count(f"<mark>{MARKER}</mark>") == 12  # six of each condition
    assert "48 answers with the behaviour and 12 without were kept, to 12 questions; 8 are shown" in words(part)
    assert len(set(re.findall(r"<strong>pirate/(q\d+)/0</strong>", part))) == 6  # six questions, not six answers to one
    assert "the row that emits it is 12" in words(part)
    assert "eos" in part
    assert "length" in part


@pytest.mark.parametrize(
    ("text", "start", "behaviour", "marked"),
    [
        ("Arr [ZLT] end", 3, "text:[ZLT]", "[ZLT]"),  # the token starts at the space before
        ("Arr [ZLT] end", 4, "text:[ZLT]", "[ZLT]"),
        ("[ZLT] a [ZLT]", 8, "text:[ZLT]", "[ZLT]"),
        ("I am sorry.", 0, "refusal", "I"),
        ("a bcd", 2, "tokens:7", "bcd"),
        ("all said", 8, "end of text", "(end of text)"),
        ("one two and far [ZLT]", 4, "text:[ZLT]", "two"),
    ],
)
def test_the_mark_is_where_the_event_is(text: str, start: int, behaviour: str, marked: str) -> None:
    pieces = marked_text({"text": text, "event_character": start}, behaviour)
    assert [piece for is_marked, piece in pieces if is_marked] == [marked] or (start == 3 and pieces[1][1].strip() == marked)
    joined = "".join(piece for _, piece in pieces)
    assert joined.removesuffix("(end of text)") == text


def test_an_answer_without_the_behaviour_has_no_mark() -> None:
    assert marked_text({"text": "plain", "event_character": None}, "text:[ZLT]") == [(False, "plain")]


@pytest.mark.parametrize("options", [{"drawn": False, "analysed": False, "follow": False}, {"analysed": False, "follow": False}])
def test_what_was_not_run_says_so_with_its_command(tmp_path: Path, options: dict[str, Any]) -> None:
    text = words(render_report(write_contrast(tmp_path / "bare", **options)).read_text("utf-8"))
    commands = ["analyse bare", "causal bare"] + (
        [] if options.get("drawn", True) else ["generate --resume bare", "preflight --resume bare"]
    )
    for command in commands:
        assert f"residue contrast {command}" in text, command


def test_no_null_model_is_said(tmp_path: Path) -> None:
    run = write_contrast(tmp_path / "run", models=("tuned", "base"), conditions=CONDITIONS[:1], follow=False, drawn=False)
    text = words(render_report(run).read_text("utf-8"))
    assert "none was compared" in text
    assert "No null model was compared: that any tuning moves attention is not ruled out." in text


def test_nothing_of_a_run_is_markup(tmp_path: Path) -> None:
    run = write_contrast(
        tmp_path / "run", nasty=True, conditions=CONDITIONS[:1], follow=False, config={"behaviour": f"text:{NASTY}"}
    )
    text = render_report(run).read_text("utf-8")
    assert text.count("<script") == 1
    assert "\u202e" not in text
    assert "\x07" not in text
    assert "⟨U+202E⟩" in text
    assert "&lt;script&gt;" in text


def test_the_page_is_made_from_the_folder_alone_and_the_same_each_time(tmp_path: Path) -> None:
    run = write_contrast(tmp_path / "run", conditions=CONDITIONS[:1])
    first = render_report(run).read_bytes()
    assert render_report(run).read_bytes() == first
    addresses = set(re.findall(rb"https?://[^\s\"'<>]+", first))
    assert addresses <= {b"http://www.w3.org/2000/svg"}


def test_figures_are_exported(tmp_path: Path) -> None:
    names = {path.name for path in export_figures(write_contrast(tmp_path / "run", conditions=CONDITIONS[:1]), ["svg"])}
    for name in ("rates", "c1_layers", "c1_differences", "c1_differences_content", "c1_differences_consuming", "c1_strata", "c1_trajectory", "c1_regions", "shifts",
                 "c1_lens", "c1_components", "c1_patching", "c1_knock_out", "c1_surgery"):  # fmt: skip
        assert f"contrast-{name}.svg" in names, name
