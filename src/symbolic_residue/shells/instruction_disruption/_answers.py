"""Answers of many frames at once: beginnings run once, greedy tokens side by side, attention to each instruction read as the tokens come.

1. All sequences (the frames, and what the attribution asks of them) go into one batch; a frame's beginning, the same for all its questions, runs once
   (``LastRow(shared=…)``). The last prompt token is the first decode step, so the row that chooses the first new token is read like the others.
2. A sequence ends at the model's end token, at the end of a line that holds text, or at the length limit; the loop ends when all have.
3. At every step the attention mass on each instruction's block is read, mean over heads; row ``s`` is the one that chose token ``s``. Position 0 (the sink) is a
   region of its own.
4. The logit lens is read at the row that chooses the first token with a letter or digit, of the frames asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from symbolic_residue.instrument import AttentionRead, Batch, collate, Instrument, LastRow, Trace
from symbolic_residue.prompts import Regions
from symbolic_residue.readout import lens_reads, logit_lens, LogitLens
from symbolic_residue.shells._rows import LastRows
from symbolic_residue.shells.instruction_disruption._frames import Frame
from symbolic_residue.types import Span

__all__ = ["Answers", "SharedRows", "answer_frames"]

Array = NDArray[np.float64]
_TOKENS_AT_ONCE = 16384


class SharedRows(LastRows):
    """Last rows of sequences whose beginnings run once.

    Args:
        instrument: the model's instrument.
        sequences: token ids.
        shared: how many first tokens of each may be shared.
        hidden: a span of the shared tokens that later rows do not see, or None; one a sequence.
    """

    def __init__(
        self,
        instrument: Instrument,
        sequences: Sequence[Sequence[int]],
        shared: Sequence[int],
        hidden: Sequence[tuple[int, int] | None] | None = None,
    ) -> None:
        self.instrument = instrument
        self.prompts = []
        hidden = hidden if hidden is not None else [None] * len(sequences)
        size = max(1, _TOKENS_AT_ONCE // max(map(len, sequences)))
        parts = [range(i, min(i + size, len(sequences))) for i in range(0, len(sequences), size)]
        self.pieces = [collate([list(sequences[i]) for i in part]) for part in parts]
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
        for batch, row, part in zip(self.pieces, self.rows, self.parts, strict=True):
            at = [part.index(i) for i in wanted if i in part]
            if at:
                assert row is not None
                first = len([i for piece in out.parts for i in piece])
                out.pieces.append(
                    Batch(batch.ids[at], batch.mask[at], None, tuple(batch.lead[i] for i in at), tuple(batch.last[i] for i in at))
                )
                out.rows.append(row.select(at))
                out.parts.append(list(range(first, first + len(at))))
        return out


@dataclass
class Answers:
    """What the model answered.

    Attributes:
        texts: one a frame: the first line with text, stripped; ``ids`` the new tokens.
        ended: whether it ended by itself (not at the length limit).
        mass: frame → instruction's name → ``[step, layer]``: attention mass, mean over heads.
        layers: the layers along that axis.
        lens: of the frames asked for, at the row that chose the first token with a letter or digit; ``content`` that token's step.
        backend, mode: what computed the attention.
    """

    texts: list[str] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    mass: list[dict[str, Array]] = field(default_factory=list)
    layers: tuple[int, ...] = ()
    lens: dict[int, LogitLens] = field(default_factory=dict)
    content: dict[int, int] = field(default_factory=dict)
    backend: str = ""
    mode: str = ""


def answer_frames(
    instrument: Instrument, tokenizer: Any, frames: Sequence[Frame], rows: SharedRows, *, limit: int, shown: Sequence[int] = ()
) -> Answers:
    """Greedy answers of all frames.

    Args:
        frames: as in ``rows``, one a sequence.
        limit: at most so many new tokens.
        shown: frames whose lens is kept.
    """
    out = Answers()
    for row, part in zip(rows.rows, rows.parts, strict=True):
        assert row is not None
        _answer_piece(instrument, tokenizer, [frames[i] for i in part], row, limit, {part.index(i): i for i in shown if i in part}, out)
    return out


def _answer_piece(
    instrument: Instrument, tokenizer: Any, frames: list[Frame], row: LastRow, limit: int, shown: dict[int, int], out: Answers
) -> None:
    regions = [
        Regions.from_spans(
            len(f.prompt), [Span(0, 1, "sink"), *(Span(max(1, a), b, name) for name, (a, b) in f.spans.items())], rest="rest"
        )
        for f in frames
    ]
    ends, context = _end_ids(instrument), instrument.parts.max_context
    new: list[list[int]] = [[] for _ in frames]
    texts, running, ended = [""] * len(frames), [True] * len(frames), [False] * len(frames)
    steps: list[dict[str, Any]] = []
    read = AttentionRead(regions=regions, stats=("mass",), rows=(-1,))
    decoder, fed = row.decoder(), row.last
    points = lens_reads() if shown else ()
    with instrument.recording(reads=points, attention=read, prompt=row.width) as traces:
        for step in range(limit):
            logits = decoder.step(ids=fed, running=torch.tensor(running, device=fed.device))
            trace = traces.pop()
            table = trace.attention
            assert table is not None
            out.layers, out.backend, out.mode = table.layers, table.backend, table.mode
            steps.append({name: table.mass(name)[:, :, :, 0].mean(2).double().cpu().numpy() for name in table.regions})
            chosen = logits.argmax(-1)
            for i in [i for i, runs in enumerate(running) if runs]:
                token = int(chosen[i])
                new[i].append(token)
                before = texts[i]
                texts[i] = "" if token in ends and len(new[i]) == 1 else _decode(tokenizer, new[i][:-1] if token in ends else new[i])
                if i in shown and shown[i] not in out.content and _speaks(texts[i]) and not _speaks(before):
                    out.content[shown[i]] = step
                    one = Trace(tensors={p: t[i : i + 1] for p, t in trace.tensors.items()})
                    out.lens[shown[i]] = logit_lens(one, instrument.parts, tokens=(token,))
                full = context is not None and len(frames[i].prompt) + len(new[i]) >= context
                if token in ends or "\n" in texts[i].lstrip() or full:
                    running[i], ended[i] = False, not full
            if not any(running):
                break
            fed = torch.where(torch.tensor(running, device=fed.device), chosen, fed)
    for i, frame in enumerate(frames):
        n = len(new[i])
        out.mass.append({name: np.stack([s[name][:, i] for s in steps[:n]]) for name in frame.spans})
    out.texts += [text.strip().split("\n")[0].strip() for text in texts]
    out.ids += new
    out.ended += ended


def _speaks(text: str) -> bool:
    return any(c.isalnum() for c in text)


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _end_ids(instrument: Instrument) -> frozenset[int]:
    """The ids that end a sequence: the generation config's, else the config's."""
    model = instrument.model
    for config in (getattr(model, "generation_config", None), model.config):
        found = getattr(config, "eos_token_id", None)
        if found is not None:
            return frozenset([found] if isinstance(found, int) else found)
    return frozenset()
