"""The page of a concepts run: the answer first, every number beside its null, everything escaped; files that do not belong are refused."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from report.concepts_run import EVIL, TELLINGS, write_concepts

from symbolic_residue import figures
from symbolic_residue.errors import RunDamagedError, StoreError
from symbolic_residue.figures import number
from symbolic_residue.report import concepts_page, export_figures, render_report
from symbolic_residue.report._concepts_answer import answer, beside_words
from symbolic_residue.report._concepts_load import load_concepts
from symbolic_residue.report._concepts_sections import similarity


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_concepts(tmp_path_factory.mktemp("concepts") / "run")


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return render_report(folder).read_text("utf-8")


@pytest.fixture(scope="module")
def quality(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "quality.json").read_text("utf-8"))


@pytest.fixture
def edited(folder: Path, tmp_path: Path) -> Any:
    """``edited(change, **files)``: the folder again, with quality.json changed and JSON files beside it."""

    def make(change: Any = None, **files: Any) -> Path:
        made = tmp_path / "run"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        for file in folder.iterdir():
            if file.is_file() and file.name != "report.html":
                (made / file.name).write_bytes(file.read_bytes())
        report = json.loads((made / "quality.json").read_text("utf-8"))
        if change is not None:
            change(report)
            (made / "quality.json").write_text(json.dumps(report), "utf-8")
        for name, content in files.items():
            (made / f"{name}.json").write_text(json.dumps(content), "utf-8")
        return made

    return make


def section(page: str, name: str) -> str:
    start = page.index(f'<section aria-labelledby="{name}">')
    return page[start : page.index("</section>", start)]


def words(part: str) -> str:
    return " ".join(unescape(re.sub("<[^>]*>", " ", part)).split())


def table_rows(part: str) -> list[list[str]]:
    return [
        [words(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL)]
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", part, re.DOTALL)
    ]


def test_the_answer_counts_the_concepts_with_small_family_wise_p(folder: Path, page: str, quality: dict[str, Any]) -> None:
    p = {c: one["chosen"]["p_concepts"] for c, one in quality["concepts"].items()}
    read = [c for c, one in p.items() if one is not None and one <= 0.05]
    said = words(section(page, "answer"))
    assert p["late"] is None  # four positives: not ranked, not tested
    expected = f"{len(read)} of 4 concepts" if read else "No concept is read above chance: 0 of 4"
    assert expected in said and "over 2 layers and 4 concepts" in said
    assert (
        f"{quality['model']['model']}, 2 layers" in said
        and "8 scenarios" in said
        and "seed 0" in said
        and "1,000 permutations" in said
    )
    assert "Not tested: late" in said
    assert "residue concepts heads run" in said and "residue concepts check run" in said


def test_every_concept_stands_beside_its_null_and_words_alone(page: str, quality: dict[str, Any]) -> None:
    rows = {row[0]: row for row in table_rows(section(page, "concepts"))}
    for concept, one in quality["concepts"].items():
        layer = one["layers"][str(one["chosen"]["layer"])]
        found = table_rows(section(page, "concepts").split("What each direction is")[0])
        row = next(row for row in found if row[0] == concept)
        assert row[2] == str(one["n_scenarios"]) and row[3] == str(one["chosen"]["layer"])
        assert row[4].startswith(number(layer["auc"]["value"])) and number(layer["auc"]["null_mean"]) in row[5]
        assert row[-3].startswith(number(quality["words_alone"][concept]["baseline"]["value"]))
        assert row[-2].startswith(number(one["other_negatives"]["auc"]["value"]))
        assert row[-1].startswith(number(quality["words_alone"][concept]["others"]["value"]))
        direction = rows[concept]  # the last table with this row: the middle layer's directions
        assert direction[1] == "1"
    assert "late" in words(section(page, "concepts").split("Measured, not ranked:")[1][:200])
    assert "4 positives; 5 are needed" in words(section(page, "concepts"))


def test_all_layers_can_be_taken_along_as_csv(page: str, quality: dict[str, Any]) -> None:
    data = re.search(r'download="concepts-layers.csv" href="data:text/csv;base64,([^"]+)"', page)
    assert data is not None
    rows = list(csv.DictReader(base64.b64decode(data[1]).decode().splitlines()))
    assert len(rows) == 5 * 2
    joy = next(row for row in rows if row["concept"] == "joy" and row["layer"] == "1")
    assert float(joy["auc"]) == pytest.approx(quality["concepts"]["joy"]["layers"]["1"]["auc"]["value"], rel=1e-3)


def test_similarity_has_a_map_a_layer_with_the_null_and_families(folder: Path, page: str, quality: dict[str, Any]) -> None:
    part = section(page, "similarity")
    assert part.count('type="radio"') == 2 and part.count(" checked") == 1 and part.count('<table class="map">') == 2
    block, names = quality["similarity"]["1"], list(quality["concepts"])
    rows = {row[0]: row for row in table_rows(part.split('<table class="map">')[2])}
    fear, trust = names.index("fear"), names.index("trust")
    assert rows["fear"][1 + trust] == f"{block['cosines'][fear][trust]:.2f}".replace("-", "−") and rows["fear"][1 + fear] == ""
    assert f"Under permuted labels {number(block['null_mean'])}" in words(part)
    assert ["", "basic", "relational", "no family"] in table_rows(part)
    maps = similarity(load_concepts(folder))["maps"]
    for one in maps:
        p = quality["similarity"][str(one["layer"])]["p_layer"]
        marks = [[cell["stands_out"] for cell in row["cells"]] for row in one["rows"]]
        assert marks == [[i != j and p[i][j] <= 0.05 for j in range(5)] for i in range(5)]


def test_outlier_texts_are_shown_with_their_neutral_tellings(folder: Path, page: str, quality: dict[str, Any]) -> None:
    one = quality["concepts"]["trust"]
    values = one["layers"][str(one["chosen"]["layer"])]["alignment"]["by_text"]
    corpus = [json.loads(line) for line in (folder / "corpus.jsonl").read_text("utf-8").splitlines()]
    found = {corpus[row]["scenario"]: value for row, value in zip(one["positive_rows"], values, strict=True)}
    assert {corpus[row]["concept"] for row in one["positive_rows"]} == {"trust"}
    lowest = min(found, key=found.__getitem__)
    rows = [row for row in table_rows(section(page, "outliers")) if row[0] == lowest and TELLINGS["trust"].format(lowest) in row[2]]
    assert len(rows) == 1 and rows[0][1].startswith(number(found[lowest], signed=True))
    assert rows[0][3] == TELLINGS["baseline"].format(lowest)


def test_heads_are_drawn_and_listed_with_their_null(page: str, quality: dict[str, Any]) -> None:
    part = section(page, "heads")
    assert part.count("<svg") == 5 and part.count('role="img"') == 5
    block = quality["concepts"]["fear"]["per_head"]["layers"]
    found = [
        (row["p_model"], -row["selectivity"] / row["null_mean"], layer, row)
        for layer in block
        for row in block[layer]["by_selectivity"]
    ]
    p, _, layer, best = min(found, key=lambda one: one[:3])
    table = table_rows(part[part.index("fear: the 8 heads of 8") :])
    assert table[1][0] == f"{layer}.{best['head']}" and table[1][5] == f"{p:.3f}"
    raw = next(one for one in block[layer]["top_heads"] if one[0] == best["head"])
    write = next(one for one in block[layer]["write"] if one[0] == best["head"])
    assert table[1][1:4] == [number(raw[1]), number(best["selectivity"]), number(best["null_mean"])] and table[1][6] == number(
        write[1]
    )
    assert "4 query heads share 2 key-value heads" in words(part)
    concentration = words(section(page, "concentration"))
    assert "1 by definition here" in concentration and "expected by chance" in concentration


def test_a_hybrid_lists_what_its_heads_do_not_cover(tmp_path: Path) -> None:
    part = section(concepts_page(write_concepts(tmp_path / "run", model="bamba")).read_text("utf-8"), "heads")
    rows = [row for row in table_rows(part) if len(row) == 4 and row[3] == "no heads"]
    assert [row[0] for row in rows] == ["0", "2"] and all(row[2] for row in rows)


def test_without_heads_manifest_corpus_or_null_the_page_says_so(tmp_path: Path) -> None:
    made = write_concepts(tmp_path / "run", manifest=False, estimator="lda")
    (made / "corpus.jsonl").unlink()
    report = json.loads((made / "quality.json").read_text("utf-8"))
    for one in report["concepts"].values():
        del one["per_head"]
    (made / "quality.json").write_text(json.dumps(report), "utf-8")
    page = concepts_page(made).read_text("utf-8")
    said = words(section(page, "answer"))
    assert "was not tested: permuted labels give a null for the difference of means only, and these directions are by lda" in said
    assert "No heads were decomposed" in section(page, "heads") and "No heads were decomposed" in section(page, "concentration")
    assert "no corpus.jsonl" in section(page, "outliers") and "No null: permuted labels" in section(page, "similarity")
    assert "above chance" not in section(page, "concepts")


def test_a_concept_that_cannot_be_held_out_has_its_row_and_its_reason(tmp_path: Path) -> None:
    page = concepts_page(write_concepts(tmp_path / "run", late=1)).read_text("utf-8")
    row = next(row for row in table_rows(section(page, "concepts")) if row[0] == "late")
    assert row[2:5] == ["1", "1", "—"] and "not tested" in row
    assert "Fewer than three scenarios" in section(page, "outliers")
    assert "late (There is one negative" in words(section(page, "heads"))


def test_watched_texts_are_coloured_by_z_with_their_reference(tmp_path: Path) -> None:
    made = write_concepts(tmp_path / "run", watched=True, nasty=True)
    record = json.loads((made / "watch" / "001.json").read_text("utf-8"))
    page = concepts_page(made).read_text("utf-8")
    part = section(page, "watch")
    assert len(record["tracks"]) == 8 and part.count('type="radio"') == 8 and part.count(" checked") == 1
    assert part.count('<div class="prompt"') == 8 * 4 and "2 further texts: watch/001.json" in words(part)
    rows = table_rows(part)
    for at, verdict in enumerate(record["verdicts"]):
        assert rows[1 + at][1:3] == [str(verdict["layer"]), verdict["outcome"]] and rows[1 + at][4] == number(
            verdict["mean_z"], signed=True
        )
    largest = max(record["verdicts"], key=lambda one: one["difference"])
    assert (
        re.search(r"checked><label[^>]*>([^<]*)", part)[1]
        == f"{figures.visible(largest['concept']).replace('<', '&lt;').replace('>', '&gt;')} · {largest['layer']}"
    )  # type: ignore[index]
    text, at = record["texts"][0], 3
    panel = part.split('<div class="panel">')[1 + at]
    titles = re.findall(r'<span class="t[^"]*"[^>]*title="([^"]*)"', panel)[: len(text["tokens"])]
    for token, z, title in zip(text["tokens"], text["z"], titles, strict=True):
        assert title.startswith(f"{'generated' if token['generated'] else 'prompt'}, position {token['position']}: ")
        assert ("no score" in title) if z is None else (f"z {number(z[at], signed=True)};" in title)
    strong = sum(z is not None and z[at] >= 2 for one in record["texts"][:4] for z in one["z"])
    assert panel.count('class="t strong"') == strong
    assert page.count("<script") == 1 and "Anna·put·&lt;script&gt;" in re.sub("</?(span|wbr)[^>]*>", "", panel)


def test_verdicts_on_heads_stand_beside_everything_they_are_compared_with(tmp_path: Path) -> None:
    made = write_concepts(tmp_path / "run", verdicts=True, nasty=True)
    found = json.loads((made / "heads.json").read_text("utf-8"))
    page = concepts_page(made).read_text("utf-8")
    part = section(page, "verdicts")
    verdicts = part[part.index("<caption>Verdicts over all heads of the model") :].split("</table>")[0]
    for concept, one in found["concepts"].items():
        whole = one["model"]
        row = next(row for row in table_rows(verdicts) if row[0] == concept)
        assert row[1:5] == [whole["verdict"], whole["verdict_strict"], f"{whole['k']} of 8", "8"]
        names = ("few", "all", "rest", "next", "random", "residual")
        for cell, name in zip(row[5:11], names, strict=True):
            assert cell.startswith(number(whole["readouts"][name]["auc"]))
        assert row[11].startswith(number(found["words_alone"][concept]["value"])) and whole["reason"] in words(part)
    conditions = part[part.index("Conditions of “few heads” over all heads of the model") :].split("</table>")[0]
    held = [c["holds"] for c in found["concepts"]["fear"]["model"]["conditions"]]
    row = next(row for row in table_rows(conditions) if row[0] == "fear")
    assert [cell[0] == "✓" for cell in row[1:]] == held
    families, overlap = found["families"], found["overlap"]
    assert families["question"].split("<")[0] in words(part) and families["reason"] in words(part)
    tests = families["statistics"]["concentration"]
    row = next(row for row in table_rows(part) if row[0] == "concentration" and len(row) == 8)
    assert row[2].startswith(number(tests["difference"], signed=True)) and row[3] == f"{tests['p']:.3f}"
    cells = part[part.index('<table class="map') :].split("</table>")[0]
    assert len(re.findall(r"<td[^>]*title=", cells)) == 2 * len(overlap["pairs"])
    assert cells.count("stands-out") == 2 * sum(pair["p_pairs"] <= 0.05 for pair in overlap["pairs"])
    pair = overlap["pairs"][0]
    assert any(row[0] == f"{pair['first']} / {pair['second']}" and row[3] == number(pair["null_mean"]) for row in table_rows(part))
    assert "late (" in words(part) and "not judged: late" in words(section(page, "answer"))
    assert "was not asked yet" not in words(section(page, "answer")) and page.count("<script") == 1


def test_ablation_and_steering_stand_beside_their_controls(tmp_path: Path) -> None:
    made = write_concepts(tmp_path / "run", causal=True, nasty=True)
    found = json.loads((made / "causal.json").read_text("utf-8"))["concepts"]
    page = concepts_page(made).read_text("utf-8")
    part = section(page, "causal")
    ablation, steering = (part[part.index(f"<caption>{name}") :].split("</table>")[0] for name in ("Ablation:", "Steering:"))
    assert len(found) == 2
    for concept, one in found.items():
        first = one["ablation"]["layers"][0]
        row = next(row for row in table_rows(ablation) if row[0] == concept)
        verdicts = {"carry": "they carry it", "not": "no more than others", "undecided": "undecided", "steers": "pushes"}
        assert row[1:5] == [
            verdicts[one["ablation"]["verdict"]],
            str(one["ablation"]["layer"]),
            "8",
            str(len(one["ablation"]["halves"][0])),
        ]
        assert row[6].startswith(number(first["lost"]["value"])) and row[7].startswith(number(first["control"]["value"]))
        assert row[10] == str(len(first["controls"])) and one["ablation"]["why"] in words(part)
        main = next(c for c in one["steering"]["comparisons"] if (c["measure"], c["against"]) == ("words", "random directions"))
        row = next(row for row in table_rows(steering) if row[0] == concept)
        assert row[1] == verdicts[one["steering"]["verdict"]] and row[5] == "2"
        assert row[7].startswith(number(main["effect"]["value"], signed=True)) and row[8].startswith(
            number(main["control"]["value"], signed=True)
        )
        arms = {(arm["kind"], arm["dose"]): arm for arm in one["steering"]["arms"] if "texts" in arm}
        assert words(part).count(words(figures.visible(arms["unsteered", 0.0]["texts"][1][0]))) >= 1
    direct = part[part.index("<caption>Ablation: the heads that write most") :].split("</table>")[0]
    for concept, one in found.items():
        row = next(row for row in table_rows(direct) if row[0] == concept)
        first = one["ablation_direct"]["layers"][0]
        assert row[6].startswith(number(first["lost"]["value"])) and one["ablation_direct"]["why"] in words(part)
    said = words(section(page, "answer"))
    assert "Ablating those that write most along the direction" in said
    assert "(2 of 5 concepts were tried)" in said and "Ablating the heads that differ most, against matched other heads" in said
    assert "No causal check was made yet" not in said and page.count("<script") == 1


def test_words_are_beaten_only_where_the_intervals_lie_apart(edited: Any) -> None:
    def change(report: dict[str, Any]) -> None:
        for concept, low, high in (("joy", 0.8, 0.95), ("fear", 0.1, 0.3), ("trust", 0.5, 0.7), ("calm", 0.5, 0.7)):
            for block in report["concepts"][concept]["layers"].values():
                block["pairs_in_order"] |= {"value": (low + high) / 2, "low": low, "high": high}
            report["words_alone"][concept]["baseline"] |= {"value": 0.6, "low": 0.4, "high": 0.75}
        report["words_alone"]["late"]["baseline"]["value"] = None

    run = load_concepts(edited(change))
    assert [beside_words(run, c) for c in ("joy", "fear", "trust", "late")] == ["more", "fewer", "as many", None]
    said = " ".join(answer(run)[1])
    assert (
        "is not told apart from them for 2 of 4; it puts more pairs in order for joy; it puts fewer pairs in order for fear."
        in said
    )


def test_everything_is_escaped_and_the_same_folder_gives_the_same_page(tmp_path: Path) -> None:
    made = write_concepts(tmp_path / "run", nasty=True)
    first = render_report(made).read_text("utf-8")
    assert EVIL not in first and "\u202e" not in first and first.count("<script") == 1 and "<img src=x" not in first
    assert "joy &lt;script&gt;" in first and "⟨U+202E⟩mill" in first
    assert render_report(made).read_text("utf-8") == first
    data = re.search(r"data:text/csv;base64,([^\"]+)", first)
    assert data is not None and EVIL in base64.b64decode(data[1]).decode()


def test_damaged_files_and_those_of_another_run_are_refused(folder: Path, edited: Any, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no folder"):
        concepts_page(tmp_path / "nowhere")
    cut = edited()
    whole = (cut / "quality.json").read_bytes()
    (cut / "quality.json").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunDamagedError, match=r"quality\.json cannot be read"):
        render_report(cut)
    (cut / "quality.json").unlink()
    with pytest.raises(StoreError, match="residue concepts report"):
        render_report(cut)
    with pytest.raises(RunDamagedError, match=r"lacks concepts.joy.layers.0.auc.p_model"):
        concepts_page(edited(lambda report: report["concepts"]["joy"]["layers"]["0"]["auc"].pop("p_model")))
    with pytest.raises(RunDamagedError, match="lacks similarity"):
        concepts_page(edited(lambda report: report.pop("similarity")))
    with pytest.raises(RunDamagedError, match=r"readout.json is of other weights"):
        concepts_page(edited(lambda report: report["of"].update(weights_sha256="f" * 64)))
    with pytest.raises(RunDamagedError, match=r"heads.json is of other weights"):
        concepts_page(edited(heads={"format": 1, "of": {"weights_sha256": "f" * 64}}))
    with pytest.raises(RunDamagedError, match=r"causal.json is of another readout"):
        concepts_page(edited(causal={"format": 1, "of": {"tensors_sha256": "f" * 64}}))
    lines = (folder / "corpus.jsonl").read_text("utf-8").splitlines()
    broken = edited()
    (broken / "corpus.jsonl").write_text("\n".join([*lines[:3], lines[3][:20]]), "utf-8")
    with pytest.raises(RunDamagedError, match=r"corpus.jsonl cannot be read"):
        concepts_page(broken)


def test_figures_are_exported_one_a_concept(folder: Path) -> None:
    names = [path.name for path in export_figures(folder, ["svg"])]
    assert names[:2] == ["concepts-auc.svg", "concepts-participation.svg"] and len(names) == 2 + 5
