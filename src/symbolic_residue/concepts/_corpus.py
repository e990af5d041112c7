"""A corpus of concept texts: the same events told neutrally and under each concept.

1. A text belongs to a concept, and to a scenario where it is one telling of an event. The concept ``baseline`` is the neutral telling.
2. A pair is a telling under a concept beside its scenario's baseline. Differences are taken within pairs, so that topic, people and setting fall out.
3. Families of concepts, what each concept means, the words that would give it away, and who takes part in each scenario are stated with the corpus
   (``corpus.json`` of a folder, ``NAME.json`` beside ``NAME.jsonl``), before anything is measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

__all__ = ["BASELINE", "ConceptText", "Corpus", "Meaning", "Pair"]

BASELINE = "baseline"
"""Name of the neutral telling: no concept."""


@dataclass(frozen=True, slots=True)
class ConceptText:
    """One text."""

    concept: str
    """``baseline`` for the neutral telling."""
    scenario: str | None
    """The event that it tells; None: a text by itself."""
    text: str
    file: str = field(default="", compare=False)
    """Where it was read, for messages."""
    line: int = field(default=0, compare=False)
    """Line of the file on which it begins, from 1."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A telling under a concept, and the neutral telling of the same event."""

    concept: str
    scenario: str
    positive: ConceptText
    baseline: ConceptText


@dataclass(frozen=True, slots=True)
class Meaning:
    """What is stated about a concept beforehand."""

    family: str | None = None
    """Such as ``basic`` or ``relational``."""
    meaning: str = ""
    """The concept in one sentence."""
    words: tuple[str, ...] = ()
    """Words that give the concept away, in lower case: ``sadly`` is the word, ``joy*`` every word that begins so."""


@dataclass(frozen=True)
class Corpus:
    """Texts of concepts; see the module.

    Attributes:
        texts: in file order.
        meanings: by concept: family, meaning, words; in the order in which concepts are to be shown. May lack concepts.
        people: by scenario: the names that every telling must hold. May lack scenarios.
    """

    texts: tuple[ConceptText, ...]
    meanings: Mapping[str, Meaning] = field(default_factory=dict)
    people: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of the concepts: the stated ones in their order, then others as they first appear. Never ``baseline``."""
        names = dict.fromkeys([*self.meanings, *(one.concept for one in self.texts)])
        return tuple(name for name in names if name != BASELINE)

    @property
    def families(self) -> dict[str, tuple[str, ...]]:
        """Family → its concepts; concepts without a stated family are in none."""
        found: dict[str, list[str]] = {}
        for name, meaning in self.meanings.items():
            if meaning.family is not None:
                found.setdefault(meaning.family, []).append(name)
        return {family: tuple(names) for family, names in found.items()}

    @property
    def scenarios(self) -> tuple[str, ...]:
        """Scenarios as they first appear."""
        return tuple(dict.fromkeys(one.scenario for one in self.texts if one.scenario is not None))

    def positives(self, concept: str) -> tuple[ConceptText, ...]:
        """Every text of a concept, in file order; those in scenarios and those by themselves."""
        return tuple(one for one in self.texts if one.concept == concept)

    def baselines(self) -> dict[str, ConceptText]:
        """Scenario → its neutral telling (the first); scenarios without one are left out."""
        found: dict[str, ConceptText] = {}
        for one in self.texts:
            if one.concept == BASELINE and one.scenario is not None:
                found.setdefault(one.scenario, one)
        return found

    def pairs(self, concept: str | None = None) -> tuple[Pair, ...]:
        """Tellings beside their baselines, in file order.

        Args:
            concept: of this one only.

        Returns:
            One pair for each telling whose scenario has a baseline.
        """
        baselines = self.baselines()
        return tuple(
            Pair(one.concept, one.scenario, one, baselines[one.scenario])
            for one in self.texts
            if one.scenario in baselines and one.concept != BASELINE and concept in (None, one.concept)
        )

    def select(self, concepts: Collection[str] | None = None, scenarios: Collection[str] | None = None) -> Corpus:
        """The same corpus with some concepts or scenarios only; baselines stay, and with ``scenarios`` texts outside any scenario go."""
        kept = tuple(
            one
            for one in self.texts
            if (concepts is None or one.concept == BASELINE or one.concept in concepts)
            and (scenarios is None or one.scenario in scenarios)
        )
        meanings = {name: value for name, value in self.meanings.items() if concepts is None or name in concepts}
        people = {name: value for name, value in self.people.items() if scenarios is None or name in scenarios}
        return Corpus(kept, meanings, people)

    @property
    def sha256(self) -> str:
        """Of all texts with their concepts and scenarios, whatever their order and the layout of the files."""
        rows = sorted(json.dumps([one.concept, one.scenario, one.text]) for one in self.texts)
        return hashlib.sha256("\n".join(rows).encode("utf-8")).hexdigest()
