"""Where a graph is computed: on the model's device; where it is kept: in main memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

__all__ = ["on"]


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Within it tensors are made on the device, where nothing else is said. Never around a ``yield``: what runs between would be within it too."""
    return nullcontext() if torch.get_default_device() == device else device
