"""``residue concepts heads RUN``: do a few heads carry each concept, or is it spread?

1. Heads are chosen inside training folds and judged on the scenario left out. The rule is the one of ``symbolic_residue.concepts.head_verdict``.
2. ``heads.json`` is made concept by concept; stopped, the same command goes on.
"""

from __future__ import annotations

from typing import Annotated, Any, TYPE_CHECKING

import typer

from symbolic_residue.cli._common import echo_json, Json
from symbolic_residue.cli._concepts_run import bar, keep_item, reopened, RunArgument
from symbolic_residue.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["heads_command"]

_SHORT = {
    "concentrated": "concentrated", "selective": "selective", "works": "works", "enough_all": "as all", "enough_residual": "as resid.",
    "not_any": "> random", "not_any_norm": "> norm", "needed": "> rest", "not_next": "> next",
}  # fmt: skip
_BY_P = ("concentrated", "selective", "works")


def heads_command(
    run: RunArgument,
    concepts: Annotated[str | None, typer.Option("--concepts", help="Only these, by commas.", show_default=False)] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", help="The negatives: baseline, others or all. Default: the run's.", show_default=False),
    ] = None,
    k: Annotated[
        int | None, typer.Option("--k", min=1, help="Heads that are a few. Default: one in eight, at most 10.", show_default=False)
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option("--layer", min=0, help="Judge this layer's heads too. Default: the middle one.", show_default=False),
    ] = None,
    by: Annotated[str, typer.Option("--by", help="Choose heads by selectivity, raw_norm or paired.")] = "selectivity",
    draws: Annotated[
        int, typer.Option("--draws", min=100, help="Permutations of the labels; a fifth of them for the readouts.")
    ] = 1000,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Default: the run's.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Does a readout of a few heads, chosen on other scenarios, tell a concept as well as everything does, and do the others not?"""
    from typing import get_args

    from symbolic_residue.concepts import Against, judge_run_heads, open_concept_run

    if against is not None and against not in get_args(Against):
        raise ConfigError(f"{against!r} is no choice of negatives.", todo=f"Use one of: {', '.join(get_args(Against))}.")
    opened = open_concept_run(run)
    names = None if concepts is None else [name.strip() for name in concepts.split(",") if name.strip()]
    with reopened(run, drop=lambda item: item == "heads") as folder, bar("heads") as tell:
        found = judge_run_heads(
            opened, concepts=names, against=against, k=k, layer=layer, by=by, n_draws=draws, n_draws_readout=max(20, draws // 5),  # type: ignore[arg-type]
            seed=seed, progress=tell,
        )  # fmt: skip
        words = [one["model"]["verdict"] for one in found["concepts"].values()]
        summary = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words)) or "none judged"
        keep_item(folder, "heads", f"{summary}; {draws} draws", seed=found["seed"])
    if json:
        echo_json({"run": str(run), **{key: value for key, value in found.items() if key != "of"}})
        return
    _show(found, run)


def _show(found: dict[str, Any], run: Path) -> None:
    from rich.console import Console
    from rich.text import Text

    from symbolic_residue.cli._errors import visible

    console = Console(highlight=False)
    for concept, reason in found["not_judged"].items():
        console.print(Text(visible(f"{concept} is not judged: {reason}")))
    if not found["concepts"]:
        return
    some = next(iter(found["concepts"].values()))["model"]
    k, layer = found["k"], found["layer"]
    verdicts = _table("concept", "verdict", "at .05", "residual p", f"layer {layer}")
    readouts = _table("concept", f"{k} heads [95 %]", "p", "all", "rest", "next", "random")
    controls = _table("concept", "same norm", "residual", "words alone")
    by_p = _table("concept", *(_SHORT[c["name"]] for c in some["conditions"] if c["name"] in _BY_P))
    by_bound = _table("concept", *(_SHORT[c["name"]] for c in some["conditions"] if c["name"] not in _BY_P))
    top = _table("concept", "selective", "first heads, p over all heads")
    reasons: dict[str, list[str]] = {}
    for concept, both in found["concepts"].items():
        one, name = both["model"], Text(visible(concept))
        verdicts.add_row(name, one["verdict"], one["verdict_strict"], _p(one["read"]["p"]), both["layer"]["verdict"])
        r, words = one["readouts"], found["words_alone"].get(concept)
        few = f"{r['few']['auc']:.2f} [{r['few']['low']:.2f}, {r['few']['high']:.2f}]"
        readouts.add_row(
            name, few, _p(r["few"]["null"]["p"]), *(f"{r[other]['auc']:.2f}" for other in ("all", "rest", "next", "random"))
        )
        controls.add_row(
            name, f"{r['random_norm']['auc']:.2f}", f"{r['residual']['auc']:.2f}", "–" if words is None else f"{words['value']:.2f}"
        )
        by_p.add_row(name, *(_condition(c) for c in one["conditions"] if c["name"] in _BY_P))
        by_bound.add_row(name, *(_condition(c) for c in one["conditions"] if c["name"] not in _BY_P))
        first = "  ".join(f"L{h['layer']}.H{h['head']} {_p(h['p'])}" for h in one["top_heads"][:3])
        top.add_row(name, f"{one['n_selective']} of {one['n_heads']}", first)
        reasons.setdefault(one["reason"], []).append(concept)
    console.print(verdicts)
    console.print(
        f"{found['n_concepts']} concepts asked, each at .05; against {found['against']}, {some['n_scenarios']} scenarios. "
        f"At .05: the verdict where only .05 of AUC counts as no loss, not {some['margin']:.2f}. Residual p: largest of the layers, family-wise.\n"
    )
    console.print(readouts)
    console.print(
        f"AUC on scenarios left out, of {k} of {found['n_heads']} heads chosen on the others. p: {some['n_draws_readout']} permutations, "
        f"choice redone. Next: the {k} after them; random: mean of {some['n_random']} sets of {k} other heads.\n"
    )
    console.print(controls)
    console.print("Same norm: other heads of about the same raw norm; residual: all layers side by side; words alone: no model.\n")
    console.print(by_p)
    console.print(by_bound)
    console.print("What few heads needs (+ holds): p; one-sided 95 % bound of the difference of AUCs, above −.10 (as) or 0 (>).\n")
    console.print(top)
    console.print()
    for reason, concepts in reasons.items():
        console.print(Text(f"{visible(', '.join(concepts))}: {reason}"))
    _families(console, found["families"])
    _overlap(console, found["overlap"])
    console.print(Text(f"run: {visible(run)}"), soft_wrap=True)


def _families(console: Any, families: dict[str, Any]) -> None:
    from rich.text import Text

    from symbolic_residue.cli._errors import visible

    console.print()
    if families["answer"] is None:
        console.print(Text(f"Families: {visible(families['reason'])}"))
        return
    console.print(Text(visible(f"{families['question']} {families['answer']}: {families['reason']}")))
    table = _table("statistic", "difference [95 %]", "p", "could be found")
    for name, one in families["statistics"].items():
        bounds = "no interval" if one["low"] is None else f"{one['low']:+.2f}, {one['high']:+.2f}"
        found = "–" if one["detectable"] is None else f"{one['detectable']:.2f}"
        table.add_row(name, f"{one['difference']:+.2f} [{bounds}]", _p(one["p"]), found)
    console.print(table)
    first, second = families["families"]
    console.print(
        Text(
            visible(
                f"{second} minus {first}, unit: concept. Concentration: log participation ratio over its null mean, "
                "lower is fewer heads; share: of the first heads; "
                "strength: log Σ selectivity² over its null mean; adjusted: concentration with strength regressed out."
            )
        )
    )


def _overlap(console: Any, overlap: dict[str, Any] | None) -> None:
    from rich.text import Text

    from symbolic_residue.cli._errors import visible

    if overlap is None:
        return
    console.print()
    shown = sorted(overlap["pairs"], key=lambda one: (one["p_pairs"], -one["overlap"]))[:8]
    table = _table("pair", "shared", "Jaccard", "under the null", "p", "p, pairs")
    for one in shown:
        table.add_row(
            Text(visible(f"{one['first']}, {one['second']}")), f"{one['overlap']} of {overlap['k']}", f"{one['jaccard']:.2f}",
            f"{one['null_mean']:.1f}", _p(one["p"]), _p(one["p_pairs"]),
        )  # fmt: skip
    console.print(table)
    significant = sum(one["p_pairs"] <= 0.05 for one in overlap["pairs"])
    console.print(
        f"First heads shared by two concepts: mean {overlap['mean']:.1f} of {overlap['k']} ({overlap['expected']:.1f} by chance, "
        f"{overlap['mean_null']:.1f} where all labels of a "
        f"scenario are permuted, p {_p(overlap['p_mean'])}); {significant} of {len(overlap['pairs'])} pairs beyond that, family-wise."
    )


def _condition(one: dict[str, Any]) -> str:
    sign = "+" if one["holds"] else "·"
    return f"{sign} {_p(one['p_or_bound']) if one['name'] in _BY_P else format(one['p_or_bound'], '+.2f')}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.0015 else f"{value:.4f}"


def _table(*titles: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, justify="left" if title in ("concept", "pair", "statistic", "verdict") else "right", no_wrap=True)
    return table
