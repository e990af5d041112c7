"""The prompt that each item of a shell's benchmark is read from: one for an item, at its last row.

The prompt is the one that the shell's own run puts its question with, under the options ``quick()``; the last row predicts the token that the shell scores
first.

* memtrace: fact, the first text of the item's own padding at the longest distance (before the fact for null items), question; the row predicts the last field
  of the answer.
* value-collapse: the prompt; the row predicts the contested token.
* layer-salience: the text; the row predicts the answer.
* temporal-inference: the text as it is, without a shift, and what follows it; of a pair, its first wording with A first, and the word after A.
* instruction-disruption: both instructions with their examples and the first question in plain text, the first one having priority; the row predicts the
  first token of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TYPE_CHECKING

import numpy as np

from symbolic_residue.errors import ConfigError
from symbolic_residue.prompts import build_prompt, Prompt
from symbolic_residue.shells._registry import shell_class

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument

__all__ = ["ShellPrompts", "item_prompt", "shell_prompts"]


@dataclass(frozen=True)
class ShellPrompts:
    """The prompts of a shell's benchmark items.

    Attributes:
        planted, null: one an item.
        planted_frames, null_frames: the frame of each item (its kind where it has none): items of one frame are alike.
        planted_ids, null_ids: the items' ids.

    Unpacks into ``planted, null``.
    """

    planted: list[Prompt] = field(repr=False)
    null: list[Prompt] = field(repr=False)
    planted_frames: tuple[str, ...] = field(repr=False)
    null_frames: tuple[str, ...] = field(repr=False)
    planted_ids: tuple[str, ...] = ()
    null_ids: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[list[Prompt]]:
        return iter((self.planted, self.null))


def shell_prompts(instrument: Instrument, shell: str, *, split: str = "calibration", most: int | None = None) -> ShellPrompts:
    """The planted and the null items of a shell's packaged benchmark, as the model reads them (see the module).

    Args:
        instrument: the model's instrument: prompts are cut into its tokens.
        shell: a key of ``SHELLS``.
        split: whose items.
        most: at most so many of each side, spread over the split.

    Raises:
        ConfigError: no such shell.
        PromptError: an item that does not fit the model's context.
    """
    items = [item for item in shell_class(shell).items() if item.split == split]
    prompts, frames, ids = [], [], []
    for null in (False, True):
        side = [item for item in items if item.null is null]
        if most is not None and len(side) > most:
            side = [side[int(i)] for i in np.linspace(0, len(side) - 1, most).round()]
        prompts.append([item_prompt(instrument, item) for item in side])
        frames.append(tuple(item.frame or item.kind for item in side))
        ids.append(tuple(item.id for item in side))
    return ShellPrompts(*prompts, *frames, *ids)


def item_prompt(instrument: Instrument, item: Any) -> Prompt:
    """The prompt that one item is read from (see the module).

    Args:
        instrument: the model's instrument.
        item: of a packaged benchmark, or any with a ``prompt`` or a ``text``.

    Raises:
        ConfigError: an item that is none of these.
        PromptError: it does not fit the model's context.
    """
    made = _MAKERS.get(type(item).__name__)
    if made is not None:
        return made(instrument, item)
    text = next((t for t in (getattr(item, name, None) for name in ("prompt", "text")) if isinstance(t, str)), None)
    if text is None:
        raise ConfigError(
            f"{item.id} is no plain prompt.", why="Its shell makes prompts of it.", todo="Give the signatures of such prompts to shell_signature."
        )  # fmt: skip
    return _plain(instrument, text)


def _plain(instrument: Instrument, text: str) -> Prompt:
    return build_prompt(instrument.loaded.tokenizer, text, max_tokens=instrument.parts.max_context)


def _memory(instrument: Instrument, item: Any) -> Prompt:
    from symbolic_residue.shells.memtrace._ask import ask
    from symbolic_residue.shells.memtrace._config import MemtraceConfig
    from symbolic_residue.shells.memtrace._text import passage

    tokenizer = instrument.loaded.tokenizer
    stated = [item.fact] if item.rival is None else [item.fact, item.rival]
    if item.place == "before":
        stated.reverse()
    asked = ask(
        instrument,
        tokenizer,
        MemtraceConfig.quick(draws=1),
        " ".join(stated) + item.question,
        fact=item.fact,
        question=item.question,
        answers=list(item.answers),
        foils=[list(f) for f in item.foils],
        control=item.control,
        rival=item.rival,
        rival_answer=item.rival_answer,
        distractors=item.distractors,
        paddings=[item.padding],
        place=item.place,
        token_type=item.token_type,
        chat=False,
        seed=0,
    )
    one = passage(tokenizer, asked, "fact")
    ids = one.ids(item.padding, 0, asked.distance)
    tokens = [tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids]
    ends = np.cumsum([len(t) for t in tokens]).tolist()
    return Prompt("".join(tokens), ids, tokens, list(zip([0, *ends[:-1]], ends, strict=True)), one.regions(asked.distance), False)


def _temporal(instrument: Instrument, item: Any) -> Prompt:
    from symbolic_residue.shells.temporal_inference._pairs import EventPair

    return _plain(instrument, item.text if item.pair is None else EventPair.model_validate(item.pair).shown)


def _instructions(instrument: Instrument, item: Any) -> Prompt:
    from symbolic_residue.prompts._instructions import PLAIN, TASKS
    from symbolic_residue.shells.instruction_disruption._config import InstructionDisruptionConfig
    from symbolic_residue.shells.instruction_disruption._frames import block, rendered

    config = InstructionDisruptionConfig.quick()
    n = config.examples
    blocks = [
        block(item.a, PLAIN[:n], item.b if item.joint else None),
        block(item.b, PLAIN[n : 2 * n], item.a if item.joint else None),
    ]
    tokenizer, limit = instrument.loaded.tokenizer, instrument.parts.max_context
    return rendered(tokenizer, blocks, TASKS[0].question, config.arrangements[0], chat=False, limit=limit)


_MAKERS: dict[str, Callable[[Instrument, Any], Prompt]] = {
    "MemoryItem": _memory, "TemporalItem": _temporal, "InstructionItem": _instructions,
}  # fmt: skip
