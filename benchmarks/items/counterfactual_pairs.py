"""Writes ``counterfactual_pairs.jsonl``: pairs of prompts that differ in a few tokens and in their answer, six categories.

1. A frame is a sentence pattern with things to fill in, each with its answer. Things are put together two by two, in the order listed, among those whose prompts
   have the same number of tokens and whose answers are one token each in the demo model's tokenizer. No thing is in two pairs of a frame.
2. A pair is kept where the demo model puts ``answer`` above ``wrong`` on the clean side, ``wrong`` above ``answer`` on the corrupted side, and the logit
   differences of the sides are at least 0.5 apart: a set of things that the model does, so that there is something to explain. Of each frame at most ``MOST`` are kept, the first in order.
3. The counts of what was tried and dropped are printed; they stand in the data card.

Run: python benchmarks/items/counterfactual_pairs.py
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

OUT = Path(__file__).parents[2] / "src/symbolic_residue/prompts/data/counterfactual_pairs.jsonl"
LEAST = 0.5
MOST = 6

Frame = tuple[str, str, dict[str, str]]

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Germany": "Berlin", "Spain": "Madrid", "Japan": "Tokyo", "Russia": "Moscow", "Greece": "Athens", "Egypt": "Cairo",
    "Ireland": "Dublin", "Poland": "Warsaw", "Austria": "Vienna", "Hungary": "Budapest", "Cuba": "Havana", "Norway": "Oslo", "Portugal": "Lisbon",
    "Thailand": "Bangkok",
}  # fmt: skip
LANGUAGES = {
    "Paris": "French", "Rome": "Italian", "Berlin": "German", "Madrid": "Spanish", "Tokyo": "Japanese", "Moscow": "Russian", "Athens": "Greek",
    "Cairo": "Arabic", "Beijing": "Chinese", "Lisbon": "Portuguese", "Warsaw": "Polish", "London": "English",
}  # fmt: skip
CONTINENTS = {
    "Kenya": "Africa", "France": "Europe", "Nigeria": "Africa", "Japan": "Asia", "Ghana": "Africa", "Spain": "Europe", "India": "Asia", "Norway": "Europe",
    "China": "Asia", "Uganda": "Africa", "Thailand": "Asia", "Poland": "Europe",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "left": "right", "open": "closed", "happy": "sad", "rich": "poor", "light": "dark", "early": "late", "old": "new",
    "high": "low", "good": "bad", "full": "empty", "strong": "weak", "black": "white", "true": "false",
}  # fmt: skip
YOUNG = {"dog": "puppy", "cat": "kitten", "cow": "calf", "sheep": "lamb", "lion": "cub", "bear": "cub", "chicken": "chick"}
NEEDS = {
    "write": "pen",
    "cut paper": "scissors",
    "sweep": "broom",
    "paint": "brush",
    "unlock doors": "key",
    "take pictures": "camera",
}
WORKS = {
    "school": "teacher",
    "hospital": "doctor",
    "farm": "farmer",
    "church": "priest",
    "court": "judge",
    "restaurant": "chef",
    "ship": "captain",
    "bakery": "baker",
}
COLOURS = {
    "grass": "green",
    "snow": "white",
    "blood": "red",
    "coal": "black",
    "lemons": "yellow",
    "milk": "white",
    "carrots": "orange",
    "chocolate": "brown",
}
FACTS: list[Frame] = [
    ("capital", "The capital of {} is", CAPITALS),
    ("capital city", "{} is a country. Its capital city is called", dict(reversed(CAPITALS.items()))),
    ("language", "In {}, most people speak", LANGUAGES),
    ("continent", "{} is a country on the continent of", CONTINENTS),
    ("opposite", "The opposite of {} is", OPPOSITES),
    ("young", "A baby {} is called a", YOUNG),
    ("colour", "The color of {} is", COLOURS),
    ("work", "A person who works in a {} as its most important member is a", WORKS),
    ("tool", "To {}, you need a", NEEDS),
]

NOUNS = (
    "key",
    "dog",
    "book",
    "teacher",
    "picture",
    "window",
    "child",
    "student",
    "house",
    "letter",
    "car",
    "doctor",
    "farmer",
    "bird",
    "table",
    "player",
    "flower",
)
PLURAL = {"child": "children"}
AGREEMENT_FRAMES = [
    ("near", "The {} near the old house", " are", " is"),
    ("of", "The {} that my brother found last week", " were", " was"),
    ("behind", "Everyone knows that the {} behind the fence", " are", " is"),
    ("question", "I looked at the {} and thought that", " they", " it"),
    ("with", "The {} with the red mark", " have", " has"),
    ("there", "These are the {} that", " are", " is"),
    ("my", "Last year my {}", " were", " was"),
]

NAMES = (
    "Mary",
    "John",
    "Tom",
    "Anna",
    "James",
    "Sarah",
    "Peter",
    "Alice",
    "Mark",
    "Laura",
    "David",
    "Emma",
    "Paul",
    "Lucy",
    "Jack",
    "Kate",
)
IOI_FRAMES = [
    ("store", "When {a} and {b} went to the store, {s} gave a bottle of milk to"),
    ("park", "After {a} and {b} met in the park, {s} handed the ball to"),
    ("letter", "{a} and {b} were at home. {s} read the letter and then passed it to"),
    ("kitchen", "While {a} and {b} were working in the kitchen, {s} gave a cup of tea to"),
    ("school", "Yesterday {a} and {b} had a long talk at school. Afterwards {s} said goodbye to"),
]

THINGS = (
    "apple",
    "river",
    "stone",
    "candle",
    "garden",
    "silver",
    "window",
    "tiger",
    "paper",
    "lemon",
    "cloud",
    "hammer",
    "bread",
    "ocean",
    "mirror",
    "violin",
)
CITIES = ("Paris", "London", "Rome", "Boston", "Berlin", "Chicago", "Madrid", "Tokyo")
FOODS = ("fish", "rice", "soup", "bread", "pizza", "eggs", "meat", "cheese")
COLOUR_WORDS = ("red", "blue", "green", "black", "white", "yellow", "brown", "pink")
QUALITIES = ("green", "north", "seven", "happy", "wooden", "quiet", "purple", "round", "cold", "empty", "golden", "broken")
INDUCTION_FRAMES = [
    ("words", "{a} {x}, {b} {y}, {k}", THINGS, QUALITIES),
    ("words twice", "{a} {x}, {b} {y}, {a} {x}, {b} {y}, {k}", THINGS, QUALITIES),
    ("bare twice", "the {a} {x} the {b} {y} the {a} {x} the {b} {y} the {k}", THINGS, COLOUR_WORDS),
    ("arrows", "{a} -> {x}\n{b} -> {y}\n{a} -> {x}\n{b} -> {y}\n{k} ->", THINGS, COLOUR_WORDS),
    ("owns", "{a} has the {x}. {b} has the {y}. {k} has the", NAMES, THINGS),
    ("lives", "{a} lives in {x}. {b} lives in {y}. {k} lives in", NAMES, CITIES),
    ("lives twice", "{a} lives in {x}. {b} lives in {y}. {a} lives in {x}. {b} lives in {y}. {k} lives in", NAMES, CITIES),
    ("code", "{a} = {x}\n{b} = {y}\n{k} =", THINGS, COLOUR_WORDS),
    ("likes", "{a} likes {x} and {b} likes {y}. So for dinner we give {k}", NAMES, FOODS),
    ("likes again", "{a} likes {x}. {b} likes {y}. {a} likes {x}. {b} likes {y}. {k} likes", NAMES, FOODS),
]

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "Monday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
    "January",
)


def _sums() -> dict[str, str]:
    return {
        f"{NUMBERS[a]} plus {NUMBERS[b]}": NUMBERS[a + b]
        for a, b in ((1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (4, 3), (4, 4), (5, 4), (5, 5), (5, 1), (6, 1), (7, 1))
    }


def _minus() -> dict[str, str]:
    return {
        f"{NUMBERS[a]} minus {NUMBERS[b]}": NUMBERS[a - b]
        for a, b in ((3, 1), (4, 1), (5, 1), (6, 1), (7, 1), (8, 1), (9, 1), (10, 1), (10, 5), (8, 4), (6, 3), (4, 2))
    }


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def _runs(words: tuple[str, ...] | str, length: int, step: int = 1) -> dict[str, str]:
    return {", ".join(words[i : i + length * step : step]): words[i + length * step] for i in range(len(words) - length * step)}


ARITHMETIC: list[Frame] = [
    ("up", "{},", _runs(NUMBERS[1:], 3)),
    ("down", "{},", _runs(NUMBERS[:0:-1], 3)),
    ("count", "Let us count together: {},", _runs(NUMBERS[1:], 2)),
    ("twos", "Count by two: {},", _runs(NUMBERS[1:], 3, 2)),
    ("days", "{},", _runs(DAYS[:-1], 3)),
    ("day words", "Days of the week in order: {},", _runs(DAYS[:-1], 2)),
    ("months", "{},", _runs(MONTHS[:-1], 2)),
    ("letters", "{},", _runs(LETTERS, 3)),
    ("letters by two", "{},", _runs(LETTERS, 4, 2)),
    ("ordinals", "{},", _runs(ORDINALS, 3)),
    ("sum", "One plus two is three. Two plus four is six. {} is", {k.capitalize(): v for k, v in _sums().items()}),
    (
        "sum signs",
        "one + one = two, one + two = three, two + four = six, {} =",
        {k.replace("plus", "+"): v for k, v in _sums().items()},
    ),
    ("minus", "Nine minus one is eight. Five minus two is three. {} is", {k.capitalize(): v for k, v in _minus().items()}),
    ("day", "Today is {}. Tomorrow is", dict(pairwise(DAYS))),
    ("before", "The day before {} is", dict(zip(DAYS[1:], DAYS[:-1], strict=True))),
    ("month", "The month after {} is", dict(pairwise(MONTHS))),
    ("after", "After the number {} comes the number", dict(pairwise(NUMBERS[1:]))),
    ("double", "Twice one is two. Twice three is six. Twice {} is", {NUMBERS[i]: NUMBERS[2 * i] for i in (1, 2, 3, 4, 5, 6)}),
    ("parts", "A {}. The number of its sides is", {"triangle": "three", "square": "four", "hexagon": "six", "pentagon": "five"}),
    (
        "legs",
        "The number of legs of a {} is",
        {"dog": "four", "spider": "eight", "bird": "two", "snake": "zero", "bee": "six", "man": "two"},
    ),
]

ORDERS = (
    ("apple", "bread"),
    ("river", "stone"),
    ("green", "black"),
    ("summer", "winter"),
    ("gold", "silver"),
    ("music", "water"),
    ("table", "window"),
    ("cat", "dog"),
)
INSTRUCTION_FRAMES: list[Frame] = [
    ("say", "Say the word {}. Sure, here is the word:", {w: w for w in (*THINGS, "music", "water")}),
    (
        "reply",
        "Instruction: reply with the word {} and nothing else.\nReply:",
        {w: w for w in ("yes", "no", "stop", "go", "left", "right", "red", "blue", "thanks", "hello")},
    ),
    (
        "french",
        "Translate into French. water: eau. dog: chien. {}:",
        {"bread": "pain", "red": "rouge", "house": "maison", "day": "jour", "night": "nuit", "yes": "oui"},
    ),
    (
        "case",
        "Instruction: answer the question with {}.\nQuestion: Is the sky blue?\nAnswer:",
        {"yes": "yes", "no": "no", "maybe": "maybe", "true": "true", "false": "false"},
    ),
    (
        "begin",
        "Write a sentence that begins with the word {}.\nSentence:",
        {
            "The": "The",
            "My": "My",
            "When": "When",
            "If": "If",
            "She": "She",
            "He": "He",
            "We": "We",
            "They": "They",
            "In": "In",
            "After": "After",
        },
    ),
    (
        "named language",
        "Task: answer in the {} language.\nThe answer in that language, a language spoken by many, is written in",
        {"French": "French", "German": "German", "English": "English", "Spanish": "Spanish", "Greek": "Greek", "Latin": "Latin"},
    ),
]
CHOICE_FRAMES = [
    ("first", "Here are two words: {x} {y}. The {k} word of the two is", ("first", "second")),
    ("choose", "Instruction: copy the {k} word.\nWords: {x} {y}\nCopy:", ("first", "last")),
    ("between", "Words: {x}, {y}. The word on the {k} is", ("left", "right")),
]


def candidates() -> list[dict[str, str]]:
    """All pairs that could be written: those of a frame's things two by two in order, with whatever lengths; see :func:`of_one_length`."""
    found: list[dict[str, str]] = []

    def add(category: str, frame: str, clean: str, corrupted: str, answer: str, wrong: str) -> None:
        if answer != wrong and clean != corrupted:
            found.append(
                {"category": category, "frame": frame, "clean": clean, "corrupted": corrupted, "answer": answer, "wrong": wrong}
            )

    for category, frames in (("facts", FACTS), ("arithmetic", ARITHMETIC), ("instruction", INSTRUCTION_FRAMES)):
        for name, pattern, table in frames:
            things = list(table.items())
            for i, (a, answer) in enumerate(things):
                for b, wrong in things[i + 1 :]:
                    add(category, name, pattern.format(a), pattern.format(b), f" {answer}", f" {wrong}")
    for number, (name, pattern, plural, singular) in enumerate(AGREEMENT_FRAMES):
        for i, noun in enumerate(NOUNS[number:] + NOUNS[:number]):
            many, one = pattern.format(PLURAL.get(noun, noun + "s")), pattern.format(noun)
            if name == "there":
                one = one.replace("These are", "This is")
            sides = ((many, one), (plural, singular))
            turned = slice(None, None, 1 if i % 2 else -1)  # every other pair begins with the singular
            add("agreement", name, *sides[0][turned], *sides[1][turned])
    for number, (name, pattern) in enumerate(IOI_FRAMES):
        for i in range(0, len(NAMES), 2):
            a, b = NAMES[i], NAMES[(i + 1 + 2 * number) % len(NAMES)]
            add("indirect object", name, pattern.format(a=a, b=b, s=b), pattern.format(a=a, b=b, s=a), f" {a}", f" {b}")
    for number, (name, pattern, keys, values) in enumerate(INDUCTION_FRAMES):
        for i in range(0, len(keys) - 1, 2):
            a, b = (keys[(i + j + number) % len(keys)] for j in (0, 1))
            x, y = (values[(i + j + 3 * number) % len(values)] for j in (0, 1))
            fill = {"a": a, "b": b, "x": x, "y": y}
            k, other, answer, wrong = (a, b, x, y) if i % 4 else (b, a, y, x)
            add("induction", name, pattern.format(k=k, **fill), pattern.format(k=other, **fill), f" {answer}", f" {wrong}")
    for name, pattern, which in CHOICE_FRAMES:
        for i, (x, y) in enumerate(ORDERS):
            k, other, answer, wrong = (*which, x, y) if i % 2 else (*which[::-1], y, x)
            add("instruction", name, pattern.format(x=x, y=y, k=k), pattern.format(x=x, y=y, k=other), f" {answer}", f" {wrong}")
    return found


def of_one_length(tokenizer: Any, pairs: list[dict[str, str]]) -> tuple[list[dict[str, str]], Counter[str]]:
    """Pairs of equal length whose answers are one token, no prompt in two of a frame; and why the others are not."""
    kept, used, dropped = [], set[tuple[str, str]](), Counter[str]()
    for pair in pairs:
        sides = [tokenizer(pair[side], add_special_tokens=False)["input_ids"] for side in ("clean", "corrupted")]
        words = [tokenizer(pair[word], add_special_tokens=False)["input_ids"] for word in ("answer", "wrong")]
        prompts = {(pair["frame"], pair[side]) for side in ("clean", "corrupted")}
        if any(len(one) != 1 for one in words):
            dropped["an answer of several tokens"] += 1
        elif len(sides[0]) != len(sides[1]):
            dropped["unequal lengths"] += 1
        elif prompts & used:
            dropped["of a prompt that an earlier pair of the frame has"] += 1
        else:
            used |= prompts
            kept.append(pair)
    return kept, dropped


def main() -> None:
    """Write the file and say what was dropped."""
    from symbolic_residue import open_model
    from symbolic_residue.graph import validate_pairs
    from symbolic_residue.instrument import Instrument
    from symbolic_residue.prompts import CounterfactualPair

    instrument = Instrument(open_model("demo"))
    written = candidates()
    possible, dropped = of_one_length(instrument.loaded.tokenizer, written)
    pairs = [CounterfactualPair(id=f"c{i}", **pair) for i, pair in enumerate(possible)]  # type: ignore[arg-type]
    found = validate_pairs(instrument, pairs, least=LEAST)
    holding = {row["id"] for row in found.filter(found["holds"]).iter_rows(named=True) if row["corrupted"] < 0}
    count, lines, of_frame = Counter[str](), list[str](), Counter[tuple[str, str]]()
    tried, over = Counter[tuple[str, str]](), 0
    for pair in pairs:
        key = (pair.category, pair.frame)
        tried[key] += 1
        if pair.id not in holding:
            continue
        if of_frame[key] == MOST:
            over += 1
            continue
        of_frame[key] += 1
        count[pair.category] += 1
        row = pair.model_dump() | {"id": f"{pair.category.replace(' ', '-')}-{count[pair.category]:02d}"}
        lines.append(json.dumps(row, ensure_ascii=False))
    OUT.write_text("\n".join(lines) + "\n", "utf-8")
    print(
        f"{len(written)} written, {dict(dropped)}; {len(pairs)} asked of the model, {len(holding)} hold, {over} over {MOST} a frame, {len(lines)} kept"
    )
    for category in count:
        n = sum(tried[key] for key in tried if key[0] == category)
        print(
            f"{category}: {n} asked, {count[category]} kept: "
            + ", ".join(f"{f} {of_frame[c, f]}/{tried[c, f]}" for c, f in tried if c == category)
        )


if __name__ == "__main__":
    main()
