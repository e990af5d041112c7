"""A llama whose weights are set by hand, so that what it does is known; everything else in it is random and quiet.

1. *Ballast.* Dimension 0 of every embedding is :data:`BALLAST`, much longer than all the rest: the norms then divide by nearly the same number everywhere, and what is
   written into a dimension is read from it, as in a linear model. A *feature* is a value in one of the first :data:`FEATURES` dimensions, in the residual stream's
   own unit; ``read`` turns a factor on it into a weight behind a norm.
2. ``attend`` makes a head look, from rows with one feature (all rows have the ballast), at keys with another, with a score that may depend on distance: query and key
   lie in one rotary pair, so the score is ``strength · cos(distance · θ − phase)``.
3. ``copy`` makes the same head carry features from where it looks; ``gate`` makes an MLP write wherever a feature is above 0; ``say`` gives a token's logit from a feature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tiny_models import build, tiny_tokenizer

WIDTH, D_HEAD, HEADS, FEATURES = 64, 16, 4, 40
BALLAST = 24.0
QUIET = 0.01
_UNIT = BALLAST / math.sqrt(WIDTH)
"""What a norm divides by (the ballast alone gives BALLAST / √WIDTH)."""


def word_tokenizer(texts: Sequence[str]) -> Any:
    """A tokenizer to which every word of ``texts`` (with the space before it) is one token."""
    return tiny_tokenizer(texts=texts, vocab=4000)


class Planted:
    """The model being made.

    Args:
        tokenizer: its tokenizer.
        layers: how many.

    Attributes:
        model, tokenizer: what a shell takes.
    """

    @torch.no_grad()
    def __init__(self, tokenizer: Any, layers: int = 2, **changes: Any) -> None:
        size = max(384, len(tokenizer))
        entries = {"num_hidden_layers": layers, "vocab_size": size, "tie_word_embeddings": False, "max_position_embeddings": 1024}
        self.model, self.tokenizer = build("llama_mha", **(entries | changes)), tokenizer
        self._set: set[tuple[int, int]] = set()
        model = self.model.model
        model.norm.weight.fill_(1.0)
        model.embed_tokens.weight[:, :FEATURES] = 0.0
        model.embed_tokens.weight[:, 0] = BALLAST
        self.model.lm_head.weight[:, :FEATURES] = 0.0
        self.model.lm_head.weight *= 0.5
        for layer in model.layers:
            layer.input_layernorm.weight.fill_(1.0)
            layer.post_attention_layernorm.weight.fill_(1.0)
            layer.self_attn.o_proj.weight *= QUIET
            layer.mlp.down_proj.weight *= QUIET

    def token(self, word: str) -> int:
        ids = self.tokenizer.encode(word, add_special_tokens=False)
        assert len(ids) == 1, (word, [self.tokenizer.decode([i]) for i in ids])
        return ids[0]

    @torch.no_grad()
    def mark(self, words: Sequence[str | int], feature: int, value: float = 4.0) -> None:
        """The words' embeddings have a feature."""
        ids = [w if isinstance(w, int) else self.token(w) for w in words]
        self.model.model.embed_tokens.weight[ids, feature] = value

    @torch.no_grad()
    def still(self, layer: int, head: int) -> None:
        """The head looks at everything alike."""
        attn, rows = self.model.model.layers[layer].self_attn, slice(head * D_HEAD, (head + 1) * D_HEAD)
        self._set.add((layer, head))
        attn.q_proj.weight[rows] = 0.0
        attn.k_proj.weight[rows] = 0.0

    @torch.no_grad()
    def attend(
        self, layer: int, head: int, key: int, strength: float, *, query: int = 0, at: tuple[float, float] = (BALLAST, 4.0),
        pair: int = 7, phase: float = 0.0,
    ) -> None:  # fmt: skip
        """The score of a key whose feature is ``at[1]``, from a row whose query feature is ``at[0]``, is ``strength · cos(distance · θ − phase)``; others' is 0.

        Called again on the same head it adds: another query or key feature.
        """
        attn, first = self.model.model.layers[layer].self_attn, head * D_HEAD
        if (layer, head) not in self._set:
            self.still(layer, head)
        size = strength * math.sqrt(D_HEAD)
        attn.q_proj.weight[first + pair, query] = _UNIT / at[0]
        attn.k_proj.weight[first + pair, key] = size * math.cos(phase) * _UNIT / at[1]
        attn.k_proj.weight[first + pair + D_HEAD // 2, key] = size * math.sin(phase) * _UNIT / at[1]

    @torch.no_grad()
    def copy(self, layer: int, head: int, features: Sequence[tuple[int, int, float]]) -> None:
        """The head writes ``factor`` times the attended source feature into the target feature, for each (source, target, factor)."""
        attn, first = self.model.model.layers[layer].self_attn, head * D_HEAD
        attn.v_proj.weight[first : first + D_HEAD] = 0.0
        attn.o_proj.weight[:, first : first + D_HEAD] = 0.0
        for i, (source, target, factor) in enumerate(features):
            attn.v_proj.weight[first + i, source] = _UNIT
            attn.o_proj.weight[target, first + i] = factor

    @torch.no_grad()
    def gate(self, layer: int, feature: int, writes: Sequence[tuple[int, float]], *, unit: int = 0, at: float = 4.0) -> None:
        """Where the feature is ``at``, the MLP writes each (target, value); in proportion where it is another, nothing where it is 0 or less."""
        mlp = self.model.model.layers[layer].mlp
        mlp.gate_proj.weight[unit] = 0.0
        mlp.up_proj.weight[unit] = 0.0
        mlp.down_proj.weight[:, unit] = 0.0
        mlp.gate_proj.weight[unit, feature] = 20.0 * _UNIT / at
        mlp.up_proj.weight[unit, 0] = _UNIT / BALLAST
        for target, value in writes:
            mlp.down_proj.weight[target, unit] = value / 20.0

    @torch.no_grad()
    def say(self, word: str | int, feature: int, factor: float = 1.0) -> None:
        """The token's logit is ``factor`` times the feature (beside what else it is); feature 0 is a constant, ``factor`` then the logit itself."""
        token = word if isinstance(word, int) else self.token(word)
        self.model.lm_head.weight[token, feature] = factor * _UNIT if feature else factor * _UNIT / BALLAST
