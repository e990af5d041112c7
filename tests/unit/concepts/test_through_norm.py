"""Ablation through the norm: equal to the norm's own forward, and to a forward of the model without the head where nothing else depends on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.concepts import ablated_through_norm, draw_labels, head_importance, make_design, output_weights
from symbolic_residue.errors import ConfigError, ReadError
from symbolic_residue.instrument import HeadScale, Instrument
from symbolic_residue.models import bind, wrap


def inputs(n: int = 6) -> torch.Tensor:
    return torch.randint(5, 300, (n, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["gpt_neox", "stablelm_parallel", "cohere"])
def test_equal_to_a_forward_without_the_head(name: str) -> None:
    """In a parallel block the MLP does not see attention: in the last layer the stream loses the head's write and nothing else."""
    instrument = Instrument(wrap(build(name, 0), tiny_tokenizer()))
    parts, last, token = instrument.parts, instrument.parts.n_layers - 1, 17
    whole = instrument.run(inputs(), reads=(f"resid_post.{last}", f"z.{last}"))
    x, z = whole[f"resid_post.{last}"][:, -1], whole[f"z.{last}"][:, -1]
    v = _row(parts, token)
    found = ablated_through_norm(x.numpy(), z.numpy(), output_weights(parts, last), v, parts.final_norm)
    for head in range(parts.n_heads):
        without = instrument.run(inputs(), edits=(HeadScale(last, head, 0.0),))
        gone = (whole.logits[:, -1, token] - without.logits[:, -1, token]).double().numpy() / parts.logit_scale
        np.testing.assert_allclose(found[:, head], gone, rtol=2e-3, atol=2e-4)


def _row(parts: object, token: int) -> np.ndarray:
    """What a token's logit reads of the normed stream."""
    eye = torch.eye(parts.d_model)  # type: ignore[attr-defined]
    zero = parts.unembed(torch.zeros(1, parts.d_model))[:, token]  # type: ignore[attr-defined]
    return (parts.unembed(eye)[:, token] - zero).double().detach().numpy()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma"])
def test_equal_to_the_norm_itself(name: str) -> None:
    parts = bind(build(name, 0))
    rng = np.random.default_rng(0)
    x, v = rng.normal(size=(5, parts.d_model)) + 0.3, rng.normal(size=parts.d_model)
    z, w = rng.normal(size=(5, parts.n_heads, parts.d_head)), output_weights(parts, 1)
    found = ablated_through_norm(x, z, w, v, parts.final_norm)
    for h in range(parts.n_heads):
        both = (parts.final_norm.formula(torch.from_numpy(y)).detach().numpy() @ v for y in (x, x - z[:, h] @ w[h]))
        np.testing.assert_allclose(found[:, h], next(both) - next(both), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(ablated_through_norm(x, 0 * z, w, v, parts.final_norm), 0, atol=1e-12)
    with pytest.raises(ConfigError):
        ablated_through_norm(x, z, w, v[1:], parts.final_norm)


def test_a_head_that_writes_the_concept_is_found_and_permuted_labels_find_none() -> None:
    parts = bind(build("llama", 0))
    rng = np.random.default_rng(1)
    design = make_design(["baseline", "joy"] * 12, [f"{i:02}" for i in range(12) for _ in range(2)], "joy")
    drawn = draw_labels(design, 199, 0)
    w = output_weights(parts, 1)
    z = rng.normal(size=(24, parts.n_heads, parts.d_head))
    v = w[2, 0] / np.linalg.norm(w[2, 0])

    def found_with(size: float, z: np.ndarray = z) -> np.ndarray:
        z = z.copy()
        z[design.positive, 2, 0] += size
        x = 3 * rng.normal(size=(24, parts.d_model)) + np.einsum("nhd,hdm->nm", z, w)
        found = head_importance(x, z, parts, 1, v, design, drawn)
        np.testing.assert_allclose(found.importance, design.weights() @ ablated_through_norm(x, z, w, v, parts.final_norm))
        return found.p

    assert found_with(5.0)[2] <= 0.01
    assert sum(found_with(0.0, rng.normal(size=z.shape)).min() <= 0.05 for _ in range(60)) <= 8


def test_a_norm_of_the_attention_output_is_refused() -> None:
    parts = bind(build("olmo2", 0))
    design = make_design(["baseline", "joy"] * 2, ["a", "a", "b", "b"], "joy")
    with pytest.raises(ReadError, match="norms its attention output"):
        head_importance(
            np.zeros((4, parts.d_model)),
            np.zeros((4, parts.n_heads, parts.d_head)),
            parts,
            1,
            np.zeros(parts.d_model),
            design,
            design.positive[None],
        )
