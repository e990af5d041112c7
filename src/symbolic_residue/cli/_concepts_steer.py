"""``residue concepts steer RUN --concept NAME --prompt TEXT``: a text as it is, steered, and pushed as far in a random direction, side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from symbolic_residue.cli._common import echo_json, Json
from symbolic_residue.cli._concepts_run import open_model_of, RunArgument
from symbolic_residue.errors import ConfigError

__all__ = ["steer_command"]


def steer_command(
    run: RunArgument,
    concept: Annotated[str, typer.Option("--concept", "-c", help="Which concept.", show_default=False)],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What is continued.", show_default=False)],
    dose: Annotated[float, typer.Option("--dose", help="In lengths of the concept's difference of means; negative: away.")] = 4.0,
    layer: Annotated[
        int | None, typer.Option("--layer", min=0, help="Where; default: half of the layers.", show_default=False)
    ] = None,
    heads: Annotated[
        int, typer.Option("--heads", min=0, help="Push the outputs of so many chosen heads, not the direction.", show_default=False)
    ] = 0,
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="Push every row of the prompt too, not only those that choose a token.")
    ] = False,
    length: Annotated[int, typer.Option("--length", min=1, help="New tokens.")] = 40,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0: the likeliest token.")] = 0.8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the text and the random direction.")] = 0,
    json: Json = False,
) -> None:
    """Continue a prompt: as it is, steered, and with a random push of the same length."""
    from symbolic_residue.concepts import open_concept_run, steer_prompt

    opened = open_concept_run(run)  # refused before a model is opened
    opened.directions.vector(concept, opened.directions.layers[0] if layer is None else layer)
    if not prompt.strip():
        raise ConfigError("The prompt is empty.", todo="Give some text.")
    from symbolic_residue.instrument import Instrument

    loaded = open_model_of(run)
    opened = open_concept_run(run, loaded)
    found = steer_prompt(
        opened, Instrument(loaded), concept, prompt, dose=dose, layer=layer, heads=heads, where="all" if everywhere else "answer",
        max_new_tokens=length, temperature=temperature, seed=seed,
    )  # fmt: skip
    if json:
        echo_json(found)
        return
    from rich.console import Console
    from rich.text import Text

    from symbolic_residue.cli._errors import visible

    console = Console(highlight=False)
    what = (
        f"{len(found['heads'])} heads up to layer {found['layer']}"
        if found["heads"]
        else f"the direction at layer {found['layer']}"
    )
    console.print(Text(visible(f"{concept}, dose {dose:g}: {what}, length {found['length']:.1f} in the residual stream")))
    for one in found["texts"]:
        nll = "–" if one["nll"] is None else f"{one['nll']:.2f}"
        words = "" if one["words"] is None else f", words {one['words']:+.1f}"
        console.print(Text(f"\n{visible(one['name'])} (NLL without steering {nll} nats a token{words})", style="bold"))
        console.print(Text(visible(prompt), style="dim") + Text("\n".join(visible(line) for line in one["text"].split("\n"))))
    console.print(
        "\nOne text shows that something changes, not what: residue concepts check measures it. Words: log odds of the concept by words alone, nats."
    )
