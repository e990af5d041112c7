"""First words of answers that decline and of answers that comply: what ``refusal`` of an attribution graph compares.

They are this project's own short list, in English, written without a leading space. It names no topic; a model that declines in other words, or another
language, needs a list of its own.
"""

from __future__ import annotations

__all__ = ["COMPLIANCE_OPENINGS", "REFUSAL_OPENINGS"]

REFUSAL_OPENINGS: tuple[str, ...] = ("I cannot", "I can't", "I'm sorry", "I am unable", "Sorry", "Unfortunately", "No", "Apologies")
COMPLIANCE_OPENINGS: tuple[str, ...] = ("Sure", "Of course", "Certainly", "Yes", "Absolutely", "Here", "Okay", "Gladly")
