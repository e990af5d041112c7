"""The residue of LAYER-SALIENCE: what was asked, and every table observed."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from symbolic_residue.shells._residue import ShellResidue
from symbolic_residue.shells.layer_salience._config import LayerSalienceConfig

__all__ = ["Asked", "LayerSalienceResidue"]


class Asked(BaseModel):
    """What one run was asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_text: str
    """The prompt's text (the last user turn's, for messages)."""
    messages: list[dict[str, str]] | None
    """The conversation, when one was given."""
    chat: bool
    """Whether the chat template is used."""
    answer: int
    """Token id whose probability is followed."""
    answer_text: str
    """What it shows."""
    answer_source: str
    """``given``, or ``top`` for the model's own best next token."""
    seed: int
    """Of the control's draws, the random heads and all resampling."""


class LayerSalienceResidue(ShellResidue[Asked, LayerSalienceConfig]):
    """Everything observed on one text.

    Tables of its own, none in a run folder: ``cells`` (layer, position, received, uniform, relative, weighted, counted), ``layers`` (layer, sink,
    own, others), ``rows`` (layer, row, effective), ``references`` (text, share, drop, drop_layer), ``cancels`` (kind, threshold, position, control,
    draw, cells, kl, fall), ``carry`` (layer, head, share of the last row's value-weighted attention on the tokens that may matter).
    """

    shell: ClassVar[str] = "layer-salience"
    asked_type: ClassVar[type[BaseModel]] = Asked
    config_type: ClassVar[type[LayerSalienceConfig]] = LayerSalienceConfig
    own: ClassVar[frozenset[str]] = frozenset({"cells", "layers", "rows", "references", "cancels", "carry"})
