"""Prompts on which a model fails, each with the target that says how, in logits: above 0 it fails at the next token.

1. ``silence``: the best end token comes before the best content token (whatever else would fit).
2. ``refusal``: under two instructions, the best token opens a refusal, and is neither the right one nor the wrong one.
3. ``collapse`` (VALUE-COLLAPSE) and ``wrong`` (the other shells): the wrong token − the right one. The wrong one is the candidate, rival or continuation that
   the failure names, or else the best other token.
4. ``repeat``: where no token is known to be right, and the best token would repeat an n-gram of four or more.
5. The worst prompts have the largest values. A failure that is asked in several prompts (both orders, several paddings) stands with its worst one, so that
   each counts once; they are chosen for being bad, and their means are not those of all failures.

A matched control is read at the same tokens. It is healthy where its value is below 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from torch import Tensor

from symbolic_residue.errors import ConfigError
from symbolic_residue.graph import Contrast, failure_contrast, FailureTarget, Refusal, Repeat, repeated, Silence
from symbolic_residue.instrument import collate, Instrument
from symbolic_residue.prompts import Prompt, Regions
from symbolic_residue.shells._failure import Failure
from symbolic_residue.shells._rows import in_pieces

__all__ = ["Aimed", "FailingPrompt", "aim", "failing_prompts", "prompt_of", "worst_of"]

_REPEATS = 4
SPANS = {"evidence": "says the right answer", "distractor": "says another", "padding": "padding"}
INSTRUCTIONS = {"evidence": "the instruction that holds", "distractor": "the other instruction"}


@dataclass(frozen=True)
class FailingPrompt:
    """One prompt of a failure.

    Attributes:
        id: the failure's; ``mode`` the verdict that fires; ``shell`` whose.
        ids: what the model reads, up to the token that is explained.
        right, wrong: tokens, where they are known.
        spans: positions by what stands there.
        control: a matched prompt that the model should get right.
    """

    id: str
    mode: str
    shell: str
    ids: tuple[int, ...]
    right: int | None = None
    wrong: int | None = None
    spans: dict[str, tuple[int, ...]] = field(default_factory=dict)
    control: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Aimed:
    """A prompt with its target.

    Attributes:
        prompt: of a failure.
        kind: ``silence refusal collapse wrong repeat``.
        contrast: the target; ``value`` in logits.
    """

    prompt: FailingPrompt
    kind: str
    contrast: Contrast
    value: float


def failing_prompts(failure: Failure, mode: str, shell: str) -> list[FailingPrompt]:
    """Every prompt of a failure; answers that begin alike are given up to where they differ."""
    found = []
    for ask in failure.asks:
        names = INSTRUCTIONS if shell == "instruction-disruption" else SPANS
        spans = {said: places for name, said in names.items() if (places := getattr(ask, name))}
        control = None if ask.control is None else (*ask.control, *ask.given)
        found.append(FailingPrompt(failure.id, mode, shell, (*ask.ids, *ask.given), ask.answer, ask.wrong, spans, control))
    return found


def prompt_of(tokenizer: Any, ids: Sequence[int]) -> Prompt:
    """A prompt from token ids, each token decoded by itself."""
    tokens = [tokenizer.decode([t]) for t in ids]
    ends = list(accumulate(map(len, tokens)))
    regions = Regions(("sink", "text"), np.minimum(np.arange(len(tokens)), 1))
    return Prompt("".join(tokens), list(ids), tokens, list(zip([0, *ends[:-1]], ends, strict=True)), regions, chat=False)


def aim(
    instrument: Instrument, prompts: Sequence[FailingPrompt], *, ends: Sequence[int] = ()
) -> tuple[list[Aimed], dict[str, str]]:
    """The target of every prompt; and by failure the reason, where there is none. One forward a batch. ``ends``: end tokens, if not the model's own."""
    found: list[Aimed] = []
    reasons: dict[str, str] = {}
    if not prompts:
        return found, reasons
    first = 0
    for piece in in_pieces([prompt_of(instrument.loaded.tokenizer, one.ids) for one in prompts]):
        mine = prompts[first : first + len(piece)]
        first += len(piece)
        rows = instrument.run(collate(piece), keep_logits=1)["logits"][:, -1].double().cpu()
        for prompt, row in zip(mine, rows, strict=True):
            chosen = _choose(instrument, prompt, row, tuple(ends))
            if isinstance(chosen, str):
                reasons[prompt.id] = chosen
                continue
            kind, contrast = chosen
            found.append(Aimed(prompt, kind, contrast, float(row[list(contrast.plus)].mean() - row[list(contrast.minus)].mean())))
    there = {one.prompt.id for one in found}
    return found, {name: why for name, why in reasons.items() if name not in there}


def worst_of(found: Sequence[Aimed], top: int) -> list[Aimed]:
    """The ``top`` failures of largest value, each by its worst prompt; ties in their order.

    Raises:
        ConfigError: fewer than one asked for.
    """
    if top < 1:
        raise ConfigError(f"{top} failures cannot be chosen.", todo="Ask for at least one.")
    worst: dict[str, Aimed] = {}
    for one in found:
        if one.prompt.id not in worst or one.value > worst[one.prompt.id].value:
            worst[one.prompt.id] = one
    return sorted(worst.values(), key=lambda one: -one.value)[:top]


def _choose(instrument: Instrument, prompt: FailingPrompt, logits: Tensor, ends: tuple[int, ...]) -> tuple[str, Contrast] | str:
    def of(asked: FailureTarget) -> Contrast:
        return failure_contrast(instrument, prompt.ids, logits, asked)

    best, decode = int(logits.argmax()), instrument.loaded.tokenizer.decode
    try:
        silence = of(Silence(ends))
        if logits[silence.plus[0]] > logits[silence.minus[0]]:
            return "silence", silence
    except ConfigError:
        pass  # a model without an end token is never silent
    if prompt.shell == "instruction-disruption" and best not in (prompt.right, prompt.wrong):
        refusal = of(Refusal())
        if best in refusal.plus:
            return "refusal", refusal
    if prompt.right is not None:
        right, wrong = prompt.right, prompt.wrong
        if wrong is None:
            others = logits.clone()
            others[right] = -float("inf")
            wrong = int(others.argmax())
        kind, words = ("collapse", "candidate") if prompt.shell == "value-collapse" else ("wrong", "wrong")
        return kind, Contrast(f"{words} {decode([wrong])!r} − right {decode([right])!r}", (wrong,), (right,))
    again = repeated(prompt.ids, _REPEATS)
    if again is not None and again[0] == best:
        return "repeat", of(Repeat(_REPEATS))
    return "No token is known to be right here, and the model is neither silent nor repeating."
