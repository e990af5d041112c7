"""Concepts on the demo model: one concept trained on 48 packaged texts, and watched in texts that begin with it and in matched ones that do not.

Four of the eight pairs of openings on which the rule was first run: they are here to keep what was found, not to find it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from symbolic_residue.concepts import choose_tracks, packaged_corpus, train_concepts, watch, watch_record, watch_reference, Watcher
from symbolic_residue.instrument import Instrument, open_model
from symbolic_residue.prompts import build_prompt

pytestmark = pytest.mark.model

FEAR = (
    "The floor above them creaked again. Lena held her breath and reached for the lamp, and then the door",
    "He could not move. Something was breathing in the dark on the other side of the tent, and",
    "Water was already at the third step, and the lights went out. The children",
    "Shots rang out below the window. They lay flat under the bed and",
)
PLAIN = (
    "The floor above them was painted last week. Lena carried the lamp upstairs, and then the door",
    "He folded the tent in the morning and packed the poles in the bag, and",
    "Water is turned on at the third valve, and the lights are on the left. The children",
    "Boxes were stacked below the window. They moved the bed to the wall and",
)


def test_fear_is_seen_in_texts_that_begin_with_it_and_not_in_matched_ones(tmp_path: Path) -> None:
    loaded = open_model("demo")
    instrument = Instrument(loaded)
    run = train_concepts(instrument, packaged_corpus(), tmp_path / "run", concepts=["fear"], layers=[28])
    watcher = Watcher(run, choose_tracks(run, layers=[28]), watch_reference(run, instrument, [28]))
    differences = {}
    for name, texts in (("fear", FEAR), ("plain", PLAIN)):
        prompts = [build_prompt(loaded.tokenizer, text) for text in texts]
        watched = watch(instrument, watcher, prompts, max_new_tokens=20)
        (verdict,) = watch_record(watcher, prompts, watched, {}, {})["verdicts"]
        assert verdict["n"] == 4 and verdict["n_counts"] == "prompts" and verdict["n_scenarios"] == 24
        assert (verdict["outcome"] == "above") == (name == "fear"), verdict
        differences[name] = verdict["difference"]
        one = watched[0]
        trace = instrument.run(torch.tensor([[token.id for token in one.tokens]]), reads=("resid_post.28",))
        z, _ = watcher.score({28: trace["resid_post.28"][0].double().numpy()})
        own = [token for token in one.tokens if token.z is not None]
        np.testing.assert_allclose([token.z for token in own], [z[token.position] for token in own], atol=5e-5)
    assert differences["fear"] > differences["plain"] + 1
