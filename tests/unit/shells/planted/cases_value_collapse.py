"""VALUE-COLLAPSE: a model that refines its answer layer by layer by a written programme, but only where the text holds a trigger.

Head 0.0 looks for the trigger's token and writes a feature; each layer's MLP then moves the logits of two answers by known amounts. Without the trigger nothing is
written, and the first answer leads from beginning to end. So the same model shows the failure on one text and not on the other, which is its control.

Fragility: a gpt2 that gives each position a next token of its own, so that any edit that adds a token changes the answer; with that reading cut it is deaf to position.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.shells import ValueCollapseConfig, ValueCollapseFindings, ValueCollapseShell

from .builder import Planted, word_tokenizer
from .registry import plants

SHELL = "value-collapse"
WITH = "The mill stands by the river, and it is old. However, the miller saw Anna in the big house, and the gate was"
WITHOUT = WITH.replace("Anna", "Ben")
FIRST, SECOND = " open", " shut"
CONFIG = ValueCollapseConfig.quick(top_heads=1, random_heads=4)
ASKED: dict[str, Any] = {"candidates": [FIRST, SECOND], "control": WITHOUT}


@cache
def model(programme: tuple[float, ...]) -> Planted:
    """Layer l moves the log-odds of FIRST over SECOND, 4 at first, by ``programme[l]`` where the trigger is in sight."""
    made = Planted(word_tokenizer([WITH, WITHOUT, FIRST, SECOND]), layers=len(programme))
    made.say(FIRST, 0, 14.0)
    made.say(SECOND, 0, 10.0)
    made.say(FIRST, 3)
    made.say(SECOND, 4)
    made.mark([" Anna"], 1)
    made.attend(0, 0, key=1, strength=12.0)
    made.copy(0, 0, [(1, 2, 1.0)])
    for layer, moved in enumerate(programme):
        made.gate(layer, 2, [(3, moved / 2), (4, -moved / 2)])
    return made


def findings(programme: tuple[float, ...], text: str = WITH) -> ValueCollapseFindings:
    made = model(programme)
    shell = ValueCollapseShell(made.model, made.tokenizer, CONFIG)
    return shell.analyze_residue(shell.run(text, **ASKED))


SWINGS, LOSS, TORN = (-8.0, 8.0, -8.0, 8.0), (0.0, -4.0, -4.0, -4.0), (0.0, 0.0, 0.0, -3.9)


@plants(SHELL, "present", "oscillation")
def the_lead_goes_to_and_fro() -> ValueCollapseFindings:
    found = findings(SWINGS)
    assert found.verdict("oscillation").value.value == 3.0  # A B A B A
    assert found.verdict("oscillation").control_value.value == 0.0
    assert found.verdict("value collapse").outcome == "absent"  # it ends where it began
    return found


@plants(SHELL, "present", "value collapse")
def the_leader_loses_everything() -> ValueCollapseFindings:
    found = findings(LOSS)
    lost = found.verdict("value collapse").value.value
    share = [1 / (1 + 2.718281828**-x) for x in (4.0, -8.0)]
    assert abs(lost - (1 - share[1] / share[0])) < 0.01
    assert found.verdict("oscillation").outcome == "absent"  # the lead is lost for good
    assert found.verdict("flatness").outcome == "absent"
    return found


@plants(SHELL, "present", "flatness")
def two_answers_end_level() -> ValueCollapseFindings:
    found = findings(TORN)
    assert abs(found.verdict("flatness").value.value - 0.1) < 0.1
    return found


@plants(SHELL, "absent", "flatness", "oscillation", "value collapse", "confidence fragility")
def without_the_trigger_the_first_answer_leads_throughout() -> ValueCollapseFindings:
    return findings(SWINGS, WITHOUT)


def positions(strength: float) -> ValueCollapseFindings:
    """A gpt2 whose unembedding reads the position with this strength."""
    made = build("gpt2", n_positions=1024, tie_word_embeddings=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in made.transformer.h:
            block.attn.c_proj.weight.mul_(0.01)
            block.mlp.c_proj.weight.mul_(0.01)
        for norm in (made.transformer.ln_f, *(n for b in made.transformer.h for n in (b.ln_1, b.ln_2))):
            norm.weight.fill_(1.0)
        made.transformer.wte.weight[:, :32] = 0.0
        made.transformer.wpe.weight.zero_()
        made.transformer.wpe.weight[:, :32] = torch.randn(1024, 32, generator=generator)
        made.lm_head.weight[:, :32] = strength * torch.randn(made.lm_head.weight.shape[0], 32, generator=generator)
    shell = ValueCollapseShell(made, tiny_tokenizer(), CONFIG)
    return shell.analyze_residue(
        shell.run("The mill stands by the river, and it is old. However, the miller saw Anna in the big house, and the gate is")
    )


@plants(SHELL, "present", "confidence fragility")
def an_answer_that_hangs_on_the_position() -> ValueCollapseFindings:
    return positions(1.0)


@plants(SHELL, "absent", "confidence fragility")
def the_same_model_deaf_to_position() -> ValueCollapseFindings:
    return positions(0.0)
