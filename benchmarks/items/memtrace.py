"""Writes the packaged benchmark ``memory-degradation`` from its sentence patterns and words.

1. A pattern is a fact about a place or thing. The question says it again and stops where the value begins. Patterns differ between the splits, and so do the things: held
   out tells about new patterns and new words. Values (colours, names, digits) are shared.
2. Each item takes a thing and values by its number, so nothing is drawn at random. The control states the first foil in the answer's place. Distractors are
   the same pattern about other things, with values that are no answer of the item.
3. Null items are made as the others, with the padding before the fact.

Run: python benchmarks/items/memtrace.py (rewrites src/symbolic_residue/prompts/data/memory_degradation.jsonl)
"""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[2] / "src/symbolic_residue/prompts/data/memory_degradation.jsonl"

COLOURS = ("green", "brown", "white", "blue", "red", "grey", "black", "yellow")
FOODS = ("rice", "fish", "corn", "beef", "beans", "cheese", "chicken", "salt")
STUFFS = ("stone", "glass", "gold", "iron", "wood", "clay", "paper", "silver")
NAMES = ("Anna", "Peter", "Maria", "Thomas", "Laura", "Martin", "Helen", "Paul")
DIGITS = ("2", "3", "4", "5", "6", "7", "8", "9")

# frame: (token type, values, fact)
Frame = tuple[str, tuple[str, ...], str]
FRAMES: dict[str, dict[str, Frame]] = {
    "calibration": {
        "door": ("word", COLOURS, "The door of the {x} is {v}."),
        "soup": ("word", FOODS, "The soup at the {x} is made of {v}."),
        "keeper": ("name", NAMES, "The keeper of the {x} is called {v}."),
        "letter": ("name", NAMES, "The letter for the {x} was signed by {v}."),
        "bus": ("number", DIGITS, "The bus to the {x} has the number {v}."),
        "ticket": ("number", DIGITS, "The price of a ticket for the {x} is {v} coins."),
    },
    "held-out": {
        "flag": ("word", COLOURS, "The flag on the {x} is {v}."),
        "statue": ("word", STUFFS, "The statue in the {x} was made of {v}."),
        "cook": ("name", NAMES, "The cook in the {x} goes by the name of {v}."),
        "race": ("name", NAMES, "The race around the {x} was won by {v}."),
        "locker": ("number", DIGITS, "The locker behind the {x} is number {v}."),
        "club": ("number", DIGITS, "The club of the {x} has a team of {v} players."),
    },
}  # fmt: skip
THINGS = {
    "calibration": ("mill", "harbour", "school", "castle", "library", "farm", "station", "inn", "theatre", "bakery", "hospital", "prison", "temple"),
    "held-out": ("tower", "palace", "bank", "factory", "chapel", "stable", "airport", "museum", "cinema", "brewery", "court", "lighthouse", "arena"),
}  # fmt: skip
# Two values each: (thing's first part, second part, values of both)
FIELDS = {
    "calibration": [("gate", "roof", COLOURS), ("wall", "floor", COLOURS), ("coach", "driver", NAMES)],
    "held-out": [("fence", "bench", COLOURS), ("chair", "carpet", COLOURS), ("owner", "guard", NAMES)],
}
PADDINGS = ("repetitive", "natural", "adversarial")
TYPES = ("word", "name", "number")


def values(pool: tuple[str, ...], n: int) -> list[str]:
    """The pool, turned by ``n``: the answer first, then the foils."""
    return [pool[(n + i) % len(pool)] for i in range(len(pool))]


def again(fact: str, x: str) -> str:
    """The fact once more, up to its first value."""
    start = fact[: fact.index(" {v}")].format(x=x)
    return f"\nAs was said, {start[0].lower()}{start[1:]}"


def one(split: str, frame: str, n: int, *, padding: str, place: str) -> dict[str, Any]:
    token_type, pool, fact = FRAMES[split][frame]
    things = THINGS[split]
    x, (answer, *foils) = things[n % len(things)], values(pool, 3 * n + 1)
    others = [t for t in things if t != x]
    return {
        "frame": frame,
        "split": split,
        "fact": fact.format(x=x, v=answer),
        "question": again(fact, x),
        "answers": [f" {answer}"],
        "foils": [[f" {f}" for f in foils]],
        "control": fact.format(x=x, v=foils[0]),
        "padding": padding,
        "place": place,
        "token_type": token_type,
        "distractors": [fact.format(x=t, v=foils[i % len(foils)]) for i, t in enumerate(others)],
    }


def fields(split: str, which: int, n: int, *, padding: str, place: str) -> dict[str, Any]:
    a, b, pool = FIELDS[split][which]
    things = THINGS[split]
    x, turned = things[(2 * n + 1) % len(things)], values(pool, 5 * n + 2)
    named = pool is NAMES
    verb = "is called" if named else "is"
    fact = f"The {a} of the {{x}} {verb} {{v}} and the {b} {verb} {{w}}."
    first, second = turned[0], turned[1]
    foils = turned[2:]
    others = [t for t in things if t != x]
    return {
        "frame": f"{a}-{b}",
        "split": split,
        "fact": fact.format(x=x, v=first, w=second),
        "question": again(fact, x),
        "answers": [f" {first}", f" and the {b} {verb} {second}"],
        "foils": [[f" {f}" for f in foils], [f" and the {b} {verb} {f}" for f in (*foils[1:], foils[0])]],
        "control": fact.format(x=x, v=foils[0], w=foils[1]),
        "padding": padding,
        "place": place,
        "token_type": "name" if named else "word",
        "distractors": [fact.format(x=t, v=foils[i % 6], w=foils[(i + 1) % 6]) for i, t in enumerate(others)],
    }


def rivals(item: dict[str, Any], split: str, n: int) -> dict[str, Any]:
    """The item with a rival: the same pattern about another thing, with the second foil."""
    _, _, fact = FRAMES[split][item["frame"]]
    thing, value = THINGS[split][(n + 6) % 13], item["foils"][0][1]
    return item | {"rival": fact.format(x=thing, v=value.strip()), "rival_answer": value}


def items(split: str) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    frames = {t: cycle([f for f, (kind, *_) in FRAMES[split].items() if kind == t]) for t in TYPES}
    n = 0

    def add(kind: str, item: dict[str, Any]) -> None:
        nonlocal n
        n += 1
        number = 1 + sum(i["kind"] == kind for i in out) + (0 if split == "calibration" else 50)
        out.append({"id": f"{kind}-{number:02d}", "kind": kind} | item)

    for padding, each in zip(PADDINGS, (2, 2, 3), strict=True):
        for token_type in TYPES:
            for _ in range(each):
                add(padding, one(split, next(frames[token_type]), n, padding=padding, place="between"))
    for i in range(6):
        add("fields", fields(split, i % 3, i, padding="adversarial", place="between"))
    for i in range(9):
        made = one(split, next(frames[TYPES[i % 3]]), n, padding="natural", place="between")
        add("collision", rivals(made, split, n))
    for padding in PADDINGS:
        for token_type in TYPES:
            for _ in range(3 if padding != "adversarial" else 1):
                add("null-near", one(split, next(frames[token_type]), n, padding=padding, place="before"))
    for i in range(20):
        add("null-fields", fields(split, i % 3, i + 6, padding=PADDINGS[i % 3], place="before"))
    for i in range(20):
        made = one(split, next(frames[TYPES[i % 3]]), n, padding=PADDINGS[i % 2], place="before")
        add("null-rival", rivals(made, split, n))
    return out


def main() -> None:
    rows = [row for split in FRAMES for row in items(split)]
    TARGET.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    print(f"{len(rows)} items")


if __name__ == "__main__":
    main()
