"""A token tree in the terminal: growing live, and as it ended.

The newest steps are shown as columns: the top token first and bold, its siblings below in falling probability; taken-out ones struck through, endings as ⟂.
Everything from the model is shown as text: no markup is read in it, control characters are escapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TYPE_CHECKING

if TYPE_CHECKING:
    from symbolic_residue.parallel import Grown, Tree, TreeStep

__all__ = ["growing", "show_tree"]

_SHOWN = 6
"""Siblings of a set in the live view; the rest are counted."""


def _cell(step: TreeStep) -> Any:
    from rich.text import Text

    from symbolic_residue.figures import visible

    cell = Text()
    for rank, token in enumerate(step.tokens[:_SHOWN]):
        style = "bold" if rank == 0 else "strike dim" if token.gone is not None else "dim" if token.probability < 0.1 else ""
        cell.append("\n" if rank else "").append(visible(token.text, spaces="ends")[:18], style=style)
        cell.append(f" {token.probability:.2f}", style="cyan" if rank == 0 else "dim cyan")
    if len(step.tokens) > _SHOWN:
        cell.append(f"\n+{len(step.tokens) - _SHOWN} more", style="dim")
    for ending in step.endings:
        cell.append(f"\n⟂ {ending.probability:.2f}", style="yellow")
    return cell


def tree_view(tree: Tree, width: int) -> Any:
    """The newest steps side by side, under the text so far."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from symbolic_residue.figures import visible

    table = Table(box=None, pad_edge=False, padding=(0, 1))
    steps = tree.steps[-max(width // 14, 1) :]
    for step in steps:
        table.add_column(f"step {step.number}", header_style="dim", no_wrap=True)
    if steps:
        table.add_row(*(_cell(step) for step in steps))
    head = Text(visible(tree.prompt_text), style="dim").append(visible(tree.text), style="bold not dim")
    return Group(head, table)


@contextmanager
def growing(live: bool) -> Iterator[Any]:
    """``on_step`` of a decoding: shows the tree as it grows, where ``live`` is wanted and the output is a terminal; else None."""
    from rich.console import Console

    console = Console()
    if not live or not console.is_terminal:
        yield None
        return
    from rich.live import Live

    with Live(console=console, transient=True, auto_refresh=False) as view:

        def on_step(grown: Grown) -> None:
            view.update(tree_view(grown.trees[0], console.width), refresh=True)

        yield on_step


def show_tree(item: str, tree: Tree, *, steps: bool) -> None:
    """Text, alternatives, and (``steps``) a row of statistics for each step."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from symbolic_residue.figures import visible

    console = Console(highlight=False)
    several = sum(len(step.tokens) > 1 for step in tree.steps)
    tokens = sum(len(step.tokens) for step in tree.steps)
    console.print(
        f"[bold]{escape(visible(item))}[/]: {escape(visible(tree.prompt_text))}[bold]{escape(visible(tree.text))}[/]",
        soft_wrap=True,
    )
    console.print(f"alternatives: {escape(visible(tree.rendered(pruned=True)))}", soft_wrap=True)
    if steps and tree.steps:
        table = Table(box=None, pad_edge=False)
        for name in ("step", "threshold", "above", "size", "mass", "entropy", "disagreement"):
            table.add_column(name, justify="right", header_style="dim")
        table.add_column("set", header_style="dim")
        for step in tree.steps:
            stats = step.stats
            table.add_row(
                str(step.number),
                f"{stats.threshold:.3g}",
                str(stats.above),
                str(len(step.tokens)),
                f"{stats.mass:.3f}",
                f"{stats.entropy:.3f}",
                f"{stats.disagreement:.3f}",
                _line(step),
            )
        console.print(table)
        console.print("[dim]entropy and disagreement in nats; ~ taken out, ⟂ end of text (not fed)[/]")
    gone = sum(t.gone is not None for step in tree.steps for t in step.tokens)
    taken = f", {gone} taken out" if gone else ""
    console.print(
        f"{len(tree.steps)} steps, {tokens} tokens, {several} sets of several{taken}; {tree.n_keys} keys in the cache; stop: {tree.stop}",
        soft_wrap=True,
    )


def _line(step: TreeStep) -> Any:
    from rich.text import Text

    from symbolic_residue.figures import visible

    line = Text()
    for rank, token in enumerate(step.tokens):
        mark = "~" if token.gone is not None else ""
        line.append("  " if rank else "").append(f"{mark}{visible(token.text, spaces='ends')}", style="" if rank else "bold")
        line.append(f" {token.probability:.2f}", style="dim")
    for ending in step.endings:
        line.append(f"  ⟂ {ending.probability:.2f}", style="yellow")
    return line
