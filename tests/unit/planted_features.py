"""A circuit of two features put into a random model and its dictionary by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from dictionary_files import random_dictionary
from graph_helpers import instrument_of

from symbolic_residue.dictionaries import Activation, LayerDictionary, Transcoders
from symbolic_residue.graph import TokenPair
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import build_prompt, CounterfactualPair

ANSWER, WRONG = 301, 310
A, B = (0, 17), (1, 23)
"""(layer, feature)"""


def plant(kind: str, seed: int = 0, threshold: float = 0.05) -> tuple[Instrument, TokenPair, Transcoders, set[tuple[int, int]]]:
    """Llama in which neuron 17 of layer 0 answers to the clean prompt's last token and writes an axis, neuron 40 of layer 1 reads it and writes the answer; and a
    dictionary whose features A and B do what those neurons do (A in a CLT writes into both layers, nothing into the later one), among random small ones.

    ``threshold``: below which share of their value on the clean prompt A and B are off.
    """
    instrument = instrument_of("llama", seed=seed, scale=0.5)
    text = "Anna put the red book on the table"
    about = CounterfactualPair(id="p", category="facts", frame="f", clean=text, corrupted=f"{text}!", answer=" a", wrong=" b")
    clean = build_prompt(instrument.loaded.tokenizer, text)
    pair = TokenPair(about, clean, replace(clean, ids=[*clean.ids[:-1], 294]), ANSWER, WRONG)
    parts, last = instrument.parts, pair.first
    read = instrument.run(pair.ids, reads=["mlp_in.0"])["mlp_in.0"]
    toward = read[0, last] - (read[1, last] @ read[0, last]) / (read[1, last] @ read[1, last]) * read[1, last]
    answer = parts.final_norm.gain() * (parts.w_u[ANSWER] - parts.w_u[WRONG]).detach()
    axis = torch.zeros(64, dtype=torch.float64)
    axis[11] = 1.0
    layers: dict[int, LayerDictionary] = {}
    clt, skip = kind == "clt", kind == "skip"
    small = random_dictionary(
        2, d_model=64, features=40, dtype=torch.float64, seed=seed, clt=clt, skip=skip, reads="mlp_in", predicts="mlp"
    )
    for (layer, feature), neuron, reads, write, size in ((A, 17, toward, axis, 0.5), (B, 40, axis, answer, 1.0)):
        reads, write = reads / reads.norm(), write / write.norm()
        mlp: Any = parts.layers[layer].mlp
        with torch.no_grad():
            mlp.gate_proj.weight[neuron] = reads
            mlp.up_proj.weight[neuron] = reads
            seen = instrument.run(pair.ids[:1], reads=[f"mlp_act.{layer}", f"mlp_in.{layer}", f"resid_post.{layer}"])
            strength = size * seen[f"resid_post.{layer}"][0, last].norm() / seen[f"mlp_act.{layer}"][0, last, neuron]
            mlp.down_proj.weight[:, neuron] = strength * write
            value = seen[f"mlp_in.{layer}"][0, last] @ reads
            one = small.layers[layer]
            encoder, bias = one.encoder.clone(), one.encoder_bias.clone()
            encoder[feature], bias[feature] = reads, -threshold * value
            decoders = {j: 0.02 * rows for j, rows in one.decoders.items()}
            for j, rows in decoders.items():
                rows[feature] = (
                    strength / (1 - threshold) * seen[f"mlp_act.{layer}"][0, last, neuron] / value * write if j == layer else 0
                )
            layers[layer] = replace(
                one, encoder=encoder, encoder_bias=bias, decoders=decoders, bias=0.02 * one.bias, activation=Activation("relu"),
                skip=None if one.skip is None else 0.02 * one.skip,
            )  # fmt: skip
    return instrument, pair, Transcoders(layers), {A, B}
