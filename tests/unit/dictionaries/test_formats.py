"""Every format gives back the dictionary that its files were written from; what it does not compute is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dictionary_files import (
    D,
    F,
    random_dictionary,
    write_circuit_tracer,
    write_clt,
    write_gemma_scope,
    write_gemma_scope_2,
    write_gemma_scope_2_clt,
    write_saelens,
    write_sparsify,
)
from safetensors.torch import load_file, save_file

from symbolic_residue.dictionaries import open_dictionary, save_dictionary, Transcoders
from symbolic_residue.errors import DamagedFileError, DictionaryError, NonFiniteWeightsError


def same(found: Transcoders, made: Transcoders) -> None:
    """Layer by layer the same numbers, places and responses."""
    assert list(found.layers) == sorted(made.layers)
    for i, one in made.layers.items():
        other = found.layers[i]
        assert (other.reads, other.predicts) == (one.reads, one.predicts)
        assert (other.activation.kind, other.activation.k) == (one.activation.kind, one.activation.k)
        assert set(other.tensors()) == set(one.tensors())
        for name, tensor in one.tensors().items():
            assert torch.equal(other.tensors()[name], tensor), (i, name)


def oracle(made: Transcoders, x: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    """Predictions feature by feature in plain numbers."""
    found = {}
    for j, one in made.layers.items():
        rows = []
        for t in range(len(x[j])):
            y = one.bias.double().clone()
            if one.skip is not None:
                y += torch.stack([sum(x[j][t, a].double() * one.skip[a, b].double() for a in range(D)) for b in range(D)])
            for i, other in made.layers.items():
                if j not in other.decoders:
                    continue
                pre = [float(other.encoder[f].double() @ x[i][t].double() + other.encoder_bias[f].double()) for f in range(F)]
                order = sorted(range(F), key=lambda f: -pre[f])
                for f in range(F):
                    act = other.activation
                    keep = {
                        "relu": pre[f] > 0,
                        "topk": f in order[: act.k] and (act.signed or pre[f] > 0),
                        "jumprelu": act.threshold is not None and pre[f] > max(0.0, float(act.threshold[f])),
                    }[act.kind]
                    if keep:
                        y += pre[f] * other.decoders[j][f].double()
            rows.append(y)
        found[j] = torch.stack(rows)
    return found


CASES: list[tuple[str, Any, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("circuit-tracer relu", write_circuit_tracer, {"reads": "resid_mid"}, {}, {}),
    ("circuit-tracer topk", write_circuit_tracer, {"kind": "signed", "skip": True, "predicts": "mlp"}, {}, {}),
    ("circuit-tracer jumprelu", write_circuit_tracer, {"kind": "jumprelu", "reads": "normalized"}, {}, {}),
    ("circuit-tracer clt", write_clt, {"clt": True, "reads": "resid_mid"}, {}, {}),
    ("circuit-tracer clt jumprelu", write_clt, {"clt": True, "reads": "resid_mid", "kind": "jumprelu"}, {}, {}),
    (
        "gemma scope",
        write_gemma_scope,
        {"kind": "jumprelu", "reads": "normalized"},
        {},
        {"reads": "normalized", "predicts": "mlp_out"},
    ),
    ("gemma scope 2", write_gemma_scope_2, {"kind": "jumprelu", "skip": True}, {}, {}),
    ("gemma scope 2 without skip", write_gemma_scope_2, {"kind": "jumprelu"}, {}, {}),
    ("gemma scope 2 clt", write_gemma_scope_2_clt, {"kind": "jumprelu", "skip": True, "clt": True}, {}, {}),
    ("saelens", write_saelens, {"reads": "normalized"}, {}, {}),
    ("saelens topk skip", write_saelens, {"reads": "normalized", "kind": "topk", "skip": True}, {}, {}),
    ("saelens jumprelu skip", write_saelens, {"reads": "normalized", "kind": "jumprelu", "skip": True}, {}, {}),
    ("sparsify", write_sparsify, {"kind": "topk", "predicts": "mlp"}, {}, {}),
    ("sparsify skip", write_sparsify, {"kind": "topk", "predicts": "mlp", "skip": True}, {}, {}),
]


@pytest.mark.parametrize(("write", "how", "entries", "given"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_format_gives_back_what_was_written(write: Any, how: dict[str, Any], entries: Any, given: Any, tmp_path: Path) -> None:
    made = random_dictionary(seed=3, **how)
    found = open_dictionary(write(made, tmp_path / "d", **entries), **given)
    same(found, made)
    assert found.sha256 == made.sha256 and found.kind == ("clt" if how.get("clt") else "transcoders")
    x = {i: torch.randn(4, D, generator=torch.Generator().manual_seed(i)) for i in made.layers}
    wanted, got = oracle(made, x), found.predict({i: one.double() for i, one in x.items()})
    for i in wanted:
        torch.testing.assert_close(got[i], wanted[i], rtol=0, atol=1e-12)
    back = open_dictionary(save_dictionary(found, tmp_path / "own"))
    same(back, made)
    assert back.sha256 == made.sha256 and dict(back.source) == dict(found.source)


@pytest.mark.parametrize("kind", ["relu", "topk", "signed", "jumprelu"])
def test_active_features_are_those_that_are_not_zero(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("symbolic_residue.dictionaries._dictionary._BLOCK", 2 * F)  # two positions at a time
    layer = random_dictionary(1, kind=kind).layers[0]
    x = torch.randn(7, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    position, feature, value = layer.active(x)
    dense = torch.zeros(7, F, dtype=torch.float64)
    dense[position, feature] = value
    torch.testing.assert_close(dense, layer.encode(x), rtol=0, atol=1e-14)
    assert (value != 0).all() and 0 < len(value) < dense.numel()
    pre = x @ layer.encoder.double().T + layer.encoder_bias
    torch.testing.assert_close(value, pre[position, feature], rtol=0, atol=1e-14)
    assert bool((value < 0).any()) == (kind == "signed")


def test_the_hash_is_of_what_the_dictionary_does() -> None:
    from dataclasses import replace

    made = random_dictionary(seed=1, kind="topk")
    hashes = {made.sha256}
    one = made.layers[1]
    changed = one.encoder.clone()
    changed[2, 3] += 1e-3
    for other in (
        replace(one, encoder=changed),
        replace(one, reads="resid_mid"),
        replace(one, predicts="mlp"),
        replace(one, activation=replace(one.activation, k=3)),
        replace(one, skip=torch.eye(D)),
    ):
        hashes.add(Transcoders(dict(made.layers) | {1: other}).sha256)
    assert len(hashes) == 6
    assert Transcoders(dict(made.layers), {"model": "another name"}).sha256 == made.sha256


def test_layers_may_be_missing_and_a_list_of_folders_is_read(tmp_path: Path) -> None:
    made = random_dictionary(only=(0, 2), kind="topk", predicts="mlp")
    folder = write_sparsify(made, tmp_path / "d")
    same(open_dictionary(folder), made)
    found = open_dictionary([folder / "layers.2.mlp"])
    assert list(found.layers) == [2]


def test_a_set_of_files_named_in_the_config_is_read(tmp_path: Path) -> None:
    made = random_dictionary(kind="jumprelu")
    folder = write_circuit_tracer(made, tmp_path, transcoders=["a/x.safetensors", "a/y.safetensors", "a/z.safetensors"])
    (folder / "a").mkdir()
    for i, name in enumerate("xyz"):
        (folder / f"layer_{i}.safetensors").rename(folder / "a" / f"{name}.safetensors")
    same(open_dictionary(folder), made)


def rewrite(path: Path, **changes: Any) -> None:
    tensors = load_file(path)
    for name, value in changes.items():
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"model_kind": "sae"}, "model_kind"),
        ({"activation": "gelu"}, "activation"),
        ({"activation": "topk"}, "needs its k"),
        ({"activation": "topk", "k": 99}, "keeps 99 of 10"),
        ({"k": 3}, "Only TopK"),
        ({"feature_input_hook": "hook_resid_pre"}, "not known"),
        ({"feature_input_hook": "hook_mlp_in"}, "not known"),
        ({"feature_output_hook": ...}, "does not say"),
        ({"scale_inputs": True}, "not known: scale_inputs"),
        ({"transcoders": ["https://example.org/x.safetensors"]}, "not known"),
        ({"transcoders": ["nowhere.safetensors"]}, "no file"),
        ({"transcoders": "all"}, "no list"),
    ],
)
def test_configs_of_circuit_tracer_that_are_not_understood_are_refused(entries: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = write_circuit_tracer(random_dictionary(), tmp_path / "d", **entries)
    with pytest.raises(DictionaryError, match=said):
        open_dictionary(folder)


def test_what_is_given_fills_in_but_never_overrules(tmp_path: Path) -> None:
    made = random_dictionary(kind="topk")
    folder = write_circuit_tracer(made, tmp_path / "d", k=..., feature_input_hook="blocks.mlp.in")
    assert open_dictionary(folder, k=4, reads="mlp_in").layers[0].activation.k == 4
    with pytest.raises(DictionaryError, match="needs its k"):
        open_dictionary(folder, reads="mlp_in")
    with pytest.raises(DictionaryError, match="which is 'mlp_out'"):
        open_dictionary(folder, k=4, reads="mlp_in", predicts="mlp")
    with pytest.raises(DictionaryError, match="k = 4; k = 5"):
        open_dictionary(write_circuit_tracer(made, tmp_path / "e"), k=5)
    with pytest.raises(DictionaryError, match="k=5 was given"):
        open_dictionary(save_dictionary(made, tmp_path / "own"), k=5)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"W_extra": torch.ones(2)}, DictionaryError, "'W_extra', which this format does not have"),
        ({"b_dec": None}, DictionaryError, "lacks 'b_dec'"),
        ({"b_enc": torch.zeros(F + 1)}, DictionaryError, "encoder_bias has shape"),
        ({"W_dec": torch.ones(F, D + 1)}, DictionaryError, "decoder.1 has shape"),
        ({"W_enc": torch.ones(F)}, DictionaryError, "not .feature, d_model."),
        ({"W_enc": torch.ones(F, D + 1)}, DictionaryError, "the encoder asks for"),
        ({"W_enc": torch.zeros(F, D)}, DictionaryError, "All its features are zero"),
        ({"W_dec": torch.zeros(F, D)}, DictionaryError, "All its features are zero"),
        ({"b_enc": torch.zeros(F, dtype=torch.int64)}, DictionaryError, "holds int64"),
        ({"W_enc": torch.full((F, D), float("nan"))}, NonFiniteWeightsError, "encoder"),
        ({"b_dec": torch.full((D,), float("inf"))}, NonFiniteWeightsError, "bias"),
        ({"activation_function.threshold": torch.ones(F)}, DictionaryError, "thresholds"),
        ({"k": torch.tensor(3)}, DictionaryError, "Only TopK"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changes: dict[str, Any], error: type[Exception], said: str, tmp_path: Path) -> None:
    folder = write_circuit_tracer(random_dictionary(), tmp_path / "d")
    rewrite(folder / "layer_1.safetensors", **changes)
    with pytest.raises(error, match=said):
        open_dictionary(folder)


def test_truncated_and_missing_files_are_refused(tmp_path: Path) -> None:
    made = random_dictionary(kind="jumprelu", reads="normalized")
    folder = write_circuit_tracer(made, tmp_path / "d")
    path = folder / "layer_1.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(DamagedFileError, match="layer_1"):
        open_dictionary(folder)
    path.unlink()
    with pytest.raises(DictionaryError, match="lacks layer_1"):
        open_dictionary(folder)
    (folder / "config.yaml").write_text("a: [1")
    with pytest.raises(DamagedFileError, match="YAML"):
        open_dictionary(folder)
    (folder / "config.yaml").write_text("just words")
    with pytest.raises(DamagedFileError, match="no table"):
        open_dictionary(folder)
    npz = next(write_gemma_scope(made, tmp_path / "g").rglob("params.npz"))
    npz.write_bytes(npz.read_bytes()[:-40])
    with pytest.raises(DamagedFileError, match="npz"):
        open_dictionary(tmp_path / "g", reads="normalized", predicts="mlp_out")
    for path, said in ((tmp_path / "nowhere", "no dictionary at"), (tmp_path / "empty", "no known format")):
        if path.name == "empty":
            path.mkdir()
        with pytest.raises(DictionaryError, match=said):
            open_dictionary(path)
    with pytest.raises(DictionaryError, match="No folder"):
        open_dictionary([])
    with pytest.raises(DictionaryError, match="several formats"):
        open_dictionary([write_sparsify(random_dictionary(kind="topk"), tmp_path / "s"), tmp_path / "g"])


def test_a_pickle_in_an_npz_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "layer_0" / "params.npz"
    path.parent.mkdir()
    np.savez(path, W_enc=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DamagedFileError, match="npz"):
        open_dictionary(tmp_path, reads="normalized", predicts="mlp_out")


def test_gemma_scope_must_be_told_where_it_reads(tmp_path: Path) -> None:
    made = random_dictionary(kind="jumprelu", reads="normalized")
    folder = write_gemma_scope(made, tmp_path / "g")
    with pytest.raises(DictionaryError, match="reads='normalized', predicts='mlp_out'"):
        open_dictionary(folder)
    (folder / "layer_0" / "width_65k").mkdir()
    (folder / "layer_0" / "width_65k" / "params.npz").write_bytes(next(folder.rglob("params.npz")).read_bytes())
    with pytest.raises(DictionaryError, match="two dictionaries for layer 0"):
        open_dictionary(folder, reads="normalized", predicts="mlp_out")


@pytest.mark.parametrize(
    ("write", "kind", "predicts", "entries", "said"),
    [
        (write_gemma_scope_2, "jumprelu", "mlp_out", {"architecture": "topk"}, "architecture"),
        (write_gemma_scope_2, "jumprelu", "mlp_out", {"type": "sae"}, "type"),
        (write_gemma_scope_2, "jumprelu", "mlp_out", {"affine_connection": True}, "skip connection"),
        (write_gemma_scope_2, "jumprelu", "mlp_out", {"hf_hook_point_in": "model.layers.9.mlp.input"}, "not one layer"),
        (write_gemma_scope_2, "jumprelu", "mlp_out", {"hf_hook_point_in": "model.layers.0.output"}, "not known"),
        (write_gemma_scope_2, "jumprelu", "mlp_out", {"rescaled": 1}, "not known: rescaled"),
        (write_saelens, "relu", "mlp_out", {"architecture": "standard"}, "autoencoder"),
        (write_saelens, "relu", "mlp_out", {"architecture": "batchtopk"}, "other positions of the batch"),
        (write_saelens, "relu", "mlp_out", {"normalize_activations": "layer_norm"}, "does not compute"),
        (write_saelens, "relu", "mlp_out", {"apply_b_dec_to_input": True}, "does not compute"),
        (write_saelens, "relu", "mlp_out", {"activation_fn_str": "tanh-relu"}, "tanh-relu"),
        (write_saelens, "relu", "mlp_out", {"activation_fn_str": "topk"}, "needs its k"),
        (write_saelens, "relu", "mlp_out", {"d_in": 9}, "d_in = 9"),
        (write_saelens, "relu", "mlp_out", {"d_sae": ...}, "must be a int"),
        (write_saelens, "relu", "mlp_out", {"mystery": 1}, "not known: mystery"),
        (write_saelens, "relu", "mlp_out", {"hook_name_out": "blocks.7.hook_mlp_out"}, "not one layer"),
        (write_sparsify, "topk", "mlp", {"transcode": False}, "autoencoder"),
        (write_sparsify, "topk", "mlp", {"activation": "groupmax"}, "groupmax"),
        (write_sparsify, "topk", "mlp", {"k": ...}, "needs its k"),
        (write_sparsify, "topk", "mlp", {"k": True}, "needs its k"),
        (write_sparsify, "topk", "mlp", {"embed_skip": True}, "embed_skip"),
        (write_sparsify, "topk", "mlp", {"num_latents": 11}, "11 features"),
        (write_sparsify, "topk", "mlp", {"skip_connection": True}, "lacks 'W_skip'"),
        (write_sparsify, "topk", "mlp", {"other": 0}, "not known: other"),
    ],
)
def test_settings_that_would_compute_something_else_are_refused(
    write: Any, kind: str, predicts: str, entries: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = write(random_dictionary(kind=kind, predicts=predicts), tmp_path / "d", **entries)
    with pytest.raises(DictionaryError, match=said):
        open_dictionary(folder)


def test_hookpoints_that_are_no_mlp_are_refused(tmp_path: Path) -> None:
    folder = write_sparsify(random_dictionary(kind="topk", predicts="mlp"), tmp_path / "d")
    (folder / "layers.1.mlp").rename(folder / "layers.1.attn")
    with pytest.raises(DictionaryError, match="transcoders of MLPs"):
        open_dictionary(folder)
    with pytest.raises(DictionaryError, match="module's input and output"):
        open_dictionary(folder, reads="resid_mid")


def test_a_cross_layer_transcoder_that_lacks_a_layer_is_refused(tmp_path: Path) -> None:
    made = random_dictionary(clt=True, reads="resid_mid")
    folder = write_clt(made, tmp_path / "d")
    (folder / "W_enc_2.safetensors").unlink()
    with pytest.raises(DictionaryError, match="with 2 layers"):
        open_dictionary(folder)
    (folder / "W_enc_1.safetensors").unlink()
    (folder / "W_enc_0.safetensors").unlink()
    with pytest.raises(DictionaryError, match="no W_enc_0"):
        open_dictionary(folder)
    with pytest.raises(DictionaryError, match="does not have"):
        Transcoders({0: made.layers[0]})
    with pytest.raises(DictionaryError, match="later ones"):
        from dataclasses import replace

        replace(made.layers[1], decoders={0: made.layers[0].decoders[0]})


def test_our_own_files_are_checked(tmp_path: Path) -> None:
    made = random_dictionary(kind="jumprelu", skip=True)
    folder = save_dictionary(made, tmp_path / "own")
    text = (folder / "dictionary.json").read_text()
    record = json.loads(text)
    for change, said in (
        ({"format": 2}, "format"),
        ({"sha256": "0" * 64}, "sha256"),
        ({"layers": [{}]}, "lacks"),
        ({"more": 1}, "more"),
    ):
        (folder / "dictionary.json").write_text(json.dumps(record | change))
        with pytest.raises((DamagedFileError, DictionaryError), match=said):
            open_dictionary(folder)
    (folder / "dictionary.json").write_text(text[:50])
    with pytest.raises(DamagedFileError, match="JSON"):
        open_dictionary(folder)


def test_layers_that_do_not_fit_together_are_refused() -> None:
    made = random_dictionary()
    with pytest.raises(DictionaryError, match="no layers"):
        Transcoders({})
    with pytest.raises(DictionaryError, match="other numbers"):
        Transcoders({1: made.layers[0]})
    wide = random_dictionary(only=(1,), d_model=8).layers[1]
    with pytest.raises(DictionaryError, match=r"different widths: \[6, 8\]"):
        Transcoders({0: made.layers[0], 1: wide})
