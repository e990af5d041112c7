"""Behaviours of heads on random tokens: induction, previous token, duplicate token, each beside a control.

1. A sequence is ``r r``: ``half`` distinct random tokens, then the same again; nothing but the repetition can be made use of. The control text is
   ``2 · half`` distinct random tokens.
2. A score is the head's mean attention, over the rows of the second half, to one key: for row ``i`` the token after the previous occurrence
   ``i − half + 1`` (induction), the previous occurrence ``i − half`` (duplicate token), or the token before ``i − 1`` (previous token).
3. Induction and duplicate token: the control is the same key on text that does not repeat. Previous token does not need repetition, so there the text
   does not repeat, and the control is the neighbouring key ``i − 2``: a head that looks at nearby tokens alike does not pass for a previous-token head.
4. The unit of the interval is the sequence. ``uniform`` is what attending to all visible keys alike would score.

Source: Olsson et al. 2022 (In-context Learning and Induction Heads), prefix-matching and previous-token scores on repeated random tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError, ReadError
from symbolic_residue.instrument import AttentionRead, Instrument
from symbolic_residue.stats import bootstrap_columns, Estimate

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

__all__ = ["HeadScores", "duplicate_token_scores", "induction_scores", "previous_token_scores"]

Behaviour = Literal["induction", "duplicate token", "previous token"]


@dataclass(frozen=True)
class HeadScores:
    """Mean attention of every head on the key that a behaviour looks at, a share between 0 and 1.

    Arrays are ``[layer, head]``; NaN in layers without softmax attention.

    Attributes:
        behaviour: which.
        value, low, high: mean over sequences, and its interval.
        control, control_low, control_high: the same for the control.
        n: sequences.
        uniform: the score of attending to all visible keys alike (windows left out of account).
        level: nominal coverage of each head's interval by itself.
        control_text: what the control is.
    """

    behaviour: Behaviour
    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    control: NDArray[np.float64]
    control_low: NDArray[np.float64]
    control_high: NDArray[np.float64]
    n: int
    uniform: float
    level: float
    control_text: str

    def best(self, k: int = 10) -> list[tuple[int, int, Estimate, Estimate]]:
        """The ``k`` heads of the largest scores: (layer, head, score, control)."""
        flat = np.where(np.isnan(self.value), -np.inf, self.value).ravel()
        order = [int(i) for i in np.argsort(-flat, kind="stable")[:k] if np.isfinite(flat[i])]
        out = []
        for layer, head in (divmod(i, self.value.shape[1]) for i in order):
            score = self._estimate(self.value, self.low, self.high, layer, head)
            out.append((layer, head, score, self._estimate(self.control, self.control_low, self.control_high, layer, head)))
        return out

    def _estimate(
        self, value: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64], layer: int, head: int
    ) -> Estimate:
        return Estimate(
            float(value[layer, head]),
            float(low[layer, head]),
            float(high[layer, head]),
            self.n,
            self.level,
            "bootstrap over sequences",
        )

    def frame(self) -> pl.DataFrame:
        """``(layer, head, score, low, high, control, control_low, control_high)``, one row a head."""
        import polars as pl

        layer, head = (g.ravel() for g in np.indices(self.value.shape))
        columns = {"score": "value", "low": "low", "high": "high"} | {c: c for c in ("control", "control_low", "control_high")}
        return pl.DataFrame({"layer": layer, "head": head} | {name: getattr(self, of).ravel() for name, of in columns.items()})


def induction_scores(
    instrument: Instrument, *, seed: int, n_sequences: int = 16, half: int = 32, prefix: Sequence[int] = (), level: float = 0.95
) -> HeadScores:
    """Attention to the token after the previous occurrence of the row's own token.

    Args:
        instrument: the model's instrument.
        seed: of the tokens and of the intervals.
        n_sequences: sequences of each kind (the n of the intervals).
        half: tokens before they repeat.
        prefix: token ids put before every sequence (a beginning-of-sequence token, where the model was trained with one).
        level: of the intervals.

    Raises:
        ConfigError: fewer than 2 sequences, fewer than 3 tokens, or more than the vocabulary or the context has.
        ReadError: a model without softmax attention.
    """
    return _scores(instrument, "induction", seed, n_sequences, half, prefix, level)


def duplicate_token_scores(
    instrument: Instrument, *, seed: int, n_sequences: int = 16, half: int = 32, prefix: Sequence[int] = (), level: float = 0.95
) -> HeadScores:
    """Attention to the previous occurrence of the row's own token; arguments as :func:`induction_scores`."""
    return _scores(instrument, "duplicate token", seed, n_sequences, half, prefix, level)


def previous_token_scores(
    instrument: Instrument, *, seed: int, n_sequences: int = 16, half: int = 32, prefix: Sequence[int] = (), level: float = 0.95
) -> HeadScores:
    """Attention to the token before, on text without repetition; arguments as :func:`induction_scores`."""
    return _scores(instrument, "previous token", seed, n_sequences, half, prefix, level)


def _scores(
    instrument: Instrument, behaviour: Behaviour, seed: int, n_sequences: int, half: int, prefix: Sequence[int], level: float
) -> HeadScores:
    parts = instrument.parts
    pool = _ordinary_tokens(instrument, prefix)
    length = len(prefix) + 2 * half
    if n_sequences < 2 or half < 3:
        raise ConfigError("Scores need at least 2 sequences and 3 tokens before the repetition.")
    if 2 * half > len(pool):
        raise ConfigError(f"{2 * half} distinct tokens are more than the {len(pool)} to draw from.", todo="Use a smaller half.")
    if parts.max_context is not None and length > parts.max_context:
        raise ConfigError(f"{length} tokens are more than the model's context of {parts.max_context}.", todo="Use a smaller half.")
    if not parts.attention_layers:
        raise ReadError("No layer of this model has softmax attention.")
    generator = torch.Generator().manual_seed(seed)
    drawn = [pool[torch.randperm(len(pool), generator=generator)[: 2 * half]] for _ in range(n_sequences)]
    plain = [torch.cat([torch.tensor(list(prefix), dtype=torch.long), d]) for d in drawn]
    repeated = [torch.cat([torch.tensor(list(prefix), dtype=torch.long), d[:half], d[:half]]) for d in drawn]
    rows = torch.arange(len(prefix) + half, length)
    if behaviour == "previous token":
        text = "the key two before the row, on the same text"
        found = [_attention(instrument, ids, rows, [rows - 1, rows - 2]) for ids in plain]
        score, control = [f[0] for f in found], [f[1] for f in found]
    else:
        text = "the same key on random text without repetition"
        keys = rows - half + (behaviour == "induction")
        score = [_attention(instrument, ids, rows, [keys])[0] for ids in repeated]
        control = [_attention(instrument, ids, rows, [keys])[0] for ids in plain]
    shape = (parts.n_layers, parts.n_heads)

    def interval(values: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
        full = []
        for column in bootstrap_columns(np.stack([v.ravel() for v in values]), seed=seed, level=level):
            out = np.full(shape, np.nan)
            out[list(parts.attention_layers)] = column.reshape(len(parts.attention_layers), parts.n_heads)
            full.append(out)
        return full

    uniform = float((1.0 / (rows + 1).double()).mean())
    return HeadScores(
        behaviour, *interval(score), *interval(control), n=n_sequences, uniform=uniform, level=level, control_text=text
    )


def _attention(instrument: Instrument, ids: Tensor, rows: Tensor, keys: list[Tensor]) -> list[NDArray[np.float64]]:
    """Mean over rows of the attention from each row to its key, ``[attention layer, head]`` for each list of keys."""
    read = AttentionRead(stats=("lse",), rows=tuple(rows.tolist()), weights=True)
    table = instrument.run(ids[None], attention=read, keep_logits=1).attention
    assert table is not None
    weights = table["weights"][:, 0]  # [layer, head, row, key]
    out = []
    for wanted in keys:
        index = wanted.to(weights.device)[None, None, :, None].expand(*weights.shape[:3], 1)
        out.append(weights.gather(-1, index)[..., 0].double().mean(-1).cpu().numpy())
    return out


def _ordinary_tokens(instrument: Instrument, prefix: Sequence[int]) -> Tensor:
    """Ids to draw from: the tokenizer's, without its special tokens and without the prefix's."""
    tokenizer = getattr(instrument.loaded, "tokenizer", None)
    size = instrument.parts.vocab_size if tokenizer is None else min(instrument.parts.vocab_size, len(tokenizer))
    left_out = {*prefix, *(() if tokenizer is None else tokenizer.all_special_ids)}
    return torch.tensor([i for i in range(size) if i not in left_out], dtype=torch.long)
