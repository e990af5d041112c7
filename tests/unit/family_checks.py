"""What works for which family: named checks on tiny random models, used by the tests and by the page ``docs/families.md``.

1. A check takes the name of a tiny model and returns nothing (it holds), or a sentence (it does not apply, and why).
2. A typed refusal of the package is a result, too: its first sentence is the reason. A failed assertion, or any other exception, is a failure.
3. ``status`` runs one check; ``page`` runs all and writes the table. Expected attention comes from a float64 softmax written here, over the q and k that the
   attention function was given.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tiny_models import ALL, build, VOCAB
from torch import Tensor

from symbolic_residue.errors import ResidueError
from symbolic_residue.instrument import AttentionRead, collate, Decoder, HeadScale, Instrument, Replace, Scale, verify
from symbolic_residue.models import bind, FAMILIES, LayerParts
from symbolic_residue.models._families import REFUSED
from symbolic_residue.prompts import Regions
from symbolic_residue.readout import direct_logit_attribution, dla_reads

__all__ = ["CHECKS", "Status", "page", "status"]

LENGTH = 20
NAMES = ("first", "second", "third")


@dataclass(frozen=True)
class Status:
    """The outcome of one check: it ``holds``, ``failed``, or neither, for a ``reason``."""

    holds: bool
    failed: bool = False
    reason: str = ""

    @property
    def text(self) -> str:
        """As the page shows it."""
        return "✓" if self.holds else f"✗ {self.reason}" if self.failed else self.reason


@lru_cache(maxsize=2)
def loaded(name: str) -> Any:
    """The tiny model with its parts."""
    model = build(name)
    return SimpleNamespace(model=model, parts=bind(model))


def ids(batch: int = 2, n: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randint(4, VOCAB, (batch, n), generator=torch.Generator().manual_seed(seed))


def regions(n: int) -> Regions:
    return Regions(NAMES, np.arange(n) * 7 % 3)


def alibi(config: Any, padding: Tensor) -> Tensor:
    """ALiBi as falcon adds it to the scaled scores, ``[batch, head, 1, key]``: slope · place of the key, over √d_head (heads a power of two)."""
    n_heads = config.num_attention_heads
    slopes = 2.0 ** (-8.0 / n_heads * torch.arange(1, n_heads + 1, dtype=torch.float64))
    place = (padding.cumsum(-1) - 1) * padding
    return slopes[None, :, None, None] * place[:, None, None, :] / (config.hidden_size // n_heads) ** 0.5


def expected(model: Any, parts: Any, layer: LayerParts, q: Tensor, k: Tensor, padding: Tensor) -> Tensor:
    """Attention weights ``[batch, head, query, key]`` in float64; rows of padding are left as they come."""
    n = q.shape[1]
    q, k = q.transpose(1, 2).double(), k.transpose(1, 2).double()
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT * layer.score_scale
    cap = getattr(model.config, "attn_logit_softcapping", None)
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    if getattr(model.config, "alibi", False):
        scores = scores + alibi(model.config, padding)
    row, key = torch.arange(n)[:, None], torch.arange(n)[None]
    window = parts.attention_window(layer.index)
    seen = (key <= row) & (row - key < (window or n)) & padding.bool()[:, None, None, :]
    scores = scores.masked_fill(~seen, float("-inf"))
    sinks = getattr(layer.attn, "sinks", None)
    if sinks is None:
        return torch.softmax(scores, -1)
    column = sinks.detach().double().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1]


def check_bind(name: str) -> str | None:
    """Every part where the table says, and the forward is what the parts make of it (``verify``)."""
    measured = verify(loaded(name))
    assert measured.logits_identical
    assert max(measured.residual_error, measured.head_error, measured.logit_error) < 1e-5
    return None


def compare(name: str, sequences: list[list[int]], side: Any) -> None:
    """Masses, entropy and largest weight of every row and head against the float64 softmax."""
    it = loaded(name)
    batch = collate(sequences, pad_id=3, side=side)
    read = AttentionRead(regions=[regions(len(s)) for s in sequences], stats=("mass", "entropy", "max"))
    points = [f"{point}.{index}" for point in "qk" for index in it.parts.attention_layers]
    trace = Instrument(it).run(batch, reads=points, attention=read)
    table = trace.attention
    assert table is not None
    assert table.layers == it.parts.attention_layers
    indicator = torch.zeros(*batch.ids.shape, len(NAMES), dtype=torch.float64)
    for b, sequence in enumerate(sequences):
        start = int(batch.mask[b].argmax())
        indicator[b, start : start + len(sequence)] = torch.tensor(regions(len(sequence)).indicator()).double()
    real = batch.mask.bool()[:, None].expand(-1, it.parts.n_heads, -1)
    for at, index in enumerate(table.layers):
        weights = expected(it.model, it.parts, it.parts.layers[index], trace[f"q.{index}"], trace[f"k.{index}"], batch.mask)
        want = {"mass": weights @ indicator[:, None], "entropy": torch.special.entr(weights).sum(-1), "max": weights.max(-1).values}
        for statistic, tensor in want.items():
            got = table[statistic][at].double()
            torch.testing.assert_close(got[real], tensor[real], atol=1e-4 if statistic == "entropy" else 1e-5, rtol=0)


def check_reads(name: str) -> str | None:
    """Attention statistics of all rows, heads and layers equal a float64 softmax."""
    compare(name, ids().tolist(), "left")
    return None


def check_padding(name: str) -> str | None:
    """The same in batches padded on the left and on the right."""
    sequences = [ids(1, n, seed=n)[0].tolist() for n in (LENGTH, 13, 5)]
    for side in ("left", "right"):
        compare(name, sequences, side)
    return None


def check_windows(name: str) -> str | None:
    """The last row's weights are zero outside the window and not at its far edge."""
    it = loaded(name)
    windows = {i: it.parts.attention_window(i) for i in it.parts.attention_layers}
    if not any(windows.values()):
        return "no window"
    read = AttentionRead(stats=("max",), rows=(-1,), weights=True)
    table = Instrument(it).run(ids(), attention=read).attention
    assert table is not None
    for at, index in enumerate(table.layers):
        width = windows[index] or LENGTH
        weights = table["weights"][at][:, :, 0]
        assert not weights[..., : LENGTH - width].any()
        assert (weights[..., LENGTH - width] > 0).any()
    return None


def check_edits(name: str) -> str | None:
    """Knocking out a head equals a model whose output weights of that head are zero; patching a point with itself changes nothing."""
    it = loaded(name)
    instrument, layer = Instrument(it), it.parts.layers[it.parts.attention_layers[-1]]
    plain = instrument.run(ids(), reads=(f"resid_post.{layer.index}", f"z.{layer.index}"))
    out = instrument.run(ids(), edits=[HeadScale(layer.index, 1, 0.0)])["logits"]
    saved = layer.w_o(1).clone()
    layer.w_o(1).zero_()
    try:
        with torch.no_grad():
            want = it.model(ids(), use_cache=False).logits
    finally:
        layer.w_o(1).copy_(saved)
    torch.testing.assert_close(out, want, atol=1e-4, rtol=1e-4)
    assert float((out - plain["logits"]).abs().max()) > 1e-3
    for point in (f"resid_post.{layer.index}", f"z.{layer.index}"):
        same = instrument.run(ids(), edits=[Replace(point, value=plain[point]), Scale(point, factor=1.0)])["logits"]
        torch.testing.assert_close(same, plain["logits"], atol=1e-4, rtol=1e-4)
    return None


def check_decode(name: str) -> str | None:
    """Continuing token by token with a cache gives the logits of the whole sequence, in a left-padded batch."""
    it = loaded(name)
    instrument, whole = Instrument(it), ids(1, LENGTH, seed=3)[0].tolist()
    decoder = Decoder(instrument, collate([whole[:-4], whole[4:-4]], pad_id=3, side="left"))
    for token in whole[-4:]:
        decoder.step(ids=torch.tensor([token, token]))
    want = [instrument.run(torch.tensor([sequence]))["logits"][0, -1] for sequence in (whole, whole[4:])]
    torch.testing.assert_close(decoder.logits, torch.stack(want), atol=1e-4, rtol=1e-4)
    return None


def check_attribution(name: str) -> str | None:
    """Direct logit attribution: the parts sum to the logit difference (before any softcap) within 1e-4 of its size."""
    parts = loaded(name).parts
    trace = Instrument(loaded(name)).run(ids(), reads=dla_reads(parts))
    targets, rows = [(5, 9), (7, 100)], [-1, -4]
    result = direct_logit_attribution(trace, parts, targets, rows=rows)
    normed = parts.final_norm.formula(trace[f"resid_post.{parts.n_layers - 1}"][:, rows])
    logits = (normed @ parts.w_u.double().T + (0.0 if parts.b_u is None else parts.b_u.double())) * parts.logit_scale
    want = torch.stack([logits[..., a] - logits[..., b] for a, b in targets])
    assert float((result.sum - want).abs().max()) < 1e-4 * float(want.abs().max()), "the parts do not sum to the logit difference"
    return None


def check_half(name: str) -> str | None:
    """In bfloat16 the parts are bound and the forward with the instrument reading is bit-identical (``verify``)."""
    model = build(name).to(torch.bfloat16)
    assert verify(SimpleNamespace(model=model, parts=bind(model))).logits_identical  # type: ignore[arg-type]
    return None


CHECKS: dict[str, Callable[[str], str | None]] = {
    "bound and verified": check_bind,
    "attention reads": check_reads,
    "padding": check_padding,
    "windows": check_windows,
    "edits": check_edits,
    "cached decoding": check_decode,
    "attribution": check_attribution,
    "bfloat16": check_half,
}
"""Columns of the page."""


def status(name: str, check: str) -> Status:
    """Run one check on one tiny model."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reason = CHECKS[check](name)
    except ResidueError as error:
        return Status(holds=False, reason=error.what)
    except Exception as error:
        return Status(holds=False, failed=True, reason=f"{type(error).__name__}: {' '.join(str(error).split())[:120]}")
    return Status(holds=reason is None, reason=reason or "")


def _kind(name: str) -> str:
    """What sets the tiny model apart, in a few words, from its parts."""
    parts = loaded(name).parts
    layers = parts.layers
    words = ["parallel" if layers[0].parallel else "sequential"]
    words.append({"rms": "RMS norm", "layer": "LayerNorm"}[parts.final_norm.kind])
    if layers[0].pre_attn_norm is None:
        words.append("norms after only")
    elif any(layer.post_attn_norm is not None for layer in layers):
        words.append("norms before and after")
    words.append(
        f"{parts.n_heads // parts.n_kv_heads} heads a key-value head"
        if parts.n_kv_heads < parts.n_heads
        else "one key-value head a head"
    )
    words += ["experts"] * any(layer.moe for layer in layers)
    words += ["attention beside a mixer"] * any(layer.mixer is not None and layer.attn is not None for layer in layers)
    absent = len(layers) - len(parts.attention_layers)
    words += [f"softmax attention in {len(parts.attention_layers)} of {len(layers)} layers"] * bool(absent)
    words += ["sink logits"] * any(hasattr(layer.attn, "sinks") for layer in layers)
    words += ["softcap"] * bool(getattr(loaded(name).model.config, "attn_logit_softcapping", None))
    words += ["ALiBi"] * bool(getattr(loaded(name).model.config, "alibi", False))
    return ", ".join(words)


def page() -> str:
    """The page: one row a tiny model, one column a check, reasons as numbered notes."""
    notes: list[str] = []
    rows = []
    for name in sorted(ALL):
        cells = []
        for check in CHECKS:
            outcome = status(name, check)
            if outcome.holds:
                cells.append("✓")
                continue
            if outcome.text not in notes:
                notes.append(outcome.text)
            cells.append(f"[{notes.index(outcome.text) + 1}]")
        rows.append(f"| {name} | `{ALL[name]['model_type']}` | {_kind(name)} | {' | '.join(cells)} |")
    columns = "".join(f"* **{check}**: {' '.join((function.__doc__ or '').split())}\n" for check, function in CHECKS.items())
    refused = "".join(f"| `{name}` | {reason} |\n" for name, reason in sorted(REFUSED.items()))
    assert {str(ALL[name]["model_type"]) for name in ALL} == set(FAMILIES)
    return (
        "# Families\n\n"
        "This page is written by `docs/make_families.py` from checks that ran on tiny random models of every family, built from config; a test runs them\n"
        "again and compares. ✓ holds; a number is a note below: why the check does not apply, or what is refused.\n\n"
        f"{columns}\n"
        f"| model | `model_type` | as built | {' | '.join(CHECKS)} |\n|{' --- |' * (len(CHECKS) + 3)}\n" + "\n".join(rows) + "\n\n"
        "Notes:\n\n" + "".join(f"{i}. {note}\n" for i, note in enumerate(notes, 1)) + "\n"
        "Not served, each for its reason:\n\n| `model_type` | reason |\n| --- | --- |\n" + refused + "\n"
        "An architecture that is in neither table is looked for by its structure and confirmed by a forward; see [models](models.md).\n"
    )
