"""circuit-tracer on a Llama and transcoders in local folders, timed: its graph as plain tensors. Runs in its own environment (``make_graph_env.sh``).

1. The request is a JSON file: ``model`` (folder with ``config.json``, ``model.safetensors``, ``tokenizer.json``), ``transcoders`` (folder with ``config.yaml``,
   ``layer_{i}.safetensors``), ``ids``, ``nodes``, ``batch``, ``threads``.
2. TransformerLens's ``from_pretrained`` knows names of a list only. So the model's config is written out for it here, and the weights converted by its own
   converter; nothing is folded or centred, as circuit-tracer's own loader has it. The config may be of transformers 5 (``rope_parameters``), which
   transformers 4 passes over in silence.
3. Loading is not timed, nor is a first run on a few tokens. ``attribute`` is, whole: choosing nodes and edges. Transcoders lie in memory.

Run by ``../graph_peer.py`` and ``make_graph_fixture.py``: python run_circuit_tracer.py REQUEST.json OUT.safetensors → one line of JSON.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import yaml
from circuit_tracer import attribute
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_llama_weights
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PACKAGES = ("circuit-tracer", "transformer-lens", "transformers", "torch", "numpy")


def llama(folder: Path) -> Any:
    """The transformers model of a folder, whichever version wrote its config."""
    said = json.loads((folder / "config.json").read_text("utf-8"))
    rope = said.pop("rope_parameters", None)
    if rope is not None:
        if rope.get("rope_type", "default") != "default":
            raise SystemExit(f"Rotary embeddings of type {rope['rope_type']!r} are not written out here.")
        said["rope_theta"] = rope["rope_theta"]
    model = LlamaForCausalLM(LlamaConfig(**said)).float().eval()
    missing = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    if missing.unexpected_keys or set(missing.missing_keys) - tied:
        raise SystemExit(f"Weights do not fit: {missing}")
    model.tie_weights()
    return model


def replacement(model: Any, transcoders: Path, tokenizer: Any) -> Any:
    """circuit-tracer's model."""
    config = model.config
    heads = config.num_attention_heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // heads
    lens = HookedTransformerConfig(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        d_head=d_head,
        n_heads=heads,
        n_key_value_heads=config.num_key_value_heads,
        d_mlp=config.intermediate_size,
        d_vocab=config.vocab_size,
        n_ctx=256,
        act_fn=config.hidden_act,
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        positional_embedding_type="rotary",
        rotary_dim=d_head,
        rotary_base=int(config.rope_theta),
        eps=config.rms_norm_eps,
        original_architecture="LlamaForCausalLM",
        model_name="local",
        device="cpu",
        dtype=torch.float32,
    )
    found = TransformerLensReplacementModel(lens, tokenizer=tokenizer)
    weights = convert_llama_weights(model, lens)
    found.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    said = yaml.safe_load((transcoders / "config.yaml").read_text("utf-8"))
    files = {i: str(transcoders / f"layer_{i}.safetensors") for i in range(config.num_hidden_layers)}
    found._configure_replacement_model(
        load_transcoder_set(
            files,
            said["scan"],
            said["feature_input_hook"],
            said["feature_output_hook"],
            device=torch.device("cpu"),
            lazy_encoder=False,
            lazy_decoder=False,
        )
    )
    return found


def main() -> None:
    warnings.filterwarnings("ignore")
    request = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    torch.set_num_threads(request["threads"])
    folder, ids = Path(request["model"]), torch.tensor(request["ids"])
    plain = llama(folder)
    # A first token that the tokenizer does not call special would get another in front of it. Without the other two TransformerLens asks the hub.
    words = str(folder / "tokenizer.json")
    first = PreTrainedTokenizerFast(tokenizer_file=words).decode([request["ids"][0]])
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=words, bos_token=first, add_bos_token=True, name_or_path="local")
    with torch.no_grad():
        wanted = plain(ids[None]).logits[0, -1]
    model = replacement(plain, Path(request["transcoders"]), tokenizer)
    with torch.no_grad():
        logits = model(ids[None])[0, -1]
    off = float((logits - wanted).abs().max())
    if not off < 1e-3 * float(wanted.abs().max()):
        raise SystemExit(f"TransformerLens gives other logits than transformers: {off}")
    del plain
    asked = {"batch_size": request["batch"], "max_n_logits": 10, "desired_logit_prob": 0.95}
    if request.get("warm", True):
        attribute(ids[:4], model, max_feature_nodes=8, **asked)
    wall, cpu = time.perf_counter(), time.process_time()
    graph = attribute(ids, model, max_feature_nodes=request["nodes"], **asked)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if graph.input_tokens.tolist() != request["ids"]:
        raise SystemExit("Another prompt was attributed.")
    n_logits, chosen = len(graph.logit_targets), graph.selected_features
    matrix = graph.adjacency_matrix
    save_file(
        {
            "features": graph.active_features[chosen].contiguous(),  # layer, position, feature
            "activations": graph.activation_values[chosen].contiguous(),
            "logits": torch.tensor([one.vocab_idx for one in graph.logit_targets]),
            "probabilities": graph.logit_probabilities.contiguous(),
            # rows: features, then logits; columns: features, errors (layer by layer, each position), embeddings
            "edges": torch.cat([matrix[: len(chosen)], matrix[-n_logits:]])[:, :-n_logits].contiguous(),
            "last_logits": logits.contiguous(),
        },
        sys.argv[2],
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    active = len(graph.active_features)
    print(json.dumps({"seconds": wall, "cpu": cpu, "active": active, "chosen": len(chosen), "peak_mb": peak, "versions": versions}))


if __name__ == "__main__":
    main()
