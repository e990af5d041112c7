"""Silence as items of a run: whether end-of-text comes first on each prompt, and on those together why, who is overruled, and which units are ghosts.

1. Each prompt is an item: the best end token against the best content token at its last row (table ``endings``), and the same on its control.
2. Over the prompts that end: null attribution (table ``overruled``), beside the controls that speak where every silent prompt has one.
3. Ghosts (table ``ghosts``): over silent prompts whose control speaks.
4. Reference prompts, for means and spreads, are packaged natural ones, two a category, in the run's own frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from symbolic_residue.diagnose._across import across_row, build_item, measured_item, Progress, text_of, token_rows
from symbolic_residue.diagnose._diagnose import failed_item, ItemResult
from symbolic_residue.errors import EditError, InputError, PromptError
from symbolic_residue.figures import interval_text, number
from symbolic_residue.instrument import collate, Instrument
from symbolic_residue.prompts import build_prompt, natural_prompts, Prompt, PromptItem
from symbolic_residue.shells.across import Ending, endings, ghost_units, null_attribution
from symbolic_residue.stats import Estimate

__all__ = ["SILENCE", "ending_rows", "reference_prompts", "silence_item", "silence_together"]

_A_CATEGORY = 2
_FEWEST_REFERENCES = 8
_FEWEST = 6
_BEST = 8


SILENCE = "logit(end-of-text) − logit(best content token) at the last row, in nats; the model is silent where it is above 0."


def silence_item(
    instrument: Instrument, item: PromptItem, *, end: Sequence[int] | None = None, chat: bool = False, seed: int = 0
) -> ItemResult:
    """Whether end-of-text comes first on one prompt, and on its control where it has one."""
    try:
        prompt, control = build_item(instrument, item, chat=chat)
        logits = instrument.run(collate([prompt]), keep_logits=1)["logits"][0, -1].double().cpu()
        found = endings(instrument, [prompt, *([control] if control is not None else [])], end=end)
    except (InputError, EditError) as error:
        return failed_item(item.id, text_of(item), str(error), chat=chat or item.messages is not None, seed=seed)
    decode = instrument.loaded.tokenizer.decode
    p = logits.softmax(-1)
    best = list(dict.fromkeys([*logits.topk(min(_BEST, len(logits))).indices.tolist(), found[0].end]))
    candidates = pl.DataFrame(
        [(rank, t, decode([t]), float(p[t]), float(logits[t]), "mass") for rank, t in enumerate(best, 1)],
        schema=["rank", "token_id", "token", "probability", "logit", "source"],
        orient="row",
    )
    mine, theirs = found[0], found[1] if len(found) > 1 else None
    said = (
        f"The model {'is silent: ' if mine.ended else 'is not silent: '}{decode([mine.end])!r} (rank {mine.rank}) against {decode([mine.content])!r}, "
        f"logit difference {number(mine.difference, signed=True)}."
    )
    if theirs is not None:
        said += f" Control: {number(theirs.difference, signed=True)}, {'silent too' if theirs.ended else 'it speaks'}."
    across = across_row("silence", SILENCE, said, n=1, counts="prompts", pooled=False, control=item.control)
    tables = {"tokens": token_rows(prompt), "candidates": candidates, "endings": ending_rows(instrument, mine, theirs)}
    ids = {"across_prompt": np.array(prompt.ids)} | ({} if control is None else {"across_control": np.array(control.ids)})
    return measured_item(item.id, [across], tables, prompt=text_of(item), seed=seed, read=prompt, tensors=ids)


def ending_rows(instrument: Instrument, prompt: Ending, control: Ending | None) -> pl.DataFrame:
    """Table ``endings`` of one prompt and its control."""
    decode = instrument.loaded.tokenizer.decode
    return pl.DataFrame(
        [
            {
                "side": side,
                "end": decode([one.end]),
                "content": decode([one.content]),
                "difference": one.difference,
                "end_probability": one.end_probability,
                "content_probability": one.content_probability,
                "rank": one.rank,
                "ended": one.ended,
            }
            for side, one in (("prompt", prompt), ("control", control))
            if one is not None
        ]
    )


def reference_prompts(instrument: Instrument, *, chat: bool = False) -> list[Prompt]:
    """Packaged natural prompts, two a category, that fit the model's context.

    Raises:
        PromptError: fewer than eight fit.
    """
    taken: dict[str, int] = {}
    found = []
    for item in natural_prompts():
        if taken.get(item.category, 0) == _A_CATEGORY:
            continue
        try:
            found.append(build_prompt(instrument.loaded.tokenizer, item.prompt, chat=chat, max_tokens=instrument.parts.max_context))
        except PromptError:
            continue
        taken[item.category] = taken.get(item.category, 0) + 1
    if len(found) < _FEWEST_REFERENCES:
        raise PromptError(
            f"Only {len(found)} of the packaged reference prompts fit into {instrument.parts.max_context} tokens.",
            why=f"Means and spreads need {_FEWEST_REFERENCES}.",
        )
    return found


def silence_together(
    instrument: Instrument,
    prompts: Sequence[Prompt],
    controls: Sequence[Prompt | None],
    endings_table: pl.DataFrame,
    *,
    item: str,
    what: str = "",
    end: Sequence[int] | None = None,
    top: int = 8,
    random_heads: int = 24,
    chat: bool = False,
    seed: int = 0,
    progress: Progress = lambda what, share: None,
) -> ItemResult:
    """The prompts of a run together.

    Args:
        instrument: the model's instrument.
        prompts, controls: as read; None where a prompt has no control.
        endings_table: their rows of the table ``endings``, one prompt after the other in the same order.
        item: the item's id.
        what: which prompts these are, for the sentence.
        end: end tokens; default the model's own.
        top, random_heads: heads and MLPs that are tested, heads of the control.
        chat: whether the chat template was used, so that reference prompts are rendered alike.
        seed: of resampling and draws.
        progress: told what is going on, and the share done.
    """
    mine, theirs = (endings_table.filter(pl.col("side") == side) for side in ("prompt", "control"))
    ended = mine["ended"].to_list()
    speaks = iter(theirs["ended"].to_list())
    control_ended = [None if control is None else next(speaks) for control in controls]
    n, shown = len(prompts), f"{len(prompts)} prompts"
    about = f"{SILENCE} It is split over the model's components{what}."
    silent = [i for i in range(n) if ended[i]]
    beside = [i for i in silent if control_ended[i] is False]
    if not silent:
        average = number(float(np.mean(mine["difference"].to_numpy())), signed=True) if n else ""
        closest = f": the difference is {average} on average" if n else ""
        reason = f"the model is silent on none of {n} prompts{closest}."
        none = [
            across_row("silence", about, n=0, counts="silent prompts", pooled=True, reason=reason),
            across_row("ghosts", _GHOSTS, n=0, counts="silent prompts", pooled=True, reason="there is no silent prompt."),
        ]
        return measured_item(item, none, {}, prompt=shown, seed=seed)
    try:
        reference = reference_prompts(instrument, chat=chat)
        progress("attribution of silence", 0.1)
        # Where a silent prompt has no control that speaks, the parts on the controls of the others would be those of other prompts.
        whole = len(beside) == len(silent)
        found = null_attribution(
            instrument,
            [prompts[i] for i in silent],
            reference,
            controls=[_there(controls[i]) for i in silent] if whole else None,
            end=end,
            top=top,
            random_heads=random_heads,
            seed=seed,
        )
    except (InputError, EditError) as error:
        return failed_item(item, shown, str(error), chat=chat, seed=seed)
    kinds = found.overruled()
    pushes = found.frame.filter(pl.col("role") == "silences").head(3).to_dicts()
    confirmed = [_named(r) for r in found.frame.filter(pl.col("confirmed").fill_null(False)).to_dicts()]
    told = [f"Silent on {len(silent)} of {n} prompts, by {_estimate(found.difference)} nats"]
    told[0] += f" (controls: {_estimate(found.control)})." if found.control is not None else "."
    told.append(f"Silenced most by {', '.join(map(_named, pushes)) or 'no component that is sure'}.")
    told.append(f"Overruled: {', '.join(kinds[:3]) or 'no component that is sure'}.")
    if len(silent) >= _FEWEST:
        told.append(f"Confirmed by ablation: {', '.join(confirmed) or 'none'}.")
    else:
        told.append(f"With fewer than {_FEWEST} silent prompts nothing can be confirmed.")
    control = "the same log-odds on the matched controls, which speak; random heads for the ablations" if whole else None
    control = control or "random heads, for the ablations; no matched control that speaks for every silent prompt"
    rows = [across_row("silence", about, " ".join(told), n=len(silent), counts="silent prompts", pooled=True, control=control)]
    tables = found.tables()
    progress("ghosts", 0.6)
    row, ghosts = _ghosts(instrument, prompts, controls, beside, reference, seed)
    return measured_item(item, [*rows, row], tables | ghosts, prompt=shown, seed=seed)


_GHOSTS = (
    "Ghosts: heads and neurons far from their usual output, and yet without effect on the next token (KL, nats, when set to it)."
)


def _ghosts(
    instrument: Instrument,
    prompts: Sequence[Prompt],
    controls: Sequence[Prompt | None],
    beside: Sequence[int],
    reference: Sequence[Prompt],
    seed: int,
) -> tuple[pl.DataFrame, dict[str, pl.DataFrame]]:
    about: dict[str, Any] = {"counts": "silent prompts with a control that speaks", "pooled": True, "n": len(beside)}
    if not beside:
        return across_row("ghosts", _GHOSTS, reason="no silent prompt has a matched control that speaks.", **about), {}
    about["control"] = "the noise floor of quiet units, and the same units on the matched controls"
    try:
        found = ghost_units(instrument, [prompts[i] for i in beside], [_there(controls[i]) for i in beside], reference, seed=seed)
    except InputError as error:
        return across_row("ghosts", _GHOSTS, reason=str(error), **about), {}
    states = found.frame["state"].value_counts()
    counted = {row["state"]: row["count"] for row in states.to_dicts()}
    floors = ", ".join(f"{kind}s {number(floor)}" for kind, floor in found.floor.items())
    said = (
        f"Of {len(found.frame)} strongly active units {counted.get('ghost', 0)} are ghosts, {counted.get('effective', 0)} have an effect, "
        f"{counted.get('undecided', 0)} are undecided; noise floor of {floors}."
    )
    if len(beside) < _FEWEST:
        said += f" Fewer than {_FEWEST} prompts decide nothing."
    return across_row("ghosts", _GHOSTS, said, **about), found.tables() if len(found.frame) else {}


def _there(prompt: Prompt | None) -> Prompt:
    assert prompt is not None
    return prompt


def _named(row: dict[str, Any]) -> str:
    where = f"{row['layer']}.{row['head']}" if row["component"] == "head" else str(row["layer"])
    return f"{row['component']} {where}" if row["layer"] >= 0 else row["component"]


def _estimate(value: Estimate) -> str:
    interval = interval_text(value.low, value.high, value.n, signed=True)
    return f"{number(value.value, signed=True)} {interval}"
