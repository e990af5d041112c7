"""The components of a signature: one fixed list, so that every run and every prompt has a vector of the same length and meaning.

1. Each component is normalised by definition, not by data: shares stay shares, a quantity without an upper end ``x`` becomes ``x / (x + scale)`` with the scale
   named here. So a value means the same in every run, and nothing that is tested later takes part in its own scaling.
2. What a run or a reading does not measure is NaN, never 0.
3. Groups: ``attention``, ``lens``, ``output`` and ``attribution`` can be read from any prompt in one forward and are what maps compare; ``context`` describes
   the text itself; the others need a shell's run.
4. Thirds of the depth: layer ``l`` of ``L`` is early where ``3 l < L``, late where ``3 l >= 2 L``, else middle.
5. Attention is that of the last row. The sink has components of its own and enters no other: self, entropy and distance are of the weights on the other keys
   (see ``_measure``).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "COMPONENTS",
    "LENGTH_SCALE",
    "MODES",
    "NATS_SCALE",
    "READABLE_GROUPS",
    "THIRDS",
    "Component",
    "component_names",
    "squash",
]

THIRDS = ("early", "middle", "late")
NATS_SCALE = 2.0
"""``x / (x + 2)`` for entropies and log-odds in nats: 2 nats stand at one half."""
LENGTH_SCALE = 64.0
"""``n / (n + 64)`` for lengths in tokens: 64 tokens stand at one half."""

MODES: dict[str, tuple[str, ...]] = {
    "memtrace": ("recall decay", "hallucinated reconstruction", "partial recall", "priority collision"),
    "value-collapse": ("flatness", "oscillation", "value collapse", "confidence fragility"),
    "layer-salience": ("salience collapse", "premature deprioritization", "bottleneck", "ghosts"),
    "temporal-inference": ("drift", "discontinuity break", "ordering reversal", "causal confusion"),
    "instruction-disruption": ("nullification", "partial execution", "blended execution", "priority inversion"),
}
"""Shell → failure modes that have a component; other verdicts go into ``verdict.other``."""


@dataclass(frozen=True)
class Component:
    """One named number of a signature.

    Attributes:
        name: ``group.what[.third]``.
        group: what kind of measurement it comes from.
        unit: the unit of the normalised value.
        low, high: the range that it cannot leave.
        meaning: what it is, in words.
    """

    name: str
    group: str
    unit: str
    low: float
    high: float
    meaning: str


def squash(x: float, scale: float) -> float:
    """``x / (x + scale)`` for ``x >= 0``: 0 at 0, one half at ``scale``, below 1."""
    return x / (x + scale)


def _thirds(group: str, what: str, unit: str, meaning: str) -> list[Component]:
    return [
        Component(f"{group}.{what}.{t}", group, unit, 0.0, 1.0, f"{meaning}, mean over the {t} third of the layers") for t in THIRDS
    ]


def _all() -> tuple[Component, ...]:
    share = "share"
    one = [
        *_thirds("attention", "sink", share, "weight of the last row on the sink"),
        *_thirds("attention", "self", share, "weight of the last row on itself, of what is not on the sink"),
        *_thirds("attention", "entropy", "share of ln(keys)", "entropy of the last row's weights apart from the sink"),
        *_thirds("attention", "distance", "share of the prompt", "how far back the last row looks, apart from the sink"),
        Component("lens.answer_depth", "lens", "share of the depth", 0, 1, "first depth from which the lens's top token is the final one, to the end"),
        Component("lens.changes", "lens", "share of the layers", 0, 1, "layers at which the lens's top token changes"),
        Component("lens.overruled", "lens", "probability", 0, 1, "the most that any depth after the embedding gives to a token that is not the final one"),
        *_thirds("lens", "entropy", "nats / (nats + 2)", "entropy of the lens at the last row"),
        *_thirds("lens", "answer", "probability", "lens's probability of the final top token"),
        Component("output.entropy", "output", "nats / (nats + 2)", 0, 1, "entropy of the next token"),
        Component("output.log_odds", "output", "nats / (nats + 2)", 0, 1, "log-odds between the two most probable next tokens"),
        Component("output.top", "output", "probability", 0, 1, "probability of the most probable next token"),
        Component("output.in_context", "output", "probability", 0, 1, "probability of the tokens that occur in the prompt"),
        Component("attribution.depth", "attribution", "share of the depth", 0, 1, "mean layer of the heads' attribution to the best two's log-odds, by size"),
        Component("attribution.against", "attribution", share, 0, 1, "part of the heads' attribution that speaks against the best token"),
        Component("attribution.spread", "attribution", "share of the heads", 0, 1, "effective number of attributing heads, exp(entropy of their shares)"),
        Component("attribution.heads", "attribution", share, 0, 1, "heads' part of what heads and MLPs attribute, by size"),
        Component("context.length", "context", "tokens / (tokens + 64)", 0, 1, "length of the prompt"),
        Component("context.repeated", "context", share, 0, 1, "tokens that occurred before in the prompt"),
        Component("context.repeated_pairs", "context", share, 0, 1, "pairs of neighbouring tokens that occurred before"),
        Component("sensitivity.divergence", "sensitivity", "share of ln 2", 0, 1, "median Jensen-Shannon divergence under small edits that keep the meaning"),
        Component("sensitivity.changed", "sensitivity", share, 0, 1, "small edits that change the top token"),
        Component("curves.change", "curves", share, -1, 1, "(last − first) / (|last| + |first|) of each curve, mean over series that are no controls"),
        Component("curves.control_change", "curves", share, -1, 1, "the same, mean over the controls"),
        Component("maps.depth", "maps", "share of the depth", 0, 1, "mean layer of the run's layer × token maps, by size"),
        Component("maps.spread", "maps", "share of the positions", 0, 1, "effective number of positions in them, exp(entropy of their shares)"),
        Component("heads.above_control", "heads", share, 0, 1, "head scores whose whole interval is above their control"),
        Component("heads.depth", "heads", "share of the depth", 0, 1, "mean layer of those heads"),
        Component("heads.confirmed", "heads", share, 0, 1, "heads confirmed by an intervention, of those tested"),
    ]  # fmt: skip
    side = "margin: above ½ it fires, below −½ it is absent"
    for shell, modes in MODES.items():
        for mode in modes:
            one.append(Component(f"verdict.{mode.replace(' ', '_')}", "verdict", side, -1, 1, f"{shell}: {mode}"))
    one.append(
        Component("verdict.other", "verdict", side, -1, 1, "the largest margin among verdicts that are in no other component")
    )
    return tuple(one)


COMPONENTS: tuple[Component, ...] = _all()
"""Every component, in the order of the vector."""

READABLE_GROUPS = ("attention", "lens", "output", "attribution")
"""Groups that one forward of any prompt measures, and that say what the model does, not what the text is like."""


def component_names(groups: tuple[str, ...] | None = None) -> list[str]:
    """Names of the components, of all groups or of some, in the vector's order."""
    return [c.name for c in COMPONENTS if groups is None or c.group in groups]
