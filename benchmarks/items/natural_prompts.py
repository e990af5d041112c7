"""Writes the packaged ``natural-prompts``: twelve categories of everyday prompts, eight each, every sentence of this project's own.

1. No failure is planted and no answer is known: the prompts are what signatures of shells are compared with.
2. The eight prompts of a category share what they are about to do (tell, explain, count …) and no sentence pattern: each is worded by itself, because the
   permutation tests of ``generalization_map`` treat prompts as units.
3. Every prompt stops inside a sentence, so that a next token is asked for in all of them.

Run: python benchmarks/items/natural_prompts.py (rewrites src/symbolic_residue/prompts/data/natural_prompts.jsonl)
"""

from __future__ import annotations

import json
from pathlib import Path

TARGET = Path(__file__).parents[2] / "src/symbolic_residue/prompts/data/natural_prompts.jsonl"

PROMPTS: dict[str, tuple[str, ...]] = {
    "narrative": (
        "The ferry was late again, so Ilse sat down on her suitcase and watched the gulls. When the fog lifted she saw that the pier was",
        "Nobody in the village had ever opened the blue door. On the night of the storm it swung wide by itself, and behind it stood",
        "My grandfather kept bees for forty years and was never stung. The day he sold the hives, he walked into the kitchen and",
        "It rained for nine days. On the tenth morning the cellar was dry, the cat had come home, and the old clock had started to",
        "She found the letter between two floorboards. The ink had faded, but the last line could still be read: do not",
        "Three lanterns burned on the hill, which meant that the smugglers were near. Tomas blew out the fourth and whispered",
        "The circus left before dawn. All that remained in the meadow was a ring of flattened grass and one very small",
        "When the train finally stopped, the passengers looked at each other in surprise, because outside the windows there was only",
    ),
    "dialogue": (
        "“Have you fed the goat?” asked Mina.\n“I thought it was your turn,” said Paul.\n“It is never my turn on a Sunday,” she answered, “so please",
        "Clerk: Good morning, how can I help you?\nVisitor: I have lost my umbrella on the number nine bus.\nClerk: What colour is it?\nVisitor:",
        "“You are early.”\n“The clocks went back last night.”\n“Then we have a whole hour left. Shall we",
        "Doctor: Since when does it hurt?\nPatient: Since I carried the piano upstairs.\nDoctor: By yourself?\nPatient:",
        "“Two tickets to the coast, please.”\n“Single or return?”\n“That depends on the weather. If it is fine, we",
        "Ana: the printer is out of paper again\nBo: there is a box under my desk\nAna: I looked, that one is full of\nBo:",
        "“I can explain everything,” said the boy with flour in his hair. His mother folded her arms. “Begin with the",
        "Guide: Please keep to the path.\nTourist: Is that because of the flowers or because of the snakes?\nGuide: To be honest, because of the",
    ),
    "how-to": (
        "To keep scissors sharp, wipe them after use, never cut wire with them, and once a year",
        "How to repot a cactus: wear thick gloves, fold a newspaper into a strip, wrap it around the plant, and then",
        "If the bicycle chain slips, first check whether it is worn. Hold a ruler against twelve links; if they measure more than",
        "Before you paint a wooden fence, brush off the moss, let the boards dry for two days, and sand every spot where the old",
        "A soft-boiled egg needs cold water, a pinch of salt and patience. As soon as the water boils, turn down the heat and",
        "When you fold a fitted sheet, put your hands into two corners, bring them together, and tuck one corner",
        "To find a leak in a tyre, pump it up, hold it under water and turn it slowly until you see",
        "Sort your photographs before you scan them. Put the blurred ones aside, write the year on the back in pencil, and",
    ),
    "explanation": (
        "Bread rises because yeast feeds on sugar and gives off a gas that is trapped in the dough. Without salt, the same dough would",
        "The tide comes in twice a day since the moon pulls at the sea on the near side of the earth and, less strongly, on the",
        "A thermos keeps tea hot for hours: between its two walls there is almost nothing, and heat cannot easily cross",
        "Leaves turn yellow in autumn as the green pigment breaks down and lets the other colours",
        "Sound travels faster in water than in air. The reason is that water is much harder to",
        "A compass needle points north, because the earth itself behaves like a very large",
        "Ice floats. Most solids sink in their own melt, but frozen water takes up more room than liquid water and is therefore",
        "We see lightning before we hear thunder, although both begin at the same moment, since light is far",
    ),
    "arithmetic": (
        "A crate holds twelve bottles. Five crates and three single bottles make",
        "Lena has 14 marbles and gives 6 of them to her brother. Then she finds 3 more under the sofa. Now she has",
        "The hall has 20 rows of 15 chairs. If 40 chairs are broken, the number of good chairs is",
        "Seven plus eight is fifteen, and fifteen plus nine is",
        "A train leaves at 9:40 and needs 35 minutes, so it arrives at",
        "Half of 96 is 48; half of 48 is 24; half of 24 is",
        "Four friends share a bill of 60 euros equally. Each of them pays",
        "One metre of ribbon costs 2 euros. For 3 and a half metres the tailor asks",
    ),
    "code": (
        "def mean(values):\n    if not values:\n        return None\n    return sum(values) /",
        "for (let i = 0; i < rows.length; i++) {\n  if (rows[i].done) {\n    count",
        'SELECT name, COUNT(*) FROM orders\nWHERE city = "Oslo"\nGROUP BY',
        "import json\n\nwith open('settings.json') as handle:\n    settings = json.",
        "class Queue:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n        self.items.",
        "#!/bin/sh\nfor file in *.txt; do\n  mv \"$file\" \"${file%.txt}.md\"\n",
        "<ul>\n  <li>Apples</li>\n  <li>Pears</li>\n  <li>",
        "fn largest(list: &[i32]) -> i32 {\n    let mut best = list[0];\n    for &item in list {\n        if item > best {\n            best =",
    ),
    "list": (
        "Shopping: milk, eggs, two lemons, a bag of flour, candles,",
        "Things to pack for the hut:\n- sleeping bag\n- torch\n- matches\n-",
        "The planets in order from the sun are Mercury, Venus, Earth,",
        "1. Wake up\n2. Open the window\n3. Make coffee\n4.",
        "The choir will sing in Bergen, Malmö, Kiel, Gdansk and",
        "Ingredients: 200 g butter, 150 g sugar, 3 eggs, 250 g flour, 1 pinch of",
        "Members present: Ms Adler, Mr Bose, Ms Chen, Mr Duarte,",
        "Colours of the boats in the harbour: red, red, white, green, blue, white,",
    ),
    "letter": (
        "Dear Mrs Holm,\nthank you for returning the ladder. My husband has repaired the third step, and you may borrow it whenever you",
        "Hello Jan,\nI am sorry that I missed your call yesterday. I was in the garden and left my phone in the",
        "To whom it may concern,\nthe parcel that reached me on Friday contained a lamp, although I had ordered a",
        "Dear neighbours,\non Saturday we celebrate our daughter's graduation. It may get a little loud after eight, so",
        "Hi team,\nthe meeting moves to the small room on the second floor, because the projector in the large one is",
        "My dear Rosa,\nthe island is quieter than I remembered. Every morning I walk to the lighthouse and",
        "Dear customer,\nwe have received your order and will send it as soon as the missing part has",
        "Good evening Mr Okafor,\nunfortunately the flat on the ground floor has already been let, but from March on there will be",
    ),
    "choice": (
        "Both routes take an hour; the coast road is prettier and the valley is safer in winter. For tomorrow I would take the",
        "Tea or coffee after the meal? The guests could not agree, and in the end the host brought",
        "Whether the committee will name the bridge after the painter or after the engineer is open. Most people expect the",
        "The coin spun on its edge for a long time before it fell on",
        "He liked the grey coat and the brown one equally well and could only afford one, so he bought the",
        "Somebody has to tell the boss. It will be either you or",
        "If you ask ten cooks whether the onions go in first or the garlic, five of them will say the",
        "Between the window seat and the aisle, the girl with the guitar chose the",
    ),
    "earlier-detail": (
        "The spare key is under the green pot. Water the roses, feed the fish, close the shutters, and if you lock yourself out, look under the",
        "Our dentist is called Dr Marek. The surgery moved last spring, the new rooms are bright, and there is a tank with turtles. We still trust Dr",
        "Room 14 has the broken heater. Guests in the east wing should get extra blankets, and no one should be put into room",
        "Agnes plays the cello. Her sister writes, her brother bakes, their cousin repairs radios, and on Sundays the whole house listens to Agnes play the",
        "The password of the week is walnut. Visitors sign the book, leave their coats at the door, wait for the porter, and tell him the password, which is",
        "Lot 7 is the clock with the cracked dial. After the carpets, the silver and a stuffed owl, the auctioneer finally held up lot 7, the",
        "We met in Lisbon. Since then we have lived in four countries, learned three languages badly and raised a son, but every spring we fly back to",
        "The meeting is on Thursday. Bring the figures, the old contract and something to eat, for it may take long; and please do not forget that it is on",
    ),
    "events": (
        "First the bell rang, then the doors closed, and after that the lights went",
        "On Monday they dug the trench, on Tuesday they laid the pipes, on Wednesday they filled it in, and on Thursday they",
        "Before the flood there was a mill here. Afterwards there was only the wheel, and a year later not even the",
        "She boiled the water before she ground the beans, and she had drunk the coffee before he had even",
        "The king died in spring. By summer his son wore the crown, and when autumn came the war had",
        "He paid, then noticed the mistake, then called the waiter, who apologised and",
        "The vase broke because the shelf fell, and the shelf fell because the screw was",
        "After the eclipse the birds began to sing again, just as they had done before the",
    ),
    "orders": (
        "Answer in one word, and explain your answer in detail. What is the capital of France? Answer:",
        "Please write the next sentence in capital letters, but keep everything in lower case. The sentence is:",
        "The sign says: no bicycles. Below it hangs another: bicycles must use this path. A rider who wants to obey should",
        "Translate the word “dog” into French without using any French words. The translation is",
        "Mother said to wait at the gate; father said to come straight in. Standing at the gate, the twins decided to",
        "Reply with yes or no only, and do not use the words yes or no. Is water wet?",
        "Rule 1: every guest gets cake. Rule 2: nobody under twelve gets cake. For the ten-year-old guest this means",
        "Keep this secret and tell everyone: the surprise party is on Friday. When Ben asked about Friday, she",
    ),
}  # fmt: skip


def main() -> None:
    """Write the file."""
    lines = [
        json.dumps({"id": f"{category}-{number:02d}", "category": category, "prompt": prompt}, ensure_ascii=False)
        for category, prompts in PROMPTS.items()
        for number, prompt in enumerate(prompts, start=1)
    ]
    TARGET.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
