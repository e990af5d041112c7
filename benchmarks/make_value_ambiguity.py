"""Writes the packaged benchmark ``value-ambiguity`` from its frames and words, so that anyone can see how its items came about.

1. A *planted* item states one thing six times, three times each way, in an order (ABBAAB or its mirror) without a last word in favour of either; the seventh
   statement is left open. Its *control* is the same text with all six statements agreeing.
2. Which value comes first, and which one the control agrees on, alternate within each kind, so that no position is right more often.
3. The first half of each kind's word sets is the calibration split, the second half is held out. Frames and order were chosen by trying
   eight frames and six orders on ten word sets with the demo model; some of those words come back here, in both splits (see the data card).
4. *Null* items repeat a sentence five times and stop inside the sixth: the next token is settled by construction, and a small model can tell. (Idioms and facts
   were tried first; the demo model does not know enough of them for their next token to count as settled.)

Run: python benchmarks/make_value_ambiguity.py (rewrites src/symbolic_residue/prompts/data/value_ambiguity.jsonl)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

TARGET = Path(__file__).parent.parent / "src/symbolic_residue/prompts/data/value_ambiguity.jsonl"
NAMES = ("Tom", "Ann", "Sam", "Joan", "Paul", "Mary", "Jack")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven")
ORDERS = ("abbaab", "baabba")

FRAMES: dict[str, Callable[[str, list[str]], str]] = {
    "witnesses": lambda k, v: (
        " ".join(f"{n} said the {k} was {x}." for n, x in zip(NAMES, v, strict=False)) + f" {NAMES[6]} said the {k} was"
    ),
    "votes": lambda k, v: f"The {k}: " + " ".join(f"{n} voted {x}." for n, x in zip(NAMES, v, strict=False)) + f" {NAMES[6]} voted",
    "log": lambda k, v: "".join(f"0{i + 1}:00 {k} {x}\n" for i, x in enumerate(v)) + f"07:00 {k}",
    "reports": lambda k, v: (
        "".join(f"Report {n}: the {k} is {x}.\n" for n, x in zip(NUMBERS, v, strict=False)) + f"Report {NUMBERS[6]}: the {k} is"
    ),
    "diary": lambda k, v: (
        " ".join(f"On {d} the {k} was {x}." for d, x in zip(DAYS, v, strict=False)) + f" On {DAYS[6]} the {k} was"
    ),
    "guesses": lambda k, v: (
        f"What is the {k}? " + " ".join(f"{n} guesses {x}." for n, x in zip(NAMES, v, strict=False)) + f" {NAMES[6]} guesses"
    ),
    "table": lambda k, v: "".join(f"{k} = {x}\n" for x in v) + f"{k} =",
}

# (subject, one value, the other): five for calibration, five held out.
WORDS: dict[str, list[tuple[str, str, str]]] = {
    "witnesses": [
        ("coat", "brown", "grey"), ("gate", "open", "shut"), ("boat", "empty", "full"), ("man", "young", "old"), ("street", "quiet", "loud"),
        ("hat", "black", "white"), ("shop", "closed", "open"), ("dog", "small", "large"), ("sky", "clear", "dark"), ("voice", "deep", "high"),
    ],
    "votes": [
        ("motion", "yes", "no"), ("way home", "left", "right"), ("colour of the club", "red", "blue"), ("time of the walk", "early", "late"), ("next trip", "north", "south"),
        ("new rule", "for", "against"), ("drink", "tea", "coffee"), ("paint for the fence", "green", "white"), ("price", "more", "less"), ("pet", "cat", "dog"),
    ],
    "log": [
        ("pump", "on", "off"), ("valve", "open", "closed"), ("signal", "red", "green"), ("tank", "full", "empty"), ("wind", "east", "west"),
        ("alarm", "off", "on"), ("road", "wet", "dry"), ("tide", "high", "low"), ("oven", "hot", "cold"), ("door", "closed", "open"),
    ],
    "reports": [
        ("bridge", "safe", "broken"), ("water", "clean", "dirty"), ("harvest", "good", "bad"), ("field", "wet", "dry"), ("crowd", "small", "large"),
        ("river", "low", "high"), ("ship", "late", "early"), ("mood", "calm", "tense"), ("ice", "thick", "thin"), ("path", "clear", "blocked"),
    ],
    "diary": [
        ("soup", "hot", "cold"), ("train", "late", "early"), ("sea", "calm", "rough"), ("bread", "fresh", "old"), ("hall", "warm", "cool"),
        ("room", "dark", "bright"), ("street", "busy", "quiet"), ("baby", "happy", "sad"), ("weather", "dry", "wet"), ("lake", "blue", "green"),
    ],
    "guesses": [
        ("card", "red", "black"), ("side of the coin", "heads", "tails"), ("animal", "horse", "cow"), ("fruit", "apple", "orange"), ("metal", "gold", "silver"),
        ("direction", "up", "down"), ("drink", "milk", "water"), ("tree", "oak", "pine"), ("season", "summer", "winter"), ("shape", "circle", "square"),
    ],
    "table": [
        ("lamp", "on", "off"), ("colour", "red", "green"), ("mode", "fast", "slow"), ("side", "left", "right"), ("state", "open", "closed"),
        ("light", "green", "red"), ("level", "low", "high"), ("answer", "no", "yes"), ("size", "large", "small"), ("fan", "off", "on"),
    ],
}  # fmt: skip

SENTENCES = [
    "The mill stands where the river turns.",
    "My aunt keeps seven clocks in the hall.",
    "A lantern hung above the narrow door.",
    "We carried the ladder back to the barn.",
    "The baker closes early on the third day.",
    "Nobody had painted the fence since spring.",
    "Her letter came with a pressed leaf inside.",
    "The ferry leaves when the bell has rung.",
    "Two sparrows built a nest under the roof.",
    "He counted the coins and put them away.",
    "The old map showed a well near the wall.",
    "They planted beans along the sunny path.",
    "A fox crossed the field before the rain.",
    "The tailor measured the sleeve once more.",
    "Our neighbour sings while he mends nets.",
    "The kettle whistled and the cat woke up.",
    "She folded the blanket over the chair.",
    "The stairs creak whenever it is cold.",
    "A small boat drifted under the bridge.",
    "The captain wrote the date in his book.",
    "We found the key behind the blue jar.",
    "The orchard smells of apples in autumn.",
    "His boots were muddy up to the knee.",
    "The post office opens at half past nine.",
    "A grey horse waited beside the cart.",
    "The children drew a circle in the sand.",
    "Grandmother stores honey in clay pots.",
    "The train was late because of the snow.",
    "He tied the rope around the thick post.",
    "The window faces the garden and the pond.",
    "A spider spun its web across the gate.",
    "The teacher wiped the board with a cloth.",
    "They sold the piano to a retired judge.",
    "The road bends twice before the village.",
    "Her umbrella was torn by the strong wind.",
    "The stew needs salt and a little pepper.",
    "A candle burned on the table all night.",
    "The dog buried a bone beneath the hedge.",
    "We heard the choir from the other side.",
    "The carpenter planed the edge of the board.",
    "Nine geese flew south over the marsh.",
    "The nurse read the chart and nodded twice.",
    "A broken cup lay beside the kitchen sink.",
    "The gardener trimmed the roses on Friday.",
    "He borrowed a saw from the man next door.",
    "The clock in the tower strikes every hour.",
    "Snow covered the tracks of the last sledge.",
    "She hummed a tune while sorting the mail.",
    "The fisherman dried his nets on the pier.",
    "A narrow stair leads down to the cellar.",
    "The judge asked for a glass of water.",
    "We roasted chestnuts over an open fire.",
    "The painter mixed green with a bit of white.",
    "A wooden bench stood under the chestnut tree.",
    "The guide pointed at the far blue hills.",
    "His pocket held a whistle and some string.",
    "The library lends tools as well as books.",
    "A thin mist lay over the harbour at dawn.",
    "The potter shaped a bowl on the wheel.",
    "They stacked the firewood against the shed.",
    "The shepherd counted his flock at the ford.",
    "A red kite was caught in the tall pine.",
    "The sailor carved a whale out of bone.",
    "My cousin repairs radios in the attic.",
    "The bridge was built from grey stone.",
    "She hid the parcel behind the curtain.",
    "The miller's son rode to the market.",
    "An owl called twice from the dark wood.",
    "The soup was warm and the bread was fresh.",
    "He swept the yard before breakfast.",
]
"""Null items repeat one of these five times and stop inside the sixth."""


def items() -> list[dict]:
    """All items in order: planted with their controls, then null."""
    out: list[dict] = []
    for kind, words in WORDS.items():
        for i, (subject, one, other) in enumerate(words):
            a, b = (one, other) if i % 2 == 0 else (other, one)
            order = ORDERS[(i // 2) % 2]
            values = [a if c == "a" else b for c in order]
            settled = one if (i + list(WORDS).index(kind)) % 2 == 0 else other
            out.append(
                {
                    "id": f"{kind}-{i + 1:02d}",
                    "kind": kind,
                    "split": "calibration" if i < 5 else "held-out",
                    "prompt": FRAMES[kind](subject, values),
                    "control": FRAMES[kind](subject, [settled] * 6),
                    "candidates": [f" {one}", f" {other}"],
                    "answer": f" {settled}",
                }
            )
    for i, sentence in enumerate(SENTENCES):
        words = sentence.split()
        cut = 2 + i % (len(words) - 3)
        prompt = " ".join([sentence] * 5 + words[:cut])
        out.append(
            {"id": f"null-{i + 1:02d}", "kind": "null", "split": "calibration" if i % 2 == 0 else "held-out", "prompt": prompt}
        )
    return out


def main() -> None:
    TARGET.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items()), "utf-8")
    print(f"{len(items())} items written to {TARGET.name}")


if __name__ == "__main__":
    main()
