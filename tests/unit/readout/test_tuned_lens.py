"""Tuned lens: a planted translator is found, identity and other models, files of our own and of the public package."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError, DamagedFileError, ModelError, WriteError
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import wrap
from symbolic_residue.readout import fit_tuned_lens, lens_reads, load_tuned_lens, logit_lens, Translator, tuned_lens, TunedLens
from symbolic_residue.readout._tuned_lens import model_identity


@pytest.fixture(scope="module")
def instrument() -> Instrument:
    return Instrument(wrap(build("llama"), tiny_tokenizer()))


@pytest.fixture(scope="module")
def other() -> Instrument:
    return Instrument(wrap(build("llama", seed=5), tiny_tokenizer()))


def sequences(n: int = 12, length: int = 24) -> list[list[int]]:
    return torch.randint(4, 384, (n, length), generator=torch.Generator().manual_seed(1)).tolist()


def test_a_shift_and_turn_between_depths_is_found() -> None:
    """Planted: MLPs and attention write nothing but a constant, so the last residual is depth 0's plus a constant; the lens can be exact."""
    model = build("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    instrument = Instrument(wrap(model, tiny_tokenizer()))
    shift = torch.randn(64, generator=torch.Generator().manual_seed(2)) * 0.4
    model.model.layers[0].register_forward_hook(lambda module, args, output: output + shift)
    found = fit_tuned_lens(instrument, sequences(20), seed=0, steps=150, lr=0.02, depths=(0,))
    (depth,) = found.depths
    assert depth.logit_lens.value > 0.5
    assert depth.tuned.value < 0.02 * depth.logit_lens.value
    assert depth.gain.above(0.0) and depth.gain.n == 4


def test_fitting_helps_on_held_out_sequences_leaves_the_model_alone_and_repeats(instrument: Instrument) -> None:
    before = {name: p.clone() for name, p in instrument.model.named_parameters()}
    rng = torch.get_rng_state()
    first = fit_tuned_lens(instrument, sequences(20), seed=3, steps=40, lr=5e-3)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in instrument.model.named_parameters())
    assert [d.depth for d in first.depths] == [0, 1]
    for d in first.depths:
        assert d.tuned.value < d.logit_lens.value and d.steps > 0
        assert d.gain.value == pytest.approx(d.logit_lens.value - d.tuned.value)
    again = fit_tuned_lens(instrument, sequences(20), seed=3, steps=40, lr=5e-3)
    differs = fit_tuned_lens(instrument, sequences(20), seed=4, steps=40, lr=5e-3)
    for depth in (0, 1):
        a, b, c = (fit.lens.translators[depth].bias for fit in (first, again, differs))
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_useless_fit_keeps_the_identity(instrument: Instrument) -> None:
    found = fit_tuned_lens(instrument, sequences(6), seed=0, steps=30, lr=50.0)
    for d in found.depths:
        assert d.steps == 0 and d.gain.value == 0.0
        assert float(found.lens.translators[d.depth].bias.abs().max()) == 0.0


def test_low_rank(instrument: Instrument) -> None:
    found = fit_tuned_lens(instrument, sequences(20), seed=0, steps=40, lr=5e-3, rank=4, depths=(1,))
    translator = found.lens.translators[1]
    assert translator.up is not None and translator.down is not None and translator.up.shape == (64, 4)
    assert found.depths[0].tuned.value < found.depths[0].logit_lens.value
    x = torch.randn(3, 64)
    torch.testing.assert_close(translator(x), x + x @ (translator.up @ translator.down).T + translator.bias)


def test_applying_translates_before_the_norm(instrument: Instrument) -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(64, 64, generator=g) * 0.1, torch.randn(64, generator=g)
    lens = TunedLens({1: Translator(b, a)}, model_identity(instrument.loaded))
    trace = instrument.run(torch.tensor(sequences(2, 8)), reads=lens_reads())
    got = tuned_lens(trace, instrument, lens, tokens=(5,))
    plain = logit_lens(trace, instrument.parts, tokens=(5,))
    x = trace["resid_post.0"]
    logits = instrument.model.lm_head(instrument.model.model.norm(x + x @ a.T + b))
    torch.testing.assert_close(got.log_probability[1, ..., 0], torch.log_softmax(logits, -1)[..., 5])
    assert float((got.log_probability[1] - plain.log_probability[1]).abs().max()) > 0.1
    for depth in (0, 2):  # no translator
        assert torch.equal(got.log_probability[depth], plain.log_probability[depth])


def test_saved_and_loaded_and_refused_elsewhere(instrument: Instrument, other: Instrument, tmp_path: Path) -> None:
    for rank in (None, 3):
        fit = fit_tuned_lens(instrument, sequences(8), seed=0, steps=10, rank=rank)
        path = fit.lens.save(tmp_path / f"lens{rank}.safetensors")
        loaded = load_tuned_lens(path, instrument.loaded)
        assert loaded.record == fit.lens.record and loaded.record["seed"] == "0" and loaded.model == fit.lens.model
        for depth, translator in fit.lens.translators.items():
            for name, tensor in translator.tensors().items():
                assert torch.equal(getattr(loaded.translators[depth], name), tensor)
    with pytest.raises(ModelError, match="another model"):
        load_tuned_lens(path, other.loaded)
    trace = other.run(torch.tensor(sequences(1, 4)), reads=lens_reads())
    with pytest.raises(ModelError, match="another model"):
        tuned_lens(trace, other, fit.lens)
    with pytest.raises(WriteError):
        fit.lens.save(tmp_path / "missing" / "lens.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lens3.safetensors", "lensNone.safetensors"]


def test_damaged_files(instrument: Instrument, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    identity = model_identity(instrument.loaded)
    good = {"format": "symbolic-residue tuned lens 1", "model": identity, "record": "{}"}
    path = tmp_path / "lens.safetensors"
    path.write_bytes(b"no lens")
    with pytest.raises(DamagedFileError, match="safetensors"):
        load_tuned_lens(path, instrument.loaded)
    zeros = torch.zeros(64, 64)
    for tensors, header, what in (
        ({"0.bias": torch.zeros(64), "0.matrix": zeros}, {}, "no tuned lens"),
        ({"0.bias": torch.zeros(64), "0.matrix": torch.zeros(64, 32)}, good, "shape"),
        ({"0.bias": torch.full((64,), float("nan")), "0.matrix": zeros}, good, "finite"),
        ({"7.bias": torch.zeros(64), "7.matrix": zeros}, good, "depth 7"),
        ({"0.bias": torch.zeros(64)}, good, "no translator"),
        ({"0.weight": zeros}, good, "which no tuned lens has"),
    ):
        save_file(tensors, path, metadata=header)
        with pytest.raises(DamagedFileError, match=what):
            load_tuned_lens(path, instrument.loaded)
    with pytest.raises(ConfigError, match="no tuned lens at"):
        load_tuned_lens(tmp_path / "nowhere", instrument.loaded)


def public_folder(folder: Path, instrument: Instrument, *, hashed: bool, tensors: Any = None, safe: bool = False) -> Path:
    """A folder as the public package writes it; its hash is of NumPy's print to one decimal."""
    from safetensors.torch import save_file

    folder.mkdir()
    w_u = instrument.parts.w_u.numpy()
    digest = hashlib.sha256(str.encode(np.array_str(w_u, precision=1))).hexdigest()
    config = {
        "base_model_name_or_path": "some/model",
        "d_model": 64,
        "num_hidden_layers": 2,
        "bias": True,
        "unembed_hash": digest if hashed else None,
    }
    (folder / "config.json").write_text(json.dumps(config))
    g = torch.Generator().manual_seed(0)
    state = tensors or {
        f"{i}.{n}": torch.randn(s, generator=g) for i in range(2) for n, s in (("weight", (64, 64)), ("bias", (64,)))
    }
    if safe:
        save_file(state, folder / "params.safetensors")
    else:
        torch.save(state, folder / "params.pt")
    return folder


@pytest.mark.parametrize("safe", [False, True])
def test_lenses_of_the_public_package(instrument: Instrument, other: Instrument, tmp_path: Path, safe: bool) -> None:
    folder = public_folder(tmp_path / "lens", instrument, hashed=True, safe=safe)
    lens = load_tuned_lens(folder, instrument.loaded)
    assert set(lens.translators) == {0, 1} and lens.record["recognised_by"] == "hash of the unembedding"
    weight = torch.randn((64, 64), generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 64)
    torch.testing.assert_close(lens.translators[0](x), x + torch.nn.functional.linear(x, weight, lens.translators[0].bias))
    trace = instrument.run(torch.tensor(sequences(1, 4)), reads=lens_reads())
    tuned_lens(trace, instrument, lens)
    with pytest.raises(ModelError, match="another model"):
        load_tuned_lens(folder, other.loaded)


def test_a_public_lens_without_hash_needs_the_callers_word(instrument: Instrument, tmp_path: Path) -> None:
    folder = public_folder(tmp_path / "lens", instrument, hashed=False)
    with pytest.raises(ModelError, match="does not say by hash"):
        load_tuned_lens(folder, instrument.loaded)
    lens = load_tuned_lens(folder, instrument.loaded, assume_same_model=True)
    assert lens.record["recognised_by"] == "the caller's word"


class _Runs:
    """A pickle that would run code."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_pickles_with_code_and_broken_folders_are_refused(
    instrument: Instrument, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = public_folder(tmp_path / "code", instrument, hashed=True, tensors={"0.weight": _Runs()})
    with pytest.raises(DamagedFileError, match="more than tensors"):
        load_tuned_lens(folder, instrument.loaded)
    assert not Path("ran").exists()
    missing = public_folder(tmp_path / "missing", instrument, hashed=True, tensors={"0.weight": torch.zeros(64, 64)})
    with pytest.raises(DamagedFileError, match=r"1\.weight"):
        load_tuned_lens(missing, instrument.loaded)
    (missing / "params.pt").unlink()
    with pytest.raises(DamagedFileError, match="neither"):
        load_tuned_lens(missing, instrument.loaded)
    (missing / "config.json").write_text(json.dumps({"d_model": 32, "num_hidden_layers": 2}))
    with pytest.raises(ModelError, match="width 32"):
        load_tuned_lens(missing, instrument.loaded)
    (missing / "config.json").unlink()
    with pytest.raises(DamagedFileError, match=r"config\.json"):
        load_tuned_lens(missing, instrument.loaded)


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 0},
        {"rank": 65},
        {"depths": (2,)},
        {"depths": ()},
        {"steps": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"rows_per_step": 0},
    ],
)
def test_options_out_of_range(instrument: Instrument, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        fit_tuned_lens(instrument, sequences(8), seed=0, **options)


def test_too_few_sequences(instrument: Instrument) -> None:
    with pytest.raises(ConfigError, match="too few"):
        fit_tuned_lens(instrument, sequences(5), seed=0)
