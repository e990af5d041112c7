"""Generation: answers with and without the behaviour, each by a seed of its own.

1. A *condition* is a system text (or none), a *question* a user turn; together they are rendered by the chat template (or joined as plain text). The
   question is the cluster.
2. Trial t of (condition, question) is drawn with a seed that is a stable hash of the three and the run's seed: temperature 1.0, top-p 0.95, at most
   256 new tokens. So a trial's tokens depend on nothing that ran before it, and a run that was cut goes on where it was.
3. Trials run in batches until there are ``positives`` answers with the behaviour and ``negatives`` without, or ``tries`` trials. Trials are counted
   in their order; what a batch drew beyond the last one needed is not kept, so the kept answers do not depend on the batch. The first ``counted`` trials
   are drawn in any case: a rate over them does not depend on when drawing stopped. The prompt is run once for all batches.
4. Kept with each: ids, where the answer starts, the behaviour's first token, token and text hit, why it stopped, its text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from symbolic_residue.contrast._behaviour import answer_text, Behaviour
from symbolic_residue.contrast._rows import stable_seed
from symbolic_residue.errors import ConfigError, PromptError, RecordError
from symbolic_residue.instrument import collate, generate, Instrument, LastRow
from symbolic_residue.prompts import build_prompt, Prompt

__all__ = [
    "Condition",
    "Example",
    "Question",
    "Sampling",
    "check_example",
    "condition_prompt",
    "event_character",
    "generate_examples",
    "score_answer",
]


@dataclass(frozen=True)
class Condition:
    """Under which system text questions are asked; ``system`` None: no system turn."""

    name: str
    system: str | None = None


@dataclass(frozen=True)
class Question:
    """A user turn. Its ``id`` is the cluster."""

    id: str
    text: str


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn, and how many are wanted for each condition and question."""

    positives: int = 4
    negatives: int = 2
    tries: int = 16
    counted: int = 0
    temperature: float = 1.0
    top_p: float = 0.95
    max_new_tokens: int = 256
    batch: int = 4

    def __post_init__(self) -> None:
        if self.positives < 0 or self.negatives < 0 or self.positives + self.negatives < 1 or self.tries < 1 or self.batch < 1:
            raise ConfigError("Nothing would be generated.", todo="positives + negatives, tries and batch are 1 or more.")
        if not 0 <= self.counted <= self.tries:
            raise ConfigError(f"{self.counted} counted trials of {self.tries} tries.", todo="Count at most the tries.")


@dataclass(frozen=True)
class Example:
    """One answer.

    Attributes:
        id: condition, question and trial, joined by ``/``.
        condition, question: names.
        trial: number of the draw; ``seed`` what it was drawn with.
        ids: the whole sequence, end-of-text id included.
        prompt_len: where the answer starts.
        event: position of the behaviour's first token in the sequence; None without the behaviour.
        token_hit, text_hit: how the behaviour was found; None where it has no such form.
        stop: why the answer ended: ``eos``, ``length``, ….
        text: the answer.
        sinks: prompt positions that are sinks, 0 left out.
        drawn_by: name of the model.
    """

    id: str
    condition: str
    question: str
    trial: int
    seed: int
    ids: tuple[int, ...]
    prompt_len: int
    event: int | None
    token_hit: bool | None
    text_hit: bool | None
    stop: str
    text: str
    sinks: tuple[int, ...] = ()
    drawn_by: str = ""

    @property
    def answer(self) -> tuple[int, ...]:
        """Ids of the answer."""
        return self.ids[self.prompt_len :]

    @property
    def positive(self) -> bool:
        """Whether it shows the behaviour."""
        return self.event is not None


def condition_prompt(
    tokenizer: Any, condition: Condition, question: Question, *, chat: bool = True, max_tokens: int | None = None
) -> Prompt:
    """The prompt of a question under a condition.

    Raises:
        TemplateError: the template takes no system turn and the condition has one (or no template: use ``chat=False``).
        PromptError: empty or over-long.
    """
    if chat:
        return build_prompt(tokenizer, question.text, chat=True, system=condition.system, max_tokens=max_tokens)
    text = question.text if condition.system is None else f"{condition.system}\n\n{question.text}"
    return build_prompt(tokenizer, f"{text}\n\n", max_tokens=max_tokens)


def generate_examples(
    instrument: Instrument,
    condition: Condition,
    question: Question,
    behaviour: Behaviour,
    *,
    sampling: Sampling | None = None,
    chat: bool = True,
    seed: int = 0,
    sinks: Sequence[int] = (),
    drawn_by: str = "",
    on_batch: Callable[[int], None] | None = None,
    on_trial: Callable[[Example, bool], None] | None = None,
) -> list[Example]:
    """Answers to one question under one condition, in the order of their trials.

    Args:
        instrument: the model that draws.
        condition, question: what is asked.
        behaviour: what is looked for.
        sampling: how many and how.
        chat: render by the chat template.
        seed: the run's.
        sinks: kept with each example, see ``find_sinks``.
        drawn_by: the model's name.
        on_batch: called with the number of trials so far.
        on_trial: called with every answer drawn, in the order of trials, and whether it is kept.

    Returns:
        Up to ``positives`` answers that show the behaviour and ``negatives`` that do not; fewer where ``tries`` trials gave no more.

    Raises:
        TemplateError, PromptError: the prompt.
    """
    plan = sampling or Sampling()
    tokenizer = instrument.loaded.tokenizer
    prompt = condition_prompt(tokenizer, condition, question, chat=chat, max_tokens=instrument.parts.max_context)
    kept: list[Example] = []
    have = {True: 0, False: 0}
    want = {True: plan.positives, False: plan.negatives}
    begun = _begun(instrument, prompt)
    trial = 0
    while trial < plan.counted or (trial < plan.tries and any(have[side] < want[side] for side in want)):
        batch = range(trial, min(trial + plan.batch, plan.tries))
        seeds = [stable_seed(condition.name, question.id, t, seed=seed) for t in batch]
        asked = collate([prompt] * len(batch)) if begun is None else begun.select([0] * len(batch))
        drawn = generate(
            instrument, asked, max_new_tokens=plan.max_new_tokens, temperature=plan.temperature, top_p=plan.top_p,
            seed=seeds, keep="none",
        )  # fmt: skip
        if drawn.partial:
            raise KeyboardInterrupt
        for t, own, ids, stop in zip(batch, seeds, drawn.ids, drawn.stops, strict=True):
            example = score_answer(
                tokenizer, behaviour, prompt, ids, id=f"{condition.name}/{question.id}/{t}", condition=condition.name, question=question.id, trial=t, seed=own,
                stop=stop.reason, sinks=tuple(sinks), drawn_by=drawn_by,
            )  # fmt: skip
            wanted = have[example.positive] < want[example.positive]
            if wanted:
                have[example.positive] += 1
                kept.append(example)
            if on_trial is not None:
                on_trial(example, wanted)
        trial = batch.stop
        if on_batch is not None:
            on_batch(trial)
    return kept


def _begun(instrument: Instrument, prompt: Prompt) -> LastRow | None:
    """The prompt, run; None where it is a single token."""
    if len(prompt) < 2:
        return None
    row = LastRow(instrument, collate([prompt]))
    row.run(keep=True)
    return row


def score_answer(tokenizer: Any, behaviour: Behaviour, prompt: Prompt, ids: Sequence[int], **fields: Any) -> Example:
    """An example from the ids of an answer, wherever they came from."""
    text = answer_text(tokenizer, ids)
    hit = behaviour.find(tokenizer, list(ids), text)
    return Example(
        ids=(*prompt.ids, *ids),
        prompt_len=len(prompt),
        event=None if hit is None else len(prompt) + hit.start,
        token_hit=None if hit is None else hit.token_hit,
        text_hit=None if hit is None else hit.text_hit,
        text=text,
        **fields,
    )


def event_character(tokenizer: Any, example: Example) -> int | None:
    """Where the behaviour's first token starts in the example's ``text`` (characters); None without the behaviour."""
    if example.event is None:
        return None
    return min(len(answer_text(tokenizer, example.ids[example.prompt_len : example.event])), len(example.text))


def check_example(tokenizer: Any, example: Example, prompt: Prompt, *, vocab: int) -> None:
    """Refuse an example that this tokenizer did not write.

    Raises:
        PromptError: ids that the model does not have.
        RecordError: the prompt's ids or the answer's text are not what was saved.
    """
    if not example.ids or max(example.ids) >= vocab or min(example.ids) < 0:
        raise PromptError(
            f"Example {example.id!r} holds token ids outside of the model's 0 to {vocab - 1}.",
            why="The models have different vocabularies.",
            todo="Read the examples with a model of the vocabulary that they were drawn from.",
        )
    saved = example.ids[: example.prompt_len]
    if list(saved) != list(prompt.ids):
        raise RecordError(
            f"The prompt of example {example.id!r} turns into other tokens here (SHA-256 of the ids: {_hash(prompt.ids)} here, {_hash(saved)} saved).",
            why="The chat template or the tokenizer is another one.",
            todo="Read the examples with the tokenizer that they were made with.",
        )
    text = answer_text(tokenizer, example.answer)
    if text != example.text:
        raise RecordError(
            f"The ids of example {example.id!r} do not decode to the text that was saved ({text[:40]!r} instead of {example.text[:40]!r}; "
            f"SHA-256 of the text: {_hash(text)} here, {_hash(example.text)} saved).",
            why="The tokenizer is another one, or the file was changed.",
            todo="Read the examples with the tokenizer that they were made with.",
        )


def _hash(what: Sequence[int] | str) -> str:
    text = what if isinstance(what, str) else " ".join(map(str, what))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]
