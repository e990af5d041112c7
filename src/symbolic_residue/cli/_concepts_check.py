"""``residue concepts check RUN``: do a concept's heads and its direction do anything? Ablation and steering, each beside its controls.

1. ``causal.json`` is made part by part; stopped, the same command goes on. Other options do the concepts named anew.
2. Layer, heads, doses and what counts as an effect are fixed beforehand; the rules stand under the tables.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from symbolic_residue.cli._common import echo_json, Json
from symbolic_residue.cli._concepts_run import bar, keep_item, open_model_of, reopened, RunArgument
from symbolic_residue.errors import ConfigError

__all__ = ["check_command", "doses_of"]


def check_command(
    run: RunArgument,
    concepts: Annotated[
        str | None, typer.Option("--concept", "-c", help="Only these, parted by commas; default: all.", show_default=False)
    ] = None,
    layer: Annotated[
        int | None, typer.Option("--layer", min=0, help="Readout and steering; default: half of the layers.", show_default=False)
    ] = None,
    heads: Annotated[int, typer.Option("--heads", min=0, help="Heads tried; 0: none.")] = 10,
    by: Annotated[str, typer.Option("--by", help="Heads by: selectivity, raw_norm, write or direct.")] = "selectivity",
    also: Annotated[str, typer.Option("--also", help="Heads ablated too, by another score; none: none.")] = "direct",
    tokens: Annotated[str, typer.Option("--tokens", help="Ablated at the pooled token (pooled) or every token (all).")] = "pooled",
    controls: Annotated[int, typer.Option("--controls", min=1, help="Control sets of an ablation.")] = 39,
    doses: Annotated[str, typer.Option("--doses", help="In lengths of the concept's difference of means.")] = "-4,2,4,8",
    samples: Annotated[int, typer.Option("--samples", min=1, help="Texts an opening.")] = 1,
    length: Annotated[int, typer.Option("--length", min=1, help="New tokens a text.")] = 30,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0: the likeliest token.")] = 0.8,
    random: Annotated[int, typer.Option("--random", min=3, help="Random directions.")] = 5,
    openings: Annotated[
        Path | None, typer.Option("--openings", help="Beginnings, one a line; default: the packaged 24.", show_default=False)
    ] = None,
    no_ablation: Annotated[bool, typer.Option("--no-ablation", help="Steering only.")] = False,
    no_steering: Annotated[bool, typer.Option("--no-steering", help="Ablation only.")] = False,
    json: Json = False,
) -> None:
    """Do a concept's heads and direction do anything? Ablation and steering beside their controls; minutes a concept."""
    from symbolic_residue.concepts import check_concepts, open_concept_run, Sampling

    opened = open_concept_run(run)  # refused before a model is opened
    names = None if concepts is None else [name.strip() for name in concepts.split(",") if name.strip()]
    if unknown := [name for name in names or () if name not in opened.directions.concepts]:
        raise ConfigError(f"There is no concept {unknown[0]!r} here.", todo=f"Concepts: {', '.join(opened.directions.concepts)}.")
    if layer is not None and layer not in opened.directions.layers:
        raise ConfigError(
            f"There are no directions of layer {layer}.", todo=f"Layers: {', '.join(map(str, opened.directions.layers))}."
        )
    if no_ablation and no_steering:
        raise ConfigError("There is nothing to do.", todo="Leave out --no-ablation or --no-steering.")
    wanted, beginnings = doses_of(doses), None if openings is None else _lines(openings)
    from symbolic_residue.instrument import Instrument

    loaded = open_model_of(run)
    opened = open_concept_run(run, loaded)
    sampling = Sampling(max_new_tokens=length, temperature=temperature, samples=samples, seed=opened.seed)
    with reopened(run, drop=lambda item: item == "causal") as folder, bar("causal check") as tell:
        found = check_concepts(
            opened, Instrument(loaded), names, ablation=not no_ablation, steering=not no_steering, layer=layer, k=heads, by=by,  # type: ignore[arg-type]
            also=None if also == "none" else also,  # type: ignore[arg-type]
            n_controls=controls, tokens=tokens, openings=beginnings, doses=wanted, sampling=sampling, n_random=random,  # type: ignore[arg-type]
            progress=tell,
        )  # fmt: skip
        keep_item(folder, "causal", f"{len(found['concepts'])} concepts", seed=opened.seed)
    shown = {name: one for name, one in found["concepts"].items() if names is None or name in names}
    if json:
        echo_json({"run": str(run), "rules": found["rules"], "concepts": shown})
        return
    _show(shown, found["rules"], run)


def doses_of(text: str) -> tuple[float, ...]:
    """``-4,2,4`` as numbers.

    Raises:
        ConfigError: something else.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{text!r} are no doses.", todo="Write numbers parted by commas: --doses=-4,2,4") from None


def _lines(path: Path) -> list[str]:
    try:
        found = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read.", why=str(error), todo="Give a text file, one beginning a line.") from error
    if len(found) < 2:
        raise ConfigError(f"{path} holds {len(found)} beginnings.", todo="Give two or more, one a line.")
    return found


def _show(found: dict[str, Any], rules: dict[str, str], run: Path) -> None:
    from rich.console import Console
    from rich.text import Text

    from symbolic_residue.cli._errors import visible

    console = Console(highlight=False)
    ablated = [(name, part) for name, one in found.items() for key, part in one.items() if key.startswith("ablation")]
    steered = {name: one["steering"] for name, one in found.items() if "steering" in one}
    if ablated:
        tables = (
            _table("concept", "heads by", "carry it?", "n", "lost [95 %]", "others", "p"),
            _table("concept", "heads by", "excess [95 %]", "predicted", "KL (others)"),
        )
        for name, one in ablated:
            loss, label = one["layers"][0], Text(visible(name))
            tables[0].add_row(
                label, one["by"], one["verdict"], str(one["scenarios"]), interval(loss["lost"]), number(loss["control"]["value"]), number(loss["p"], ".3f")
            )  # fmt: skip
            tables[1].add_row(
                label, one["by"], interval(loss["excess"]), number(one["predicted"]["value"]),
                f"{number(one['kl']['value'], '.3f')} ({number(_average(one['kl_controls']), '.3f')})",
            )  # fmt: skip
        first = ablated[0][1]
        for table in tables:
            console.print(table)
        console.print(
            f"Lost: share of the held-out contrast at layer {first['layer']} without the chosen heads, which are at their neutral mean; n counts scenarios. "
            "Heads by selectivity: those that differ most beside their spread; direct: those that write most along the direction. "
            "Others: the same of other heads, as many a layer and as large (p: rank among those sets); excess: lost − others. Predicted: what "
            f"the heads write straight to that layer. KL: of the next token, nats.\n{rules['ablation']}.\n"
        )
        for name, one in ablated:
            console.print(Text(visible(f"{name}, heads by {one['by']}: {one['why']}")))
    if steered:
        tables = (
            _table("concept", "steers?", "specific?", "heads?", "n", "dose", "NLL (random)"),
            _table("concept", "words: excess [95 %]", "p", "own texts", "read again [95 %]"),
        )
        for name, one in steered.items():
            rows, label = (
                {row["measure"]: row for row in one["comparisons"] if row["against"] == "random directions"},
                Text(visible(name)),
            )
            tables[0].add_row(
                label, one["verdict"], one["specific"] or "–", one["heads_verdict"] or "–", str(one["openings"]), f"{one['dose']:g}", _damage(one)
            )  # fmt: skip
            tables[1].add_row(
                label, interval(rows["words"]["excess"], "+.1f"), number(rows["words"]["p"], ".3f"), number(one["words_scale"]["value"], "+.1f"),
                interval(rows["later"]["excess"], "+.2f"),
            )  # fmt: skip
        for table in tables:
            console.print(table)
        console.print(
            "Words: log odds of the written words, nats, beyond random directions of the same length (p: one direction against the random ones); own "
            "texts: what the corpus's own texts of the concept show in as many words. Specific: the same against other concepts' directions; heads: the "
            "chosen heads against other heads. Read again: projection in a later layer when the text is read without steering, in standard deviations, "
            "beyond random directions; the model's own opinion, no verdict. NLL: rise without steering, nats a token. n counts openings.\n"
            f"{rules['steering']}.\nJudged dose: {rules['judged_dose']}.\n"
        )
        for name, one in steered.items():
            console.print(Text(visible(f"{name}: {one['why']}")))
    console.print(Text(f"run: {visible(run)}"), soft_wrap=True)


def _damage(one: dict[str, Any]) -> str:
    plain = next(arm for arm in one["arms"] if arm["kind"] == "unsteered")

    def rise(kind: str) -> float | None:
        gaps = [
            a - b
            for arm in one["arms"]
            if arm["kind"] == kind and arm["dose"] == one["dose"]
            for a, b in zip(arm["nll"], plain["nll"], strict=True)
            if a is not None and b is not None
        ]
        return _average(gaps)

    return f"{number(rise('direction'), '+.2f')} ({number(rise('random'), '+.2f')})"


def _average(values: list[float]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def number(value: float | None, spec: str = ".2f") -> str:
    """A number, or a dash."""
    return "–" if value is None else format(value, spec)


def interval(one: dict[str, Any], spec: str = ".2f") -> str:
    """A value with its interval, or a dash."""
    if one["value"] is None:
        return "–"
    bounds = "no interval" if one["low"] is None else f"{one['low']:{spec}}, {one['high']:{spec}}"
    return f"{one['value']:{spec}} [{bounds}]"


def _table(*titles: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, justify="left" if title.endswith("?") or title == "concept" else "right", no_wrap=True)
    return table
