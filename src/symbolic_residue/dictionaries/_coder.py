"""The dictionary while it is trained: parameters, prediction and loss, on inputs and outputs of unit scale.

1. What an MLP reads and writes is centred and divided by one number a layer, so that both have mean square 1 an entry: layers with small writes count as
   much as others. ``export`` folds both back, exactly.
2. Features ``a_i = act(W_i x_i + b_i)``; predictions ``ŷ_j = c_j + Σ_{i ≤ j} a_i D_{i→j} (+ x_j S_j)``; a transcoder keeps ``i = j`` alone.
3. Loss: mean over layers of ``|y_j − ŷ_j|² / d_model``, the unexplained share of the output's variance in training; with JumpReLU plus ``sparsity`` × mean
   number of active features a layer (Rajamanoharan et al. 2024, "Jumping ahead"); plus ``aux`` × what follows.
4. JumpReLU's thresholds, and the count of active features, get their gradient through a rectangle of width ε about the threshold (straight-through):
   ``∂a/∂θ = −θ/ε · 1[|z − θ| < ε/2]``, ``∂1[z > θ]/∂θ = −1/ε · 1[|z − θ| < ε/2]``; θ = exp(t) is learned as t.
5. Dead features: those of them with the largest pre-activations, at most d_model / 2 a layer, predict what the living ones leave (Gao et al. 2024, "Scaling and
   evaluating sparse autoencoders", auxiliary loss).
6. A feature's decoders have norm 1 over all layers that it writes to: the part of the gradient along them is taken off before a step and the norm is made 1
   after it (Bricken et al. 2023, Gao et al. 2024), so that TopK compares features by what they write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from symbolic_residue.dictionaries._dictionary import Activation, LayerDictionary, Transcoders
from symbolic_residue.dictionaries._plan import TrainingPlan

__all__ = ["Coder", "Loss", "Scales", "jump_relu", "step_above"]


@dataclass(frozen=True, eq=False)
class Scales:
    """What was subtracted and divided by, a layer: means ``[d_model]`` and one scale each for inputs and outputs."""

    mean_in: Mapping[int, Tensor]
    scale_in: Mapping[int, float]
    mean_out: Mapping[int, Tensor]
    scale_out: Mapping[int, float]


@dataclass(frozen=True, eq=False)
class Loss:
    """Of one batch.

    Attributes:
        total: what is minimised.
        unexplained: mean over layers of ``|y − ŷ|² / d_model``.
        active: mean number of active features of a layer at a position.
        fired: a layer, ``[feature]`` bool: active at some position of the batch.
    """

    total: Tensor
    unexplained: float
    active: float
    fired: dict[int, Tensor]


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(z > threshold, z, torch.zeros_like(z))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        z, threshold = ctx.saved_tensors
        near = (z - threshold).abs() < ctx.bandwidth / 2
        return grads[0] * (z > threshold), -(grads[0] * near).sum(0) * threshold / ctx.bandwidth, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).to(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        z, threshold = ctx.saved_tensors
        near = (z - threshold).abs() < ctx.bandwidth / 2
        return None, -(grads[0] * near).sum(0) / ctx.bandwidth, None


def jump_relu(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """``z`` where it exceeds the threshold, else 0; ``[position, feature]`` and ``[feature]``."""
    return _JumpReLU.apply(z, threshold, bandwidth)  # type: ignore[return-value]


def step_above(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """1 where ``z`` exceeds the threshold, else 0, differentiable in the threshold alone."""
    return _Step.apply(z, threshold, bandwidth)  # type: ignore[return-value]


class Coder:
    """Parameters of the plan's layers, by name: ``{layer}.encoder`` and so on.

    Args:
        plan: with its layers named.
        d_model: of the model.
        device: where they live.
    """

    def __init__(self, plan: TrainingPlan, d_model: int, device: torch.device | str = "cpu") -> None:
        assert plan.layers is not None
        self.plan, self.d_model, self.layers = plan, d_model, sorted(plan.layers)
        self.writes = {i: [j for j in self.layers if j == i or (plan.kind == "clt" and j > i)] for i in self.layers}
        draw = torch.Generator().manual_seed(plan.seed)
        self.parameters: dict[str, Tensor] = {}
        for i in self.layers:
            first: dict[str, Tensor] = {
                "encoder": _unit(torch.randn(plan.features, d_model, generator=draw)),
                "encoder_bias": torch.zeros(plan.features),
                "decoder": _unit(torch.randn(plan.features, len(self.writes[i]) * d_model, generator=draw)),
                "bias": torch.zeros(d_model),
            }
            if plan.activation == "jumprelu":
                first["log_threshold"] = torch.zeros(plan.features)
            if plan.skip:
                first["skip"] = torch.zeros(d_model, d_model)
            self.parameters |= {f"{i}.{name}": tensor.to(device) for name, tensor in first.items()}
        held = ("encoder", "encoder_bias") if plan.random_encoder else ()
        self.trained = {n: p.requires_grad_() for n, p in self.parameters.items() if n.split(".")[1] not in held}

    def loss(self, x: Mapping[int, Tensor], y: Mapping[int, Tensor], dead: Mapping[int, Tensor], step: int = 0) -> Loss:
        """Of a batch.

        Args:
            x, y: what each layer reads and writes, of unit scale, ``[position, d_model]``.
            dead: features that count as dead, ``[feature]`` bool.
            step: for the weight of sparsity.
        """
        plan = self.plan
        pre = {i: x[i] @ self._of(i, "encoder").T + self._of(i, "encoder_bias") for i in self.layers}
        acts = {i: self._act(i, pre[i]) for i in self.layers}
        predicted = self._decode(acts)
        left = {}
        for j in self.layers:
            whole = predicted[j] + self._of(j, "bias")
            left[j] = y[j] - (whole + x[j] @ self._of(j, "skip") if plan.skip else whole)
        unexplained = torch.stack([one.square().mean() for one in left.values()]).mean()
        total = unexplained
        if plan.activation == "jumprelu":
            counts = [step_above(pre[i], self._threshold(i), plan.bandwidth).sum(-1).mean() for i in self.layers]
            total = total + plan.penalty(step) * torch.stack(counts).mean()
        if plan.aux and not plan.random_encoder and any(bool(one.any()) for one in dead.values()):
            again = self._decode({i: _dead_acts(pre[i], dead[i], self.d_model // 2) for i in self.layers})
            total = total + plan.aux * torch.stack([(left[j].detach() - again[j]).square().mean() for j in self.layers]).mean()
        with torch.no_grad():
            on = {i: acts[i] > 0 for i in self.layers}
            active = float(torch.stack([one.sum(-1).float().mean() for one in on.values()]).mean())
        return Loss(total, float(unexplained.detach()), active, {i: one.any(0) for i, one in on.items()})

    def before_step(self) -> None:
        """Take off the part of the decoders' gradients that would change their norm."""
        for i in self.layers:
            decoder = self._of(i, "decoder")
            if decoder.grad is not None:
                decoder.grad -= (decoder.grad * decoder.detach()).sum(-1, keepdim=True) * decoder.detach()

    def after_step(self) -> None:
        """Make the decoders' norms 1."""
        with torch.no_grad():
            for i in self.layers:
                self._of(i, "decoder").copy_(_unit(self._of(i, "decoder")))

    def export(self, scales: Scales, source: Mapping[str, Any]) -> Transcoders:
        """The dictionary on the model's own activations: it reads ``mlp_in`` and predicts ``mlp_out``.

        Raises:
            DictionaryError, NonFiniteWeightsError: a training that left nothing usable.
        """
        found = {}
        for i in self.layers:
            get = {
                name.split(".")[1]: p.detach().double().cpu() for name, p in self.parameters.items() if name.split(".")[0] == str(i)
            }
            mean, scale = scales.mean_in[i].double(), scales.scale_in[i]
            encoder = get["encoder"] / scale
            bias = get["bias"] * scales.scale_out[i] + scales.mean_out[i].double()
            skip = None
            if self.plan.skip:
                skip = get["skip"] * scales.scale_out[i] / scale
                bias = bias - mean @ skip
            decoders = dict(zip(self.writes[i], get["decoder"].unflatten(-1, (-1, self.d_model)).unbind(1), strict=True))
            activation = (
                Activation("topk", self.plan.k) if self.plan.activation == "topk"
                else Activation("jumprelu", threshold=get["log_threshold"].exp().float())
            )  # fmt: skip
            found[i] = LayerDictionary(
                i, encoder.float(), (get["encoder_bias"] - encoder @ mean).float(),
                {j: (one * scales.scale_out[j]).float() for j, one in decoders.items()}, bias.float(), activation, "mlp_in", "mlp_out",
                None if skip is None else skip.float(),
            )  # fmt: skip
        return Transcoders(found, source)

    def _of(self, layer: int, name: str) -> Tensor:
        return self.parameters[f"{layer}.{name}"]

    def _threshold(self, layer: int) -> Tensor:
        return self._of(layer, "log_threshold").exp()

    def _act(self, layer: int, pre: Tensor) -> Tensor:
        if self.plan.activation == "topk":
            return Activation("topk", self.plan.k)(pre)
        return jump_relu(pre, self._threshold(layer), self.plan.bandwidth)

    def _decode(self, acts: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Σ of what features write, a layer, ``[position, d_model]``."""
        found: dict[int, Tensor] = {}
        for i in self.layers:
            written = (acts[i] @ self._of(i, "decoder")).unflatten(-1, (-1, self.d_model)).unbind(1)
            for j, one in zip(self.writes[i], written, strict=True):
                found[j] = found[j] + one if j in found else one
        return found


def _dead_acts(pre: Tensor, dead: Tensor, most: int) -> Tensor:
    """The dead features with the largest pre-activations, at most so many, and 0 for all others, ``[position, feature]``."""
    count = min(int(dead.sum()), most)
    if not count:
        return torch.zeros_like(pre)
    best = pre.masked_fill(~dead, -torch.inf).topk(count, dim=-1)
    return torch.zeros_like(pre).scatter(-1, best.indices, best.values.relu())


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)
