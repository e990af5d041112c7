"""Evaluation against transformers with its MLPs swapped by hooks; a dictionary that is the MLP has no error, a random one is worse than the mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dictionary_files import random_dictionary
from graph_helpers import instrument_of

from symbolic_residue.dictionaries import Activation, error_curves, evaluate_dictionary, LayerDictionary, Transcoders
from symbolic_residue.errors import DictionaryError, PromptError
from symbolic_residue.instrument import Instrument

PROMPTS = [list(range(5, 12)), list(range(30, 42)), [7, 300, 20, 111, 4]]


def swapped_kl(
    instrument: Instrument, dictionary: Transcoders, only: set[int], means: dict[int, torch.Tensor] | None = None
) -> list[float]:
    """KL a prompt, in plain torch: in these layers' MLP modules every position but the first gives the prediction from what the module gets, or a mean."""
    found = []
    for ids in PROMPTS:
        logits = []
        for swap in (set(), only):
            acts: dict[int, torch.Tensor] = {}
            handles = []
            for i in dictionary.layers:
                module: Any = instrument.parts.layers[i].mlp

                def hook(
                    _m: Any, args: Any, out: torch.Tensor, i: int = i, swap: set[int] = swap, acts: Any = acts
                ) -> torch.Tensor:
                    one = dictionary.layers[i]
                    acts[i] = one.encode(args[0][0])
                    y = one.bias + sum(
                        acts[k] @ dictionary.layers[k].decoders[i] for k in dictionary.layers if i in dictionary.layers[k].decoders
                    )
                    y = y + args[0][0] @ one.skip if one.skip is not None else y
                    y = y if means is None else means[i].expand_as(y)
                    return torch.cat([out[:, :1], y[None, 1:]], 1) if i in swap else out

                handles.append(module.register_forward_hook(hook))
            with torch.no_grad():
                logits.append(instrument.model(torch.tensor([ids])).logits[0, 1:])
            for handle in handles:
                handle.remove()
        p, q = (one.log_softmax(-1) for one in logits)
        found.append(float((p.exp() * (p - q)).sum(-1).mean()))
    return found


@pytest.mark.parametrize("how", [{"kind": "topk", "skip": True}, {"kind": "relu", "clt": True}], ids=["transcoders", "clt"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_kl_is_that_of_the_model_with_its_mlps_swapped(name: str, how: dict[str, Any]) -> None:
    instrument = instrument_of(name)
    dictionary = random_dictionary(2, d_model=64, features=40, dtype=torch.float64, reads="mlp_in", predicts="mlp", **how)
    table = evaluate_dictionary(instrument, dictionary, PROMPTS)
    assert table["layer"].to_list() == [0, 1] and table["n"].to_list() == [3, 3]
    for i in (0, 1):
        alone, together = swapped_kl(instrument, dictionary, {i}), swapped_kl(instrument, dictionary, set(range(i + 1)))
        assert table["kl"][i] == pytest.approx(sum(alone) / 3, rel=1e-5)
        assert table["kl_up_to"][i] == pytest.approx(sum(together) / 3, rel=1e-5)
    if name != "gemma2":  # a norm follows its MLP: the mean is of what comes after it
        writes = [instrument.run(torch.tensor([ids]), reads=["mlp_out.*"]) for ids in PROMPTS]
        means = {i: torch.cat([w[f"mlp_out.{i}"][0, 1:] for w in writes]).mean(0) for i in (0, 1)}
        for i in (0, 1):
            alone, together = (swapped_kl(instrument, dictionary, those, means) for those in ({i}, set(range(i + 1))))
            assert table["kl_mean"][i] == pytest.approx(sum(alone) / 3, rel=1e-5)
            assert table["kl_mean_up_to"][i] == pytest.approx(sum(together) / 3, rel=1e-5)
        assert table["kl_mean_up_to"][1] != pytest.approx(table["kl_mean"][1], rel=1e-3)
    assert table["kl"][1] != pytest.approx(table["kl_up_to"][1], rel=1e-3)
    for name in ("fvu", "l0", "kl", "kl_mean", "kl_up_to", "kl_mean_up_to"):
        for low, value, high in zip(*(table[name + end] for end in ("_low", "", "_high")), strict=True):
            assert (name == "fvu" and low is None) or 0 <= low <= value <= high  # a ratio of three prompts may have no interval


def test_fvu_and_l0_by_their_formula_where_the_stream_is_read() -> None:
    instrument = instrument_of("gpt2")
    dictionary = random_dictionary(2, d_model=64, features=40, dtype=torch.float64, reads="normalized", kind="jumprelu")
    table = evaluate_dictionary(instrument, dictionary, PROMPTS)
    norm = instrument.parts.layers[1].pre_mlp_norm
    assert norm is not None
    x, y, wrong, active = [], [], [], []
    for ids in PROMPTS:
        trace = instrument.run(torch.tensor([ids]), reads=["resid_mid.1", "mlp_out.1"])
        z = trace["resid_mid.1"][0, 1:]
        z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
        one = dictionary.layers[1]
        acts = one.encode(z)
        x.append(z)
        y.append(trace["mlp_out.1"][0, 1:])
        wrong.append(y[-1] - acts @ one.decoders[1] - one.bias)
        active.append(float((acts > 0).sum(-1).double().mean()))
    whole = torch.cat(y)
    fvu = torch.cat(wrong).square().sum() / (whole - whole.mean(0)).square().sum()
    spread = (whole - whole.mean(0)).square().sum(-1)
    assert table["largest"][1] == pytest.approx(float(spread.max() / spread.sum()), rel=1e-6)
    assert table["fvu"][1] == pytest.approx(float(fvu), rel=1e-6) and table["l0"][1] == pytest.approx(sum(active) / 3)


def test_the_mlp_itself_has_no_error_and_the_mean_has() -> None:
    instrument = instrument_of("opt", activation_function="relu")
    layers = {}
    for i, layer in enumerate(instrument.parts.layers):
        block: Any = layer.block
        layers[i] = LayerDictionary(
            i, block.fc1.weight.detach(), block.fc1.bias.detach(), {i: block.fc2.weight.detach().T}, block.fc2.bias.detach(),
            Activation(), "mlp_in", "mlp",
        )  # fmt: skip
    table = evaluate_dictionary(instrument, Transcoders(layers), PROMPTS)
    assert table["fvu"].max() < 1e-10 and table["kl"].max() < 1e-8 and table["kl_up_to"].max() < 1e-8
    assert table["kl_mean"].min() > 1e-3
    random = evaluate_dictionary(instrument, random_dictionary(2, d_model=64, features=40, dtype=torch.float64), PROMPTS)
    assert random["fvu"].min() > 0.5 and (random["kl"] > table["kl"]).all()
    one = evaluate_dictionary(instrument, Transcoders(layers), PROMPTS[:1])
    assert one["kl_low"].null_count() == 2 and one["n"].to_list() == [1, 1]


def test_how_errors_add_up_is_drawn_beside_its_controls() -> None:
    from symbolic_residue.figures import curves

    table = evaluate_dictionary(instrument_of("llama"), random_dictionary(2, d_model=64, features=40, dtype=torch.float64), PROMPTS)
    drawn = error_curves(table)
    assert drawn["series"].n_unique() == 4 and drawn["n"].unique().to_list() == [3]
    for name, series in (("kl_up_to", "dictionary, layers up"), ("kl_mean", "control: mean write, this")):
        part = drawn.filter(drawn["series"].str.starts_with(series))
        assert part["x"].to_list() == [0, 1] and part["value"].to_list() == table[name].to_list()
        assert part["low"].to_list() == table[f"{name}_low"].to_list()
    shown = curves(drawn).to_dict()
    assert "KL of the next token (nats)" in str(shown)


def test_what_cannot_be_evaluated_is_refused() -> None:
    instrument = instrument_of("llama")
    with pytest.raises(DictionaryError, match="width 32"):
        evaluate_dictionary(instrument, random_dictionary(2, d_model=32), PROMPTS)
    with pytest.raises(DictionaryError, match="has layer 2"):
        evaluate_dictionary(instrument, random_dictionary(3, d_model=64), PROMPTS)
    for prompts in ([], [[5, 6]]):
        with pytest.raises(PromptError):
            evaluate_dictionary(instrument, random_dictionary(2, d_model=64), prompts)
