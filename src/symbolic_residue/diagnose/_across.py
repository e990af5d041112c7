"""Measures across shells as items of a run: each prompt (or pair) an item of its own, and one item for all of them together.

1. The functions of ``shells.across`` measure; here their results become tables, with a row of the table ``across`` for each measure: what the numbers are,
   what they are compared with, n and what it counts, and what they say in a sentence. Where nothing could be measured the row says why instead.
2. A prompt that cannot be used is a failed item, and the others go on. What the pooled item needs of the others is kept in their tables and tensors, so
   that a run that was cut off goes on where it stood.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from symbolic_residue.diagnose._diagnose import failed_item, ItemResult, items_row, turns
from symbolic_residue.errors import EditError, InputError
from symbolic_residue.figures import number
from symbolic_residue.instrument import collate, Instrument
from symbolic_residue.prompts import build_prompt, find_span, Prompt, PromptItem
from symbolic_residue.shells.across import (
    attention_metrics,
    attention_view,
    compare_attention,
    cross_run,
    error_accumulation,
    ErrorAccumulation,
    FEWEST_PAIRS,
    METRICS,
    run_features,
)
from symbolic_residue.types import Span

__all__ = [
    "across_row",
    "attention_item",
    "build_item",
    "cross_item",
    "cross_together",
    "disruption_item",
    "disruption_together",
    "errors_item",
    "errors_together",
    "measured_item",
    "token_rows",
]

Array = NDArray[np.float64]
Progress = Callable[[str, float], None]
_FOUND = 0.05
_ONE = "One pair of the run; all pairs are compared together."


def across_row(
    measure: str,
    about: str,
    said: str | None = None,
    *,
    n: int,
    counts: str,
    pooled: bool,
    control: str | None = None,
    reason: str | None = None,
) -> pl.DataFrame:
    """One row of the table ``across``: ``about`` says what the numbers are, ``said`` what was found, ``reason`` why nothing was measured."""
    row = {"measure": measure, "pooled": pooled, "n": n, "counts": counts, "control": control}
    kinds = {"measure": pl.String, "pooled": pl.Boolean, "n": pl.Int64, "counts": pl.String, "control": pl.String}
    texts = {"about": about, "said": said, "reason": reason}
    return pl.DataFrame([row | texts], schema=kinds | dict.fromkeys(texts, pl.String))


def measured_item(
    item: str,
    across: Sequence[pl.DataFrame],
    tables: Mapping[str, pl.DataFrame],
    *,
    prompt: str,
    seed: int,
    read: Prompt | None = None,
    tensors: Mapping[str, Any] | None = None,
) -> ItemResult:
    """A finished item; its summary is what its measures say, or why there is nothing."""
    rows = pl.concat(across)
    summary = " ".join(r["said"] or f"{r['measure'].capitalize()}: nothing measured: {r['reason']}" for r in rows.to_dicts())
    row = items_row(
        prompt=prompt,
        text=None if read is None else read.text,
        chat=None if read is None else read.chat,
        n_tokens=None if read is None else len(read),
        seed=seed,
        status="done",
        error=None,
        summary=summary,
    )
    return ItemResult(item, {"items": row, "across": rows, **tables}, dict(tensors or {}), summary)


def build_item(instrument: Instrument, item: PromptItem, *, chat: bool) -> tuple[Prompt, Prompt | None]:
    """The item's prompt, and its control in the same frame (in a conversation: in place of the last turn).

    Raises:
        InputError: a text that cannot be used.
    """
    tokenizer, most, messages = instrument.loaded.tokenizer, instrument.parts.max_context, turns(item)
    if messages is None:
        texts = [item.prompt, *([item.control] if item.control is not None else [])]
        built = [build_prompt(tokenizer, text, chat=chat, max_tokens=most) for text in texts]
    else:
        several = [messages]
        if item.control is not None:
            several.append([*messages[:-1], {**messages[-1], "content": item.control}])
        built = [build_prompt(tokenizer, messages=each, max_tokens=most) for each in several]
    return built[0], built[1] if len(built) > 1 else None


def token_rows(prompt: Prompt, span: Span | None = None) -> pl.DataFrame:
    """Table ``tokens``; a span is a region of its own, named ``span``."""
    regions = prompt.regions if span is None else prompt.regions.with_span("span", span.start, span.stop)
    return pl.DataFrame(
        {
            "position": list(range(len(prompt))),
            "token_id": prompt.ids,
            "token": prompt.tokens,
            "region": regions.per_token(),
            "char_start": [a for a, _ in prompt.offsets],
            "char_end": [b for _, b in prompt.offsets],
        }
    ).with_columns(influence=pl.lit(None, pl.Float64), attention=pl.lit(None, pl.Float64))


def text_of(item: PromptItem) -> str:
    """The item's text, for a reader."""
    return item.prompt if item.prompt is not None else item.messages[-1]["content"] if item.messages else ""


# -- attention disruption ----------------------------------------------------------------------------------------------------


def disruption_item(
    instrument: Instrument,
    item: PromptItem,
    *,
    span: str | None = None,
    control_span: str | None = None,
    rows: int = 1,
    chat: bool = False,
    seed: int = 0,
) -> ItemResult:
    """Every head's attention metrics on one prompt and its control; tensor ``attention_metrics`` ``[side, metric, layer, head]``.

    ``span``: a text of the prompt whose keys are the rows' own span; ``control_span`` the same of the control, where it is another text. The last eight
    tokens of each where left out.
    """
    try:
        prompt, control = build_item(instrument, item, chat=chat)
        if control is None:
            raise InputError("The pair has no control.", todo='Give "control" in each line.')
        own = find_span(prompt, text=span) if span else None
        theirs = find_span(control, text=control_span or span) if span else None
        sides = [
            attention_metrics(instrument, [one], spans=None if where is None else [where], rows=rows)
            for one, where in ((prompt, own), (control, theirs))
        ]
    except (InputError, EditError) as error:
        return failed_item(item.id, text_of(item), str(error), chat=chat or item.messages is not None, seed=seed)
    return measured_item(
        item.id,
        [
            across_row(
                "disruption", _ONE, "Read, with its control.", n=1, counts="pairs of prompts", pooled=False, control=item.control
            )
        ],
        {"tokens": token_rows(prompt, own)},
        prompt=text_of(item),
        seed=seed,
        read=prompt,
        tensors={"attention_metrics": np.stack([np.stack([side[name][0] for name in METRICS]) for side in sides])},
    )


def disruption_together(
    instrument: Instrument, metrics: Sequence[Any], *, item: str, rows: int = 1, what: str = "", seed: int = 0
) -> ItemResult:
    """The pairs of a run together: effects against the control, FDR over heads; ``metrics``: the pairs' tensors."""
    n = len(metrics)
    which = "at the last row" if rows == 1 else f"over the last {rows} rows"
    about = (
        f"Attention of every head {which}, prompt − matched control{what}: sink mass is of all weight, the other metrics of what the sink leaves; "
        "effect = mean difference over its standard deviation (d_z), q = Benjamini-Hochberg over the heads of a metric."
    )
    counts, control = "pairs of prompts", "the same metrics on the matched control prompts"
    if n < FEWEST_PAIRS:
        few = f"{n} pair{'s' if n > 1 else ''}; with fewer than {FEWEST_PAIRS} no sign-flip p can reach 0.05."
        reason = few if n else "no prompt has a control that could be read."
        none = across_row("disruption", about, n=n, counts=counts, pooled=True, control=control, reason=reason)
        return measured_item(item, [none], {}, prompt=f"{n} pairs of prompts", seed=seed)
    both = np.stack([np.asarray(one) for one in metrics])
    here, there = ({name: both[:, side, m] for m, name in enumerate(METRICS)} for side in (0, 1))
    found = compare_attention(here, there, instrument.attention_layers, seed=seed)
    parts = []
    for metric in METRICS:
        mine = found.found(metric)
        if mine:
            named = ", ".join(f"{layer}.{head}" for layer, head in mine[:5])
            parts.append(f"{metric} differs in {len(mine)} ({named}{', …' if len(mine) > 5 else ''})")
    heads = len(instrument.attention_layers) * instrument.parts.n_heads
    verdict = f"Of {heads} heads, {'; '.join(parts)}." if parts else f"None of {heads} heads differs at q ≤ {_FOUND}."
    alone = f" A head that alone differs could not be found: among {heads} that needs {found.n_needed} pairs."
    few = alone if n < found.n_needed else ""
    said = across_row("disruption", about, verdict + few, n=n, counts=counts, pooled=True, control=control)
    return measured_item(item, [said], found.tables(), prompt=f"{n} pairs of prompts", seed=seed)


# -- errors that accumulate --------------------------------------------------------------------------------------------------


def errors_item(
    instrument: Instrument,
    item: PromptItem,
    *,
    replacement: Any = None,
    source: str = "resid_post",
    target: str = "resid_post",
    chat: bool = False,
    seed: int = 0,
) -> ItemResult:
    """Errors by layer of one prompt, without intervals."""
    try:
        prompt, _ = build_item(instrument, item, chat=chat)
        found = error_accumulation(instrument, [prompt], replacement, source=source, target=target, seed=seed)
    except (InputError, EditError) as error:
        return failed_item(item.id, text_of(item), str(error), chat=chat or item.messages is not None, seed=seed)
    said = across_row("errors", *_errors_said(found, replacement is None), n=1, counts="prompts", pooled=False, control=_NOISE)
    tables = {"tokens": token_rows(prompt), **found.tables()}
    return measured_item(item.id, [said], tables, prompt=text_of(item), seed=seed, read=prompt)


def errors_together(curves: pl.DataFrame, *, item: str, lens: bool, seed: int = 0) -> ItemResult:
    """The prompts of a run together: means with intervals over prompts; ``curves``: the items' tables of that name."""
    names = curves.select("curve", "series").unique(maintain_order=True).rows()
    items = curves["item"].unique(maintain_order=True).to_list()
    n = len(items)
    if not n:
        none = across_row("errors", "Errors by layer.", n=0, counts="prompts", pooled=True, reason="no prompt could be read.")
        return measured_item(item, [none], {}, prompt="0 prompts", seed=seed)
    layers = sorted({int(x) for x in curves["x"]})
    values = {}
    for curve, series in names:
        mine = curves.filter((pl.col("curve") == curve) & (pl.col("series") == series))
        each = {key: part.sort("x")["value"].to_numpy() for (key,), part in mine.partition_by("item", as_dict=True).items()}
        values[curve, series] = np.stack([each[name] for name in items])
    found = ErrorAccumulation.pooled(layers, values, seed=seed)
    said = across_row("errors", *_errors_said(found, lens), n=n, counts="prompts", pooled=True, control=_NOISE)
    return measured_item(item, [said], found.tables(), prompt=f"{n} prompts", seed=seed)


_NOISE = "random errors of the same length at the same places"


def _errors_said(found: ErrorAccumulation, lens: bool) -> tuple[str, str]:
    """What the numbers are, and what they say."""
    kl = {series: array.mean(0) for (curve, series), array in found.values.items() if curve == "KL"}
    own = kl["injected"]
    worst = int(own.argmax())
    noise = kl.get("control: random error of equal length, injected")
    of = f" (a random error of that length: {number(float(noise[worst]))})" if noise is not None else ""
    total = number(float(kl["accumulated"][0 if lens else -1]))
    what = (
        "The logit lens as a replacement of layers: injected = one layer skipped, accumulated = all layers after it skipped."
        if lens
        else "The replacement of layers: injected = one layer replaced, accumulated = all up to it replaced."
    )
    end = f"all layers after layer {found.layers[0]} skipped" if lens else f"all {len(found.layers)} replaced"
    about = f"{what} Relative error of the layer's value, and KL(model ‖ changed model) of the next token; mean over the rows but the first."
    done = "skipped" if lens else "replaced"
    said = f"Layer {found.layers[worst]} {done} alone costs most: KL {number(float(own[worst]))} nats{of}; {end}: {total}."
    return about, said


# -- success against failure -------------------------------------------------------------------------------------------------


def cross_item(instrument: Instrument, item: PromptItem, failure: PromptItem, *, chat: bool = False, seed: int = 0) -> ItemResult:
    """Features of one matched pair; tensor ``run_features`` ``[success and failure, feature]``."""
    try:
        sides = [build_item(instrument, one, chat=chat)[0] for one in (item, failure)]
        features = [run_features(instrument, [side])[1][0] for side in sides]
    except (InputError, EditError) as error:
        return failed_item(item.id, text_of(failure), str(error), chat=chat or item.messages is not None, seed=seed)
    across = across_row(
        "cross-run", _ONE, "Read, on both prompts.", n=1, counts="pairs of prompts", pooled=False, control=text_of(item)
    )
    tables = {"tokens": token_rows(sides[1])}
    tensors = {"run_features": np.stack(features)}
    return measured_item(item.id, [across], tables, prompt=text_of(failure), seed=seed, read=sides[1], tensors=tensors)


def cross_together(
    success: Array,
    failure: Array,
    features: Sequence[tuple[int, str]],
    *,
    item: str,
    what: str,
    frames: Sequence[str] | None = None,
    seed: int = 0,
) -> ItemResult:
    """The pairs of a run together, feature by feature.

    Args:
        success, failure: ``[pair, feature]``.
        features: (layer, name).
        item: the item's id.
        what: what a feature is, as the subject of a sentence.
        frames: the frame of each pair; pairs of one frame are one unit.
        seed: of the resampling.
    """
    about = f"{what}, failure − success on matched prompts; effect = d_z, q = Benjamini-Hochberg over the features."
    counts, control = "pairs of prompts" if frames is None else "frames of matched pairs", "the matched prompts that succeed"
    units = len(success) if frames is None else len(set(frames))
    if units < 2:
        none = across_row(
            "cross-run", about, n=units, counts=counts, pooled=True, control=control, reason=f"{units} unit has no spread."
        )
        return measured_item(item, [none], {}, prompt=f"{len(success)} pairs", seed=seed)
    found = cross_run(success, failure, features, clusters=frames, seed=seed)
    named = [f"{name} of layer {layer}" if layer >= 0 else name for layer, name in found.found()]
    verdict = (
        f"{len(named)} of {len(features)} features differ at q ≤ {_FOUND}: {', '.join(named[:5])}{', …' if len(named) > 5 else ''}."
        if named
        else f"None of {len(features)} features differs at q ≤ {_FOUND}."
    )
    few = f" With n = {found.n} none could: a sign-flip p is at least {number(2 / 2**found.n)}." if found.n < FEWEST_PAIRS else ""
    said = across_row("cross-run", about, verdict + few, n=found.n, counts=counts, pooled=True, control=control)
    return measured_item(item, [said], found.tables(), prompt=f"{len(success)} pairs of prompts", seed=seed)


# -- where a head looks and what it writes -----------------------------------------------------------------------------------


def attention_item(
    instrument: Instrument,
    item: PromptItem,
    heads: Sequence[tuple[int, int]],
    *,
    targets: Sequence[int] = (),
    last: int = 24,
    chat: bool = False,
    seed: int = 0,
) -> ItemResult:
    """Chosen heads on one prompt, toward each of ``targets``; without any, toward the best next token over the second best.

    Raises:
        ReadError: no such head.
    """
    try:
        prompt, _ = build_item(instrument, item, chat=chat)
        logits = instrument.run(collate([prompt]), keep_logits=1)["logits"][0, -1].double().cpu()
        first, second = logits.topk(2).indices.tolist()
        pairs: list[tuple[int, int | None]] = [(t, None) for t in targets] or [(first, second)]
        found = attention_view(instrument, prompt, heads, pairs, last=last)
    except (InputError, EditError) as error:
        return failed_item(item.id, text_of(item), str(error), chat=chat or item.messages is not None, seed=seed)
    strongest = found.ov_heads.sort(pl.col("strength").abs(), descending=True).row(0, named=True)
    about = (
        f"Attention of the last {min(last, len(prompt))} rows, and what each key adds through a head to the logits at the last row; over keys that sums to the "
        "head's direct logit attribution. A view of one prompt, without a test."
    )
    named = [
        f"{r['layer']}.{r['head']} {number(r['strength'], signed=True)}"
        for r in found.ov_heads.to_dicts()
        if r["target"] == strongest["target"]
    ]
    said = f"Toward “{strongest['target']}”, logits through the heads: {', '.join(named)}."
    across = across_row("attention", about, said, n=1, counts="prompts", pooled=False)
    p = logits.softmax(-1)
    best = logits.topk(min(8, len(logits))).indices.tolist()
    decode = instrument.loaded.tokenizer.decode
    candidates = pl.DataFrame(
        [(rank, t, decode([t]), float(p[t]), float(logits[t]), "mass") for rank, t in enumerate(best, 1)],
        schema=["rank", "token_id", "token", "probability", "logit", "source"],
        orient="row",
    )
    tables = {"tokens": token_rows(prompt), "candidates": candidates, **found.tables()}
    return measured_item(item.id, [across], tables, prompt=text_of(item), seed=seed, read=prompt)
