"""Stages 2 and 3: the rows of the saved answers, read by the tuned model and by every reference, on the same ids.

1. Rows are chosen when all answers of stage 1 are there, since what is a rare token is counted over all of them. The choice depends on the saved answers
   and the seed alone, so every model reads the same rows.
2. C4 are the ends of answers without the behaviour that ended by themselves; those that were cut have none and are counted.
3. Before a model reads an example it must be its tokenizer's own: the prompt turns into the saved ids, and the answer's ids decode to the saved text.
   A reference with a tokenizer of its own must name every id alike. A reference of kind ``system`` reads the same answer after another prompt: its rows
   are those of the same answer tokens.
4. One item is one question under one condition and model. The table holds means over heads, and where asked single heads of the event's and C1's rows
   at offset −1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import polars as pl

from symbolic_residue.contrast._behaviour import Behaviour, TextBehaviour, TokenBehaviour
from symbolic_residue.contrast._config import TUNED
from symbolic_residue.contrast._examples import check_example, Condition, condition_prompt, Example, Question
from symbolic_residue.contrast._read import read_examples, Reading, to_records
from symbolic_residue.contrast._records import EVENT
from symbolic_residue.contrast._rows import choose_rows, end_rows, rare_tokens, Row
from symbolic_residue.contrast._segment import segment
from symbolic_residue.contrast.study._generate import saved_examples
from symbolic_residue.contrast.study._study import Study
from symbolic_residue.errors import RecordError
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import Prompt

__all__ = ["Plan", "check_same_names", "force_feed_stage", "read_items", "read_stage", "under_other_prompt"]


@dataclass
class Plan:
    """Which rows of which example are read.

    Attributes:
        examples: all that stage 1 kept.
        rows: of each.
    """

    examples: list[Example]
    rows: list[list[Row]]

    @classmethod
    def made(cls, study: Study, tokenizer: Any, ends: Sequence[int]) -> Plan:
        """From the saved answers."""
        examples = saved_examples(study)
        rare, counts = rare_tokens(one.answer for one in examples)
        special = {*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special), *ends}
        config, behaviour = study.config, study.behaviour(ends)
        own, shape = _pieces(tokenizer, behaviour), config.rows.made()
        rows = []
        for one in examples:
            if one.event is None:
                rows.append(end_rows(one.ids, one.prompt_len, ends, shape))
                continue
            rows.append(
                choose_rows(
                    one.ids, one.prompt_len, one.event, example=one.id, rare=rare, counts=counts, special=special,
                    marker=own | {one.ids[one.event]}, seed=config.seed, rows=shape,
                )
            )  # fmt: skip
        return cls(examples, rows)

    @cached_property
    def by_cell(self) -> dict[tuple[str, str], list[int]]:
        """Numbers of the examples of each condition and question."""
        found: dict[tuple[str, str], list[int]] = {}
        for i, one in enumerate(self.examples):
            found.setdefault((one.condition, one.question), []).append(i)
        return found


def read_items(study: Study, model: str) -> list[str]:
    """Ids of the items in which a model reads, in order."""
    return [f"read-{model}/{condition.name}/{question.id}" for condition, question in study.cells()]


def read_stage(study: Study) -> None:
    """The tuned model reads its own answers."""
    _read_by(study, TUNED, "read")


def force_feed_stage(study: Study) -> None:
    """Every reference reads them.

    Raises:
        RecordError, PromptError: a reference with another tokenizer or vocabulary.
    """
    for name in study.config.references:
        _read_by(study, name, "force-feed")


def _read_by(study: Study, model: str, stage: str) -> None:
    items = read_items(study, model)
    if not study.pending(items):
        return
    plan = Plan.made(study, study.models.tokenizer, study.models.ends)
    cells = dict(zip(items, study.cells(), strict=True))
    study.work(stage, items, lambda item: _item(study, plan, model, *cells[item]))


def _item(study: Study, plan: Plan, model: str, condition: Condition, question: Question) -> dict[str, pl.DataFrame]:
    config, tokenizer = study.config, study.models.tokenizer
    at = plan.by_cell.get((condition.name, question.id), [])
    instrument = study.models.get(model)
    prompt = condition_prompt(tokenizer, condition, question, chat=config.chat)
    examples = [plan.examples[i] for i in at]
    for one in examples:
        check_example(tokenizer, one, prompt, vocab=instrument.parts.vocab_size)
        check_same_names(tokenizer, instrument, one, model)
    rows = [plan.rows[i] for i in at]
    other = None if model == TUNED else config.references[model].system
    if other is not None:
        prompt = condition_prompt(tokenizer, Condition(condition.name, other), question, chat=config.chat)
        moved = [under_other_prompt(one, prompt, own) for one, own in zip(examples, rows, strict=True)]
        examples, rows = [one for one, _ in moved], [own for _, own in moved]
    buckets = [
        segment(tokenizer, prompt, len(one.answer), sinks=one.sinks, merged_newlines=config.readout.merged_newlines)
        for one in examples
    ]
    readings = read_examples(instrument, examples, buckets, rows, batch=config.readout.batch, side=config.readout.side)
    frames = [to_records(readings, model)]
    if config.readout.heads:
        frames.append(to_records([one for reading in readings if (one := _headline(reading)) is not None], model, heads=True))
    events = sum(one.positive for one in examples)
    cut = sum(not one.positive and not own for one, own in zip(examples, rows, strict=True))
    summary = f"{len(readings)} answers read, {events} with the behaviour; {cut} without it were cut and have no end row"
    return {
        "items": study.row(prompt=question.text, summary=summary, n_tokens=len(prompt)),
        "contrast_records": pl.concat(frames),
    }


def under_other_prompt(example: Example, prompt: Prompt, rows: Sequence[Row]) -> tuple[Example, list[Row]]:
    """The same answer after another prompt, and the rows of the same answer tokens. The other prompt's sinks are position 0 alone."""
    shift = len(prompt) - example.prompt_len
    moved = replace(
        example,
        ids=(*prompt.ids, *example.answer),
        prompt_len=len(prompt),
        event=None if example.event is None else example.event + shift,
        sinks=(),
    )
    return moved, [replace(row, row=row.row + shift) for row in rows]


def check_same_names(tokenizer: Any, instrument: Instrument, example: Example, model: str) -> None:
    """Refuse a reference whose tokenizer calls these ids otherwise.

    Raises:
        RecordError: it does, with the hashes of both names.
    """
    other = instrument.loaded.tokenizer
    if other is tokenizer:
        return
    mine, theirs = (one.convert_ids_to_tokens(list(example.ids)) for one in (tokenizer, other))
    if mine == theirs:
        return
    at = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
    raise RecordError(
        f"Id {example.ids[at]} is {mine[at]!r} to the tuned model's tokenizer and {theirs[at]!r} to that of {model!r} "
        f"(SHA-256 of the tokens of {example.id!r}: {_hash(mine)} and {_hash(theirs)}).",
        why="The same ids are another text to a model with another tokenizer.",
        todo="Compare with a model of the same tokenizer.",
    )


def _hash(tokens: Sequence[Any]) -> str:
    return hashlib.sha256("\x1f".join(map(str, tokens)).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _headline(reading: Reading) -> Reading | None:
    """The reading's rows of the event and C1 at offset −1; None where it has none."""
    at = [i for i, row in enumerate(reading.rows) if row.stratum in (EVENT, "C1") and row.query_offset == -1]
    if not at:
        return None
    return replace(reading, rows=tuple(reading.rows[i] for i in at), masses={name: one[at] for name, one in reading.masses.items()})


def _pieces(tokenizer: Any, behaviour: Behaviour) -> set[int]:
    """Tokens of the behaviour's own text."""
    if isinstance(behaviour, TokenBehaviour):
        return {*behaviour.ids}
    if isinstance(behaviour, TextBehaviour):
        return {
            token
            for form in (behaviour.text, f" {behaviour.text}")
            for token in tokenizer(form, add_special_tokens=False)["input_ids"]
        }
    return set()
