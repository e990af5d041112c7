"""Ordinary texts of the same length: the control for salience collapse and bottlenecks.

1. Sentences of our own, in eight orders drawn by a fixed seed, are joined and cut to the length of the text in question: attention is causal, so the
   beginning of a longer text is read as that text alone would be.
2. Each of the eight gives one share of neglected tokens and one largest fall of the effective number; n counts texts.
"""

from __future__ import annotations

import numpy as np

__all__ = ["N_REFERENCES", "reference_texts"]

N_REFERENCES = 8
_SENTENCES = (
    "The baker opened the shop at six and put the first loaves into the window.",
    "Rain fell on the tin roof of the garage, and nobody wanted to go outside.",
    "Her brother repairs clocks in a small room behind the station.",
    "They walked along the canal until the street lamps came on.",
    "A letter from the bank lay under the door for two weeks.",
    "The teacher wiped the board and asked who had finished the second task.",
    "In winter the lake freezes, and the children cross it on their way to school.",
    "He poured the milk into a blue jug and set it on the table by the bread.",
    "The committee will meet again in March to talk about the new bridge.",
    "Nobody remembered who had planted the pear tree at the end of the garden.",
    "The train to the coast was late, so we drank tea in the waiting room.",
    "She counted the coins twice and wrote the sum on the back of an envelope.",
    "An old dog slept in front of the stove and did not hear the visitors.",
    "The painter needed three days for the ceiling and one more for the doors.",
    "When the wind turned, the smoke from the factory drifted over the fields.",
    "My uncle sold his boat last summer and bought a piano instead.",
    "The doctor looked at the chart, nodded, and opened the next file.",
    "Two engineers measured the wall while a third made notes.",
    "On Sundays the museum is free, but the tower stays closed.",
    "The recipe asks for four eggs, a little salt, and a glass of white wine.",
    "Before the concert the hall was so quiet that one could hear the heating.",
    "The farmer mended the fence because the goats had been in the garden again.",
    "Someone had left an umbrella and a pair of gloves on the bench.",
    "The ship carried timber on the way out and oranges on the way home.",
    "It took the whole morning to find the right key for the cellar.",
    "The judge read the sentence slowly and did not look up.",
    "After lunch the office was empty except for the cleaner.",
    "The river is wide here, and the ferry needs ten minutes to cross it.",
    "A thin layer of dust covered the books on the upper shelf.",
    "The nurse closed the curtain and told the boy a story about a fox.",
    "Prices rose again in the autumn, first for oil and then for bread.",
    "The mountain hut has twelve beds, a stove, and a view of the glacier.",
)


def reference_texts(least: int) -> list[str]:
    """Eight texts of at least ``least`` words each, always the same."""
    rng = np.random.default_rng(20)
    out = []
    for _ in range(N_REFERENCES):
        words, parts = 0, []
        while words < least:
            for i in rng.permutation(len(_SENTENCES)):
                parts.append(_SENTENCES[int(i)])
                words += len(parts[-1].split())
                if words >= least:
                    break
        out.append(" ".join(parts))
    return out
