"""SHIFT: what the model reads after a jump in time, and how coherent the true continuation stays.

A text ``x``, cut at token ``c``; ``d`` is the distance.

* ``tokens`` forward: the clock jumps ahead, the ``d`` tokens before the cut are dropped; backward: it goes back, they are read a second time.
* ``positions``: the text stays; from the last token before the cut on, positions are ``d`` larger (forward) or smaller (backward).
* ``shuffled``: the ``d`` tokens before the cut stay, in random order. A control: their content is there, their order is not.

**Coherence** at a distance = mean over continuation tokens of log p(true token | shifted context) − log p(true token | unshifted context), nats a token: 0 is a
shift that costs nothing. The first token after the cut is left out: its surprise is the seam's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.instrument import Instrument
from symbolic_residue.shells.temporal_inference._config import Direction, DIRECTIONS, Mode, MODES, TemporalInferenceConfig
from symbolic_residue.shells.temporal_inference._runs import Tail, TextRuns

__all__ = ["coherence", "coherence_curve", "fitting", "make_tail", "places"]

Array = NDArray[np.float64]


def make_tail(
    ids: Sequence[int],
    cut: int,
    distance: int,
    direction: Direction,
    mode: Mode | str,
    after: int,
    *,
    rng: np.random.Generator | None = None,
) -> Tail:
    """The tail for one shift: what follows the part of the text that is left alone.

    Args:
        ids: the text.
        cut: tokens before the cut.
        distance: tokens of the shift, 0 is none.
        direction: ``forward`` or ``backward``.
        mode: ``tokens``, ``positions``, or ``shuffled`` (then ``rng`` draws the order).
        after: tokens of the text after the cut that are appended (and scored).

    Raises:
        ConfigError: an unknown direction or mode, or a distance that is negative or does not leave a token.
    """
    if direction not in DIRECTIONS or mode not in (*MODES, "shuffled"):
        raise ConfigError(f"A shift {direction!r} of {mode!r}.", todo=f"Use {' or '.join(DIRECTIONS)}; {' or '.join(MODES)}.")
    if not 0 <= distance <= cut - 2 or not 2 <= cut <= len(ids):
        raise ConfigError(
            f"A shift of {distance} tokens does not fit before token {cut}.", todo="Use a shorter shift or a longer text."
        )
    continuation = ids[cut : cut + after]
    if mode == "tokens" and direction == "forward":
        start = cut - distance
        tail = [ids[start - 1], *continuation]
        return Tail(start - 1, tuple(tail), tuple(range(start - 1, start - 1 + len(tail))), len(continuation))
    if mode == "positions":
        tail = [ids[cut - 1], *continuation]
        sign = 1 if direction == "forward" else -1
        first = cut - 1 + sign * distance
        return Tail(cut - 1, tuple(tail), tuple(range(first, first + len(tail))), len(continuation))
    if mode == "shuffled":
        if rng is None:
            raise ConfigError("A shuffled span needs a random generator.")
        span, start = [ids[cut - distance + int(i)] for i in rng.permutation(distance)], cut - distance
    else:
        span, start = list(ids[cut - distance : cut]), cut
    tail = [ids[start - 1], *span, *continuation]
    return Tail(start - 1, tuple(tail), tuple(range(start - 1, start - 1 + len(tail))), len(continuation))


def places(n: int, distance: int, config: TemporalInferenceConfig) -> list[int]:
    """Cuts, the last one ``horizon`` tokens before the end, the others ``stride`` tokens apart before it.

    Raises:
        PromptError: the text is too short.
    """
    cuts = [n - config.horizon - 1 - config.stride * i for i in range(config.places)][::-1]
    least = config.context + distance
    if cuts[0] < least:
        need = least + config.horizon + 1 + config.stride * (config.places - 1)
        raise PromptError(
            f"The text has {n} tokens; a shift of {distance} needs {need}.",
            why=f"{config.context} before the shift, {config.places} places {config.stride} apart, {config.horizon + 1} after.",
            todo="Give a longer text, a shorter shift, or fewer places.",
        )
    return cuts


def fitting(distances: Sequence[int], cuts: Sequence[int], config: TemporalInferenceConfig, asked: int | None = None) -> list[int]:
    """The distances that leave ``context`` tokens before every shift, ascending, with ``asked`` among them."""
    most = cuts[0] - config.context
    return sorted({d for d in distances if 1 <= d <= most} | ({asked} if asked is not None else set()))


def coherence(
    runs: TextRuns,
    cuts: Sequence[int],
    distances: Sequence[int],
    direction: Direction,
    mode: Mode | str,
    after: Sequence[int],
    *,
    seed: int = 0,
) -> list[Array]:
    """For each distance ``[place, token]``: coherence token by token, the first after the cut left out (nats).

    Args:
        runs: the text.
        cuts: the places.
        after: for each distance, how many tokens (without the first one).
    """
    rng = np.random.default_rng(seed)
    jobs = [(d, cut, n) for d, n in zip(distances, after, strict=True) for cut in cuts]
    found = runs.score([make_tail(runs.ids, cut, d, direction, mode, n + 1, rng=rng) for d, cut, n in jobs])
    each = [row[1:] - runs.log_p[cut + 1 : cut + 1 + n] for row, (_, cut, n) in zip(found, jobs, strict=True)]
    return [np.stack(each[i * len(cuts) : (i + 1) * len(cuts)]) for i in range(len(distances))]


def coherence_curve(
    instrument: Instrument,
    ids: Sequence[int],
    distances: Sequence[int],
    *,
    direction: Direction = "forward",
    mode: Mode = "tokens",
    config: TemporalInferenceConfig | None = None,
) -> Array:
    """``[distance, place]``: coherence after each shift, mean over the configured window of tokens (nats a token); all distances at the same places.

    Args:
        instrument: the model's instrument.
        ids: the text.
        distances: of the shifts, in tokens; the longest one decides where the places are.
        direction, mode: of the shifts.
        config: context, places, stride and window; the defaults when left out.

    Raises:
        ConfigError: no distance, or an unknown direction or mode.
        PromptError: the text is too short for the longest shift, or too long for the model.
    """
    config = config or TemporalInferenceConfig()
    if not distances:
        raise ConfigError("A curve without distances.", todo="Give one distance or more.")
    cuts = places(len(ids), max(distances), config)
    runs = TextRuns(instrument, ids)
    return np.stack([x.mean(1) for x in coherence(runs, cuts, distances, direction, mode, [config.window] * len(distances))])
