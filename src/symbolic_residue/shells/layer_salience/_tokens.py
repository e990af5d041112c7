"""A light tagger of our own: what kind of word each token belongs to.

1. The text is cut into words (letters with inner apostrophes or hyphens), numbers, and signs.
2. A word is, by the first rule that fits: a *number* (digits, or one of the number words); a *function word* (a closed list); a *named entity*
   (begins with a capital inside a sentence, or at a sentence's start if the same word stands capitalised elsewhere inside a sentence, or is followed
   by another name); a *noun* (has a noun's ending, or follows an article, a possessive, a number, an adjective-like word after those, or a
   preposition); *other* (verbs, adjectives, adverbs).
3. A token has the kind of the word that holds its first character beside white space; signs and white space are *punctuation*.

It knows English and is right on most words, not all: kinds are for reading a table, and no verdict uses them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["KINDS", "token_kinds"]

KINDS = ("named entity", "number", "noun", "function word", "punctuation", "other")

_PIECE = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+(?:[.,:]\d+)*|\S", re.UNICODE)
_FUNCTION = frozenset(
    [
        "a",
        "an",
        "the",
        "this",
        "that",
        "these",
        "those",
        "each",
        "every",
        "either",
        "neither",
        "some",
        "any",
        "no",
        "all",
        "both",
        "half",
        "such",
        "what",
        "which",
        "whose",
        "who",
        "whom",
        "i",
        "me",
        "my",
        "mine",
        "myself",
        "we",
        "us",
        "our",
        "ours",
        "you",
        "your",
        "yours",
        "he",
        "him",
        "his",
        "himself",
        "she",
        "her",
        "hers",
        "herself",
        "it",
        "its",
        "itself",
        "they",
        "them",
        "their",
        "theirs",
        "themselves",
        "one's",
        "of",
        "in",
        "on",
        "at",
        "by",
        "for",
        "from",
        "to",
        "into",
        "onto",
        "with",
        "without",
        "within",
        "under",
        "over",
        "above",
        "below",
        "between",
        "among",
        "through",
        "during",
        "before",
        "after",
        "behind",
        "beside",
        "across",
        "along",
        "around",
        "against",
        "toward",
        "towards",
        "upon",
        "off",
        "out",
        "up",
        "down",
        "near",
        "since",
        "until",
        "till",
        "about",
        "like",
        "than",
        "as",
        "and",
        "or",
        "but",
        "nor",
        "so",
        "yet",
        "if",
        "because",
        "although",
        "though",
        "while",
        "when",
        "where",
        "why",
        "how",
        "whether",
        "unless",
        "once",
        "then",
        "there",
        "here",
        "is",
        "am",
        "are",
        "was",
        "were",
        "be",
        "been",
        "being",
        "has",
        "have",
        "had",
        "having",
        "do",
        "does",
        "did",
        "doing",
        "done",
        "will",
        "would",
        "shall",
        "should",
        "can",
        "could",
        "may",
        "might",
        "must",
        "not",
        "n't",
        "never",
        "also",
        "too",
        "very",
        "only",
        "just",
        "even",
        "still",
        "again",
        "ever",
        "always",
        "often",
        "nobody",
        "nothing",
        "somebody",
        "something",
        "everybody",
        "everything",
        "anybody",
        "anything",
        "someone",
        "anyone",
        "everyone",
        "none",
        "isn't",
        "wasn't",
        "don't",
        "didn't",
        "doesn't",
        "couldn't",
        "wouldn't",
        "won't",
        "can't",
    ]
)
_NUMBERS = frozenset(
    [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
        "twenty",
        "thirty",
        "forty",
        "fifty",
        "sixty",
        "seventy",
        "eighty",
        "ninety",
        "hundred",
        "thousand",
        "million",
        "first",
        "second",
        "third",
        "fourth",
        "fifth",
        "dozen",
        "twice",
    ]
)
_BEFORE_NOUN = frozenset(
    [
        "a",
        "an",
        "the",
        "this",
        "that",
        "these",
        "those",
        "each",
        "every",
        "some",
        "any",
        "no",
        "all",
        "both",
        "my",
        "our",
        "your",
        "his",
        "her",
        "its",
        "their",
        "of",
        "in",
        "on",
        "at",
        "by",
        "for",
        "from",
        "to",
        "into",
        "with",
        "without",
        "under",
        "over",
        "above",
        "below",
        "between",
        "through",
        "behind",
        "beside",
        "across",
        "along",
        "near",
    ]
)
_ENDING = re.compile(r"(?:tion|sion|ness|ment|ship|hood|ity|ance|ence|ist|ism|age|ure|dom)s?$")
_ADJECTIVE = re.compile(
    r"(?:ous|ful|ish|ible|able|less|ive|ary|al|ic|ed|ing|est|y)$|"
    r"^(?:old|new|small|big|long|grey|red|blue|green|black|white|young|great|little|last|next|other|same)$"
)
_VERB = re.compile(r"(?:ed|ing)$")


def token_kinds(text: str, offsets: Sequence[tuple[int, int]]) -> list[str]:
    """The kind of each token: one of :data:`KINDS`.

    Args:
        text: the prompt's text.
        offsets: each token's span of characters in it.
    """
    words = [(m.start(), m.group()) for m in _PIECE.finditer(text)]
    kinds = _word_kinds([word for _, word in words], _starts(text, words))
    of_character = ["punctuation"] * len(text)
    for (start, word), kind in zip(words, kinds, strict=True):
        of_character[start : start + len(word)] = [kind] * len(word)
    out: list[str] = []
    for start, stop in offsets:
        at = start + len(text[start:stop]) - len(text[start:stop].lstrip())
        if stop > start and at < stop:
            out.append(of_character[at])
        else:  # white space, or a later piece of one character
            out.append("punctuation" if stop > start or not out else out[-1])
    return out


def _starts(text: str, words: Sequence[tuple[int, str]]) -> list[bool]:
    """Whether each word begins a sentence."""
    out, end = [], 0
    for start, word in words:
        between = text[end:start]
        before = text[:end].rstrip("\"'”’)] ")
        out.append(not before.strip() or before[-1] in ".!?:" or "\n" in between or not word[0].isalnum())
        end = start + len(word)
    return out


def _word_kinds(words: Sequence[str], starts: Sequence[bool]) -> list[str]:
    inside = {w for w, start in zip(words, starts, strict=True) if not start and w[0].isupper() and w != "I"}
    out: list[str] = []
    for i, (word, start) in enumerate(zip(words, starts, strict=True)):
        low = word.lower()
        if not word[0].isalnum():
            out.append("punctuation")
        elif word[0].isdigit() or low in _NUMBERS:
            out.append("number")
        elif low in _FUNCTION and (start or not word[0].isupper() or word == "I"):
            out.append("function word")
        elif word[0].isupper() and (not start or word in inside or _name_follows(words, starts, i)):
            out.append("named entity")
        elif _ENDING.search(low) or _after_opener(words, out, i):
            out.append("noun")
        else:
            out.append("other")
    return out


def _name_follows(words: Sequence[str], starts: Sequence[bool], i: int) -> bool:
    return i + 1 < len(words) and words[i + 1][0].isupper() and not starts[i + 1]


def _after_opener(words: Sequence[str], kinds: Sequence[str], i: int) -> bool:
    """Whether word ``i`` follows an opener of a noun phrase, adjective-like words between them allowed (each waits for the word behind it)."""
    follows = words[i + 1].lower() if i + 1 < len(words) else ""
    if _ADJECTIVE.search(words[i].lower()) and follows.isalpha() and follows not in _FUNCTION:
        return False
    j = i - 1
    while (
        j >= 0
        and kinds[j] == "other"
        and _ADJECTIVE.search(words[j].lower())
        and not (_VERB.search(words[j].lower()) and j < i - 1)
    ):
        j -= 1
    return j >= 0 and (words[j].lower() in _BEFORE_NOUN or kinds[j] == "number")
