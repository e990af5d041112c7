"""Whether counterfactual pairs hold on a model: lengths, answers of one token, and the signs of the logit differences.

A pair that does not hold is listed with the reason and never left out in silence: what a faithfulness curve says of a pair whose answer the model does not
give is nothing about how it gives answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import build_prompt, CounterfactualPair, Prompt

__all__ = ["TokenPair", "token_pair", "validate_pairs"]

VALIDATION_SCHEMA: dict[str, Any] = {
    "id": pl.String,
    "category": pl.String,
    "frame": pl.String,
    "tokens": pl.Int64,
    "clean": pl.Float64,
    "corrupted": pl.Float64,
    "holds": pl.Boolean,
    "reason": pl.String,
}


@dataclass(frozen=True, eq=False)
class TokenPair:
    """A pair in one tokenizer.

    Attributes:
        pair: its texts.
        clean, corrupted: the prompts, equally long.
        answer, wrong: token ids.
    """

    pair: CounterfactualPair
    clean: Prompt
    corrupted: Prompt
    answer: int
    wrong: int

    @property
    def ids(self) -> Tensor:
        """``[2, position]``: clean, corrupted."""
        return torch.tensor([self.clean.ids, self.corrupted.ids])

    @property
    def first(self) -> int:
        """The first position at which the prompts differ: before it, all activations of both runs are the same."""
        return int((self.ids[0] != self.ids[1]).nonzero()[0])


def token_pair(instrument: Instrument, pair: CounterfactualPair, *, chat: bool = False) -> TokenPair:
    """The pair in the model's tokenizer; ``chat``: each prompt is a user's turn.

    Raises:
        PromptError: prompts of unequal length, that are the same tokens, or too long; an answer that is not one token, or two that are the same.
    """
    tokenizer = instrument.loaded.tokenizer
    most = instrument.parts.max_context
    clean, corrupted = (build_prompt(tokenizer, text, chat=chat, max_tokens=most) for text in (pair.clean, pair.corrupted))
    answers = []
    for text in (pair.answer, pair.wrong):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            pieces = ", ".join(repr(tokenizer.decode([i])) for i in ids)
            raise PromptError(f"{text!r} is {len(ids)} tokens: {pieces}.", why="A logit difference is between two tokens.")
        answers.append(int(ids[0]))
    if len(clean.ids) != len(corrupted.ids):
        raise PromptError(
            f"The clean prompt has {len(clean.ids)} tokens and the corrupted one {len(corrupted.ids)}.",
            why="An activation of one is put into the other at the same position.",
        )
    if answers[0] == answers[1]:
        raise PromptError(f"{pair.answer!r} and {pair.wrong!r} are the same token.")
    if list(clean.ids) == list(corrupted.ids):
        raise PromptError("Both prompts are the same tokens.")
    return TokenPair(pair, clean, corrupted, *answers)


def validate_pairs(
    instrument: Instrument, pairs: Sequence[CounterfactualPair], *, least: float = 0.5, max_tokens: int = 2048
) -> pl.DataFrame:
    """Which pairs hold on a model and its tokenizer.

    A pair holds where both prompts have one length, both answers are one token, ``logit(answer) − logit(wrong)`` is positive on the clean side, and at least
    ``least`` smaller on the corrupted side (where it is negative, the model answers that side, too).

    Args:
        instrument: the model.
        pairs: to look at.
        least: of clean − corrupted, in logits.
        max_tokens: sequences run together hold at most so many tokens.

    Returns:
        One row a pair, in order: ``id category frame tokens clean corrupted holds reason``: the differences in logits (null where a pair cannot be run) and
        the reason why it does not hold (null where it does).

    Raises:
        ConfigError: no pairs, or ``least`` that is no positive number.
    """
    if not pairs:
        raise ConfigError("There are no pairs to look at.")
    if not least > 0:
        raise ConfigError(f"least={least} would call a pair without an effect a pair that holds.", todo="Give a number above 0.")
    rows: list[dict[str, Any]] = []
    lengths: dict[int, list[tuple[int, TokenPair]]] = {}
    for i, pair in enumerate(pairs):
        row = {
            "id": pair.id,
            "category": pair.category,
            "frame": pair.frame,
            "tokens": None,
            "clean": None,
            "corrupted": None,
            "holds": False,
        }
        try:
            built = token_pair(instrument, pair)
        except PromptError as error:
            rows.append(row | {"reason": error.what})
            continue
        rows.append(row | {"tokens": len(built.clean.ids), "reason": None})
        lengths.setdefault(len(built.clean.ids), []).append((i, built))
    for length, members in lengths.items():
        step = max(1, max_tokens // (2 * length))
        for start in range(0, len(members), step):
            part = members[start : start + step]
            logits = instrument.run(torch.cat([one.ids for _, one in part]), keep_logits=1).logits
            assert logits is not None
            for (i, one), of_pair in zip(part, logits[:, -1].double().view(len(part), 2, -1), strict=True):
                clean, corrupted = (of_pair[:, one.answer] - of_pair[:, one.wrong]).tolist()
                reason = None
                if clean <= 0:
                    reason = f"the clean prompt's answer is not above the wrong one ({clean:.2f})"
                elif clean - corrupted < least:
                    reason = f"the corrupted prompt changes the difference by {clean - corrupted:.2f} only, less than {least:g}"
                rows[i] |= {"clean": clean, "corrupted": corrupted, "holds": reason is None, "reason": reason}
    return pl.DataFrame(rows, schema=VALIDATION_SCHEMA)
