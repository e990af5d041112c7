"""The ``per_head`` block of ``quality.json``: a concept's heads as plain lists and numbers, with what each field means."""

from __future__ import annotations

from typing import Any

from symbolic_residue.concepts._collect import SkippedLayer
from symbolic_residue.concepts._heads import HeadDecomposition, LayerHeads, NullValue

__all__ = ["DEFINITION", "per_head_block"]

DEFINITION: dict[str, str] = {
    "hook": "input of the attention output projection at the pooled token, cut into query heads",
    "delta": "mean over positives - mean over negatives; paired: mean over scenarios of (positive - negative)",
    "raw_norm": "L2 norm of delta_h",
    "neg_std": "square root of the trace of the sample covariance (ddof 1) of head h over the negatives",
    "selectivity": "raw_norm / neg_std",
    "selectivity_null": "sqrt(1/n_pos + 1/n_neg): independent texts without a concept; by_selectivity has the permutation's mean beside each head",
    "head_concentration": "sum of the k largest raw_norm / sum of all, k = min(10, heads); equal heads give uniform = k / heads",
    "participation_ratio": "(sum m)^2 / sum m^2, m = raw_norm^2",
    "total_norm": "sum of raw_norm over heads",
    "write": "[head, norm of W_h delta_h, v . (W_h delta_h), |that| / sum over heads of |that|]",
    "null": "labels permuted within scenarios; p = share of labelings, the observed one among them, that reach the observed value",
    "p_layer": "family-wise over the layer's heads (largest standardised statistic)",
    "p_model": "family-wise over all heads of all layers here",
}


def per_head_block(found: HeadDecomposition) -> dict[str, Any]:
    """Plain data for JSON. Heads of ``top_heads`` are in order of raw_norm, those of ``by_selectivity`` of selectivity, those of ``write`` of |direct|."""
    design = found.design
    return {
        "definition": DEFINITION,
        "concept": found.concept,
        "against": design.against,
        "paired": design.paired,
        "n_pos": design.n_pos,
        "n_neg": design.n_neg,
        "n_scenarios": design.n_folds,
        "n_draws": found.n_draws,
        "seed": found.seed,
        "smallest_p": design.smallest_p,
        "skipped_layers": [_skipped(one) for one in found.skipped],
        "mixers_beside_attention": [_skipped(one) for one in found.beside],
        "notes": list(found.notes),
        "layers": {str(i): _layer(layer) for i, layer in sorted(found.layers.items())},
    }


def _layer(layer: LayerHeads) -> dict[str, Any]:
    raw, selectivity = layer.raw_norm.tolist(), layer.selectivity.tolist()
    write_norm, direct, share = layer.write_norm.tolist(), layer.direct.tolist(), layer.share.tolist()
    p_layer, p_model, null = layer.p_layer.tolist(), layer.p_model.tolist(), layer.selectivity_null.tolist()
    heads = range(layer.n_heads)
    block: dict[str, Any] = {
        "n_heads": layer.n_heads,
        "head_dim": layer.delta.shape[1],
        "k": layer.k,
        "top_heads": [[h, raw[h], selectivity[h]] for h in sorted(heads, key=lambda h: -raw[h])[: layer.k]],
        "head_concentration": layer.head_concentration,
        "uniform": layer.uniform,
        "concentration_null": _null(layer.concentration_null),
        "participation_ratio": layer.participation_ratio,
        "participation_null": _null(layer.participation_null),
        "total_norm": layer.total_norm,
        "total_norm_null": _null(layer.total_null),
        "selectivity_null": layer.selectivity_expected,
        "by_selectivity": [
            {"head": h, "selectivity": selectivity[h], "null_mean": null[h], "p_layer": p_layer[h], "p_model": p_model[h]}
            for h in sorted(heads, key=lambda h: -selectivity[h])
        ],
        "write": [[h, write_norm[h], direct[h], share[h]] for h in sorted(heads, key=lambda h: -abs(direct[h]))],
    }
    if layer.direct_null is not None and layer.direct_p is not None:
        mean, p = layer.direct_null.tolist(), layer.direct_p.tolist()
        block["direct_null"] = [{"head": h, "mean": mean[h], "p_layer": p[h]} for h in heads]
    return block


def _null(value: NullValue) -> dict[str, float]:
    return {"mean": value.mean, "sd": value.sd, "p": value.p}


def _skipped(one: SkippedLayer) -> dict[str, Any]:
    return {"layer": one.layer, "module": one.module, "reason": one.reason}
