"""``residue shell temporal-inference``: does order survive a gap?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from symbolic_residue.cli._common import File, Prompt
from symbolic_residue.cli._failure_graphs import GraphNodes, Graphs
from symbolic_residue.cli._shell_common import chosen, Common, measuring, run_shell
from symbolic_residue.errors import ConfigError, PromptFileError

__all__ = ["temporal_inference"]


@measuring
def temporal_inference(
    prompt: Prompt = None,
    file: File = None,
    distance: Annotated[int, typer.Option("--distance", min=1, help="Tokens of the shift.")] = 15,
    direction: Annotated[str, typer.Option("--direction", help="forward or backward.")] = "forward",
    mode: Annotated[str, typer.Option("--mode", help="tokens (dropped or repeated) or positions (moved).")] = "tokens",
    genre: Annotated[str, typer.Option("--genre", help="narrative, factual or list: the reference text.")] = "narrative",
    first: Annotated[str | None, typer.Option("--first", help="An event: 'Mara fed the cat'.", show_default=False)] = None,
    second: Annotated[str | None, typer.Option("--second", help="Another event.", show_default=False)] = None,
    relation: Annotated[str, typer.Option("--relation", help="order or cause: what is asked about the events.")] = "order",
    echo: Annotated[str, typer.Option("--echo", help="none, right or wrong: restate the story.")] = "none",
    top_heads: Annotated[int | None, typer.Option("--top-heads", help="Heads to ablate; 0: verdicts only.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The options of a suite.")] = False,
    graphs: Graphs = 0,
    graph_nodes: GraphNodes = 200,
    *,
    common: Common,
) -> None:
    """TEMPORAL-INFERENCE: does order survive a gap? Give a text, two events, or both; a --file holds items of the benchmark's form."""
    from symbolic_residue.prompts import BadLine, PromptSet, TemporalItem
    from symbolic_residue.shells import EventPair, TemporalInferenceConfig, TemporalInferenceShell

    if (first is None) != (second is None):
        raise ConfigError("One event alone has no order.", todo="Give --first and --second.")
    if (file is not None) == (prompt is not None or first is not None):
        raise ConfigError(
            "Give a text or two events, or --file with items, not both." if file is not None else "There is nothing to probe."
        )
    given = chosen(top_heads=top_heads)
    config = TemporalInferenceConfig.quick(**given) if quick else TemporalInferenceConfig.make(**given)
    items: list[Any] = []
    bad: list[BadLine] = []
    if file is not None:
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise PromptFileError(f"{file} cannot be read: {error}.") from error
        for number, line in enumerate(lines, start=1):
            try:
                items.append(TemporalItem.model_validate_json(line))
            except ValueError as error:
                bad.append(BadLine(number, line, str(error).splitlines()[-2].strip() if "\n" in str(error) else str(error)))
    else:
        from pydantic import ValidationError

        try:
            pair = (
                EventPair.model_validate({"first": first, "second": second, "relation": relation, "echo": echo}) if first else None
            )
        except ValidationError as error:
            raise ConfigError(f"The events cannot be used: {error.errors()[0]['msg']}.") from None

        class One:
            id = "prompt"
            shown = prompt or f"{first} / {second}"

        items.append(One)
    shell = TemporalInferenceShell(loaded=common.open(), config=config)

    def run(item: Any, told: Any) -> Any:
        if file is not None:
            return shell.run_item(item, seed=common.seed, progress=told)
        asked: Any = {"direction": direction, "mode": mode, "genre": genre}
        return shell.run(prompt, shift_distance=distance, pair=pair, seed=common.seed, progress=told, **asked)

    run_shell(common, shell, PromptSet(items, bad), run, shown=lambda item: item.shown, graphs=(graphs, graph_nodes))
