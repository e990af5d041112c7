"""An MLP as neurons: what each reads, how it responds, what it writes.

1. Gated: ``a = act(g) · u`` with ``g = W_g x + b_g``, ``u = W_u x + b_u``. Plain: ``a = act(g)``. The MLP writes ``a @ W_d + b_d``.
2. The linears are found by the names that transformers gives them (``_NAMES``), and *checked by their numbers*: the activations rebuilt from the MLP's input
   must be those that the model had, else the MLP is refused.
3. On a prompt a neuron is replaced by the linear map ``a = c_g (w_g · x + b_g) + c_u (w_u · x + b_u)`` whose coefficients are frozen. Rules:
   ``half``: c_g = ½ act(g) u / g, c_u = ½ act(g): half of the credit to each factor (the half rule of RelP, Jafari et al. 2025);
   ``gate``: c_u = act(g), c_g = 0: the gate is taken as given. Plain neurons have c_g = act(g) / g under both. All conserve: the map gives back ``a`` itself.
4. A mixture of experts has the neurons of all its experts, expert after expert (a shared expert last). ``a`` then holds the router's weight as a factor,
   frozen, and is 0 for experts that the token was not sent to.
5. Where g is 0, act(g) / g is the derivative there (½ for SiLU and GELU, 0 for ReLU as torch has it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args, Literal

import torch
from torch import nn, Tensor

from symbolic_residue.errors import ConfigError, UnsupportedModelError
from symbolic_residue.models import LayerParts, linear_bias, weight_in_out

__all__ = ["NeuronMlp", "Rule", "find_mlp"]

Rule = Literal["half", "gate"]

_NAMES: tuple[tuple[str | None, str, bool], ...] = (
    # (gate, up, both in one linear with the gate first)
    ("gate_proj", "up_proj", False),
    (None, "gate_up_proj", True),
    ("w1", "w3", False),
    (None, "input_linear", True),
    (None, "up_proj", False),
    (None, "c_fc", False),
    (None, "dense_h_to_4h", False),
    (None, "fc1", False),
)
_ACTIVATIONS = ("act_fn", "activation_fn", "activation", "act")


@dataclass(frozen=True, eq=False)
class NeuronMlp:
    """Weights ``[d_model, neuron]`` of an MLP's first linear(s), ``[neuron, d_model]`` of its last, and its activation.

    ``gate`` is what the activation acts on; ``up`` is None in a plain MLP.
    """

    gate: Tensor
    gate_bias: Tensor | None
    up: Tensor | None
    up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    act: Any
    route: Callable[[Tensor], Tensor] | None = None
    """Of a mixture of experts: the MLP's input ``[position, d_model]`` to the router's weight of every neuron ``[position, neuron]``."""

    def read(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """``g`` and ``u``, ``[position, neuron]``, from the MLP's input ``[position, d_model]``."""
        g = x @ self.gate if self.gate_bias is None else x @ self.gate + self.gate_bias
        if self.up is None:
            return g, None
        return g, x @ self.up if self.up_bias is None else x @ self.up + self.up_bias

    def read_some(self, x: Tensor, neurons: Tensor) -> tuple[Tensor, Tensor | None]:
        """``g`` and ``u`` of single neurons, ``[unit]``, each from its own MLP input ``x [unit, d_model]``."""

        def one(weight: Tensor, bias: Tensor | None) -> Tensor:
            found = (x * weight[:, neurons].T).sum(-1)
            return found if bias is None else found + bias[neurons]

        return one(self.gate, self.gate_bias), None if self.up is None else one(self.up, self.up_bias)

    def respond(self, g: Tensor, u: Tensor | None, route: Tensor | None) -> Tensor:
        """The activations ``a``; ``route``: the router's weights, of a mixture of experts."""
        a = self.act(g) if u is None else self.act(g) * u
        return a if route is None else a * route

    def coefficients(self, g: Tensor, u: Tensor | None, route: Tensor | None, rule: Rule) -> tuple[Tensor | None, Tensor | None]:
        """Frozen ``c_g`` and ``c_u`` (None is zero everywhere), in the shape of g.

        Raises:
            ConfigError: an unknown rule.
        """
        if rule not in get_args(Rule):
            raise ConfigError(f"{rule!r} is no rule.", todo=f"Use one of: {', '.join(get_args(Rule))}.")
        act = self.act(g) if route is None else self.act(g) * route
        if u is not None and rule == "gate":
            return None, act
        at_zero = self._slope_at_zero(g) if route is None else self._slope_at_zero(g) * route
        ratio = torch.where(g == 0, at_zero, act / torch.where(g == 0, 1.0, g))
        return (ratio, None) if u is None else (ratio * u / 2, act / 2)

    def _slope_at_zero(self, like: Tensor) -> Tensor:
        with torch.enable_grad():
            zero = torch.zeros((), dtype=like.dtype, device=like.device, requires_grad=True)
            (slope,) = torch.autograd.grad(self.act(zero), zero)
        return slope


def find_mlp(layer: LayerParts, dtype: torch.dtype) -> NeuronMlp:
    """The neurons of a layer's MLP, its weights in the dtype given.

    Raises:
        UnsupportedModelError: no MLP with one vector of neuron activations, or linears under unknown names.
    """
    if layer.moe and layer.mlp is not None and layer.mlp_down is None:
        return _experts(layer, dtype)
    if layer.mlp_down is None or layer.mlp_up is None:
        raise UnsupportedModelError(layer.absent("mlp_act") or f"Layer {layer.index} has no MLP.")
    home = layer.mlp if layer.mlp is not None else layer.block
    n_neurons = weight_in_out(layer.mlp_down).shape[0]
    act = next((found for name in _ACTIVATIONS if callable(found := getattr(home, name, None))), None)
    for gate_name, up_name, joined in _NAMES:
        up = getattr(home, up_name, None)
        gate = None if gate_name is None else getattr(home, gate_name, None)
        if act is None or not isinstance(up, nn.Module) or (gate_name is not None and gate is None):
            continue
        weight, added = weight_in_out(up).to(dtype), linear_bias(up)
        if weight.shape[1] != n_neurons * (2 if joined else 1):
            continue
        added = None if added is None else added.to(dtype)
        out = linear_bias(layer.mlp_down)
        down = (weight_in_out(layer.mlp_down).to(dtype), None if out is None else out.to(dtype))
        if joined:
            biases = (None, None) if added is None else (added[:n_neurons], added[n_neurons:])
            return NeuronMlp(weight[:, :n_neurons], biases[0], weight[:, n_neurons:], biases[1], *down, act)
        if gate is None:
            return NeuronMlp(weight, added, None, None, *down, act)
        gate_bias = linear_bias(gate)
        return NeuronMlp(
            weight_in_out(gate).to(dtype), None if gate_bias is None else gate_bias.to(dtype), weight, added, *down, act
        )
    raise UnsupportedModelError(
        f"The neurons of {type(home).__name__} in layer {layer.index} are not known.",
        why="Its linears or its activation have names that no supported architecture has.",
    )


def _experts(layer: LayerParts, dtype: torch.dtype) -> NeuronMlp:
    """The neurons of a mixture of experts whose experts are gated and kept as ``[expert, out, in]`` (mixtral, qwen2_moe, qwen3_moe)."""
    mlp: Any = layer.mlp
    experts: Any = getattr(mlp, "experts", None)
    router = getattr(mlp, "gate", None)
    first, last = getattr(experts, "gate_up_proj", None), getattr(experts, "down_proj", None)
    biased = any(name.endswith("bias") for name, _ in mlp.named_parameters())
    if (
        not (isinstance(first, Tensor) and isinstance(last, Tensor) and router is not None)
        or biased
        or first.shape[1] != 2 * last.shape[2]
    ):
        raise UnsupportedModelError(
            f"The experts of {type(mlp).__name__} in layer {layer.index} are not known.",
            why="Their weights are not laid out as [expert, gate and up, d_model] without biases.",
        )
    n_experts, d_model, size = last.shape
    gate = first.detach()[:, :size].reshape(-1, d_model).T.to(dtype)
    up = first.detach()[:, size:].reshape(-1, d_model).T.to(dtype)
    down = last.detach().transpose(1, 2).reshape(-1, d_model).to(dtype)
    shared, shared_gate = getattr(mlp, "shared_expert", None), getattr(mlp, "shared_expert_gate", None)
    if shared is not None and shared_gate is not None:
        gate, up = (torch.cat([w, weight_in_out(m).to(dtype)], 1) for w, m in ((gate, shared.gate_proj), (up, shared.up_proj)))
        down = torch.cat([down, weight_in_out(shared.down_proj).to(dtype)])

    def route(x: Tensor) -> Tensor:
        with torch.no_grad():
            _, scores, chosen = router(x)
            weights = torch.zeros(len(x), n_experts, dtype=dtype, device=x.device).scatter_(1, chosen, scores.to(dtype))
            wide = weights.repeat_interleave(size, 1)
            if shared_gate is None:
                return wide
            own = torch.sigmoid(shared_gate(x)).to(dtype)
            return torch.cat([wide, own.expand(-1, gate.shape[1] - wide.shape[1])], 1)

    return NeuronMlp(gate, None, up, None, down, None, experts.act_fn, route)
