"""What a multi-path decoding is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args, Literal

from symbolic_residue.errors import ConfigError
from symbolic_residue.parallel._layout import Mode, MODES, Scheme, SCHEMES
from symbolic_residue.parallel._schedule import Schedule

__all__ = ["FOLLOWS", "Follow", "ParallelConfig", "Pruning"]

Follow = Literal["top", "mixture", "geometric", "last"]
"""What predicts the next step: the top sibling's row; the rows' distributions averaged by the siblings' probabilities, arithmetically or geometrically;
the last row."""

FOLLOWS: tuple[Follow, ...] = get_args(Follow)
Rule = Literal["absolute", "relative"]
Removal = Literal["mask", "recompute"]
Source = Literal["top", "all"]


def _whole(value: Any, what: str, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{what}={value!r} is no whole number from {least} up.")


@dataclass(frozen=True)
class Pruning:
    """Retroactive pruning: siblings that later rows hardly look at are taken out again.

    A token of step t is judged once, when the rows of step t + ``after`` have looked at it. Its score is the attention that the rows of these ``after`` steps
    paid to it, each row divided by what it left for keys other than the sink, averaged over steps, layers and heads. The top token of a set always stays.

    Attributes:
        rule: ``absolute`` (kept from ``least`` up) or ``relative`` (kept from ``least`` · the set's largest score up).
        least: the bound, a share.
        after: steps that look before it is judged.
        removal: ``mask`` (no later row sees it) or ``recompute`` (it is deleted from the cache, and what came after it is read again without it).
        layers, heads: whose attention counts; None is all.
        source: rows that count: the ``top`` sibling's, or ``all`` weighted by their probabilities.

    Raises:
        ConfigError: a field out of range.
    """

    rule: Rule = "relative"
    least: float = 0.1
    after: int = 1
    removal: Removal = "mask"
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    source: Source = "top"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("rule", self.rule, get_args(Rule)),
            ("removal", self.removal, get_args(Removal)),
            ("source", self.source, get_args(Source)),
        ):
            if value not in known:
                raise ConfigError(f"Pruning {name}={value!r} is unknown.", todo=f"Use one of {', '.join(known)}.")
        if not 0 <= self.least <= 1:
            raise ConfigError(f"Pruning least={self.least!r} is no share between 0 and 1.")
        _whole(self.after, "Pruning after")


@dataclass(frozen=True)
class ParallelConfig:
    """How sets are chosen, placed and followed.

    Attributes:
        threshold: every token at least this probable enters the set: a number, or a schedule (see :class:`Schedule`).
        mode: what a sibling sees of its own set (``isolated causal visible``).
        scheme: positions of a set (``shared offset unique``).
        epsilon: distance between neighbours under ``offset``.
        follow: what predicts the next step (``top mixture geometric last``).
        max_steps: at most so many steps.
        max_siblings: at most so many tokens a set, the most probable ones.
        max_keys: stop before the cache would hold more tokens (prompt included); None: four times the model's context.
        bias: added to siblings' attention scores as later rows see them.
        stop_ids: tokens that end a sequence; None takes the model's own, ``()`` none. As the most probable token one ends the sequence; as a sibling it is
        recorded as
            an ending and never fed.
        pruning: retroactive pruning, or None.

    Raises:
        ConfigError: a field out of range, or fields that contradict each other.
    """

    threshold: float | str | Schedule = 0.1
    mode: Mode = "isolated"
    scheme: Scheme = "shared"
    epsilon: float = 0.1
    follow: Follow = "mixture"
    max_steps: int = 30
    max_siblings: int = 20
    max_keys: int | None = None
    bias: float = 0.0
    stop_ids: tuple[int, ...] | None = None
    pruning: Pruning | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "threshold", Schedule.parse(self.threshold))
        for name, value, known in (("mode", self.mode, MODES), ("scheme", self.scheme, SCHEMES), ("follow", self.follow, FOLLOWS)):
            if value not in known:
                raise ConfigError(f"{name}={value!r} is unknown.", todo=f"Use one of {', '.join(known)}.")
        _whole(self.max_steps, "max_steps")
        _whole(self.max_siblings, "max_siblings")
        if self.max_keys is not None:
            _whole(self.max_keys, "max_keys")
        if not 0 <= self.epsilon < float("inf"):
            raise ConfigError(f"epsilon={self.epsilon!r} is no distance between positions.", todo="Use 0.001 to 0.5.")
        if self.scheme == "offset" and self.epsilon * (self.max_siblings - 1) / 2 >= 1:
            raise ConfigError(
                f"epsilon={self.epsilon:g} spreads a set of {self.max_siblings} over its neighbours' positions.",
                todo=f"Use an epsilon below {2 / (self.max_siblings - 1):g}, or fewer max_siblings.",
            )
        if not abs(self.bias) < float("inf"):
            raise ConfigError(f"bias={self.bias!r} is no number.")

    @property
    def schedule(self) -> Schedule:
        """The thresholds by step."""
        assert isinstance(self.threshold, Schedule)
        return self.threshold
