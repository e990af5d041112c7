"""Stage 4: verdicts from the saved records alone; no model is opened.

1. One item is one condition: for every model the gates of every region, under both segmentations and both offsets; for every reference the difference
   from the tuned model on the same ids, the verdict, and how far the peak moved; with single heads, those chosen on half of the questions. Where there are
   null models, the verdict against any other reference says whether the difference is larger than theirs from that reference.
2. Only against the model before training does a verdict speak of training. Against any other reference (a null model, another adapter, another system text) the
   same rules have the words of :data:`WORDS`, which compare and claim nothing about training.
3. A condition without answers that show the behaviour, or with too few to compare, is said and has no verdict. What a gate could not be evaluated for
   stands in the item's text, a line each.
4. Strata that could not be filled are counted: for C1, C2, C3 and C5 examples without such rows; for C4 answers without the behaviour that were cut.
5. A verdict rests on a reference. Without one there are gates only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from symbolic_residue.contrast._config import AnalysisConfig, TUNED
from symbolic_residue.contrast._deltas import deltas
from symbolic_residue.contrast._gates import Gates, gates, Options
from symbolic_residue.contrast._heads import select_heads
from symbolic_residue.contrast._records import CONTROLS, EVENT
from symbolic_residue.contrast._training import diff_of_diffs, peak_shift
from symbolic_residue.contrast._verdict import verdict
from symbolic_residue.contrast.study._generate import never_shown
from symbolic_residue.contrast.study._read import read_items
from symbolic_residue.contrast.study._source import Source
from symbolic_residue.contrast.study._study import Stopped, Study
from symbolic_residue.errors import RecordError

__all__ = ["WORDS", "Judged", "analyse_items", "analyse_stage", "judge"]

WORDS = {"induced": "beyond reference", "reduced by training": "short of reference", "present in base": "present in reference"}
"""Outcome against the model before training → the word for the same against any other reference."""

_LEAST = 2
"""Fewest examples of a condition."""


@dataclass
class Judged:
    """What the records of one condition say.

    Attributes:
        tables: by name, as the store has them, without ``item``.
        notes: what could not be evaluated, and why.
        summary: one line.
    """

    tables: dict[str, pl.DataFrame] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    summary: str = ""


def analyse_items(study: Study) -> list[str]:
    """Ids of the stage's items."""
    return [f"analysis/{condition.name}" for condition in study.conditions]


def analyse_stage(study: Study) -> None:
    """Judge every condition.

    Raises:
        ConfigError: records are not there yet.
        Stopped: no answer of the study shows the behaviour.
    """
    items = analyse_items(study)
    if not study.pending(items):
        return
    for model in (TUNED, *study.config.references):
        study.need(read_items(study, model), "read" if model == TUNED else "force-feed")
    if reason := never_shown(study):
        raise Stopped(reason)
    config = study.config
    models = (TUNED, *config.references)
    examples = study.folder.table("contrast_examples")

    def measure(item: str) -> dict[str, pl.DataFrame]:
        name = item.removeprefix("analysis/")
        mine = examples.filter(pl.col("condition") == name)
        judged = judge(
            Source.of_folder(
                study.folder, {model: [f"read-{model}/{name}/{question.id}" for question in study.questions] for model in models}
            ),
            options=config.options(),
            analysis=config.analysis,
            references=list(config.references),
            nulls=[key for key, one in config.references.items() if one.is_null],
            untrained=[key for key, one in config.references.items() if one.kind in ("base", "model")],
            answers=(len(mine) - mine["event"].null_count(), mine["event"].null_count()),
        )
        row = study.row(prompt=f"condition {name}", summary=f"{name}: {judged.summary}", text="\n".join(judged.notes) or None)
        return {"items": row, **judged.tables}

    study.work("analyse", items, measure)


def judge(
    records: pl.DataFrame | Source,
    *,
    options: Options,
    analysis: AnalysisConfig | None = None,
    references: Sequence[str] | None = None,
    nulls: Sequence[str] = (),
    untrained: Sequence[str] | None = None,
    tuned: str = TUNED,
    answers: tuple[int, int] | None = None,
) -> Judged:
    """All that the records of one condition say.

    Args:
        records: the long table, of one condition and of all models; rows of single heads beside the means over heads. Or where it can be read from.
        options: of the gates.
        analysis: protocol and number of heads.
        references: names of the models that ``tuned`` is compared with; default: all others in the table.
        nulls: which of the references are null models.
        untrained: which are the model before training; default: all that are no null models.
        tuned: the model that drew the answers.
        answers: kept answers with and without the behaviour, so that what has no rows at all is counted; default: as the records have them.

    Raises:
        RecordError: records that cannot be trusted.
    """
    plan, out = analysis or AnalysisConfig(), Judged()
    source = records if isinstance(records, Source) else Source.of_table(records)
    others = [name for name in source.models if name != tuned and (references is None or name in references)]
    if references is not None:
        others.sort(key=list(references).index)
    by_model: dict[str, pl.DataFrame] = {}
    unfilled: list[pl.DataFrame] = []
    positives, negatives = (0, None) if answers is None else answers
    for name in (tuned, *others):
        means = source.means(name)
        if name == tuned:
            events = means.filter(pl.col("stratum") == EVENT)["example"].n_unique()
            positives = events if answers is None else positives
            if not events:
                out.summary = "no answer shows the behaviour: nothing to compare"
                out.tables["contrast_missing"] = _unfilled(means, tuned, positives, negatives)
                return out
        elif means.is_empty():
            continue
        by_model[name] = deltas(means, reference=options.reference)
        unfilled.append(_unfilled(means, name, positives, negatives))
        del means
    others = [name for name in others if name in by_model]
    out.tables["contrast_missing"] = pl.concat(unfilled)
    paired = by_model[tuned].filter(pl.col("delta").is_not_null() & (pl.col("stratum") == options.reference))["example"].n_unique()
    if paired < _LEAST:
        out.summary = f"{paired} of {positives} answers have rows of stratum {options.reference}: too few to compare"
        return out
    found = {name: gates(one, protocol=plan.protocol, options=options) for name, one in by_model.items()}
    _keep_gates(out, list(found.values()))
    if plan.protocol == "published":
        out.notes.append("The published protocol gives no verdict: its gates look at one model, and pass on either side of zero.")
    else:
        known = [name for name in nulls if name in by_model]
        before = [name for name in others if (name not in known if untrained is None else name in untrained)]
        _compare(out, by_model, found, tuned, others, known, before, options)
    _heads(out, source, tuned, others, options, plan.top_heads)
    out.notes = list(dict.fromkeys(out.notes))
    clusters = by_model[tuned]["cluster"].n_unique()
    out.summary = f"{positives} answers with the behaviour, {paired} of them comparable, from {clusters} questions" + (
        "" if others else "; no reference, so no verdict"
    )
    return out


def _keep_gates(out: Judged, found: Sequence[Gates]) -> None:
    for table, part in (("layers", "layers"), ("rule_outs", "rule_outs"), ("trajectory", "trajectory"), ("windows", "windows")):
        frames = [frame for one in found if not (frame := getattr(one, part)).is_empty()]
        if frames:
            out.tables[f"contrast_{table}"] = pl.concat(frames, how="diagonal")
    out.notes += [note for one in found for note in one.notes]


def _compare(
    out: Judged,
    by_model: dict[str, pl.DataFrame],
    found: dict[str, Gates],
    tuned: str,
    others: Sequence[str],
    nulls: Sequence[str],
    untrained: Sequence[str],
    options: Options,
) -> None:
    frames: dict[str, list[pl.DataFrame]] = {"differences": [], "verdicts": [], "shifts": []}
    for name in others:
        try:
            difference = diff_of_diffs(by_model[tuned], by_model[name], stratum=options.reference, options=options)
            theirs = [
                diff_of_diffs(by_model[null], by_model[name], stratum=options.reference, options=options)
                for null in ([] if name in nulls else nulls)
            ]
            said = verdict(found[tuned], found[name], difference, nulls=theirs, options=options)
            frames["verdicts"].append(said if name in untrained else _compared(said, name in nulls))
            frames["differences"] += [difference.frame, *(one.frame for one in theirs)]
            frames["shifts"].append(peak_shift(by_model[tuned], by_model[name], stratum=options.reference, options=options))
        except RecordError as error:
            out.notes.append(f"No comparison with {name}: {error}")
    for table, some in frames.items():
        if some:
            out.tables[f"contrast_{table}"] = pl.concat(some)


def _compared(verdicts: pl.DataFrame, null: bool) -> pl.DataFrame:
    """The verdict against a reference that is not the model before training: no word about training, nor about null models where it is one itself."""
    why = pl.col("why").str.replace("; no null model was given", "", literal=True) if null else pl.col("why")
    return verdicts.with_columns(pl.col("outcome").replace(WORDS), why)


def _heads(out: Judged, source: Source, tuned: str, others: Sequence[str], options: Options, top: int) -> None:
    """Heads of the tuned model's own delta, and of its difference from each reference (named ``tuned − reference``)."""
    single = source.heads(tuned)
    if single.is_empty():
        return
    if options.reference != "C1":
        out.notes.append(f"Single heads were read at C1 only, not at {options.reference}: none were chosen.")
        return
    own = deltas(single)
    del single
    frames = []
    for name in (None, *others):
        theirs = None if name is None else source.heads(name)
        if theirs is not None and theirs.is_empty():
            out.notes.append(f"No heads were chosen against {name}, whose single heads were not read.")
            continue
        try:
            chosen = select_heads(own, None if theirs is None else deltas(theirs), top=top, options=options)
        except RecordError as error:
            out.notes.append(f"No heads were chosen: {error}")
            continue
        frames.append(chosen if name is None else chosen.with_columns(model=pl.lit(f"{tuned} − {name}")))
    if frames:
        out.tables["contrast_heads"] = pl.concat(frames)


def _unfilled(means: pl.DataFrame, model: str, positives: int, negatives: int | None) -> pl.DataFrame:
    """For each stratum: examples with the behaviour, examples with rows of the stratum, and those that lack them."""
    rows: list[dict[str, Any]] = []
    for stratum in CONTROLS if len(means) else ():
        has = means.filter(pl.col("stratum") == stratum)["example"].n_unique()
        lacking: int | None = positives - has
        if stratum == "C4":
            lacking = None if negatives is None else negatives - has
        rows.append(
            {"model": model, "condition": means["condition"].first(), "stratum": stratum, "examples": positives, "with_rows": has, "missing": lacking}
        )  # fmt: skip
    schema = {
        "model": pl.String,
        "condition": pl.String,
        "stratum": pl.String,
        "examples": pl.Int64,
        "with_rows": pl.Int64,
        "missing": pl.Int64,
    }
    return pl.DataFrame(rows, schema=schema)
