"""Instructions that a program can verify, and worked examples that follow them.

1. A *kind* names what is asked of an answer (``uppercase``, ``start``, ``json`` …): its words in two wordings, how a plain answer is made to follow it, the
   check, and a pattern that finds it in a user's words. Some kinds take a value (``start`` takes a word).
2. ``Instruction`` is one kind with its value and words: ``check(answer)`` says whether an answer follows it; an answer without a letter or digit follows none.
3. ``examples`` are questions with answers that follow the instruction (made by the kind from plain sentences), for models too small to follow bare words.
4. Two instructions are ``contradictory`` where no answer can follow both by how their kinds are checked (same group, other demand), ``compatible`` where one is
   known that does (an example made to follow one and then the other), else ``unknown``.

An answer that is cut at the length limit is judged as it stands: kinds about its end are then not followed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, model_validator

from symbolic_residue.errors import ConfigError, PromptError

__all__ = [
    "KINDS",
    "MARKS",
    "PLAIN",
    "TASKS",
    "Instruction",
    "Kind",
    "Plain",
    "blends",
    "joint",
    "make_instruction",
    "read_instruction",
    "relation",
]

Relation = Literal["compatible", "contradictory", "unknown"]

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_NUMBERED = re.compile(r"^\s*\d+[.)]\s+\S", re.MULTILINE)
_BULLET = re.compile(r"^\s*[-•]\s+\S", re.MULTILINE)
_FEW, _MANY = 6, 12

_FUNCTION_WORDS: dict[str, frozenset[str]] = {
    "English": frozenset(
        [
            "the",
            "a",
            "is",
            "are",
            "of",
            "and",
            "to",
            "in",
            "it",
            "you",
            "that",
            "was",
            "for",
            "on",
            "with",
            "this",
            "have",
            "from",
            "they",
            "not",
            "be",
            "by",
            "an",
            "at",
        ]
    ),
    "French": frozenset(
        [
            "le",
            "la",
            "les",
            "est",
            "sont",
            "des",
            "et",
            "une",
            "un",
            "du",
            "je",
            "vous",
            "que",
            "dans",
            "pour",
            "avec",
            "ce",
            "il",
            "elle",
            "ne",
            "pas",
            "au",
            "l",
            "d",
            "c",
            "qui",
            "sur",
            "en",
        ]
    ),
    "Spanish": frozenset(
        [
            "el",
            "la",
            "los",
            "las",
            "es",
            "son",
            "del",
            "y",
            "una",
            "un",
            "que",
            "en",
            "por",
            "para",
            "con",
            "se",
            "no",
            "su",
            "lo",
            "al",
            "de",
            "como",
            "está",
            "muy",
        ]
    ),
    "German": frozenset(
        [
            "der",
            "die",
            "das",
            "ist",
            "sind",
            "und",
            "ein",
            "eine",
            "zu",
            "nicht",
            "ich",
            "sie",
            "mit",
            "auf",
            "den",
            "dem",
            "von",
            "wir",
            "es",
            "im",
            "für",
            "am",
            "bei",
        ]
    ),
}
_IN = {"French": 2, "Spanish": 3, "German": 4}


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


class Kind(NamedTuple):
    """What one kind of instruction asks: ``wordings`` hold ``{}`` where it takes a value; ``follow(answer, plain, value)`` makes an answer follow it."""

    wordings: tuple[str, str]
    follow: Callable[[str, Plain, str], str]
    check: Callable[[str, str], bool]
    pattern: str
    values: tuple[str, ...] = ()
    """Values that the packaged items use; empty where the kind takes none."""


def _letters(answer: str) -> str:
    return "".join(c for c in answer if c.isalpha())


def _words(answer: str) -> list[str]:
    return _WORD.findall(answer)


def _first(answer: str, value: str) -> bool:
    want, got = [w.lower() for w in _words(value)], [w.lower() for w in _words(answer)]
    return got[: len(want)] == want


def _spoken(answer: str) -> dict[str, int]:
    """Function words of each language."""
    found = [w for word in _words(answer.lower()) for w in re.split(r"['’]", word)]
    return {name: sum(w in words for w in found) for name, words in _FUNCTION_WORDS.items()}


def _language(answer: str, value: str, *, part: bool = False) -> bool:
    """More function words of the language than of any other one; for English (short answers may hold none) no fewer, in plain letters.

    Args:
        part: only a part of an answer: English needs a function word too.
    """
    counts = _spoken(answer)
    others = max(n for name, n in counts.items() if name != value)
    if value == "English" and not part:
        return bool(_words(answer)) and counts[value] >= others and answer.replace("’", "'").isascii()
    return counts[value] > others


def _object(answer: str) -> bool:
    """A JSON object, or the beginning of one (an answer may be cut before it closes)."""
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", answer.strip())
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return re.match(r"\{\s*\"[^\"]*(\"\s*:.*)?$", text, re.DOTALL) is not None


def _wrapped(answer: str, *pairs: tuple[str, str]) -> bool:
    text = answer.strip()
    return any(len(text) > 2 and text.startswith(a) and text.rstrip(".").endswith(b) for a, b in pairs)


def _holds(answer: str, value: str) -> bool:
    return re.search(rf"\b{re.escape(value)}\b", answer, re.IGNORECASE) is not None


def _ends(answer: str, mark: str) -> bool:
    return answer.rstrip(" \"'”)]*}").endswith(mark)


def _small(text: str) -> str:
    return text[:1].lower() + text[1:]


def _bare(text: str) -> str:
    return text.rstrip(".!?")


def _turned(answer: str, plain: Plain, value: str) -> str:
    return answer if value == "English" else plain[_IN[value]]


KINDS: dict[str, Kind] = {
    "uppercase": Kind(
        ("Answer in capital letters.", "Write everything in upper case."),
        lambda a, p, v: a.upper(),
        lambda a, v: bool(_letters(a)) and _letters(a).isupper(),
        r"capital letters|upper ?-?case|all caps",
    ),
    "lowercase": Kind(
        ("Answer in small letters only.", "Write everything in lower case."),
        lambda a, p, v: a.lower(),
        lambda a, v: bool(_letters(a)) and _letters(a).islower(),
        r"small letters|lower ?-?case",
    ),
    "language": Kind(
        ("Answer in {}.", "Write your reply in {}."),
        _turned,
        _language,
        r"\b(?:in|speak|use|to) (English|French|Spanish|German)\b",
        ("English", "French", "Spanish", "German"),
    ),
    "short": Kind(
        ("Answer with six words at most.", "Be very brief: no more than six words."),
        lambda a, p, v: a,
        lambda a, v: len(_words(a)) <= _FEW,
        r"\b(?:short|brief|few words|six words)\b",
    ),
    "long": Kind(
        ("Answer with at least twelve words.", "Answer with a long sentence: twelve words or more."),
        lambda a, p, v: _bare(a) + ", as everyone who has looked closely knows very well from long experience.",
        lambda a, v: len(_words(a)) >= _MANY,
        r"\b(?:long|in detail|many words|twelve words)\b",
    ),
    "one-word": Kind(
        ("Answer with one word.", "Reply with a single word."),
        lambda a, p, v: _words(a)[-1].capitalize() + ".",
        lambda a, v: len(_words(a)) == 1,
        r"\b(?:one|a single) word\b",
    ),
    "start": Kind(
        ("Begin your answer with the word {}.", "Start your reply with the word {}."),
        lambda a, p, v: f"{v}, {_small(a)}",
        _first,
        r"\b(?:begin|start)\b[^.]*?(?:with|by)\b(?: the words?)? [\"'“]?(\w+)",
        ("Indeed", "Well", "Friends", "Today", "Clearly", "Listen"),
    ),
    "end": Kind(
        ("End your answer with the word {}.", "Finish your reply with the word {}."),
        lambda a, p, v: f"{_bare(a)}, {v}.",
        lambda a, v: _words(a)[-1:] != [] and _words(a)[-1].lower() == v.lower(),
        r"\b(?:end|finish)\b[^.]*?with (?:the word )[\"'“]?(\w+)",
        ("friend", "always", "sir", "amen", "okay", "thanks"),
    ),
    "question": Kind(
        ("Answer with a question.", "Reply by asking a question."),
        lambda a, p, v: f"Do you not know that {_small(_bare(a))}?",
        lambda a, v: _ends(a, "?"),
        r"(?:with|as|in the form of|asking|ask) a question|question mark",
    ),
    "exclaim": Kind(
        ("End your answer with an exclamation mark.", "Reply with an exclamation mark at the end."),
        lambda a, p, v: f"{_bare(a)}!",
        lambda a, v: _ends(a, "!"),
        r"exclamation",
    ),
    "dots": Kind(
        ("End your answer with three dots.", "Let your reply trail off in three dots."),
        lambda a, p, v: f"{_bare(a)}...",
        lambda a, v: _ends(a, "...") or _ends(a, "…"),
        r"three dots|ellipsis",
    ),
    "contain": Kind(
        ("Use the word {} in your answer.", "Mention the word {} in your reply."),
        lambda a, p, v: f"{_bare(a)}, says the {v} man.",
        _holds,
        r"(?<!not )\b(?:include|use|contain|mention)\b[^.]*?the word [\"'“]?(\w+)",
        ("old", "wise", "small", "tall"),
    ),
    "avoid": Kind(
        ("Do not use the word {}.", "Never write the word {}."),
        lambda a, p, v: re.sub(rf"\s*\b{re.escape(v)}\b", "", a, flags=re.IGNORECASE),
        lambda a, v: not _holds(a, v),
        r"\b(?:not|never|avoid|without)\b[^.]*?the word [\"'“]?(\w+)",
        ("old", "wise", "small", "tall"),
    ),
    "numbered": Kind(
        ("Answer with a numbered list.", "Reply as a list with numbers."),
        lambda a, p, v: f"1. {a}",
        lambda a, v: _NUMBERED.match(a) is not None,
        r"numbered|list with numbers",
    ),
    "bullets": Kind(
        ("Answer with a list of dashes.", "Reply as a bullet list."),
        lambda a, p, v: f"- {a}",
        lambda a, v: _BULLET.match(a) is not None,
        r"bullet|dashes",
    ),
    "no-list": Kind(
        ("Answer without a list.", "Do not make a list."),
        lambda a, p, v: a,
        lambda a, v: not _NUMBERED.search(a) and not _BULLET.search(a),
        r"(?:not make a|\bno|without an?y?) lists?\b",
    ),
    "say-yes": Kind(
        ("Begin with yes, whatever is asked.", "Always say yes first."),
        lambda a, p, v: f"Yes, {_small(a)}",
        lambda a, v: _first(a, "yes"),
        r"\b(?:answer|say|with) [\"'“]?yes\b",
    ),
    "say-no": Kind(
        ("Begin with no, whatever is asked.", "Always say no first."),
        lambda a, p, v: f"No, {_small(a)}",
        lambda a, v: _first(a, "no"),
        r"\b(?:answer|say|with) [\"'“]?no\b",
    ),
    "json": Kind(
        ("Answer with a JSON object.", "Give your reply as JSON."),
        lambda a, p, v: json.dumps({"answer": a}, ensure_ascii=False),
        lambda a, v: _object(a),
        r"\bJSON\b",
    ),
    "code": Kind(
        ("Answer with a Python print statement.", "Reply with one line of Python that prints."),
        lambda a, p, v: f'print("{a}")',
        lambda a, v: re.match(r"\s*(?:```python\s*)?print\(", a) is not None,
        r"\b(?:Python|code)\b",
    ),
    "quoted": Kind(
        ("Put your answer in quotation marks.", "Write your reply between quotation marks."),
        lambda a, p, v: f'"{a}"',
        lambda a, v: _wrapped(a, ('"', '"'), ("“", "”")),
        r"\bquot(?:es|ation)",
    ),
    "brackets": Kind(
        ("Put your answer in square brackets.", "Write your reply between square brackets."),
        lambda a, p, v: f"[{a}]",
        lambda a, v: _wrapped(a, ("[", "]")),
        r"brackets",
    ),
    "stars": Kind(
        ("Put your answer between asterisks.", "Write your reply with an asterisk on each side."),
        lambda a, p, v: f"*{a}*",
        lambda a, v: _wrapped(a, ("*", "*")),
        r"asterisk",
    ),
    "hash": Kind(
        ("Begin your answer with a hash sign.", "Put a hash sign in front of your reply."),
        lambda a, p, v: f"# {a}",
        lambda a, v: a.lstrip().startswith("#"),
        r"\bhash",
    ),
    "digits": Kind(
        ("Use a digit in your answer.", "Put at least one digit into your reply."),
        lambda a, p, v: f"{_bare(a)} (page 7).",
        lambda a, v: any(c.isdigit() for c in a),
        r"\b(?:use|put|with) (?:a|at least one|one) (?:digit|number)",
    ),
    "no-digits": Kind(
        ("Do not use digits.", "Write without any digits."),
        lambda a, p, v: a,
        lambda a, v: not any(c.isdigit() for c in a),
        r"\b(?:no|not use|without|without any) (?:digits|numbers)",
    ),
    "only": Kind(
        ("Say only the word {}.", "Reply with the word {} and nothing else."),
        lambda a, p, v: f"{v}.",
        lambda a, v: [w.lower() for w in _words(a)] == [v.lower()],
        r"\bonly (?:the word [\"'“]?|[\"'“])(\w+)|with the word [\"'“]?(\w+)[\"'”]? and nothing else",
        ("banana", "stone", "silver", "window", "lemon", "thunder"),
    ),
}
"""Every kind that can be verified."""

_OPENINGS = ("hash", "numbered", "bullets", "quoted", "brackets", "stars", "json", "code")
_CLOSINGS = ("question", "exclaim", "dots")
_AGAINST = {
    frozenset(pair)
    for pair in (
        ("uppercase", "lowercase"), ("short", "long"), ("one-word", "long"), ("only", "long"), ("say-yes", "say-no"), ("digits", "no-digits"),
        ("numbered", "no-digits"), ("numbered", "no-list"), ("bullets", "no-list"), ("say-yes", "only"), ("say-no", "only"),
        ("one-word", "json"), ("only", "json"), ("only", "code"),
    )
}  # fmt: skip
"""Pairs of kinds that no answer follows both."""

MARKS = frozenset(KINDS) - {"short", "one-word", "avoid", "no-list", "no-digits", "lowercase", "long"}
"""Kinds that leave a mark in a part of an answer: only these can be seen blended."""


class Instruction(BaseModel):
    """One instruction that a program can verify.

    Raises:
        ConfigError: when made by :func:`make_instruction` or :func:`read_instruction`; the model itself raises pydantic's error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    """A key of ``KINDS``."""
    value: str = ""
    """What the kind takes, empty where it takes nothing."""
    text: str
    """Its words."""

    @model_validator(mode="after")
    def _check(self) -> Instruction:
        if self.kind not in KINDS:
            raise ValueError(f"there is no kind {self.kind!r}; use one of {', '.join(KINDS)}")
        takes = "{}" in KINDS[self.kind].wordings[0]
        if takes != bool(self.value.strip()):
            raise ValueError(f"the kind {self.kind!r} takes {'a value' if takes else 'no value'}")
        if self.kind == "language" and self.value not in _FUNCTION_WORDS:
            raise ValueError(f"the language must be one of {', '.join(_FUNCTION_WORDS)}")
        if takes and self.kind != "language" and (_words(self.value) != [self.value]):
            raise ValueError(f"the value of {self.kind!r} must be one word")
        if not self.text.strip() or "\n" in self.text:
            raise ValueError("the text must be one line of words")
        return self

    def check(self, answer: str) -> bool:
        """Whether the answer follows the instruction; an answer without letter and digit follows none."""
        answer = answer.strip()
        return any(c.isalnum() for c in answer) and bool(KINDS[self.kind].check(answer, self.value))

    def follow(self, answer: str, plain: Plain) -> str:
        """``answer`` (to ``plain``'s question) made to follow the instruction."""
        return KINDS[self.kind].follow(answer, plain, self.value)


def make_instruction(kind: str, value: str = "", *, wording: int = 0, text: str | None = None) -> Instruction:
    """An instruction of a kind, in one of its two wordings or in ``text``.

    Raises:
        ConfigError: no such kind, a value that does not fit.
    """
    if kind not in KINDS:
        raise ConfigError(f"There is no kind of instruction {kind!r}.", todo=f"Use one of: {', '.join(KINDS)}.")
    try:
        return Instruction(kind=kind, value=value, text=text or KINDS[kind].wordings[wording].format(value))
    except ValueError as error:
        raise ConfigError(
            f"The instruction {kind!r} with the value {value!r} cannot be used.", why=str(error).split("\n")[2].strip()
        ) from None


_ORDER = (
    "only",
    "one-word",
    "no-list",
    "no-digits",
    "avoid",
    "say-yes",
    "say-no",
    "hash",
    "exclaim",
    "dots",
    "end",
    "start",
    "contain",
)
"""Kinds whose patterns are tried before the others: their words hold those of others."""


def read_instruction(text: str) -> Instruction:
    """The instruction in words of a user's own; ``kind: words`` or ``kind=value: words`` names the kind outright.

    Raises:
        PromptError: no kind is found in the words.
        ConfigError: a kind that is named, and does not exist or does not fit its value.
    """
    text = " ".join(text.split())
    named = re.match(r"([a-z-]+)(?:=([^:]*))?:\s+(\S.*)$", text)
    if named and named[1] in KINDS:
        return make_instruction(named[1], named[2] or "", text=named[3])
    for kind in (*_ORDER, *(name for name in KINDS if name not in _ORDER)):
        found = re.search(KINDS[kind].pattern, text, re.IGNORECASE)
        if found:
            value = next((g for g in found.groups() if g), "")
            return make_instruction(kind, value.capitalize() if kind == "language" else value, text=text)
    raise PromptError(
        f"No program here can verify {text[:80]!r}.",
        why="Whether an instruction is followed is judged by a program, so its kind must be known.",
        todo=f"Name the kind in front, as in 'uppercase: {text[:40]}'. Kinds: {', '.join(KINDS)}.",
    )


def relation(one: Instruction, two: Instruction) -> Relation:
    """Whether one answer can follow both; see the module."""
    kinds = frozenset((one.kind, two.kind))
    same = one.kind == two.kind
    if same and one.value.lower() == two.value.lower():
        return "compatible"
    openings = {"start", "say-yes", "say-no", "only"}
    words = {"start": one.value, "say-yes": "yes", "say-no": "no", "only": one.value}
    others = {"start": two.value, "say-yes": "yes", "say-no": "no", "only": two.value}
    if kinds <= openings and words[one.kind].lower() != others[two.kind].lower():
        return "contradictory"
    if (
        (same and one.kind in ("language", "end"))
        or (not same and (kinds <= set(_OPENINGS) or kinds <= set(_CLOSINGS) or kinds in _AGAINST))
        or (kinds == {"contain", "avoid"} and one.value.lower() == two.value.lower())
    ):
        return "contradictory"
    return "compatible" if joint(one, two, PLAIN[0]) is not None else "unknown"


def joint(one: Instruction, two: Instruction, plain: Plain) -> str | None:
    """An answer to ``plain``'s question that follows both, None where neither order of making it gives one."""
    for first, second in ((one, two), (two, one)):
        answer = second.follow(first.follow(plain.answer, plain), plain)
        if one.check(answer) and two.check(answer):
            return answer
    return None


def blends(one: Instruction, two: Instruction, answer: str) -> bool:
    """Whether the answer mixes the two: a part of it follows one and the part beside it the other, though the whole does not follow both.

    Parts are cut between words, have at least four letters, and only kinds that leave a mark count.
    """
    answer = answer.strip()
    if not {one.kind, two.kind} <= MARKS or (one.check(answer) and two.check(answer)):
        return False
    for cut in (m.start() for m in re.finditer(r"\s+", answer)):
        left, right = answer[:cut], answer[cut:]
        if min(len(_letters(left)), len(_letters(right))) >= 4 and (
            (_in_part(one, left) and _in_part(two, right)) or (_in_part(two, left) and _in_part(one, right))
        ):
            return True
    return False


def _in_part(instruction: Instruction, part: str) -> bool:
    if instruction.kind == "language":
        return _language(part, instruction.value, part=True)
    return instruction.check(part)
