"""A folder of concepts as the library writes it, from a tiny random model and made texts; strings that bite where asked. No number of it means anything."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from report.synthetic_run import NASTY, SCRIPT
from tiny_models import build, tiny_tokenizer

from symbolic_residue.concepts import (
    collect,
    ConceptText,
    Corpus,
    find_directions,
    Meaning,
    quality_report,
    ReadoutModel,
    save_directions,
    write_corpus,
)
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import bind
from symbolic_residue.store import RunFolder

WORDS = ("mill", "river", "gate", "table", "book", "answer", "captain", "harbour")
TELLINGS = {"baseline": "Anna put the {} there in the evening.", "joy": "Ben asks for the {} and laughs out loud!",
            "fear": "They see the {} and dare not move at all", "trust": "She hands him the {} and looks away,", "late": "It is too late for the {} now"}  # fmt: skip
EVIL = f"joy {SCRIPT}"
PLACE = f"the {SCRIPT} \u202emill"


def write_concepts(
    folder: Path, *, nasty: bool = False, model: str = "llama", seed: int = 0, manifest: bool = True, late: int = 4, **options: Any
) -> Path:
    """Corpus, readout and quality report of a tiny model: joy and fear (basic), trust (relational), and ``late`` in the first few of 8 scenarios only, without a family."""
    name = {"joy": EVIL} if nasty else {}
    texts = []
    for index, word in enumerate(WORDS):
        scenario = PLACE if nasty and index == 0 else word
        for concept, telling in TELLINGS.items():
            if concept != "late" or index < late:
                text = telling.format(word) + (f" {NASTY}" if nasty and index == 0 else "")
                texts.append(ConceptText(name.get(concept, concept), scenario, text))
    families = {"joy": "basic", "fear": "basic", "trust": f"relational {SCRIPT}" if nasty else "relational", "late": None}
    corpus = Corpus(tuple(texts), {name.get(key, key): Meaning(family) for key, family in families.items()})
    made = build(model, seed=seed)
    loaded: Any = SimpleNamespace(model=made, parts=bind(made), tokenizer=tiny_tokenizer())
    pooled = collect(Instrument(loaded), [one.text for one in texts], heads=options.pop("heads", True))
    labels, scenarios = [one.concept for one in texts], [one.scenario for one in texts]
    identity = ReadoutModel(
        f"a tiny {SCRIPT}" if nasty else "a tiny model", f"{seed}" * 64, None, "float32", 64, loaded.parts.n_layers
    )
    directions = find_directions(pooled, labels, scenarios, identity, corpus_sha256=corpus.sha256, **options)
    if manifest:
        with RunFolder.create(
            folder,
            kind="concepts",
            command=["residue", "concepts", "train"],
            provenance={"model": identity.model},
            config={"seed": 0},
        ):
            pass
    save_directions(directions, folder)
    write_corpus(corpus, folder / "corpus.jsonl")
    report = quality_report(pooled, labels, scenarios, directions, loaded.parts, corpus=corpus)
    (folder / "quality.json").write_text(json.dumps({"format": 1, **report}), "utf-8")
    return folder
