"""``residue shells silence``, ``disruption``, ``errors``, ``cross-run`` and ``attention``: planted truths are named, killed runs go on, what cannot be used is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.cli import main
from symbolic_residue.diagnose._silence import reference_prompts
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import wrap
from symbolic_residue.prompts import BenchmarkItem, build_prompt
from symbolic_residue.shells import attention_disruption, cross_run, endings, error_accumulation, run_features
from symbolic_residue.shells._confirm import head_means
from symbolic_residue.store import RunFolder, validate

WORDS = ("gate", "river", "mill", "key", "door", "boat", "hill", "road")
STRESS, CONTROL = "the old {} stands near the", "Anna keeps the {} with the"
SILENT = WORDS[:7]  # heads have 16 dimensions: that many prompts, controls and a mean can be told apart
END, WORD = 2, 300
END_HEAD, WORD_HEAD = (1, 2), (1, 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("models") / "tiny", build("llama"))


def saved(folder: Path, model: Any) -> str:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> str:
    """On the stressed prompts, and not on their controls nor on average elsewhere, head 1.2 writes end-of-text and head 1.0, less strongly, a word."""
    model, tokenizer = build("llama"), tiny_tokenizer()
    instrument = Instrument(wrap(model, tokenizer))
    prompts, controls = ([build_prompt(tokenizer, frame.format(w)) for w in SILENT] for frame in (STRESS, CONTROL))
    z, usual = head_means(instrument, prompts)[1], head_means(instrument, controls)[1]
    usual = torch.cat([usual, head_means(instrument, reference_prompts(instrument))[0][None]])
    wanted = torch.cat([torch.ones(len(prompts)), torch.zeros(len(usual))])
    weight = model.model.layers[1].self_attn.o_proj.weight
    d_head = instrument.parts.d_head
    with torch.no_grad():
        for (layer, head), token, share in ((END_HEAD, END, 1.0), (WORD_HEAD, WORD, 0.6)):
            every = torch.cat([z[:, layer, head], usual[:, layer, head]])
            reads = torch.linalg.lstsq(every.double(), wanted[:, None].double(), driver="gelsd").solution[:, 0].float()
            u = model.lm_head.weight[token] * model.model.norm.weight
            weight[:, head * d_head : (head + 1) * d_head] = share * 60.0 * torch.outer(u / u.norm(), reads)
    return saved(tmp_path_factory.mktemp("models") / "silent", model)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("pairs.jsonl", [{"id": w, "prompt": STRESS.format(w), "control": CONTROL.format(w)} for w in WORDS])


def write(name: str, lines: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return name


def row(run: RunFolder, measure: str, item: str = "together") -> dict[str, Any]:
    return run.table("across").filter((pl.col("item") == item) & (pl.col("measure") == measure)).row(0, named=True)


# -- silence -----------------------------------------------------------------------------------------------------------------


def test_the_planted_head_is_named_and_the_overruled_one_too(silent: str, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = write("silent.jsonl", [{"id": w, "prompt": STRESS.format(w), "control": CONTROL.format(w)} for w in SILENT])
    assert main(["shells", "silence", "--file", pairs, "-m", silent, "--top", "4", "--random-heads", "4", "-o", "run"]) == 0
    out = capsys.readouterr().out
    assert validate("run") == []
    run = RunFolder.open("run")
    assert run.done_items() == [*SILENT, "together"]
    endings = run.table("endings")
    assert endings.filter(pl.col("side") == "prompt")["ended"].all()
    assert not endings.filter(pl.col("side") == "control")["ended"].any()
    parts = {(r["component"], r["layer"], r["head"]): r for r in run.table("overruled").to_dicts()}
    end, word = parts["head", *END_HEAD], parts["head", *WORD_HEAD]
    assert (end["role"], end["confirmed"], end["n"]) == ("silences", True, len(SILENT))
    assert word["role"] == "pushes content"
    assert abs(end["control"]) < 0.2 * end["contribution"]
    assert end["control_q"] <= 0.05
    said = row(run, "silence")
    assert said["n"] == len(SILENT)
    assert "Silenced most by head 1.2" in said["said"]
    assert "Overruled: head 1.0" in said["said"]
    assert "head 1.2" in out
    assert row(run, "ghosts")["n"] == len(SILENT)
    page = Path("run/report.html").read_text("utf-8")
    assert page.index(">together<") < page.index(">gate<") or page.index("Item together") < page.index("Item gate")
    assert "Silence: why nothing comes" in page
    assert "n = 7 (silent prompts)" in page
    assert "Not measured in this run" not in page


def test_a_model_that_speaks_is_said_to(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shells", "silence", "the old mill", "Anna keeps the key", "-m", model, "-o", "run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    run = RunFolder.open("run")
    assert run.done_items() == ["prompt-1", "prompt-2", "together"]
    assert "is not silent" in told["items"][0]["summary"]
    assert "nothing measured: the model is silent on none of 2 prompts" in told["items"][2]["summary"]
    assert told["items"][2]["across"][0]["measure"] == "silence"
    assert run.table("overruled").is_empty()
    page = Path("run/report.html").read_text("utf-8")
    assert "Nothing measured: the model is silent on none of 2 prompts" in page
    assert "Nothing measured: there is no silent prompt." in page


def test_an_end_token_of_ones_own(model: str) -> None:
    """The token that the model says anyway, named as the end, makes it silent."""
    tokenizer = tiny_tokenizer()
    instrument = Instrument(wrap(build("llama"), tokenizer))
    texts = [frame.format(w) for frame in (STRESS, CONTROL) for w in WORDS]
    contents = [tokenizer.decode([one.content]) for one in endings(instrument, [build_prompt(tokenizer, t) for t in texts])]
    prompt, text = next((p, t) for p, t in zip(texts, contents, strict=True) if len(tokenizer.encode(t)) == 1)
    assert main(["shells", "silence", prompt, "-m", model, "--end", text, "--top", "2", "--random-heads", "2", "-o", "run"]) == 0
    assert row(RunFolder.open("run"), "silence")["n"] == 1
    assert "nothing can be confirmed" in row(RunFolder.open("run"), "silence")["said"]
    assert "no silent prompt has a matched control" in row(RunFolder.open("run"), "ghosts")["reason"]


# -- disruption --------------------------------------------------------------------------------------------------------------


def test_disruption_is_that_of_the_function(model: str) -> None:
    assert main(["shells", "disruption", "--file", "pairs.jsonl", "-m", model, "-o", "run"]) == 0
    assert validate("run") == []
    run = RunFolder.open("run")
    instrument, tokenizer = Instrument(wrap(build("llama"), tiny_tokenizer())), tiny_tokenizer()
    sides = [[build_prompt(tokenizer, frame.format(w)) for w in WORDS] for frame in (STRESS, CONTROL)]
    want = attention_disruption(instrument, *sides).frame
    got = run.table("disruption").drop("item")
    assert got.select("layer", "head", "metric").equals(want.select("layer", "head", "metric"))
    for name in ("value", "control", "difference", "p", "q"):
        assert np.allclose(got[name], want[name], atol=1e-5), name
    assert set(got["n"]) == {len(WORDS)}
    page = Path("run/report.html").read_text("utf-8")
    assert "Attention against the control" in page
    assert "n = 8 (pairs of prompts). Control: the same metrics on the matched control prompts" in page
    assert "<svg" in page


def test_a_span_changes_local_trapping_and_nothing_else(model: str) -> None:
    plain = [{"id": w, "prompt": STRESS.format(w), "control": CONTROL.format(w)} for w in WORDS]
    write("spans.jsonl", [line | {"span": "the old", "control_span": "Anna"} for line in plain])
    for name in ("pairs", "spans"):
        assert main(["shells", "disruption", "--file", f"{name}.jsonl", "-m", model, "-o", name, "--no-report"]) == 0
    a, b = (RunFolder.open(name).table("disruption") for name in ("pairs", "spans"))
    local = pl.col("metric") == "local trapping"
    assert a.filter(~local).equals(b.filter(~local))
    assert not np.allclose(a.filter(local)["value"], b.filter(local)["value"])
    assert "span" in set(RunFolder.open("spans").table("tokens")["region"])
    # A span alone is looked for in the control too, and refused where it is not there; a control's alone is no pair.
    write("alone.jsonl", [line | {"span": "the old"} for line in plain])
    assert main(["shells", "disruption", "--file", "alone.jsonl", "-m", model, "-o", "alone", "--no-report"]) == 1
    assert RunFolder.open("alone").failed_items() == list(WORDS)
    write("half.jsonl", [line | {"control_span": "Anna"} for line in plain])
    assert main(["shells", "disruption", "--file", "half.jsonl", "-m", model, "-o", "half"]) == 2


def test_a_pair_that_fails_leaves_the_others(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"id": w, "prompt": STRESS.format(w), "control": CONTROL.format(w)} for w in WORDS]
    lines[2]["span"] = "nowhere"
    lines[3]["prompt"] = "mill " * 400  # over the model's context
    assert main(["shells", "disruption", "--file", write("bad.jsonl", lines), "-m", model, "-o", "run"]) == 1
    run = RunFolder.open("run")
    assert run.failed_items() == [WORDS[2], WORDS[3]]
    assert set(run.table("disruption")["n"]) == {len(WORDS) - 2}
    lines[4]["span"] = "nowhere"
    assert main(["shells", "disruption", "--file", write("bad.jsonl", lines), "-m", model, "-o", "less"]) == 1
    said = row(RunFolder.open("less"), "disruption")
    assert "5 pairs" in said["reason"]
    assert RunFolder.open("less").table("disruption").is_empty()
    assert "Nothing measured: 5 pairs" in Path("less/report.html").read_text("utf-8")


def test_a_killed_run_goes_on_where_it_stood(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import symbolic_residue.diagnose as diagnose

    words = ["shells", "disruption", "--file", "pairs.jsonl", "-m", model, "--no-report"]
    assert main([*words, "-o", "whole"]) == 0
    asked: list[str] = []
    real = diagnose.disruption_item

    def counted(instrument: Any, item: Any, **options: Any) -> Any:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(item.id)
        return real(instrument, item, **options)

    monkeypatch.setattr(diagnose, "disruption_item", counted)
    assert main([*words, "-o", "cut"]) == 130
    assert RunFolder.open("cut").done_items() == list(WORDS[:3])
    again: list[str] = []
    monkeypatch.setattr(diagnose, "disruption_item", lambda i, item, **o: (again.append(item.id), real(i, item, **o))[1])
    assert main([*words, "-o", "cut", "--resume"]) == 0
    assert again == list(WORDS[3:])
    assert RunFolder.open("cut").table("disruption").equals(RunFolder.open("whole").table("disruption"))
    # Other prompts are another run.
    write("pairs.jsonl", [{"id": w, "prompt": STRESS.format(w) + " old", "control": CONTROL.format(w)} for w in WORDS])
    assert main([*words, "-o", "cut", "--resume"]) == 5


# -- errors ------------------------------------------------------------------------------------------------------------------


def test_the_lens_and_a_replacement_of_ones_own(model: str) -> None:
    texts = ["the old mill stands", "Anna keeps the key with", "One two three four"]
    Path("halves.py").write_text("def half(layer, x):\n    return x * 0.5\n\ntable = {1: lambda x: x * 0.5}\nnumber = 3\n", "utf-8")
    assert main(["shells", "errors", *texts, "-m", model, "-o", "lens"]) == 0
    assert main(["shells", "errors", *texts, "-m", model, "--replacement", "halves.py:half", "-o", "half", "--no-report"]) == 0
    assert main(["shells", "errors", *texts, "-m", model, "--replacement", "halves.py:table", "-o", "one", "--no-report"]) == 0
    instrument, tokenizer = Instrument(wrap(build("llama"), tiny_tokenizer())), tiny_tokenizer()
    prompts = [build_prompt(tokenizer, text) for text in texts]
    for name, replacement in (("lens", None), ("half", lambda layer, x: x * 0.5)):
        want = error_accumulation(instrument, prompts, replacement).frame.filter(~pl.col("series").str.starts_with("control"))
        got = (
            RunFolder.open(name)
            .table("curves")
            .filter((pl.col("item") == "together") & ~pl.col("series").str.starts_with("control"))
        )
        assert got.select("curve", "series", "x", "n").equals(want.select("curve", "series", "x", "n"))
        for column in ("value", "low", "high"):
            assert np.allclose(got[column], want[column], atol=1e-4), column
        assert RunFolder.open(name).table("curves")["series"].str.starts_with("control").any()
    assert set(RunFolder.open("one").table("curves")["x"]) == {1.0}
    Path("halves.py").write_text("def half(layer, x):\n    return x * 0.4\n", "utf-8")
    again = ["shells", "errors", *texts, "-m", model, "--replacement", "halves.py:half", "-o", "half", "--resume"]
    assert main(again) == 5  # other code is another run
    page = Path("lens/report.html").read_text("utf-8")
    assert "Errors that accumulate" in page
    assert "Control: random errors of the same length" in page
    assert validate("lens") == []


def test_replacements_that_cannot_be(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.py").write_text("number = 3\ndef wrong(layer, x):\n    return x[..., :3]\n", "utf-8")
    words = ["shells", "errors", "the old mill stands", "-m", model]
    for more in (
        ["--replacement", "own.py:none"],
        ["--replacement", "own.py:number"],
        ["--replacement", "missing.py:f"],
        ["--source", "mlp_in"],
    ):
        assert main([*words, *more]) == 2
        assert "Traceback" not in capsys.readouterr().err
    assert main([*words, "--replacement", "own.py:wrong", "--source", "nonsense"]) == 4
    assert not Path("residue-runs").exists()
    assert main([*words, "--replacement", "own.py:wrong", "-o", "run"]) == 1
    assert "It must give finite numbers" in str(RunFolder.open("run").table("items")["error"][0])


# -- cross-run ---------------------------------------------------------------------------------------------------------------


def test_cross_run_is_that_of_the_function(model: str) -> None:
    good = write("good.jsonl", [{"id": w, "prompt": CONTROL.format(w)} for w in WORDS])
    bad = write("bad.jsonl", [{"id": w, "prompt": STRESS.format(w)} for w in reversed(WORDS)])
    assert main(["shells", "cross-run", "--success", good, "--failure", bad, "-m", model, "-o", "run"]) == 0
    instrument, tokenizer = Instrument(wrap(build("llama"), tiny_tokenizer())), tiny_tokenizer()
    names, success = run_features(instrument, [build_prompt(tokenizer, CONTROL.format(w)) for w in WORDS])
    failure = run_features(instrument, [build_prompt(tokenizer, STRESS.format(w)) for w in WORDS])[1]
    want = cross_run(success, failure, names).frame.sort("layer", "feature")
    got = RunFolder.open("run").table("cross_run").drop("item").sort("layer", "feature")
    assert got.select("layer", "feature", "n").equals(want.select("layer", "feature", "n"))
    for name in ("success", "failure", "difference", "q"):
        assert np.allclose(got[name], want[name], atol=1e-4), name
    assert validate("run") == []
    assert "Success against failure" in Path("run/report.html").read_text("utf-8")
    framed = write(
        "framed.jsonl", [{"id": w, "prompt": STRESS.format(w), "tags": ["one" if i < 4 else "two"]} for i, w in enumerate(WORDS)]
    )
    assert main(["shells", "cross-run", "--success", good, "--failure", framed, "-m", model, "-o", "framed"]) == 0
    assert set(RunFolder.open("framed").table("cross_run")["n"]) == {2}
    assert "With n = 2 none could" in row(RunFolder.open("framed"), "cross-run")["said"]


def test_two_saved_runs_are_compared_without_a_model(model: str) -> None:
    for name, frame in (("good", CONTROL), ("bad", STRESS)):
        stats = write(f"{name}.jsonl", [{"id": w, "prompt": frame.format(w)} for w in WORDS[:6]])
        assert main(["diagnose", "--file", stats, "-m", model, "-o", name, "--no-report"]) == 0
    assert main(["shells", "cross-run", "--success", "good", "--failure", "bad", "-m", "no/such-model", "-o", "run"]) == 0
    run = RunFolder.open("run")
    got = run.table("cross_run")
    tables = [RunFolder.open(name).table("attention_stats") for name in ("good", "bad")]
    cell = (pl.col("layer") == 1) & (pl.col("head") == 2)
    want = [table.filter(cell)["entropy"].mean() for table in tables]
    mine = got.filter((pl.col("layer") == 1) & (pl.col("feature") == "head 2 entropy")).row(0, named=True)
    assert (mine["success"], mine["failure"], mine["n"]) == (pytest.approx(want[0]), pytest.approx(want[1]), 6)
    assert run.manifest.provenance["failure_run"] == "bad"
    assert (
        main(["shells", "cross-run", "--success", "good", "--failure", "bad", "--table", "heads", "-o", "dla", "--no-report"]) == 0
    )
    assert set(RunFolder.open("dla").table("cross_run")["feature"]) == {f"head {h} DLA" for h in range(4)}


# -- attention ---------------------------------------------------------------------------------------------------------------


def test_attention_of_chosen_heads(model: str) -> None:
    prompt = "the old mill stands near the"
    assert main(["shells", "attention", prompt, "--heads", "1.2,0.1", "-m", model, "--last", "4", "-o", "run"]) == 0
    run = RunFolder.open("run")
    assert validate("run") == []
    rows = run.table("attention_rows")
    assert set(rows.select("layer", "head").unique().rows()) == {(1, 2), (0, 1)}
    assert rows.group_by("layer", "head", "query").agg(pl.col("weight").sum())["weight"].to_list() == pytest.approx(
        [1.0] * 8, abs=1e-5
    )
    summed = run.table("ov_keys").group_by("layer", "head").agg(pl.col("strength").sum()).sort("layer")["strength"].to_list()
    assert summed == pytest.approx(run.table("ov_heads").sort("layer")["strength"].to_list(), abs=1e-5)
    page = Path("run/report.html").read_text("utf-8")
    assert "Where chosen heads look" in page
    assert len(re.findall(r"attention of head", page)) >= 2


# -- refusals ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["silence"], 2),
        (["silence", "  "], 2),
        (["silence", "a", "--file", "pairs.jsonl"], 2),
        (["silence", "--file", "missing.jsonl"], 2),
        (["silence", "the mill", "--end", "three whole words"], 2),
        (["silence", "the mill", "--top", "-1"], 2),
        (["disruption"], 2),
        (["disruption", "--file", "missing.jsonl"], 2),
        (["disruption", "--file", "few.jsonl"], 2),
        (["disruption", "--file", "wrong.jsonl"], 2),
        (["disruption", "--file", "empty.jsonl"], 2),
        (["errors", ""], 2),
        (["errors", "--file", "."], 2),
        (["cross-run", "--success", "pairs.jsonl"], 2),
        (["cross-run", "--success", "pairs.jsonl", "--failure", "few.jsonl"], 2),
        (["cross-run", "--success", "pairs.jsonl", "--failure", "."], 2),
        (["cross-run", "--success", ".", "--failure", "."], 5),
        (["cross-run", "--success", "pairs.jsonl", "--failure", "pairs.jsonl", "--table", "heads"], 2),
        (["attention", "the mill"], 2),
        (["attention", "the mill", "--heads", "one"], 2),
        (["attention", "the mill", "--heads", "1.2.3"], 2),
        (["attention", "the mill", "--heads", "7.0"], 4),
        (["attention", "the mill", "--heads", "0.-1"], 4),
        (["attention", "the mill", "--heads", "1.2", "--target", "three whole words"], 2),
        (["silence", "--file", "taken.jsonl"], 2),
    ],
)
def test_refusals_leave_no_run_and_no_traceback(
    words: list[str], code: int, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [{"id": w, "prompt": STRESS.format(w), "control": CONTROL.format(w)} for w in WORDS]
    write("few.jsonl", pairs[:3])
    write("wrong.jsonl", [{"prompt": "the mill", "controls": "a"}])
    write("empty.jsonl", [])
    write("taken.jsonl", [{"id": "together", "prompt": "the mill"}])
    assert main(["shells", *words, *([] if "--success" in words and code == 5 else ["-m", model])]) == code
    err = capsys.readouterr().err
    assert "Error" in err or "Why" in err
    assert "Traceback" not in err and "bug" not in err
    assert not Path("residue-runs").exists()


def test_an_over_long_text_is_a_failed_item(model: str) -> None:
    long = "mill " * 400
    assert main(["shells", "silence", long, "the mill", "-m", model, "-o", "a"]) == 1
    assert main(["shells", "errors", long, "the mill", "-m", model, "-o", "b"]) == 1
    assert main(["shells", "attention", long, "--heads", "1.2", "-m", model, "-o", "c"]) == 1
    for name in "abc":
        run = RunFolder.open(name)
        assert run.failed_items() == (["prompt-1"])
        assert "tokens" in str(run.table("items").filter(pl.col("status") == "failed")["error"][0])
    assert main(["shells", "silence", long, "-m", model, "-o", "d"]) == 1
    assert "none of 0 prompts" in row(RunFolder.open("d"), "silence")["reason"]
    assert main(["shells", "errors", long, "-m", model, "-o", "e"]) == 1


# -- the suite ---------------------------------------------------------------------------------------------------------------


SUITE = ["shells", "run", "--shell", "value-collapse", "--split", "calibration", "--no-attribution"]
OPENINGS = ("One", "Two", "Old", "Please", "Anna", "Three")


@pytest.fixture
def items(monkeypatch: pytest.MonkeyPatch) -> list[BenchmarkItem]:
    """Six planted items whose candidates the tiny tokenizer has, and one null."""
    import symbolic_residue.diagnose as diagnose

    planted = [
        BenchmarkItem(
            id=f"p{i}",
            kind="either",
            frame=f"f{i}",
            split="calibration",
            prompt=f"{word}: a gate or a mill. The old",
            control=f"{word}: a gate, a gate. The old",
            candidates=(" gate", " mill"),
            answer=" gate",
        )
        for i, word in enumerate(OPENINGS)
    ]
    null = BenchmarkItem(id="n0", kind="null", frame="n", split="calibration", prompt="The mill stands near the old")
    monkeypatch.setattr(diagnose, "choose_items", lambda name, n, *, split: [*planted, null][-n:])
    return [*planted, null]


def test_a_suite_has_the_measures_over_each_shells_items(model: str, items: list[BenchmarkItem]) -> None:
    assert main([*SUITE, "-m", model, "-n", "7", "--across", "-o", "run"]) == 0
    assert validate("run") == []
    run = RunFolder.open("run")
    assert row(run, "disruption", "across.value-collapse")["n"] == 6  # the null item is not mixed in
    instrument, tokenizer = Instrument(wrap(build("llama"), tiny_tokenizer())), tiny_tokenizer()
    sides = [[build_prompt(tokenizer, str(getattr(item, side))) for item in items[:6]] for side in ("prompt", "control")]
    want = attention_disruption(instrument, *sides).frame  # of the shell's own prompts and controls
    got = run.table("disruption")
    for name in ("value", "control", "q"):
        assert np.allclose(got[name], want[name], atol=1e-4), name
    assert run.table("endings").filter(pl.col("side") == "prompt").height == 7
    assert "none of 7 prompts" in row(run, "silence", "across.value-collapse")["reason"]
    page = Path("run/report.html").read_text("utf-8")
    assert "Attention against the control" in page
    assert "Nothing measured: the model is silent on none of 7 prompts" in page


def test_a_suite_without_them_has_none_and_a_cut_one_goes_on(
    model: str, items: list[BenchmarkItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*SUITE, "-m", model, "-n", "2", "--no-report"]
    assert main([*words, "-o", "plain"]) == 0
    plain = RunFolder.open("plain")
    assert plain.table("across").is_empty()
    assert "across" not in plain.manifest.config
    import symbolic_residue.diagnose as diagnose

    real = diagnose.suite_across
    monkeypatch.setattr(diagnose, "suite_across", lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert main([*words, "--across", "-o", "cut"]) == 130
    monkeypatch.setattr(diagnose, "suite_across", real)
    monkeypatch.setattr(diagnose, "suite_item", None)  # no item is run again
    assert main([*words, "--across", "-o", "cut", "--resume"]) == 0
    cut = RunFolder.open("cut")
    assert "1 pair; with fewer than 6" in row(cut, "disruption", "across.value-collapse")["reason"]
    assert cut.table("verdicts").equals(plain.table("verdicts"))
