"""Diagnosis: run the shells over prompts and return everything as tables, one prompt at a time."""

from symbolic_residue.diagnose._diagnose import diagnose_item, failed_item, ItemResult, items_row, shell_item
from symbolic_residue.diagnose._failures import benchmark_groups, HealingGroup, make_failures, run_groups
from symbolic_residue.diagnose._heal import heal_item
from symbolic_residue.diagnose._read import read_item
from symbolic_residue.diagnose._suite import choose_items, item_name, suite_item

__all__ = [
    "HealingGroup",
    "ItemResult",
    "benchmark_groups",
    "choose_items",
    "diagnose_item",
    "failed_item",
    "heal_item",
    "item_name",
    "items_row",
    "make_failures",
    "read_item",
    "run_groups",
    "shell_item",
    "suite_item",
]
