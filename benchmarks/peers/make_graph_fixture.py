"""The edges that circuit-tracer gives for a tiny Llama and three sets of transcoders, kept for ``tests/unit/graph/test_peer.py``, which runs without it.

1. Model and transcoders are random (one seed), of numbers that half precision holds, and are stored: nothing hangs on a random generator's version.
   Norms have gains far from 1, heads share keys and values, decoders have biases: a hook on the wrong side of a norm's weight, or a bias that is left
   out, changes edges or sums.
2. The sets read after the norm, before it, and after it without its weight; one is JumpReLU with a skip connection.
3. circuit-tracer chooses the nodes. What is stored of its graph: its nodes, and the edges into features and logits.

Run: python benchmarks/peers/make_graph_fixture.py --python PEER/bin/python      (PEER: see make_graph_env.sh)
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import yaml
from _common import in_own_process
from safetensors.torch import load_file, save_file
from tokenizers import models, Tokenizer

HERE = Path(__file__).parent
DATA = HERE.parent.parent / "tests" / "data"
LAYERS, WIDTH, HEADS, KV, D_HEAD, MLP, VOCAB, FEATURES, NODES = 3, 32, 4, 2, 8, 40, 48, 32, 60
IDS = [0, 17, 5, 41, 17, 29, 8, 5, 33, 12]
CASES = {
    "after": {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"},
    "before": {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"},
    "unweighted": {"feature_input_hook": "ln2.hook_normalized", "feature_output_hook": "mlp.hook_out"},
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "head_dim": D_HEAD,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"},
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def random_model(g: torch.Generator) -> dict[str, torch.Tensor]:
    """Weights by the names of a checkpoint, half precision."""

    def draw(*shape: int, scale: float = WIDTH**-0.5) -> torch.Tensor:
        return (torch.randn(*shape, generator=g) * scale).half()

    def gain() -> torch.Tensor:
        return (1 + 0.4 * torch.randn(WIDTH, generator=g)).half()

    found = {"model.embed_tokens.weight": draw(VOCAB, WIDTH, scale=1.0), "lm_head.weight": draw(VOCAB, WIDTH, scale=0.4)}
    found["model.norm.weight"] = gain()
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        found |= {f"{at}input_layernorm.weight": gain(), f"{at}post_attention_layernorm.weight": gain()}
        found[f"{at}self_attn.q_proj.weight"] = draw(HEADS * D_HEAD, WIDTH, scale=0.3)
        found[f"{at}self_attn.k_proj.weight"] = draw(KV * D_HEAD, WIDTH, scale=0.3)
        found[f"{at}self_attn.v_proj.weight"] = draw(KV * D_HEAD, WIDTH)
        found[f"{at}self_attn.o_proj.weight"] = draw(WIDTH, HEADS * D_HEAD)
        found[f"{at}mlp.gate_proj.weight"] = draw(MLP, WIDTH)
        found[f"{at}mlp.up_proj.weight"] = draw(MLP, WIDTH)
        found[f"{at}mlp.down_proj.weight"] = draw(WIDTH, MLP)
    return found


def random_transcoder(g: torch.Generator, *, jump: bool) -> dict[str, torch.Tensor]:
    """One layer's, half precision; about a quarter of its features are active."""
    draw = lambda *shape, scale=1.0: (torch.randn(*shape, generator=g) * scale).half()  # noqa: E731
    found = {
        "W_enc": draw(FEATURES, WIDTH, scale=WIDTH**-0.5),
        "b_enc": draw(FEATURES, scale=0.2) - 0.6,
        "W_dec": draw(FEATURES, WIDTH, scale=WIDTH**-0.5),
        "b_dec": draw(WIDTH, scale=0.3),
    }
    if jump:
        found["activation_function.threshold"] = draw(FEATURES).abs() * 0.3
        found["W_skip"] = draw(WIDTH, WIDTH, scale=0.3 * WIDTH**-0.5)
    return found


def write_model(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG), "utf-8")
    save_file({name: tensor.float() for name, tensor in tensors.items()}, folder / "model.safetensors")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w1"))
    words.save(str(folder / "tokenizer.json"))


def write_transcoders(folder: Path, hooks: dict[str, str], layers: list[dict[str, torch.Tensor]]) -> None:
    folder.mkdir(parents=True)
    said = {"model_kind": "transcoder_set", "model_name": "random", "scan": "random", **hooks}
    (folder / "config.yaml").write_text(yaml.safe_dump(said), "utf-8")
    for i, tensors in enumerate(layers):
        save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, folder / f"layer_{i}.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", required=True, help="interpreter of circuit-tracer's environment")
    options = parser.parse_args()
    g = torch.Generator().manual_seed(0)
    model = random_model(g)
    stored = {f"model/{name}": tensor for name, tensor in model.items()}
    ran: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_model(folder / "model", model)
        for name, hooks in CASES.items():
            layers = [random_transcoder(g, jump=name == "before") for _ in range(LAYERS)]
            stored |= {f"{name}/{i}/{key}": tensor for i, one in enumerate(layers) for key, tensor in one.items()}
            write_transcoders(folder / name, hooks, layers)
            request = {"model": str(folder / "model"), "transcoders": str(folder / name), "ids": IDS, "nodes": NODES}
            (folder / "request.json").write_text(json.dumps({**request, "batch": 16, "threads": 1, "warm": False}), "utf-8")
            script, out = str(HERE / "run_circuit_tracer.py"), folder / "out.safetensors"
            ran.append(in_own_process(options.python, script, str(folder / "request.json"), str(out)))
            stored |= {f"{name}/graph/{key}": tensor for key, tensor in load_file(out).items()}
    DATA.mkdir(exist_ok=True)
    save_file(stored, DATA / "circuit-tracer-graphs.safetensors")
    about = {
        "what": "Attribution graphs that circuit-tracer gave for a tiny random Llama and random transcoders, with both.",
        "made by": "python benchmarks/peers/make_graph_fixture.py --python PEER/bin/python",
        "peer's environment": "sh benchmarks/peers/make_graph_env.sh PEER",
        "versions": {**ran[0]["versions"], "python": platform.python_version()},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seed": 0,
        "active features, chosen": {name: [one["active"], one["chosen"]] for name, one in zip(CASES, ran, strict=True)},
        "ids": IDS,
        "config": CONFIG,
        "hooks": CASES,
    }
    (DATA / "circuit-tracer-graphs.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    print((DATA / "circuit-tracer-graphs.safetensors").stat().st_size, "bytes", about["active features, chosen"])


if __name__ == "__main__":
    main()
