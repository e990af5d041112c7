"""What is trained, and how: every number that decides what the dictionary becomes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, get_args, Literal

from symbolic_residue.errors import ConfigError

__all__ = ["TrainingPlan"]

Trained = Literal["transcoder", "clt"]
Trainable = Literal["topk", "jumprelu"]


@dataclass(frozen=True)
class TrainingPlan:
    """How a dictionary is trained (see ``train_dictionary``).

    Attributes:
        kind: ``transcoder`` (features of a layer write to it alone) or ``clt`` (to it and to all later layers of the plan).
        layers: whose MLPs; None is all.
        features: of each layer.
        activation: ``topk`` or ``jumprelu``.
        k: of topk: how many are kept at a position. It has no default.
        sparsity: of jumprelu: weight of the mean number of active features of a layer beside the unexplained share of its MLP's output.
        bandwidth: of jumprelu: width of the rectangle through which thresholds get their gradient, in units of pre-activations.
        skip: an affine path from what a layer reads to what it writes, beside its features.
        steps: of the optimiser.
        batch: tokens a step.
        learning_rate: the highest; it rises over the first twentieth of the steps and then falls linearly to a tenth.
        dead_after: tokens without once being active after which a feature counts as dead.
        aux: weight of the dead features' loss; 0 leaves them dead.
        random_encoder: the encoder stays as it was drawn: the control that has learned nothing about what to read.
        context: tokens of a piece of text that the model reads at once.
        stored: dtype of the activations on disk, ``float16`` or ``float32``.
        seed: of the pieces' order, the first values and the batches.

    Raises:
        ConfigError: a number out of range, k missing or beyond the number of features, settings of the other activation.
    """

    kind: Trained = "transcoder"
    layers: tuple[int, ...] | None = None
    features: int = 1024
    activation: Trainable = "topk"
    k: int | None = None
    sparsity: float | None = None
    bandwidth: float = 0.1
    skip: bool = False
    steps: int = 2000
    batch: int = 512
    learning_rate: float = 1e-3
    dead_after: int = 100_000
    aux: float = 1 / 32
    random_encoder: bool = False
    context: int = 128
    stored: Literal["float16", "float32"] = "float16"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("kind", Trained), ("activation", Trainable), ("stored", Literal["float16", "float32"])):
            if (value := getattr(self, name)) not in get_args(known):
                raise ConfigError(f"{name}={value!r} is not known.", todo=f"Use one of: {', '.join(get_args(known))}.")
        for name, least in (("features", 1), ("steps", 1), ("batch", 2), ("dead_after", 1), ("context", 2), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name}={value!r}; it must be a whole number of {least} or more.")
        for name, low in (("learning_rate", 0.0), ("bandwidth", 0.0), ("aux", None)):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or value == low:
                raise ConfigError(f"{name}={value!r}; it must be a number {'of 0 or more' if low is None else 'above 0'}.")
        if self.layers is not None and (not self.layers or len(set(self.layers)) < len(self.layers) or min(self.layers) < 0):
            raise ConfigError(f"layers={self.layers} names no layers, or one twice.", todo="Leave it out for all.")
        if self.activation == "topk":
            self._topk()
        elif self.k is not None:
            raise ConfigError(f"k={self.k} with JumpReLU.", why="Only TopK has a k.", todo="Give sparsity= instead.")
        elif self.sparsity is None or not math.isfinite(self.sparsity) or self.sparsity < 0:
            raise ConfigError(
                f"JumpReLU needs its sparsity; it is {self.sparsity!r}.",
                why="Without it every feature is active.",
                todo="Give sparsity=, for instance 1e-3: 10 active features then cost as much as a hundredth of the output's variance.",
            )

    def _topk(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ConfigError(f"TopK needs its k; it is {self.k!r}.", todo="Give k=, the number of features kept at a position.")
        if self.k > self.features:
            raise ConfigError(f"TopK cannot keep {self.k} of {self.features} features.", todo="Give a smaller k, or more features.")
        if self.sparsity is not None:
            raise ConfigError("sparsity was given with TopK.", why="TopK's k says how many are active.")

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        warm = max(1, self.steps // 20)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * (1 - 0.9 * (step - warm) / max(1, self.steps - warm))

    def penalty(self, step: int) -> float:
        """The weight of sparsity at a step: it rises over the first quarter of the steps, so that features are there before they are made rare."""
        return 0.0 if self.sparsity is None else self.sparsity * min(1.0, (step + 1) / max(1, self.steps // 4))

    def settings(self) -> dict[str, Any]:
        """Plain data."""
        found = asdict(self)
        return found | {"layers": None if self.layers is None else sorted(self.layers)}
