"""Points, edits and verification on every family, against plain transformers and by algebra."""

from __future__ import annotations

from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from tiny_models import ALL, build, NEEDS_NEW_DOOR

from symbolic_residue.errors import EditError, ReadError, VerificationError
from symbolic_residue.instrument import Add, AttentionRead, HeadReplace, HeadScale, Instrument, Positions, Replace, Scale, verify
from symbolic_residue.models import bind, LayerParts
from symbolic_residue.types import POINT_KINDS

LENGTH = 12


@pytest.fixture(scope="module", params=[name for name in ALL if name not in NEEDS_NEW_DOOR])
def instrument(request: pytest.FixtureRequest) -> Instrument:
    model = build(request.param)
    return Instrument(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]


def ids(batch: int = 2, n: int = LENGTH, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, 384, (batch, n), generator=torch.Generator().manual_seed(seed))


def every_point(instrument: Instrument) -> list[str]:
    kinds = [kind for kind in POINT_KINDS if kind != "logits"]
    return [f"{kind}.{layer.index}" for kind in kinds for layer in instrument.parts.layers if layer.absent(kind) is None]


def hooks(instrument: Instrument) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in instrument.model.modules())


def test_residual_points_are_the_models_own_hidden_states(instrument: Instrument) -> None:
    with torch.no_grad():
        states = instrument.model(input_ids=ids(), output_hidden_states=True).hidden_states
    trace = instrument.run(ids(), reads=("resid_pre.*", "resid_post.*"))
    last = instrument.parts.n_layers - 1
    for i in range(instrument.parts.n_layers):
        assert torch.equal(trace[f"resid_pre.{i}"], states[i])
        if i < last:
            assert torch.equal(trace[f"resid_post.{i}"], states[i + 1])
    torch.testing.assert_close(instrument.parts.final_norm.module(trace[f"resid_post.{last}"]), states[last + 1])


def test_the_parts_add_up(instrument: Instrument) -> None:
    trace = instrument.run(ids(), reads=every_point(instrument))
    parts = instrument.parts
    for i, layer in enumerate(parts.layers):
        total = trace[f"resid_pre.{i}"]
        for kind in ("attn_out", "mixer_out"):
            if layer.absent(kind) is None:
                total = total + trace[f"{kind}.{i}"]
        if not layer.parallel:
            torch.testing.assert_close(total, trace[f"resid_mid.{i}"], atol=1e-4, rtol=1e-4)
        mlp = trace[f"mlp_out.{i}"]
        torch.testing.assert_close(total + mlp, trace[f"resid_post.{i}"], atol=1e-4, rtol=1e-4)
        if layer.attn is not None:
            z = trace[f"z.{i}"]
            write = sum(z[:, :, h] @ layer.w_o(h) for h in range(parts.n_heads))
            write = write if layer.b_o is None else write + layer.b_o
            write = write if layer.post_attn_norm is None else layer.post_attn_norm.module(write)
            torch.testing.assert_close(write * layer.attn_scale, trace[f"attn_out.{i}"], atol=1e-3, rtol=1e-3)
        if layer.mlp_down is not None:
            down = layer.mlp_down(trace[f"mlp_act.{i}"]) * layer.mlp_down_scale
            if layer.mlp is not None:
                torch.testing.assert_close(down, layer.mlp(trace[f"mlp_in.{i}"]), atol=1e-4, rtol=1e-4)
            down = down if layer.post_mlp_norm is None else layer.post_mlp_norm.module(down)
            torch.testing.assert_close(down * layer.mlp_scale, mlp, atol=1e-4, rtol=1e-4)


def test_reading_everything_changes_nothing(instrument: Instrument) -> None:
    with torch.no_grad():
        plain = instrument.model(input_ids=ids()).logits
    state = {name: value.clone() for name, value in instrument.model.state_dict().items()}
    rng, implementation = torch.random.get_rng_state(), instrument.model.config._attn_implementation
    before = hooks(instrument)  # transformers keeps some of its own
    assert torch.equal(instrument.run(ids(), reads=every_point(instrument))["logits"], plain)
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert all(torch.equal(value, state[name]) for name, value in instrument.model.state_dict().items())
    assert instrument.model.config._attn_implementation == implementation
    assert hooks(instrument) == before
    with torch.no_grad():
        assert torch.equal(instrument.model(input_ids=ids()).logits, plain)


def test_self_patching_and_scaling_by_one_are_no_ops(instrument: Instrument) -> None:
    names = every_point(instrument)
    plain = instrument.run(ids(), reads=names)
    for name in names:
        for edit in (Replace(name, value=plain[name]), Scale(name, factor=1.0), Add(name, value=0.0)):
            again = instrument.run(ids(), edits=[edit])["logits"]
            torch.testing.assert_close(again, plain["logits"], atol=2e-4, rtol=2e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_every_edit_reaches_the_output_from_its_row_on(instrument: Instrument) -> None:
    plain = instrument.run(ids())["logits"]
    for name in every_point(instrument):
        edited = instrument.run(ids(), reads=[name], edits=[Scale(name, rows=(5,), batch=(1,), factor=-2.0)])
        change = (edited["logits"] - plain).abs().amax(-1)
        assert float(change[0].max()) < 2e-4, f"{name} reached another sequence"
        assert float(change[1, :5].max()) < 2e-4, f"{name} reached an earlier row"
        # In the last layer, k and v of row 5 only act on later rows, all others on row 5 itself.
        assert float(change[1, 5:].max()) > 1e-3, f"{name} did not act"


def test_edits_act_in_order_and_reads_see_them(instrument: Instrument) -> None:
    name = "resid_post.0"
    before = instrument.run(ids(), reads=[name])[name]
    after = instrument.run(
        ids(), reads=[name], edits=[Add(name, value=1.0), Scale(name, factor=2.0), Add(name, rows=(3,), value=-1.0)]
    )[name]
    want = (before + 1) * 2
    want[:, 3] -= 1
    torch.testing.assert_close(after, want)


def test_patching_a_layer_from_another_run_gives_that_runs_output(instrument: Instrument) -> None:
    other = instrument.run(ids(seed=1), reads=["resid_post.0"])
    patched = instrument.run(ids(), edits=[Replace("resid_post.0", value=other["resid_post.0"])])
    torch.testing.assert_close(patched["logits"], other["logits"], atol=1e-4, rtol=1e-4)


def test_resid_mid_patch_replaces_attention(instrument: Instrument) -> None:
    if instrument.parts.layers[0].parallel:
        with pytest.raises(ReadError, match="parallel"):
            instrument.run(ids(), reads=["resid_mid.0"])
        return
    other = instrument.run(ids(seed=1), reads=["resid_mid.1"])
    patched = instrument.run(ids(), reads=["resid_mid.1"], edits=[Replace("resid_mid.1", value=other["resid_mid.1"])])
    torch.testing.assert_close(patched["resid_mid.1"], other["resid_mid.1"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(patched["logits"], other["logits"], atol=1e-3, rtol=1e-3)


def test_head_scale_and_replace_touch_one_head(instrument: Instrument) -> None:
    plain = instrument.run(ids(), reads=["z.1"])["z.1"]
    d = instrument.parts.d_head
    out = instrument.run(
        ids(), reads=["z.1"], edits=[HeadScale(1, 2, 0.5), HeadReplace(1, 0, torch.arange(d).float(), rows=(-1,))]
    )["z.1"]
    want = plain.clone()
    want[:, :, 2] *= 0.5
    want[:, -1, 0] = torch.arange(d).float()
    torch.testing.assert_close(out, want)


def test_positions_jump_without_being_read_as_packed_sequences(instrument: Instrument) -> None:
    if not instrument.parts.position_ids:
        return
    x = ids(1)
    plain = instrument.run(x, attention=AttentionRead(stats=("entropy",)))
    same = instrument.run(x, edits=[Positions(torch.arange(LENGTH)[None])])
    torch.testing.assert_close(same["logits"], plain["logits"])
    jump = torch.arange(LENGTH)
    jump[6:] += 50
    read = AttentionRead(stats=("max",), rows=(-1,), weights=True)
    jumped = instrument.run(x, edits=[Positions(jump[None])], attention=read)
    assert float((jumped["logits"][:, -1] - plain["logits"][:, -1]).abs().max()) > 1e-4
    assert jumped.attention is not None
    for at, layer in enumerate(jumped.attention.layers):
        if instrument.parts.attention_window(layer) is None:  # earlier tokens are still visible across the jump
            assert float(jumped.attention["weights"][at, :, :, 0, :6].sum()) > 0
    if instrument.parts.position_embed is None:
        # Relative positions: shifting everything changes nothing.
        shifted = instrument.run(x, edits=[Positions(torch.arange(LENGTH)[None] + 7)])
        torch.testing.assert_close(shifted["logits"], plain["logits"], atol=1e-3, rtol=1e-3)


def test_logits_can_be_edited(instrument: Instrument) -> None:
    plain = instrument.run(ids())["logits"]
    vector = torch.zeros(384)
    vector[7] = 3.0
    out = instrument.run(ids(), edits=[Add("logits", rows=(-1,), value=vector)])["logits"]
    torch.testing.assert_close(out[:, -1] - plain[:, -1], vector.expand(2, -1))
    assert torch.equal(out[:, :-1], plain[:, :-1])


def test_inputs_embeds_stand_in_for_ids(instrument: Instrument) -> None:
    embedded = instrument.parts.embedded(ids())
    plain = instrument.run(ids())["logits"]
    torch.testing.assert_close(instrument.run(ids(), inputs_embeds=embedded)["logits"], plain)


@pytest.mark.parametrize("name", ["resid.0", "z", "z.2", "z.-1", "logits.0", "nothing.1", ""])
def test_unknown_points_are_refused(instrument: Instrument, name: str) -> None:
    with pytest.raises(ReadError):
        instrument.run(ids(), reads=[name])


def test_bad_edits_are_refused(instrument: Instrument) -> None:
    with pytest.raises(EditError, match="no heads"):
        instrument.run(ids(), edits=[Scale("resid_post.0", heads=(0,), factor=0.0)])
    with pytest.raises(EditError, match="head 99"):
        instrument.run(ids(), edits=[HeadScale(instrument.parts.attention_layers[0], 99, 0.0)])
    with pytest.raises(EditError, match="does not fit"):
        instrument.run(ids(), edits=[Replace("resid_post.0", value=torch.zeros(5))])
    with pytest.raises(EditError, match="NaN"):
        instrument.run(ids(), edits=[Add("resid_post.0", value=float("nan"))])
    with pytest.raises(ReadError, match="was not read"):
        instrument.run(ids())["z.0"]
    assert instrument.model.config._attn_implementation in ("sdpa", "eager")


def test_verification_passes_and_measures(instrument: Instrument) -> None:
    measured = verify(instrument.loaded)
    assert measured.logits_identical
    assert measured.row_sum_error < 1e-5
    assert measured.residual_error < 1e-5
    assert measured.head_error < 1e-5
    assert measured.logit_error < 1e-5
    assert measured.edit_effect > 1e-3


def test_verification_catches_a_block_that_adds_something_else() -> None:
    model = build("llama")
    layer = model.model.layers[1]
    layer.register_forward_hook(lambda module, args, output: output + 0.5)
    with pytest.raises(VerificationError, match="residual stream"):
        verify(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]


def test_verification_catches_attention_that_does_not_use_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    from symbolic_residue.errors import AttentionError

    model = build("llama")
    attn = model.model.layers[1].self_attn
    monkeypatch.setattr(attn, "forward", lambda hidden_states, **kwargs: (hidden_states, None))
    with pytest.raises(AttentionError, match="Layer 1 called the attention function 0 times"):
        verify(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]


class Reversed(LayerParts):
    """Hands out the heads' output weights in the wrong order."""

    def w_o(self, head: int) -> torch.Tensor:
        return super().w_o(self.n_heads - 1 - head)


def test_verification_catches_heads_cut_wrongly() -> None:
    model = build("llama")
    parts = bind(model)
    wrong = [Reversed(**{field.name: getattr(layer, field.name) for field in fields(layer)}) for layer in parts.layers]
    with pytest.raises(VerificationError, match="heads of layer 0 miss"):
        verify(SimpleNamespace(model=model, parts=replace(parts, layers=wrong)))  # type: ignore[arg-type]


def test_verification_catches_a_forgotten_factor() -> None:
    model = build("granite")
    parts = bind(model)
    forgotten = [replace(layer, mlp_scale=1.0) for layer in parts.layers]
    with pytest.raises(VerificationError, match="residual stream"):
        verify(SimpleNamespace(model=model, parts=replace(parts, layers=forgotten)))  # type: ignore[arg-type]
    with pytest.raises(VerificationError, match="miss the logits"):
        verify(SimpleNamespace(model=model, parts=replace(parts, logit_scale=1.0)))  # type: ignore[arg-type]
