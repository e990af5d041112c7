"""Plain questions with plain answers, from which worked examples of instructions are made, and questions to ask."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["PLAIN", "TASKS", "Plain"]


class Plain(NamedTuple):
    """A question, a plain answer to it, and the same answer in three more languages."""

    question: str
    answer: str
    french: str
    spanish: str
    german: str


PLAIN = (
    Plain("What colour is grass?", "Grass is green.", "L'herbe est verte.", "La hierba es verde.", "Das Gras ist grün."),
    Plain(
        "Where do fish live?",
        "Fish live in water.",
        "Les poissons vivent dans l'eau.",
        "Los peces viven en el agua.",
        "Die Fische leben im Wasser.",
    ),
    Plain(
        "What does a baker make?",
        "A baker makes bread.",
        "Le boulanger fait du pain.",
        "El panadero hace el pan.",
        "Der Bäcker macht das Brot.",
    ),
    Plain(
        "When do owls hunt?",
        "Owls hunt at night.",
        "Le hibou chasse dans la nuit.",
        "El búho caza por la noche.",
        "Die Eule jagt in der Nacht.",
    ),
    Plain(
        "What is ice?",
        "Ice is cold water.",
        "La glace est de l'eau froide.",
        "El hielo es agua muy fría.",
        "Das Eis ist kaltes Wasser.",
    ),
    Plain(
        "Where do cows sleep?",
        "Cows sleep in a barn.",
        "Les vaches dorment dans une étable.",
        "Las vacas duermen en un establo.",
        "Die Kühe schlafen im Stall.",
    ),
)
"""Plain questions and answers of the examples, in a fixed order."""


TASKS = (
    Plain(
        "What do cats drink?",
        "Cats drink milk.",
        "Les chats boivent du lait.",
        "El gato bebe la leche.",
        "Die Katzen trinken Milch.",
    ),
    Plain(
        "Where do birds nest?",
        "Birds nest in trees.",
        "Les oiseaux nichent dans les arbres.",
        "Las aves anidan en los árboles.",
        "Die Vögel nisten auf dem Baum.",
    ),
    Plain(
        "What do bees make?",
        "Bees make honey.",
        "Les abeilles font du miel.",
        "Las abejas hacen la miel.",
        "Die Bienen machen den Honig.",
    ),
    Plain("What colour is snow?", "Snow is white.", "La neige est blanche.", "La nieve es blanca.", "Der Schnee ist weiß."),
    Plain(
        "Where do boats sail?",
        "Boats sail on rivers.",
        "Les bateaux vont sur la mer.",
        "Los barcos van por el mar.",
        "Die Boote fahren auf dem Meer.",
    ),
    Plain(
        "What does a farmer grow?",
        "A farmer grows corn.",
        "Le paysan cultive le blé.",
        "El granjero cultiva el trigo.",
        "Der Bauer pflanzt das Korn.",
    ),
    Plain(
        "When do stars shine?",
        "Stars shine at night.",
        "Les étoiles brillent dans la nuit.",
        "Las estrellas brillan por la noche.",
        "Die Sterne leuchten in der Nacht.",
    ),
    Plain(
        "What do horses eat?",
        "Horses eat hay.",
        "Les chevaux mangent du foin.",
        "Los caballos comen el heno.",
        "Die Pferde fressen das Heu.",
    ),
    Plain(
        "Where do bears live?",
        "Bears live in forests.",
        "Les ours vivent dans la forêt.",
        "Los osos viven en el bosque.",
        "Die Bären leben im Wald.",
    ),
    Plain(
        "What does a tailor sew?",
        "A tailor sews coats.",
        "Le tailleur coud des robes.",
        "El sastre cose los trajes.",
        "Der Schneider näht die Kleider.",
    ),
)
"""Plain questions and answers that are asked; none is among the examples."""
