"""Writing GGUF: a decoder and its tokenizer as one file for llama.cpp, architecture `deci`.

`deci` is llama.cpp's pre-norm Llama block with head counts and feed-forward widths per layer. A tied output
projection is left out of the file: llama.cpp then reads the embedding instead. Llama 3's scaling of rotary positions
ships as what llama.cpp divides the frequencies by, one tensor for all layers.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, GGUFWriter

from search.targets.gguf_tokenizer import vocabulary
from search.targets.packing import KV_VALUES_KEY, PACKERS
from supernet.blocks.attention import Attention, zero_attention
from supernet.blocks.swiglu import SwiGLU, zero_swiglu
from supernet.errors import UserError
from supernet.files import replacing
from supernet.plain import Linear, RMSNorm
from supernet.subnet import Decoder
from supernet.tokenizer import Tokenization

ARCHITECTURE = "deci"
QUANTIZATION_VERSION = 2  # of ggml's block layouts

ShippedLayer = tuple[Attention | None, SwiGLU]


def shipped_layers(decoder: Decoder) -> list[ShippedLayer]:
    """Return the layers as llama.cpp needs them, zero stand-ins included.

    An empty layer is left out, but one layer always ships. `deci` computes something else where a layer has
    attention alone, and fails where the first has no attention: parts that add zero go there.

    Raises:
        UserError: a layer holds a block that `deci` does not have.
    """
    kept: list[tuple[Any, Any]] = [(layer.attention, layer.mlp) for layer in decoder.layers]
    kept = [parts for parts in kept if parts != (None, None)] or [(None, None)]
    shipped: list[ShippedLayer] = []
    for attention, mlp in kept:
        if not isinstance(attention, Attention | None) or not isinstance(mlp, SwiGLU | None):
            raise UserError(f"a GGUF file cannot hold {type(attention).__name__} with {type(mlp).__name__}")
        eps = decoder.config.norm_eps
        if attention is None and not shipped:
            attention = zero_attention(decoder.d_model, decoder.config.head_dim, eps)
        shipped.append((attention, mlp or zero_swiglu(decoder.d_model, eps)))
    return shipped


def export(decoder: Decoder, tokenizer_json: str, path: Path, files: Mapping[str, str] | None = None) -> None:
    """Write `decoder` and its tokenizer to `path`, atomically.

    Args:
        decoder: any subnet; its weights are stored in the formats they carry.
        tokenizer_json: text of a `tokenizer.json`: a BPE that llama.cpp knows.
        path: of the file.
        files: name -> text of what came with the tokenizer.

    Raises:
        UserError: a format, block or tokenizer that llama.cpp does not know, or weights that are not finite.
    """
    layers = shipped_layers(decoder)
    keys = vocabulary(Tokenization(tokenizer_json, files or {}), decoder.vocab_size)
    with replacing(path) as temporary:
        writer = GGUFWriter(temporary, ARCHITECTURE)
        _add_shapes(writer, decoder, layers)
        for key, value in keys.items():
            _add(writer, key, value)
        _add_linear(writer, "token_embd", decoder.embedding)
        _add_norm(writer, "output_norm", decoder.norm)
        if decoder.output is not None:
            _add_linear(writer, "output", decoder.output)
        divisors = decoder.config.rope.divisors()
        if divisors is not None:
            writer.add_tensor("rope_freqs.weight", divisors.numpy())
        for i, (attention, mlp) in enumerate(layers):
            for name, part, heads in _tensors(attention, mlp):
                if isinstance(part, RMSNorm):
                    _add_norm(writer, f"blk.{i}.{name}", part)
                else:
                    _add_linear(writer, f"blk.{i}.{name}", part, heads)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def tensor_bytes(path: Path) -> int:
    """Return the bytes of all tensors of any GGUF file; header and tokenizer do not count.

    Raises:
        UserError: there is no such file, or it is none.
    """
    try:
        return sum(int(tensor.n_bytes) for tensor in GGUFReader(path).tensors)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise UserError(f"{path} is no GGUF file that can be read: {error}") from None


def _tensors(attention: Attention | None, mlp: SwiGLU) -> Iterator[tuple[str, Linear | RMSNorm, int]]:
    """Yield (name, module, heads) of a layer's tensors; heads is 0 where the rows keep their order."""
    if attention is not None:
        yield "attn_norm", attention.norm, 0
        yield "attn_q", attention.q_proj, attention.heads
        yield "attn_k", attention.k_proj, attention.kv_heads
        yield "attn_v", attention.v_proj, 0
        yield "attn_output", attention.o_proj, 0
    yield "ffn_norm", mlp.norm, 0
    yield "ffn_gate", mlp.gate_proj, 0
    yield "ffn_up", mlp.up_proj, 0
    yield "ffn_down", mlp.down_proj, 0


def _add_shapes(writer: GGUFWriter, decoder: Decoder, layers: list[ShippedLayer]) -> None:
    config = decoder.config
    kv_heads = [attention.kv_heads if attention else 0 for attention, _ in layers]
    writer.add_quantization_version(QUANTIZATION_VERSION)
    writer.add_block_count(len(layers))
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(decoder.d_model)
    writer.add_vocab_size(decoder.vocab_size)
    writer.add_feed_forward_length([mlp.width for _, mlp in layers])
    writer.add_head_count([attention.heads if attention else 0 for attention, _ in layers])
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_uint32(KV_VALUES_KEY, 2 * config.head_dim * sum(kv_heads))


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    """Add a value under the type that llama.cpp reads it with."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _add_norm(writer: GGUFWriter, name: str, norm: RMSNorm) -> None:
    writer.add_tensor(f"{name}.weight", norm.weight.detach().cpu().float().numpy())


@torch.no_grad()
def _add_linear(writer: GGUFWriter, name: str, linear: Linear, heads: int = 0) -> None:
    if linear.format.name not in PACKERS:
        raise UserError(f"format {linear.format.name} does not ship to llama.cpp; these do: {', '.join(PACKERS)}")
    encoded = [part.cpu() for part in linear.encoded()]
    if not all(part.isfinite().all() for part in (linear.weight, *encoded)):
        raise UserError(f"{name} has weights that {linear.format.name} cannot store: NaN, or out of its range")
    stored_as, pack = PACKERS[linear.format.name]
    rows = pack(*(part.numpy() for part in encoded))
    if heads:
        rows = _interleave(rows, heads)
    writer.add_tensor(f"{name}.weight", np.ascontiguousarray(rows), raw_dtype=stored_as)


def _interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows (heads * head_dim, any) of q or k for llama.cpp's rotary positions.

    We rotate channel i with i + head_dim / 2, `deci` rotates neighbors. Whole rows move, so packed bytes
    may be given.
    """
    halves = rows.reshape(heads, 2, -1, rows.shape[-1])
    return halves.swapaxes(1, 2).reshape(rows.shape)
