"""The graph's page as text: complete without its script, sealed, and nothing of the data is markup."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from typing import Any

from report.graph_data import graph_data, NASTY

from symbolic_residue.graph import validate_neuronpedia
from symbolic_residue.report import graph_page


def test_the_made_up_data_is_valid() -> None:
    for data in (graph_data(), graph_data(nasty=True)):
        assert validate_neuronpedia(data).plain() == data


def inner(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="graph-data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_holds_every_node_and_link_and_asks_for_nothing() -> None:
    data = graph_data()
    page = graph_page(data)
    kept = inner(page)
    assert len(kept["nodes"]) == len(data["nodes"]) and len(kept["links"]) == len(data["links"])
    ids = [node["node_id"] for node in data["nodes"]]
    wanted = {(ids.index(one["source"]), ids.index(one["target"])): one["weight"] for one in data["links"]}
    for s, t, weight in kept["links"]:
        assert abs(weight - wanted[s, t]) <= 1e-3 * abs(wanted[s, t])
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert len(scripts) == 1 and f"script-src &#39;sha256-{digest}&#39;" in page
    assert page.count("<tr>") == len(data["nodes"]) + 1 + 3
    assert "adds up within 1.0e-07" in page and "5.460" in page  # 0.6 · 9.1


def test_markup_in_tokens_labels_and_names_is_text() -> None:
    page = graph_page(graph_data(nasty=True))
    assert len(re.findall(r"<script", page)) == 2 and "<img" not in page and "\u202e" not in page
    assert html.escape(NASTY[0], quote=False) in page
    assert NASTY[0] in inner(page)["tokens"][0].replace("·", " ")


def test_links_beyond_the_most_are_the_smallest_shares_and_said(monkeypatch) -> None:
    from symbolic_residue.report import _graph_page

    monkeypatch.setattr(_graph_page, "MOST_LINKS", 100)
    data = graph_data()
    page = graph_page(data)
    kept = inner(page)["links"]
    assert len(kept) == 100 and f"The {len(data['links']) - 100} links" in page
    ids = [node["node_id"] for node in data["nodes"]]
    size: dict[int, float] = {}
    for one in data["links"]:
        t = ids.index(one["target"])
        size[t] = size.get(t, 0) + abs(one["weight"])
    there = {(s, t) for s, t, _ in kept}
    least = min(abs(w) / size[t] for _, t, w in kept)
    for one in data["links"]:
        s, t = ids.index(one["source"]), ids.index(one["target"])
        assert (s, t) in there or abs(one["weight"]) / size[t] <= least * 1.001


def test_a_graph_from_elsewhere_has_a_page_too() -> None:
    data = graph_data()
    del data["metadata"]["residue"], data["metadata"]["pruning_settings"]
    data["qParams"] = {"clickedId": None}
    for node in data["nodes"]:
        node["influence"], node["clerp"] = None, None
    page = graph_page(data)
    assert "What each target is made of" not in page and len(inner(page)["nodes"]) == len(data["nodes"])
