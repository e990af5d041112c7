"""LAYER-SALIENCE: a magnet, and a token that is looked away from and needed.

*Magnet*: in some layers every head looks at one word, where the text has it, and at everything alike where it has not. Ordinary texts do not have it, so they are no
excuse. In three of four layers: all other tokens are neglected (collapse). In the last two only: the number of attended tokens falls there (bottleneck).

*Needed and neglected*: see ``salience_models``: hardly any attention, a very long value.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from salience_models import ANSWER, planted
from salience_models import WITH as NEEDED
from salience_models import WITHOUT as NOT_THERE

from symbolic_residue.shells import LayerSalienceConfig, LayerSalienceFindings, LayerSalienceShell

from .builder import HEADS, Planted, word_tokenizer
from .registry import plants

SHELL = "layer-salience"
REST = "stands where the river turns, and the old miller keeps the key to the gate, while the cat sleeps on the big red book under the table"
WITH, WITHOUT = f"The Anna {REST}", f"The Ben {REST}"
CONFIG = LayerSalienceConfig.quick(top_heads=2)


@cache
def magnet(layers: tuple[int, ...]) -> LayerSalienceShell:
    """In these layers of four every head looks at the magnet."""
    made = Planted(word_tokenizer([WITH, WITHOUT]), layers=4)
    made.mark([" Anna"], 1)
    for layer in range(4):
        for head in range(HEADS):
            made.still(layer, head)
            if layer in layers:
                made.attend(layer, head, key=1, strength=9.0)
    return LayerSalienceShell(made.model, made.tokenizer, CONFIG)


def findings(layers: tuple[int, ...], text: str) -> LayerSalienceFindings:
    shell = magnet(layers)
    return shell.analyze_residue(shell.run(text))


@plants(SHELL, "present", "salience collapse")
def everything_but_the_magnet_is_neglected_in_most_layers() -> LayerSalienceFindings:
    found = findings((1, 2, 3), WITH)
    n = found.verdict("salience collapse").value.n
    assert found.verdict("salience collapse").value.value == (n - 1) / n
    return found


@plants(SHELL, "absent", "salience collapse")
def one_layer_is_not_most() -> LayerSalienceFindings:
    """The same words neglected in one of four layers."""
    found = findings((3,), WITH)
    assert found.verdict("salience collapse").value.value == 0.0
    return found


@plants(SHELL, "present", "bottleneck")
def the_layer_where_attention_narrows_is_named() -> LayerSalienceFindings:
    found = findings((2, 3), WITH)
    assert "From layer 1 to 2" in found.verdict("bottleneck").note
    later = findings((3,), WITH)
    assert "From layer 2 to 3" in later.verdict("bottleneck").note
    assert later.verdict("bottleneck").outcome == "fires"
    return found


@plants(SHELL, "absent", "salience collapse", "bottleneck", "ghosts", "premature deprioritization")
def without_the_magnet_all_is_looked_at_alike() -> LayerSalienceFindings:
    return findings((1, 2, 3), WITHOUT)


@plants(SHELL, "absent", "bottleneck")
def a_model_that_is_narrow_from_the_first_layer_on_narrows_nowhere() -> LayerSalienceFindings:
    found = findings((0, 1, 2, 3), WITH)
    assert found.verdict("salience collapse").outcome == "fires"
    return found


@cache
def needle(strength: float, text: str) -> LayerSalienceFindings:
    made: Any = planted(strength=strength)
    shell = LayerSalienceShell(*made, config=CONFIG)
    return shell.analyze_residue(shell.run(text, answer=ANSWER))


@plants(SHELL, "present", "premature deprioritization", "ghosts")
def hardly_any_attention_and_a_very_long_value() -> LayerSalienceFindings:
    return needle(300.0, NEEDED)


@plants(SHELL, "absent", "premature deprioritization", "ghosts")
def hardly_any_attention_and_nothing_to_say() -> LayerSalienceFindings:
    return needle(0.0, NEEDED)


@plants(SHELL, "absent", "premature deprioritization", "ghosts")
def the_same_model_on_a_text_without_the_token() -> LayerSalienceFindings:
    return needle(300.0, NOT_THERE)
