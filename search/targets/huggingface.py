"""Hugging Face transformers as a target: a checkpoint folder, its values as plain floats or packed in NF4."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.targets import Target, nf4
from search.targets.hf_tokenizer import special_ids, tokenizer_files
from supernet.errors import UserError
from supernet.files import temporary_beside
from supernet.genes import Value
from supernet.tokenizer import Tokenization

if TYPE_CHECKING:
    from torch import Tensor

    from supernet.blocks.attention import Attention
    from supernet.blocks.swiglu import SwiGLU
    from supernet.plain import Linear, RMSNorm
    from supernet.subnet import Decoder

DTYPES = ("float32", "bfloat16", "float16")
MODELING_FILE = "modeling_subnet.py"  # the name of hf_modeling.py inside a checkpoint


class HuggingFace(Target):
    """A folder that `AutoModelForCausalLM.from_pretrained` loads."""

    def __init__(self, name: str, dtype: str) -> None:
        self.name, self.dtype = name, _check_dtype(dtype)

    def available(self) -> str | None:
        """Return None: transformers comes with this project."""
        return None

    def supports(self, architecture: Mapping[str, Value]) -> str | None:
        """Return None: weights are stored as floats, and the modeling file takes any sizes."""
        return None

    def export(
        self, decoder: Decoder, tokenizer_json: str, folder: Path, files: Mapping[str, str] | None = None
    ) -> Path:
        """Write the checkpoint `folder`/hf, whole or not at all, and return its path.

        Raises:
            UserError: the tokenizer does not fit, or the path holds something else.
        """
        path = folder / "hf"
        export(decoder, tokenizer_json, path, self.dtype, files=files)
        return path


class HuggingFaceNF4(HuggingFace):
    """The same with matrices in 4 bits, which transformers loads through bitsandbytes (and accelerate).

    What is NF4 is packed; all else is stored in `dtype`, which is also what it computes in. In float32 the logits
    are ours, and a matrix in F16 takes twice the bytes that the search counts; in float16 it takes those.
    """

    def supports(self, architecture: Mapping[str, Value]) -> str | None:
        """Return None where every matrix is NF4 or F16, and the embedding F16; else which is not."""
        return nf4.supports(architecture)

    def export(
        self, decoder: Decoder, tokenizer_json: str, folder: Path, files: Mapping[str, str] | None = None
    ) -> Path:
        """Write the checkpoint `folder`/hf_nf4, whole or not at all, and return its path.

        Raises:
            UserError: a format that does not go there, the tokenizer does not fit, or the path holds something else.
        """
        path = folder / "hf_nf4"
        export(decoder, tokenizer_json, path, self.dtype, packed=True, files=files)
        return path


def export(
    decoder: Decoder,
    tokenizer_json: str,
    folder: Path,
    dtype: str = "float32",
    packed: bool = False,
    files: Mapping[str, str] | None = None,
) -> None:
    """Write a checkpoint into `folder`, which appears complete or not at all.

    Args:
        decoder: any subnet. Its weights are stored as the values its formats can hold.
        tokenizer_json: text of a `tokenizer.json`.
        folder: to write; an older checkpoint there is replaced.
        dtype: of the stored weights: float32, bfloat16 or float16. The last two round them again.
        packed: matrices in NF4 are stored as bitsandbytes reads them; all formats must be NF4 or F16.
        files: name -> text of what came with the tokenizer.

    Raises:
        UserError: an unknown dtype, a format that cannot be packed, a damaged tokenizer or one with more
            tokens than the model has embeddings, or `folder` exists and is no checkpoint.
    """
    import torch
    from safetensors.torch import save_file

    torch_dtype = getattr(torch, _check_dtype(dtype))
    tokenization = Tokenization(tokenizer_json, files or {})
    texts = tokenizer_files(tokenization, decoder.vocab_size, decoder.config.context_length)
    sizes = [_sizes(attention, mlp) for attention, mlp in _parts(decoder)]
    config = {**_config(decoder, sizes), "dtype": dtype, **special_ids(tokenization)}
    tensors: dict[str, Tensor] = {}
    for name, module in _modules(decoder):
        found = nf4.packed(name, module) if packed else None
        tensors |= found or {f"{name}.weight": _value(module).to("cpu", torch_dtype).contiguous()}
    if packed:
        config |= nf4.config(tensors, dtype)
    with replacing_folder(folder) as temporary:
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        _write_json(temporary / "config.json", config)
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        if "auto_map" in config:
            shutil.copyfile(Path(__file__).with_name("hf_modeling.py"), temporary / MODELING_FILE)


def _check_dtype(dtype: str) -> str:
    if dtype not in DTYPES:
        known = ", ".join(DTYPES)
        raise UserError(f"huggingface: dtype must be one of {known}, got {dtype!r} (conf/target/huggingface.yaml)")
    return dtype


def _parts(decoder: Decoder) -> Iterator[tuple[Attention | None, SwiGLU | None]]:
    """Yield attention and feed-forward network of every layer that has one of them."""
    from supernet.blocks.attention import Attention
    from supernet.blocks.swiglu import SwiGLU

    for layer in decoder.layers:
        attention, mlp = layer.attention, layer.mlp
        if not isinstance(attention, Attention | None) or not isinstance(mlp, SwiGLU | None):
            raise UserError(f"a checkpoint cannot hold {type(attention).__name__} with {type(mlp).__name__}")
        if attention is not None or mlp is not None:
            yield attention, mlp


def _sizes(attention: Attention | None, mlp: SwiGLU | None) -> dict[str, int]:
    """Return heads, kv_heads and ffn of a layer, 0 for a part that is absent."""
    heads, kv_heads = (attention.heads, attention.kv_heads) if attention is not None else (0, 0)
    return {"heads": heads, "kv_heads": kv_heads, "ffn": mlp.width if mlp is not None else 0}


def _config(decoder: Decoder, sizes: list[dict[str, int]]) -> dict[str, Any]:
    """Return config.json: a plain Llama's where all layers are alike, else the modeling file's."""
    config: dict[str, Any] = {
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.d_model,
        "head_dim": decoder.config.head_dim,
        "rope_theta": decoder.config.rope.theta,
        "rms_norm_eps": decoder.config.norm_eps,
        "max_position_embeddings": decoder.config.context_length,
        "tie_word_embeddings": decoder.output is None,
        "use_cache": True,
    }
    scaling = decoder.config.rope.scaling_json()
    first = sizes[0] if sizes else {"heads": 0, "ffn": 0}
    complete = first["heads"] > 0 and first["ffn"] > 0
    # transformers' Llama insists that the heads divide the width, though their size is given.
    if complete and all(size == first for size in sizes) and decoder.d_model % first["heads"] == 0:
        return {
            **config,
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_hidden_layers": len(sizes),
            "num_attention_heads": first["heads"],
            "num_key_value_heads": first["kv_heads"],
            "intermediate_size": first["ffn"],
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            # transformers 5 reads this, transformers 4 the key of the same name above and `rope_scaling`.
            "rope_parameters": {
                "rope_type": "llama3" if scaling else "default",
                "rope_theta": decoder.config.rope.theta,
                **(scaling or {}),
            },
            "rope_scaling": {"rope_type": "llama3", **scaling} if scaling else None,
        }
    module = MODELING_FILE.removesuffix(".py")
    return {
        **config,
        "architectures": ["SubnetForCausalLM"],
        "model_type": "supernet_subnet",
        "auto_map": {
            "AutoConfig": f"{module}.SubnetConfig",
            "AutoModelForCausalLM": f"{module}.SubnetForCausalLM",
        },
        "layers": sizes,
        "llama3_scaling": scaling,
    }


def _modules(decoder: Decoder) -> Iterator[tuple[str, Linear | RMSNorm]]:
    """Yield every module with a weight under its path in transformers' Llama; empty layers are left out."""
    from supernet.pretrained.hf_llama import NAMES  # the one table, read in both directions

    yield NAMES["embedding"], decoder.embedding
    yield NAMES["norm"], decoder.norm
    if decoder.output is not None:
        yield NAMES["output"], decoder.output
    for i, (attention, mlp) in enumerate(_parts(decoder)):
        for ours, theirs in NAMES.items():
            kind, _, name = ours.partition(".")
            block = {"attention": attention, "mlp": mlp}.get(kind)
            if block is not None:
                yield f"model.layers.{i}.{theirs}", block.get_submodule(name)  # type: ignore[misc]


def _value(module: Linear | RMSNorm) -> Tensor:
    """Return the weight, rounded to what the format of a matrix can hold."""
    from supernet.plain import RMSNorm

    return module.weight.detach() if isinstance(module, RMSNorm) else module.format.decode(*module.encoded())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    # transformers' own files, so without our format version.
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}, indent=2) + "\n", encoding="utf-8")


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; on success its files are flushed and it takes the place."""
    if folder.exists() and not (folder / "config.json").is_file():
        raise UserError(f"{folder} exists and is no checkpoint: move it away")
    temporary = temporary_beside(folder)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in temporary.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        if folder.exists():  # a kill from here on leaves no half of a checkpoint: none, or the new one
            old = temporary_beside(folder.with_name(f"{folder.name}.old"))
            folder.rename(old)
            temporary.rename(folder)
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
