"""What a measurement is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field

from symbolic_residue.errors import ConfigError
from symbolic_residue.parallel._config import Pruning

__all__ = ["MeasureConfig"]


@dataclass(frozen=True)
class MeasureConfig:
    """How one tree is measured.

    Attributes:
        epsilons: distances between neighbours in the offset arms, each above 0 and below 1; 0.5 is among them, since a verdict rests on it.
        reach: how many steps after a set look at it.
        biases: of the sweep, rising, above 0; empty: no sweep.
        sizes: of the scaling, rising, 2 or more; empty: none.
        most_ranks: where siblings of a set have a moved arrangement each, at most so many (spread evenly, so that it stays balanced).
        pruning: the rule that parts pruned from surviving tokens, where the tree itself was not pruned.
        seed: of the replaced tokens and of the coins, together with the prompt.

    Raises:
        ConfigError: a field out of range.
    """

    epsilons: tuple[float, ...] = (0.001, 0.01, 0.1, 0.25, 0.5)
    reach: int = 1
    biases: tuple[float, ...] = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
    sizes: tuple[int, ...] = (2, 3, 5, 8, 12, 20)
    most_ranks: int = 6
    pruning: Pruning = field(default_factory=lambda: Pruning(least=0.5))
    seed: int = 0

    def __post_init__(self) -> None:
        if not all(0 < e < 1 for e in self.epsilons) or 0.5 not in self.epsilons:
            raise ConfigError(f"epsilons={self.epsilons} are not distances between 0 and 1 with 0.5 among them.")
        if self.reach < 1 or self.most_ranks < 2 or self.seed < 0:
            raise ConfigError("reach is 1 or more, most_ranks 2 or more, the seed 0 or more.")
        for name, values, least in (("biases", self.biases, 0.0), ("sizes", self.sizes, 1)):
            if list(values) != sorted(set(values)) or any(v <= least for v in values):
                raise ConfigError(f"{name}={values} do not rise from above {least:g}.")
