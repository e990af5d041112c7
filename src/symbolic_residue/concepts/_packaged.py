"""The corpus that comes with the package, see ``data/card.md``."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import as_file, files

from symbolic_residue.concepts._corpus import Corpus
from symbolic_residue.concepts._read import read_corpus

__all__ = ["corpus_card", "packaged_corpus", "packaged_words", "steering_openings"]

_ROOM = "symbolic_residue.concepts"


@cache
def packaged_corpus() -> Corpus:
    """12 concepts in two families, 24 scenarios, every concept in every scenario beside its neutral telling."""
    with as_file(files(_ROOM).joinpath("data")) as folder:
        return read_corpus(folder / "corpus.jsonl")


def packaged_words() -> dict[str, tuple[str, ...]]:
    """Concept → words that give it away."""
    return {name: meaning.words for name, meaning in packaged_corpus().meanings.items()}


def corpus_card() -> str:
    """The data card of the packaged corpus: design, how it was written, what was checked, limits; Markdown."""
    return files(_ROOM).joinpath("data", "card.md").read_text("utf-8")


def steering_openings() -> tuple[str, ...]:
    """24 neutral beginnings of stories, none of them of a scenario: prompts on which steering is measured."""
    lines = files(_ROOM).joinpath("data", "openings.jsonl").read_text("utf-8").splitlines()
    return tuple(json.loads(line)["text"] for line in lines if line)
