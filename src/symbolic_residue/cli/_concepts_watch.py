"""``residue concepts watch RUN``: text is generated, and every token is scored against the directions as it comes.

1. A single text is shown token by token: z of each concept, in colour and with a star from 2 on where at most one in twenty directions of permuted labels
   reaches it at that token, dim otherwise. Several texts are shown as a bar. Where standard output is no terminal there is no colour.
2. Then a line a concept: mean z over the generated tokens, where neutral texts lie, the share of tokens from 2 on beside that of neutral tokens and of the
   controls, and the verdict with its n.
3. ``watch/NAME.json`` in the run folder holds every token, z and verdict; a name is never written over. Ctrl-C keeps what was seen.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, TYPE_CHECKING

import typer

from symbolic_residue.cli._common import echo_json, gather_prompts, Json, NoReport, Seed
from symbolic_residue.cli._concepts_run import bar, keep_item, number_list, open_model_of, reopened, RunArgument
from symbolic_residue.errors import ConfigError, PromptFileError, RunExistsError

if TYPE_CHECKING:
    from symbolic_residue.concepts import WatchedToken, Watcher

__all__ = ["watch_command"]

_RARE = 0.05
"""Share of controls that may reach a token's z where it is shown as high."""


def watch_command(
    run: RunArgument,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="What the model goes on from.", show_default=False)] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", "-f", help="Prompts, one JSON object a line.", show_default=False)
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="Such as 12,20; default: each concept's layer of the report.", show_default=False)
    ] = None,
    concepts: Annotated[
        str | None, typer.Option("--concepts", help="Only these, parted by commas; default: all ranked.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, help="At most so many a text.")] = 40,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Texts a prompt; more than one needs --temperature.")] = 1,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 takes the most probable token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, help="Draw among the k most probable.", show_default=False)] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Draw from the fewest tokens that hold this probability.", show_default=False)
    ] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="As a user's turn; default: as the training texts.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Of the file in RUN/watch; default: the next number.", show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Texts at a time.")] = 8,
    seed: Seed = 0,
    no_report: NoReport = False,
    json: Json = False,
) -> None:
    """Score every generated token against the concepts, as it comes."""
    from symbolic_residue.concepts import choose_tracks, open_concept_run

    asked = gather_prompts(prompt, prompts)
    if asked.bad:
        first = asked.bad[0]
        raise PromptFileError(f"{prompts}, line {first.number}: {first.reason}", todo="Mend the line; nothing was run.")
    closed = open_concept_run(run)  # refused before a model is opened
    named = None if concepts is None else [one.strip() for one in concepts.split(",") if one.strip()]
    tracks = choose_tracks(closed, named, None if layers is None else number_list(layers, "--layers"))
    name = _name(run, name)
    loaded = open_model_of(run)
    from symbolic_residue.concepts import read_record, watch, watch_record, watch_reference, Watcher, write_record
    from symbolic_residue.instrument import Instrument
    from symbolic_residue.prompts import build_prompt

    opened, instrument = open_concept_run(run, loaded), Instrument(loaded)
    as_chat = opened.directions.chat if chat is None else chat
    ready = []
    for one in asked.items:
        turns = None if one.messages is None else [{"role": turn["role"], "content": turn["content"]} for turn in one.messages]
        limit = loaded.parts.max_context
        ready.append(build_prompt(loaded.tokenizer, one.prompt, messages=turns, chat=as_chat and turns is None, max_tokens=limit))
    with bar("reference") as tell:
        references = watch_reference(opened, instrument, sorted({track.layer for track in tracks}), progress=tell)
    watcher = Watcher(opened, tracks, references)
    settings = {
        "prompts": [one.id for one in asked.items], "max_new_tokens": max_new_tokens, "draws": draws, "temperature": temperature, "top_k": top_k,
        "top_p": top_p, "chat": as_chat, "seed": seed,
    }  # fmt: skip
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens, "draws": draws, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed,
        "batch_size": batch_size,
    }  # fmt: skip
    n = len(ready) * draws
    with reopened(run) as folder:
        if n == 1 and not json:
            live = _Live(watcher)
            texts = watch(instrument, watcher, ready, **options, on_token=lambda _, token: live.add(token))
        else:
            with bar("watching") as tell:
                done = [0]

                def count(number: int, token: WatchedToken) -> None:
                    done[0] += token.generated
                    tell(f"text {number + 1} of {n}", min(1.0, done[0] / (n * max_new_tokens)))

                texts = watch(instrument, watcher, ready, **options, on_token=count)
        provenance = loaded.provenance.model_copy(update={"seed": seed}).model_dump(mode="json")
        path = write_record(run, f"watch/{name}.json", {"name": name} | watch_record(watcher, ready, texts, settings, provenance))
        stopped = any(one.stop == "interrupted" for one in texts) or len(texts) < n
        keep_item(folder, f"watch: {name}", f"{len(texts)} of {n} texts" + (", interrupted" if stopped else ""), seed=seed)
        if stopped:
            raise KeyboardInterrupt
    page = None
    if not no_report and (run / "quality.json").exists():
        from symbolic_residue.report import render_report

        page = render_report(run)
    record = read_record(run, f"watch/{name}.json") or {}
    if json:
        echo_json({"run": str(run), "watched": str(path), "report": str(page) if page else None} | record)
        return
    _show(watcher, record, path, page)


def _name(run: Path, name: str | None) -> str:
    """The name to write under.

    Raises:
        ConfigError: it is no file name.
        RunExistsError: it is taken.
    """
    folder = run / "watch"
    if name is None:
        taken = {one.stem for one in folder.glob("*.json")} if folder.is_dir() else set()
        return next(f"{i:03d}" for i in range(1, 10**6) if f"{i:03d}" not in taken)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ConfigError(f"{name!r} is no name for a file.", todo="Use letters, digits, dots, dashes and underscores.")
    if (folder / f"{name}.json").exists():
        raise RunExistsError(
            f"{folder / name}.json is already there.", why="It is never written over.", todo="Choose another --name."
        )
    return name


class _Live:
    """Tokens of one text, a line each, as they come."""

    def __init__(self, watcher: Watcher) -> None:
        from rich.console import Console

        from symbolic_residue.cli._errors import visible

        self.console = Console(highlight=False)
        self.tracks = watcher.tracks
        self.heads = _heads(watcher)
        self.fits = 20 + 6 * len(self.tracks) <= self.console.width
        if self.fits:
            self.console.print(" " * 20 + "".join(f"{head:>6}" for head in self.heads), markup=False)
        legend = ", ".join(
            f"{head} {track.concept} (layer {track.layer})" for head, track in zip(self.heads, self.tracks, strict=True)
        )
        self.console.print(visible(legend), style="dim", markup=False)
        self.console.print(
            "z of each token as the model reads it, by neutral tokens; * from 2 on, where at most 5 % of the permuted directions reach it; · prompt"
            + ("" if self.fits else f"; the 4 largest of {len(self.tracks)}"),
            style="dim", markup=False,
        )  # fmt: skip

    def add(self, token: WatchedToken) -> None:
        """Print one."""
        from rich.text import Text

        from symbolic_residue.figures import visible

        line = Text(f"{' ' if token.generated else '·'} {visible(token.text)[:16]:<17} ", style="" if token.generated else "dim")
        if token.z is None or token.reached is None:
            line.append("      no score", style="dim")
        elif self.fits:
            for z, reached in zip(token.z, token.reached, strict=True):
                line.append(f"{_cell(z, reached):>6}", style=_style(z, reached))
        else:
            for at in sorted(range(len(token.z)), key=lambda k: -token.z[k])[:4]:  # type: ignore[index]
                z, reached = token.z[at], token.reached[at]
                line.append(f" {self.heads[at]}{_cell(z, reached):>6}", style=_style(z, reached))
        self.console.print(line, soft_wrap=True)


def _cell(z: float, reached: float) -> str:
    return f"{z:+.1f}" + ("*" if _high(z, reached) else " ")


def _high(z: float, reached: float) -> bool:
    from symbolic_residue.concepts import WATCH_THRESHOLD

    return z >= WATCH_THRESHOLD and reached <= _RARE


def _style(z: float, reached: float) -> str:
    return "bold red" if _high(z, reached) else "dim"


def _heads(watcher: Watcher) -> list[str]:
    """A short name for each track, no two alike."""
    several = len(watcher.layers) > 1 and len({t.concept for t in watcher.tracks}) < len(watcher.tracks)
    heads: list[str] = []
    for track in watcher.tracks:
        base = re.sub(r"\W", "", track.concept)[: 2 if several else 4] or "c"
        head = f"{base}{track.layer}" if several else base
        at = 1
        while head in heads:
            at += 1
            head = f"{base[:3]}{at}"
        heads.append(head)
    return heads


def _show(watcher: Watcher, record: dict[str, Any], path: Path, page: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from symbolic_residue.cli._errors import visible

    console = Console(highlight=False)
    for one in record["texts"] if len(record["texts"]) <= 3 else ():
        console.print(Text(visible(one["prompt_text"]), style="dim").append(visible(one["text"]), style="not dim"))
    first = Table(box=None, pad_edge=False)
    for title in ("concept", "layer", "mean z", "above, sd [95 %]", "p", "p, ctl", "verdict"):
        first.add_column(title, justify="left" if title in ("concept", "verdict") else "right", no_wrap=True)
    second = Table(box=None, pad_edge=False)
    for title in ("concept", "layer", "neutral texts", "from 2 on", "neutral [95 %]", "controls"):
        second.add_column(title, justify="left" if title == "concept" else "right", no_wrap=True)
    for one in record["verdicts"]:
        name, layer = Text(visible(one["concept"])), str(one["layer"])
        apart = "–" if one["difference"] is None else f"{one['difference']:+.1f}"
        if one["low"] is not None:
            apart += f" [{one['low']:+.1f}, {one['high']:+.1f}]"
        between = "–" if one["neutral_low"] is None else f"{one['neutral_low']:+.1f} to {one['neutral_high']:+.1f}"
        style = {"above": "bold red", "not above": "", "undecided": "dim"}[one["outcome"]]
        first.add_row(
            name, layer, _signed(one["mean_z"]), apart, _p(one["p_family"]), _p(one["p_control"]), Text(one["outcome"], style=style)
        )  # fmt: skip
        second.add_row(
            name, layer, between, _share(one["share"]),
            f"{one['neutral_share']:.3f} [{one['neutral_share_low']:.3f}, {one['neutral_share_high']:.3f}]", _share(one["control_share"]),
        )  # fmt: skip
    verdict = record["verdicts"][0]
    console.print(first)
    console.print(
        f"n = {verdict['n']} {verdict['n_counts']}"
        + (". It is said of this prompt alone. " if verdict["n"] == 1 else "; the intervals are over prompts. ")
        + "Above: in sd between neutral texts as long, "
        f"from {verdict['n_scenarios']} tellings. p is over all {len(record['verdicts'])} rows; p, ctl: among {watcher.n_controls} permuted labelings "
        "on the same texts.\n",
        markup=False,
    )
    console.print(second)
    console.print(
        "Neutral texts: where 95 % of their mean z lie. From 2 on: share of the generated tokens with z ≥ 2, of neutral tokens, and of the same tokens "
        "along permuted directions; intervals count scenarios, for tokens of a text are no samples.\n",
        markup=False,
    )
    undecided: dict[str, list[str]] = {}
    for one in record["verdicts"]:
        if one["outcome"] == "undecided":
            undecided.setdefault(one["reason"], []).append(one["concept"])
    for reason, names in undecided.items():
        console.print(Text(visible(f"undecided ({', '.join(dict.fromkeys(names))}): {reason}"), style="dim"))
    console.print(Text(f"watched: {visible(path)}"), soft_wrap=True)
    if page is not None:
        console.print(Text(f"report: {visible(page)}"), soft_wrap=True)


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
