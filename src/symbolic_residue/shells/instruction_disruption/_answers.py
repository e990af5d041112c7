"""Answers of many frames at once: beginnings run once, greedy tokens side by side, attention to each instruction read as the tokens come.

1. All sequences (the frames, and what the attribution asks of them) go into one batch; a frame's beginning, the same for all its questions, runs once
   (``LastRow(shared=…)``). Their last rows run once (``plain``): the frames' answers go on from there, the preferences are read there.
2. A sequence ends at the model's end token, at the end of a line that holds text, or at the length limit; the loop ends when all have.
3. As the tokens come, the attention mass on each instruction's block is read, mean over heads, in frames with two instructions; row ``s`` is the one that chose
   token ``s``. Position 0 (the sink) is a region of its own. In frames that are shown, so is the logit lens at the row that chose the first token with a
   letter or digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from symbolic_residue.instrument import AttentionRead, collate, Instrument, LastRow, Trace
from symbolic_residue.prompts import Regions
from symbolic_residue.readout import lens_logits, lens_reads
from symbolic_residue.shells._rows import LastRows
from symbolic_residue.shells.instruction_disruption._frames import Frame
from symbolic_residue.types import Span

__all__ = ["ATTENTION", "Answers", "Reading", "SharedRows", "Shown", "answer_frames", "blocks"]

Array = NDArray[np.float64]
_TOKENS_AT_ONCE = 16384
_SHRINK = 0.7
"""The batch is cut down where no more than this share of it runs on."""


class SharedRows(LastRows):
    """Last rows of sequences whose beginnings run once.

    Args:
        instrument: the model's instrument.
        sequences: token ids.
        shared: how many first tokens of each may be shared.
        hidden: a span of the shared tokens that later rows do not see, or None; one a sequence.
        regions: of each sequence, for attention.
    """

    def __init__(
        self,
        instrument: Instrument,
        sequences: Sequence[Sequence[int]],
        shared: Sequence[int],
        hidden: Sequence[tuple[int, int] | None] | None = None,
        regions: Sequence[Regions] | None = None,
    ) -> None:
        self.instrument = instrument
        self.prompts = []
        hidden = hidden if hidden is not None else [None] * len(sequences)
        size = max(1, _TOKENS_AT_ONCE // max(map(len, sequences)))
        parts = [range(i, min(i + size, len(sequences))) for i in range(0, len(sequences), size)]
        self.pieces = [
            replace(
                collate([list(sequences[i]) for i in part]), regions=None if regions is None else tuple(regions[i] for i in part)
            )
            for part in parts
        ]
        self.rows = [
            LastRow(instrument, batch, shared=[shared[i] for i in part], hidden=[hidden[i] for i in part])
            for batch, part in zip(self.pieces, parts, strict=True)
        ]
        self.parts = [list(part) for part in parts]
        """Which sequences each piece holds."""

    def select(self, wanted: Sequence[int]) -> SharedRows:
        """Some of the sequences (ascending numbers), without running anything again."""
        out = object.__new__(SharedRows)
        out.instrument, out.prompts, out.pieces, out.rows, out.parts = self.instrument, [], [], [], []
        plain: list[Trace] = []
        for n, (row, part) in enumerate(zip(self.rows, self.parts, strict=True)):
            at = [part.index(i) for i in wanted if i in part]
            if at:
                assert row is not None
                picked = row.select(at)
                first = sum(map(len, out.parts))
                if self._plain is not None:
                    plain.append(self._plain[n].select(at))
                out.rows.append(picked)
                out.pieces.append(picked.batch)
                out.parts.append(list(range(first, first + len(at))))
        out._plain = plain if self._plain is not None else None
        return out


@dataclass
class Answers:
    """What the model answered.

    Attributes:
        texts: one a frame: the first line with text, stripped; ``ids`` the new tokens.
        ended: whether it ended by itself (not at the length limit or a full context).
    """

    texts: list[str] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)


@dataclass
class Reading:
    """What was read along the answers of some frames.

    Attributes:
        mass: frame's number → instruction's name → ``[step, layer]``: attention mass, mean over heads.
        layers: the layers along that axis.
        depth_tokens: frame's number → ``[depth, 3]`` of the frames shown: best token's id, its probability, and the entropy (nats), at the row that chose
            the first token with a letter or digit; ``chosen`` the probability of that token, ``[depth]``; ``content`` its step.
        backend, mode: what computed the attention.
    """

    mass: dict[int, dict[str, Array]] = field(default_factory=dict)
    layers: tuple[int, ...] = ()
    depth_tokens: dict[int, Array] = field(default_factory=dict)
    chosen: dict[int, Array] = field(default_factory=dict)
    content: dict[int, int] = field(default_factory=dict)
    backend: str = ""
    mode: str = ""


class Shown:
    """Collects what is read while answers come.

    Args:
        instrument: the model's instrument.
        tokenizer: its tokenizer.
        frames: those that are answered.
        wanted: numbers of those whose attention is kept; ``shown`` of those whose lens is.
    """

    def __init__(
        self, instrument: Instrument, tokenizer: Any, frames: Sequence[Frame], wanted: Sequence[int], shown: Sequence[int]
    ) -> None:
        self.instrument, self.tokenizer, self.frames = instrument, tokenizer, frames
        self.wanted, self.shown = set(wanted), set(shown)
        self._steps: dict[int, dict[str, list[Array]]] = {i: {name: [] for name in frames[i].spans} for i in wanted}
        self.reading = Reading()

    def take(self, trace: Trace, found: Sequence[tuple[int, int, list[int]]]) -> None:
        """One step, which chose the last of the new ids of some frames: (place in the trace, frame's number, new ids)."""
        table, out = trace.attention, self.reading
        assert table is not None
        out.layers, out.backend, out.mode = table.layers, table.backend, table.mode
        mean = {name: table.mass(name)[..., 0].mean(2).double().cpu().numpy() for name in table.regions}  # [layer, sequence]
        for at, i, new in found:
            if i in self.wanted:
                for name, steps in self._steps[i].items():
                    steps.append(mean[name][:, at])
            if i in self.shown and i not in out.content and _first_content(self.tokenizer, new) == len(new) - 1:
                out.content[i] = len(new) - 1
                resid = torch.stack([trace[point][at, -1] for point in self.reads])
                log_p = torch.log_softmax(lens_logits(self.instrument.parts, resid).double(), -1)
                best = log_p.max(-1)
                entropy = -(log_p.exp() * log_p).sum(-1)
                out.depth_tokens[i] = torch.stack([best.indices.double(), best.values.exp(), entropy], 1).cpu().numpy()
                out.chosen[i] = log_p[:, new[-1]].exp().cpu().numpy()

    @property
    def reads(self) -> tuple[str, ...]:
        """The lens's depths, by point."""
        return ("resid_pre.0", *(f"resid_post.{layer}" for layer in range(self.instrument.parts.n_layers)))

    def read(self) -> Reading:
        """All of it."""
        self.reading.mass = {i: {name: np.stack(steps) for name, steps in found.items()} for i, found in self._steps.items()}
        return self.reading


def answer_frames(instrument: Instrument, tokenizer: Any, rows: SharedRows, *, limit: int, shown: Shown | None = None) -> Answers:
    """Greedy answers of all sequences, at most ``limit`` new tokens each; see the module.

    Args:
        rows: of the frames.
        shown: takes what is read as the tokens come.
    """
    out = Answers()
    read = ATTENTION if shown is not None else None
    for row, part, trace in zip(
        rows.rows, rows.parts, rows.plain(lens_reads() if shown is not None else (), attention=read), strict=True
    ):
        assert row is not None
        _answer_piece(instrument, tokenizer, row, part, trace, limit, out, shown)
    return out


ATTENTION = AttentionRead(stats=("mass",))
"""What is read of every answer's rows."""


def _answer_piece(
    instrument: Instrument,
    tokenizer: Any,
    row: LastRow,
    part: Sequence[int],
    trace: Trace,
    limit: int,
    out: Answers,
    shown: Shown | None,
) -> None:
    ends, context, n = _end_ids(instrument), instrument.parts.max_context, row.size
    lengths = [row.width - lead for lead in row.batch.lead]
    new: list[list[int]] = [[] for _ in range(n)]
    texts, running, ended = [""] * n, [True] * n, [False] * n
    decoder = row.continued()
    logits = decoder.logits
    live = list(range(n))  # sequences in the decoder
    for step in range(limit):
        chosen = logits.argmax(-1)
        for at, i in enumerate(live):
            if not running[i]:
                continue
            token = int(chosen[at])
            new[i].append(token)
            texts[i] = _decode(tokenizer, new[i][:-1] if token in ends else new[i])
        if shown is not None:
            shown.take(trace, [(at, part[i], new[i]) for at, i in enumerate(live) if running[i]])
        for i in live:
            if running[i]:
                full = context is not None and lengths[i] + len(new[i]) >= context
                if new[i][-1] in ends or "\n" in texts[i].lstrip() or full:
                    running[i], ended[i] = False, not full or new[i][-1] in ends
        left = [at for at, i in enumerate(live) if running[i]]
        if not left or step == limit - 1:
            break
        if len(left) <= len(live) * _SHRINK:
            decoder.keep(left)
            live, chosen = [live[at] for at in left], chosen[left]
        alive = torch.tensor([running[i] for i in live], device=chosen.device)
        fed = torch.where(alive, chosen, 0)
        if shown is None:
            logits = decoder.step(ids=fed, running=alive)
            continue
        regions = [row.batch.regions[i] for i in live] if row.batch.regions is not None else None
        read = replace(ATTENTION, regions=regions)
        with instrument.attached(reads=lens_reads() if shown.shown else (), attention=read, prompt=row.width) as trace:
            logits = decoder.step(ids=fed, running=alive)
    out.texts += [text.strip().split("\n")[0].strip() for text in texts]
    out.ids += new
    out.ended += ended


def blocks(frame: Frame) -> Regions:
    """The sink, each instruction's block, and the rest."""
    spans = [Span(0, 1, "sink"), *(Span(max(1, a), b, name) for name, (a, b) in frame.spans.items())]
    return Regions.from_spans(len(frame.prompt), spans, rest="rest")


def _first_content(tokenizer: Any, ids: Sequence[int]) -> int | None:
    """The step of the first token with which the answer holds a letter or digit."""
    return next((i for i in range(len(ids)) if any(c.isalnum() for c in _decode(tokenizer, ids[: i + 1]))), None)


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False) if ids else ""


def _end_ids(instrument: Instrument) -> frozenset[int]:
    """The ids that end a sequence: the generation config's, else the config's."""
    model = instrument.model
    for config in (getattr(model, "generation_config", None), model.config):
        found = getattr(config, "eos_token_id", None)
        if found is not None:
            return frozenset([found] if isinstance(found, int) else found)
    return frozenset()
