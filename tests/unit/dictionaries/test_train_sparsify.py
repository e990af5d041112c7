"""Training through sparsify: what is handed over (a stand-in that records it), and, where the package is installed, its own trainer."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from dictionary_files import random_dictionary, write_sparsify
from tiny_models import build, tiny_tokenizer

from symbolic_residue.dictionaries import evaluate_dictionary, open_dictionary, text_sha256, train_with_sparsify, trained_texts
from symbolic_residue.errors import (
    ConfigError,
    DictionaryError,
    MissingExtraError,
    NonFiniteWeightsError,
    PromptError,
    RunExistsError,
    WriteError,
)
from symbolic_residue.graph import attribute
from symbolic_residue.instrument import Instrument, Replace
from symbolic_residue.models import LoadedModel, wrap

TEXTS = [
    "The mill stands where the river turns, and the miller keeps the key to the gate of the old stone house by the water.",
    "Should the captain answer yes or no to the question of the harbour master? He waits for the evening tide and says no word.",
    "Anna put the red book under the table before Ben came home in the evening, and nobody has seen that book since then.",
]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return wrap(build("llama"), tiny_tokenizer())


@dataclass
class Recorded:
    """What the stand-in was given."""

    config: dict[str, Any] = field(default_factory=dict)
    coder: dict[str, Any] = field(default_factory=dict)
    rows: list[torch.Tensor] = field(default_factory=list)
    value: float = 0.0


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    seen = Recorded()

    def coder(**given: Any) -> dict[str, Any]:
        seen.coder = given
        return given

    def config(sae: Any, **given: Any) -> Any:
        seen.config = given
        return given

    class Trainer:
        def __init__(self, config: Any, dataset: Any, model: Any) -> None:
            seen.rows = [dataset[i]["input_ids"] for i in range(len(dataset))]
            self.model = model
            torch.manual_seed(99)
            torch.set_float32_matmul_precision("high")
            model.requires_grad_(False)
            print("not to be seen")

        def fit(self) -> None:
            folder = Path(seen.config["save_dir"]) / seen.config["run_name"]
            made = random_dictionary(2, d_model=64, features=seen.coder["num_latents"], kind="topk", predicts="mlp")
            if seen.value:
                made.layers[0].bias.fill_(seen.value)
            write_sparsify(made, folder)
            (folder / "state.pt").write_bytes(b"pickle")

    module: Any = ModuleType("sparsify")
    module.SparseCoderConfig, module.TrainConfig, module.Trainer, module.__version__ = coder, config, Trainer, "1.3.3"
    monkeypatch.setitem(sys.modules, "sparsify", module)
    return seen


@pytest.mark.parametrize("bos", [False, True])
def test_every_position_but_the_first_is_handed_over_once_a_pass(
    bos: bool, stand_in: Recorded, tmp_path: Path, capsys: Any
) -> None:
    model = wrap(build("llama"), tiny_tokenizer(bos=bos))
    state, precision = torch.get_rng_state(), torch.get_float32_matmul_precision()
    train_with_sparsify(
        model, TEXTS, tmp_path / "d", k=4, features=32, passes=2, batch=4, context=16, learning_rate=0.5, skip=False, dead_after=77
    )
    assert torch.equal(state, torch.get_rng_state()) and precision == torch.get_float32_matmul_precision()
    assert all(one.requires_grad for one in model.model.parameters()) and "not to be seen" not in capsys.readouterr().out
    mark = model.tokenizer.bos_token_id
    assert stand_in.config["exclude_tokens"] == [mark] and all(len(row) == 16 and row[0] == mark for row in stand_in.rows)
    text = sorted(int(i) for row in stand_in.rows for i in row if i != mark)
    assert text == sorted([i for one in TEXTS for i in model.tokenizer(one, add_special_tokens=False)["input_ids"]] * 2)
    assert stand_in.config["hookpoints"] == ["layers.0.mlp", "layers.1.mlp"] and stand_in.config["lr"] == 0.5
    assert stand_in.config["dead_feature_threshold"] == 77 and not stand_in.config["log_to_wandb"]
    assert stand_in.coder == {"num_latents": 32, "k": 4, "skip_connection": False, "transcode": True}


def test_the_result_is_opened_without_pickles(loaded: LoadedModel, stand_in: Recorded, tmp_path: Path) -> None:
    made = train_with_sparsify(loaded, TEXTS, tmp_path / "d", k=4, features=32, batch=4, context=16)
    assert open_dictionary(tmp_path / "d").sha256 == made.sha256 and not list((tmp_path / "d").rglob("*.pt"))
    assert trained_texts(tmp_path / "d") == {text_sha256(text) for text in TEXTS}
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    with pytest.raises(RunExistsError):
        train_with_sparsify(loaded, TEXTS, tmp_path / "d", k=4)


def test_what_cannot_be_used_is_refused(
    loaded: LoadedModel, stand_in: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "d"
    for given, error, said in (
        ({"k": 0}, ConfigError, "k=0"), ({"k": 9, "features": 8}, ConfigError, "keep 9 of 8"), ({"k": 4, "optimizer": "sgd"}, ConfigError, "sgd"),
        ({"k": 4, "layers": (2,)}, ConfigError, "no layer 2"), ({"k": 4, "batch": 999}, PromptError, "a batch is 999"),
    ):  # fmt: skip
        with pytest.raises(error, match=said):
            train_with_sparsify(loaded, TEXTS, here, **{"context": 16, "batch": 2} | given)  # type: ignore[arg-type]
    nameless = tiny_tokenizer()
    nameless.bos_token = nameless.eos_token = None
    with pytest.raises(ConfigError, match="no BOS and no end-of-text"):
        train_with_sparsify(wrap(build("llama"), nameless), TEXTS, here, k=4, context=16)
    with pytest.raises(DictionaryError, match="no module named mlp"):
        train_with_sparsify(wrap(build("opt"), tiny_tokenizer()), TEXTS, here, k=4, context=16, batch=2)
    with monkeypatch.context() as patch:  # a module whose output is not what the MLP writes
        real = Instrument.run
        edit = Replace("mlp_out.1", value=torch.ones(64), rows=(-1,))
        patch.setattr(Instrument, "run", lambda *args, **given: real(*args, **given, edits=[edit]))
        with pytest.raises(DictionaryError, match=r"layers\.1\.mlp takes or gives something else"):
            train_with_sparsify(loaded, TEXTS, here, k=4, context=16, batch=2)
    stand_in.value = float("nan")
    with pytest.raises(NonFiniteWeightsError):
        train_with_sparsify(loaded, TEXTS, here, k=4, features=32, context=16, batch=2)
    assert not list(tmp_path.iterdir())  # nothing half made is left

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    stand_in.value = 0.0
    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(WriteError, match="No space left"):
        train_with_sparsify(loaded, TEXTS, here, k=4, features=32, context=16, batch=2)


def test_a_missing_package_is_told_by_its_pip_line(loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sparsify", None)
    with pytest.raises(MissingExtraError) as told:
        train_with_sparsify(loaded, TEXTS, tmp_path / "d", k=4)
    assert told.value.todo == "pip install 'symbolic-residue[sparsify]'"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "granite"])
@pytest.mark.parametrize("optimizer", ["adam", "signum"])
def test_sparsifys_own_trainer_learns_and_its_transcoders_make_graphs_that_sum(family: str, optimizer: str, tmp_path: Path) -> None:
    pytest.importorskip("sparsify")
    model = wrap(build(family), tiny_tokenizer())
    prompts = [model.tokenizer(text)["input_ids"][:24] for text in TEXTS]

    def trained(passes: int) -> Any:
        return train_with_sparsify(
            model, TEXTS, tmp_path / str(passes), k=4, features=48, passes=passes, batch=4, context=24, skip=True, optimizer=optimizer, learning_rate=5e-3
        )  # fmt: skip

    little, much = trained(1), trained(60)
    before, after = (evaluate_dictionary(Instrument(model), one, prompts)["fvu"].mean() for one in (little, much))
    assert after < 0.8 * before  # type: ignore[operator]
    assert trained_texts(tmp_path / "60") and open_dictionary(tmp_path / "60").sha256 == much.sha256
    graph = attribute(model.model, model.tokenizer, TEXTS[0][:50], units=much, max_nodes=30)
    assert graph.check().passed
