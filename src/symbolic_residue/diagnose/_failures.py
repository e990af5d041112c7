"""Which failures are healed together: those of one shell with the same right answer, a search set and a held-out set.

1. From a benchmark: planted items, the calibration split to search on, the held-out split to test on, evenly spread where only some are wanted.
2. From a suite's run: items on which a verdict with a right answer fires, null ones left out (there it is a false alarm). Frames go by turns to
   search and test, so that what is made alike is never on both sides.
3. Verdicts without a right answer are refused by name, or counted as left out where others have one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from symbolic_residue.errors import ConfigError, NoRightAnswerError
from symbolic_residue.prompts import ShellItem
from symbolic_residue.shells import shell_class, ShellBase
from symbolic_residue.shells._failure import Failure

__all__ = ["HealingGroup", "benchmark_groups", "make_failures", "run_groups"]


@dataclass(frozen=True)
class HealingGroup:
    """What is healed together.

    Attributes:
        shell: the shell's name; ``right`` the right answer in words.
        search, held_out: items, each with the failure mode it shows; with ``by_frame`` all are in ``search`` and are divided once their frames are known.
    """

    shell: str
    right: str
    search: tuple[tuple[ShellItem, str], ...] = field(repr=False)
    held_out: tuple[tuple[ShellItem, str], ...] = field(default=(), repr=False)
    by_frame: bool = False

    @property
    def name(self) -> str:
        """Shell and right answer."""
        return f"{self.shell}: {self.right}"

    def config(self) -> dict[str, Any]:
        """What was healed, for a run's configuration."""
        return {
            "shell": self.shell,
            "right": self.right,
            "search": [f"{item.id} ({mode})" for item, mode in self.search],
            "held_out": "by frame" if self.by_frame else [f"{item.id} ({mode})" for item, mode in self.held_out],
        }


def benchmark_groups(name: str, n: int | None = None, *, mode: str | None = None) -> list[HealingGroup]:
    """The failures planted in a benchmark.

    Args:
        name: a shell's or its benchmark's.
        n: at most so many items of each split and right answer.
        mode: one failure mode only.

    Raises:
        ConfigError: no such shell, benchmark or mode; nothing is planted for it.
        NoRightAnswerError: the mode has none.
    """
    from symbolic_residue.shells import SHELLS

    known = {shell_class(shell).benchmark or "": shell for shell in SHELLS}
    shell = known.get(name, name)
    kind = shell_class(shell)
    if mode is not None:
        kind.right_answer(mode)
    groups: dict[str, dict[str, list[tuple[ShellItem, str]]]] = {}
    for item in kind.items():
        shown = [m for m in item.modes if m in kind.right_answers and mode in (None, m)]
        for right in dict.fromkeys(kind.right_answers[m] for m in shown):
            first = next(m for m in shown if kind.right_answers[m] == right)
            groups.setdefault(right, {"calibration": [], "held-out": []})[item.split].append((item, first))
    if not groups:
        raise ConfigError(
            f"The benchmark of {shell} plants no failure of {mode}."
            if mode
            else f"The benchmark of {shell} plants no failure with a right answer."
        )
    return [
        HealingGroup(shell, right, tuple(_spread(sides["calibration"], n)), tuple(_spread(sides["held-out"], n)))
        for right, sides in groups.items()
    ]


def run_groups(
    shell_items: pl.DataFrame, verdicts: pl.DataFrame, *, shell: str | None = None, mode: str | None = None
) -> tuple[list[HealingGroup], dict[str, int]]:
    """The failures that a suite's run found.

    Args:
        shell_items, verdicts: tables of the run.
        shell, mode: only these.

    Returns:
        The groups, and ``shell: mode`` → number of items left out because no answer is right for that mode.

    Raises:
        ConfigError: the run holds no items of packaged benchmarks, no such mode, or no verdict fires on a planted item.
        NoRightAnswerError: verdicts fire, but no answer is right for any of them.
    """
    if shell_items.is_empty() or verdicts.is_empty():
        raise ConfigError(
            "The run holds no items of packaged benchmarks, so nothing says what the right answers are.",
            todo="Give a run of: residue shells run. Failures of your own go into a file.",
        )
    fired = verdicts.filter(pl.col("outcome") == "fires").join(
        shell_items.filter(~pl.col("null")).select("item", "shell", "benchmark_item"), on=["item", "shell"], maintain_order="left"
    )
    if mode is not None:
        for name in [shell] if shell else shell_items["shell"].unique(maintain_order=True).to_list():
            if mode in shell_class(name).no_right_answers:
                shell_class(name).right_answer(mode)
    fired = fired.filter((pl.col("shell") == shell) if shell else pl.lit(True)).filter(
        (pl.col("mode") == mode) if mode else pl.lit(True)
    )
    if fired.is_empty():
        raise ConfigError("No verdict of the run fires on a planted item, so there is nothing to heal.")
    groups: dict[tuple[str, str], dict[str, tuple[ShellItem, str]]] = {}
    left: dict[str, int] = {}
    items = {name: {item.id: item for item in shell_class(name).items()} for name in fired["shell"].unique().to_list()}
    for row in fired.iter_rows(named=True):
        kind, item = shell_class(row["shell"]), items[row["shell"]].get(row["benchmark_item"])
        if item is None:
            raise ConfigError(
                f"{row['shell']} has no item {row['benchmark_item']!r}.", why="The run was made with another version."
            )
        right = kind.right_answers.get(row["mode"])
        if right is None:
            key = f"{row['shell']}: {row['mode']}"
            left[key] = left.get(key, 0) + 1
        else:
            groups.setdefault((row["shell"], right), {}).setdefault(item.id, (item, row["mode"]))
    if not groups:
        name, _, first = next(iter(left)).partition(": ")
        shell_class(name).right_answer(first)
    return [HealingGroup(name, right, tuple(found.values()), by_frame=True) for (name, right), found in groups.items()], left


def make_failures(shell: ShellBase[Any, Any], group: HealingGroup, *, seed: int = 0) -> tuple[list[Failure], list[Failure]]:
    """The failures to search on and those held out; nothing is run. Items that have no right answer after all (two words that begin alike) are left out.

    Raises:
        NoRightAnswerError: no item of the search set has one.
        PromptError, TemplateError: an item does not fit the model.
    """

    def made(pairs: Sequence[tuple[ShellItem, str]]) -> list[Failure]:
        out: list[Failure] = []
        for item, mode in pairs:
            try:
                out += shell.failures(item, mode, seed=seed)
            except NoRightAnswerError as error:
                reasons.append(error)
        return out

    reasons: list[NoRightAnswerError] = []
    search, held_out = made(group.search), made(group.held_out)
    if not search and reasons:
        raise reasons[0]
    if group.by_frame:
        frames = list(dict.fromkeys(f.frame for f in search))
        chosen = set(frames[::2])
        search, held_out = [f for f in search if f.frame in chosen], [f for f in search if f.frame not in chosen]
    return search, held_out


def _spread(items: Sequence[Any], n: int | None) -> list[Any]:
    if n is None or n >= len(items):
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * n)] for i in range(n)]
