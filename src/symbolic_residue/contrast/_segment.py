"""Which keys are whose: the buckets of a chat, in two ways.

1. Buckets, exhaustive and disjoint: ``sink system user assistant_header answer special``; the row's own key (``self``) is taken out by the instrument.
2. ``content``: system and user are the contents alone; what the template writes around them, and tokens that are nothing but newlines, are ``special``
   (``merged_newlines=True``: also tokens that end in a newline, such as ``".\\n\\n"``).
3. ``full``: a turn is its content with all that the template writes for it. Where a turn ends is found by rendering growing beginnings of the
   conversation: what ``messages[:k]`` renders to must be a beginning of the whole, and the turns must add up to it. A template that cannot render a
       beginning gives the frame between two
   contents to the later one.
4. Sinks: position 0, and prompt keys that receive more than ``threshold`` of the attention of the prompt rows that see them (mean over layers, heads
   and rows). They are listed with every example, and are the same for every model that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.instrument import AttentionRead, collate, Instrument
from symbolic_residue.prompts import Prompt

__all__ = ["BUCKETS", "SEGMENTATIONS", "find_sinks", "segment"]

BUCKETS = ("sink", "system", "user", "assistant_header", "answer", "special")
"""Regions of a key. ``self`` is a region of a row: its own key."""

_NEWLINES = "\r\n"


def content(tokenizer: Any, prompt: Prompt, *, merged_newlines: bool = False) -> list[str]:
    """Segmentation B of the prompt's tokens."""
    names = []
    for name, token, (start, stop) in zip(prompt.regions.per_token(), prompt.ids, prompt.offsets, strict=True):
        shown = prompt.text[start:stop] or tokenizer.decode([token])
        blank = bool(shown) and (shown.endswith(tuple(_NEWLINES)) if merged_newlines else not shown.strip(_NEWLINES))
        names.append("special" if blank and name in ("system", "user", "text") else name)
    return names


def full(tokenizer: Any, prompt: Prompt, *, merged_newlines: bool = False) -> list[str]:
    """Segmentation A of the prompt's tokens."""
    names = prompt.regions.per_token()
    turns = _turns(tokenizer, prompt)
    out = list(names)
    for i, name in enumerate(names):
        if name != "special":
            continue
        start = prompt.offsets[i][0]
        owner = next((region for region, stop in turns if start < stop), None)
        out[i] = owner or _next_content(names, i)
    return out


SEGMENTATIONS: dict[str, Callable[..., list[str]]] = {"full": full, "content": content}
"""Named segmentations: functions of (tokenizer, prompt, merged_newlines=) that name the bucket of each prompt token. Add your own."""


def segment(
    tokenizer: Any,
    prompt: Prompt,
    n_answer: int,
    *,
    sinks: Sequence[int] = (),
    names: Sequence[str] = ("full", "content"),
    merged_newlines: bool = False,
) -> dict[str, list[str]]:
    """The buckets of all keys of prompt and answer, for each segmentation.

    Args:
        tokenizer: the model's.
        prompt: a chat of a system and a user turn (or a user turn, or plain text).
        n_answer: generated tokens; they are ``answer``.
        sinks: prompt positions that are sinks besides 0.
        names: segmentations asked for.
        merged_newlines: see the module.

    Raises:
        ConfigError: an unknown segmentation, or one that names other buckets.
        PromptError: a prompt with assistant's turns in it.
    """
    if prompt.messages and any(message["role"] == "assistant" for message in prompt.messages):
        raise PromptError(
            "The conversation holds an assistant's turn.",
            why="The bucket 'answer' is what the model generates.",
            todo="Ask with system and user turns.",
        )
    out = {}
    for name in names:
        if name not in SEGMENTATIONS:
            raise ConfigError(f"There is no segmentation {name!r}.", todo=f"Use some of: {', '.join(SEGMENTATIONS)}.")
        labels = [
            "user" if label == "text" else label
            for label in SEGMENTATIONS[name](tokenizer, prompt, merged_newlines=merged_newlines)
        ]
        for at in (0, *sinks):
            labels[at] = "sink"
        strange = sorted(set(labels) - set(BUCKETS))
        if strange or len(labels) != len(prompt):
            raise ConfigError(
                f"The segmentation {name!r} names {', '.join(strange) or 'too few tokens'}.",
                todo=f"The buckets are: {', '.join(BUCKETS)}.",
            )
        out[name] = labels + ["answer"] * n_answer
    return out


def find_sinks(instrument: Instrument, prompt: Prompt, *, threshold: float = 0.10) -> tuple[int, ...]:
    """Prompt positions whose mean incoming attention is above ``threshold``, position 0 left out (it always is one). One forward.

    Raises:
        ConfigError: a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"The sink threshold is {threshold}.", todo="Give a share between 0 and 1.")
    trace = instrument.run(collate([prompt]), attention=AttentionRead(stats=("received",)), keep_logits=1)
    assert trace.attention is not None
    received: NDArray[np.float64] = trace.attention["received"].double().mean(dim=(0, 2))[0].numpy()
    rows = len(prompt) - np.arange(len(prompt))
    return tuple(int(i) for i in np.flatnonzero(received / rows > threshold) if i)


def _turns(tokenizer: Any, prompt: Prompt) -> list[tuple[str, int]]:
    """``(region, character where it ends)`` of each turn that can be rendered by itself, in order."""
    if not prompt.chat or not prompt.messages:
        return []
    messages = [dict(message) for message in prompt.messages]
    if messages[0]["role"] != "system" and len(prompt.regions.positions("system")):
        where = prompt.regions.positions("system")
        default = prompt.text[prompt.offsets[where[0]][0] : prompt.offsets[where[-1]][1]]
        messages.insert(0, {"role": "system", "content": default})
    found: list[tuple[str, int]] = []
    for k in range(1, len(messages) + 1):
        try:
            text = tokenizer.apply_chat_template(messages[:k], tokenize=False, add_generation_prompt=False)
        except Exception:
            continue
        end = getattr(tokenizer, "eos_token", None) or ""
        text = next((one for one in (text, text.removesuffix(end)) if one and prompt.text.startswith(one)), "")
        if text and (not found or len(text) > found[-1][1]):
            found.append((messages[k - 1]["role"], len(text)))
    return found


def _next_content(names: Sequence[str], at: int) -> str:
    after = next((name for name in names[at:] if name in ("system", "user")), None)
    return after or next((name for name in reversed(names[:at]) if name in ("system", "user")), "special")
