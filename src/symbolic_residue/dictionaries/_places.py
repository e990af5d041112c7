"""Names of places in other tools, as what a dictionary reads and predicts.

=============================================== ============== =====================================================================
name                                            meaning        because
=============================================== ============== =====================================================================
``hook_resid_mid``                              resid_mid      TransformerLens: the residual stream after attention
``ln2.hook_normalized``                         normalized     TransformerLens: the second norm before its weight
``mlp.hook_in``, ``….mlp.input``                mlp_in         what the MLP's module gets
``….pre_feedforward_layernorm.output``          mlp_in         gemma2 and gemma3: the norm before the MLP
``hook_mlp_out``                                mlp_out        TransformerLens: what is added to the residual stream
``….post_feedforward_layernorm.output``         mlp_out        gemma2 and gemma3: the norm after the MLP
``mlp.hook_out``, ``….mlp.output``              mlp            what the MLP's module gives
=============================================== ============== =====================================================================

``hook_mlp_in`` is refused: it is the stream before the norm in TransformerLens, and was used for what comes after it elsewhere.
"""

from __future__ import annotations

import re
from typing import Any

from symbolic_residue.dictionaries._dictionary import Predicts, Reads
from symbolic_residue.errors import DictionaryError

__all__ = ["layer_in", "predicts_from", "reads_from"]

_READS: dict[str, Reads] = {
    "hook_resid_mid": "resid_mid",
    "ln2.hook_normalized": "normalized",
    "mlp.hook_in": "mlp_in",
    "mlp.input": "mlp_in",
    "pre_feedforward_layernorm.output": "mlp_in",
}
_PREDICTS: dict[str, Predicts] = {
    "hook_mlp_out": "mlp_out",
    "post_feedforward_layernorm.output": "mlp_out",
    "mlp.hook_out": "mlp",
    "mlp.output": "mlp",
}
_LAYER = re.compile(r"^(?:[a-z_.]+\.)?(?:blocks|layers|h)\.(\d+)\.(.+)$")


def layer_in(name: str) -> tuple[int | None, str]:
    """The layer that a place's name holds, and the rest of the name: ``blocks.3.hook_mlp_out`` → ``(3, "hook_mlp_out")``."""
    match = _LAYER.match(name)
    return (int(match[1]), match[2]) if match else (None, name)


def reads_from(name: Any, given: Reads | None, where: str) -> Reads:
    """What is read, by a place's name or as given.

    Raises:
        DictionaryError: a name that is not known (and nothing given), or that says something else than what is given.
    """
    return _meaning(name, given, _READS, "reads", where)


def predicts_from(name: Any, given: Predicts | None, where: str) -> Predicts:
    """What is predicted; see :func:`reads_from`."""
    return _meaning(name, given, _PREDICTS, "predicts", where)


def _meaning(name: Any, given: Any, known: dict[str, Any], what: str, where: str) -> Any:
    found = known.get(layer_in(name)[1]) if isinstance(name, str) else None
    if found is not None and given is not None and found != given:
        raise DictionaryError(f"{where} {what} {name!r}, which is {found!r}; {what}={given!r} was given.")
    if found is None and given is None:
        raise DictionaryError(
            f"{where} does not say what it {what}: {name!r}."
            if not isinstance(name, str)
            else f"{where} {what} {name!r}, which is not known.",
            why="Features that read or write elsewhere than they were trained to give numbers that mean nothing.",
            todo=f"Where you know it, give {what}={' or '.join(repr(one) for one in dict.fromkeys(known.values()))}. Known: {', '.join(known)}.",
        )
    return given if found is None else found
