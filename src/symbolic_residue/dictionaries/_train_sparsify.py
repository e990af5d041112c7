"""Transcoders a layer through sparsify (EleutherAI's package ``eai-sparsify``): its coder, its loss, its trainer; our texts, our reader.

1. sparsify runs the model itself at every step and keeps no activations. It trains TopK transcoders of MLP modules, one a layer, each for itself.
2. Texts are cut as for ``train_dictionary``. Every piece begins with a mark (the BOS, else the end-of-text token) and is padded behind with it; sparsify
   leaves the mark out (``exclude_tokens``). So the first position, which holds the attention sink, is in no step. Where the model puts no BOS before a text
   itself, its first word then stands at position 1 in training and at position 0 in a graph.
3. sparsify calls what an MLP's module gets and gives its input and output: a module that takes or gives anything else is refused.
4. The folder gets its files of weights and ``training.json``, whole or not at all. A training that was stopped begins anew: sparsify keeps its optimiser as
   pickles, which are not read here.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.dictionaries._dictionary import Transcoders
from symbolic_residue.dictionaries._files import write_json
from symbolic_residue.dictionaries._sparsify import read_sparsify
from symbolic_residue.dictionaries._train import text_sha256
from symbolic_residue.dictionaries._training_rows import cut_pieces, Piece
from symbolic_residue.errors import ConfigError, DictionaryError, MissingExtraError, PromptError, RunExistsError, WriteError
from symbolic_residue.instrument import Instrument

if TYPE_CHECKING:
    from symbolic_residue.models import LoadedModel

__all__ = ["train_with_sparsify"]


def train_with_sparsify(
    loaded: LoadedModel,
    texts: Sequence[str],
    folder: Path | str,
    *,
    k: int,
    features: int = 1024,
    layers: Sequence[int] | None = None,
    skip: bool = False,
    passes: int = 1,
    batch: int = 8,
    context: int = 128,
    optimizer: str = "adam",
    learning_rate: float | None = None,
    aux: float = 1 / 32,
    dead_after: int = 100_000,
    seed: int = 0,
) -> Transcoders:
    """Train transcoders with sparsify's trainer, and open them.

    Args:
        loaded: the model.
        texts: documents.
        folder: of the result; must not be there.
        k: features kept at a position.
        features: of each layer.
        layers: whose MLPs; None is all.
        skip: a linear path beside the features.
        passes: over the texts.
        batch: pieces a step.
        context: tokens a piece.
        optimizer: ``adam``, ``signum`` or ``muon``.
        learning_rate: None leaves it to sparsify, by the number of features.
        aux: weight of the dead features' loss.
        dead_after: tokens without being active after which a feature is dead.
        seed: of the first values and of the pieces' order.

    Raises:
        MissingExtraError: sparsify is not installed.
        ConfigError: k or another number out of range, a layer that the model does not have, a tokenizer without a token that can be left out.
        PromptError: no texts, empty ones, or fewer pieces than a batch.
        RunExistsError: the folder is there.
        DictionaryError: MLPs that sparsify cannot train on, or a training that left nothing usable.
        NonFiniteWeightsError: it diverged.
        WriteError: the disk is full, or the folder cannot be written.
    """
    sparsify = _sparsify()
    folder = Path(folder)
    if folder.exists():
        raise RunExistsError(f"{folder} is already there.", todo="Choose another folder.")
    for name, value in (("k", k), ("features", features), ("passes", passes), ("batch", batch)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}={value!r}; it must be a whole number of 1 or more.")
    if k > features:
        raise ConfigError(f"TopK cannot keep {k} of {features} features.", todo="Give a smaller k, or more features.")
    if optimizer not in ("adam", "signum", "muon"):
        raise ConfigError(f"optimizer={optimizer!r} is not known.", todo="Use one of: adam, signum, muon.")
    mark, pieces = _marked(loaded, texts, context)
    if len(pieces) < batch:
        raise PromptError(
            f"The texts make {len(pieces)} pieces of {context} tokens; a batch is {batch}.",
            todo="Give more text, or a smaller batch.",
        )
    points = _hookpoints(loaded, layers, pieces[0])
    order = torch.cat(
        [torch.randperm(len(pieces), generator=torch.Generator().manual_seed((seed << 20) + i)) for i in range(passes)]
    )
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    config = sparsify.TrainConfig(
        sparsify.SparseCoderConfig(num_latents=features, k=k, skip_connection=skip, transcode=True),
        batch_size=batch, optimizer=optimizer, lr=learning_rate, lr_warmup_steps=max(1, len(order) // batch // 20), auxk_alpha=aux,
        dead_feature_threshold=dead_after, exclude_tokens=[mark], hookpoints=list(points.values()), init_seeds=[seed], log_to_wandb=False,
        save_every=1 << 40, save_dir=str(part.parent), run_name=part.name,
    )  # fmt: skip
    try:
        with _contained(loaded.model):
            trainer = sparsify.Trainer(config, _Pieces(torch.stack([pieces[i] for i in order.tolist()])), loaded.model)
            trainer.fit()
        for pickle in part.glob("*.pt"):
            pickle.unlink()
        found = read_sparsify([part / name for name in points.values()])
        record = loaded.provenance
        about = {
            "format": 1, "finished": True, "by": f"eai-sparsify {sparsify.__version__}", "model": record.model,
            "weights_sha256": record.weights_sha256, "texts": sorted({text_sha256(text) for text in texts}),
        }  # fmt: skip
        write_json(part / "training.json", about)
        part.rename(folder)
    except OSError as error:
        raise WriteError(
            f"{folder} cannot be written.", why=str(error), todo="Free some space, or choose another folder."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return found


def _sparsify() -> Any:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it says which kernels it has
            return importlib.import_module("sparsify")
    except ImportError as error:
        raise MissingExtraError("eai-sparsify", "sparsify", needed_for="training transcoders with sparsify") from error


@dataclass(frozen=True)
class _Pieces(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """What sparsify's trainer asks of a dataset."""

    ids: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[i]}


def _marked(loaded: LoadedModel, texts: Sequence[str], context: int) -> tuple[int, list[Tensor]]:
    """The mark, and the pieces ``[context]`` with it before and behind them."""
    tokenizer: Any = loaded.tokenizer
    pieces = cut_pieces(loaded.tokenizer, texts, context)
    lead = pieces[0].ids[: pieces[0].lead] if pieces else ()
    if len(lead) > 1:
        raise ConfigError(
            f"The tokenizer puts {len(lead)} tokens before a text; sparsify can leave out one.", todo="Use train_dictionary."
        )
    if lead:
        mark = lead[0]
    else:
        mark = next((one for one in (tokenizer.bos_token_id, tokenizer.eos_token_id) if one is not None), None)
        if mark is None:
            raise ConfigError(
                "The tokenizer has no BOS and no end-of-text token.",
                why="The first position could not be left out.",
                todo="Use train_dictionary.",
            )
        pieces = [Piece((mark, *piece.ids), 1) for piece in cut_pieces(loaded.tokenizer, texts, max(1, context - 1))]
    return mark, [torch.tensor([*piece.ids, *[mark] * (context - len(piece.ids))]) for piece in pieces]


def _hookpoints(loaded: LoadedModel, layers: Sequence[int] | None, piece: Tensor) -> dict[int, str]:
    """The MLP module's name in the base model, a layer.

    Raises:
        ConfigError: a layer that the model does not have.
        DictionaryError: a module that sparsify would not read as the MLP.
    """
    parts, base = loaded.parts, loaded.model.base_model
    names = {id(module): name for name, module in base.named_modules()}
    wanted = range(parts.n_layers) if layers is None else sorted({*layers})
    found: dict[int, str] = {}
    for i in wanted:
        if not 0 <= i < parts.n_layers:
            raise ConfigError(f"The model has no layer {i}.", todo=f"Its layers are 0 to {parts.n_layers - 1}.")
        name = names.get(id(parts.layers[i].mlp), "")
        if name.rpartition(".")[2] != "mlp":
            raise DictionaryError(
                f"Layer {i} has no module named mlp.", why="sparsify trains on whole modules.", todo="Use train_dictionary."
            )
        found[i] = name
    seen: dict[str, tuple[Any, Any]] = {}
    handles = [
        base.get_submodule(name).register_forward_hook(lambda _m, args, out, name=name: seen.update({name: (args, out)}))
        for name in found.values()
    ]
    try:
        trace = Instrument(loaded).run(
            piece[None], reads=[f"{kind}.{i}" for i in found for kind in ("mlp_in", "mlp_out")], keep_logits=1
        )
    finally:
        for handle in handles:
            handle.remove()
    for i, name in found.items():
        args, out = seen.get(name, ((), None))
        layer, wrote = parts.layers[i], out
        fits = (
            len(args) == 1
            and isinstance(wrote, Tensor)
            and wrote.shape == args[0].shape
            and torch.equal(args[0], trace[f"mlp_in.{i}"])
        )
        if fits:
            norm = layer.post_mlp_norm
            with torch.no_grad():
                wrote = (wrote if norm is None else norm.module(wrote)) * layer.mlp_scale
            fits = torch.allclose(wrote, trace[f"mlp_out.{i}"], rtol=1e-4, atol=1e-5)
        if not fits:
            raise DictionaryError(
                f"The module {name} takes or gives something else than the MLP's input and output.",
                why="sparsify would train on that.",
                todo="Use train_dictionary.",
            )
    return found


@contextlib.contextmanager
def _contained(model: Any) -> Iterator[None]:
    """What sparsify's trainer changes outside of itself, put back: random numbers, matmul precision, the parameters' flags; its prints go nowhere."""
    precision = torch.get_float32_matmul_precision()
    flags = {name: one.requires_grad for name, one in model.named_parameters()}
    try:
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        for name, one in model.named_parameters():
            one.requires_grad_(flags[name])
