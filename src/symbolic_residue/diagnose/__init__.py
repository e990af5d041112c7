"""Diagnosis: run the shells over prompts and return everything as tables, one prompt at a time."""

from symbolic_residue.diagnose._diagnose import diagnose_item, failed_item, ItemResult, shell_item
from symbolic_residue.diagnose._read import read_item

__all__ = ["ItemResult", "diagnose_item", "failed_item", "read_item", "shell_item"]
