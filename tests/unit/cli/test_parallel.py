"""``residue parallel generate``: trees in a run folder, resumed, captured, and what is refused without a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from study_folder import write_model
from tiny_models import build, tiny_tokenizer

from symbolic_residue.cli import main
from symbolic_residue.parallel import generate, Tree
from symbolic_residue.store import RunFolder, validate

TEXT = "the answer of the user is"
WIDE = ["--threshold", "0.03", "--max-steps", "5", "--max-siblings", "4", "--ignore-end"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("parallel") / "model"))


def tree_of(path: Path, item: str = "prompt") -> Tree:
    return Tree.from_json(RunFolder.open(path).table("parallel_trees").filter(item=item)["tree"][0])


def test_one_prompt_is_a_run(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    assert main(["parallel", "generate", TEXT, "-m", model, *WIDE, "--out", str(path)]) == 0
    shown = capsys.readouterr().out
    run = RunFolder.open(path)
    assert run.manifest.kind == "parallel" and run.manifest.status == "complete" and validate(path) == []
    assert run.manifest.config["threshold"] == "0.03" and run.manifest.config["mode"] == "isolated"
    tree = tree_of(path)
    (same,) = generate(
        build("llama", max_position_embeddings=512),
        tiny_tokenizer(),
        TEXT,
        threshold=0.03,
        max_steps=5,
        max_siblings=4,
        stop_ids=(),
    )
    assert [[t.id for t in s.tokens] for s in tree.steps] == [[t.id for t in s.tokens] for s in same.steps]
    assert run.table("parallel_tokens")["token"].to_list() == [t.id for s in tree.steps for t in s.tokens]
    assert len(run.table("parallel_steps")) == 5 and max(run.table("parallel_steps")["size"]) > 1
    assert "alternatives:" in shown and f"{len(run.table('parallel_tokens'))} tokens" in shown and "stop: steps" in shown
    assert (path / "report.html").exists() and run.table("parallel_keys").is_empty()


def test_json_holds_the_tree(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    words = ["parallel", "generate", TEXT, "-m", model, *WIDE, "--mode", "causal", "--scheme", "offset", "--epsilon", "0.01"]
    assert main([*words, "--out", str(path), "--no-report", "--json"]) == 0
    (item,) = json.loads(capsys.readouterr().out)["items"]
    tree = tree_of(path)
    assert Tree.from_json(json.dumps(item["tree"])) == tree and item["text"] == tree.text
    assert tree.config["scheme"] == "offset" and tree.config["mode"] == "causal"
    several = next(s for s in tree.steps if len(s.tokens) > 1)
    assert several.tokens[1].position - several.tokens[0].position == pytest.approx(0.01, abs=1e-5)
    assert not (path / "report.html").exists()


def test_a_file_of_prompts_goes_on(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, path = tmp_path / "prompts.jsonl", tmp_path / "run"
    lines = [{"id": "a", "prompt": TEXT}, {"id": "b", "prompt": "no " * 900}, {"id": "c", "prompt": "yes or no"}]
    file.write_text("\n".join(map(json.dumps, lines)) + "\nno json\n", "utf-8")
    words = ["parallel", "generate", "--file", str(file), "-m", model, *WIDE, "-o", str(path), "--no-report"]
    assert main(words) == 1
    run = RunFolder.open(path)
    assert run.done_items() == ["a", "c"] and run.failed_items() == ["b", "line-00004"]
    assert "tokens" in run.table("items").filter(item="b")["error"][0]
    (shard,) = (path / "tables" / "parallel_trees").glob("*-c.parquet")
    written = shard.stat().st_mtime_ns
    assert main([*words, "--resume"]) == 1  # what failed is tried again, what is done is not
    assert shard.stat().st_mtime_ns == written
    assert main(words) == 5 and "already there" in capsys.readouterr().err
    assert main([*words[:-3], "-o", str(path), "--resume", "--max-siblings", "3"]) == 5


def test_an_interrupted_tree_is_kept_and_grown_anew(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from symbolic_residue.cli import _parallel_show

    class Stop:
        def __enter__(self) -> Any:
            def on_step(grown: Any) -> None:
                if grown.number == 2:
                    raise KeyboardInterrupt

            return on_step

        def __exit__(self, *error: object) -> None:
            pass

    path = tmp_path / "run"
    words = ["parallel", "generate", TEXT, "-m", model, *WIDE, "-o", str(path), "--no-report"]
    with monkeypatch.context() as patch:
        patch.setattr(_parallel_show, "growing", lambda live: Stop())
        assert main(words) == 130
    run = RunFolder.open(path)
    assert run.manifest.status == "interrupted" and run.failed_items() == ["prompt"]
    assert len(tree_of(path).steps) == 3 and tree_of(path).stop == "interrupted"
    assert main([*words, "--resume"]) == 0
    assert len(tree_of(path).steps) == 5 and validate(path) == []


@pytest.mark.parametrize("removal", ["mask", "recompute"])
def test_attention_is_exported_with_its_key_map(model: str, tmp_path: Path, removal: str) -> None:
    path = tmp_path / "run"
    words = ["--prune", "relative", "--prune-least", "1", "--prune-removal", removal, "--prune-layers", "0,1", "--capture"]
    assert main(["parallel", "generate", TEXT, "-m", model, *WIDE, *words, "-o", str(path), "--no-report"]) == 0
    run = RunFolder.open(path)
    tensors, keys, tree = run.item_tensors("prompt"), run.table("parallel_keys"), tree_of(path)
    assert sorted(tensors) == [f"attention_{i:05d}" for i in range(5)] and validate(path) == []
    for i, step in enumerate(tree.steps):
        weights, mine = tensors[f"attention_{i:05d}"], keys.filter(step=i)
        assert weights.shape == (2, 4, len(step.tokens), len(mine))
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-5, rtol=0)
        assert mine.filter(set_step=i)["token"].to_list() == [t.id for t in step.tokens]
        assert mine["cache"].to_list() == list(range(len(mine)))
    assert any(t.gone is not None for step in tree.steps for t in step.tokens)


def test_a_sibling_embedding_from_a_file(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    save_file({"embedding": torch.full((64,), 0.5)}, good)
    save_file({"other": torch.zeros(3)}, bad)
    words = ["parallel", "generate", TEXT, "-m", model, *WIDE, "--no-report"]
    assert main([*words, "-o", str(tmp_path / "plain")]) == 0
    assert main([*words, "-o", str(tmp_path / "moved"), "--embedding", str(good)]) == 0
    assert tree_of(tmp_path / "plain").steps[2:] != tree_of(tmp_path / "moved").steps[2:]
    assert len(RunFolder.open(tmp_path / "moved").manifest.config["embedding"]) == 64
    capsys.readouterr()
    assert main([*words, "-o", str(tmp_path / "x"), "--embedding", str(bad)]) == 2
    assert "holds no tensor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--threshold", "0"], 2, "not above 0"),
        (["--threshold", "1.5"], 2, "not above 0"),
        (["--threshold", "often"], 2, "cannot be read"),
        (["--mode", "blind"], 2, "isolated"),
        (["--epsilon", "0.1"], 2, "epsilon has nothing to act on"),
        (["--prune-least", "0.1"], 2, "Nothing is pruned"),
        (["--prune", "relative", "--prune-heads", "9"], 2, "no head 9"),
        (["--prune", "relative", "--prune-layers", "x"], 2, "--prune-layers"),
        (["--threshold", "1", "--bias", "2"], 2, "bias has nothing to act on"),
        (["--threshold", "1", "--embedding", "a.safetensors"], 2, "--embedding has nothing"),
        (["--embedding", "missing.safetensors"], 2, "cannot be read"),
        (["--max-steps", "0"], 2, "max_steps"),
        (["--temperature", "0.7"], 2, "No such option"),
    ],
)
def test_refused_in_three_lines(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    path = tmp_path / "run"
    assert main(["parallel", "generate", TEXT, "-m", model, "-o", str(path), *words]) == code
    out = capsys.readouterr()
    assert said in out.err and "Traceback" not in out.err and not path.exists()


@pytest.mark.parametrize(("prompt", "said"), [("", "empty"), ("   ", "empty"), ("no " * 900, "tokens")])
def test_prompts_that_leave_nothing_behind(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], prompt: str, said: str
) -> None:
    assert main(["parallel", "generate", prompt, "-m", model, "-o", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_models_whose_positions_cannot_be_shared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for family, said in (("gpt2", "learned positions"), ("falcon_alibi", "position")):
        options = {} if family == "gpt2" else {"max_position_embeddings": 512}
        folder = tmp_path / family
        built = build(family, **options)
        built.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        assert main(["parallel", "generate", TEXT, "-m", str(folder), "-o", str(tmp_path / "run")]) == 3
        assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_context_ends_the_tree_and_it_is_kept(model: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    words = ["--threshold", "0.03", "--max-siblings", "4", "--max-keys", "18", "--ignore-end", "--no-report"]
    assert main(["parallel", "generate", TEXT, "-m", model, *words, "-o", str(path)]) == 0
    tree = tree_of(path)
    assert tree.stop == "cache full" and 0 < len(tree.steps) < 30 and tree.n_keys <= 18


def test_markup_from_a_model_is_text(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["parallel", "generate", "[bold]is it\x1b[31m yes", "-m", model, *WIDE, "-o", str(tmp_path / "run"), "--no-report"])
        == 0
    )
    shown = capsys.readouterr().out
    assert "[bold]is it" in shown and "\x1b[31m yes" not in shown


def test_the_live_view_draws_every_step(model: str) -> None:
    """The view of a growing tree holds the newest sets, the top token first, however narrow the terminal is."""
    from rich.console import Console

    from symbolic_residue.cli._parallel_show import tree_view

    (tree,) = generate(build("llama"), tiny_tokenizer(), TEXT, threshold=0.03, max_steps=5, max_siblings=8, stop_ids=())
    for width in (30, 120):
        console = Console(width=width, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115, PTH123
        console.print(tree_view(tree, width))
        shown = console.export_text()
        console.file.close()
        assert f"step {tree.steps[-1].number}" in shown and f"{tree.steps[-1].top.probability:.2f}" in shown
        assert ("step 0" in shown) == (width == 120)


MEASURED = ["--threshold", "0.03", "--max-steps", "4", "--max-siblings", "3", "--ignore-end"]


@pytest.fixture(scope="module")
def measured(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Seven prompts measured: the words of the command, and the run."""
    root = tmp_path_factory.mktemp("measured")
    texts = [
        "is it yes or no",
        "the user is",
        "you are a helper",
        "yes or no is it",
        "no user",
        "the answer is yes",
        "a helpful user",
    ]
    lines = [json.dumps({"id": f"q{i}", "prompt": text}) for i, text in enumerate(texts)]
    (root / "prompts.jsonl").write_text("\n".join([*lines, json.dumps({"id": "long", "prompt": "no " * 900})]), "utf-8")
    words = ["parallel", "measure", "--prompts", str(root / "prompts.jsonl"), "-m", model, *MEASURED]
    assert main([*words, "--out", str(root / "run"), "--no-report"]) == 1  # one prompt is too long
    return words, root / "run"


def test_a_measurement_is_a_run_with_a_verdict_a_question(measured: tuple[list[str], Path]) -> None:
    run = RunFolder.open(measured[1])
    assert run.manifest.kind == "parallel-measure" and run.manifest.status == "complete" and validate(measured[1]) == []
    assert run.failed_items() == ["long"] and run.done_items()[-1] == "all prompts"
    verdicts = run.table("parallel_verdicts")
    assert set(verdicts["item"]) == {"all prompts"}
    judged = verdicts.filter(quantity="verdict")
    assert {"shared position", "isolation", "competition", "company", "sink", "pruning"} <= set(judged["question"])
    trees = run.table("parallel_trees")["item"].to_list()
    assert trees == [f"q{i}" for i in range(7)]
    assert set(run.table("parallel_arms")["item"]) == set(trees)
    assert judged.filter(question="isolation")["n"][0] == 7 == len(trees)
    assert not run.table("parallel_layers").is_empty() and not run.table("curves").is_empty()


def test_what_the_command_adds_up_is_what_the_library_says(measured: tuple[list[str], Path], model: str) -> None:
    from symbolic_residue.instrument import Instrument, open_model
    from symbolic_residue.parallel import measure_prompt, MeasureConfig

    run = RunFolder.open(measured[1])
    instrument = Instrument(open_model(model))
    held = measure_prompt(instrument, tree_of(measured[1], "q3"), MeasureConfig())
    for name in ("parallel_arms", "parallel_bias", "parallel_published"):
        kept = run.table(name).filter(item="q3").drop("item")
        assert kept.equals(held[name], null_equal=True), name


def test_a_measurement_goes_on_where_it_was_stopped(
    measured: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from symbolic_residue.cli import _parallel_measure

    words, whole = measured
    work, seen = _parallel_measure._work, []

    def stop(instrument: Any, item: Any, *rest: Any) -> Any:
        seen.append(item.id)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return work(instrument, item, *rest)

    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(_parallel_measure, "_work", stop)
        assert main([*words, "-o", str(path), "--no-report"]) == 130
    assert RunFolder.open(path).done_items() == ["q0", "q1"]
    assert main([*words, "-o", str(path), "--no-report", "--resume"]) == 1
    a, b = RunFolder.open(path), RunFolder.open(whole)
    for name in ("parallel_arms", "parallel_verdicts", "parallel_layers", "parallel_tokens"):
        assert a.table(name).equals(b.table(name), null_equal=True), name
    assert main([*words, "-o", str(path), "--no-report", "--resume", "--seed", "4"]) == 5


def test_verdicts_are_printed_with_their_controls(measured: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    words, path = measured
    assert main([*words, "-o", str(path), "--no-report", "--resume"]) == 1
    shown = capsys.readouterr().out
    for said in ("shared position", "isolation", "competition", "not controlled, for comparison only", "Control: ", "long: failed"):
        assert said in shown
    assert main([*words, "-o", str(path), "--no-report", "--resume", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    rows = RunFolder.open(path).table("parallel_verdicts")
    assert len(said["verdicts"]) == len(rows) and said["failed"][0]["item"] == "long"


def test_packaged_prompts_are_taken_in_turn_from_the_categories() -> None:
    from symbolic_residue.cli._parallel_measure import _prompts

    assert [item.id for item in _prompts("packaged", 7).items] == [
        "story-01", "fact-01", "instruction-01", "dialogue-01", "list-01", "explanation-01", "story-02",
    ]  # fmt: skip
    assert len(_prompts("packaged", None).items) == 72


def test_nothing_to_measure(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tree without any set is kept and counted apart; where there is no other, the run says so."""
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"id": "a", "prompt": TEXT}), "utf-8")
    words = ["parallel", "measure", "--prompts", str(file), "-m", model, "--no-report", "-o", str(tmp_path / "run")]
    assert main([*words, "--threshold", "1"]) == 2 and "nothing to measure" in capsys.readouterr().err
    assert main([*words, "--margin", "2"]) == 2 and not (tmp_path / "run").exists()
    assert main([*words, "--threshold", "0.999", "--max-steps", "3", "--ignore-end"]) == 1
    run = RunFolder.open(tmp_path / "run")
    assert run.done_items() == ["a"] and run.failed_items() == ["all prompts"]
    assert "no set that a later step looks at" in run.table("items")["summary"][0]
    file.write_text(json.dumps({"id": "all prompts", "prompt": TEXT}), "utf-8")
    assert main([*words[:-1], str(tmp_path / "other")]) == 2 and "Rename it" in capsys.readouterr().err
