"""Sections of measures across shells: every one is said, with n and control; what was not measured says why; the item of all prompts comes first."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from report.across_run import across_tables, write_across

from symbolic_residue.errors import ConfigError
from symbolic_residue.figures import disruption_map, silence_parts
from symbolic_residue.report import export_figures, render_report
from symbolic_residue.report._across import MEASURES


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render_report(write_across(tmp_path_factory.mktemp("across") / "run")).read_text("utf-8")


def section(page: str, name: str) -> str:
    start = page.index(f'<section aria-labelledby="item-1-{name}">')
    return page[start : page.index("</section>", start)]


def test_every_measure_has_its_section(page: str) -> None:
    for name, measure in MEASURES.items():
        part = section(page, name)
        assert measure.title in part
        assert "n = 7 (" in part
        assert f'href="#item-1-{name}"' in page
    assert "Nothing measured: no silent prompt has a control." in section(page, "ghosts")
    assert "Control: none." in section(page, "ghosts")
    assert "Not measured in this run" not in page
    assert "More tables" not in page
    assert ">Curves<" not in page  # they stand with the errors


def test_what_was_found_is_in_the_tables(page: str) -> None:
    silence, disruption = section(page, "silence"), section(page, "disruption")
    planted = next(row for row in re.findall(r"<tr.*?</tr>", silence, re.DOTALL) if ">head 5.2<" in row)
    for text in ("+3 [+2.5, +3.5]", "+0.1", "−2 [−2.5, −1.5]", "✓ yes", 'class="yes"'):
        assert text in planted
    assert "not tested" in silence
    assert re.search(
        r"<th scope=\"row\">entropy</th><td class=\"n\">24</td><td class=\"n\">1</td><td class=\"n\">3.1</td>", disruption
    )
    assert "entropy of each head against the control" in disruption
    assert disruption.count("<svg") == 1


def test_the_item_of_all_prompts_is_shown_first_however_many_there_are(tmp_path: Path) -> None:
    text = render_report(write_across(tmp_path / "run", before=35)).read_text("utf-8")
    shown = re.findall(r"Item (\w+)</span>", text)
    assert shown[:2] == ["together", "p0"]
    assert len(shown) == 30


def test_figures_are_exported(tmp_path: Path) -> None:
    names = {path.stem for path in export_figures(write_across(tmp_path / "run"), ["svg"])}
    for word in ("silence_parts", "disruption_map", "attention_view_1", "curve_kl"):
        assert any(word in name for name in names), word


def test_figures_refuse_what_is_not_there() -> None:
    tables = across_tables()
    with pytest.raises(ConfigError, match="no metric 'heat'"):
        disruption_map(tables["disruption"], "heat")
    with pytest.raises(ConfigError, match="no rows"):
        silence_parts(tables["overruled"].clear())
    drawn = silence_parts(tables["overruled"]).to_dict()
    bars = next(values for values in drawn["datasets"].values() if values)
    assert [bar["part"] for bar in bars][:2] == ["head 5.2", "mlp 5"]
    assert {bar["part"]: bar["sign"] for bar in bars}["head 5.2"] == "silences"
