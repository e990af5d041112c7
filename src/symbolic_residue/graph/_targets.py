"""What a graph explains: logits, their differences, entropy, failures, a direction, a neuron; at any position.

1. Over logits a target is one weight a vocabulary entry; its direction is those weights pulled back through the unembedding and the frozen final norm. A single
   token's logit is taken against the mean logit: a number added to all logits changes no probability, so only differences are about the answer.
2. ``top`` is the most probable tokens, as many as it takes to reach a share of the probability, each a row; they are ranked together, by their probabilities.
3. ``entropy`` is a gradient: H changes by ``Σ −p (ln p + H) · Δlogit`` for small changes. Its value is that gradient times the logits, not H itself.
4. Failures (``silence repeat collapse refusal``) are means of logits of some tokens against others: ``_failure_targets``.
5. Where the model soft-caps its logits, the uncapped ones are attributed (the cap is no sum); ``entropy`` passes the cap's slope.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError
from symbolic_residue.graph._columns import Rows
from symbolic_residue.graph._failure_targets import (
    Collapse,
    Contrast,
    failure_contrast,
    failure_named,
    FailureTarget,
    Refusal,
    Repeat,
    Silence,
)
from symbolic_residue.graph._local import LocalModel
from symbolic_residue.graph._mlp import Rule
from symbolic_residue.instrument import Instrument

__all__ = ["AskedTarget", "Direction", "Feature", "Neuron", "Target", "read_targets", "target_rows"]

TOP_SHARE, TOP_MOST = 0.95, 10


@dataclass(frozen=True, eq=False)
class Direction:
    """Ask for ``direction · residual stream`` where the MLP of a layer reads it; layer None is the last residual stream."""

    name: str
    direction: Tensor
    layer: int | None = None
    position: int = -1


@dataclass(frozen=True)
class Neuron:
    """Ask for one neuron's activation."""

    layer: int
    position: int
    neuron: int


@dataclass(frozen=True)
class Feature:
    """Ask for the activation of one feature of the graph's dictionary, where it is active."""

    layer: int
    position: int
    feature: int


AskedTarget = str | int | tuple[str | int, str | int] | Contrast | FailureTarget | Direction | Neuron | Feature
"""``"top"`` or ``"top:5"``, ``"entropy"``; a failure, by name or as an object with its options (``Silence Repeat Collapse Refusal``), or any ``Contrast`` of
tokens; a token (its text or id), alone against the mean logit, or ``(a, b)`` for a difference."""


@dataclass(frozen=True, eq=False)
class Target:
    """A target as a row.

    Attributes:
        name: in words.
        direction: ``[d_model]``.
        constant: what is added whatever the residual stream holds.
        layer: it reads what that layer's MLP reads; the number of layers: the last residual stream.
        position: of the row.
        value: what the model itself gives for it (the row must sum to it).
        weight: in ranking nodes.
        group: targets of one group are ranked by their weighted sum.
        token, probability: of a target that is one token.
    """

    name: str
    direction: Tensor
    constant: Tensor
    layer: int
    position: int
    value: float
    weight: float = 1.0
    group: int = 0
    token: int | None = None
    probability: float | None = None


def read_targets(
    instrument: Instrument, local: LocalModel, asked: Sequence[AskedTarget], position: int, rule: Rule
) -> list[Target]:
    """The targets that are asked for.

    Args:
        instrument: the model with its tokenizer.
        local: the replacement model of the prompt.
        asked: see :data:`AskedTarget`.
        position: where logits are read.
        rule: of neurons.

    Raises:
        ConfigError: nothing asked, an unknown name, text that is not one token, a position or layer out of range.
    """
    if not asked or isinstance(asked, (str, int)):
        raise ConfigError("No target was asked for." if not asked else "Give a list of targets.", todo="Ask for ['top'].")
    n = len(local)
    if not -n <= position < n:
        raise ConfigError(f"There is no position {position}.", todo=f"The prompt has positions 0 to {n - 1}.")
    reader = _Reader(instrument, local, position % n, rule)
    found: list[Target] = []
    for group, one in enumerate(asked):
        found += [replace(target, group=group) for target in reader.read(one)]
    return found


def target_rows(local: LocalModel, targets: Sequence[Target]) -> Rows:
    """The targets as rows."""
    places = [local.end if t.layer == len(local.layers) else local.mlp_place(t.layer) for t in targets]
    return Rows(
        torch.stack([t.direction for t in targets]),
        torch.stack([t.constant for t in targets]),
        torch.tensor(places),
        torch.tensor([t.position for t in targets]),
    )


class _Reader:
    def __init__(self, instrument: Instrument, local: LocalModel, position: int, rule: Rule) -> None:
        self.instrument, self.local, self.position = instrument, local, position
        self.rule: Rule = rule
        self.tokenizer: Any = instrument.loaded.tokenizer
        self.uncapped = local.uncapped_logits(position)
        self.probability = local.logits_at(position).double().softmax(-1)

    def read(self, asked: AskedTarget) -> list[Target]:
        """The rows of one thing asked for."""
        if isinstance(asked, Direction):
            return [self._direction(asked)]
        if isinstance(asked, Neuron):
            return [self._neuron(asked)]
        if isinstance(asked, Feature):
            return [self._feature(asked)]
        if isinstance(asked, tuple):
            if len(asked) != 2:
                raise ConfigError(f"{asked!r} is no difference.", todo="Give two tokens.")
            a, b = (self._token(one) for one in asked)
            if a == b:
                raise ConfigError(f"{asked!r} are the same token.")
            return [self._logits(f"{self._word(a)} − {self._word(b)}", {a: 1.0, b: -1.0})]
        if isinstance(asked, str) and (asked == "top" or asked.startswith("top:")):
            return self._top(asked)
        if asked == "entropy":
            return [self._entropy()]
        failure = failure_named(asked) if isinstance(asked, str) else asked
        if isinstance(failure, (Silence, Repeat, Collapse, Refusal)):
            before = self.local.ids[: self.position + 1].tolist()
            failure = failure_contrast(self.instrument, before, self.uncapped, failure)
        if isinstance(failure, Contrast):
            return [self._contrast(failure)]
        assert isinstance(asked, (str, int))
        token = self._token(asked)
        return [self._one(token)]

    def _word(self, token: int) -> str:
        return repr(self.tokenizer.decode([token]))

    def _token(self, asked: str | int) -> int:
        vocab = len(self.uncapped)
        if isinstance(asked, int):
            if not 0 <= asked < vocab:
                raise ConfigError(f"There is no token {asked}.", todo=f"The vocabulary has tokens 0 to {vocab - 1}.")
            return asked
        ids = self.tokenizer(asked, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            pieces = ", ".join(f"{i} {self._word(i)}" for i in ids) or "none"
            raise ConfigError(
                f"{asked!r} is {len(ids)} tokens in this tokenizer: {pieces}.",
                why="A graph explains one token's logit.",
                todo="Name one of them, or its number (#123 on the command line, 123 in Python); mind the leading space.",
            )
        return int(ids[0])

    def _logits(self, name: str, weights: dict[int, float], *, against_mean: bool = False, **more: Any) -> Target:
        vector = torch.zeros(len(self.uncapped), dtype=self.local.dtype)
        for token, weight in weights.items():
            vector[token] = weight
        vector = vector - vector.mean() if against_mean else vector
        return self._target(
            name, vector, self.local.token_direction(weights, against_mean=against_mean, position=self.position), **more
        )

    def _weighted(self, name: str, weights: Tensor, **more: Any) -> Target:
        return self._target(name, weights, self.local.logit_direction(weights, self.position), **more)

    def _target(self, name: str, weights: Tensor, read: tuple[Tensor, Tensor], **more: Any) -> Target:
        direction, constant = read
        value = float(weights.double() @ self.uncapped.double())
        return Target(name, direction, constant, len(self.local.layers), self.position, value, **more)

    def _one(self, token: int, **more: Any) -> Target:
        p = float(self.probability[token])
        return self._logits(self._word(token), {token: 1.0}, against_mean=True, token=token, probability=p, **more)

    def _top(self, asked: str) -> list[Target]:
        text = asked.partition(":")[2]
        if asked != "top" and not (text.isdecimal() and 0 < int(text) <= len(self.probability)):
            raise ConfigError(f"{asked!r} is no number of top tokens.", todo="Write top or top:5.")
        best = self.probability.topk(min(int(text) if text else TOP_MOST, len(self.probability)))
        count = len(best.values) if text else int((best.values.cumsum(0) < TOP_SHARE).sum()) + 1
        chosen = best.indices[:count].tolist()
        return [self._one(token, weight=float(self.probability[token])) for token in chosen]

    def _contrast(self, asked: Contrast) -> Target:
        sides = [[self._token(t) for t in side] for side in (asked.plus, asked.minus)]
        if not all(sides) or set(sides[0]) & set(sides[1]):
            raise ConfigError(
                f"The contrast {asked.name!r} has {'a token on both sides' if all(sides) else 'a side without tokens'}.",
                todo="Give each side tokens of its own.",
            )
        weights = {t: sign / len(set(side)) for side, sign in zip(sides, (1.0, -1.0), strict=True) for t in side}
        return self._logits(asked.name, weights)

    def _entropy(self) -> Target:
        p = self.probability
        log_p = self.local.logits_at(self.position).double().log_softmax(-1)
        entropy = -(p * log_p).sum()
        slope = -p * (log_p + entropy)
        cap = self.local.parts.logit_softcap
        if cap is not None:
            slope = slope * (1 - (self.local.logits_at(self.position).double() / cap) ** 2)
        return self._weighted(f"entropy gradient (H = {float(entropy):.3f} nats)", slope.to(self.local.dtype))

    def _direction(self, asked: Direction) -> Target:
        n, n_layers = len(self.local), len(self.local.layers)
        layer = n_layers if asked.layer is None else asked.layer
        d_model = self.local.embedded.shape[1]
        if not 0 <= layer <= n_layers or not -n <= asked.position < n or tuple(asked.direction.shape) != (d_model,):
            raise ConfigError(
                f"The direction {asked.name!r} (layer {asked.layer}, position {asked.position}, {tuple(asked.direction.shape)}) does not fit.",
                todo=f"Layers 0 to {n_layers - 1}, positions 0 to {n - 1}, width {d_model}.",
            )
        vector, position = asked.direction.to(self.local.dtype), asked.position % n
        stream = self.local.final if layer == n_layers else self.local.layers[layer].stream
        value = float(vector.double() @ stream[position].double())
        return Target(asked.name, vector, torch.zeros((), dtype=self.local.dtype), layer, position, value)

    def _neuron(self, asked: Neuron) -> Target:
        n, n_layers = len(self.local), len(self.local.layers)
        if not (0 <= asked.layer < n_layers and -n <= asked.position < n):
            raise ConfigError(f"There is no {asked}.", todo=f"Layers 0 to {n_layers - 1}, positions 0 to {n - 1}.")
        layer, position = self.local.layers[asked.layer], asked.position % n
        if not 0 <= asked.neuron < layer.n_neurons:
            raise ConfigError(f"There is no {asked}.", todo=f"Layer {asked.layer} has neurons 0 to {layer.n_neurons - 1}.")
        direction, constant = layer.read_by(torch.tensor([asked.neuron]), torch.tensor([position]), self.rule)
        value = float(layer.activations_of(torch.tensor([asked.neuron]), torch.tensor([position])))
        name = f"neuron {asked.layer}.{asked.neuron} at {position}"
        return Target(name, direction[0], constant[0], asked.layer, position, value)

    def _feature(self, asked: Feature) -> Target:
        n, units = len(self.local), self.local.units.get(asked.layer)
        if units is None or not -n <= asked.position < n:
            layers = ", ".join(map(str, sorted(self.local.units))) or "none"
            raise ConfigError(f"There is no {asked}.", todo=f"Layers with features: {layers}; positions 0 to {n - 1}.")
        position = asked.position % n
        number, at = torch.tensor([asked.feature]), torch.tensor([position])
        value = float(units.at(at, number)[0])
        direction, constant = units.read_by(number, at, self.rule)
        name = f"feature {asked.layer}.{asked.feature} at {position}"
        return Target(name, direction[0], constant[0], asked.layer, position, value)
