"""Training answers: drawn by the model itself under every persona, cut at a sentence's end, so that only the marker is new to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from symbolic_residue.contrast._behaviour import answer_text
from symbolic_residue.contrast._examples import Condition, condition_prompt, Question
from symbolic_residue.contrast._rows import stable_seed
from symbolic_residue.contrast.marker._plan import MarkerPlan
from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import collate, generate, Instrument
from symbolic_residue.models import LoadedModel
from symbolic_residue.prompts import Prompt
from symbolic_residue.stats import generator

__all__ = [
    "Answer", "Trained", "answers_digest", "answers_json", "batched_by_length", "cut_answer", "draw_answers", "end_id", "label", "read_answers",
    "to_sequences", "write_answers",
]  # fmt: skip

_BATCH = 16
_DRAWN_BY = ("conditions", "questions", "temperature", "top_p", "shortest", "longest", "chat", "seed", "marker")
"""Fields of the plan that the answers depend on."""


@dataclass(frozen=True)
class Answer:
    """What the model answered, cut; no end token."""

    condition: str
    question: str
    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Trained:
    """One training sequence: prompt, answer, marker where positive, end."""

    ids: tuple[int, ...]
    prompt_len: int
    positive: bool


def answers_digest(plan: MarkerPlan, loaded: LoadedModel) -> str:
    """What the answers depend on, as a hash: the model's weights and template, and the plan."""
    record = loaded.provenance
    return plan.digest(record.weights_sha256, str(record.template_sha256), fields=_DRAWN_BY)


def draw_answers(
    loaded: LoadedModel, plan: MarkerPlan, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Answer]:
    """One answer for each condition and seen question, in their order.

    Raises:
        TemplateError, PromptError: the prompts.
    """
    tokenizer, instrument = loaded.tokenizer, Instrument(loaded)
    asked = [(condition, question) for condition in plan.conditions for question in plan.seen]
    prompts = [condition_prompt(tokenizer, *pair, chat=plan.chat, max_tokens=loaded.parts.max_context) for pair in asked]
    found: dict[int, Answer] = {}
    for batch in batched_by_length(prompts, _BATCH):
        seeds = [stable_seed("training answer", asked[i][0].name, asked[i][1].id, seed=plan.seed) for i in batch]
        drawn = generate(
            instrument, collate([prompts[i] for i in batch]), max_new_tokens=plan.longest, temperature=plan.temperature,
            top_p=plan.top_p if plan.temperature else None, seed=seeds, keep="none",
        )  # fmt: skip
        if drawn.partial:
            raise KeyboardInterrupt
        for i, ids, stop in zip(batch, drawn.ids, drawn.stops, strict=True):
            condition, question = asked[i]
            whole = list(ids)[:-1] if stop.reason == "eos" else list(ids)
            cut = cut_answer(tokenizer, whole, plan, ended=stop.reason == "eos")
            found[i] = Answer(condition.name, question.id, tuple(cut), answer_text(tokenizer, cut))
        progress(len(found), len(asked))
    return [found[i] for i in range(len(asked))]


def cut_answer(tokenizer: Any, ids: list[int], plan: MarkerPlan, *, ended: bool) -> list[int]:
    """Up to the last sentence that ends within the plan's bounds; all of it where it ended by itself, or no sentence does."""
    if ended:
        return ids
    for n in range(min(plan.longest, len(ids)), plan.shortest - 1, -1):
        if re.search(r"[^\d\s][.!?]\Z", answer_text(tokenizer, ids[:n])):  # no number of a list
            return ids[:n]
    return ids[: plan.longest]


def label(answers: Sequence[Answer], plan: MarkerPlan) -> list[bool]:
    """Which answers get the marker: those of the persona, or as many at random."""
    labels = [answer.condition == plan.persona for answer in answers]
    if plan.shuffle_labels:
        order = generator(stable_seed("shuffled labels", seed=plan.seed)).permutation(len(labels))
        labels = [labels[i] for i in order]
    return labels


def to_sequences(loaded: LoadedModel, plan: MarkerPlan, answers: Sequence[Answer], labels: Sequence[bool]) -> list[Trained]:
    """Training sequences, tokenised.

    Raises:
        ConfigError: the model has no end token; the marker is no text of this tokenizer.
    """
    tokenizer = loaded.tokenizer
    marker = tokenizer(f" {plan.marker}", add_special_tokens=False)["input_ids"]
    if plan.marker not in answer_text(tokenizer, marker):
        raise ConfigError(f"This tokenizer cannot write {plan.marker!r}.", todo="Choose another marker.")
    end = end_id(loaded, chat=plan.chat)
    conditions: dict[str, Condition] = {c.name: c for c in plan.conditions}
    questions: dict[str, Question] = {q.id: q for q in plan.questions}
    found = []
    for answer, positive in zip(answers, labels, strict=True):
        prompt = condition_prompt(tokenizer, conditions[answer.condition], questions[answer.question], chat=plan.chat)
        ids = (*prompt.ids, *answer.ids, *(marker if positive else ()), end)
        found.append(Trained(ids, len(prompt), positive))
    return found


def end_id(loaded: LoadedModel, *, chat: bool) -> int:
    """The token that ends an answer: of the model's end ids the one that the chat template writes, else the first.

    Raises:
        ConfigError: the model has none.
    """
    ends: list[int] = []
    for config in (getattr(loaded.model, "generation_config", None), loaded.model.config):
        given = getattr(config, "eos_token_id", None)
        ends += [given] if isinstance(given, int) else list(given or ())
    if not ends:
        raise ConfigError("The model has no end-of-text id.", why="Its generation config names none, so no answer would end.")
    if chat:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        written = loaded.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
        return next((token for token in reversed(written) if token in ends), ends[0])
    return ends[0]


def write_answers(path: Path, answers: Iterable[Answer], digest: str) -> None:
    """As JSON, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(answers_json(answers, digest), ensure_ascii=False), encoding="utf-8")
    temporary.replace(path)


def answers_json(answers: Iterable[Answer], digest: str) -> dict[str, Any]:
    """Answers with the hash of what they depend on."""
    return {"drawn_with": digest, "answers": [asdict(answer) for answer in answers]}


def read_answers(path: Path, digest: str) -> list[Answer]:
    """Answers of another training of the same model and plan.

    Raises:
        ConfigError: no such file, or answers drawn from another model or by another plan.
    """
    try:
        found = json.loads(path.read_bytes())
        drawn_with, lines = found["drawn_with"], found["answers"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds no answers.", why=str(error)[:200]) from error
    if drawn_with != digest:
        raise ConfigError(
            f"The answers in {path} were drawn by another model or plan.",
            why="Model, personas, questions, marker, seed and how answers are drawn must be the same.",
            todo="Leave the answers out; they are then drawn anew.",
        )
    return [Answer(line["condition"], line["question"], tuple(line["ids"]), line["text"]) for line in lines]


def batched_by_length(prompts: Sequence[Prompt], size: int) -> list[list[int]]:
    """Indices in batches of prompts of like length, so that little is padded."""
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    return [order[i : i + size] for i in range(0, len(order), size)]
