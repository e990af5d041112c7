"""Fitting a tuned lens, and its KL on sequences that neither fitting nor stopping saw; the method is in ``_tuned_lens``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import collate, Instrument
from symbolic_residue.readout._lens import readable_logits
from symbolic_residue.readout._tuned_lens import model_identity, Translator, TunedLens
from symbolic_residue.stats import bootstrap_mean, Estimate

__all__ = ["DepthFit", "TunedLensFit", "fit_tuned_lens"]

_FEWEST = 6
_LOOKS = 10
"""Looks at the validation sequences in a whole fit."""

_PATIENCE = 3


@dataclass(frozen=True)
class DepthFit:
    """Held-out KL(final ‖ depth) in nats: mean over a sequence's rows, then over sequences (n).

    Attributes:
        depth: 0 is the embedding.
        logit_lens: without translation.
        tuned: with it.
        gain: ``logit_lens − tuned``, paired by sequence.
        steps: steps after which the kept translator was taken (0 is the identity).
    """

    depth: int
    logit_lens: Estimate
    tuned: Estimate
    gain: Estimate
    steps: int


@dataclass(frozen=True)
class TunedLensFit:
    """A fitted lens and how well it does on held-out sequences."""

    lens: TunedLens
    depths: tuple[DepthFit, ...]


def fit_tuned_lens(
    instrument: Instrument,
    sequences: Sequence[Sequence[int]],
    *,
    seed: int,
    steps: int = 250,
    lr: float = 1e-3,
    rank: int | None = None,
    depths: Sequence[int] | None = None,
    sequences_per_step: int = 4,
    rows_per_step: int = 64,
) -> TunedLensFit:
    """Fit translators; the same arguments give the same lens (on one machine, with one number of threads).

    Args:
        instrument: the model's instrument; its weights and their gradients are left alone.
        sequences: token ids, at least 6 sequences; a fifth is held out, a fifth decides when to stop, the rest is fitted to.
        seed: of the split, of the rows drawn, of low-rank starts, and of the intervals.
        steps: most steps.
        lr: Adam's learning rate at the start; it falls linearly to 0.
        rank: of each translator's matrix; None is full.
        depths: which depths get a translator (default all but the last).
        sequences_per_step: sequences a step draws rows from.
        rows_per_step: rows a step fits to. A step costs about ``depths · rows · vocab · d_model · 6`` operations.

    Raises:
        ConfigError: too few sequences, or an option out of range.
    """
    n_layers, d_model = instrument.parts.n_layers, instrument.parts.d_model
    chosen = list(range(n_layers)) if depths is None else sorted(set(depths))
    if len(sequences) < _FEWEST:
        raise ConfigError(
            f"{len(sequences)} sequences are too few to fit, to stop and to report on different ones.",
            todo=f"Give at least {_FEWEST}.",
        )
    if not chosen or not all(0 <= d < n_layers for d in chosen):
        raise ConfigError(f"Depths go from 0 (embedding) to {n_layers - 1}; the last needs no translator.")
    if rank is not None and not 1 <= rank <= d_model:
        raise ConfigError(f"A rank of {rank} is not between 1 and {d_model}.")
    if steps < 1 or not (lr > 0 and math.isfinite(lr)) or sequences_per_step < 1 or rows_per_step < 1:
        raise ConfigError("Steps, learning rate, sequences and rows a step must be positive.")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(sequences), generator=generator).tolist()
    share = max(2, len(sequences) // 5)
    held_out, validation, training = order[:share], order[share : 2 * share], order[2 * share :]
    fitters = {d: _Fitter(d, d_model, rank, lr, steps, generator, instrument.device) for d in chosen}

    def residuals(which: Sequence[int], wanted: Sequence[int]) -> tuple[dict[int, Tensor], Tensor, Tensor]:
        """Residuals ``[row, d_model]`` by depth, the last one, and which sequence a row is of; padding left out."""
        batch = collate([list(sequences[i]) for i in which])
        reads = [_point(d) for d in wanted]
        trace = instrument.run(batch, reads=(*reads, _point(n_layers)), keep_logits=1)
        real = batch.mask.bool()
        owner = torch.arange(len(which))[:, None].expand(real.shape)[real]
        return {d: trace[_point(d)][real.to(trace[_point(d)].device)] for d in wanted}, trace[_point(n_layers)][real], owner

    def kl_by_sequence(which: Sequence[int], wanted: Sequence[int], tuned: bool) -> dict[int, np.ndarray]:
        """``depth → [sequence]`` mean KL over each sequence's rows."""
        sums: dict[int, list[float]] = {d: [] for d in wanted}
        with torch.no_grad():
            for i in which:
                found, last, _ = residuals([i], wanted)
                for d in wanted:
                    pieces = [
                        _kl(instrument, found[d][s], last[s], fitters[d].best if tuned else None)
                        for s in torch.arange(len(last)).split(128)
                    ]
                    sums[d].append(float(torch.cat(pieces).mean()))
        return {d: np.array(values) for d, values in sums.items()}

    for d, values in kl_by_sequence(validation, chosen, tuned=False).items():
        fitters[d].best_kl = float(values.mean())
    every = max(1, steps // _LOOKS)
    for step in range(1, steps + 1):
        running = [d for d in chosen if not fitters[d].stopped]
        if not running:
            break
        drawn = torch.randperm(len(training), generator=generator)[:sequences_per_step].tolist()
        found, last, _ = residuals([training[i] for i in drawn], running)
        rows = torch.randperm(len(last), generator=generator)[:rows_per_step]
        for d in running:
            fitters[d].step(_kl(instrument, found[d][rows], last[rows], fitters[d].now()).mean())
        if step % every == 0 or step == steps:
            kept = {d: fitters[d].best for d in running}
            for d in running:
                fitters[d].best = fitters[d].frozen()
            scores = kl_by_sequence(validation, running, tuned=True)
            for d in running:
                fitters[d].judge(float(scores[d].mean()), kept[d], step)

    plain, tuned = kl_by_sequence(held_out, chosen, tuned=False), kl_by_sequence(held_out, chosen, tuned=True)
    report = tuple(
        DepthFit(
            d,
            bootstrap_mean(plain[d], seed=seed),
            bootstrap_mean(tuned[d], seed=seed),
            bootstrap_mean(plain[d] - tuned[d], seed=seed),
            fitters[d].best_step,
        )
        for d in chosen
    )
    record = {
        "source": "fit_tuned_lens",
        "model_name": instrument.loaded.provenance.model,
        "seed": str(seed),
        "steps": str(steps),
        "lr": repr(lr),
        "rank": "full" if rank is None else str(rank),
        "sequences": f"{len(training)} fitted, {len(validation)} to stop, {len(held_out)} held out",
    } | {f"held_out_kl_depth_{f.depth}": f"{f.tuned.value:.6g} nats (logit lens {f.logit_lens.value:.6g})" for f in report}
    lens = TunedLens({d: fitters[d].best for d in chosen}, model_identity(instrument.loaded), record)
    return TunedLensFit(lens, report)


def _point(depth: int) -> str:
    return "resid_pre.0" if depth == 0 else f"resid_post.{depth - 1}"


def _kl(instrument: Instrument, resid: Tensor, last: Tensor, translator: Translator | None) -> Tensor:
    """KL(final ‖ depth) of every row, ``[row]``; with gradients of the translator."""
    with torch.no_grad():
        final = torch.log_softmax(readable_logits(instrument.parts, last), -1)
    read = resid if translator is None else translator(resid).to(resid.dtype)
    log_p = torch.log_softmax(readable_logits(instrument.parts, read), -1)
    return (final.exp() * (final - log_p)).sum(-1)


class _Fitter:
    """One depth's translator, its optimiser, and the best that validation has seen."""

    def __init__(
        self, depth: int, d_model: int, rank: int | None, lr: float, steps: int, generator: torch.Generator, device: torch.device
    ) -> None:
        self._tensors = {"bias": torch.zeros(d_model, device=device)}
        if rank is None:
            self._tensors["matrix"] = torch.zeros(d_model, d_model, device=device)
        else:  # up starts at zero: the identity, but with a gradient
            self._tensors["down"] = (torch.randn(rank, d_model, generator=generator) / d_model**0.5).to(device)
            self._tensors["up"] = torch.zeros(d_model, rank, device=device)
        for tensor in self._tensors.values():
            tensor.requires_grad_()
        self._optimiser = torch.optim.Adam(self._tensors.values(), lr=lr)
        self._lr, self._steps = lr, steps
        self._taken = 0
        self._worse = 0
        self.best, self.best_kl, self.best_step = self.frozen(), math.inf, 0
        self.stopped = False

    def now(self) -> Translator:
        """The translator as it stands, with gradients."""
        return Translator(**self._tensors)

    def frozen(self) -> Translator:
        """A copy without gradients."""
        return Translator(**{name: tensor.detach().clone() for name, tensor in self._tensors.items()})

    def step(self, loss: Tensor) -> None:
        """One step of Adam; gradients of the translator only, so the model's own stay as they were."""
        parameters = list(self._tensors.values())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in self._optimiser.param_groups:
            group["lr"] = self._lr * (1 - self._taken / self._steps)
        self._optimiser.step()
        self._taken += 1

    def judge(self, kl: float, kept: Translator, step: int) -> None:
        """Keep the candidate in ``best`` where it did better, else put ``kept`` back."""
        if kl < self.best_kl:
            self.best_kl, self.best_step, self._worse = kl, step, 0
            return
        self.best, self._worse = kept, self._worse + 1
        self.stopped = self._worse >= _PATIENCE
