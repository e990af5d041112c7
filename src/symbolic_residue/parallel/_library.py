"""Multi-path decoding of a model that the caller has loaded, and the options as words: which of them make no sense together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TYPE_CHECKING

from symbolic_residue.errors import ConfigError, InstrumentError, PromptError
from symbolic_residue.parallel._capture import Capture
from symbolic_residue.parallel._config import ParallelConfig, Pruning
from symbolic_residue.parallel._decode import decode, Grown
from symbolic_residue.parallel._rotary import check_rotary
from symbolic_residue.parallel._tree import Tree

if TYPE_CHECKING:
    from torch import Tensor

    from symbolic_residue.instrument import Instrument

__all__ = ["check_pruning", "generate", "make_config"]

_DRAWING = ("do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "num_beams", "repetition_penalty", "num_return_sequences", "seed")  # fmt: skip
_PRUNING = tuple(f.name for f in fields(Pruning) if f.name != "rule")
_FIELDS = tuple(f.name for f in fields(ParallelConfig))


def make_config(options: Mapping[str, Any]) -> ParallelConfig:
    """A configuration from options by name; those that are None were not given.

    Args:
        options: fields of :class:`ParallelConfig`; or, for ``pruning``, ``prune`` (the rule) and ``prune_least``, ``prune_after``, ``prune_removal``,
            ``prune_layers``, ``prune_heads``, ``prune_source``.

    Raises:
        ConfigError: an unknown option, one of ordinary sampling, a value out of range, or options that have nothing to act on.
    """
    given = {name: value for name, value in options.items() if value is not None}
    prune = given.pop("prune", None)
    rules = {name: given.pop(f"prune_{name}") for name in _PRUNING if f"prune_{name}" in given}
    for name in given:
        if name in _DRAWING:
            raise ConfigError(
                f"{name} makes no sense here.",
                why="Nothing is drawn: every token above the threshold enters, always the same ones.",
                todo="Use threshold (1 is ordinary greedy decoding), max_siblings and follow.",
            )
        if name not in _FIELDS:
            raise ConfigError(f"There is no option {name}.", todo=f"Options: {', '.join(_FIELDS)}.")
    if rules and prune is None:
        raise ConfigError(
            f"prune_{next(iter(rules))} has nothing to act on.",
            why="Nothing is pruned.",
            todo="Give prune=relative or absolute, too.",
        )
    if prune is not None and "pruning" in given:
        raise ConfigError("prune and pruning say the same.", todo="Give one of them.")
    if prune is not None:
        given["pruning"] = Pruning(rule=prune, **rules)
    if "epsilon" in given and given.get("scheme") != "offset":
        raise ConfigError(
            "epsilon has nothing to act on.",
            why=f"Under the scheme {given.get('scheme', 'shared')} no token stands between two positions.",
            todo="Give scheme=offset, too.",
        )
    config = ParallelConfig(**given)
    if max(config.schedule.values) == min(config.schedule.values) == 1 or config.max_siblings == 1:
        idle = [name for name, acts in (("bias", config.bias), ("pruning", config.pruning is not None)) if acts]
        if idle:
            raise ConfigError(
                f"{idle[0]} has nothing to act on.",
                why="At threshold 1, and with one sibling at most, every set holds one token.",
                todo="Lower the threshold, or leave it out.",
            )
    return config


def check_pruning(instrument: Instrument, config: ParallelConfig) -> None:
    """Refuse layers and heads to prune by that the model does not have.

    Raises:
        ConfigError: there is no such layer, or no such head.
    """
    pruning, parts = config.pruning, instrument.parts
    if pruning is None:
        return
    for layer in pruning.layers or ():
        if layer not in parts.attention_layers:
            raise ConfigError(f"Layer {layer} has no attention to prune by.", todo=f"Layers: 0 to {parts.n_layers - 1}.")
    for head in pruning.heads or ():
        if not 0 <= head < parts.n_heads:
            raise ConfigError(f"There is no head {head} to prune by.", todo=f"Heads: 0 to {parts.n_heads - 1}.")


def generate(
    model: Any,
    tokenizer: Any,
    prompts: str | Sequence[str] | Sequence[Sequence[int]],
    config: ParallelConfig | None = None,
    *,
    chat: bool = False,
    capture: Capture | None = None,
    embedding: Tensor | None = None,
    on_step: Callable[[Grown], None] | None = None,
    checked: bool = False,
    **options: Any,
) -> list[Tree]:
    """Multi-path decoding of a model that you have loaded.

    Args:
        model: a transformers causal language model with rotary positions, in evaluation mode; it is left as it is.
        tokenizer: its fast tokenizer.
        prompts: a text, several, or token ids; several run side by side (one after the other where pruning deletes from the cache).
        config: how; or give its fields as options.
        chat: render texts as a user's turn by the tokenizer's chat template.
        capture: keeps the attention of every step.
        embedding: ``[d_model]``, added to the embedding of siblings.
        on_step: called with each step as it comes.
        checked: the model was verified and its positions were checked before (a call before this one).
        options: fields of :class:`ParallelConfig`, such as ``threshold=0.1, mode="visible"``; see :func:`make_config`.

    Returns:
        A tree for each prompt, in order.

    Raises:
        PromptError: no prompt, an empty one, or one that leaves no room in the context.
        ConfigError: options out of range, unknown, or without anything to act on.
        UnsupportedModelError: a family that is not known, or positions that cannot be shared (ALiBi, learned, recurrent).
        InstrumentError: training mode, NaN logits.
    """
    from symbolic_residue.instrument import Instrument, verify
    from symbolic_residue.models import wrap

    if config is not None and options:
        raise ConfigError("Give config or its fields as options, not both.")
    config = make_config(options) if config is None else config
    if getattr(model, "training", False):
        raise InstrumentError("The model is in training mode.", why="Dropout would change its tokens.", todo="Call model.eval().")
    loaded = wrap(model, tokenizer)
    instrument = Instrument(loaded)
    ids = _ids(tokenizer, prompts, chat, loaded.parts.max_context)
    if not checked:
        check_rotary(instrument)  # first: it says why a family is refused
        verify(loaded)
    check_pruning(instrument, config)
    told = [one for one in (on_step, capture.add if capture is not None else None) if one is not None]

    def tell(grown: Grown) -> None:
        for one in told:
            one(grown)

    apart = config.pruning is not None and config.pruning.removal == "recompute" and len(ids) > 1
    if apart and capture is not None:
        raise ConfigError(
            "One capture keeps one decoding, and pruning by recompute decodes prompts one after the other.",
            todo="Give one prompt, or prune with removal='mask'.",
        )
    common: dict[str, Any] = {"embedding": embedding, "on_step": tell if told else None, "checked": True}
    return [
        tree
        for batch in ([[one] for one in ids] if apart else [ids])
        for tree in decode(instrument, batch, config, weights=capture is not None, **common)
    ]


def _ids(tokenizer: Any, prompts: Any, chat: bool, limit: int | None) -> list[list[int]]:
    """Token ids of every prompt."""
    from symbolic_residue.prompts import build_prompt

    several = [prompts] if isinstance(prompts, str) else list(prompts)
    if not several:
        raise PromptError("There is no prompt.", todo="Give at least one.")
    if all(isinstance(one, int) for one in several):
        several = [several]
    if chat and not all(isinstance(one, str) for one in several):
        raise ConfigError("A chat needs texts, not token ids.")
    return [
        build_prompt(tokenizer, one, chat=chat, max_tokens=limit).ids if isinstance(one, str) else [int(t) for t in one]
        for one in several
    ]
