"""``residue shells disruption``: how each head's attention differs from that on matched controls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from symbolic_residue.cli._across import measure_together, tensors_of, TOGETHER
from symbolic_residue.cli._common import Adapter, Chat, Device, Dtype, Json, Model, NoReport, open_for_cli, Output, Resume, Seed
from symbolic_residue.errors import ConfigError

__all__ = ["disruption"]


def disruption(
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Pairs, one JSON object a line: prompt and control.", show_default=False)
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many last rows are read.")] = 1,
    chat: Chat = False,
    model: Model = "demo",
    adapter: Adapter = None,
    output: Output = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    resume: Resume = False,
    no_report: NoReport = False,
    json: Json = False,
) -> None:
    """Which heads attend otherwise under stress than on the matched control: sink, self, local trapping, entropy, context, distance?

    Lines of --file: {"prompt": …, "control": …}, six at least; "span" may name the command's text, and "control_span" that of the control where it is another
    (local trapping is the mass inside it; without it, inside the last eight tokens).
    """
    from symbolic_residue.prompts import MatchedItem, PromptSet, read_prompts
    from symbolic_residue.shells.across import FEWEST_PAIRS

    if file is None:
        raise ConfigError(
            "Give --file with pairs of prompts.", todo='Write one JSON object a line: {"prompt": "…", "control": "…"}.'
        )
    pairs = read_prompts(file, MatchedItem)
    matched: list[Any] = list(pairs.items)
    if len(pairs.items) < FEWEST_PAIRS:
        bad = "".join(f" Line {line.number}: {line.reason}." for line in pairs.bad[:3])
        raise ConfigError(
            f"{file} holds {len(pairs.items)} pairs that can be used.",
            why=f"With fewer than {FEWEST_PAIRS} no sign-flip p can reach 0.05.{bad}",
            todo="Give more pairs.",
        )
    spans = {item.id: (item.span, item.control_span) for item in matched}
    loaded = open_for_cli(model, adapter=adapter, dtype=dtype, device=device)
    from symbolic_residue.diagnose import disruption_item, disruption_together
    from symbolic_residue.instrument import Instrument

    instrument = Instrument(loaded)

    def together(run: Any, items: Any, progress: Any) -> Any:
        return disruption_together(
            instrument, tensors_of(run, "attention_metrics", items), item=TOGETHER, rows=rows, seed=seed
        )  # fmt: skip

    code = measure_together(
        kind="disruption",
        loaded=loaded,
        prompts=PromptSet([item.plain for item in matched], pairs.bad),
        config={"rows": rows, "chat": chat, "spans": {name: list(both) for name, both in spans.items() if any(both)}},
        output=output,
        resume=resume,
        seed=seed,
        report=not no_report,
        as_json=json,
        each=lambda item, progress: disruption_item(
            instrument, item, span=spans[item.id][0], control_span=spans[item.id][1], rows=rows, chat=chat, seed=seed
        ),
        together=together,
    )
    raise typer.Exit(code)
