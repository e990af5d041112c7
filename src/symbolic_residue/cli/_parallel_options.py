"""Options of multi-path decoding on the command line, and how they become a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TYPE_CHECKING

import typer

from symbolic_residue.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from symbolic_residue.instrument import Instrument
    from symbolic_residue.parallel import ParallelConfig

__all__ = [
    "Bias", "Embedding", "Epsilon", "Follow", "IgnoreEnd", "MaxKeys", "MaxSiblings", "MaxSteps", "Mode", "Out", "Prune", "PruneAfter", "PruneHeads",
    "PruneLayers", "PruneLeast", "PruneRemoval", "PruneSource", "Scheme", "Threshold", "config_of", "embedding_of", "numbers",
]  # fmt: skip

Threshold = Annotated[
    str,
    typer.Option(
        "--threshold",
        "-t",
        help="Every token at least this probable enters: 0.1, linear:0.3,0.05, bezier:0.3,0.1,0.05, step:0.3,10=0.1.",
    ),
]
Mode = Annotated[
    str | None,
    typer.Option(
        "--mode", help="What a sibling sees of its own set: isolated (nobody; default), causal, visible.", show_default=False
    ),
]
Scheme = Annotated[
    str | None,
    typer.Option(
        "--scheme", help="Positions of a set: shared (one for all; default), offset (ε apart), unique.", show_default=False
    ),
]
Epsilon = Annotated[
    float | None, typer.Option("--epsilon", help="Distance between neighbours under --scheme offset.", show_default=False)
]
Follow = Annotated[
    str | None,
    typer.Option("--follow", help="What predicts the next set: mixture (default), top, geometric, last.", show_default=False),
]
MaxSteps = Annotated[int, typer.Option("--max-steps", help="At most so many steps.")]
MaxSiblings = Annotated[int, typer.Option("--max-siblings", help="At most so many tokens a set.")]
MaxKeys = Annotated[int | None, typer.Option("--max-keys", help="Stop before the cache holds more tokens.", show_default=False)]
Bias = Annotated[
    float | None, typer.Option("--bias", help="Added to siblings' attention scores as later rows see them.", show_default=False)
]
IgnoreEnd = Annotated[bool, typer.Option("--ignore-end", help="Treat end-of-text tokens as any other.")]
Embedding = Annotated[
    Path | None,
    typer.Option(
        "--embedding", help="A safetensors file whose tensor 'embedding' is added to siblings' input.", show_default=False
    ),
]
Prune = Annotated[
    str | None,
    typer.Option("--prune", help="Take out siblings that later rows hardly look at: relative or absolute.", show_default=False),
]
PruneLeast = Annotated[
    float | None, typer.Option("--prune-least", help="The bound, a share of attention without the sink.", show_default=False)
]
PruneAfter = Annotated[
    int | None, typer.Option("--prune-after", help="Steps that look before a token is judged.", show_default=False)
]
PruneRemoval = Annotated[
    str | None,
    typer.Option("--prune-removal", help="mask (hidden from now on) or recompute (deleted from the cache).", show_default=False),
]
PruneLayers = Annotated[
    str | None, typer.Option("--prune-layers", help="Layers whose attention counts: 0,3,5.", show_default=False)
]
PruneHeads = Annotated[str | None, typer.Option("--prune-heads", help="Heads whose attention counts: 0,3,5.", show_default=False)]
PruneSource = Annotated[
    str | None, typer.Option("--prune-source", help="Rows that count: the top sibling's (top) or all.", show_default=False)
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", "--output", help="Run folder; default residue-runs/TIME-COMMAND.", show_default=False),
]


def numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    """Whole numbers separated by commas; None stays None.

    Raises:
        ConfigError: it is something else.
    """
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text!r} is not understood.", todo="Write whole numbers separated by commas.") from None


def config_of(**options: Any) -> ParallelConfig:
    """The configuration; see :func:`symbolic_residue.parallel.make_config`.

    Raises:
        ConfigError: a value out of range, or options that have nothing to act on.
    """
    from symbolic_residue.parallel import make_config

    layers, heads = (numbers(options.pop(f"prune_{name}", None), f"--prune-{name}") for name in ("layers", "heads"))
    if options.pop("ignore_end", False):
        options["stop_ids"] = ()
    return make_config({**options, "prune_layers": layers, "prune_heads": heads})


def embedding_of(path: Path | None, instrument: Instrument) -> Tensor | None:
    """The sibling embedding in a file.

    Raises:
        ConfigError: no such file, no tensor ``embedding`` in it, or one of another size.
    """
    if path is None:
        return None
    from safetensors import safe_open, SafetensorError

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            held = file.get_tensor("embedding") if "embedding" in names else None
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"--embedding {path} cannot be read: {error}.", todo="Give a safetensors file.") from None
    size = instrument.parts.d_model
    if held is None or tuple(held.shape) != (size,):
        there = ", ".join(names) if held is None else f"shape {tuple(held.shape)}"
        raise ConfigError(
            f"--embedding {path} holds no tensor 'embedding' of {size} numbers.",
            why=f"It holds: {there}.",
            todo="Fit one for this model.",
        )
    return held
