"""From logits to the next token: what may be drawn, and the draw.

1. Temperature 0 takes the largest logit. Otherwise the logits are divided by the temperature ``T``.
2. ``top_k`` keeps the k largest (Fan et al. 2018), and whatever ties with the k-th.
3. ``top_p`` keeps the nucleus (Holtzman et al. 2020): of the distribution that is left, the fewest tokens, in order of probability, that hold at least p;
   equal probabilities stand in order of their ids. What remains is renormalised.
4. The draw inverts the distribution function: with ``u`` uniform in [0, 1), it is the first token, in order of ids, whose cumulative probability exceeds
   ``u``. One ``u`` a token, from the sequence's own generator, in float64; so a sequence's tokens depend on its seed and its logits, not on its neighbours.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError

__all__ = ["Sampler", "candidates"]


def candidates(logits: Tensor, *, temperature: float, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Probabilities that are drawn from.

    Args:
        logits: ``[…, vocab]``; −∞ is a token that is never drawn.
        temperature: above 0.
        top_k, top_p: see the module.

    Returns:
        ``[…, vocab]``, float64, summing to 1.
    """
    scores = logits.double()
    if top_k is not None and top_k < scores.shape[-1]:
        least = scores.topk(top_k, -1).values[..., -1:]
        scores = scores.masked_fill(scores < least, float("-inf"))
    # The largest becomes 0 first, so that no temperature can overflow.
    scores = (scores - scores.amax(-1, keepdim=True)) / temperature
    p = torch.softmax(scores, -1)
    if top_p is not None and top_p < 1:
        ordered, order = torch.sort(p, dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        p = torch.zeros_like(p).scatter(-1, order, ordered.masked_fill(before >= top_p, 0.0))
        p = p / p.sum(-1, keepdim=True)
    return p


@dataclass
class Sampler:
    """Chooses the next tokens of a batch.

    Attributes:
        temperature, top_k, top_p: see the module.
        seeds: one a sequence; None where nothing is drawn.
    """

    temperature: float
    top_k: int | None
    top_p: float | None
    seeds: tuple[int, ...] | None

    def __post_init__(self) -> None:
        self._generators = [torch.Generator().manual_seed(s) for s in self.seeds or ()]

    @classmethod
    def make(
        cls, batch: int, temperature: float, top_k: int | None, top_p: float | None, seed: int | Sequence[int] | None
    ) -> Sampler:
        """A sampler from a user's options.

        Args:
            batch: number of sequences.
            temperature, top_k, top_p: see the module.
            seed: a number (sequence i gets ``seed + i``), one a sequence, or None (fresh ones, from the operating system).

        Raises:
            ConfigError: an option out of range.
        """
        if not _number(temperature) or not math.isfinite(temperature) or temperature < 0:
            raise ConfigError(f"temperature={temperature!r} is no number from 0 up.", todo="Give 0 for the most probable token.")
        if top_k is not None and (not _whole(top_k) or top_k < 1):
            raise ConfigError(f"top_k={top_k!r} is no whole number from 1 up.", todo="Leave it out to keep every token.")
        if top_p is not None and (not _number(top_p) or not 0 < top_p <= 1):
            raise ConfigError(f"top_p={top_p!r} is not in (0, 1].", todo="Leave it out to keep every token.")
        if temperature == 0:
            return cls(float(temperature), top_k, top_p, None)
        if seed is None:
            seeds = [secrets.randbits(62) for _ in range(batch)]
        elif _whole(seed):
            seeds = [seed + i for i in range(batch)]  # type: ignore[operator]
        else:
            seeds = list(seed)  # type: ignore[arg-type]
        if len(seeds) != batch:
            raise ConfigError(f"{len(seeds)} seeds were given for {batch} sequences.", todo="Give one number, or one a sequence.")
        if not all(_whole(s) and 0 <= s < 2**63 for s in seeds):
            raise ConfigError(f"seed={seed!r} does not give whole numbers from 0 to 2^63 − 1.")
        return cls(float(temperature), top_k, top_p, tuple(int(s) for s in seeds))

    def choose(self, logits: Tensor, running: Sequence[bool]) -> Tensor:
        """The next token of each sequence.

        Args:
            logits: ``[batch, vocab]``, free of NaN where the sequence runs.
            running: which sequences still draw; an ended one costs no random number.

        Returns:
            ``[batch]``, on the logits' device.
        """
        chosen = logits.argmax(-1)
        if self.seeds is None:
            return chosen
        alive = [i for i, runs in enumerate(running) if runs]
        cumulative = candidates(logits[alive], temperature=self.temperature, top_k=self.top_k, top_p=self.top_p).cumsum(-1)
        u = torch.stack([torch.rand(1, generator=self._generators[i], dtype=torch.float64) for i in alive]).to(logits.device)
        chosen[alive] = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)[:, 0]
        return chosen


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
