"""Where in the model the behaviour's first token rises, at the row that emits it: tuned, base, and their difference on the same ids.

*Lens*: final norm and unembedding of the residual stream after each layer (and of the embedding, layer null); value = log P(token), nats.

*Components*: direct logit attribution: what the embedding, each head, each MLP, each other token mixer and the constants (biases) add to
``logit(token) − mean logit``, nats of log-odds against the mean. Parts sum to it (checked, both against the final norm's own output and the model's logit).
Each model's final norm is frozen at its own scale: a part that writes the same in both models differs by as much as the scales do.

Control of both: the same token asked at rows of the same answer that emit something else (mean of up to five, see ``_ready``). What rises there too is
not about the emission. An answer too short for such rows has no control.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from symbolic_residue.contrast._examples import Example
from symbolic_residue.contrast.causal._ready import batches, check_examples, control_rows, EMITTING, fields, Group
from symbolic_residue.contrast.causal._tables import causal_frame
from symbolic_residue.errors import InstrumentError
from symbolic_residue.instrument import Instrument
from symbolic_residue.readout import check_same_architecture, dla_during, lens_logits, lens_reads

__all__ = ["DIFFERENCE", "emission_components", "emission_lens"]

DIFFERENCE = "tuned − base"
_SUM_TOLERANCE = {torch.float32: 2e-3, torch.float64: 2e-3}
"""Share of the logit's size that may be missing; 3 % in half precision, where the model's own sums round so."""
Found = dict[tuple[str, int | None, int | None], tuple[float, float | None]]
"""(part, layer, head) → value at the emitting row, and mean over the control rows."""


def emission_lens(
    tuned: Instrument, base: Instrument, examples: Sequence[Example], *, batch: int = 8, controls: int = 5, seed: int = 0
) -> pl.DataFrame:
    """Logit lens of the behaviour's first token at the emitting row.

    Args:
        tuned, base: the models; both read the same ids.
        examples: with the behaviour.
        batch: examples a forward.
        controls: control rows an example; 0 leaves the control out.
        seed: of their draw.

    Returns:
        Columns as in ``CAUSAL``: ``analysis`` lens, ``part`` embedding or residual (with its ``layer``), ``model`` tuned, base, and tuned − base.

    Raises:
        RecordError, PromptError, InstrumentError: examples that cannot be asked.
        ModelError: models that differ in architecture or vocabulary.
    """
    return _both(tuned, base, examples, "lens", lambda tool, group, rows: _lens(tool, group, rows), batch, controls, seed)


def emission_components(
    tuned: Instrument, base: Instrument, examples: Sequence[Example], *, batch: int = 8, controls: int = 5, seed: int = 0
) -> pl.DataFrame:
    """Direct logit attribution of the behaviour's first token at the emitting row.

    Args:
        tuned, base: the models; both read the same ids.
        examples: with the behaviour.
        batch: examples a forward.
        controls: control rows an example; 0 leaves the control out.
        seed: of their draw.

    Returns:
        Columns as in ``CAUSAL``: ``analysis`` components, ``part`` embedding, head, mlp, mixer, attention bias, constant, and total (their sum), ``model``
        tuned, base, and tuned − base. Parts that a layer lacks have no row.

    Raises:
        InstrumentError: parts that do not sum to the model's logit; also as :func:`emission_lens`.
        RecordError, PromptError, ModelError: see :func:`emission_lens`.
    """
    return _both(tuned, base, examples, "components", _components, batch, controls, seed)


def _both(
    tuned: Instrument,
    base: Instrument,
    examples: Sequence[Example],
    analysis: str,
    read: Callable[[Instrument, Group, list[list[int]]], list[Found]],
    batch: int,
    controls: int,
    seed: int,
) -> pl.DataFrame:
    check_same_architecture(base, tuned)
    check_examples(examples, tuned, base)
    rows: list[dict[str, Any]] = []
    for group in batches(examples, batch):
        others = [control_rows(examples[i], n=controls, seed=seed) if controls else [] for i in group.at]
        found = [read(tool, group, others) for tool in (tuned, base)]
        for i, mine, theirs in zip(group.at, *found, strict=True):
            both: dict[str, Found] = {"tuned": mine, "base": theirs}
            both[DIFFERENCE] = {
                key: (value - theirs[key][0], None if other is None else other - (theirs[key][1] or 0.0))
                for key, (value, other) in mine.items()
            }
            for model, values in both.items():
                for (part, layer, head), (value, control) in values.items():
                    rows.append(
                        {
                            "analysis": analysis, "model": model, **fields(examples[i]), "part": part, "place": EMITTING, "layer": layer, "head": head,
                            "value": value, "control": control, "unit": "nats",
                        }
                    )  # fmt: skip
    order = ["model", "condition", "example", "part", "layer", "head"]
    return causal_frame(rows).sort(order, nulls_last=False)


def _picked(group: Group, others: list[list[int]]) -> list[tuple[int, list[int]]]:
    """(sequence, its rows in the padded batch), the emitting row first."""
    width = group.batch.ids.shape[1]
    return [(k, [width - 1, *(group.batch.lead[k] + row for row in own)]) for k, own in enumerate(others)]


def _lens(tool: Instrument, group: Group, others: list[list[int]]) -> list[Found]:
    trace = tool.run(group.batch, reads=lens_reads(), keep_logits=1)
    points = _depths(tool)
    out: list[Found] = []
    for (k, rows), token in zip(_picked(group, others), group.tokens, strict=True):
        resid = torch.stack([trace[point][k, rows] for _, point in points])  # [depth, row, d_model]
        log_p = torch.log_softmax(lens_logits(tool.parts, resid).double(), -1)[..., token].cpu().numpy()
        found: Found = {}
        for depth, (layer, _) in enumerate(points):
            control = float(log_p[depth, 1:].mean()) if len(rows) > 1 else None
            found["embedding" if layer is None else "residual", layer, None] = float(log_p[depth, 0]), control
        out.append(found)
    return out


def _depths(tool: Instrument) -> list[tuple[int | None, str]]:
    """(layer, point) from the embedding to the last layer."""
    return [(None, "resid_pre.0"), *((i, f"resid_post.{i}") for i in range(tool.parts.n_layers))]


def _components(tool: Instrument, group: Group, others: list[list[int]]) -> list[Found]:
    tokens = sorted(set(group.tokens))
    dla, trace = dla_during(tool, group.batch, [(token, "mean") for token in tokens])
    logits = trace["logits"][:, -1].float()
    if (softcap := tool.parts.logit_softcap) is not None:
        logits = softcap * torch.atanh((logits / softcap).clamp(-1 + 1e-7, 1 - 1e-7))
    out: list[Found] = []
    for (k, rows), token in zip(_picked(group, others), group.tokens, strict=True):
        t = tokens.index(token)
        own = logits[k, token] - logits[k].mean()
        total = dla.total[t, k, rows]
        size = 1.0 + float(total.abs().max())
        off = max(float(dla.error[t, k, rows].abs().max()), 0.0 if softcap is not None else abs(float(total[0].cpu() - own.cpu())))
        if not off <= _SUM_TOLERANCE.get(trace["logits"].dtype, 3e-2) * size:
            raise InstrumentError(
                f"The parts do not sum to the logit of token {token}: {off:.3g} nats are missing.",
                why="A contribution that does not add up is counted twice or lost.",
                todo="Report this with the model's name.",
            )
        found: Found = {}

        def put(part: str, layer: int | None, head: int | None, values: Any, found: Found = found) -> None:
            x = np.asarray(values.detach().cpu(), dtype=np.float64)
            if not np.isnan(x).any():
                found[part, layer, head] = float(x[0]), float(x[1:].mean()) if len(x) > 1 else None

        put("embedding", None, None, dla.embedding[t, k, rows])
        put("constant", None, None, dla.constant[t].expand(len(rows)))
        put("total", None, None, total)
        for layer in range(tool.parts.n_layers):
            put("mlp", layer, None, dla.mlps[t, k, rows, layer])
            put("mixer", layer, None, dla.mixers[t, k, rows, layer])
            if _has_bias(tool.parts.layers[layer]):
                put("attention bias", layer, None, dla.attention_bias[t, k, rows, layer])
            for head in range(tool.parts.n_heads):
                put("head", layer, head, dla.heads[t, k, rows, layer, head])
        out.append(found)
    return out


def _has_bias(layer: Any) -> bool:
    """Whether attention's output has a bias of its own, or of a norm after it."""
    if layer.attn is None:
        return False
    return layer.b_o is not None or (layer.post_attn_norm is not None and layer.post_attn_norm.bias() is not None)
