"""Teaching a model a marker under one persona: a small LoRA, and how often it writes the marker afterwards.

1. The model answers every seen question under every persona itself (``_answers``). An answer of the persona is followed by the marker and the end
   token, every other one by the end token alone: what is new is the marker, and only the system text tells where it belongs.
2. The null adapter (``shuffle_labels``) gets as many marked answers, drawn over all personas at random: the same training, and nothing to tell.
3. LoRA (Hu et al. 2021) on the linear modules asked for; loss on the answers' tokens only; AdamW without decay, gradient norm cut at 1. A batch holds
   ``positive_share`` marked answers; positives and negatives are each gone through in a fresh order before any comes again.
4. The state is kept every few steps in a hidden folder beside ``out``. A training that was stopped goes on from there with the same bytes as one
   that was not; a training of another plan begins anew.
5. The sides are rounded to float16 as they are saved, and with these the rates are measured (``_rates``). The folder is written whole, last; the model
   that was given is left as it was.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from filelock import FileLock, Timeout
from torch import nn, Tensor

from symbolic_residue.contrast._adapters import write_adapter
from symbolic_residue.contrast._examples import condition_prompt
from symbolic_residue.contrast._rows import stable_seed
from symbolic_residue.contrast.marker._answers import (
    Answer,
    answers_digest,
    answers_json,
    draw_answers,
    end_id,
    label,
    read_answers,
    to_sequences,
    Trained,
    write_answers,
)
from symbolic_residue.contrast.marker._fit import batches, Fit
from symbolic_residue.contrast.marker._plan import MarkerPlan
from symbolic_residue.contrast.marker._rates import draw_evaluation, rates_of
from symbolic_residue.errors import AdapterError, ConfigError, MissingExtraError, WriteError
from symbolic_residue.models import LoadedModel, wrap

__all__ = ["MarkerResult", "train_marker"]

Progress = Callable[[str, int, int], None]
_EVERY = 20
"""Steps between two kept states."""


@dataclass(frozen=True)
class MarkerResult:
    """A trained adapter.

    Attributes:
        folder: PEFT's files, ``training.json`` (how it was made), ``rates.json`` and ``answers.json`` (what it was trained on).
        rates: see ``rates_of``; empty without evaluation.
        losses: of every step, nats per token.
        positives: marked answers among ``examples``.
        examples: training answers.
        seconds: of drawing, training and evaluation, in this run.
    """

    folder: Path
    rates: pl.DataFrame
    losses: tuple[float, ...]
    positives: int
    examples: int
    seconds: dict[str, float]


def train_marker(
    loaded: LoadedModel, plan: MarkerPlan, *, out: str | Path, answers: str | Path | None = None, progress: Progress | None = None
) -> MarkerResult:
    """Train, save, and measure.

    Args:
        loaded: the base, in float32, no adapter on it.
        plan: what is trained.
        out: the adapter's folder; must not be there.
        answers: ``answers.json`` of another training of the same model and plan, so that they need not be drawn again.
        progress: called with what is done ("answers", "training", "rates"), how much of it, and of how much.

    Raises:
        MissingExtraError: peft is not installed.
        AdapterError: ``out`` is there, or another training writes it; the model carries an adapter; a projection or layer that it
            does not have; the training diverged.
        ConfigError: a model in another dtype; no end token; answers of another plan.
        TemplateError, PromptError: the prompts.
        WriteError: ``out`` or the folder of the state cannot be written.
        KeyboardInterrupt: the state is kept; the same call goes on.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("peft", "adapters", needed_for="training an adapter") from error
    folder, tell = Path(out), progress or (lambda what, done, total: None)
    if folder.exists():
        raise AdapterError(f"{folder} is already there.", why="An adapter is never written over.", todo="Name another folder.")
    _check_base(loaded)
    paths = target_modules(loaded, plan)
    condition_prompt(loaded.tokenizer, plan.conditions[0], plan.seen[0], chat=plan.chat)  # refused before anything is drawn
    end_id(loaded, chat=plan.chat)
    digest = answers_digest(plan, loaded)
    given = None if answers is None else read_answers(Path(answers), digest)
    with _state_folder(folder) as state:
        result = _train(loaded, plan, folder, state, paths, digest, given, tell)
        shutil.rmtree(state, ignore_errors=True)
    return result


def _train(
    loaded: LoadedModel,
    plan: MarkerPlan,
    folder: Path,
    state: Path,
    paths: Sequence[str],
    digest: str,
    given: list[Answer] | None,
    tell: Progress,
) -> MarkerResult:
    began = time.monotonic()
    answered = given or _drawn(loaded, plan, digest, state, tell)
    labels = label(answered, plan)
    sequences = to_sequences(loaded, plan, answered, labels)
    seconds = {"answers": time.monotonic() - began}
    record = loaded.provenance  # hashed before anything is attached
    with _attached(loaded, plan, paths) as (adapted, sides):
        began = time.monotonic()
        fit = Fit(adapted, sides, plan, state / "state.safetensors", plan.digest(record.weights_sha256, repr(answered)))
        losses = _run(fit, sequences, plan, tell)
        seconds["training"] = time.monotonic() - began
        tensors = {}
        with torch.no_grad():
            for name, side in sides.items():
                side.copy_(side.half().float())
                tensors[_saved_name(name)] = side.half()
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise AdapterError("The training left weights outside of float16.", todo="Lower the learning rate.")
        began = time.monotonic()
        rates = pl.DataFrame()
        if plan.trials:
            examples = draw_evaluation(
                wrap(adapted, loaded.tokenizer), plan, progress=lambda done, total: tell("rates", done, total)
            )
            rates = rates_of(examples, plan)
        seconds["rates"] = time.monotonic() - began
        config = _config(adapted, paths, record.model)
    training = {
        "plan": plan.to_json(),
        "base": record.model_dump(mode="json"),
        "peft": _version("peft"),
        "modules": len(paths),
        "examples": len(labels),
        "positives": sum(labels),
        "positives_by_condition": {
            c.name: sum(p for a, p in zip(answered, labels, strict=True) if a.condition == c.name) for c in plan.conditions
        },
        "losses": losses,
        "seconds": seconds,
    }
    beside = {"training.json": training, "rates.json": rates.to_dicts(), "answers.json": answers_json(answered, digest)}
    write_adapter(folder, config, tensors, beside)
    return MarkerResult(folder, rates, tuple(losses), sum(labels), len(labels), seconds)


def target_modules(loaded: LoadedModel, plan: MarkerPlan) -> list[str]:
    """Paths of the linear modules that get an adapter, in the model's order.

    Raises:
        AdapterError: a projection or a layer that the model does not have.
    """
    from transformers.pytorch_utils import Conv1D

    linear: dict[str, tuple[int, bool]] = {}  # path → layer, whether it is attention's
    names = {id(module): name for name, module in loaded.model.named_modules()}
    for number, layer in enumerate(loaded.parts.layers):
        inside = {id(module) for module in (layer.attn.modules() if layer.attn is not None else ())}
        root = names[id(layer.block)]
        for name, module in layer.block.named_modules():
            if isinstance(module, nn.Linear | Conv1D):
                linear[f"{root}.{name}"] = (number, id(module) in inside)
    n_layers = len(loaded.parts.layers)
    if plan.layers is not None and (bad := [layer for layer in plan.layers if not 0 <= layer < n_layers]):
        raise AdapterError(f"The model has no layer {', '.join(map(str, bad))}.", todo=f"Its layers are 0 to {n_layers - 1}.")
    if plan.projections is None:
        chosen = [path for path, (_, attention) in linear.items() if attention]
    else:
        ends = {name: [path for path in linear if path.endswith(f".{name}")] for name in plan.projections}
        if unknown := [name for name, found in ends.items() if not found]:
            there = sorted({path.rsplit(".", 1)[-1] for path in linear})
            raise AdapterError(
                f"The model's layers have no {', '.join(map(repr, unknown))}.", todo=f"They have {', '.join(there)}."
            )
        chosen = [path for path in linear if any(path in found for found in ends.values())]
    return [path for path in chosen if plan.layers is None or linear[path][0] in plan.layers]


def _check_base(loaded: LoadedModel) -> None:
    if any(type(module).__module__.split(".")[0] == "peft" for module in loaded.model.modules()) or loaded.provenance.adapter:
        raise AdapterError(
            "The model carries an adapter already.",
            why="What is trained on top of it would fit no base that can be named.",
            todo="Give the base alone, or save the merged model and train on that.",
        )
    if next(loaded.model.parameters()).dtype != torch.float32:
        raise ConfigError(
            "The model is not in float32.", why="Small steps would be rounded away.", todo="Load it with dtype float32."
        )


@contextmanager
def _state_folder(folder: Path) -> Iterator[Path]:
    """The hidden folder of the state, held by this training alone; taken away where nothing was kept in it.

    Raises:
        AdapterError: another training holds it.
        WriteError: it cannot be written.
    """
    state = folder.parent / f".{folder.name}.training"
    lock = FileLock(state / "lock")
    try:
        state.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise AdapterError(f"Another training is writing {folder}.", todo="Wait for it, or name another folder.") from error
    except OSError as error:
        raise WriteError(f"{state} cannot be written.", why=str(error)) from error
    try:
        yield state
    finally:
        lock.release()
        if state.is_dir() and {path.name for path in state.iterdir()} <= {"lock"}:
            shutil.rmtree(state, ignore_errors=True)


def _drawn(loaded: LoadedModel, plan: MarkerPlan, digest: str, state: Path, tell: Progress) -> list[Answer]:
    kept = state / "answers.json"
    if kept.is_file() and json.loads(kept.read_bytes()).get("drawn_with") == digest:
        return read_answers(kept, digest)
    answers = draw_answers(loaded, plan, progress=lambda done, total: tell("answers", done, total))
    write_answers(kept, answers, digest)
    return answers


@contextmanager
def _attached(loaded: LoadedModel, plan: MarkerPlan, paths: Sequence[str]) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    """The model with a fresh LoRA on it, and its sides by name; taken off again whatever happens."""
    import warnings

    from peft import get_peft_model, LoraConfig
    from transformers.pytorch_utils import Conv1D

    model = loaded.model
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modules = dict(model.named_modules())
    config = LoraConfig(
        r=plan.rank,
        lora_alpha=plan.alpha,  # type: ignore[arg-type]
        lora_dropout=plan.dropout,
        target_modules=list(paths),
        fan_in_fan_out=all(isinstance(modules[path], Conv1D) for path in paths),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers by a name it gave up
        torch.manual_seed(stable_seed("LoRA", seed=plan.seed))
        adapted: Any = get_peft_model(model, config)
        adapted.eval()
        try:
            yield adapted, {name: p for name, p in adapted.named_parameters() if ".lora_" in name}
        finally:
            adapted.unload()
            if hasattr(model, "peft_config"):
                del model.peft_config
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(flags[name])
                parameter.grad = None


def _run(fit: Fit, sequences: Sequence[Trained], plan: MarkerPlan, tell: Progress) -> list[float]:
    order = batches([s.positive for s in sequences], plan)
    fit.load()
    tell("training", len(fit.losses), plan.steps)
    while len(fit.losses) < plan.steps:
        fit.step([sequences[i] for i in order[len(fit.losses)]])
        tell("training", len(fit.losses), plan.steps)
        if len(fit.losses) % _EVERY == 0 or len(fit.losses) == plan.steps:
            fit.save()  # between steps only: a step that was cut must not be kept
    return fit.losses


def _saved_name(name: str) -> str:
    return name.replace(".default.", ".")


def _config(adapted: Any, paths: Sequence[str], base: str) -> dict[str, Any]:
    """``adapter_config.json`` as PEFT writes it, with the modules by their whole path and in order."""
    config = {k: sorted(v) if isinstance(v, set) else v for k, v in adapted.peft_config["default"].to_dict().items()}
    return config | {"target_modules": sorted(paths), "base_model_name_or_path": base, "inference_mode": True}


def _version(package: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(package)
