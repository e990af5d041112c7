"""Writes the packaged benchmark ``temporal-coherence`` from its patterns and words, so that anyone can see how its items came about.

1. ``echo``: an opening, then one passage of about 23 tokens twice. A shift of 15 tokens forward leaves the first part of the passage's earlier copy and takes the
   rest away: coherence falls along the continuation (drift), and it breaks at a shift as long as the passage.
2. ``null-text``: the same openings with two different passages: nothing hangs on one span.
3. ``order``, ``cause``: a pair of events whose story is followed by a wrong restatement. ``null-right-…``: a right one; ``null-neutral-…``: a story that gives no order
   or cause, so that nothing can be reversed.
4. Words are drawn with a fixed seed. The first half of each kind is the calibration split, the second half is held out, with words of its own where the lists are long
   enough (names, actions, events); the patterns are the same in both.

Run: python benchmarks/items/temporal_coherence.py (rewrites src/symbolic_residue/prompts/data/temporal_coherence.jsonl)
"""

from __future__ import annotations

import json
import random
from pathlib import Path

TARGET = Path(__file__).parents[2] / "src/symbolic_residue/prompts/data/temporal_coherence.jsonl"
SPLITS = ("calibration", "held-out")

NAMES = (
    ("Mara", "Tom", "Ines", "Paul", "Lena", "Hugo", "Nora", "Karl", "Ruth", "Otto"),
    ("Vera", "Finn", "Ella", "Marc", "Dora", "Leon", "Anna", "Erik", "Rosa", "Igor"),
)
NOUNS = [
    "lantern",
    "ladder",
    "basket",
    "kettle",
    "rope",
    "barrel",
    "mirror",
    "blanket",
    "drum",
    "saddle",
    "candle",
    "bucket",
    "shovel",
    "trumpet",
    "carpet",
    "hammer",
    "bottle",
    "wagon",
    "feather",
    "stone",
]
PLACES = [
    "mill",
    "harbour",
    "barn",
    "bridge",
    "chapel",
    "market",
    "orchard",
    "tower",
    "cellar",
    "garden",
    "ferry",
    "quarry",
    "stable",
    "well",
    "meadow",
    "inn",
]
ADJECTIVES = ["old", "broken", "heavy", "yellow", "narrow", "silver", "wet", "little", "painted", "wooden", "dusty", "quiet"]
VERBS = ["carried", "dragged", "pushed", "rolled", "lowered", "brought", "moved", "sent"]
MORE_VERBS = ["hid", "found", "left", "sold", "buried", "cleaned", "mended", "dropped"]
MATERIALS = ["oak", "granite", "copper", "brick", "iron", "slate", "clay", "marble"]
PEOPLE = ["monks", "sailors", "farmers", "weavers", "miners", "students", "bakers", "soldiers"]
THINGS = ["hall", "gate", "clock", "organ", "fountain", "library", "kiln", "granary"]
GOODS = [
    "rope",
    "salt",
    "flour",
    "candles",
    "soap",
    "nails",
    "honey",
    "paper",
    "string",
    "coffee",
    "pepper",
    "wool",
    "matches",
    "cheese",
    "oil",
    "tea",
    "sugar",
    "plates",
    "forks",
    "pencils",
    "apples",
    "tape",
    "rice",
    "ink",
    "boots",
    "beans",
    "chalk",
    "bread",
    "gloves",
    "stamps",
]
ACTIONS = (
    ("fed the cat", "locked the door", "washed the car", "wrote a letter", "watered the roses", "cut the bread", "fixed the lamp", "called her boss",
     "closed the shop", "paid the bill", "made the bed", "cleaned the stove", "painted the fence", "sold the boat", "read the paper"),
    ("walked the dog", "opened the gate", "cooked the soup", "mailed a parcel", "swept the yard", "baked a pie", "repaired the clock", "met his uncle",
     "left the house", "bought a hat", "packed the bag", "lit the fire", "mowed the lawn", "rented a car", "took a nap"),
)  # fmt: skip
EVENTS = (
    ("the dog barked", "the child cried", "the window broke", "the lights went out", "the crowd left", "the engine stopped", "the horse ran away", "the man shouted",
     "the gate fell shut", "the boat drifted off", "the music stopped", "the teacher laughed", "the pipe burst", "the train was late", "the price went up"),
    ("the baby woke up", "the alarm rang", "the roof leaked", "the guests complained", "the driver braked", "the goats escaped", "the cook quit", "the glass fell",
     "the bridge was closed", "the radio died", "the singer coughed", "the shop was empty", "the fire spread", "the field flooded", "the mayor resigned"),
)  # fmt: skip

OPENINGS = {
    "narrative": "It was still dark when {n} came down to the {p1}. The {p2} lay under snow, and somebody had left a {a1} {o1} beside the road. Then it began.",
    "factual": "The {p1} near the {p2} is known for its {t1}. Visitors come in summer, when the {a1} {o1} is shown to them. Some facts follow.",
    "list": "This is the list that {n} wrote for the {p1}. It was pinned to a {a1} board beside the {o1}, so that all could read it. Here it is:",
}
PASSAGES = {
    "narrative": "{n} {v1} a {a1} {o1} to the {p1}, {w1} the {a2} {o2} near the {p2}, and {w2} one {a3} {o3}.",
    "factual": "The {a1} {t1} is made of {m1} and {m2}, holds one {a2} {o1} and one {o2}, and belongs to the {e1} beside the {p1}.",
    "list": "{g1}, {g2}, {g3}, {g4}, {g5}, {g6}, {g7}, {g8}, {g9}, {g10}, {g11}.",
}
LETTERS = {
    "o": NOUNS,
    "p": PLACES,
    "a": ADJECTIVES,
    "v": VERBS,
    "w": MORE_VERBS,
    "m": MATERIALS,
    "e": PEOPLE,
    "t": THINGS,
    "g": GOODS,
}


def fill(pattern: str, rng: random.Random, half: int) -> str:
    """A pattern with different words in slots of one letter."""
    words = {"n": rng.choice(NAMES[half])}
    for letter, bank in LETTERS.items():
        words |= {f"{letter}{i + 1}": word for i, word in enumerate(rng.sample(bank, min(len(bank), 12)))}
    return pattern.format(**words)


def texts(kind: str, n: int, half: int, rng: random.Random) -> list[dict[str, object]]:
    """``n`` texts of each genre."""
    found = []
    for genre, opening in OPENINGS.items():
        for _ in range(n):
            first = fill(PASSAGES[genre], rng, half)
            second = first if kind == "echo" else fill(PASSAGES[genre], rng, half)
            found.append({"frame": genre, "text": f"{fill(opening, rng, half)} {first} {second}", "genre": genre})
    return found


def pairs(relation: str, echo: str, story: str, n: int, half: int, rng: random.Random) -> list[dict[str, object]]:
    """``n`` pairs, no two events with each other twice."""
    found, seen = [], set()
    while len(found) < n:
        if relation == "order":
            name = rng.choice(NAMES[half])
            first, second = (f"{name} {action}" for action in rng.sample(ACTIONS[half], 2))
        else:
            first, second = rng.sample(EVENTS[half], 2)
        if (first, second) not in seen:
            seen.add((first, second))
            pair = {"first": first, "second": second, "relation": relation, "echo": echo, "story": story}
            found.append({"frame": relation, "pair": pair})
    return found


def items() -> list[dict[str, object]]:
    """All items."""
    out: list[dict[str, object]] = []
    for half, split in enumerate(SPLITS):
        rng = random.Random(11 + half)
        kinds: dict[str, list[dict[str, object]]] = {
            "echo": texts("echo", 7, half, rng),
            "null-text": texts("null-text", 8, half, rng),
        }
        for relation in ("order", "cause"):
            kinds[relation] = pairs(relation, "wrong", "told", 20, half, rng)
            kinds[f"null-right-{relation}"] = pairs(relation, "right", "told", 12, half, rng)
            kinds[f"null-neutral-{relation}"] = pairs(relation, "none", "neutral", 12, half, rng)
        for kind, found in kinds.items():
            for i, item in enumerate(found):
                number = i + 1 + half * len(found)
                out.append({"id": f"{kind}-{number:02d}", "kind": kind, "frame": item.pop("frame"), "split": split, **item})
    return out


if __name__ == "__main__":
    TARGET.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items()), "utf-8")
