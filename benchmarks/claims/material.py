"""What claims are tested on beside the packaged benchmarks: facts and torn prompts in this project's own words, pairs of instructions that point alike, and running text.

1. ``facts``: twelve sentence patterns about places (four for each type of value), two facts a pattern, made as those of ``memory-degradation``.
2. ``TORN``: prompts with two continuations that the text supports alike, each of a pattern of its own.
3. ``alike``: pairs of compatible instructions of different kinds, by how alike they point, chosen before anything is asked.
4. ``manual``: paragraphs of Python's own manual as the standard library carries it (``pydoc_data.topics``), so they hang on Python's version.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from symbolic_residue.prompts import Instruction, KINDS, make_instruction, MemoryItem, relation

__all__ = ["TORN", "alike", "facts", "manual"]

_COLOURS = ("green", "brown", "white", "blue", "red", "grey", "black", "yellow")
_STUFFS = ("stone", "glass", "gold", "iron", "wood", "clay", "paper", "silver")
_NAMES = ("Anna", "Peter", "Maria", "Thomas", "Laura", "Martin", "Helen", "Paul")
_DIGITS = ("2", "3", "4", "5", "6", "7", "8", "9")
_PATTERNS = (
    ("word", "curtain", _COLOURS, "The curtain in the {x} is {v}."),
    ("word", "bell", _STUFFS, "The bell of the {x} is made of {v}."),
    ("word", "van", _COLOURS, "The van that belongs to the {x} is painted {v}."),
    ("word", "table", _STUFFS, "The big table at the {x} is of solid {v}."),
    ("name", "gardener", _NAMES, "The gardener of the {x} answers to the name {v}."),
    ("name", "song", _NAMES, "The song about the {x} was written by {v}."),
    ("name", "cat", _NAMES, "The cat that lives in the {x} is called {v}."),
    ("name", "prize", _NAMES, "The prize of the {x} went to {v}."),
    ("number", "room", _DIGITS, "The meeting at the {x} is in room {v}."),
    ("number", "storeys", _DIGITS, "The number of floors of the {x} is {v}."),
    ("number", "platform", _DIGITS, "The train to the {x} leaves from platform {v}."),
    ("number", "dogs", _DIGITS, "The count of dogs in the {x} stands at {v}."),
)
_THINGS = (
    "abbey", "market", "office", "garden", "studio", "clinic", "hotel", "academy", "pavilion", "foundry", "dairy", "archive", "fortress",
)  # fmt: skip
SAME = 18
_UNTOLD = ("avoid", "no-list", "no-digits", "lowercase", "short", "long", "one-word")
"""Kinds that plain answers follow untold, or that leave no mark: a pair of these would not fail whatever its angle."""
_PADDINGS = ("repetitive", "natural", "adversarial")


def facts() -> list[MemoryItem]:
    """24 facts of one value, with padding between fact and question; kinds of padding by turns, so that each pattern has two."""
    out = []
    for n in range(2 * len(_PATTERNS)):
        token_type, frame, pool, pattern = _PATTERNS[n % len(_PATTERNS)]
        x, others = _THINGS[n % len(_THINGS)], [t for t in _THINGS if t != _THINGS[n % len(_THINGS)]]
        answer, *foils = [pool[(3 * n + 1 + i) % len(pool)] for i in range(len(pool))]
        start = pattern[: pattern.index(" {v}")].format(x=x)
        padding = _PADDINGS[(n + n // len(_PATTERNS)) % 3]
        out.append(
            MemoryItem.model_validate(
                {
                    "id": f"claim-{frame}-{1 + n // len(_PATTERNS)}",
                    "kind": padding,
                    "frame": frame,
                    "split": "held-out",
                    "fact": pattern.format(x=x, v=answer),
                    "question": f"\nAs was said, {start[0].lower()}{start[1:]}",
                    "answers": [f" {answer}"],
                    "foils": [[f" {f}" for f in foils]],
                    "control": pattern.format(x=x, v=foils[0]),
                    "padding": padding,
                    "place": "between",
                    "token_type": token_type,
                    "distractors": [pattern.format(x=t, v=foils[i % len(foils)]) for i, t in enumerate(others)],
                }
            )
        )
    return out


TORN: tuple[tuple[str, str, str], ...] = (
    ("The twins pulled at one rope each. One pulled left, one pulled right, and they were equally strong. The sledge moved to the", " left", " right"),
    ("Half of the guests want tea and half want coffee, and there is only one pot. The host makes", " tea", " coffee"),
    ("Lena's left sock is red and her right sock is blue. Without looking, she takes one off. The sock in her hand is", " red", " blue"),
    ("A sealed box holds either a ring or a watch, and nobody knows which. She opens it and sees a", " ring", " watch"),
    ("The two scales disagree: by the first the sack is heavy, by the second it is light. In truth the sack is", " heavy", " light"),
    ("Monday was wet. Tuesday was dry. Wednesday was wet. Thursday was dry. About Friday nobody can tell; it will be", " wet", " dry"),
    ("The map says that the inn is north of the lake. The guide says it is south of the lake. The inn is to the", " north", " south"),
    ("Ada and Ben were alone in the kitchen, and one of them ate the cake. The one who ate it was", " Ada", " Ben"),
    ("Two doors stand side by side, one green and one white. The prize is behind one of them. It is behind the", " green", " white"),
    ("The baby will be a boy or a girl; the parents do not want to be told. In May they hold a little", " boy", " girl"),
    ("Some of the jury think that he is guilty, as many think that he is innocent. The jury finds him", " guilty", " innocent"),
    ("Her father speaks French to her and her mother speaks German. When she talks in her sleep, she speaks", " French", " German"),
    ("The letter can go by land or by sea, at the same price and in the same time. The clerk sends it by", " land", " sea"),
    ("It is dusk: one may call it day, one may call it night. The child at the window says that it is", " day", " night"),
    ("The basket holds as many plums as pears. With her eyes closed the girl takes one out, and it is a", " plum", " pear"),
    ("Out of the tunnel came a horse, or perhaps a mule; in the dust one could not see. Tom swears it was a", " horse", " mule"),
    ("The old recipe says sugar. The new recipe says salt. The cook follows one of them and adds some", " sugar", " salt"),
    ("Both brothers were in town that night. The neighbour saw one of them, the older or the younger. It was the", " older", " younger"),
    ("A die was thrown, and the sum of points may be odd or even with the same chance. This time it is", " odd", " even"),
    ("The vote stood at six for the bridge and six for the tunnel. The chair had to decide, and chose the", " bridge", " tunnel"),
    ("The ship may land at dawn or at noon, the captain will not say. The crowd on the pier expects it at", " dawn", " noon"),
    ("Her two watches differ: one is fast, the other slow, and she has forgotten which is which. The one on her arm is", " fast", " slow"),
    ("There is one seat left for the cat and the dog. Both are waiting in front of it. In the end it goes to the", " cat", " dog"),
    ("Report from the pass: the upper road is open, the lower road is open as well. The carter takes the", " upper", " lower"),
    ("In the dark the wine could not be told apart; there was white and red in the cellar. The glass was filled with", " white", " red"),
    ("The first witness heard a man's voice, the second heard a woman's voice. The voice behind the door belonged to a", " man", " woman"),
    ("Question: is the glass half full or half empty? Answer: it is half", " full", " empty"),
    ("Rain or snow, said the forecast, each with fifty percent. In the morning the yard was covered by", " rain", " snow"),
    ("The coat fits Anna, and it fits Laura just as well. Their aunt gives it to", " Anna", " Laura"),
    ("The pendulum swings left, then right, then left, then right. The photograph shows it on the", " left", " right"),
)  # fmt: skip
"""(prompt, one continuation, the other), each of a pattern of its own."""


def alike(conflict: Any, taken: Sequence[frozenset[str]], n: int, limit: float) -> list[tuple[Instruction, Instruction, float]]:
    """Compatible pairs of different demands whose geometric conflict is at most ``limit``, least first, at most :data:`SAME` of the same two kinds.

    Args:
        conflict: ``texts -> [text, text]``: geometric conflict.
        taken: pairs of texts that are items already.
        n: at most so many.
        limit: of the conflict.
    """
    every = [
        make_instruction(kind, value, wording=w)
        for kind, k in KINDS.items()
        if kind not in _UNTOLD
        for value in (k.values or ("",))[:4]
        for w in (0, 1)
    ]
    between = conflict([one.text for one in every])
    order = sorted(
        (float(between[i][j]), i, j)
        for i, j in combinations(range(len(every)), 2)
        if (every[i].kind, every[i].value) != (every[j].kind, every[j].value) and float(between[i][j]) <= limit
    )
    found: list[tuple[Instruction, Instruction, float]] = []
    for value, i, j in order:
        a, b = every[i], every[j]
        same = sum({a.kind, b.kind} == {x.kind, y.kind} for x, y, _ in found)
        if len(found) < n and same < SAME and frozenset((a.text, b.text)) not in taken and relation(a, b) == "compatible":
            found.append((a, b, value))
    return found


def manual(least: int) -> list[tuple[str, str]]:
    """(topic, prose) of the manual's topics that hold at least ``least`` words of prose: paragraphs that are neither headings nor code, joined."""
    from pydoc_data.topics import topics

    out = []
    for name in sorted(topics):
        paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", topics[name])]
        prose = [
            p
            for p in paragraphs
            if len(p.split()) >= 12 and p[:1].isupper() and p[-1:] == "." and "::=" not in p and ">>>" not in p
        ]
        text = " ".join(prose)
        if len(text.split()) >= least:
            out.append((name, text))
    return out
