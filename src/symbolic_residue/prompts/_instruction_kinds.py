"""What an instruction can ask of an answer: its words, how an answer is made to follow it, and the check.

Each *kind* has two wordings, a function that makes a plain answer follow it, a check, and a pattern that finds it in a user's words. An answer that is cut at
the length limit is judged as it stands: kinds about its end are then not followed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import NamedTuple

from symbolic_residue.prompts._instruction_texts import Plain

__all__ = ["FUNCTION_WORDS", "KINDS", "MARKS", "Kind", "letters_of", "speaks", "words_of"]

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_NUMBERED = re.compile(r"^\s*\d+[.)]\s+\S", re.MULTILINE)
_BULLET = re.compile(r"^\s*[-•]\s+\S", re.MULTILINE)
_FEW, _MANY = 6, 12
FUNCTION_WORDS: dict[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "English": "the a is are of and to in it you that was for on with this have from they not be by an at",
        "French": "le la les est sont des et une un du je vous que dans pour avec ce il elle ne pas au l d c qui sur en",
        "Spanish": "el la los las es son del y una un que en por para con se no su lo al de como está muy",
        "German": "der die das ist sind und ein eine zu nicht ich sie mit auf den dem von wir es im für am bei",
    }.items()
}
"""The most common small words of each language, lower case."""
_IN = {"French": 2, "Spanish": 3, "German": 4}


class Kind(NamedTuple):
    """What one kind of instruction asks: ``wordings`` hold ``{}`` where it takes a value; ``follow(answer, plain, value)`` makes an answer follow it."""

    wordings: tuple[str, str]
    follow: Callable[[str, Plain, str], str]
    check: Callable[[str, str], bool]
    pattern: str
    values: tuple[str, ...] = ()
    """Values that the packaged items use; empty where the kind takes none."""


def letters_of(answer: str) -> str:
    return "".join(c for c in answer if c.isalpha())


def words_of(answer: str) -> list[str]:
    return _WORD.findall(answer)


def _first(answer: str, value: str) -> bool:
    want, got = [w.lower() for w in words_of(value)], [w.lower() for w in words_of(answer)]
    return got[: len(want)] == want


def _spoken(answer: str) -> dict[str, int]:
    """Function words of each language."""
    found = [w for word in words_of(answer.lower()) for w in re.split(r"['’]", word)]
    return {name: sum(w in words for w in found) for name, words in FUNCTION_WORDS.items()}


def speaks(answer: str, value: str, *, part: bool = False) -> bool:
    """More function words of the language than of any other one; for English (short answers may hold none) no fewer, in plain letters.

    Args:
        part: only a part of an answer: English needs a function word too.
    """
    counts = _spoken(answer)
    others = max(n for name, n in counts.items() if name != value)
    if value == "English" and not part:
        return bool(words_of(answer)) and counts[value] >= others and answer.replace("’", "'").isascii()
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
        lambda a, v: bool(letters_of(a)) and letters_of(a).isupper(),
        r"capital letters|upper ?-?case|all caps",
    ),
    "lowercase": Kind(
        ("Answer in small letters only.", "Write everything in lower case."),
        lambda a, p, v: a.lower(),
        lambda a, v: bool(letters_of(a)) and letters_of(a).islower(),
        r"small letters|lower ?-?case",
    ),
    "language": Kind(
        ("Answer in {}.", "Write your reply in {}."),
        _turned,
        speaks,
        r"\b(?:in|speak|use|to) (English|French|Spanish|German)\b",
        ("English", "French", "Spanish", "German"),
    ),
    "short": Kind(
        ("Answer with six words at most.", "Be very brief: no more than six words."),
        lambda a, p, v: a,
        lambda a, v: len(words_of(a)) <= _FEW,
        r"\b(?:short|brief|few words|six words)\b",
    ),
    "long": Kind(
        ("Answer with at least twelve words.", "Answer with a long sentence: twelve words or more."),
        lambda a, p, v: _bare(a) + ", as everyone who has looked closely knows very well from long experience.",
        lambda a, v: len(words_of(a)) >= _MANY,
        r"\b(?:long|in detail|many words|twelve words)\b",
    ),
    "one-word": Kind(
        ("Answer with one word.", "Reply with a single word."),
        lambda a, p, v: words_of(a)[-1].capitalize() + ".",
        lambda a, v: len(words_of(a)) == 1,
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
        lambda a, v: words_of(a)[-1:] != [] and words_of(a)[-1].lower() == v.lower(),
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
        lambda a, v: [w.lower() for w in words_of(a)] == [v.lower()],
        r"\bonly (?:the word [\"'“]?|[\"'“])(\w+)|with the word [\"'“]?(\w+)[\"'”]? and nothing else",
        ("banana", "stone", "silver", "window", "lemon", "thunder"),
    ),
}
"""Every kind that can be verified."""

MARKS = frozenset(KINDS) - {"short", "one-word", "avoid", "no-list", "no-digits", "lowercase", "long"}
"""Kinds that leave a mark in a part of an answer: only these can be seen blended."""
