"""What a generation leaves behind: a step for each new token, and all steps joined.

1. A step's numbers are ``[batch]``; its trace has one row. Of a sequence that has ended, every number is NaN (ids and ``argmax`` −1) and its row is invalid.
2. Joining puts the rows of all steps side by side: row ``s`` is the one that chose token ``s``. Whole attention rows grow by one key a step; a key that
   did not exist yet has weight 0, as in a forward over the final sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from symbolic_residue.errors import ReadError
from symbolic_residue.instrument._trace import Trace
from symbolic_residue.instrument.attention import AttentionTable
from symbolic_residue.types import Point

__all__ = ["KEEPS", "Collector", "Generation", "Keep", "Step", "Stop", "continuation", "frozen", "last_row"]

Keep = Literal["all", "last", "none"]
KEEPS: tuple[Keep, ...] = get_args(Keep)

_ANCHOR = 8
"""Tokens of the prompt that are decoded along, so that a new text keeps its leading space."""


@dataclass(frozen=True)
class Stop:
    """Why a sequence ended.

    Attributes:
        reason: ``eos``; ``stop text``; ``length`` (max_new_tokens); ``context full`` (the sequence holds as many tokens as the model's context);
            ``interrupted`` (it was still running).
        token: the id, for ``eos``.
        text: which text, for ``stop text``.
    """

    reason: Literal["eos", "stop text", "length", "context full", "interrupted"]
    token: int | None = None
    text: str | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """One new token of each sequence.

    Attributes:
        number: of the step, from 0.
        ids: ``[batch]``: the new tokens; −1 where the sequence had ended before.
        running: ``[batch]`` bool: which sequences got a token in this step.
        stops: why each sequence has ended by now (this token included); None while it runs on.
        log_probs: ``[batch]`` float64, nats: ``ln softmax(logits)`` at the chosen token, without temperature; NaN where not running.
        entropy: ``[batch]`` float64, nats: ``−Σ p ln p`` of the next-token distribution that the token was chosen from, without temperature.
        trace: readouts of the forward that chose the token: tensors ``[batch, 1, …]``, logits ``[batch, 1, vocab]``, an attention table of one row (step 0 with
            ``prompt_rows``: all rows of the prompt).
    """

    number: int
    ids: Tensor
    running: Tensor
    stops: tuple[Stop | None, ...]
    log_probs: Tensor
    entropy: Tensor
    trace: Trace


@dataclass(eq=False)
class Generation:
    """All steps, joined.

    Attributes:
        prompts: token ids of each prompt, without padding.
        ids: new token ids of each sequence, the stop id included.
        texts: the new texts, without the stop id's; None without a tokenizer.
        stops: why each sequence ended.
        log_probs: ``[batch, step]`` float64, nats, of the chosen tokens under the model's distribution without temperature; NaN after the end.
        entropy: ``[batch, step]`` float64, nats, of the next-token distributions; NaN after the end.
        seeds: what each sequence was drawn with; None where nothing was drawn.
        tensors: point → ``[batch, step, …]``; NaN after the end.
        attention: statistics ``[layer, batch, head, step]`` (``mass`` with a last axis ``region``, ``weights`` with a last axis ``key``); rows are
            positions in the padded sequence, ``valid [batch, step]``. None when nothing was read or kept.
        prompt: the prefill's trace with all rows of the prompt, where asked for.
        partial: whether it was interrupted.
    """

    prompts: list[list[int]]
    ids: list[list[int]]
    texts: list[str] | None
    stops: tuple[Stop, ...]
    log_probs: Tensor
    entropy: Tensor
    seeds: tuple[int, ...] | None = None
    tensors: dict[Point, Tensor] = field(default_factory=dict)
    attention: AttentionTable | None = None
    prompt: Trace | None = None
    partial: bool = False

    def __getitem__(self, point: str | Point) -> Tensor:
        return Trace(tensors=self.tensors)[point]

    def sequences(self) -> list[list[int]]:
        """Prompt and new tokens of each sequence."""
        return [[*prompt, *new] for prompt, new in zip(self.prompts, self.ids, strict=True)]


class Collector:
    """Gathers steps into a generation.

    Args:
        prompts: token ids of each prompt.
        tokenizer: for the texts, or None.
        seeds: of the sequences.
        keep: readouts of which steps.
        prompt_rows: whether the first step's trace holds all rows of the prompt.
        points: the points that were read.
    """

    def __init__(
        self,
        prompts: list[list[int]],
        tokenizer: Any,
        seeds: tuple[int, ...] | None,
        keep: Keep,
        prompt_rows: bool,
        points: Sequence[Point],
    ) -> None:
        self.prompts, self.tokenizer, self.seeds, self.keep, self.prompt_rows = prompts, tokenizer, seeds, keep, prompt_rows
        self.logits = Point("logits") in points
        self.steps: list[Step] = []
        """Without their traces."""
        self.traces: list[Trace] = []
        self.prompt: Trace | None = None

    def add(self, step: Step) -> None:
        """One more step."""
        trace = step.trace
        if self.prompt_rows and step.number == 0:
            self.prompt, trace = trace, last_row(trace)
        self.steps.append(replace(step, trace=Trace()))
        if self.keep == "none":
            return
        if self.keep == "last":
            self.traces.clear()
        if self.logits and trace.logits is not None:
            trace = replace(trace, tensors=trace.tensors | {Point("logits"): trace.logits})
        self.traces.append(replace(trace, logits=None))

    def finish(self, partial: bool = False) -> Generation:
        """Join what there is."""
        ids: list[list[int]] = [[] for _ in self.prompts]
        for step in self.steps:
            for new, token in zip(ids, step.ids.tolist(), strict=True):
                if token >= 0:
                    new.append(token)
        stops = tuple(stop or Stop("interrupted") for stop in self.steps[-1].stops)
        texts = None
        if self.tokenizer is not None:
            said = [new[:-1] if stop.reason == "eos" else new for new, stop in zip(ids, stops, strict=True)]
            texts = [continuation(self.tokenizer, prompt, new) for prompt, new in zip(self.prompts, said, strict=True)]
        tables = [trace.attention for trace in self.traces if trace.attention is not None]
        points = self.traces[0].tensors if self.traces else {}
        return Generation(
            self.prompts,
            ids,
            texts,
            stops,
            torch.stack([step.log_probs for step in self.steps], 1),
            torch.stack([step.entropy for step in self.steps], 1),
            self.seeds,
            {point: torch.cat([trace.tensors[point] for trace in self.traces], 1) for point in points},
            _join(tables) if tables else None,
            self.prompt,
            partial,
        )


def continuation(tokenizer: Any, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The new tokens' text as it stands after the prompt (a leading space is kept, a character begun in the prompt belongs to the new text)."""

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    if not new:
        return ""
    anchor = prompt[-_ANCHOR:]
    before, whole = decode(anchor).rstrip("�"), decode([*anchor, *new])
    return whole[len(before) :] if whole.startswith(before) else decode(new)


def last_row(trace: Trace) -> Trace:
    """The trace's last row; copies, so that the other rows are freed."""
    table = trace.attention
    if table is not None and len(table.rows) > 1:
        values = {name: value[:, :, :, -1:].clone() for name, value in table.values.items()}
        table = replace(table, rows=table.rows[-1:], valid=table.valid[:, -1:], values=values)
    return replace(
        trace,
        tensors={point: t if t.shape[1] == 1 else t[:, -1:].clone() for point, t in trace.tensors.items()},
        attention=table,
        logits=None if trace.logits is None else trace.logits[:, -1:],
    )


def frozen(trace: Trace, running: Sequence[bool]) -> Trace:
    """The trace with the rows of ended sequences made NaN and invalid."""
    if all(running):
        return trace
    ended = ~torch.tensor(running)

    def hide(tensor: Tensor, axis: int, fill: float) -> Tensor:
        shape = [1] * tensor.dim()
        shape[axis] = -1
        return tensor.masked_fill(ended.to(tensor.device).view(shape), fill)

    nan = float("nan")
    table = trace.attention
    if table is not None:
        values = {name: hide(value, 1, -1 if name == "argmax" else nan) for name, value in table.values.items()}
        table = replace(table, valid=table.valid & ~ended.to(table.valid.device)[:, None], values=values)
    return replace(
        trace,
        tensors={point: hide(t, 0, nan) for point, t in trace.tensors.items()},
        logits=None if trace.logits is None else hide(trace.logits, 0, nan),
        attention=table,
    )


def _join(tables: list[AttentionTable]) -> AttentionTable:
    """Tables of one row each, side by side."""
    first = tables[0]
    if any((t.layers, t.regions, t.values.keys()) != (first.layers, first.regions, first.values.keys()) for t in tables):
        raise ReadError("The steps of a generation read different layers, regions or statistics.")
    valid = torch.cat([table.valid for table in tables], 1)
    values = {}
    for name in first.values:
        parts = [table.values[name] for table in tables]
        if name == "weights":
            keys = max(part.shape[-1] for part in parts)
            parts = [F.pad(part, (0, keys - part.shape[-1])) for part in parts]
        values[name] = torch.cat(parts, 3)
        if name == "weights":  # rows that do not exist have no weight at later keys either
            values[name] = values[name].masked_fill(~valid.to(values[name].device)[None, :, None, :, None], float("nan"))
    backends = [name for table in tables for name in table.backend.split("+")]
    return AttentionTable(
        first.layers,
        torch.cat([table.rows for table in tables]),
        first.regions,
        valid,
        "+".join(dict.fromkeys(backends)),
        values,
        "+".join(dict.fromkeys(table.mode for table in tables)),
    )
