"""Training: rows against traces, the loss against plain float64, planted features found, and a training that was killed ends as one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import build, tiny_tokenizer

from symbolic_residue.dictionaries import (
    evaluate_dictionary,
    open_dictionary,
    text_sha256,
    train_dictionary,
    trained_texts,
    TrainingPlan,
)
from symbolic_residue.dictionaries._coder import Coder, jump_relu, Scales, step_above
from symbolic_residue.dictionaries._files import write_tensors
from symbolic_residue.dictionaries._training_rows import collect_rows, cut_pieces, Rows
from symbolic_residue.errors import (
    ConfigError,
    DamagedFileError,
    DictionaryError,
    NonFiniteWeightsError,
    PromptError,
    RunDamagedError,
    RunExistsError,
    WriteError,
)
from symbolic_residue.graph import attribute
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import LoadedModel, wrap

TEXTS = [
    "The mill stands where the river turns, and the miller keeps the key to the gate of the old stone house by the water.",
    "Should the captain answer yes or no to the question of the harbour master? He waits for the evening tide and says no word.",
    "Anna put the red book under the table before Ben came home in the evening, and nobody has seen that book since then.",
    "One two three four five six seven eight nine ten, said the careful helper, and wrote each answer down in one word.",
]
PLAN: dict[str, Any] = {"features": 24, "k": 4, "steps": 30, "batch": 32, "context": 24, "dead_after": 200}


DEAD = PLAN | {"features": 64, "k": 2, "dead_after": 64}
"""So few active that many count as dead: their silence is part of the state."""


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return wrap(build("llama"), tiny_tokenizer())


def rows_of(loaded: LoadedModel, folder: Path, **plan: Any) -> tuple[Rows, list[Any]]:
    made = TrainingPlan(**PLAN | {"layers": (0, 1), "stored": "float32"} | plan)
    pieces = cut_pieces(loaded.tokenizer, TEXTS, made.context)
    rows = collect_rows(Instrument(loaded), pieces, made, folder, of={}, file_bytes=30_000, progress=lambda done, total: None)
    return rows, pieces


@pytest.mark.parametrize("name, bos", [("llama", False), ("granite", True), ("gemma3", True), ("gpt_neox", False)])
def test_rows_are_what_mlps_read_and_write_but_for_the_first_position(name: str, bos: bool, tmp_path: Path) -> None:
    loaded = wrap(build(name), tiny_tokenizer(bos=bos))
    rows, pieces = rows_of(loaded, tmp_path)
    assert len(rows.paths) > 1 and len(rows) == sum(len(piece.ids) - 1 for piece in pieces)
    assert all((piece.ids[0] == 0) == bos for piece in pieces) and max(len(piece.ids) for piece in pieces) == PLAN["context"]
    kept: dict[str, list[torch.Tensor]] = {}
    first: dict[str, list[torch.Tensor]] = {}
    for piece in pieces:
        trace = Instrument(loaded).run(torch.tensor([piece.ids]), reads=["mlp_in.*", "mlp_out.*"])
        for i in (0, 1):
            for kind, tensor in (
                ("x", trace[f"mlp_in.{i}"][0]),
                ("y", trace[f"mlp_out.{i}"][0] / loaded.parts.layers[i].mlp_scale),
            ):
                kept.setdefault(f"{kind}.{i}", []).append(tensor[1:].double())
                first.setdefault(f"{kind}.{i}", []).append(tensor[:1].double())
    got_x, got_y = next(rows.batches(len(rows), 0))
    scales = rows.scales
    for i in (0, 1):
        for kind, got, mean, scale in (
            ("x", got_x, scales.mean_in, scales.scale_in),
            ("y", got_y, scales.mean_out, scales.scale_out),
        ):
            want = torch.cat(kept[f"{kind}.{i}"])
            torch.testing.assert_close(mean[i], want.mean(0), rtol=1e-4, atol=1e-5)
            assert scale[i] == pytest.approx(float((want - want.mean(0)).square().mean().sqrt()), rel=1e-4)
            back = got[i].double() * scale[i] + mean[i]
            torch.testing.assert_close(back.sum(-1).sort()[0], want.sum(-1).sort()[0], rtol=1e-3, atol=1e-3)
            at = torch.cat(first[f"{kind}.{i}"]).square().sum(-1).mean()
            assert rows.first[i]["xy".index(kind)] == pytest.approx(float(at / want.square().sum(-1).mean()), rel=1e-4)
    matched = torch.cdist(got_x[1].double() * scales.scale_in[1] + scales.mean_in[1], torch.cat(kept["x.1"])).min(
        1
    )  # a row of x has its own row of y
    torch.testing.assert_close(
        got_y[1].double() * scales.scale_out[1] + scales.mean_out[1], torch.cat(kept["y.1"])[matched.indices], rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("factor, gone", [(150.0, 1), (50.0, 0)])  # in length: 22,500 and 2500 times in squared norm
def test_a_second_sink_is_left_out_of_all_layers(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, gone: int
) -> None:
    plain, pieces = rows_of(loaded, tmp_path / "plain")
    real, marked = Instrument.run, pieces[2].ids

    def with_sink(self: Instrument, inputs: Any, **given: Any) -> Any:
        """At position 1 of one piece, layer 1 writes so many times what is usual there."""

        def take(point: Any, tensor: torch.Tensor) -> None:
            for row, ids in enumerate(inputs.ids.tolist()):
                if str(point) == "mlp_out.1" and tuple(ids[: len(marked)]) == marked:
                    usual = tensor[:, 1:].square().sum(-1).median().sqrt()
                    tensor = tensor.clone()
                    tensor[row, 1] *= factor * usual / tensor[row, 1].norm()
            given["on_read"](point, tensor)

        return real(self, inputs, **{**given, "on_read": take})

    monkeypatch.setattr(Instrument, "run", with_sink)
    rows, _ = rows_of(loaded, tmp_path / "sink")
    assert (rows.left_out, len(rows)) == (gone, len(plain) - gone)
    assert rows_of(loaded, tmp_path / "sink")[0].left_out == gone  # opened again
    assert (rows.scales.scale_out[1] > 1.05 * plain.scales.scale_out[1]) == (not gone)
    assert len(next(rows.batches(len(rows), 0))[0][0]) == len(rows)


def test_batches_go_through_every_row_once_a_pass_and_can_begin_anywhere(loaded: LoadedModel, tmp_path: Path) -> None:
    rows, _ = rows_of(loaded, tmp_path)
    each = len(rows) // 16
    stream = rows.batches(16, 3)
    seen = [next(stream)[0][0] for _ in range(each + 2)]
    single, whole = rows.batches(1, 5), next(rows.batches(len(rows), 0))[0][0]
    one_pass = torch.cat([next(single)[0][0] for _ in range(len(rows))])
    torch.testing.assert_close(one_pass.sum(-1).sort()[0], whole.sum(-1).sort()[0], rtol=0, atol=0)
    assert not torch.equal(one_pass, whole)
    torch.testing.assert_close(next(rows.batches(16, 3, skip=each + 1))[0][0], seen[each + 1], rtol=0, atol=0)
    assert not torch.equal(next(rows.batches(16, 4))[0][0], seen[0])


def plain_loss(coder: Coder, x: Any, y: Any, dead: Any, penalty: float) -> float:
    """By the formula, token by token, in float64."""
    plan, d = coder.plan, coder.d_model
    p = {name: one.detach().double() for name, one in coder.parameters.items()}
    n, total, count = len(next(iter(x.values()))), 0.0, 0.0
    for t in range(n):
        acts, extra = {}, {}
        for i in coder.layers:
            z = p[f"{i}.encoder"] @ x[i][t].double() + p[f"{i}.encoder_bias"]
            if plan.activation == "topk":
                cut = z.sort(descending=True)[0][plan.k - 1]  # type: ignore[operator]
                acts[i] = torch.where(z >= cut, z, 0 * z).relu()
            else:
                acts[i] = torch.where(z > p[f"{i}.log_threshold"].exp(), z, 0 * z)
            extra[i] = torch.where(dead[i], z.relu(), 0 * z)
            count += float((acts[i] > 0).sum()) / n / len(coder.layers)
        for j in coder.layers:

            def written(a: Any, j: int = j) -> torch.Tensor:
                parts = [
                    a[i] @ p[f"{i}.decoder"].reshape(-1, len(coder.writes[i]), d)[:, coder.writes[i].index(j)]
                    for i in coder.layers
                    if j in coder.writes[i]
                ]
                return torch.stack(parts).sum(0)

            skip = x[j][t].double() @ p[f"{j}.skip"] if plan.skip else 0
            left = y[j][t].double() - written(acts) - p[f"{j}.bias"] - skip
            total += float(left.square().mean() + plan.aux * (left - written(extra)).square().mean()) / n / len(coder.layers)
    return total + penalty * count


@pytest.mark.parametrize(
    "how",
    [{"k": 3}, {"k": 3, "kind": "clt", "skip": True}, {"activation": "jumprelu", "sparsity": 0.01, "kind": "clt"}],
    ids=["topk", "clt", "jumprelu"],
)
def test_the_loss_is_its_formula(how: dict[str, Any]) -> None:
    plan = TrainingPlan(layers=(1, 3, 4), features=12, **how)
    coder = Coder(plan, 8)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one in coder.parameters.values():
            one.add_(torch.randn(one.shape, generator=draw) * 0.2)
    x, y = ({i: torch.randn(5, 8, generator=draw) for i in coder.layers} for _ in "xy")
    dead = {i: torch.arange(12) < 3 for i in coder.layers}  # fewer than d_model / 2: all of them count
    got = coder.loss(x, y, dead, step=10_000)
    assert float(got.total.detach()) == pytest.approx(plain_loss(coder, x, y, dead, plan.sparsity or 0.0), rel=1e-5)
    none = {i: torch.zeros(12, dtype=torch.bool) for i in coder.layers}
    assert float(coder.loss(x, y, none, 10_000).total.detach()) != pytest.approx(float(got.total.detach()), rel=1e-3)


def test_thresholds_get_the_gradient_of_the_rectangle() -> None:
    z = torch.tensor([[0.5, 0.97], [1.04, 2.0], [0.96, -1.0]], dtype=torch.float64, requires_grad=True)
    threshold = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=torch.float64)
    (jump_relu(z, threshold, 0.1) * weight).sum().backward()
    assert threshold.grad is not None and z.grad is not None
    # near the threshold (within 0.05): 0.97, 1.04 and 0.96
    torch.testing.assert_close(threshold.grad, torch.tensor([-1.0 / 0.1 * (3 + 5), -1.0 / 0.1 * 2], dtype=torch.float64))
    torch.testing.assert_close(z.grad, weight * (z.detach() > 1))
    threshold.grad, z.grad = None, None
    (step_above(z, threshold, 0.1) * weight).sum().backward()
    torch.testing.assert_close(threshold.grad, torch.tensor([-(3 + 5) / 0.1, -2 / 0.1], dtype=torch.float64))
    assert z.grad is None or not z.grad.any()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.booleans(), st.booleans(), st.sampled_from(["topk", "jumprelu"]))
def test_the_exported_dictionary_predicts_what_was_trained(seed: int, clt: bool, skip: bool, kind: str) -> None:
    how: dict[str, Any] = {"k": 3} if kind == "topk" else {"sparsity": 0.0}
    coder = Coder(TrainingPlan("clt" if clt else "transcoder", layers=(0, 2), features=12, activation=kind, skip=skip, **how), 6)  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in coder.parameters.values():
            one.add_(torch.randn(one.shape, generator=draw) * 0.3)
    means, scales = ([{i: torch.randn(6, generator=draw) for i in (0, 2)} for _ in "xy"], [{0: 0.3, 2: 7.0}, {0: 40.0, 2: 0.02}])
    made = coder.export(Scales(means[0], scales[0], means[1], scales[1]), {"format": "test"})
    raw = {i: torch.randn(9, 6, generator=draw) * 3 for i in (0, 2)}
    x = {i: (raw[i] - means[0][i]) / scales[0][i] for i in raw}
    zero = {i: torch.zeros(9, 6) for i in raw}
    none = {i: torch.zeros(12, dtype=torch.bool) for i in raw}
    got = made.predict(raw)
    for j in raw:  # the loss against a target that is the export's own prediction is that target's distance: nothing
        zero[j] = (got[j] - means[1][j]) / scales[1][j]
    assert coder.loss(x, zero, none).unexplained < 1e-6 * float(torch.stack(list(zero.values())).square().mean())
    assert made.kind == ("clt" if clt else "transcoders")
    norms = sum((made.layers[0].decoders[j] / scales[1][j]).square().sum(-1) for j in made.layers[0].decoders)
    coder.after_step()
    unit = coder.export(Scales(means[0], scales[0], means[1], scales[1]), {})
    after = sum((unit.layers[0].decoders[j] / scales[1][j]).square().sum(-1) for j in unit.layers[0].decoders)
    torch.testing.assert_close(after, torch.ones(12), rtol=1e-4, atol=1e-4)
    assert float((norms - 1).abs().max()) > 1e-3  # type: ignore[union-attr, operator]


def test_a_step_does_not_change_the_norm_of_a_features_decoders() -> None:
    coder = Coder(TrainingPlan("clt", layers=(0, 1), features=12, k=3), 6)
    draw = torch.Generator().manual_seed(0)
    x, y = ({i: torch.randn(40, 6, generator=draw) for i in (0, 1)} for _ in "xy")
    none = {i: torch.zeros(12, dtype=torch.bool) for i in (0, 1)}
    coder.loss(x, y, none).total.backward()
    decoder = coder.parameters["0.decoder"]
    assert decoder.grad is not None
    whole = decoder.grad.clone()
    coder.before_step()
    torch.testing.assert_close((decoder.grad * decoder.detach()).sum(-1), torch.zeros(12), rtol=0, atol=1e-6)
    assert not torch.allclose(whole, decoder.grad)
    torch.testing.assert_close(decoder.detach().norm(dim=-1), torch.ones(12))


def test_rates_and_penalties_rise_and_fall_as_they_say() -> None:
    plan = TrainingPlan(activation="jumprelu", sparsity=0.4, steps=200, learning_rate=1.0)
    assert (
        plan.rate(0) == pytest.approx(0.1)
        and plan.rate(9) == 1.0
        and plan.rate(10) == 1.0
        and plan.rate(199) == pytest.approx(0.1, abs=0.01)
    )
    assert plan.penalty(0) == pytest.approx(0.4 / 50) and plan.penalty(49) == plan.penalty(199) == 0.4
    assert TrainingPlan(k=1).penalty(10) == 0


def planted_rows(folder: Path, n: int = 3000) -> tuple[Rows, torch.Tensor]:
    """Two layers whose outputs are sums of 8 planted features of layer 0's input, each active at a tenth of the positions, written to both layers."""
    draw = torch.Generator().manual_seed(7)
    directions = torch.linalg.qr(torch.randn(16, 8, generator=draw))[0].T
    writes = torch.linalg.qr(torch.randn(32, 8, generator=draw))[0].T.reshape(8, 2, 16)
    on = torch.rand(n, 8, generator=draw) < 0.1
    amount = on * (1 + torch.rand(n, 8, generator=draw))
    noise = torch.linalg.qr(torch.cat([directions.T, torch.randn(16, 8, generator=draw)], 1))[0][:, 8:].T  # what no feature reads
    x0 = amount @ directions + torch.randn(n, 8, generator=draw) @ noise * 0.5
    x = {0: x0, 1: torch.randn(n, 16, generator=draw)}  # layer 1 reads nothing of use: what it writes can be told by layer 0 alone
    y = {j: amount @ writes[:, j] for j in (0, 1)}
    tensors: dict[str, torch.Tensor] = {"n": torch.tensor(float(n)), "first_n": torch.tensor(1.0), "left_out": torch.tensor(0.0)}
    for i in (0, 1):
        for kind, rows in (("x", x[i]), ("y", y[i])):
            wide = rows.double()
            tensors |= {
                f"{kind}.{i}": rows,
                f"sum_{kind}.{i}": wide.sum(0),
                f"square_{kind}.{i}": wide.square().sum(),
                f"first_{kind}.{i}": torch.tensor(1.0),
            }
        tensors[f"largest.{i}"] = torch.tensor(1.0)
    write_tensors(folder / "rows.safetensors", tensors)
    return Rows([folder / "rows.safetensors"], (0, 1)), directions


def fitted(rows: Rows, plan: TrainingPlan) -> tuple[Coder, float]:
    coder = Coder(plan, 16)
    optimizer = torch.optim.Adam(list(coder.trained.values()))
    stream = rows.batches(plan.batch, plan.seed)
    silent = {i: torch.zeros(plan.features) for i in coder.layers}
    last = []
    for step in range(plan.steps):
        optimizer.param_groups[0]["lr"] = plan.rate(step)
        optimizer.zero_grad()
        loss = coder.loss(*next(stream), {i: one > plan.dead_after for i, one in silent.items()}, step)
        loss.total.backward()
        coder.before_step()
        optimizer.step()
        coder.after_step()
        silent = {i: torch.where(loss.fired[i], 0, silent[i] + plan.batch) for i in silent}
        last.append(loss.unexplained)
    return coder, sum(last[-20:]) / 20


@pytest.mark.parametrize("how", [{"k": 3}, {"activation": "jumprelu", "sparsity": 3e-3}], ids=["topk", "jumprelu"])
def test_planted_features_are_found_by_a_clt_alone(how: dict[str, Any], tmp_path: Path) -> None:
    rows, directions = planted_rows(tmp_path)
    plan: dict[str, Any] = {
        "layers": (0, 1),
        "features": 16,
        "steps": 600,
        "batch": 128,
        "learning_rate": 1e-2,
        "dead_after": 3000,
    } | how
    coder, unexplained = fitted(rows, TrainingPlan("clt", **plan))
    found = coder.export(rows.scales, {}).layers[0].encoder
    match = torch.nn.functional.normalize(found, dim=-1) @ directions.T
    assert match.max(0).values.min() > 0.9  # each planted direction is some feature's
    assert unexplained < 0.1
    if "k" not in how:
        return
    _, alone = fitted(rows, TrainingPlan("transcoder", **plan))
    assert alone > 0.4  # layer 1's output cannot be told from what it reads itself
    control, missed = fitted(rows, TrainingPlan("clt", random_encoder=True, **plan))
    assert missed > 0.3
    drawn = torch.nn.functional.normalize(control.export(rows.scales, {}).layers[0].encoder, dim=-1) @ directions.T
    assert drawn.max(0).values.min() < 0.8


@pytest.mark.parametrize("aux, back", [(0.0, False), (1.0, True)])
def test_dead_features_come_back_by_the_auxiliary_loss(aux: float, back: bool, tmp_path: Path) -> None:
    rows, _ = planted_rows(tmp_path)
    plan = TrainingPlan(layers=(0,), features=16, k=2, steps=400, batch=128, learning_rate=1e-2, dead_after=1000, aux=aux)
    coder = Coder(plan, 16)
    with torch.no_grad():
        coder.parameters["0.encoder"][8:] *= 0.01  # never among the two largest
    optimizer = torch.optim.Adam(list(coder.trained.values()), lr=1e-2)
    silent = torch.zeros(16)
    stream = rows.batches(128, 0)
    was = 0
    for _ in range(plan.steps):
        optimizer.zero_grad()
        x, y = next(stream)
        dead = silent > plan.dead_after
        was = max(was, int(dead.sum()))
        loss = coder.loss({0: x[0]}, {0: y[0]}, {0: dead})
        loss.total.backward()
        coder.before_step()
        optimizer.step()
        coder.after_step()
        silent = torch.where(loss.fired[0], 0, silent + 128)
    assert was >= 5
    assert (int((silent > plan.dead_after).sum()) < was - 3) == back


def test_a_trained_dictionary_is_opened_evaluated_and_makes_graphs_that_sum(loaded: LoadedModel, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    done = train_dictionary(
        loaded,
        TEXTS,
        tmp_path / "d",
        TrainingPlan("clt", skip=True, **PLAN | {"steps": 200, "learning_rate": 5e-3}),
        progress=lambda *one: told.append(one),
    )
    assert {name for name, *_ in told} == {"activations", "training"} and told[-1] == ("training", 200, 200)
    assert done.records.height == 200 and done.records["unexplained"][-1] < 0.8 * done.records["unexplained"][0]
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == [
        ".lock",
        "dictionary.json",
        "dictionary.safetensors",
        "training.json",
    ]
    opened = open_dictionary(tmp_path / "d")
    assert (
        opened.sha256 == done.dictionary.sha256
        and opened.kind == "clt"
        and opened.source["weights_sha256"] == loaded.provenance.weights_sha256
    )
    table = evaluate_dictionary(Instrument(loaded), opened, [loaded.tokenizer(text)["input_ids"][:24] for text in TEXTS])
    assert table["fvu"].max() < 0.9 and table["l0"].max() <= 4  # type: ignore[operator]
    graph = attribute(loaded.model, loaded.tokenizer, TEXTS[0][:60], units=opened, max_nodes=40)
    assert graph.check().passed and len(graph.units) > 0
    assert trained_texts(tmp_path / "d") == {text_sha256(text) for text in TEXTS}


SCRIPT = """
import os, signal, sys
sys.path[:0] = [{tests!r}, {own!r}]
from test_train import DEAD, TEXTS
from tiny_models import build, tiny_tokenizer
from symbolic_residue.dictionaries import train_dictionary, TrainingPlan
from symbolic_residue.models import wrap

def tell(what, done, total):
    if what == "training" and done == 17:
        os.kill(os.getpid(), signal.SIGKILL)

train_dictionary(wrap(build("llama"), tiny_tokenizer()), TEXTS, sys.argv[1], TrainingPlan("clt", **DEAD), save_every=5, progress=tell)
"""


def same(a: Any, b: Any) -> bool:
    return a.dictionary.sha256 == b.dictionary.sha256 and a.records.equals(b.records) and a.layers.equals(b.layers)


def test_a_training_that_was_killed_ends_as_one_that_was_not(loaded: LoadedModel, tmp_path: Path) -> None:
    here = Path(__file__).parent
    script = SCRIPT.format(tests=str(here.parent), own=str(here))
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "killed")], capture_output=True, timeout=120, env={**os.environ}
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert (tmp_path / "killed" / "state.safetensors").exists() and not (tmp_path / "killed" / "dictionary.json").exists()
    steps: list[int] = []
    plan = TrainingPlan("clt", **DEAD)
    resumed = train_dictionary(
        loaded,
        TEXTS,
        tmp_path / "killed",
        plan,
        progress=lambda what, done, total: steps.append(done) if what == "training" else None,
    )
    assert steps[0] == 15
    whole = train_dictionary(loaded, TEXTS, tmp_path / "whole", plan)
    assert same(resumed, whole) and whole.records["dead"].slice(10, 5).min() > 0  # type: ignore[operator]
    other = train_dictionary(loaded, TEXTS, tmp_path / "other", TrainingPlan("clt", **DEAD, seed=1))
    assert not same(other, whole)


@pytest.mark.parametrize("what, at", [("activations", 5), ("training", 13)])
def test_ctrl_c_keeps_what_was_done(loaded: LoadedModel, tmp_path: Path, what: str, at: int) -> None:
    def stop(now: str, done: int, total: int) -> None:
        if (now, done) == (what, at):
            raise KeyboardInterrupt

    plan = TrainingPlan(**PLAN)
    # one piece a file, so that each is kept
    call: dict[str, Any] = {"file_bytes": 1, "activations": tmp_path / "rows"}
    with pytest.raises(KeyboardInterrupt):
        train_dictionary(loaded, TEXTS, tmp_path / "a", plan, progress=stop, **call)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "rows").glob("rows-*")}
    first: dict[str, int] = {}
    resumed = train_dictionary(
        loaded, TEXTS, tmp_path / "a", plan, progress=lambda name, done, total: first.setdefault(name, done) and None, **call
    )
    assert (
        len(kept) >= 4
        and kept.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "rows").glob("rows-*")}.items()
    )
    if what == "training":
        assert first["training"] == 13
    assert same(resumed, train_dictionary(loaded, TEXTS, tmp_path / "b", plan, file_bytes=1))


def test_a_step_that_was_cut_is_not_kept(loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, seen = TrainingPlan(**PLAN), []
    real = Coder.after_step

    def cut(self: Coder) -> None:
        seen.append(1)
        if len(seen) == 18:
            raise KeyboardInterrupt  # the parameters have moved, the step is not counted yet
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Coder, "after_step", cut)
        with pytest.raises(KeyboardInterrupt):
            train_dictionary(loaded, TEXTS, tmp_path / "a", plan, save_every=5)
    first: list[int] = []
    resumed = train_dictionary(
        loaded, TEXTS, tmp_path / "a", plan, progress=lambda what, done, total: first.append(done) if what == "training" else None
    )
    assert first[0] == 15 and same(resumed, train_dictionary(loaded, TEXTS, tmp_path / "b", plan))


def test_collected_activations_serve_other_plans_of_the_same_texts_alone(loaded: LoadedModel, tmp_path: Path) -> None:
    shared = tmp_path / "rows"
    train_dictionary(loaded, TEXTS, tmp_path / "both", TrainingPlan(**PLAN), activations=shared, file_bytes=30_000)
    made = {path.name: path.stat().st_mtime_ns for path in shared.iterdir()}
    one = TrainingPlan(**PLAN | {"k": 2, "layers": (1,)})
    served = train_dictionary(loaded, TEXTS, tmp_path / "one", one, activations=shared)
    assert made == {path.name: path.stat().st_mtime_ns for path in shared.iterdir()}
    own = train_dictionary(loaded, TEXTS, tmp_path / "own", one, file_bytes=15_000)  # half the layers: the same rows a file
    assert same(served, own)
    for texts, plan, named in (
        (TEXTS[:-1], one, "texts_sha256 differ"),
        (TEXTS, TrainingPlan(**PLAN | {"seed": 3}), "seed differ"),
    ):
        with pytest.raises(RunExistsError, match=named):
            train_dictionary(loaded, texts, tmp_path / "no", plan, activations=shared, anew=True)
    alone = tmp_path / "alone"
    train_dictionary(loaded, TEXTS, tmp_path / "first", one, activations=alone)
    with pytest.raises(RunExistsError, match="lack layer 0"):
        train_dictionary(loaded, TEXTS, tmp_path / "second", TrainingPlan(**PLAN), activations=alone)


def test_a_finished_training_is_opened_and_another_one_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    plan = TrainingPlan(**PLAN)
    done = train_dictionary(loaded, TEXTS, tmp_path, plan)
    assert same(done, train_dictionary(loaded, TEXTS, tmp_path, plan, progress=lambda *_: pytest.fail("nothing is left to do")))
    for given_model, texts, other, named in (
        (loaded, TEXTS, TrainingPlan(**PLAN | {"k": 5}), "(k)"),
        (
            loaded,
            [*TEXTS[:-1], "Another text, of as many words or so, to be read by the model in the place of the last one."],
            plan,
            "(texts_sha256)",
        ),
        (wrap(build("llama", seed=1), tiny_tokenizer()), TEXTS, plan, "weights_sha256"),
    ):
        with pytest.raises(RunExistsError, match="other settings") as told:
            train_dictionary(given_model, texts, tmp_path, other)
        assert named in str(told.value)
    anew = train_dictionary(loaded, TEXTS, tmp_path, TrainingPlan(**PLAN | {"k": 5}), anew=True)
    assert anew.dictionary.layers[0].activation.k == 5
    (tmp_path / "training.json").unlink()
    with pytest.raises(RunExistsError, match="not trained there"):
        train_dictionary(loaded, TEXTS, tmp_path, plan)
    (tmp_path / "training.json").write_text("{")
    with pytest.raises(RunDamagedError):
        train_dictionary(loaded, TEXTS, tmp_path, plan)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({}, "needs its k"), ({"k": 0}, "needs its k"), ({"k": True}, "needs its k"), ({"k": 2000}, "keep 2000 of 1024"), ({"k": 3, "sparsity": 0.1}, "sparsity"),
        ({"activation": "jumprelu"}, "needs its sparsity"), ({"activation": "jumprelu", "sparsity": float("nan")}, "needs its sparsity"),
        ({"activation": "jumprelu", "sparsity": 0.1, "k": 3}, "Only TopK"), ({"kind": "sae", "k": 1}, "kind='sae'"), ({"activation": "relu"}, "activation='relu'"),
        ({"k": 3, "steps": 0}, "steps=0"), ({"k": 3, "batch": 1}, "batch=1"), ({"k": 3, "learning_rate": float("nan")}, "learning_rate"),
        ({"k": 3, "layers": ()}, "names no layers"), ({"k": 3, "layers": (1, 1)}, "twice"), ({"k": 3, "stored": "bfloat16"}, "stored="), ({"k": 3, "context": 1}, "context=1"),
    ],
)  # fmt: skip
def test_plans_that_mean_nothing_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainingPlan(**wrong)


def test_texts_and_layers_that_cannot_be_used_are_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    plan = TrainingPlan(**PLAN)
    for texts, said in (
        ([], "no texts"),
        ("one text", "list of texts"),
        (["a", " "], "1 of 2 texts are empty: number 1"),
        (["too short"], "a batch is 32"),
    ):
        with pytest.raises(PromptError, match=said):
            train_dictionary(loaded, texts, tmp_path / "t", plan)
    with pytest.raises(ConfigError, match="no MLP in layer 2"):
        train_dictionary(loaded, TEXTS, tmp_path / "l", TrainingPlan(**PLAN, layers=(0, 2)))
    same_token = wrap(build("llama"), tiny_tokenizer())
    with torch.no_grad():
        for layer in same_token.parts.layers:
            layer.mlp_down.weight.zero_()  # type: ignore[union-attr]
    with pytest.raises(PromptError, match="the same at all"):
        train_dictionary(same_token, TEXTS, tmp_path / "c", plan)


def test_what_is_not_finite_is_refused_and_leaves_no_dictionary(loaded: LoadedModel, tmp_path: Path) -> None:
    broken = wrap(build("llama"), tiny_tokenizer())
    weight: Any = broken.parts.layers[1].mlp_down.weight  # type: ignore[union-attr]
    with torch.no_grad():
        weight.mul_(1e8)
    with pytest.raises(NonFiniteWeightsError, match="does not fit into float16"):
        train_dictionary(broken, TEXTS, tmp_path / "large", TrainingPlan(**PLAN))
    with torch.no_grad():
        weight.fill_(float("nan"))
    with pytest.raises(NonFiniteWeightsError, match="layer 1's MLP writes is not finite"):
        train_dictionary(broken, TEXTS, tmp_path / "nan", TrainingPlan(**PLAN))
    with pytest.raises(DictionaryError, match="diverged at step"):
        train_dictionary(loaded, TEXTS, tmp_path / "fast", TrainingPlan(**PLAN | {"learning_rate": 1e30}))
    assert not list(tmp_path.glob("*/dictionary.json"))


def test_files_that_are_cut_short_are_refused_by_name(loaded: LoadedModel, tmp_path: Path) -> None:
    plan, call = TrainingPlan(**PLAN), {"file_bytes": 30_000, "save_every": 5}

    def stop(now: str, done: int, total: int) -> None:
        if (now, done) == ("training", 12):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_dictionary(loaded, TEXTS, tmp_path, plan, progress=stop, **call)  # type: ignore[arg-type]
    for path in (tmp_path / "state.safetensors", sorted((tmp_path / "activations").glob("rows-*"))[0]):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DamagedFileError, match=path.name):
            train_dictionary(loaded, TEXTS, tmp_path, plan, **call)  # type: ignore[arg-type]
        path.write_bytes(whole)
    write_tensors(tmp_path / "state.safetensors", {"records": torch.zeros(1, 4, dtype=torch.float64)})
    with pytest.raises(DamagedFileError, match="not the state"):
        train_dictionary(loaded, TEXTS, tmp_path, plan, **call)  # type: ignore[arg-type]
    (tmp_path / "state.safetensors").unlink()
    train_dictionary(loaded, TEXTS, tmp_path, plan, **call)  # type: ignore[arg-type]
    record = json.loads((tmp_path / "training.json").read_text())
    del record["records"]["loss"]
    (tmp_path / "training.json").write_text(json.dumps(record))
    with pytest.raises(RunDamagedError, match="lacks something"):
        train_dictionary(loaded, TEXTS, tmp_path, plan, **call)  # type: ignore[arg-type]


def test_a_full_disk_is_told_and_the_training_goes_on_later(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    import safetensors.torch

    plan = TrainingPlan(**PLAN)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))  # type: ignore[attr-defined]
        with pytest.raises(WriteError, match="GB are free"):
            train_dictionary(loaded, TEXTS, tmp_path / "d", plan)
    real, written = safetensors.torch.save_file, []

    def full(tensors: Any, path: Any, *rest: Any) -> None:
        written.append(Path(path).name)
        if len(written) > 3:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(WriteError, match="No space left"):
            train_dictionary(loaded, TEXTS, tmp_path / "d", plan, save_every=5)
    assert written[:2] == [".rows-00000.safetensors.part", ".state.safetensors.part"] and not list((tmp_path / "d").glob(".*.part"))
    assert same(train_dictionary(loaded, TEXTS, tmp_path / "d", plan), train_dictionary(loaded, TEXTS, tmp_path / "e", plan))
