"""Architectures that the table has never seen: found by their structure and confirmed by a forward, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import ALL, build, spread, tiny_tokenizer
from torch import nn

from symbolic_residue.errors import UnsupportedModelError
from symbolic_residue.instrument import Instrument, verify
from symbolic_residue.models import bind, FAMILIES, load_model
from symbolic_residue.models._discover import discover

SIZES: dict[str, Any] = {key: value for key, value in ALL["llama"].items() if key not in ("head_dim", "tie_word_embeddings")}


def unseen(model_type: str, **changes: Any) -> Any:
    assert model_type not in FAMILIES
    return spread(SIZES | {"model_type": model_type} | changes)


FOUND = [
    ("arcee", {}, ("rms", 0.0, False)),
    ("glm", {}, ("rms", 0.0, False)),
    ("jais2", {}, ("layer", 0.0, False)),
    ("apertus", {}, ("rms", 0.0, False)),
]


@pytest.mark.parametrize(("model_type", "changes", "norms"), FOUND)
def test_found_by_structure(model_type: str, changes: dict[str, Any], norms: tuple[str, float, bool]) -> None:
    model = unseen(model_type, **changes)
    rng, state = torch.get_rng_state(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    parts = bind(model)
    assert parts.discovered
    assert parts.family == f"{model_type} (discovered)"
    assert (parts.spec.norm_kind, parts.spec.norm_offset, parts.layers[0].post_attn_norm is not None) == norms
    assert (parts.embed_scale, parts.logit_scale) == (1.0, 1.0)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks
    assert model.config._attn_implementation == "sdpa"
    loaded = SimpleNamespace(model=model, parts=parts)
    measured = verify(loaded)  # type: ignore[arg-type]
    assert max(measured.residual_error, measured.head_error, measured.logit_error) < 1e-5
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(Instrument(loaded).run(ids, reads=("z.*",))["logits"], model(ids).logits)  # type: ignore[arg-type]


NOT_IN_TABLE = ("llama", "gemma", "gemma3", "phi3", "olmo2", "cohere2", "nemotron", "stablelm_parallel", "starcoder2", "glm4")


@pytest.mark.parametrize("name", NOT_IN_TABLE)
def test_discovery_finds_what_the_table_says(name: str) -> None:
    """Families of the table, looked for as if they were not in it (glm4's norms have names that are not looked for)."""
    model = build(name)
    known = bind(model)
    if name == "glm4":
        with pytest.raises(UnsupportedModelError, match=r"The MLP of|does not simply add"):
            discover(model)
        return
    spec = discover(model)
    for field in ("layers", "final_norm", "o_proj", "mlp_down", "norm_kind", "norm_offset", "qkv", "windows"):
        assert getattr(spec, field) == getattr(known.spec, field), field
    for field in ("parallel", "embed_scale", "logit_scale"):
        assert getattr(spec, field)(model.config) == pytest.approx(getattr(known.spec, field)(model.config), rel=1e-6), field


REFUSED = [
    ("diffllama", {}, "does not go through transformers' attention interface"),
    ("bitnet", {}, "stands between the heads of layer 0 and their output projection"),
    ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}, "not laid out as in llama"),
    ("nanochat", {}, "embedding is not what the parts give"),
]


@pytest.mark.parametrize(("model_type", "changes", "reason"), REFUSED)
def test_refused_in_one_sentence(model_type: str, changes: dict[str, Any], reason: str) -> None:
    model = unseen(model_type, **changes)
    with pytest.raises(UnsupportedModelError, match=f"'{model_type}' is not in the family table.*{reason}"):
        bind(model)
    assert model.config._attn_implementation == "sdpa"


def test_a_factor_inside_the_blocks_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="Layer 0 does not simply add the outputs"):
        discover(build("granite"))


def test_a_model_that_sees_later_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    unembed = model.lm_head

    class Peeks(nn.Linear):
        """Lets the last token into every logit."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return unembed(x + x[:, -1:])

    mixed = Peeks(64, unembed.out_features, bias=False)
    mixed.weight = unembed.weight
    monkeypatch.setattr("symbolic_residue.models._bind.check_plain", lambda module, name: None)
    model.lm_head = mixed
    with pytest.raises(UnsupportedModelError, match="later token changes the logits"):
        discover(model)


def test_an_unseen_architecture_loads_from_a_folder(tmp_path: Path) -> None:
    unseen("arcee").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.parts.discovered
    verify(loaded)


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_families_without_sdpa_load_with_the_attention_that_they_have(tmp_path: Path, name: str) -> None:
    build(name).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.model.config._attn_implementation == "eager"
    assert loaded.provenance.attention_backend == "eager"
