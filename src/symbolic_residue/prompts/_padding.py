"""Padding: text of no concern, put between a fact and the question about it.

1. ``natural``: sentences of one kind of quiet prose, in an order drawn by the seed; none repeats before all have been used.
2. ``repetitive``: one sentence, drawn by the seed, over and over.
3. ``adversarial``: sentences that look like the fact but are about something else, as given, in an order drawn by the seed.

The sentences are the project's own and name no person, colour, number word or material.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from symbolic_residue.errors import ConfigError

__all__ = ["NATURAL", "PADDINGS", "REPETITIVE", "Padding", "padding_sentences"]

Padding = Literal["repetitive", "natural", "adversarial"]
PADDINGS: tuple[Padding, ...] = ("repetitive", "natural", "adversarial")

NATURAL = (
    "The rain came late in the afternoon and left the road soft.",
    "A cart went slowly up the hill and stopped near the well.",
    "Somebody had left a window open, and the curtain moved in the wind.",
    "The geese came back early this year and stayed by the pond.",
    "Most of the shops close in the heat and open again towards evening.",
    "The path follows the river for a while and then turns into the forest.",
    "Nobody could say where the old map had come from.",
    "The clock on the tower has been slow since the winter.",
    "In the garden the plants were tied up with string.",
    "A long train passed, and for a while nothing else could be heard.",
    "The bread was still warm when it was carried across the yard.",
    "They talked about the weather and about the price of hay.",
    "The ferry leaves when enough people have gathered at the landing.",
    "Snow fell in the night, but by noon it was gone.",
    "The dog slept under the bench and did not look up.",
    "A letter arrived that had been on its way for weeks.",
    "The children built a dam of stones and watched it break.",
    "At the crossing the sign had fallen over and lay in the grass.",
    "The harvest was better than anyone had thought in spring.",
    "Someone was practising the same tune again and again.",
    "The stairs creak, so everyone walks close to the wall.",
    "It smelled of smoke, although no fire was to be seen.",
    "The market moves to the square behind the church in summer.",
    "After the storm the fishermen spent a day mending their nets.",
    "The lamp was lit late, because oil had become dear.",
    "A heap of leaves was burning slowly at the end of the field.",
    "The guests arrived before the table had been laid.",
    "There is a spring up there whose water tastes of metal.",
    "The road was closed, and the bus took the way along the coast.",
    "In the attic stood a trunk that nobody had opened for years.",
    "The cat waited at the door until somebody let it in.",
    "Fog lay over the meadows and lifted only towards noon.",
    "The piano had been out of tune for as long as anyone could remember.",
    "They carried the boat to the water and pushed off.",
    "The notice at the gate was so faded that it could hardly be read.",
    "Every spring the stream takes a piece of the bank with it.",
    "The oven needs an hour before it is hot enough.",
    "A kite had got caught in the wires above the street.",
    "The museum keeps its coins in a drawer that sticks.",
    "On the last evening they sat outside until it got cold.",
    "The hedge has to be cut before the birds begin to nest.",
    "An umbrella had been forgotten on the seat of the tram.",
    "The wind turned in the night and brought the smell of the sea.",
    "The wheel of the barrow squeaked all the way down the lane.",
    "They moved the chairs closer to the stove and went on reading.",
    "The apples were stored on straw so that they did not touch.",
    "A bell rang somewhere, and then it was quiet again.",
    "The bridge was narrow, and carts had to wait for each other.",
)

REPETITIVE = (
    "The wind blew over the field.",
    "The road went on and on.",
    "It rained again in the evening.",
    "The river flowed past the meadow.",
    "The birds sat on the fence.",
    "The train was late again.",
    "The grass grew by the wall.",
    "A cloud passed over the hill.",
    "The sheep stood in the shade.",
    "The door creaked in the draught.",
    "Water dripped from the roof.",
    "The lane was empty that day.",
)


def padding_sentences(kind: Padding, n: int, *, seed: Sequence[int], similar: Sequence[str] = ()) -> list[str]:
    """``n`` sentences of padding.

    Args:
        kind: see the module.
        n: how many.
        seed: integers; the same give the same sentences, and with the last one counting draws, repetitive draws use up all
            sentences before one returns.
        similar: the sentences of ``adversarial``.

    Raises:
        ConfigError: an unknown kind, or adversarial padding without sentences.
    """
    rng = np.random.default_rng(list(seed))
    if kind == "repetitive":
        order = np.random.default_rng(list(seed[:-1])).permutation(len(REPETITIVE))
        return [REPETITIVE[int(order[seed[-1] % len(REPETITIVE)])]] * n
    if kind not in PADDINGS:
        raise ConfigError(f"There is no padding {kind!r}.", todo=f"Use one of: {', '.join(PADDINGS)}.")
    pool = list(similar) if kind == "adversarial" else list(NATURAL)
    if not pool:
        raise ConfigError("Adversarial padding needs sentences that look like the fact.", todo="Give distractors=[…].")
    found: list[str] = []
    while len(found) < n:
        found += [pool[int(i)] for i in rng.permutation(len(pool))]
    return found[:n]
