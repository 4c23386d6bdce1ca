"""Untied nets with Llama 3's rotary positions and heads of any size, in the programs that run what we ship."""

import importlib.util
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from search.targets import nf4
from search.targets.huggingface import HuggingFace
from search.targets.llama_cpp import LlamaCpp
from search.targets.packing import KV_VALUES_KEY
from supernet.blocks.attention import ElasticAttention
from supernet.blocks.swiglu import ElasticSwiGLU
from supernet.elastic import emulate
from supernet.genes import Architecture
from supernet.model import Supernet
from supernet.randomness import generator
from supernet.subnet import Decoder, extract
from supernet.tokenizer import train_tokenizer

VOCAB, HEAD_DIM = 300, 24  # 4 heads of 24 on a width of 64
SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
FORMATS = ("Q4_0", "Q8_0", "F16", "F32")
SETTINGS: dict[str, Any] = dict(
    kv_cache="F16", prefill_tokens=4, decode_tokens=4, repeats=1, quantizer=(), hardware=None
)

LOADED = """
import sys
import numpy as np
import torch
from transformers import AutoModelForCausalLM

tokens = torch.from_numpy(np.load(sys.argv[1]))
for folder in sys.argv[2:]:
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, trust_remote_code=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    with torch.no_grad():
        np.save(folder + "/logits.npy", model.eval()(tokens).logits.float().numpy())
    options = dict(max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    cached, slow = (model.generate(tokens[:, :6], use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, slow)
"""

OFF: Architecture = {"layers.0.attention.active": 0, "layers.1.mlp.active": 0}
ODD: Architecture = {"layers.0.attention.kv_heads": 1, "layers.1.mlp.width": 32, "output.format": "Q8_0"}


@pytest.fixture(scope="module")
def llama() -> Supernet:
    torch.manual_seed(0)
    formats: dict[str, Any] = {"qkv_formats": FORMATS, "o_formats": ("F16", "F32"), "droppable": False}
    attention = partial(ElasticAttention, head_dim=HEAD_DIM, kv_heads=(1, 2), heads_per_kv=(1, 2), **formats)
    mlp = partial(
        ElasticSwiGLU, width=(32, 64), gate_up_formats=FORMATS, down_formats=FORMATS, droppable=True
    )  # fmt: skip
    blocks: dict[str, Any] = {"attention": attention, "mlp": mlp}
    net = Supernet(
        VOCAB, 256, 2, (64,), HEAD_DIM, 5e5, 1e-5, FORMATS, blocks, None, False, None, SCALING, False, FORMATS
    )
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(1 + 0.3 * torch.randn_like(parameter) if "norm" in name else 3 * parameter)
    return net


@pytest.fixture(scope="module")
def tokenizer_json() -> str:
    return train_tokenizer([Path(__file__).read_text(encoding="utf-8")], VOCAB - 3).to_str()


def subnet(net: Supernet, changes: Architecture, format_name: str = "F32") -> Decoder:
    base: Architecture = {
        gene.name: format_name if gene.kind == "format" and format_name in gene.choices else gene.choices[-1]
        for gene in net.space
    }
    return extract(net, net.space.encode({**base, **changes}))


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.fixture(scope="module")
def target() -> LlamaCpp:
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    return LlamaCpp("llama_cpp", n_threads=1, timeout_s=60, **SETTINGS)


@pytest.mark.parametrize("changes", [{}, ODD | {"output.format": "F32"}, {"layers.1.mlp.active": 0}])
def test_llama_cpp_computes_our_logits(
    llama: Supernet, tokenizer_json: str, target: LlamaCpp, tmp_path: Path, changes: Architecture
) -> None:
    decoder = subnet(llama, changes)
    path = target.export(decoder, tokenizer_json, tmp_path)
    tokens = generator(0, "rows").integers(0, VOCAB, 200)  # three times the original context: scaling shows
    emulate(decoder, activations=False, kv_format=target.kv_cache)
    wanted = decoder(torch.from_numpy(tokens)[None])[0].detach().numpy()
    assert relative_error(target.logits(path, tokens), wanted) <= 2e-4
    decoder.output = None
    assert relative_error(decoder(torch.from_numpy(tokens)[None])[0].detach().numpy(), wanted) > 0.5


def test_without_the_scaling_llama_cpp_computes_something_else(
    llama: Supernet, tokenizer_json: str, target: LlamaCpp, tmp_path: Path
) -> None:
    decoder = subnet(llama, {})
    tokens = generator(0, "rows").integers(0, VOCAB, 200)
    wanted = decoder(torch.from_numpy(tokens)[None])[0].detach().numpy()
    decoder.config = type(decoder.config)(
        type(decoder.config.rope)(HEAD_DIM, decoder.config.rope.theta), 1e-5, 256
    )  # fmt: skip
    path = target.export(decoder, tokenizer_json, tmp_path)
    assert relative_error(target.logits(path, tokens), wanted) > 1e-2


def test_the_file_holds_what_is_counted_and_is_read_back(
    llama: Supernet, tokenizer_json: str, tmp_path: Path
) -> None:  # fmt: skip
    quick = LlamaCpp("llama_cpp", n_threads=1, timeout_s=1, **SETTINGS)
    rng = generator(0, "sizes")
    for genome in [llama.space.largest, *(llama.space.sample(rng) for _ in range(8))]:
        decoder, architecture = extract(llama, genome), llama.space.decode(genome)
        path = quick.export(decoder, tokenizer_json, tmp_path)
        reader = gguf.GGUFReader(path)
        assert sum(int(t.n_bytes) for t in reader.tensors) == llama.n_bytes(architecture)
        found: Counter[str] = Counter({"kv_values": reader.fields[KV_VALUES_KEY].contents()})
        last = f"blk.{len(decoder.layers) - 1}.ffn_"
        for tensor in reader.tensors:
            name, size = tensor.tensor_type.name, int(tensor.n_elements)
            if tensor.name == "rope_freqs.weight" or "norm" in tensor.name:
                found["rope.weights" if tensor.name.startswith("rope") else "norm.weights"] += size
                continue
            once = tensor.name.startswith((last, "output.weight"))
            for part in ("", *(("once.",) if once else ()), *(("lookup.",) if "embd" in tensor.name else ())):
                found[f"{part}{name}.weights"] += size
                found[f"{part}{name}.rows"] += int(tensor.shape[1])
        counted = llama.inventory(architecture)
        assert {name: counted.get(name, 0.0) for name in found} == found


@pytest.mark.parametrize("changes", [{}, ODD, {"layers.1.mlp.active": 0}], ids=["plain", "odd", "no FFN"])
def test_transformers_computes_our_logits(
    llama: Supernet, tokenizer_json: str, tmp_path: Path, changes: Architecture, run_python: Any
) -> None:
    decoder = subnet(llama, changes, "Q8_0")
    folder = HuggingFace("huggingface", "float32").export(decoder, tokenizer_json, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is False and ("auto_map" in config) == bool(changes)
    rows = generator(0, "rows").integers(0, VOCAB, (2, 200))
    np.save(tmp_path / "rows.npy", rows)
    run_python(LOADED, tmp_path / "rows.npy", folder)
    wanted = decoder(torch.from_numpy(rows)).detach().numpy()
    assert relative_error(np.load(folder / "logits.npy"), wanted) <= 1e-5


def test_what_bitsandbytes_leaves_as_floats() -> None:
    reason = nf4.supports({"embedding.format": "F16", "output.format": "NF4"})
    assert reason is not None and "output.format is NF4" in reason
