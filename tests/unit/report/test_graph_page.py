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
    assert page.count("<tr>") == len(data["nodes"]) + 1 + 3 + 3  # of nodes, targets, looks
    assert "adds up within 1.0e-07" in page and "5.460" in page  # 0.6 · 9.1


def test_markup_in_tokens_labels_and_names_is_text() -> None:
    page = graph_page(graph_data(nasty=True))
    assert len(re.findall(r"<script", page)) == 2 and "<img" not in page and "\u202e" not in page
    assert html.escape(NASTY[0], quote=False) in page
    assert NASTY[0] in inner(page)["tokens"][0].replace("·", " ")


def test_a_target_that_is_no_token_shows_no_probability() -> None:
    data = graph_data()
    node = next(one for one in data["nodes"] if one["feature_type"] == "logit")
    node |= {"clerp": "Output \"' Paris' − ' Rome'\" (p=0.000)", "token_prob": 0.0}
    name = "' Paris' − ' Rome'"
    at = data["nodes"].index(node)
    assert inner(graph_page(data))["nodes"][at][4] == name
    del data["metadata"]["residue"]  # from elsewhere: a token of that probability
    assert inner(graph_page(data))["nodes"][at][4].endswith("(p=0.000)")


def test_a_note_is_text_too() -> None:
    page = graph_page(graph_data(), note="brings back <b>106%</b>")
    assert "brings back &lt;b&gt;106%&lt;/b&gt;" in page and "<b>106%" not in page
    assert "brings back" not in graph_page(graph_data())


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


def test_heads_and_looks_are_those_of_the_file_and_complete() -> None:
    data = graph_data()
    kept = inner(graph_page(data))
    ids = [node["node_id"] for node in data["nodes"]]
    split = {(one["source"], one["target"]): one for one in data["links"] if "residue_heads" in one}
    assert len(kept["heads"]) == len(split) > 50
    for place, shares, heads, others, none in kept["heads"]:
        s, t, _ = kept["links"][place]
        one = split[ids[s], ids[t]]
        by = one["weight"] if shares else 1.0
        assert [[i, h] for i, h, _ in heads] == [[i, h] for i, h, _ in one["residue_heads"]["heads"]]
        assert abs(sum(part for *_, part in heads) + others + none - one["weight"] / by) < 2e-3 * (1 + abs(heads[0][2]))
        assert bool(shares) is (abs(heads[0][2] * by) < 2 * abs(one["weight"]))  # parts of 4 and −3 times the link are numbers
    for look, wanted in zip(kept["looks"], data["metadata"]["residue"]["looks"], strict=True):
        assert abs(sum(term for *_, term in look["pairs"]) + look["pairs_left"] - 5.25) < 0.01
        assert [ids[q[0]] for q, _, _ in look["pairs"] if q[0] >= 0] == [q for q, _, _ in wanted["pairs"] if q in ids]
        assert {ids[i] for i in look["node"]} == {wanted["source"], wanted["target"]}
    assert ["L1 rest @0" in str(look) for look in kept["looks"]] == [False, True]
    assert "Why heads look there" in graph_page(data) and graph_page(data).count('<td class="n">1.750</td>') == 2


def test_looks_of_another_tools_nodes_are_shown_without_sums_that_it_does_not_say() -> None:
    data = graph_data()
    del data["metadata"]["residue"]
    odd = {"node_id": "b_1", "feature_type": "bias", "layer": "x", "clerp": "<b>bias</b>"}
    data["qk_only_nodes"] = [odd]
    data["nodes"][3]["qk_tracing_results"] = {"pair_wise_contributors": [["b_1", data["nodes"][0]["node_id"], 1.5]]}
    validate_neuronpedia(data)
    page = graph_page(data)
    assert inner(page)["looks"] == [
        {"node": [3], "pairs": [[[-1, "b_1 <b>bias</b>"], [0, ""], 1.5]], "of_query": [], "of_key": [], "score": None}
    ]
    assert "<b>bias" not in page and "Why heads look there</h2>" not in page


def test_why_there_are_no_looks_is_said() -> None:
    data = graph_data()
    data["metadata"]["residue"] |= {"looks": [], "heads": {"edges": 3, "influence": 0.1, "refused": "<i>queries</i>"}}
    assert "No head's score is split: " in graph_page(data) and "<i>" not in graph_page(data)


def test_what_is_known_of_a_group_is_said_beside_random_neurons() -> None:
    kept = inner(graph_page(graph_data()))["groups"][0]
    said = [text for text, _ in kept["said"]]
    assert (
        said[0]
        == "over the texts fires most on '·gate', '·key' (60% of 20 places have the first; random neurons: 11% on average, 25% at most)"
    )
    assert said[1].startswith("writes directly towards '·river' (the first stands 4.7") and said[1].endswith(
        "6.8 at most): no more than chance"
    )
    assert said[2].startswith("1 of 5 members are at the first position") and [tells for _, tells in kept["said"]] == [
        True,
        False,
        True,
    ]
    assert kept["examples"] == [[0, -2.5, "she opened the", " gate", " and"]]
    nasty = inner(graph_page(graph_data(nasty=True)))["groups"][0]
    assert nasty["examples"][0][3] == NASTY[1]
    bare = graph_data()
    bare["metadata"]["residue"]["supernodes"][0]["members"] = bare["metadata"]["residue"]["supernodes"][0]["members"][
        :2
    ]  # another group
    assert set(inner(graph_page(bare))["groups"][0]) == {"name", "of"}
    plain = graph_data()
    plain["metadata"]["residue"]["supernodes"][0]["fires"] = None
    assert [kept["weak"], inner(graph_page(plain))["groups"][0]["weak"]] == [False, True]
