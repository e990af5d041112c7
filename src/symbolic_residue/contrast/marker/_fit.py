"""One optimisation of a LoRA's sides that can be stopped and gone on with: batches, the step, the kept state."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from symbolic_residue.contrast._rows import stable_seed
from symbolic_residue.contrast.marker._answers import Trained
from symbolic_residue.contrast.marker._plan import MarkerPlan
from symbolic_residue.errors import AdapterError
from symbolic_residue.instrument import collate
from symbolic_residue.stats import generator

__all__ = ["Fit", "batches", "learning_rate"]

_SLOTS = ("exp_avg", "exp_avg_sq")


def batches(positive: Sequence[bool], plan: MarkerPlan) -> list[list[int]]:
    """Indices of every step's sequences: so many positives that their share is the plan's up to every step, to within one half."""
    draw = generator(stable_seed("order of training", seed=plan.seed))
    pools = {side: [i for i, p in enumerate(positive) if p is side] for side in (True, False)}
    queues: dict[bool, list[int]] = {True: [], False: []}

    def take(side: bool) -> int:
        if not queues[side]:
            queues[side] = [pools[side][i] for i in draw.permutation(len(pools[side]))]
        return queues[side].pop()

    found, given = [], 0
    for step in range(plan.steps):
        due = int((step + 1) * plan.batch * plan.positive_share + 0.5) - given
        given += due
        found.append([take(True) for _ in range(due)] + [take(False) for _ in range(plan.batch - due)])
    return found


def learning_rate(step: int, plan: MarkerPlan) -> float:
    """Of step ``step`` (from 0): rises over the first twentieth of the steps, then falls linearly to a tenth."""
    warm = max(1, plan.steps // 20)
    if step < warm:
        return plan.learning_rate * (step + 1) / warm
    return plan.learning_rate * (1 - 0.9 * (step - warm) / max(1, plan.steps - warm))


class Fit:
    """The optimisation so far.

    Args:
        model: the model with the LoRA attached, in eval mode (its own dropout stays off; the LoRA's is on in steps).
        sides: the LoRA's parameters by name.
        plan: the plan.
        path: of the kept state.
        digest: what the state belongs to.
    """

    def __init__(self, model: Any, sides: dict[str, Tensor], plan: MarkerPlan, path: Path, digest: str) -> None:
        self.model, self.sides, self.plan, self.path, self.digest = model, sides, plan, path, digest
        self.losses: list[float] = []
        self.optimizer = torch.optim.AdamW(list(sides.values()), lr=plan.learning_rate, weight_decay=0.0, foreach=False)
        taken = inspect.signature(model.get_base_model().forward).parameters
        self.takes = {name for name in ("position_ids", "logits_to_keep", "use_cache") if name in taken}

    def loss(self, sequences: Sequence[Trained]) -> Tensor:
        """Mean over the answers' tokens (marker and end included) of −ln p, nats."""
        batch = collate([s.ids for s in sequences])
        device = next(iter(self.sides.values())).device
        ids, mask = batch.ids.to(device), batch.mask.to(device)
        width = ids.shape[1]
        keep = max(len(s.ids) - s.prompt_len for s in sequences) + 1  # rows that predict an answer's token, and the last one
        extra: dict[str, Any] = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0), "logits_to_keep": keep, "use_cache": False}
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.plan.precision == "bfloat16"):
            out = self.model(input_ids=ids, attention_mask=mask, **{name: extra[name] for name in self.takes})
        logits = out.logits[:, -keep:-1].float()
        wanted = ids[:, width - keep + 1 :].clone()
        for row, sequence in enumerate(sequences):
            wanted[row, : wanted.shape[1] - (len(sequence.ids) - sequence.prompt_len)] = -100
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100)

    def step(self, sequences: Sequence[Trained]) -> None:
        """One step on a batch.

        Raises:
            AdapterError: the loss is not finite.
        """
        number = len(self.losses)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(number, self.plan)
        self.optimizer.zero_grad(set_to_none=True)
        with _dropping(self.model):
            loss = self.loss(sequences)
        if not bool(loss.isfinite()):
            raise AdapterError(f"The training diverged at step {number + 1}.", todo="Lower the learning rate.")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self.sides.values()), 1.0, foreach=False)
        self.optimizer.step()
        self.losses.append(float(loss.detach()))

    def save(self) -> None:
        """Keep the state: sides, moments, generator, losses; one file, whole or not at all."""
        from safetensors.torch import save_file

        tensors = {f"side {name}": side.detach().cpu().contiguous() for name, side in self.sides.items()} | {
            "generator": torch.get_rng_state()
        }
        for name, side in self.sides.items():
            for slot in _SLOTS if side in self.optimizer.state else ():
                tensors[f"{slot} {name}"] = self.optimizer.state[side][slot].cpu().contiguous()
        temporary = self.path.with_suffix(".tmp")
        save_file(tensors, temporary, metadata={"digest": self.digest, "losses": json.dumps(self.losses)})
        temporary.replace(self.path)

    def load(self) -> None:
        """Go on from the kept state where there is one of this plan."""
        from safetensors import safe_open, SafetensorError

        if not self.path.is_file():
            return
        try:
            with safe_open(self.path, framework="pt") as file:
                about = file.metadata() or {}
                if about.get("digest") != self.digest:
                    return
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except SafetensorError:
            return  # damaged: begin anew
        self.losses = json.loads(about["losses"])
        with torch.no_grad():
            for name, side in self.sides.items():
                side.copy_(tensors[f"side {name}"])
                if self.losses:
                    slots = {slot: tensors[f"{slot} {name}"].to(side.device) for slot in _SLOTS}
                    self.optimizer.state[side] = {"step": torch.tensor(float(len(self.losses))), **slots}
        torch.set_rng_state(tensors["generator"])


@contextmanager
def _dropping(model: Any) -> Iterator[None]:
    """The LoRA's dropout on, and nothing else of training mode."""
    own = [module for name, module in model.named_modules() if name.split(".")[-2:-1] == ["lora_dropout"]]
    for module in own:
        module.train()
    try:
        yield
    finally:
        for module in own:
            module.eval()
