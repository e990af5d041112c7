"""Writes the packaged ``parallel-prompts``: six categories of openings, twelve each, whose next words are open; every sentence is this project's own.

1. Several next words are likely after each: that is what multi-path decoding needs, and what its measurement takes as units.
2. The twelve prompts of a category share what they are about to do and no sentence pattern: each is worded by itself, because intervals resample prompts.
3. Every prompt stops inside a sentence, a turn or a list, and is 8 to 40 tokens long, so that a tree of thirty steps is longer than what it grows from.

Run: python benchmarks/items/parallel_prompts.py (rewrites src/symbolic_residue/prompts/data/parallel_prompts.jsonl)
"""

from __future__ import annotations

import json
from pathlib import Path

TARGET = Path(__file__).parents[2] / "src/symbolic_residue/prompts/data/parallel_prompts.jsonl"

PROMPTS: dict[str, tuple[str, ...]] = {
    "story": (
        "The lighthouse had been dark for eleven years when one evening in October",
        "Ruben opened the parcel on the kitchen table, and inside it was",
        "At the edge of the salt marsh stood a house on stilts, and the woman who lived there",
        "No one on the night bus was speaking. Then the driver turned around and said",
        "The smallest of the three wolves had never howled before. That winter it",
        "After the funeral Edda walked down to the harbour, where she met",
        "Long before the road was built, two brothers kept an inn at the pass. One of them",
        "The robot had been told to water the plants, but on the ninth day it",
        "In the attic, under a sheet that smelled of camphor, Nils discovered",
        "Our teacher disappeared on a Wednesday. The first thing we noticed was",
        "The violin would only play when it snowed, so every year in January the whole street",
        "She had crossed the desert twice already. The third time she took with her",
    ),
    "fact": (
        "Glaciers shape the land beneath them in several ways. One of these is",
        "The octopus is a remarkable animal because it can",
        "During the nineteenth century, railways changed the way people",
        "Bread made with sourdough differs from ordinary bread in that",
        "Most of the water on Earth is salty, and the rest is found in",
        "Bees tell each other where flowers are by",
        "The moon affects life on our planet mainly through",
        "Volcanic soil is often fertile, which is why farmers near volcanoes grow",
        "Before printing was invented in Europe, books were",
        "Large cities are usually warmer than the countryside around them, since",
        "Among the oldest musical instruments that have been dug up are",
        "Migrating birds find their way with the help of",
    ),
    "instruction": (
        "To repair a leaking tap, first turn off the water. Then you should",
        "If you want to grow tomatoes on a balcony, begin by choosing",
        "A wooden fence lasts longer when it is painted; first make sure that it is",
        "Preparing for a long hike in the mountains means packing",
        "Here is how to calm a frightened dog: speak softly and",
        "When the dough has doubled in size, take it out of the bowl and",
        "A good way to learn the names of thirty new pupils is to",
        "Keep the knife steady with one hand, and with the other",
        "For a bicycle that squeaks, look at the chain first. It may need",
        "In an interview for a job, try to answer every question with",
        "Setting up a tent in strong wind is easier if one person holds",
        "To write a letter of complaint that gets a reply, describe",
    ),
    "dialogue": (
        "“Where have you been all day?” asked Lena. “I was",
        "Customer: The soup is cold.\nWaiter: I am very sorry, I will",
        "“What do you want to be when you grow up?” the old man asked. The girl said",
        "Interviewer: What surprised you most about living in the north?\nGuest: I think it was",
        "“Don't touch that!” Ida shouted. Her brother looked up and",
        "Sam: are you coming on Saturday?\nKim: depends, who else is",
        "“I have good news and bad news,” said the vet. “The good news is",
        "Patient: I can't sleep at night.\nDoctor: How long has this been going on?\nPatient: Ever since",
        "“If you ask me,” said the gardener, leaning on his spade, “the problem is",
        "Mother: Why is the floor wet?\nSon: It wasn't me, it was",
        "“Do you believe in ghosts?” “Not really,” Marta answered, “but once, in my aunt's house, I",
        "Pilot: Tower, we have a problem with",
    ),
    "list": (
        "Things to bring to the lake: towels, sunscreen,",
        "My favourite smells are fresh coffee, cut grass, and",
        "Shopping list:\n- eggs\n- flour\n- butter\n-",
        "The museum shows paintings, coins, old maps,",
        "Reasons to live in a small town:\n1. It is quiet.\n2.",
        "In the drawer there were three buttons, a broken watch, some string and",
        "Animals that sleep through the winter include bears, hedgehogs,",
        "Ideas for a rainy afternoon:\n* bake a cake\n* build a tower\n*",
        "Questions for the new neighbour: Where did you live before? Do you have",
        "The band consists of a drummer, two singers,",
        "What the storm destroyed: the greenhouse, the roof of the barn, every",
        "Goals for this year:\n1. Read more books\n2. Call my parents every week\n3.",
    ),
    "explanation": (
        "Children often ask why the sky is blue. The simplest answer is that",
        "Inflation hurts people with savings more than people with debts because",
        "In short, a vaccine works by showing the body",
        "The reason why ships made of steel can float is",
        "Think of an electric current as water in a pipe: the voltage is",
        "People yawn when others yawn. One explanation is",
        "Democracy needs a free press, for without it",
        "Ice is lighter than water, and this matters because",
        "What makes a joke funny? According to one theory, we laugh when",
        "Trees lose their leaves in autumn in order to",
        "A computer programme can be wrong even if it never crashes. For example,",
        "Sleep is important for memory, since during the night the brain",
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
