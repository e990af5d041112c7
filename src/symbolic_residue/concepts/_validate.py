"""What is wrong with a corpus, each as a row: what, where (file and line), and whether it is refused.

Refused, because a direction would read something else, or could not be had:

1. ``not UTF-8``, ``bad line``: a part that cannot be read.
2. ``empty``: a text without a word.
3. ``duplicate``: the same words twice (case, spacing and punctuation aside); held-out texts would have been trained on.
4. ``no baseline``: a scenario without its neutral telling; ``two baselines``: one with several.
5. ``too few texts``: fewer than five positives of a concept.
6. ``unknown concept``: not among the stated ones (where concepts are stated), or among those of the folder ``concepts``.
7. ``concept word``: a word that gives the text's own concept away, or in a neutral telling any concept's.
8. ``too long``: more tokens than the model's context.

Warned, because the quality report measures what comes of it, or because the finding is a guess:

9. ``length``: words outside ±20 % of the neutral telling.
10. ``concept word`` of another concept.
11. ``people``: a name of the scenario that a telling lacks, or one that its neutral telling does not know. Names are the stated ones; where none are stated,
    capitalised words inside sentences.
12. ``repeated sentence``: the same sentence in two scenarios. ``baseline alone``: a scenario with nothing beside its neutral telling. ``stray file``: not read.

Words of a concept are those stated with the corpus; else those of the packaged list; else its name.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from symbolic_residue.concepts._corpus import BASELINE, ConceptText, Corpus
from symbolic_residue.concepts._packaged import packaged_words
from symbolic_residue.concepts._read import Fault, scan_corpus
from symbolic_residue.errors import ConfigError, CorpusError

__all__ = ["FEWEST", "LENGTH", "Severity", "Violation", "concept_words", "require_valid", "validate_corpus"]

FEWEST = 5
"""Positives below which a concept is refused."""
LENGTH = 0.2
"""Largest difference in words from the neutral telling, as a share of it."""

Severity = Literal["refused", "warned"]
_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)]*\s+")
_FEWEST_WORDS = 4
"""A sentence of fewer words may stand in two scenarios."""
_NO_NAME = re.compile(
    r"i(?:['’](?:m|d|ll|ve))?|(?:mon|tues|wednes|thurs|fri|satur|sun)days?"
    r"|january|february|march|april|may|june|july|august|september|october|november|december",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Violation:
    """One finding; ``line`` 0 is a file as a whole, ``file`` empty the corpus as a whole or a text that was read from no file."""

    severity: Severity
    kind: str
    file: str
    line: int
    concept: str | None
    scenario: str | None
    detail: str

    @property
    def place(self) -> str:
        """``file:line``, as far as known."""
        return f"{self.file}:{self.line}" if self.line else self.file


def validate_corpus(source: Corpus | str | Path, *, tokenizer: Any = None, context: int | None = None) -> list[Violation]:
    """Everything that is wrong with a corpus.

    Args:
        source: a corpus, or the folder or JSONL file of one, in which unreadable parts are violations too.
        tokenizer: called with a text, gives ``input_ids``; None: lengths in tokens are not looked at.
        context: most tokens of a text; None: the tokenizer's ``model_max_length``.

    Returns:
        Violations, refused ones first, each kind in file order. Empty: nothing is wrong.

    Raises:
        CorpusError: there is no corpus at the path, or nothing in it.
        ConfigError: the length in tokens is asked for and the context is not known.
    """
    corpus, faults = (source, []) if isinstance(source, Corpus) else scan_corpus(source)
    found = [*_faults(faults), *_texts(corpus), *_scenarios(corpus), *_concepts(corpus), *_words(corpus), *_people(corpus)]
    if tokenizer is not None:
        found += _tokens(corpus, tokenizer, context)
    return sorted(found, key=lambda one: one.severity != "refused")


def require_valid(
    corpus: Corpus, *, tokenizer: Any = None, context: int | None = None, allow: Collection[str] = ()
) -> list[Violation]:
    """Refuse a corpus from which no direction should be made.

    Args:
        corpus, tokenizer, context: as for :func:`validate_corpus`.
        allow: kinds that are let through, such as ``too few texts`` where a concept may be measured and not ranked.

    Returns:
        The warnings, and what was let through.

    Raises:
        CorpusError: a violation that is refused; the first is named, the others counted.
    """
    found = validate_corpus(corpus, tokenizer=tokenizer, context=context)
    refused = [one for one in found if one.severity == "refused" and one.kind not in allow]
    if refused:
        first = refused[0]
        raise CorpusError(
            f"{first.place + ': ' if first.place else ''}{first.kind}: {first.detail}.",
            why=f"The corpus has {len(refused)} such faults." if len(refused) > 1 else "",
            todo="See all with: residue concepts validate",
        )
    return found


def concept_words(corpus: Corpus, concept: str) -> tuple[str, ...]:
    """The words that give a concept away: stated with the corpus, else packaged, else its name and what begins with it."""
    stated = corpus.meanings.get(concept)
    if stated is not None and stated.words:
        return stated.words
    return packaged_words().get(concept) or (concept.lower() + "*",)


def _at(severity: Severity, kind: str, one: ConceptText, detail: str) -> Violation:
    return Violation(severity, kind, one.file, one.line, one.concept, one.scenario, detail)


def _called(one: ConceptText) -> str:
    place = f" ({one.file}:{one.line})" if one.file else ""
    return (f"{one.concept} of {one.scenario}" if one.scenario is not None else one.concept) + place


def _faults(faults: list[Fault]) -> Iterator[Violation]:
    for one in faults:
        yield Violation("warned" if one.kind == "stray file" else "refused", one.kind, one.file, one.line, None, None, one.detail)


def _bare(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))


def _texts(corpus: Corpus) -> Iterator[Violation]:
    """Empty texts, duplicates, sentences in two scenarios."""
    seen: dict[str, ConceptText] = {}
    sentences: dict[str, ConceptText] = {}
    for one in corpus.texts:
        bare = _bare(one.text)
        if not bare:
            yield _at("refused", "empty", one, "no word")
            continue
        first = seen.setdefault(bare, one)
        if first is not one:
            yield _at("refused", "duplicate", one, f"the words of {_called(first)}")
            continue
        for sentence in _SENTENCE.split(one.text):
            words = _bare(sentence)
            if words.count(" ") + 1 < _FEWEST_WORDS:
                continue
            other = sentences.setdefault(words, one)
            if other is not one and (other.scenario != one.scenario or one.scenario is None):
                yield _at("warned", "repeated sentence", one, f"{sentence!r} is in {_called(other)} too")


def _scenarios(corpus: Corpus) -> Iterator[Violation]:
    """Baselines, and lengths beside them."""
    tellings: dict[str, list[ConceptText]] = defaultdict(list)
    for one in corpus.texts:
        if one.scenario is not None:
            tellings[one.scenario].append(one)
    for name, group in tellings.items():
        neutral = [one for one in group if one.concept == BASELINE]
        if not neutral:
            yield _at("refused", "no baseline", group[0], f"scenario {name!r} has no neutral telling")
            continue
        for extra in neutral[1:]:
            yield _at("refused", "two baselines", extra, f"scenario {name!r} has the neutral telling {_called(neutral[0])} already")
        if len(neutral) == len(group):
            yield _at("warned", "baseline alone", neutral[0], f"scenario {name!r} has no telling under a concept")
        expected = len(neutral[0].text.split())
        for one in group:
            words = len(one.text.split())
            if one.concept != BASELINE and _bare(one.text) and abs(words - expected) > LENGTH * expected + 1e-9:
                yield _at(
                    "warned", "length", one, f"{words} words, the neutral telling {expected} ({words / max(expected, 1) - 1:+.0%})"
                )


def _concepts(corpus: Corpus) -> Iterator[Violation]:
    """Unknown concepts and those with too few texts."""
    alone = {one.concept for one in corpus.texts if one.scenario is None} - {BASELINE}
    known = set(corpus.meanings) or alone
    counts = Counter(one.concept for one in corpus.texts if _bare(one.text))
    first = {one.concept: one for one in reversed(corpus.texts)}
    for name in corpus.concepts:
        one = first.get(name)
        if known and name not in known and one is not None:
            near = difflib.get_close_matches(name, sorted(known), 1)
            where = "among the stated concepts" if corpus.meanings else "in the folder of concepts"
            yield _at(
                "refused" if corpus.meanings else "warned",
                "unknown concept",
                one,
                f"{name!r} is not {where}" + (f"; {near[0]!r}?" if near else ""),
            )
        if counts[name] < FEWEST:
            file, line = (one.file, one.line) if one is not None else ("", 0)
            yield Violation(
                "refused", "too few texts", file, line, name, None, f"{name!r} has {counts[name]} of {FEWEST} texts at least"
            )


def _words(corpus: Corpus) -> Iterator[Violation]:
    """Words that give a concept away."""
    tests = {name: _matcher(concept_words(corpus, name)) for name in corpus.concepts}
    for one in corpus.texts:
        words = _WORD.findall(one.text.lower())
        for name, test in tests.items():
            telling = dict.fromkeys(word for word in words if any(test(part) for part in (word, *re.split(r"['’\-]", word))))
            if telling:
                own = name == one.concept
                called = ", ".join(repr(word) for word in telling)
                detail = f"{called} give{'s' if len(telling) == 1 else ''} {'it' if own else name} away"
                yield _at("refused" if own or one.concept == BASELINE else "warned", "concept word", one, detail)


def _matcher(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    whole = frozenset(p.lower() for p in patterns if not p.endswith("*"))
    begin = tuple(p[:-1].lower() for p in patterns if p.endswith("*"))
    return lambda word: word in whole or (bool(begin) and word.startswith(begin))


def _people(corpus: Corpus) -> Iterator[Violation]:
    for name, neutral in corpus.baselines().items():
        stated = corpus.people.get(name)
        expected = list(stated or _names(neutral.text))
        for one in corpus.texts:
            if one.scenario != name or not _bare(one.text):
                continue
            lacking = [who for who in expected if not re.search(rf"\b{re.escape(who)}\b", one.text)]
            if lacking:
                yield _at("warned", "people", one, f"without {', '.join(lacking)}")
            strange = [
                who for who in _names(one.text) if who not in expected and not re.search(rf"\b{re.escape(who)}\b", neutral.text)
            ]
            if strange:
                yield _at("warned", "people", one, f"{', '.join(strange)}: not in the neutral telling")


def _names(text: str) -> list[str]:
    """Capitalised words inside sentences, in order, without a possessive's ending."""
    found: dict[str, None] = {}
    lower = {word for word in _WORD.findall(text) if word[0].islower()}
    for sentence in _SENTENCE.split(text):
        for word in _WORD.findall(sentence)[1:]:
            plain = re.sub(r"['’]s?$", "", word)
            if plain[0].isupper() and not _NO_NAME.fullmatch(plain) and plain.lower() not in lower:
                found[plain] = None
    return list(found)


def _tokens(corpus: Corpus, tokenizer: Any, context: int | None) -> list[Violation]:
    """Texts that do not fit the context.

    Raises:
        ConfigError: it is not known.
    """
    most = context if context is not None else getattr(tokenizer, "model_max_length", None)
    if most is None or most > 10**9:  # transformers' sign for "not known"
        raise ConfigError("The tokenizer does not say how long a text may be.", todo="Give context=.")
    found = []
    for one in corpus.texts:
        n = len(tokenizer(one.text)["input_ids"])
        if n > most:
            found.append(_at("refused", "too long", one, f"{n} tokens, the context holds {most}"))
    return found
