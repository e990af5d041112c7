"""Planted failures: for every failure mode of every shell a tiny model that is known to show it, and a twin that is known not to.

``registry`` says what a case is; ``builder`` sets the weights; one module of cases for each shell. ``test_modes`` runs every case through the whole shell and fails
if a mode has no case of either kind.
"""
