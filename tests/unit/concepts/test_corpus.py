"""Corpora of concept texts: both layouts, what is derived from them, and the way back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symbolic_residue.concepts import BASELINE, ConceptText, Corpus, Meaning, read_corpus, write_corpus
from symbolic_residue.errors import CorpusError, WriteError

CORPUS = Corpus(
    (
        ConceptText(BASELINE, "bus", "Ida waits."),
        ConceptText("joy", "bus", "Ida hums."),
        ConceptText("fear", "bus", "Ida hides."),
        ConceptText(BASELINE, "shop", "Olaf pays."),
        ConceptText("joy", "shop", "Olaf grins."),
        ConceptText("fear", "lonely", "No neutral telling here."),
        ConceptText("joy", None, "A text by itself."),
    ),
    {"fear": Meaning("basic", "Danger is near.", ("fear*",)), "joy": Meaning("basic"), "trust": Meaning("relational")},
    {"bus": ("Ida",)},
)


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return root


def test_a_folder_is_read(tmp_path):
    write(
        tmp_path,
        {
            "concepts/joy.txt": "\ufeffOne text\r\nof two lines.\r\n\r\n\r\n  Another.\r\n",
            "paired/bus/baseline.txt": "\n\nIda waits.\n\nShe reads.\n",
            "paired/bus/awe.txt": "Ida stares.",
            "paired/.hidden": "",
            "concepts/.hidden": "",
        },
    )
    corpus = read_corpus(tmp_path)
    assert [(one.concept, one.scenario, one.text, one.file, one.line) for one in corpus.texts] == [
        ("joy", None, "One text of two lines.", "concepts/joy.txt", 1),
        ("joy", None, "Another.", "concepts/joy.txt", 5),
        ("baseline", "bus", "Ida waits.\n\nShe reads.", "paired/bus/baseline.txt", 3),
        ("awe", "bus", "Ida stares.", "paired/bus/awe.txt", 1),
    ]
    assert not corpus.meanings and not corpus.people and corpus.concepts == ("joy", "awe")


def test_jsonl_is_read_with_what_is_stated_beside_it(tmp_path):
    rows = [{"concept": "joy", "scenario": "bus", "text": " Ida hums. "}, {"concept": "joy", "text": "Alone."}]
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows), "utf-8")
    (tmp_path / "a.json").write_text(
        '{"concepts": {"joy": {"family": "basic", "words": ["joy*"]}}, "scenarios": {"bus": {"people": ["Ida"]}}}'
    )
    corpus = read_corpus(tmp_path / "a.jsonl")
    assert [(one.concept, one.scenario, one.text, one.line) for one in corpus.texts] == [
        ("joy", "bus", "Ida hums.", 1),
        ("joy", None, "Alone.", 3),
    ]
    assert corpus.meanings == {"joy": Meaning("basic", "", ("joy*",))} and corpus.people == {"bus": ("Ida",)}


def test_what_a_corpus_says():
    assert CORPUS.concepts == ("fear", "joy", "trust")
    assert CORPUS.families == {"basic": ("fear", "joy"), "relational": ("trust",)}
    assert CORPUS.scenarios == ("bus", "shop", "lonely")
    assert [(p.concept, p.scenario, p.positive.text, p.baseline.text) for p in CORPUS.pairs()] == [
        ("joy", "bus", "Ida hums.", "Ida waits."),
        ("fear", "bus", "Ida hides.", "Ida waits."),
        ("joy", "shop", "Olaf grins.", "Olaf pays."),
    ]
    assert [p.scenario for p in CORPUS.pairs("joy")] == ["bus", "shop"]
    assert [one.scenario for one in CORPUS.positives("joy")] == ["bus", "shop", None]
    some = CORPUS.select(["joy"], ["shop"])
    assert [one.text for one in some.texts] == ["Olaf pays.", "Olaf grins."] and list(some.meanings) == ["joy"] and not some.people
    assert len(CORPUS.select(["joy"]).texts) == 5 and CORPUS.select() == CORPUS


@pytest.mark.parametrize("name", ["kept", "kept.jsonl"])
def test_round_trip(tmp_path, name):
    back = read_corpus(write_corpus(CORPUS, tmp_path / name))
    assert set(back.texts) == set(CORPUS.texts) and len(back.texts) == len(CORPUS.texts)
    assert back.meanings == CORPUS.meanings and list(back.meanings) == list(CORPUS.meanings) and back.people == CORPUS.people
    assert back.sha256 == CORPUS.sha256
    with pytest.raises(WriteError, match="already there"):
        write_corpus(CORPUS, tmp_path / name)


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", BASELINE]), st.sampled_from([None, "s", "t"]), st.text(min_size=1)), min_size=1)
)
def test_jsonl_keeps_every_text(tmp_path_factory, rows):
    corpus = Corpus(tuple(ConceptText(c, s, text.strip()) for c, s, text in rows))
    file = tmp_path_factory.mktemp("trip") / "a.jsonl"
    assert read_corpus(write_corpus(corpus, file)).texts == corpus.texts


def test_the_hash_is_of_texts_alone():
    turned = Corpus(tuple(reversed(CORPUS.texts)))
    assert turned.sha256 == CORPUS.sha256
    first = CORPUS.texts[0]
    for other in (
        ConceptText("joy", "bus", first.text),
        ConceptText(BASELINE, None, first.text),
        ConceptText(BASELINE, "bus", "Ida waits"),
    ):
        assert Corpus((other, *CORPUS.texts[1:])).sha256 != CORPUS.sha256


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([ConceptText("a/b", None, "x")], "'a/b' cannot be the name"),
        ([ConceptText("joy", "..", "x")], "'..' cannot be the name"),
        ([ConceptText("joy", "s", "x"), ConceptText("joy", "s", "y")], "two texts"),
        ([ConceptText("joy", None, "x\n\ny")], "cannot be kept"),
        ([ConceptText("joy", "s", "x\ny")], "cannot be kept"),
        ([ConceptText("joy", None, "")], "cannot be kept"),
    ],
)
def test_what_a_folder_cannot_hold(tmp_path, texts, message):
    with pytest.raises(CorpusError, match=message):
        write_corpus(Corpus(tuple(texts)), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"concepts/joy.txt": b"fine\n\n\xff\xfe bad"}, "concepts/joy.txt:3: not UTF-8"),
        ({"paired/bus/joy.txt": b"caf\xe9"}, "paired/bus/joy.txt:1: not UTF-8"),
        ({"concepts/joy.txt": "x", "corpus.json": '{"concept": {}}'}, "corpus.json: bad line: concept"),
        ({"notes.txt": "x"}, "is no corpus"),
        ({"concepts/.gitkeep": ""}, "holds no text"),
    ],
)
def test_a_folder_that_cannot_be_read(tmp_path, files, message):
    with pytest.raises(CorpusError, match=message.replace(".", r"\.")):
        read_corpus(write(tmp_path, files))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"concept": "joy"}', "text: Field required"),
        ('{"concept": "joy", "text": 3}', "text: "),
        ('{"concept": "joy", "text": "x", "label": 1}', "label: "),
        ('{"concept": "joy", "text": "x", "text": "y"}', "given twice"),
        ('{"concept": "joy", "text": "\\ud800"}', "no JSON"),
        ('["joy"]', "bad line"),
        ("joy: x", "no JSON"),
        (b'{"concept": "joy", "text": "\xe9"}', "not UTF-8"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path, line, message):
    good = b'{"concept": "joy", "text": "x"}\n\n'
    write(tmp_path, {"a.jsonl": good + (line if isinstance(line, bytes) else line.encode())})
    with pytest.raises(CorpusError, match=message) as refused:
        read_corpus(tmp_path / "a.jsonl")
    assert "a.jsonl:3" in str(refused.value)


def test_nothing_there(tmp_path):
    with pytest.raises(CorpusError, match="There is no corpus"):
        read_corpus(tmp_path / "none")
    (tmp_path / "e.jsonl").write_text("\n")
    with pytest.raises(CorpusError, match="holds no text"):
        read_corpus(tmp_path / "e.jsonl")
