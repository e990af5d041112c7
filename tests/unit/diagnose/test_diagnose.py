"""One prompt item through the shell and through the plain read: tables that fit the store's schemas, or a failed item with its reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.diagnose import diagnose_item, failed_item, ItemResult, read_item
from symbolic_residue.errors import ModelError
from symbolic_residue.prompts import PromptItem
from symbolic_residue.shells import ValueCollapseConfig, ValueCollapseShell
from symbolic_residue.store import RunFolder, validate

SENTENCE = "The mill stands where the river turns, and the miller keeps the key to the gate. The mill stands where the"
SMALL = ValueCollapseConfig.make(variants=3, steps=2, top_heads=3, random_heads=4)
SYSTEM = {"role": "system", "content": "You are a careful helper."}


@pytest.fixture(scope="module", params=["llama", "gemma3", "gpt2", "gpt_neox"])
def shell(request: pytest.FixtureRequest) -> ValueCollapseShell:
    return ValueCollapseShell(build(request.param), tiny_tokenizer(), SMALL)


@pytest.fixture(scope="module")
def llama() -> ValueCollapseShell:
    return ValueCollapseShell(build("llama"), tiny_tokenizer(), SMALL)


def item(**fields: object) -> PromptItem:
    return PromptItem.model_validate({"id": "one"} | fields)


def kept(result: ItemResult, path: Path) -> RunFolder:
    """The result through the run folder, whose schemas are strict."""
    with RunFolder.create(path, kind="diagnose", command=["test"], provenance={}, config={}, planned=1) as run:
        run.write_item(result.item, result.tables, result.tensors)
        run.finish()
    assert validate(path) == []
    return RunFolder.open(path)


def the_row(result: ItemResult) -> dict[str, object]:
    assert len(result.tables["items"]) == 1
    return result.tables["items"].row(0, named=True)


def test_a_diagnosed_item_is_what_the_shell_found(shell: ValueCollapseShell, tmp_path: Path) -> None:
    result = diagnose_item(shell, item(prompt=SENTENCE), seed=2)
    findings = shell.analyze_residue(shell.run(SENTENCE, seed=2))
    assert result.item == "one"
    assert result.summary == findings.summary
    row = the_row(result)
    assert (row["status"], row["error"], row["seed"], row["chat"]) == ("done", None, 2, False)
    assert row["prompt"] == row["text"] == SENTENCE
    assert row["n_tokens"] == len(shell.tokenizer.encode(SENTENCE))
    for name, frame in findings.tables().items():
        assert result.tables[name].equals(frame), name
    np.testing.assert_array_equal(result.tensors["dla_heads"].numpy(), findings.attribution.heads)
    run = kept(result, tmp_path / "run")
    assert run.table("items")["summary"].to_list() == [findings.summary]


def test_a_conversation_and_a_chat_turn(llama: ValueCollapseShell, tmp_path: Path) -> None:
    by_chat = diagnose_item(llama, item(prompt=SENTENCE), chat=True)
    by_messages = diagnose_item(llama, item(messages=[{"role": "user", "content": SENTENCE}]))
    assert the_row(by_chat)["chat"] is True
    assert the_row(by_chat) == the_row(by_messages)
    assert "<|start|>assistant" in str(the_row(by_chat)["text"])
    with_system = diagnose_item(llama, item(messages=[SYSTEM, {"role": "user", "content": SENTENCE}]), chat=True)
    assert "system" in with_system.tables["tokens"]["region"].to_list()
    kept(with_system, tmp_path / "run")


def test_candidates_and_control_come_from_the_item(llama: ValueCollapseShell) -> None:
    result = diagnose_item(llama, item(prompt=SENTENCE, candidates=[" the", " gate"], control="The miller keeps the key to the"))
    assert set(result.tables["candidates"]["token"]) == {" the", " gate"}
    assert result.tables["candidates"]["source"].unique().to_list() == ["given"]
    assert result.findings is not None
    assert result.findings.residue.asked.control_text == "The miller keeps the key to the"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": "river " * 300}, "256"),
        ({"prompt": SENTENCE, "candidates": [" the", " rivers and mills"]}, "not one token"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "yes"}]}, "user"),
    ],
    ids=["too long", "no candidate", "ends with the assistant"],
)
def test_an_unusable_item_fails_with_its_reason(
    llama: ValueCollapseShell, tmp_path: Path, fields: dict[str, object], reason: str
) -> None:
    result = diagnose_item(llama, item(**fields))
    row = the_row(result)
    assert row["status"] == "failed"
    assert reason in str(row["error"])
    assert result.summary == row["error"]
    assert result.findings is None
    assert set(result.tables) == {"items"}
    assert row["chat"] == ("messages" in fields)
    assert kept(result, tmp_path / "run").failed_items() == ["one"]
    # The shell is none the worse.
    assert the_row(diagnose_item(llama, item(prompt=SENTENCE)))["status"] == "done"


def test_chat_without_a_template_fails_the_item() -> None:
    shell = ValueCollapseShell(build("llama"), tiny_tokenizer(chat=False), SMALL)
    assert the_row(diagnose_item(shell, item(prompt=SENTENCE), chat=True))["status"] == "failed"


def test_trouble_with_the_model_is_not_the_items(llama: ValueCollapseShell, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ModelError("The weights are gone.")

    monkeypatch.setattr(llama, "run", broken)
    with pytest.raises(ModelError, match="gone"):
        diagnose_item(llama, item(prompt=SENTENCE))


def test_progress_runs_once_from_nothing_to_all(llama: ValueCollapseShell) -> None:
    seen: list[float] = []
    diagnose_item(llama, item(prompt=SENTENCE), progress=lambda what, share: seen.append(share))
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1.0)


def test_a_failed_item_says_what_it_was() -> None:
    row = the_row(failed_item("x", "the prompt", "the reason", chat=True, seed=4))
    assert (row["prompt"], row["error"], row["chat"], row["seed"], row["status"]) == ("the prompt", "the reason", True, 4, "failed")


# -- read --------------------------------------------------------------------------------------------------------------------


def test_a_read_item_holds_every_row(shell: ValueCollapseShell, tmp_path: Path) -> None:
    result = read_item(shell.loaded, item(prompt=SENTENCE))
    n = len(shell.tokenizer.encode(SENTENCE))
    assert len(result.tables["readout_stats"]) == 2 * 4 * n
    sums = result.tables["readout_mass"].group_by("layer", "head", "row").agg(pl.col("mass").sum())["mass"]
    np.testing.assert_allclose(sums.to_numpy(), 1.0, atol=1e-5)
    assert str(n) in result.summary
    kept(result, tmp_path / "run")


def test_read_agrees_with_transformers_eager_attention(llama: ValueCollapseShell) -> None:
    """The last row's entropy, largest weight and sink mass against the attention weights that transformers itself returns."""
    ids = torch.tensor([llama.tokenizer.encode(SENTENCE)])
    eager = build("llama")
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        weights = torch.stack(eager(input_ids=ids, output_attentions=True).attentions)[:, 0, :, -1].double().numpy()
    result = read_item(llama.loaded, item(prompt=SENTENCE), rows=(-1,))
    stats = result.tables["readout_stats"].sort("layer", "head")
    assert stats["row"].unique().to_list() == [ids.shape[1] - 1]
    np.testing.assert_allclose(stats["max"].to_numpy().reshape(2, 4), weights.max(-1), atol=1e-5)
    entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(-1)
    np.testing.assert_allclose(stats["entropy"].to_numpy().reshape(2, 4), entropy, atol=1e-4)
    sink = result.tables["readout_mass"].filter(pl.col("region") == "sink").sort("layer", "head")["mass"].to_numpy()
    np.testing.assert_allclose(sink.reshape(2, 4), weights[..., 0], atol=1e-5)


def test_a_carved_span_takes_its_own_mass(llama: ValueCollapseShell) -> None:
    result = read_item(llama.loaded, item(prompt=SENTENCE), rows=(-1,), spans=[("keeper", "the miller")])
    plain = read_item(llama.loaded, item(prompt=SENTENCE), rows=(-1,))
    regions = result.tables["tokens"].filter(pl.col("region") == "keeper")
    assert "the miller" in "".join(regions["token"])

    def mass(of: ItemResult, *names: str) -> np.ndarray:
        found = of.tables["readout_mass"].filter(pl.col("region").is_in(names))
        return found.group_by("layer", "head", maintain_order=True).agg(pl.col("mass").sum())["mass"].to_numpy()

    np.testing.assert_allclose(mass(result, "keeper", "text"), mass(plain, "text"), atol=1e-5)
    assert mass(result, "keeper").min() > 0


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"prompt": "river " * 300}, {}),
        ({"prompt": SENTENCE}, {"spans": [("x", "not in there")]}),
        ({"prompt": "a"}, {"rows": (5,)}),
        ({"prompt": "a"}, {"rows": (-2,)}),
    ],
    ids=["too long", "no span", "no row", "no row from the end"],
)
def test_an_unreadable_item_fails_with_its_reason(
    llama: ValueCollapseShell, tmp_path: Path, fields: dict[str, object], options: dict[str, object]
) -> None:
    result = read_item(llama.loaded, item(**fields), **options)  # type: ignore[arg-type]
    assert the_row(result)["status"] == "failed"
    assert the_row(result)["error"]
    kept(result, tmp_path / "run")


def test_a_conversation_is_read_in_its_frame(llama: ValueCollapseShell) -> None:
    messages = [SYSTEM, {"role": "user", "content": SENTENCE}]
    result = read_item(llama.loaded, item(messages=messages), rows=(-1,))
    assert {"system", "user", "assistant_header"} <= set(result.tables["readout_mass"]["region"])
    assert the_row(result)["prompt"] == SENTENCE
    assert the_row(result)["chat"] is True
