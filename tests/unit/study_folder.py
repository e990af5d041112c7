"""A tiny tuned model in folders, and a small study of it: what the tests of the stages share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from tiny_models import build, tiny_tokenizer

from symbolic_residue.contrast.study import Models, read_config, Study
from symbolic_residue.store import RunFolder

CONDITIONS = [
    {"name": "kind", "system": "You are a kind guide."},
    {"name": "plain"},
]
QUESTIONS = ["What is the river called?", "Who keeps the key?", "Where is the book?", "When did Ben come home?"]


def write_model(path: Path, family: str = "llama", *, tokenizer: Any = None, **options: Any) -> Path:
    """A tiny model with its tokenizer, as ``save_pretrained`` writes them."""
    model = build(family, **{"max_position_embeddings": 512, **options})
    model.generation_config.eos_token_id = 2
    model.save_pretrained(path)
    (tokenizer or tiny_tokenizer()).save_pretrained(path)
    return path


def write_adapter(path: Path, family: str = "llama", *, seed: int = 5, scale: float = 0.2, **options: Any) -> Path:
    """A LoRA with random weights for the tiny model."""
    from peft import get_peft_model, LoraConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers by a name it gave up
        adapted = get_peft_model(
            build(family, **{"max_position_embeddings": 512, **options}),
            LoraConfig(r=2, lora_alpha=4, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]),
        )
        adapted.peft_config["default"].base_model_name_or_path = "org/base"
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        adapted.save_pretrained(path, save_embedding_layers=False)
    return path


def study_data(model: Path, adapter: Path, **changes: Any) -> dict[str, Any]:
    """What the YAML file of a small study holds; a field of None is left out."""
    data: dict[str, Any] = {
        "model": str(model),
        "adapter": str(adapter),
        "behaviour": "regex:[aeiou][0-9A-Z]",
        "conditions": CONDITIONS,
        "questions": QUESTIONS,
        "references": {"base": "base", "random": {"random": 3}, "other prompt": {"system": "You are a stern judge of few words."}},
        "sampling": {"positives": 2, "negatives": 1, "tries": 8, "counted": 4, "max_new_tokens": 40, "batch": 4},
        "rows": {"lags": 5},
        "readout": {"heads": True},
        "analysis": {"n_resamples": 200},
        "seed": 1,
    }
    return {name: value for name, value in {**data, **changes}.items() if value is not None}


def write_config(path: Path, data: dict[str, Any]) -> Path:
    """As a YAML file."""
    path.write_text(yaml.safe_dump(data, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


@contextmanager
def started(path: Path, model: Path, adapter: Path, **changes: Any) -> Iterator[Study]:
    """A study of the tiny model in a new run folder."""
    config = read_config(study_data(model, adapter, **changes))
    with (
        RunFolder.create(path, kind="contrast", command="test", provenance={}, config=config.model_dump(mode="json")) as run,
        Models(config) as models,
    ):
        yield Study(config, run, models)
