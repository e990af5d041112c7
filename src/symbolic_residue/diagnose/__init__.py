"""Diagnosis: run the shells over prompts and return everything as tables, one prompt at a time."""

from symbolic_residue.diagnose._across import (
    across_row,
    attention_item,
    build_item,
    cross_item,
    cross_together,
    disruption_item,
    disruption_together,
    errors_item,
    errors_together,
)
from symbolic_residue.diagnose._diagnose import diagnose_item, failed_item, ItemResult, items_row, shell_item
from symbolic_residue.diagnose._failures import benchmark_groups, HealingGroup, make_failures, run_groups
from symbolic_residue.diagnose._graphs import (
    GRAPHS,
    graphs_item,
    item_failures,
    Shelf,
    silent_prompts,
    suite_failures,
    suite_graphs,
)
from symbolic_residue.diagnose._heal import heal_item
from symbolic_residue.diagnose._read import read_item
from symbolic_residue.diagnose._silence import silence_item, silence_together
from symbolic_residue.diagnose._suite import choose_items, item_name, suite_item
from symbolic_residue.diagnose._suite_across import add_across, suite_across

__all__ = [
    "GRAPHS",
    "HealingGroup",
    "ItemResult",
    "Shelf",
    "across_row",
    "add_across",
    "attention_item",
    "benchmark_groups",
    "build_item",
    "choose_items",
    "cross_item",
    "cross_together",
    "diagnose_item",
    "disruption_item",
    "disruption_together",
    "errors_item",
    "errors_together",
    "failed_item",
    "graphs_item",
    "heal_item",
    "item_failures",
    "item_name",
    "items_row",
    "make_failures",
    "read_item",
    "run_groups",
    "shell_item",
    "silence_item",
    "silence_together",
    "silent_prompts",
    "suite_across",
    "suite_failures",
    "suite_graphs",
    "suite_item",
]
