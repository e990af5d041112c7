"""``causal.json``: plain data that goes on part by part, belongs to its folder, and a single prompt steered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import build, tiny_tokenizer

from symbolic_residue.concepts import _causal as causal
from symbolic_residue.concepts import (
    ablate_heads,
    check_concepts,
    ConceptRun,
    ConceptText,
    Corpus,
    open_concept_run,
    read_causal,
    Sampling,
    steer_prompt,
    train_concepts,
)
from symbolic_residue.errors import ConfigError, ReadError, RunDamagedError
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import wrap

EVENTS = ("mill", "river", "gate", "table", "book", "harbour")
TOLD = {
    "baseline": "Anna put the {} there in the evening",
    "joy": "Ben asks for the {} with a smile",
    "fear": "They see the {} and turn home",
}
OPENINGS = ("The captain and the river", "One word")
OPTIONS: dict[str, Any] = {
    "openings": OPENINGS, "doses": (2.0,), "k": 2, "n_controls": 5, "n_random": 3, "n_others": 1, "n_other_heads": 3,
    "sampling": Sampling(max_new_tokens=3), "also": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Instrument, ConceptRun]:
    instrument = Instrument(wrap(build("llama"), tiny_tokenizer()))
    corpus = Corpus(tuple(ConceptText(c, event, told.format(event)) for event in EVENTS for c, told in TOLD.items()))
    return instrument, train_concepts(instrument, corpus, tmp_path_factory.mktemp("causal") / "run", seed=4)


@pytest.fixture
def run(trained: tuple[Instrument, ConceptRun], tmp_path: Path) -> ConceptRun:
    shutil.copytree(trained[1].folder, tmp_path / "run")
    return open_concept_run(tmp_path / "run")


def test_both_parts_are_kept_as_plain_data(trained: tuple[Instrument, ConceptRun], run: ConceptRun) -> None:
    told: list[float] = []
    found = check_concepts(run, trained[0], **(OPTIONS | {"also": "direct"}), progress=lambda what, share: told.append(share))
    assert list(found["concepts"]["joy"]) == ["ablation", "ablation_direct", "steering"]
    assert found["concepts"]["joy"]["ablation_direct"]["by"] == "direct" != found["concepts"]["joy"]["ablation"]["by"]
    assert found == read_causal(run) == json.loads((run.folder / "causal.json").read_text("utf-8"))
    assert found["format"] == 1 and found["of"]["weights_sha256"] == run.directions.model.weights_sha256
    assert list(found["concepts"]) == ["joy", "fear"] and set(found["rules"]) == {"ablation", "steering", "judged_dose"}
    assert told == sorted(told) and told[-1] == 1.0
    block = found["concepts"]["joy"]["ablation"]
    direct = ablate_heads(
        trained[0],
        [t.text for t in run.corpus.texts],
        run.labels,
        run.scenarios,
        run.pooled,
        run.directions,
        "joy",
        k=2,
        n_controls=5,
        seed=4,
    )
    assert block["verdict"] == direct.verdict and block["n_counts"] == "scenarios" and block["settings"]["seed"] == 4
    assert block["layers"][0]["contrast"]["value"] == pytest.approx(direct.layers[0].contrast.value, rel=1e-5)
    assert [[tuple(h) for h in half] for half in block["halves"]] == [list(half) for half in direct.halves]
    steering = found["concepts"]["joy"]["steering"]
    assert steering["n_counts"] == "openings" and steering["openings"] == 2 and steering["settings"]["openings"] == list(OPENINGS)
    kinds = [arm["kind"] for arm in steering["arms"]]
    assert kinds == ["unsteered", "direction", *["random"] * 3, "other concept", "heads", *["other heads"] * 3]
    assert ["texts" in arm for arm in steering["arms"]] == [True, True, True, False, False, False, True, False, False, False]
    assert all(len(arm["values"]["words"]) == 2 for arm in steering["arms"])


def test_a_part_that_is_there_is_not_done_again(
    trained: tuple[Instrument, ConceptRun], run: ConceptRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("ablate_heads", "check_steering"):
        real = getattr(causal, name)

        def counted(*args: Any, real: Any = real, name: str = name, **options: Any) -> Any:
            calls.append(f"{name} {args[6]}")
            if len(calls) == 3 and stop:
                raise KeyboardInterrupt
            return real(*args, **options)

        monkeypatch.setattr(causal, name, counted)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        check_concepts(run, trained[0], **OPTIONS)
    assert calls == ["ablate_heads joy", "check_steering joy", "ablate_heads fear"]
    stop, before = False, read_causal(run)
    assert before is not None and list(before["concepts"]) == ["joy"]
    calls.clear()
    after = check_concepts(run, trained[0], **OPTIONS)
    assert calls == ["ablate_heads fear", "check_steering fear"] and after["concepts"]["joy"] == before["concepts"]["joy"]
    calls.clear()
    check_concepts(run, trained[0], ["joy"], **OPTIONS)
    assert calls == []
    other = check_concepts(run, trained[0], ["joy"], **(OPTIONS | {"n_controls": 4}))
    assert calls == ["ablate_heads joy"] and other["concepts"]["joy"]["ablation"]["settings"]["n_controls"] == 4
    assert other["concepts"]["fear"] == after["concepts"]["fear"]


def test_what_does_not_belong_is_refused(trained: tuple[Instrument, ConceptRun], run: ConceptRun) -> None:
    with pytest.raises(ConfigError, match="no concept 'envy'"):
        check_concepts(run, trained[0], ["envy"])
    check_concepts(run, trained[0], ["joy"], **(OPTIONS | {"steering": False}))
    path = run.folder / "causal.json"
    content = json.loads(path.read_text("utf-8"))
    content["of"]["tensors_sha256"] = "0" * 64
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(RunDamagedError, match="other directions"):
        check_concepts(run, trained[0], ["joy"], **OPTIONS)
    path.write_text("{", "utf-8")
    with pytest.raises(RunDamagedError, match="cannot be read"):
        read_causal(run)


def test_one_prompt_three_ways(trained: tuple[Instrument, ConceptRun]) -> None:
    instrument, run = trained
    found = steer_prompt(run, instrument, "joy", "The captain", dose=30.0, max_new_tokens=6, seed=1)
    assert [one["name"] for one in found["texts"]] == ["as it is", "joy +30", "random direction, as long (seed 1)"]
    assert (
        found["layer"] == 1 and found["heads"] == [] and found["length"] == pytest.approx(30 * run.directions.norms[1][0], rel=1e-6)
    )
    assert found["texts"][0]["text"] != found["texts"][1]["text"]
    zero = steer_prompt(run, instrument, "joy", "The captain", dose=0.0, max_new_tokens=6, seed=1)
    assert {one["text"] for one in zero["texts"]} == {found["texts"][0]["text"]}
    heads = steer_prompt(run, instrument, "joy", "The captain", dose=-2.0, heads=3, max_new_tokens=3, temperature=0.0)
    assert len(heads["heads"]) == 3 and heads["length"] > 0 and all(np.isfinite(one["nll"]) for one in heads["texts"])
    json.dumps(found, allow_nan=False)
    for options, match in (
        ({"dose": float("nan")}, "cannot be added"),
        ({"layer": 7}, "no direction"),
        ({"heads": -1}, "cannot be pushed"),
        ({"heads": 8}, "cannot be chosen"),
    ):
        with pytest.raises(ConfigError, match=match):
            steer_prompt(run, instrument, "joy", "The captain", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no direction of 'envy'"):
        steer_prompt(run, instrument, "envy", "The captain")


def test_heads_of_layers_that_have_none_are_refused(tmp_path: Path) -> None:
    instrument = Instrument(wrap(build("qwen3_next"), tiny_tokenizer()))
    corpus = Corpus(tuple(ConceptText(c, event, told.format(event)) for event in EVENTS for c, told in TOLD.items()))
    run = train_concepts(instrument, corpus, tmp_path / "run")
    with pytest.raises(ReadError, match="No layer up to 0 has heads"):
        steer_prompt(run, instrument, "joy", "The captain", layer=0, heads=1)
    found = check_concepts(run, instrument, ["joy"], **(OPTIONS | {"layer": 2, "steering": False}))
    assert {layer for half in found["concepts"]["joy"]["ablation"]["halves"] for layer, _ in half} == {1}
