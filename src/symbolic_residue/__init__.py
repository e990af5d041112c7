"""Symbolic Residue: the instrument for language-model failures."""

__version__ = "0.1.0"
