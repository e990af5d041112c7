"""Writes the benchmark ``attention-salience``: ``src/symbolic_residue/prompts/data/attention_salience.jsonl``.

1. Eight frames, each a statement that ends in a word, and a cue: the statement's beginning again, in half of the frames after a question. With unrelated sentences
   between, a model can only continue the cue from the one word at the start.
2. ``early``: statement, three unrelated sentences (two before a question), cue. ``null-late``: the same sentences, statement, cue
   without the question, so that the word stands right before the end. ``null-open``: ordinary sentences that stop before
   their last word, which does not stand in them.
3. Words, names and sentences are split once, by their place in the lists: no word, name or sentence is in both splits. The frames are.

Run: python benchmarks/items/attention_salience.py
"""

from __future__ import annotations

import json
from pathlib import Path

OUT = Path(__file__).parents[2] / "src/symbolic_residue/prompts/data/attention_salience.jsonl"

FRAMES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "password": (
        "The secret word is{w}.",
        "The secret word is",
        ("plum", "river", "candle", "stone", "window", "basket", "feather", "mirror", "hammer", "ladder"),
    ),
    "key": (
        "{n} keeps the key in the{w}.",
        "{n} keeps the key in the",
        ("kitchen", "garden", "cellar", "garage", "bedroom", "office", "attic", "stable", "drawer", "barn"),
    ),
    "dog": (
        "The name of the dog is{w}.",
        "Question: What is the name of the dog? Answer: The name of the dog is",
        ("Rex", "Bruno", "Daisy", "Rocky", "Lucky", "Max", "Bella", "Oscar", "Molly", "Charlie"),
    ),
    "door": (
        "{n} painted the door{w}.",
        "Question: How did {n} paint the door? Answer: {n} painted the door",
        ("green", "yellow", "white", "blue", "black", "red", "brown", "purple", "pink", "orange"),
    ),
    "home": (
        "{n} was born in{w}.",
        "{n} was born in",
        ("Norway", "Canada", "Egypt", "Poland", "Brazil", "Kenya", "Japan", "Spain", "India", "Chile"),
    ),
    "day": (
        "The market is held on{w}.",
        "Question: When is the market held? Answer: The market is held on",
        ("Monday", "Thursday", "Saturday", "Easter", "Sundays", "Tuesday", "Friday", "Wednesday", "Christmas", "Mondays"),
    ),
    "work": (
        "{n} works as a{w}.",
        "{n} works as a",
        ("baker", "pilot", "nurse", "farmer", "teacher", "lawyer", "tailor", "doctor", "painter", "driver"),
    ),
    "soup": (
        "The soup of the day is made of{w}.",
        "Question: What is the soup made of? Answer: The soup of the day is made of",
        ("beans", "carrots", "onions", "leeks", "corn", "tomatoes", "mushrooms", "potatoes", "lentils", "cabbage"),
    ),
}
"""Statement, cue, ten words: the first five for calibration."""

NAMES = (
    ("Marta", "Henry", "Clara", "Peter", "Ruth", "Victor", "Ellen", "Simon", "Alice", "Frank"),
    ("Nora", "George", "Irene", "Walter", "Judith", "Leon", "Hannah", "Martin", "Sophie", "Robert"),
)

SENTENCES = (
    (
        "The sky was grey all morning.",
        "Two boats came in before noon.",
        "A bell rang far away.",
        "The streets were quiet after the rain.",
        "Nobody spoke for a while.",
        "Some leaves fell into the pond.",
        "The train was late again.",
        "An old man fed the birds.",
        "The shop closed early.",
        "It was too cold to swim.",
    ),
    (
        "The wind turned in the evening.",
        "Three letters lay by the gate.",
        "Somebody laughed in the next room.",
        "The road was full of puddles.",
        "A cat slept on the wall.",
        "The lamp went out twice.",
        "Most people had left by then.",
        "The tea was still warm.",
        "Snow covered the roofs.",
        "A cart stopped at the corner.",
    ),
)

OPEN = (
    (
        "After the storm the fishermen went down to the harbour and looked at their boats, and one of them said that the old pier would have to be built",
        "The committee met three times before the summer, and in the end everybody agreed that the new bridge should be paid for by the",
        "When the guests had gone she opened all the windows, washed the glasses, and sat down on the stairs to read the",
        "He had promised to write every week, but the first letter came only in March and said little about what he was",
        "The teacher asked the class to be silent, took a piece of chalk, and began to draw a large map on the",
        "In the autumn the farmers brought their apples to the press, and for two weeks the whole village smelled of",
        "Because the lift was broken again, the two women had to carry the heavy table all the way up to the third",
        "The museum is small, but it has a fine collection of old clocks, and most visitors stay longer than they had",
        "She put the last plate into the cupboard, dried her hands, and asked whether anyone would like a cup of",
        "The river rose during the night, and by the morning the lower fields were covered with",
        "For many years nobody lived in the house, until a young couple bought it and started to repair the",
        "The engine made a strange noise, so they stopped at the next village and looked for someone who could help",
    ),
    (
        "The children had been told to wait at the corner, but when the parade came past they ran across the",
        "Before the concert began the conductor thanked the audience and asked them to switch off their",
        "The doctor washed her hands, put on her coat, and told the family that the patient would be able to go",
        "On the last day of the holidays they walked along the beach for hours and collected a whole bag of",
        "The judge read the papers twice, took off his glasses, and said that he needed more time to make a",
        "Since the bakery in the main street has closed, people drive to the next town to buy their",
        "The mountaineers reached the hut late in the afternoon and were glad to sit down by the",
        "My grandmother kept her letters in a wooden box, and nobody was allowed to open it until she had",
        "The company has built a second factory near the airport, where it plans to produce parts for",
        "He looked for his glasses in every room of the house before he noticed that they were on his",
        "As soon as the snow melts, the shepherds bring their animals up to the high pastures, where they stay until the",
        "The library is open every day except Sunday, and on the first floor there is a quiet room for people who want to",
    ),
)

SPLITS = ("calibration", "held-out")
EARLY, LATE = 3, 2


def items() -> list[dict[str, str]]:
    """All items, in the order of the file."""
    found: list[dict[str, str]] = []
    count: dict[str, int] = {}

    def add(kind: str, frame: str, split: str, text: str, answer: str | None) -> None:
        count[kind] = count.get(kind, 0) + 1
        row = {"id": f"{kind}-{count[kind]:02d}", "kind": kind, "frame": frame, "split": split, "text": text}
        found.append(row if answer is None else row | {"answer": answer})

    for s, split in enumerate(SPLITS):
        drawn = 0
        for f, (frame, (statement, cue, words)) in enumerate(FRAMES.items()):
            for i, word in enumerate(words[5 * s : 5 * s + EARLY + LATE]):
                fill = {"n": NAMES[s][(f + 3 * i) % 10], "w": f" {word}"}
                said, asked = statement.format(**fill), cue.format(**fill)
                between = " ".join(SENTENCES[s][(drawn + k) % 10] for k in ((0, 3) if "Question" in cue else (0, 3, 7)))
                drawn += 1
                early = i < EARLY
                parts = (said, between, asked) if early else (between, said, asked.rpartition("Answer: ")[2])
                add("early" if early else "null-late", frame, split, " ".join(parts), f" {word}")
        for text in OPEN[s]:
            add("null-open", "open", split, text, None)
    return found


def main() -> None:
    """Write the file."""
    lines = [json.dumps(row, ensure_ascii=False) for row in items()]
    OUT.write_text("\n".join(lines) + "\n", "utf-8")
    print(f"{OUT.name}: {len(lines)} items")


if __name__ == "__main__":
    main()
