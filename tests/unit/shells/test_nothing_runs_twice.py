"""No shell runs a text twice: the same ids under the same edits, in a residue and its findings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from forward_log import logged, told
from tiny_models import build, tiny_tokenizer

from symbolic_residue.instrument import collate, HeadScale, LastRow
from symbolic_residue.models import wrap
from symbolic_residue.shells import config_class, make_shell, SHELLS, ValueCollapseConfig

SENTENCE = "The mill stands where the river turns, and the miller keeps the key to the gate. The mill stands where the"
ASKED: dict[str, dict[str, Any]] = {
    "memtrace": {
        "input_text": "The mill is red. Ben came home in the evening. The river turns.\nThe mill is",
        "fact": "The mill is red.",
        "question": "\nThe mill is",
        "answer": " red",
        "foils": [" one", " two", " three"],
    },
    "value-collapse": {"input_text": SENTENCE},
    "layer-salience": {"input_text": SENTENCE},
    "temporal-inference": {
        "input_text": SENTENCE + " river turns, and Anna put the red book under the table before Ben came home."
    },
    "instruction-disruption": {"instructions": ["Answer in capital letters.", "Answer in small letters only."]},
}
OPTIONS: dict[str, dict[str, Any]] = {"instruction-disruption": {"max_new_tokens": 4}}
EXCUSED: dict[str, dict[str, str]] = {
    "layer-salience": {
        "layer_salience/_observe.py:worst_tokens": "every row's weights are read from a forward that keeps no keys; the beginning runs once more to hide tokens from the last row",
        "layer_salience/_sense.py:mean_weights": "ordinary texts, read once a shell and length; cut short, two of them may begin alike",
    },
    "temporal-inference": {
        "temporal_inference/_runs.py:states": "the states of two tails of some tokens are read at one jump, apart from the batch that scores all jumps",
        "temporal_inference/_heads.py:behaviours": "random tokens, once a shell: heads' means over them",
        "temporal_inference/_heads.py:log_p": "random tokens, once a shell: the base of their ablations",
    },
}
"""Shell → function that may run a text again → why."""


@pytest.mark.parametrize("name", list(SHELLS))
def test_no_text_runs_twice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = wrap(build("llama", max_position_embeddings=1024), tiny_tokenizer())
    shell = make_shell(name, loaded, config_class(name).quick(**OPTIONS.get(name, {})))
    with logged(shell.instrument, monkeypatch) as log:
        shell.analyze_residue(shell.run(**ASKED[name]))
    assert log.calls > 5
    excused = EXCUSED.get(name, {})
    left = [(unit, place) for unit, place in log.twice if not any(function in place for function in excused)]
    assert not left, told(left, shell.tokenizer.decode)
    for function in excused:  # an excuse that is needed no more is taken out
        assert any(function in place for _, place in log.twice), function


def test_the_prompt_of_value_collapse_runs_once_with_every_refiner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading, candidates, variants, tables, refiners, attribution and hiding go on from one run of the prompt, and of each variant and control."""
    shell = make_shell(
        "value-collapse",
        wrap(build("llama"), tiny_tokenizer()),
        ValueCollapseConfig.make(variants=3, steps=2, top_heads=2, random_heads=3),
    )
    control = "Anna put the red book under the table, and the miller keeps the key. The mill stands where the"
    with logged(shell.instrument, monkeypatch) as log:
        residue = shell.run(SENTENCE, control=control)
        shell.analyze_residue(residue)
    assert not log.twice, told(log.twice, shell.tokenizer.decode)
    assert log.times(shell.tokenizer.encode(control)) == 1
    assert log.times(shell.tokenizer.encode(SENTENCE)) == 1
    assert set(residue.frames["refiners"]["refiner"]) == {"layers", "soft", "rollout"}


def test_a_text_that_runs_twice_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log itself: whole, from a cache, in a batch beside others, and under edits that are the same or not."""
    instrument = make_shell("value-collapse", wrap(build("llama"), tiny_tokenizer())).instrument
    one, two = [5, 9, 7, 30], [8, 5, 9, 7, 30, 6]
    edit, other = HeadScale(0, 1, 0.5, rows=(-1,)), HeadScale(0, 1, 0.25, rows=(-1,))
    with logged(instrument, monkeypatch) as log:
        row = LastRow(instrument, collate([one, two]))
        row.run()
        row.run([edit])
        row.run([edit, other])
        assert not log.twice
        row.run([edit])
        assert [unit[0] for unit, _ in log.twice] == [tuple(one), tuple(two)]
        log.twice.clear()
        LastRow.join([row.select([1]), row.select([0])]).run([other], copies=2)
        assert len(log.twice) == 2  # of the two copies one
        log.twice.clear()
        instrument.run(torch.tensor([one]))
        instrument.run(torch.tensor([one[:2]]))
        instrument.run(torch.tensor([[*one, 11]]))
        assert [unit[0] for unit, _ in log.twice] == [tuple(one), tuple(one[:2])]
