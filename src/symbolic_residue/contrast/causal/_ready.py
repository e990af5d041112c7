"""Examples made ready: checked, cut at the row that emits, in batches of similar length.

1. An example is cut before the behaviour's first token, ``ids[:event]``: in a causal model no later token changes the row that emits, and that row is then the
   last one. Its logits choose ``ids[event]``.
2. The quantity throughout is log P of that first token, in nats: the decision to show the behaviour. What follows it is read off the tokens before, and
   is not asked.
3. Tuned and base have one architecture and one vocabulary, or nothing is patched.
4. Control rows: up to ``n`` rows of the same answer drawn as stratum C1 is, five or more tokens away from its start and from the event; the same token
   is asked of them. An answer too short for any has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from symbolic_residue.contrast._examples import Example
from symbolic_residue.contrast._rows import choose_rows, Rows
from symbolic_residue.contrast._segment import BUCKETS
from symbolic_residue.errors import ConfigError, InstrumentError, PromptError, RecordError
from symbolic_residue.instrument import Batch, collate, Edit, Instrument

__all__ = ["Group", "batches", "check_examples", "check_places", "control_rows", "fields", "log_probabilities", "log_probability"]

EMITTING = "emitting row"


@dataclass(frozen=True)
class Group:
    """Examples that run together; the emitting row of each is the last.

    Attributes:
        at: their places in the list given.
        batch: left-padded ids before the event.
        tokens: the behaviour's first token of each.
    """

    at: tuple[int, ...]
    batch: Batch
    tokens: tuple[int, ...]


def check_examples(examples: Sequence[Example], *instruments: Instrument) -> None:
    """Refuse examples that cannot be asked.

    Raises:
        RecordError: none, one without the behaviour, one that stands twice, or a behaviour at the very first token.
        PromptError: ids that a model does not have.
        InstrumentError: more tokens than a model's context.
    """
    if not examples:
        raise RecordError("There are no examples.", todo="Give answers that show the behaviour.")
    seen: set[tuple[str, str]] = set()
    for example in examples:
        if example.event is None:
            raise RecordError(
                f"Example {example.id!r} does not show the behaviour.",
                why="There is no row that emits it.",
                todo="Give the positive examples: [e for e in examples if e.positive].",
            )
        if not 1 <= example.event < len(example.ids):
            raise RecordError(f"The behaviour of example {example.id!r} is at token {example.event} of {len(example.ids)}.")
        if (example.condition, example.id) in seen:
            raise RecordError(f"Example {example.id!r} is given twice.", why="It would count twice.")
        seen.add((example.condition, example.id))
        for instrument in instruments:
            vocab, limit = instrument.parts.vocab_size, instrument.parts.max_context
            if max(example.ids) >= vocab or min(example.ids) < 0:
                raise PromptError(f"Example {example.id!r} holds token ids outside of the model's 0 to {vocab - 1}.")
            if limit is not None and example.event > limit:
                raise InstrumentError(
                    f"Example {example.id!r} has {example.event} tokens before the behaviour; the context is {limit}."
                )


def check_places(places: Sequence[str], labels: Sequence[Sequence[str]]) -> None:
    """Refuse names that are no bucket. A bucket that no example has (no system turn) is missing, not a mistake.

    Raises:
        ConfigError: a name that is neither in ``BUCKETS`` nor among the labels.
    """
    known = {*BUCKETS, *(name for own in labels for name in own)}
    if strange := [place for place in places if place not in known]:
        raise ConfigError(f"{strange[0]!r} is no bucket of these examples.", todo=f"There are: {', '.join(sorted(known))}.")


def batches(examples: Sequence[Example], size: int) -> Iterator[Group]:
    """Groups of at most ``size`` examples, the shortest first."""
    order = sorted(range(len(examples)), key=lambda i: (examples[i].event or 0, i))
    for start in range(0, len(order), size):
        at = tuple(order[start : start + size])
        batch = collate([list(examples[i].ids[: examples[i].event]) for i in at])
        yield Group(at, batch, tuple(first_token(examples[i]) for i in at))


def first_token(example: Example) -> int:
    """The behaviour's first token."""
    assert example.event is not None
    return example.ids[example.event]


def fields(example: Example) -> dict[str, str]:
    """The example's columns in the tables."""
    return {"condition": example.condition, "example": example.id, "cluster": example.question}


def log_probability(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """``log P(token)`` in nats, float64: ``logits [batch, vocab]``, a token each → ``[batch]``."""
    log_p = torch.log_softmax(logits.double(), -1)
    return log_p[torch.arange(len(log_p), device=log_p.device), torch.tensor(tokens, device=log_p.device)].cpu()


def log_probabilities(
    instrument: Instrument, examples: Sequence[Example], *, batch: int = 8, edits: Sequence[Edit] = ()
) -> list[float]:
    """log P of the behaviour's first token at the emitting row of each example, nats.

    Args:
        instrument: the model.
        examples: with the behaviour.
        batch: examples a forward.
        edits: the same for all; rows count in the padded sequence (the emitting row is −1).
    """
    out = [0.0] * len(examples)
    for group in batches(examples, batch):
        trace = instrument.run(group.batch, edits=edits, keep_logits=1)
        found = log_probability(trace["logits"][:, -1], group.tokens)
        for i, value in zip(group.at, found.tolist(), strict=True):
            out[i] = value
    return out


def control_rows(example: Example, *, n: int = 5, seed: int = 0) -> list[int]:
    """Rows (not the emitting one) that emit other tokens of the same answer, drawn by the example's name and the seed."""
    assert example.event is not None
    rows = choose_rows(
        example.ids, example.prompt_len, example.event, example=example.id, rare=(), counts={}, special=(), marker=(first_token(example),), seed=seed,
        rows=Rows(n=n, offsets=(-1,)),
    )  # fmt: skip
    return sorted(row.row for row in rows if row.stratum == "C1")
