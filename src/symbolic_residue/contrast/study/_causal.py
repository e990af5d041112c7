"""Stage 5: causal follow-ups on some of the answers, with the tuned model and its base side by side.

1. Which: of each condition the answers with the behaviour, one of every question before a second of any, at most ``causal.examples``. A behaviour at the
   very first token of an answer is left out: nothing of the answer precedes it.
2. One item is one analysis on a batch of these examples; a number an example (table ``contrast_causal``). Each analysis is a function of
   :mod:`symbolic_residue.contrast.causal`; this module only says with what it is called.
3. When all are there, they are pooled over examples with the question as the cluster (table ``contrast_effects``).
4. Null models of the study stand beside surgery (all of them) and mediation (the first: another model is kept open for it).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from symbolic_residue.contrast import causal
from symbolic_residue.contrast._config import TUNED
from symbolic_residue.contrast._examples import condition_prompt, Example
from symbolic_residue.contrast._segment import segment
from symbolic_residue.contrast.study._generate import generate_items, saved_examples
from symbolic_residue.contrast.study._read import check_same_names
from symbolic_residue.contrast.study._study import Study

__all__ = ["causal_items", "causal_stage", "chosen_examples"]


def causal_stage(study: Study) -> None:
    """Make every follow-up that is not there yet, and pool them.

    Raises:
        ConfigError: stage 1 is not whole.
        RecordError, PromptError, InstrumentError, ModelError: what the analyses refuse.
    """
    plan = study.config.causal
    if not plan.analyses:
        return
    study.need(generate_items(study), "generate")
    work = causal_items(study)
    study.work("causal", list(work), lambda item: _measured(study, *work[item]))
    study.work("causal", ["effects"], lambda item: _pooled(study))


def chosen_examples(study: Study) -> list[list[Example]]:
    """Of each condition that has any, its examples."""
    out = []
    for condition in study.conditions:
        mine = [
            one
            for one in saved_examples(study)
            if one.condition == condition.name and one.event is not None and one.event > one.prompt_len
        ]
        rank: dict[str, int] = {}
        order = []
        for one in mine:
            rank[one.question] = rank.get(one.question, -1) + 1
            order.append(rank[one.question])
        picked = [one for _, one in sorted(zip(order, mine, strict=True), key=lambda pair: pair[0])]
        if picked:
            out.append(picked[: study.config.causal.examples])
    return out


def causal_items(study: Study) -> dict[str, tuple[str, list[Example]]]:
    """Item → analysis and examples, in order."""
    plan, out = study.config.causal, {}
    groups = chosen_examples(study)
    for analysis in plan.analyses:
        for examples in groups:
            for k, start in enumerate(range(0, len(examples), plan.batch), start=1):
                out[f"causal-{analysis}/{examples[0].condition}/{k}"] = (analysis, examples[start : start + plan.batch])
    return out


def _measured(study: Study, analysis: str, examples: list[Example]) -> dict[str, pl.DataFrame]:
    frame = _follow_up(study, analysis, examples)
    summary = f"{analysis}: {len(examples)} answers of {examples[0].condition}, {len({one.question for one in examples})} questions"
    return {"items": study.row(prompt=", ".join(one.id for one in examples), summary=summary), "contrast_causal": frame}


def _follow_up(study: Study, analysis: str, examples: Sequence[Example]) -> pl.DataFrame:
    """The one place that calls the causal functions."""
    config, plan, models = study.config, study.config.causal, study.models
    name = config.base_name
    assert name is not None
    base = models.get(name, beside=[TUNED])
    for one in examples:
        check_same_names(models.tokenizer, base, one, name)
    nulls = [key for key, one in config.references.items() if one.is_null]
    if analysis == "surgery":
        folders: dict[str, str | Path] = {key: models.adapter(key) for key in nulls}
        return causal.surgery(base, str(config.adapter), examples, nulls=folders, batch=plan.batch)
    tuned = models.get(TUNED, beside=[name])
    if analysis == "lens":
        return causal.emission_lens(tuned, base, examples, batch=plan.batch, seed=config.seed)
    if analysis == "components":
        return causal.emission_components(tuned, base, examples, batch=plan.batch, seed=config.seed)
    if analysis == "mediation":
        others = {key: models.get(key, beside=[TUNED, name]) for key in nulls[:1]}
        return causal.exchange_patterns(tuned, base, examples, references=others, controls=plan.controls, seed=config.seed)
    labels = _labels(study, examples)
    if analysis == "patch":
        return causal.patch_models(
            tuned, base, examples, labels=labels, parts=plan.parts, places=plan.places, layers=plan.layers, controls=plan.controls, seed=config.seed
        )  # fmt: skip
    regions = plan.regions or (config.predicted.region,)
    return causal.knock_out(
        tuned, base, examples, labels, regions, layers=plan.layers or None, draws=3 if plan.controls else 0, seed=config.seed
    )


def _labels(study: Study, examples: Sequence[Example]) -> list[list[str]]:
    """Buckets of every token (segmentation ``full``)."""
    conditions = {one.name: one for one in study.conditions}
    questions = {one.id: one for one in study.questions}
    tokenizer, merged, out = study.models.tokenizer, study.config.readout.merged_newlines, []
    for one in examples:
        prompt = condition_prompt(tokenizer, conditions[one.condition], questions[one.question], chat=study.config.chat)
        found = segment(tokenizer, prompt, len(one.answer), sinks=one.sinks, names=["full"], merged_newlines=merged)
        out.append(found["full"])
    return out


def _pooled(study: Study) -> dict[str, pl.DataFrame]:
    frame = study.folder.table("contrast_causal").drop("item")
    if frame.is_empty():
        return {"items": study.row(prompt="causal follow-ups", summary="no answer could be followed up")}
    options = study.config.options()
    effects = causal.pool_effects(frame, seed=options.seed, n_resamples=options.n_resamples, level=1 - options.alpha)
    told = effects.filter(pl.col("outcome").is_not_null())
    summary = "; ".join(f"{row['analysis']}, {row['condition']}, {row['model']}: {row['outcome']}" for row in told.to_dicts())
    shown = f"{len(frame)} numbers of {frame['example'].n_unique()} answers"
    return {"items": study.row(prompt=shown, summary=summary or f"{len(effects)} effects"), "contrast_effects": effects}
