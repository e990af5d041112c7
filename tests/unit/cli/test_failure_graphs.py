"""Graphs of a run's worst failures: with the run, after it, gone on with after a stop; what cannot be explained leaves its reason in the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.cli import _failure_graphs as module
from symbolic_residue.cli import main
from symbolic_residue.diagnose import choose_items, item_failures, item_name, suite_failures
from symbolic_residue.graph import load_graph
from symbolic_residue.instrument import Instrument, open_model
from symbolic_residue.models import wrap
from symbolic_residue.prompts import build_prompt
from symbolic_residue.shells import config_class, make_shell, shell_class
from symbolic_residue.shells.across import _failure_graphs as measured
from symbolic_residue.shells.across import aim
from symbolic_residue.store import RunFolder, validate

SPLITS = {"kind", "layer", "place", "span", "token"}
PAIRS = (
    ("gate", "the old gate stands near the", "the old mill stands near the"),
    ("book", "Anna put the red book under the", "Anna put the red book under a big old"),
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny models whose unembedding likes the end of text: silent on most prompts."""
    found = {}
    for name in ("llama", "gpt2", "olmo"):
        model = build(name, max_position_embeddings=2048, **({"n_positions": 2048} if name == "gpt2" else {}))
        if name != "gpt2":  # whose unembedding is its embedding
            with torch.no_grad():
                model.lm_head.weight[2] += 8 * mean_state(model)
        folder = tmp_path_factory.mktemp("models") / name
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        found[name] = str(folder)
    return found


def mean_state(model: Any) -> torch.Tensor:
    """The direction that last rows share."""
    instrument = Instrument(wrap(model, tiny_tokenizer()))
    rows = []
    for _, *texts in PAIRS:
        for text in texts:
            ids = torch.tensor([build_prompt(tiny_tokenizer(), text).ids])
            rows.append(instrument.run(ids, reads=["resid_post.1"])["resid_post.1"][0, -1])
    mean = torch.stack(rows).mean(0)
    return mean / mean.norm() / instrument.parts.final_norm.gain().abs().clamp(min=0.1)


def write_pairs() -> str:
    lines = [{"id": name, "prompt": prompt, "control": control} for name, prompt, control in PAIRS]
    Path("pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return "pairs.jsonl"


def silence(model: str, *more: str) -> int:
    words = ["shells", "silence", "--file", write_pairs(), "-m", model, "--top", "2", "--random-heads", "2", "-o", "run"]
    return main([*words, *more])


def suite_run(model: str, shell: str = "memtrace", n: int = 4, outcome: str = "fires", name: str = "run") -> list[str]:
    """A run in which the first right verdict of every planted item has this outcome; nothing of it was measured. Their items."""
    loaded, kind = open_model(model), shell_class(shell)
    config = {"shells": {shell: config_class(shell).quick(top_heads=0).model_dump(mode="json")}, "seed": 0}
    items = choose_items(shell, n)
    provenance = loaded.provenance.model_copy(update={"seed": 0}).model_dump(mode="json")
    fired = []
    with RunFolder.create(name, kind="shells", command="residue", provenance=provenance, config=config, planned=len(items)) as run:
        for item in items:
            mode = next((m for m in item.modes if m in kind.right_answers), "recall decay")
            verdict = {
                "shell": shell,
                "mode": mode,
                "outcome": outcome,
                "quantity": "q",
                "unit": "nats",
                "value": 3.0,
                "n": 4,
                "criterion": 1.0,
            }
            verdict |= {"direction": "above", "criterion_source": "x"}
            empty = dict.fromkeys(("low", "high", "control", "control_value", "control_low", "control_high", "control_n", "note"))
            about = {
                "shell": shell,
                "benchmark": kind.benchmark,
                "benchmark_item": item.id,
                "kind": item.kind,
                "frame": item.frame or item.kind,
            }
            about |= {"split": item.split, "null": item.null, "planted": ", ".join(item.modes)}
            row = {
                "prompt": item.shown,
                "text": None,
                "chat": False,
                "n_tokens": 9,
                "seed": 0,
                "status": "done",
                "error": None,
                "summary": "s",
            }
            tables = {"items": row, "verdicts": verdict | empty, "shell_items": about}
            run.write_item(item_name(shell, item), {k: pl.DataFrame([v]) for k, v in tables.items()})
            if not item.null:
                fired.append(item.id)
    return fired


# -- silence -----------------------------------------------------------------------------------------------------------------


def test_silent_prompts_get_graphs_beside_their_controls(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert silence(models["llama"], "--graphs", "2", "--graph-nodes", "20") == 0
    assert "Silence: +" in capsys.readouterr().out
    assert validate("run") == []
    run = RunFolder.open("run")
    assert run.done_items() == ["gate", "book", "together", "graphs.silence"]
    rows = {row["failure"]: row for row in run.table("failure_graphs").to_dicts()}
    endings = {r["item"]: r["difference"] for r in run.table("endings").filter(pl.col("side") == "prompt").to_dicts()}
    assert set(rows) == {"gate", "book"}
    assert rows["gate"]["compared"] == "difference" and rows["book"]["compared"] == "side by side"
    for name, row in rows.items():
        assert row["kind"] == "silence" and row["value"] == pytest.approx(endings[name], rel=1e-5) and row["worst_row"] < 1e-5
        graph, control = (load_graph(Path("run") / row["folder"] / side) for side in ("failing", "control"))
        assert graph.targets[0].value == pytest.approx(row["value"], abs=1e-4) and graph.targets[0].name == control.targets[0].name
        parts = run.table("failure_parts").filter(pl.col("failure") == name)
        assert set(parts["split"]) == SPLITS
        for value, whole in (("value", row["value"]), ("control_value", row["control_value"])):
            for sums in parts.group_by("split").agg(pl.col(value).sum()).iter_rows(named=True):
                assert sums[value] == pytest.approx(whole, abs=1e-3)
    page = Path("run/report.html").read_text("utf-8")
    assert "Graphs of the worst failures" in page
    for row in rows.values():
        for side in ("failing", "control"):
            link = f"{row['folder']}/{side}/report.html"
            assert f'href="{link}"' in page and (Path("run") / link).is_file()
    assert (Path("run") / rows["gate"]["folder"] / "difference" / "report.html").is_file()
    assert not (Path("run") / rows["book"]["folder"] / "difference").exists()


def test_a_conversation_has_its_control_too(models: dict[str, str]) -> None:
    turns = [{"role": "user", "content": "Where is the book?"}, {"role": "assistant", "content": "under the"}]
    Path("pairs.jsonl").write_text(json.dumps({"id": "one", "messages": turns, "control": "under a"}) + "\n", "utf-8")
    words = ["shells", "silence", "--file", "pairs.jsonl", "-m", models["llama"], "--top", "2", "--random-heads", "2", "-o", "run"]
    instrument = Instrument(open_model(models["llama"]))
    most = int(instrument.run(torch.tensor([build_prompt(tiny_tokenizer(), messages=turns).ids]))["logits"][0, -1].argmax())
    assert main([*words, "--end", tiny_tokenizer().decode([most]), "--graphs", "1", "--graph-nodes", "10"]) == 0
    run = RunFolder.open("run")
    (row,) = run.table("failure_graphs").to_dicts()
    control = load_graph(Path("run") / row["folder"] / "control")
    assert list(control.ids) == build_prompt(tiny_tokenizer(), messages=[turns[0], {**turns[1], "content": "under a"}]).ids
    assert row["target"].startswith(f"end {tiny_tokenizer().decode([most])!r}")  # the end token that was given
    assert {"user", "assistant_header"} <= set(run.table("failure_parts").filter(pl.col("split") == "span")["part"])


def test_graphs_afterwards_are_those_of_the_run_itself(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert silence(models["llama"], "--graphs", "2", "--graph-nodes", "20") == 0
    with_run = RunFolder.open("run")
    shutil.move("run", "first")
    assert silence(models["llama"]) == 0
    assert "graphs.silence" not in RunFolder.open("run").done_items()
    capsys.readouterr()
    assert main(["graph", "failures", "run", "--top", "2", "--nodes", "20", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["failure"] for row in told["items"][0]["graphs"]] and told["items"][0]["item"] == "graphs.silence"
    after = RunFolder.open("run")
    assert after.manifest.status == "complete" and after.manifest.items.done == after.manifest.items.planned == 4
    with_run = RunFolder.open("first")
    for name in ("failure_graphs", "failure_parts", "failure_units"):
        assert after.table(name).equals(with_run.table(name)), name
    assert validate("run") == [] and "Graphs of the worst failures" in Path("run/report.html").read_text("utf-8")
    assert main(["graph", "failures", "run"]) != 0
    assert "--again" in capsys.readouterr().err
    assert main(["graph", "failures", "run", "--top", "1", "--nodes", "5", "--again"]) == 0
    shown = capsys.readouterr().out
    assert "which embeddings carry it" in shown and "\ntext " in shown and "no interval" in shown
    again = RunFolder.open("run")
    assert len(again.table("failure_graphs")) == 1 and again.table("failure_graphs")["nodes"][0] <= 10
    assert again.manifest.items.planned == 4


def test_a_run_that_was_stopped_makes_no_graph_twice(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    saved, made = module._Shelf.save, []

    def save(self: Any, name: str, found: Any, nodes: int) -> str:
        if made:
            raise KeyboardInterrupt
        made.append(name)
        return saved(self, name, found, nodes)

    monkeypatch.setattr(module._Shelf, "save", save)
    assert silence(models["llama"], "--graphs", "2", "--graph-nodes", "20") == 130
    assert made == ["silence/01"] and RunFolder.open("run").done_items() == ["gate", "book", "together"]
    first = (Path("run/graphs/silence/01/failing/graph.safetensors")).read_bytes()
    monkeypatch.setattr(module._Shelf, "save", saved)
    attributed, again = measured.attribute_prompt, []

    def attribute(*given: Any, **options: Any) -> Any:
        again.append(given[1].ids)
        return attributed(*given, **options)

    monkeypatch.setattr(measured, "attribute_prompt", attribute)
    assert silence(models["llama"], "--graphs", "2", "--graph-nodes", "20", "--resume") == 0
    assert len(again) == 2  # failing and control of the second only
    assert (Path("run/graphs/silence/01/failing/graph.safetensors")).read_bytes() == first
    assert len(RunFolder.open("run").table("failure_graphs")) == 2
    assert silence(models["llama"], "--graphs", "1", "--resume") != 0  # another configuration


def test_graphs_made_for_something_else_or_damaged_are_made_anew(models: dict[str, str]) -> None:
    assert silence(models["llama"], "--graphs", "1", "--graph-nodes", "20") == 0
    file = Path("run/graphs/silence/01/failing/graph.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    assert main(["graph", "failures", "run", "--top", "1", "--nodes", "20", "--again"]) == 0
    assert file.read_bytes() == whole


def test_what_has_no_graph_leaves_its_reason_and_fails_nothing(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert silence(models["olmo"], "--graphs", "2") == 0
    assert "no attribution graph yet" in capsys.readouterr().out
    run = RunFolder.open("run")
    assert run.failed_items() == [] and validate("run") == []
    rows = run.table("failure_graphs").to_dicts()
    assert len(rows) == 2 and all("no attribution graph yet" in row["reason"] and row["folder"] is None for row in rows)
    assert "no attribution graph yet" in Path("run/report.html").read_text("utf-8")
    assert main(["shells", "silence", "the old gate", "-m", models["gpt2"], "--graphs", "1", "-o", "speaks"]) == 0
    if RunFolder.open("speaks").table("failure_graphs").is_empty():
        assert "silent on no prompt" in Path("speaks/report.html").read_text("utf-8")


# -- suites ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "shell"), [("llama", "memtrace"), ("gpt2", "memtrace"), ("llama", "instruction-disruption")])
def test_failures_of_a_suite_are_explained_worst_first(models: dict[str, str], name: str, shell: str) -> None:
    fired = suite_run(models[name], shell)
    assert main(["graph", "failures", "run", "--top", "1", "--nodes", "15", "-m", models[name]]) == 0
    run = RunFolder.open("run")
    assert validate("run") == [] and run.manifest.items.planned == 5
    made = run.table("failure_graphs").filter(pl.col("folder").is_not_null()).to_dicts()
    assert len(made) == 1 and made[0]["failure"].split(" field")[0] in fired
    assert "Attribution graphs of its worst failures</a>" in Path("run/report.html").read_text("utf-8")
    made_shell = make_shell(shell, open_model(models[name]), config_class(shell).quick(top_heads=0))
    prompts, _ = suite_failures(made_shell, run.table("shell_items"), run.table("verdicts"))
    values = [one.value for one in aim(made_shell.instrument, prompts)[0]]
    assert made[0]["value"] == pytest.approx(max(values), rel=1e-5)
    spans = run.table("failure_parts").filter(pl.col("split") == "span")["part"].to_list()
    right = "the instruction that holds" if shell == "instruction-disruption" else "says the right answer"
    assert {"first token", "last token", right} <= set(spans)
    assert ("padding" in spans) == (shell == "memtrace")


def test_a_suite_without_failures_says_so_and_only_planted_ones_count(models: dict[str, str]) -> None:
    fired = suite_run(models["gpt2"], n=4, name="other")
    shell = make_shell("memtrace", open_model(models["gpt2"]), config_class("memtrace").quick(top_heads=0))
    run = RunFolder.open("other")
    prompts, _ = suite_failures(shell, run.table("shell_items"), run.table("verdicts"))
    assert {one.id.split(" field")[0] for one in prompts} == set(fired)  # verdicts of null items fired too
    suite_run(models["gpt2"], outcome="absent")
    assert not any(one.kind == "silence" for one in aim(shell.instrument, prompts)[0])
    assert main(["graph", "failures", "run", "-m", models["gpt2"]]) == 0
    said = RunFolder.open("run").table("across").row(0, named=True)
    assert (
        said["measure"] == "graphs"
        and "no verdict with a right answer fires, and the model is silent on no prompt." in said["reason"]
    )


def test_a_suite_on_which_the_model_says_nothing_is_explained_though_no_verdict_fires(models: dict[str, str]) -> None:
    planted = suite_run(models["llama"], outcome="absent")
    assert main(["graph", "failures", "run", "--top", "1", "--nodes", "10", "-m", models["llama"]]) == 0
    run = RunFolder.open("run")
    (row,) = run.table("failure_graphs").to_dicts()
    assert (
        row["failure"].split(" field")[0] in planted and (row["kind"], row["mode"]) == ("silence", "silence") and row["value"] > 0
    )
    assert "A section on silence splits the same difference" in run.table("across")["about"][0]


def test_the_option_of_a_suite_adds_an_item_a_shell(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["shells", "run", "-m", models["llama"], "--shell", "memtrace", "-n", "2", "--no-attribution", "-o", "run"]
    assert main([*words, "--graphs", "1", "--graph-nodes", "10", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [item["item"] for item in told["items"]][-1] == "graphs.memtrace"
    assert told["items"][-1]["across"][0]["measure"] == "graphs"
    first = RunFolder.open("run")
    assert first.manifest.config["graphs"] == 1
    words[-1] = "plain"
    assert main([*words, "--reuse", "run"]) == 0  # graphs choose nothing that is measured
    plain = RunFolder.open("plain")
    assert plain.done_items() == first.done_items()[:-1] and "graphs" not in plain.manifest.config
    assert plain.table("verdicts").equals(first.table("verdicts"))


# -- one shell, prompts of one's own -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["diagnose", "--control", PAIRS[0][2]],
        ["shell", "value-collapse", "--control", PAIRS[0][2], "--top-heads", "0", "--variants", "2", "--steps", "1"],
    ],
    ids=["diagnose", "value-collapse"],
)
def test_a_prompt_of_ones_own_is_explained_with_its_run_and_after(models: dict[str, str], words: list[str]) -> None:
    command = [*words, PAIRS[0][1], "-m", models["llama"], "-o", "run", "--no-report"]
    assert main([*command, "--graphs", "1", "--graph-nodes", "10"]) == 0
    run = RunFolder.open("run")
    assert run.done_items() == ["prompt", "graphs.value-collapse"] and validate("run") == []
    (row,) = run.table("failure_graphs").to_dicts()
    assert row["failure"] == "prompt" and row["kind"] == "silence" and row["compared"] == "difference"
    assert main(["graph", "failures", "run", "--top", "1", "--nodes", "10", "--again"]) == 0
    again = RunFolder.open("run")
    assert again.table("failure_graphs").equals(run.table("failure_graphs"))
    assert "Graphs of the worst failures" in Path("run/report.html").read_text("utf-8")


def test_of_ones_own_candidates_the_right_one_leads_on_the_control(models: dict[str, str]) -> None:
    """On gpt2, which speaks: two candidates of which the control prefers one."""
    shell = make_shell("value-collapse", open_model(models["gpt2"]), config_class("value-collapse").quick(top_heads=0))
    ids = [build_prompt(tiny_tokenizer(), text).ids for text in PAIRS[0][1:]]
    here, there = (shell.instrument.run(torch.tensor([one]))["logits"][0, -1] for one in ids)
    a, b = (there - here).topk(1).indices.tolist() + (here - there).topk(1).indices.tolist()
    residue = SimpleNamespace(
        asked=SimpleNamespace(messages=None, input_text=PAIRS[0][1], control_text=PAIRS[0][2], chat=False, candidates=[b, a])
    )
    right, wrong = (a, b) if there[a] > there[b] else (b, a)

    def result(outcome: str, mode: str = "flatness") -> Any:
        verdicts = pl.DataFrame({"mode": [mode], "outcome": [outcome]})
        return SimpleNamespace(item="one", tables={"verdicts": verdicts}, findings=SimpleNamespace(residue=residue))

    (found,), reasons = item_failures(shell, result("fires"))
    assert (found.right, found.wrong, found.mode) == (right, wrong, "flatness") and not reasons
    assert list(found.ids) == ids[0] and list(found.control or ()) == ids[1]
    (found,), reasons = item_failures(shell, result("absent"))
    assert found.mode == "silence" and found.right is None and not reasons
    (found,), reasons = item_failures(shell, result("fires", "oscillation"))
    assert found.mode == "silence" and "leader changes" in reasons["one"]
    residue.asked.messages = [{"role": "user", "content": "x"}]
    residue.asked.input_text = 3
    none, reasons = item_failures(shell, result("fires"))
    assert not none and "No candidate is known to be right" in reasons["one"]


def test_what_cannot_be_is_refused(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    suite_run(models["llama"])
    for words, said in (
        (["run", "-s", "value-collapse"], "no shell 'value-collapse'"),
        (["run", "-m", models["gpt2"]], "another model"),
        (["nowhere"], "nowhere"),
    ):
        assert main(["graph", "failures", *words]) != 0
        assert said in capsys.readouterr().err
    with RunFolder.create("read", kind="read", command="residue", provenance={}, config={}):
        pass
    assert main(["graph", "failures", "read"]) == 2
    assert "run of read" in capsys.readouterr().err
