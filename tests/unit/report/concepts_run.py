"""A folder of concepts as the library writes it, from a tiny random model and made texts; strings that bite where asked. No number of it means anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from report.synthetic_run import NASTY, SCRIPT
from tiny_models import build, tiny_tokenizer

from symbolic_residue.concepts import (
    check_concepts,
    choose_tracks,
    ConceptText,
    Corpus,
    judge_run_heads,
    Meaning,
    report_concepts,
    Sampling,
    train_concepts,
    watch,
    watch_record,
    watch_reference,
    Watcher,
    write_record,
)
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import wrap
from symbolic_residue.prompts import build_prompt
from symbolic_residue.store import RunFolder

WORDS = ("mill", "river", "gate", "table", "book", "answer", "captain", "harbour")
TELLINGS = {"baseline": "Anna put the {} there in the evening.", "joy": "Ben asks for the {} and laughs out loud!",
            "fear": "They see the {} and dare not move at all", "trust": "She hands him the {} and looks away,", "calm": "We leave the {} be and breathe slowly", "late": "It is over for the {} now"}  # fmt: skip
EVIL = f"joy {SCRIPT}"
PLACE = f"the {SCRIPT} \u202emill"


def write_concepts(
    folder: Path,
    *,
    nasty: bool = False,
    model: str = "llama",
    seed: int = 0,
    manifest: bool = True,
    late: int = 4,
    watched: bool = False,
    causal: bool = False,
    verdicts: bool = False,
    **options: Any,
) -> Path:
    """Corpus, readout and quality report of a tiny model: joy and fear (basic), trust and calm (relational), and ``late`` in the first few of 8 scenarios only, without a family."""
    name = {"joy": EVIL} if nasty else {}
    texts = []
    for index, word in enumerate(WORDS):
        scenario = PLACE if nasty and index == 0 else word
        for concept, telling in TELLINGS.items():
            if concept != "late" or index < late:
                text = telling.format(word) + (f" {NASTY}" if nasty and index == 0 else "")
                texts.append(ConceptText(name.get(concept, concept), scenario, text))
    second = f"relational {SCRIPT}" if nasty else "relational"
    families = {"joy": "basic", "fear": "basic", "trust": second, "calm": second, "late": None}
    corpus = Corpus(tuple(texts), {name.get(key, key): Meaning(family) for key, family in families.items()})
    instrument = Instrument(wrap(build(model, seed=seed), tiny_tokenizer()))
    if manifest:
        with RunFolder.create(folder, kind="concepts", command=["residue", "concepts", "train"], provenance={}, config={"seed": 0}):
            pass
    run = train_concepts(instrument, corpus, folder, **options)
    report_concepts(run, instrument.parts)
    if verdicts:
        judge_run_heads(run, n_draws_readout=100)
    if causal:
        openings = [f"The river {SCRIPT}" if nasty else "The river turns", "Anna put"]
        sampling = Sampling(max_new_tokens=6, seed=1)
        for concept in run.directions.concepts[:2]:
            check_concepts(
                run,
                instrument,
                [concept],
                openings=openings,
                doses=(2.0,),
                sampling=sampling,
                n_random=3,
                n_others=2,
                k=2,
                n_controls=3,
            )
    if watched:
        layers = run.directions.layers
        tracks = choose_tracks(run, [c for c in run.directions.concepts if c != "late"], layers=layers)
        watcher = Watcher(run, tracks, watch_reference(run, instrument, layers))
        text = f"Anna put {SCRIPT}" if nasty else "Anna put the mill"
        prompts = [build_prompt(instrument.loaded.tokenizer, one) for one in (text, "The river turns")]
        settings = {"max_new_tokens": 8, "draws": 3, "temperature": 1.0, "seed": 5}
        texts = watch(instrument, watcher, prompts, **settings, stop_ids=())
        write_record(folder, "watch/001.json", {"name": "001"} | watch_record(watcher, prompts, texts, settings, {}))
    return folder
