"""Stage 1: answers, with and without the behaviour, and how often it is shown.

1. Every prompt of the study is rendered first: a template without a system turn, or a prompt that is too long, is refused before anything is drawn.
2. One item is one question under one condition: its sinks (one forward), its trials, the answers that are kept. All trials are recorded, those too
   that a batch drew beyond what was needed.
3. Rate: hits among the *counted* trials, the first ``sampling.counted`` of every question, with Wilson's interval over trials. It does not depend on when
   drawing stopped. Trials of one question hang together, which this interval does not know; the questions' number stands beside it.
4. ``sampling.controls`` names references that draw the counted trials too (same seeds): the rate without this training. Nothing of theirs is kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import polars as pl

from symbolic_residue.contrast._config import TUNED
from symbolic_residue.contrast._examples import (
    Condition,
    condition_prompt,
    event_character,
    Example,
    generate_examples,
    Question,
    Sampling,
)
from symbolic_residue.contrast._segment import find_sinks
from symbolic_residue.contrast.study._study import end_ids, Stopped, Study
from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.stats import clustered_wilson, effective_n

__all__ = ["check_prompts", "generate_items", "generate_stage", "never_shown", "saved_examples"]

TRIALS = {
    "model": pl.String,
    "condition": pl.String,
    "question": pl.String,
    "trial": pl.Int64,
    "seed": pl.Int64,
    "positive": pl.Boolean,
    "stop": pl.String,
    "new_tokens": pl.Int64,
    "kept": pl.Boolean,
    "counted": pl.Boolean,
}
EXAMPLES = {
    "example": pl.String,
    "condition": pl.String,
    "question": pl.String,
    "system": pl.String,
    "asked": pl.String,
    "trial": pl.Int64,
    "seed": pl.Int64,
    "prompt_len": pl.Int64,
    "event": pl.Int64,
    "event_character": pl.Int64,
    "token_hit": pl.Boolean,
    "text_hit": pl.Boolean,
    "stop": pl.String,
    "text": pl.String,
    "ids": pl.String,
    "sinks": pl.String,
    "drawn_by": pl.String,
}
RATES = {
    "model": pl.String,
    "condition": pl.String,
    "behaviour": pl.String,
    "hits": pl.Int64,
    "n": pl.Int64,
    "rate": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "clusters": pl.Int64,
    "n_effective": pl.Float64,
}


def generate_items(study: Study) -> list[str]:
    """Ids of the stage's items, in order."""
    cells = [f"{condition.name}/{question.id}" for condition, question in study.cells()]
    controls = [f"rate-{name}/{cell}" for name in study.config.sampling.controls for cell in cells]
    return [*(f"gen-{cell}" for cell in cells), *controls, "rates"]


def check_prompts(study: Study) -> None:
    """Render every prompt.

    Raises:
        TemplateError: the template takes no system turn, or there is none.
        PromptError: a prompt is longer than the context, or leaves no room for an answer.
    """
    instrument = study.models.get(TUNED)
    limit = instrument.parts.max_context
    for condition, question in study.cells():
        prompt = condition_prompt(instrument.loaded.tokenizer, condition, question, chat=study.config.chat, max_tokens=limit)
        if limit is not None and len(prompt) + 1 >= limit:
            raise PromptError(
                f"The prompt of {condition.name}/{question.id} has {len(prompt)} tokens; the model's context holds {limit}.",
                why="There is no room for an answer.",
                todo="Shorten the system text or the question.",
            )


def generate_stage(study: Study) -> None:
    """Draw all answers that are not there yet, and the rates.

    Raises:
        Stopped: no answer of the study shows the behaviour.
    """
    check_prompts(study)
    cells = {f"gen-{condition.name}/{question.id}": (condition, question) for condition, question in study.cells()}
    sampling = study.config.sampling
    study.work("generate", list(cells), lambda item: _drawn(study, TUNED, *cells[item], sampling.made()))
    alone = replace(sampling.made(), positives=sampling.counted, negatives=sampling.counted, tries=sampling.counted)
    for name in sampling.controls:
        mine = {f"rate-{name}/{condition.name}/{question.id}": (condition, question) for condition, question in study.cells()}
        study.work("generate", list(mine), lambda item, name=name, mine=mine: _drawn(study, name, *mine[item], alone))
    study.work("generate", ["rates"], lambda item: _rates(study))
    if never_shown(study):
        raise Stopped(never_shown(study))


def never_shown(study: Study) -> str:
    """Why there is nothing to read: no kept answer shows the behaviour; empty where one does."""
    examples = study.folder.table("contrast_examples")
    if examples["event"].drop_nulls().len():
        return ""
    rates = study.folder.table("contrast_rates").filter(pl.col("model") == TUNED)
    told = "; ".join(f"{row['condition']}: {row['hits']} of {row['n']} trials" for row in rates.to_dicts())
    return f"No answer shows {study.config.behaviour!r} ({told}), so there is nothing to read."


def _drawn(study: Study, model: str, condition: Condition, question: Question, plan: Sampling) -> dict[str, pl.DataFrame]:
    """The tables of one question under one condition."""
    instrument, config = study.models.get(model), study.config
    tokenizer, behaviour = instrument.loaded.tokenizer, study.behaviour(end_ids(instrument))
    prompt = condition_prompt(tokenizer, condition, question, chat=config.chat)
    sinks = find_sinks(instrument, prompt, threshold=config.sink_threshold) if model == TUNED else ()
    trials: list[tuple[Example, bool]] = []
    kept = generate_examples(
        instrument, condition, question, behaviour, sampling=plan, chat=config.chat, seed=config.seed, sinks=sinks, drawn_by=model,
        on_trial=lambda example, wanted: trials.append((example, wanted)),
    )  # fmt: skip
    rows = [
        {
            "model": model, "condition": condition.name, "question": question.id, "trial": one.trial, "seed": one.seed, "positive": one.positive,
            "stop": one.stop, "new_tokens": len(one.answer), "kept": wanted and model == TUNED, "counted": one.trial < plan.counted,
        }
        for one, wanted in trials
    ]  # fmt: skip
    hits = sum(one.positive for one, _ in trials)
    summary = f"{hits} of {len(trials)} trials show {config.behaviour}"
    tables = {"contrast_trials": pl.DataFrame(rows, schema=TRIALS)}
    if model == TUNED:
        positives = sum(one.positive for one in kept)
        summary += f"; kept: {positives} with it, {len(kept) - positives} without"
        tables["contrast_examples"] = pl.DataFrame(
            [_example_row(tokenizer, one, condition, question) for one in kept], schema=EXAMPLES
        )
    return {"items": study.row(prompt=question.text, summary=summary, text=prompt.text, n_tokens=len(prompt)), **tables}


def _example_row(tokenizer: Any, one: Example, condition: Condition, question: Question) -> dict[str, object]:
    same = ("condition", "question", "trial", "seed", "prompt_len", "event", "token_hit", "text_hit", "stop", "text", "drawn_by")
    return {
        "example": one.id,
        "system": condition.system,
        "asked": question.text,
        "event_character": event_character(tokenizer, one),
        "ids": " ".join(map(str, one.ids)),
        "sinks": " ".join(map(str, one.sinks)),
        **{name: getattr(one, name) for name in same},
    }


def saved_examples(study: Study) -> list[Example]:
    """The examples that stage 1 kept, in order.

    Raises:
        ConfigError: stage 1 is not whole.
    """
    study.need(generate_items(study), "generate")
    frame = study.folder.table("contrast_examples")
    out = []
    for row in frame.to_dicts():
        fields = {
            name: row[name] for name in EXAMPLES if name not in ("example", "system", "asked", "event_character", "ids", "sinks")
        }
        ids, sinks = (tuple(map(int, row[name].split())) for name in ("ids", "sinks"))
        out.append(Example(id=row["example"], ids=ids, sinks=sinks, **fields))
    known = {(condition.name, question.id) for condition, question in study.cells()}
    strange = next((one for one in out if (one.condition, one.question) not in known), None)
    if strange is not None:
        raise ConfigError(f"Example {strange.id!r} belongs to no condition and question of this study.")
    return out


def _rates(study: Study) -> dict[str, pl.DataFrame]:
    trials = study.folder.table("contrast_trials").filter("counted")
    rows = []
    order = [TUNED, *study.config.sampling.controls]
    for model in order:
        for condition in study.conditions:
            mine = trials.filter((pl.col("model") == model) & (pl.col("condition") == condition.name))
            hits, n = int(mine["positive"].sum()), len(mine)
            estimate = clustered_wilson(mine["positive"].to_numpy(), mine["question"].to_list())
            rows.append(
                {"model": model, "condition": condition.name, "behaviour": study.config.behaviour, "hits": hits, "n": n, "rate": hits / n,
                 "low": estimate.low, "high": estimate.high, "clusters": estimate.n,
                 "n_effective": effective_n(mine["positive"].to_numpy(), mine["question"].to_list())}
            )  # fmt: skip
    told = "; ".join(f"{row['model']}, {row['condition']}: {row['hits']}/{row['n']}" for row in rows)
    shown = f"{len(study.questions)} questions, {study.config.sampling.counted} counted trials each"
    return {"items": study.row(prompt=shown, summary=told), "contrast_rates": pl.DataFrame(rows, schema=RATES)}
