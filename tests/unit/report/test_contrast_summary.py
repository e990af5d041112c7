"""The answer in words: what is said of each planted outcome, beside which numbers, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from report.contrast_run import CONDITIONS, judged, NASTY, write_contrast
from rich.console import Console

from symbolic_residue.errors import StoreError
from symbolic_residue.report import contrast_summary
from symbolic_residue.report._contrast_answer import answer_rows, answer_sentence, DISAGREE, row_sentence, unanswered
from symbolic_residue.report._contrast_load import ContrastRun, load_contrast


def printed(run: Path) -> str:
    console = Console(width=220, no_color=True)
    with console.capture() as capture:
        console.print(contrast_summary(run))
    return capture.get()


def verdict_line(text: str) -> str:
    """The row of the pirate in the table of verdicts."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("condition"))
    return next(line for line in lines[start:] if line.startswith("pirate"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ContrastRun:
    return load_contrast(write_contrast(tmp_path_factory.mktemp("contrast") / "run"))


def changed(run: ContrastRun, table: str, frame: pl.DataFrame) -> ContrastRun:
    return ContrastRun(run.folder, run.manifest, {**run.tables, table: frame}, run.items, run.sizes)


def test_the_planted_condition_is_induced_and_the_other_is_not(run: ContrastRun) -> None:
    finals = {(row["condition"], row["region"]): row["final"] for row in answer_rows(run)}
    assert finals["pirate", "system"] == "induced"
    assert finals["plain", "system"] == "undecided"
    said = answer_sentence(run, answer_rows(run))
    assert "training made the model look at system more (pirate)" in said
    assert "whether training changed attention to system is undecided (plain)" in said
    assert "Does it matter: attention mediates it (pirate); attention does not mediate it (plain)." in said


def test_against_a_null_model_alone_nothing_is_said_about_training(run: ContrastRun) -> None:
    config = {**run.config, "references": {"random": {"random": 3}}}
    words = {"induced": "beyond reference", "reduced by training": "short of reference", "present in base": "present in reference"}
    verdicts = run.tables["contrast_verdicts"].with_columns(pl.col("outcome").replace(words), reference=pl.lit("random"))
    alone = ContrastRun(
        run.folder, {**run.manifest, "config": config}, {**run.tables, "contrast_verdicts": verdicts}, run.items, run.sizes
    )
    said = answer_sentence(alone, answer_rows(alone)).partition(" Does it matter")[0]
    assert "the tuned model looks at system more than random (pirate)" in said
    assert "whether the tuned model differs from random in attention to system is undecided (plain)" in said
    assert "says nothing about what training did" in said
    assert "training made" not in said
    assert "says nothing" not in answer_sentence(run, answer_rows(run))


def test_the_predicted_region_stands_first_and_all_others_follow(run: ContrastRun) -> None:
    rows = answer_rows(run)
    assert [row["region"] for row in rows[:2]] == ["system", "system"]
    assert len(rows) == 2 * 3


def test_a_row_has_the_verdicts_own_numbers(run: ContrastRun) -> None:
    row = answer_rows(run)[0]
    verdict = judged("pirate", ("tuned", "base", "random"), 12)["contrast_verdicts"].filter(
        region="system", segmentation="full", query_offset=-1, reference="base"
    ).row(0, named=True)  # fmt: skip
    for name in ("layer", "value", "low", "high", "p", "n", "clusters", "detectable"):
        assert row[name] == verdict[name], name
    assert (row["layer"], row["n"], row["clusters"]) == (3, 48, 12)
    said = row_sentence(row)
    for part in (
        "pirate, system: induced.",
        "tuned − base = +0.0",
        "at layer 3",
        "48 answers to 12 questions",
        "could have been seen",
    ):
        assert part in said


def test_null_models_stand_beside_it_at_the_same_layer(run: ContrastRun) -> None:
    row = answer_rows(run)[0]
    (null,) = row["null_models"]
    assert (null["tuned"], null["reference"], null["layer"], null["segmentation"]) == ("random", "base", 3, "full")
    assert abs(null["value"]) < 0.02 < row["value"]


def test_segmentations_that_disagree_are_not_a_verdict(run: ContrastRun) -> None:
    verdicts = run.tables["contrast_verdicts"]
    other = (pl.col("segmentation") == "content") & (pl.col("region") == "system")
    odd = changed(
        run, "contrast_verdicts", verdicts.with_columns(outcome=pl.when(other).then(pl.lit("present in base")).otherwise("outcome"))
    )
    row = answer_rows(odd)[0]
    assert row["final"] == DISAGREE
    assert "induced under full, present in base under content" in row_sentence(row)
    assert "disagree about system (pirate, plain)" in answer_sentence(odd, answer_rows(odd))
    assert "training made" not in answer_sentence(odd, answer_rows(odd))


def test_a_sign_that_differs_between_segmentations_is_flagged(run: ContrastRun) -> None:
    assert not answer_rows(run)[0]["sign_differs"]
    content = pl.col("segmentation") == "content"
    frame = run.tables["contrast_differences"].with_columns(value=pl.when(content).then(-pl.col("value")).otherwise("value"))
    row = answer_rows(changed(run, "contrast_differences", frame))[0]
    assert row["sign_differs"]
    assert "another under the other segmentation" in row_sentence(row)


def test_the_headline_is_the_row_that_emits(run: ContrastRun) -> None:
    assert set(run.tables["contrast_verdicts"]["query_offset"]) == {-1, 0}
    assert {row["query_offset"] for row in answer_rows(run)} == {-1}


def test_the_base_is_known_by_its_kind_whatever_its_name(run: ContrastRun) -> None:
    assert run.base == "base"
    assert run.nulls == ["random"]
    frame = run.tables["contrast_verdicts"].with_columns(pl.col("reference").replace("base", "untouched"))
    renamed = changed(run, "contrast_verdicts", frame)
    config = {**run.config, "references": {"random": {"random": 3}, "untouched": {"base": True}}}
    told = ContrastRun(renamed.folder, {**run.manifest, "config": config}, renamed.tables, run.items, run.sizes)
    assert told.base == "untouched"


def test_the_terminal_says_the_sentence_and_its_numbers(run: ContrastRun) -> None:
    text = printed(run.folder.path)
    assert "training made the model look at system more (pirate)" in text
    line = verdict_line(text)
    for part in ("induced", "layer 3", "48 (12)", "random"):
        assert part in line
    assert not any(
        line.split()[1:2] == ["answer"] for line in text.splitlines()
    )  # regions that were not predicted are in the report
    assert "attention-mediated" in text
    first = text.splitlines().index(next(line for line in text.splitlines() if "training made" in line))
    assert any("44/48" in line for line in text.splitlines()[:first])  # rates stand before it
    assert any("against random (full): " in line for line in text.splitlines()[first:])


def test_without_null_models_or_follow_ups_that_is_said(tmp_path: Path) -> None:
    text = printed(write_contrast(tmp_path / "bare", models=("tuned", "base"), conditions=CONDITIONS[:1], follow=False))
    assert verdict_line(text).rstrip().endswith("none")
    assert "Whether attention mediates the behaviour was not tested." in text


def test_without_a_verdict_the_reason_and_the_command_are_said(tmp_path: Path) -> None:
    only_one = {"conditions": CONDITIONS[:1], "follow": False}
    empty = load_contrast(write_contrast(tmp_path / "empty", drawn=False, analysed=False, follow=False))
    assert "residue contrast run --resume empty" in unanswered(empty)
    unjudged = write_contrast(tmp_path / "un judged", analysed=False, **only_one)
    assert "residue contrast analyse 'un judged'" in " ".join(printed(unjudged).split())
    alone = load_contrast(write_contrast(tmp_path / "alone", models=("tuned",), **only_one))
    assert "rests on a reference" in unanswered(alone)
    with pytest.raises(StoreError):
        contrast_summary(tmp_path / "nowhere")


def test_one_question_has_no_interval_and_says_so(tmp_path: Path) -> None:
    run = write_contrast(tmp_path / "one", clusters=1, conditions=CONDITIONS[:1], follow=False, models=("tuned", "base"))
    text = " ".join(printed(run).split())
    assert "no interval (n = 4)" in text
    assert "4 (1)" in text
    assert "induced" not in text


def test_what_a_run_says_arrives_as_signs(tmp_path: Path, run: ContrastRun) -> None:
    verdicts = run.tables["contrast_verdicts"].with_columns(pl.col("condition").replace("pirate", f"[red]{NASTY}"))
    rows = answer_rows(changed(run, "contrast_verdicts", verdicts))
    assert any(NASTY in row["condition"] for row in rows)
    path = write_contrast(tmp_path / "nasty", conditions=CONDITIONS[:1], follow=False, config={"behaviour": f"text:{NASTY}"})
    text = printed(path)
    assert "⟨U+202E⟩" in text
    assert "\u202e" not in text and "\x07" not in text
