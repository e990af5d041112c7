"""Metrics of patching: one number a run, read from the logits of the last row, and the fraction of an effect that a patch recovers.

1. A metric is any callable ``logits [batch, vocab] (float32) → [batch]``. Three ready-made ones: logit difference, log-probability, and the
   Kullback-Leibler divergence to the source's own prediction.
2. ``recovered = (patched − target) / (source − target)``: 0 where the patch did nothing, 1 where it brought all of the source's value (Wang et al.
   2022, "Interpretability in the Wild"; Heimersheim and Nanda 2024, "How to use and interpret activation patching").
3. Where source and target hardly differ there is nothing to recover: below ``floor`` the fraction is NaN with that reason, never a huge number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError

__all__ = ["KLToSource", "LogProbability", "LogitDifference", "Metric", "bind_metric", "evaluate", "recovered"]

Metric = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LogitDifference:
    """``logit(a) − logit(b)``: the log-odds of token ``a`` against token ``b``, in nats."""

    a: int
    b: int

    def __call__(self, logits: Tensor) -> Tensor:
        """``logits [batch, vocab]`` → ``[batch]``."""
        _check_tokens(logits, self.a, self.b)
        return logits[:, self.a] - logits[:, self.b]


@dataclass(frozen=True)
class LogProbability:
    """``log P(token)`` in nats."""

    token: int

    def __call__(self, logits: Tensor) -> Tensor:
        """``logits [batch, vocab]`` → ``[batch]``."""
        _check_tokens(logits, self.token)
        return torch.log_softmax(logits, -1)[:, self.token]


@dataclass(frozen=True)
class KLToSource:
    """``KL(source ‖ run)`` in nats over the whole vocabulary: 0 where the run predicts what the source predicts.

    The sweep gives it the source's logits; its recovered fraction is ``1 − KL(source ‖ patched) / KL(source ‖ target)``.
    """

    source: Tensor | None = None

    def bound(self, source_logits: Tensor) -> KLToSource:
        """The metric for one source, ``[vocab]``."""
        return replace(self, source=source_logits)

    def __call__(self, logits: Tensor) -> Tensor:
        """``logits [batch, vocab]`` → ``[batch]``.

        Raises:
            ConfigError: it was not bound to a source.
        """
        if self.source is None:
            raise ConfigError("KLToSource has no source.", todo="Pass it to a sweep, or bind it: KLToSource().bound(logits).")
        log_p = torch.log_softmax(self.source.to(logits), -1)
        return (log_p.exp() * (log_p - torch.log_softmax(logits, -1))).sum(-1)


def bind_metric(metric: Metric, source_logits: Tensor) -> Metric:
    """The metric for one pair; those that need the source's logits ``[vocab]`` get them."""
    return metric.bound(source_logits) if isinstance(metric, KLToSource) else metric


def evaluate(metric: Metric, logits: Tensor) -> Tensor:
    """The metric of ``logits [batch, vocab]``, as ``[batch]`` in float32, with its gradient where the logits have one.

    Raises:
        ConfigError: it returned anything but a finite tensor ``[batch]``.
    """
    value: Any = metric(logits.float())
    if not isinstance(value, Tensor) or value.shape != logits.shape[:1]:
        shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(
            f"The metric returned {shape} for logits {list(logits.shape)}.",
            why="A metric gives one number a run.",
            todo="Return a tensor [batch]; reduce over the vocabulary only.",
        )
    if not bool(torch.isfinite(value).all()):
        raise ConfigError("The metric is NaN or infinite.", todo="Check the metric, and that the model's logits are finite.")
    return value


def recovered(patched: float, source: float, target: float, floor: float) -> tuple[float, str | None]:
    """``(patched − target) / (source − target)``, or NaN with the reason where there is nothing to recover."""
    gap = source - target
    if abs(gap) < floor:
        return math.nan, f"nothing to recover: source and target differ by {abs(gap):.2g}, less than the floor of {floor:g}"
    return (patched - target) / gap, None


def _check_tokens(logits: Tensor, *tokens: int) -> None:
    for token in tokens:
        if not 0 <= token < logits.shape[-1]:
            raise ConfigError(f"Token id {token} is outside the vocabulary of {logits.shape[-1]}.")
