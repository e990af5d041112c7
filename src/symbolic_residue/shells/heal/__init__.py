"""Interventions that heal: the smallest edit, from a fixed menu, that restores the right answer; tested on held-out failures beside random edits."""

from symbolic_residue.shells.heal._failure import Failure, failure_of
from symbolic_residue.shells.heal._heal import heal, Healing
from symbolic_residue.shells.heal._items import memory_failures
from symbolic_residue.shells.heal._menu import Dose, KINDS, Menu

__all__ = ["KINDS", "Dose", "Failure", "Healing", "Menu", "failure_of", "heal", "memory_failures"]
