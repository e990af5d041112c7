"""Tuned lens: an affine translator for each depth, so that a residual is read in the final layer's basis.

1. At depth ``d`` (0 is the embedding, ``d`` is what layer ``d − 1`` left) the residual ``x`` becomes ``x + A_d x + b_d`` before the model's own final norm
   and unembedding. ``A`` is a whole matrix or of low rank, ``A = U V``. The last depth has no translator: it is the output.
2. Fitting (``fit_tuned_lens``): start at the identity, minimise KL(final ‖ depth) on random rows of training sequences, every depth by itself (Adam, falling
   learning rate, gradients clipped to norm 1). A depth keeps the translator that did best on validation sequences and stops when it has not got better for
   three looks; the identity is among the candidates.
3. What is reported comes from sequences that neither fitting nor stopping saw: KL of the tuned lens beside that of the logit lens, and their difference,
   with intervals over sequences.
4. A lens belongs to one model. It carries the hash of the weights (and adapter) it was fitted to and is refused on any other.
5. Files: safetensors with the provenance in the header. Lenses of the public tuned-lens package (``config.json`` beside ``params.pt``) are read with torch's
   ``weights_only`` loader, which makes tensors and runs nothing; they name their model by a hash of its unembedding.

Source: Belrose et al. 2023 (Eliciting Latent Predictions from Transformers with the Tuned Lens). All depths' KL in nats.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError, DamagedFileError, ModelError, WriteError
from symbolic_residue.readout._lens import logit_lens, LogitLens
from symbolic_residue.readout._tuned_format import read_public_lens

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument, Trace
    from symbolic_residue.models import LoadedModel

__all__ = ["Translator", "TunedLens", "load_tuned_lens", "model_identity", "tuned_lens"]

_FORMAT = "symbolic-residue tuned lens 1"


@dataclass(frozen=True)
class Translator:
    """``x → x + A x + b``, with ``A = up @ down`` where the rank is low.

    Attributes:
        matrix: ``[d_model, d_model]`` ``A``, or None where it is factored.
        up: ``[d_model, rank]``; ``down``: ``[rank, d_model]``; None where ``A`` is whole.
        bias: ``[d_model]``.
    """

    bias: Tensor
    matrix: Tensor | None = None
    up: Tensor | None = None
    down: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """The translated residual, ``[..., d_model]``, in float32."""
        x = x.float()
        if self.matrix is not None:
            return x + x @ self.matrix.T + self.bias
        assert self.up is not None and self.down is not None
        return x + (x @ self.down.T) @ self.up.T + self.bias

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that exist, by name."""
        named = {"bias": self.bias, "matrix": self.matrix, "up": self.up, "down": self.down}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@dataclass
class TunedLens:
    """Translators by depth, and the model that they belong to.

    Attributes:
        translators: depth → translator; depths without one are read by the plain logit lens.
        model: identity of the model, see :func:`model_identity`.
        record: how the lens came about (seed, steps, held-out KL …), all text.
    """

    translators: dict[int, Translator]
    model: str
    record: dict[str, str] = field(default_factory=dict)

    def save(self, path: str | Path) -> Path:
        """Write safetensors, whole or not at all.

        Raises:
            WriteError: the file cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = Path(path)
        flat = {
            f"{d}.{name}": t.detach().cpu().contiguous() for d, one in self.translators.items() for name, t in one.tensors().items()
        }
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            save_file(
                flat, part, metadata={"format": _FORMAT, "model": self.model, "record": json.dumps(self.record, sort_keys=True)}
            )
            part.replace(path)
        except (SafetensorError, OSError) as error:
            part.unlink(missing_ok=True)
            raise WriteError(f"{path} cannot be written.", why=str(error)) from error
        return path

    def check(self, loaded: LoadedModel) -> None:
        """Refuse another model than the lens's own.

        Raises:
            ModelError: other weights, or another adapter.
        """
        found = model_identity(loaded)
        if found != self.model:
            raise ModelError(
                "The tuned lens was fitted to another model.",
                why=f"It belongs to weights {self.model[:12]}…, and this model's are {found[:12]}…; a translator says nothing about other weights.",
                todo="Fit one with fit_tuned_lens, or load the model it belongs to.",
            )


def model_identity(loaded: LoadedModel) -> str:
    """sha256 of the weights, joined by ``+`` with that of a merged adapter."""
    found = loaded.provenance
    return found.weights_sha256 if found.adapter is None else f"{found.weights_sha256}+{found.adapter.sha256}"


def tuned_lens(
    trace: Trace, instrument: Instrument, lens: TunedLens, tokens: Sequence[int] = (), rows: Sequence[int] | None = None
) -> LogitLens:
    """The tuned lens at chosen rows (default all): :func:`logit_lens` with every residual translated first.

    Args:
        trace: a forward with :func:`lens_reads`.
        instrument: the model's instrument.
        lens: fitted to this model.
        tokens: ids whose log-probabilities and ranks are kept.
        rows: query rows; negative counts from the end.

    Raises:
        ModelError: the lens belongs to another model.
        ReadError, ConfigError: as :func:`logit_lens`.
    """
    lens.check(instrument.loaded)
    depths = {point: depth for depth, point in enumerate(_points(instrument.parts.n_layers))}

    def translate(point: str, resid: Tensor) -> Tensor:
        translator = lens.translators.get(depths[point])
        if translator is None:
            return resid
        return _on(translator, resid.device)(resid).to(resid.dtype)

    return logit_lens(trace, instrument.parts, tokens, rows, translate=translate)


def _on(translator: Translator, device: torch.device) -> Translator:
    return (
        translator if translator.bias.device == device else Translator(**{n: t.to(device) for n, t in translator.tensors().items()})
    )


def _points(n_layers: int) -> list[str]:
    return ["resid_pre.0", *(f"resid_post.{i}" for i in range(n_layers))]


def load_tuned_lens(path: str | Path, loaded: LoadedModel, *, assume_same_model: bool = False) -> TunedLens:
    """A lens from a safetensors file of :meth:`TunedLens.save`, or from a folder of the public tuned-lens package.

    Args:
        path: the ``.safetensors`` file, or a folder with ``config.json`` and ``params.safetensors`` or ``params.pt``.
        loaded: the model it is for.
        assume_same_model: take a public lens that names its model by no hash on the caller's word; the record says so.

    Raises:
        ModelError: the lens belongs to another model, or a public lens does not say to which.
        DamagedFileError: not a lens, or tensors that are missing, of the wrong shape or not finite.
        ConfigError: there is no such file.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise ConfigError(f"There is no tuned lens at {path}.")
    n_layers, d_model = loaded.parts.n_layers, loaded.parts.d_model
    if path.is_dir():
        tensors, record = read_public_lens(path, loaded.parts, assume_same_model=assume_same_model)
        lens = TunedLens(_build(tensors, path), model_identity(loaded), record)
    else:
        tensors, header = _read(path)
        if header.get("format") != _FORMAT:
            raise DamagedFileError(
                f"{path.name} is no tuned lens of this package.",
                todo="Give a file of TunedLens.save, or the folder of a lens of the tuned-lens package.",
            )
        lens = TunedLens(_build(tensors, path), header["model"], json.loads(header["record"]))
        lens.check(loaded)
    for depth, one in lens.translators.items():
        rank = one.up.shape[-1] if one.up is not None else 0
        shapes = {"bias": (d_model,), "matrix": (d_model, d_model), "up": (d_model, rank), "down": (rank, d_model)}
        for name, tensor in one.tensors().items():
            if tuple(tensor.shape) != shapes[name] or not bool(torch.isfinite(tensor).all()):
                raise DamagedFileError(f"{path.name}: {name} of depth {depth} has shape {list(tensor.shape)} or is not finite.")
        if not 0 <= depth < n_layers:
            raise DamagedFileError(f"{path.name} has a translator for depth {depth}; this model's are 0 to {n_layers - 1}.")
    return lens


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open, SafetensorError

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedFileError(f"{path.name} cannot be read as safetensors.", why=str(error)) from error


def _build(tensors: dict[str, Tensor], path: Path) -> dict[int, Translator]:
    by_depth: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        depth, _, part = name.partition(".")
        if not depth.isdecimal() or part not in ("bias", "matrix", "up", "down"):
            raise DamagedFileError(f"{path.name} holds a tensor {name!r}, which no tuned lens has.")
        by_depth.setdefault(int(depth), {})[part] = tensor.float()
    for depth, parts in by_depth.items():
        if set(parts) not in ({"bias", "matrix"}, {"bias", "up", "down"}) or any(
            t.dim() != (1 if n == "bias" else 2) for n, t in parts.items()
        ):
            raise DamagedFileError(f"{path.name}: depth {depth} has {', '.join(sorted(parts))}, which is no translator.")
    return {depth: Translator(**parts) for depth, parts in sorted(by_depth.items())}
