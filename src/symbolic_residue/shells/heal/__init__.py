"""Interventions that heal: the smallest edit, from a fixed menu, that restores the right answer; tested on held-out failures beside random edits."""

from symbolic_residue.shells._failure import Ask, Failure
from symbolic_residue.shells.heal._failure import failure_of
from symbolic_residue.shells.heal._heal import heal
from symbolic_residue.shells.heal._menu import Dose, KINDS, Menu
from symbolic_residue.shells.heal._tables import Healing

__all__ = ["KINDS", "Ask", "Dose", "Failure", "Healing", "Menu", "failure_of", "heal"]
