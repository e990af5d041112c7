"""Reading and writing a corpus: a folder of text files, or a JSONL file.

Folder::

    concepts/<name>.txt                     texts of a concept, one a paragraph (paragraphs are parted by empty lines)
    paired/<scenario>/baseline.txt          an event, told neutrally; the whole file is one text
    paired/<scenario>/<concept>.txt         the same event under a concept
    corpus.json                             optional: {"concepts": {name: {family, meaning, words}}, "scenarios": {name: {people}}}

JSONL: ``{"concept": …, "scenario": …, "text": …}`` a line, scenario left out or null for a text by itself; ``NAME.json`` beside ``NAME.jsonl`` is its
``corpus.json``.

1. Lines of a paragraph are joined by a space, paragraphs of a paired text by an empty line: how a file is wrapped is no part of its text.
2. Whatever cannot be read (another encoding, a bad line) is kept as a :class:`Fault` with file and line. Reading for use refuses a corpus with any;
   the validator shows them all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from symbolic_residue.concepts._corpus import BASELINE, ConceptText, Corpus, Meaning
from symbolic_residue.errors import CorpusError, WriteError

__all__ = ["Fault", "read_corpus", "scan_corpus", "write_corpus"]


class _Concept(BaseModel):
    model_config = ConfigDict(extra="forbid")

    family: str | None = None
    meaning: str = ""
    words: tuple[str, ...] = ()


class _Scenario(BaseModel):
    model_config = ConfigDict(extra="forbid")

    people: tuple[str, ...] = ()


class _About(BaseModel):
    model_config = ConfigDict(extra="forbid")

    concepts: dict[str, _Concept] = {}
    scenarios: dict[str, _Scenario] = {}


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    concept: str
    scenario: str | None = None
    text: str


@dataclass(frozen=True, slots=True)
class Fault:
    """What could not be read: ``kind`` (``not UTF-8``, ``bad line``, ``stray file``), file, line from 1 (0: the file itself), and why."""

    kind: str
    file: str
    line: int
    detail: str


@dataclass
class _Found:
    texts: list[ConceptText] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def read_corpus(path: str | Path) -> Corpus:
    """Read a corpus for use; see the module for the layouts.

    Raises:
        CorpusError: there is none, it holds no text, or a part of it cannot be read (file and line named).
    """
    corpus, faults = scan_corpus(path)
    refused = [fault for fault in faults if fault.kind != "stray file"]
    if refused:
        first = refused[0]
        raise CorpusError(
            f"{_place(first.file, first.line)}: {first.kind}: {first.detail}",
            why=f"{len(refused)} places of the corpus cannot be read." if len(refused) > 1 else "",
            todo=f"See all with: residue concepts validate {path}",
        )
    return corpus


def scan_corpus(path: str | Path) -> tuple[Corpus, list[Fault]]:
    """Read whatever can be read of a corpus.

    Returns:
        The corpus, and what could not be read.

    Raises:
        CorpusError: there is nothing at ``path``, it is neither layout, or nothing in it is a text.
    """
    path = Path(path)
    found = _Found()
    if path.is_dir():
        if not any((path / part).is_dir() for part in ("concepts", "paired")):
            raise CorpusError(
                f"{path} is no corpus.",
                why="It has neither a folder 'concepts' nor a folder 'paired'.",
                todo="Give its own folder.",
            )
        _folder(path, found)
        about = path / "corpus.json"
    elif path.is_file():
        _jsonl(path, found)
        about = path.with_suffix(".json")
    else:
        raise CorpusError(f"There is no corpus {path}.", todo="Give a folder, or a JSONL file.")
    stated = _about(about, found) if about != path and about.exists() else _About()
    if not found.texts and not found.faults:
        raise CorpusError(f"The corpus {path} holds no text.")
    meanings = {name: Meaning(one.family, one.meaning, one.words) for name, one in stated.concepts.items()}
    people = {name: one.people for name, one in stated.scenarios.items() if one.people}
    return Corpus(tuple(found.texts), meanings, people), found.faults


def write_corpus(corpus: Corpus, path: str | Path) -> Path:
    """Write a corpus as a folder, or as JSONL where the name ends so, with what is stated about it.

    Returns:
        ``path``.

    Raises:
        CorpusError: a folder cannot hold it: a name that is no file name, two tellings of one event under one concept, or an inner line break.
        WriteError: something is already there, or the file system refuses.
    """
    path = Path(path)
    flat = path.suffix == ".jsonl"
    about = path.with_suffix(".json") if flat else path / "corpus.json"
    contents = {path: _lines(corpus)} if flat else _files(corpus, path)
    if corpus.meanings or corpus.people:
        stated = _About(
            concepts={n: _Concept(family=m.family, meaning=m.meaning, words=m.words) for n, m in corpus.meanings.items()},
            scenarios={name: _Scenario(people=people) for name, people in corpus.people.items()},
        )
        contents[about] = stated.model_dump_json(indent=1) + "\n"
    there = next((file for file in (path, *contents) if file.exists()), None)
    if there is not None:
        raise WriteError(f"{there} is already there.", todo="Name another place.")
    try:
        for file, text in contents.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8", newline="\n")
    except OSError as error:
        raise WriteError(f"{error.filename or path} cannot be written: {error.strerror or error}.") from error
    return path


def _lines(corpus: Corpus) -> str:
    rows = ({"concept": one.concept, "scenario": one.scenario, "text": one.text} for one in corpus.texts)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _files(corpus: Corpus, root: Path) -> dict[Path, str]:
    contents: dict[Path, str] = {}
    for one in corpus.texts:
        for name in (one.concept, one.scenario or "x"):
            if not name or name.startswith(".") or any(c in '/\\:\0\n<>|"?*' for c in name):
                raise CorpusError(f"{name!r} cannot be the name of a file.", todo="Rename it, or write JSONL.")
        if one.scenario is None:
            file = root / "concepts" / f"{one.concept}.txt"
            kept = [text for text, _ in _paragraphs(one.text)] == [one.text]
            contents[file] = contents[file] + "\n" + one.text + "\n" if file in contents else one.text + "\n"
        else:
            file = root / "paired" / one.scenario / f"{one.concept}.txt"
            if file in contents:
                raise CorpusError(f"Scenario {one.scenario!r} has two texts for {one.concept!r}.", todo="Write JSONL.")
            kept = "\n\n".join(text for text, _ in _paragraphs(one.text)) == one.text
            contents[file] = one.text + "\n"
        if not kept:
            raise CorpusError(
                f"A text of {one.concept!r} (scenario {one.scenario!r}) cannot be kept in a text file.",
                why="It is empty, or has line breaks or spaces that a text file does not keep.",
                todo="Write JSONL.",
            )
    return contents


def _folder(root: Path, found: _Found) -> None:
    for file in _listed(root / "concepts", found):
        name = file.relative_to(root).as_posix()
        text = _text(file, name, found)
        if text is not None:
            found.texts += [ConceptText(file.stem, None, one, name, line) for one, line in _paragraphs(text) or [("", 1)]]
    if not (root / "paired").is_dir():
        return
    for folder in sorted((root / "paired").iterdir()):
        if not folder.is_dir():
            if not folder.name.startswith("."):
                found.faults.append(
                    Fault("stray file", folder.relative_to(root).as_posix(), 0, "no folder of a scenario; not read")
                )
            continue
        listed = sorted(_listed(folder, found), key=lambda file: (file.stem != BASELINE, file.name))
        for file in listed:
            name = file.relative_to(root).as_posix()
            text = _text(file, name, found)
            if text is not None:
                paragraphs = _paragraphs(text) or [("", 1)]
                whole = "\n\n".join(one for one, _ in paragraphs)
                found.texts.append(ConceptText(file.stem, folder.name, whole, name, paragraphs[0][1]))


def _listed(folder: Path, found: _Found) -> list[Path]:
    """Text files of a folder by name; others are faults, hidden ones are passed over."""
    if not folder.is_dir():
        return []
    listed = []
    for file in sorted(folder.iterdir()):
        if file.name.startswith("."):
            continue
        if file.suffix == ".txt" and file.is_file():
            listed.append(file)
        else:
            name = (
                f"{folder.parent.name}/{folder.name}/{file.name}"
                if folder.parent.name == "paired"
                else f"{folder.name}/{file.name}"
            )
            found.faults.append(Fault("stray file", name, 0, "no text file (.txt); not read"))
    return listed


def _paragraphs(text: str) -> list[tuple[str, int]]:
    """Paragraphs, each on one line, with the line on which it begins."""
    found: list[tuple[str, int]] = []
    lines: list[str] = []
    begin = 0
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        if line.strip():
            begin = begin if lines else number
            lines.append(line.strip())
        elif lines:
            found.append((" ".join(lines), begin))
            lines = []
    return found


def _jsonl(path: Path, found: _Found) -> None:
    for number, line in enumerate((_text(path, path.name, found) or "").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = _Line.model_validate(json.loads(line, object_pairs_hook=_distinct))
            row.text.encode("utf-8")
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            found.faults.append(Fault("bad line", path.name, number, f"{place}: {first['msg']}" if place else first["msg"]))
        except (ValueError, RecursionError) as error:
            found.faults.append(Fault("bad line", path.name, number, f"no JSON: {error}"))
        else:
            found.texts.append(ConceptText(row.concept, row.scenario, row.text.strip(), path.name, number))


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key is given twice")
    return dict(pairs)


def _about(path: Path, found: _Found) -> _About:
    try:
        return _About.model_validate_json(_text(path, path.name, found) or "{}")
    except ValidationError as error:
        first = error.errors()[0]
        found.faults.append(Fault("bad line", path.name, 0, f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"))
        return _About()


def _text(path: Path, name: str, found: _Found) -> str | None:
    """A file's text with plain line ends; None, and a fault, where it is not UTF-8.

    Raises:
        CorpusError: the file system refuses.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found.faults.append(Fault("not UTF-8", name, line, f"byte {error.start} ({data[error.start]:#04x}); save it as UTF-8"))
        return None


def _place(file: str, line: int) -> str:
    return f"{file}:{line}" if line else file
