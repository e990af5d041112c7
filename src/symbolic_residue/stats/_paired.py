"""Two yes-or-no answers on the same units: does the share differ?

1. Units that answer alike both times say nothing of a difference. Of those that differ, each is as likely to differ one way as the other if
   nothing changed: :func:`mcnemar` is the exact binomial test of that (McNemar 1947).
2. :func:`paired_difference` is the difference of the two shares, second minus first, with Newcombe's interval for paired data (1998, method 10):
   Wilson's intervals of both shares joined by squares, with the correlation of the answers. It never leaves [−1, 1].
"""

from __future__ import annotations

import math

from scipy import stats as sps

from symbolic_residue.errors import ConfigError
from symbolic_residue.stats._estimate import Estimate, wilson

__all__ = ["mcnemar", "paired_difference"]


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p that units are as likely to say yes the first time only as the second time only; 1 where none differ.

    Raises:
        ConfigError: a count that is no whole number of 0 or more.
    """
    b, c = _counts(only_first, only_second)
    return float(sps.binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0


def paired_difference(both: int, only_first: int, only_second: int, neither: int, level: float = 0.95) -> Estimate:
    """Share of yes the second time minus the first, over the same units.

    Raises:
        ConfigError: counts that are no whole numbers of 0 or more, or all 0; ``level`` not in (0, 1).
    """
    a, b, c, d = _counts(both, only_first, only_second, neither)
    n = a + b + c + d
    first, second = wilson(a + b, n, level), wilson(a + c, n, level)
    value = second.value - first.value
    product = (a + b) * (c + d) * (a + c) * (b + d)
    cross = a * d - b * c
    # Newcombe's correction for small counts: a positive correlation is taken half a unit smaller.
    shrunk = max(cross - n / 2, 0.0) if cross > 0 else float(cross)
    phi = shrunk / math.sqrt(product) if product else 0.0
    down_1, up_1 = first.value - first.low, first.high - first.value
    down_2, up_2 = second.value - second.low, second.high - second.value
    low = value - math.sqrt(max(0.0, down_2**2 - 2 * phi * down_2 * up_1 + up_1**2))
    high = value + math.sqrt(max(0.0, up_2**2 - 2 * phi * up_2 * down_1 + down_1**2))
    return Estimate(value, max(-1.0, low), min(1.0, high), n, level, "Newcombe, paired")


def _counts(*counts: int) -> tuple[int, ...]:
    if any(isinstance(count, bool) or count != int(count) or count < 0 for count in counts):
        raise ConfigError(f"{counts} are no counts.", todo="Give whole numbers of 0 or more.")
    return tuple(int(count) for count in counts)
