"""A checkpoint whose matrices are NF4, packed as transformers saves what bitsandbytes has quantized.

Nothing is quantized here: the codes and scales are those of our own format, which are bitsandbytes' to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from supernet.errors import UserError
from supernet.genes import Value

if TYPE_CHECKING:
    from torch import Tensor

    from supernet.plain import Linear, RMSNorm

FORMATS = ("NF4", "F16")
QUANTIZATIONS: dict[str, dict[str, Any]] = {  # what bitsandbytes makes of a net of floats, and how it is asked to
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},  # QLoRA, arXiv 2305.14314; no double quantization
    "int8": {"load_in_8bit": True},  # LLM.int8, arXiv 2208.07339: activations in 8 bits, too, but those of 6 and more
}
FLOATS = ("model.embed_tokens", "lm_head")  # what bitsandbytes leaves as it is
ROWS = 32  # bitsandbytes packs so many rows together on processors that multiply in bfloat16


def missing() -> str | None:
    """Return None where transformers can load through bitsandbytes, else the sentence that says what to install."""
    for package in ("bitsandbytes", "accelerate"):
        if find_spec(package) is None:
            return f"transformers loads NF4 and int8 through bitsandbytes and accelerate: pip install {package}"
    return None


def supports(architecture: Mapping[str, Value]) -> str | None:
    """Return None when transformers can hold the formats of an architecture in 4 bits, else the reason."""
    for name, value in architecture.items():
        if name in ("embedding.format", "output.format") and value != "F16":
            return f"{name} is {value}; bitsandbytes leaves embeddings as floats, so it must be F16"
        if name.endswith("_format") and value not in FORMATS:
            return f"{name} is {value}; a checkpoint of bitsandbytes holds {' and '.join(FORMATS)}"
    return None


def packed(name: str, module: Linear | RMSNorm) -> dict[str, Tensor] | None:
    """Return what is stored of a matrix in NF4, by name; None for what stays floats.

    Args:
        name: the module's path in transformers.
        module: to store.

    Raises:
        UserError: a format that does not go there, or rows that bitsandbytes cannot pack on every processor.
    """
    import torch

    from supernet.formats.bitsandbytes import NF4_VALUES
    from supernet.plain import RMSNorm

    if isinstance(module, RMSNorm) or module.format.name == "F16":
        return None
    if module.format.name != "NF4" or name in FLOATS:
        raise UserError(f"{name} is {module.format.name}, which a checkpoint of bitsandbytes does not hold")
    codes, scales = (part.cpu() for part in module.encoded())
    if len(codes) % ROWS:
        raise UserError(f"{name} has {len(codes)} rows; bitsandbytes needs a multiple of {ROWS}")
    pairs = codes.flatten().to(torch.uint8)
    state = {"quant_type": "nf4", "blocksize": module.format.group, "dtype": "float32", "shape": list(codes.shape)}
    return {
        f"{name}.weight": (pairs[::2] << 4 | pairs[1::2]).unsqueeze(1),
        f"{name}.weight.absmax": scales.flatten(),
        f"{name}.weight.quant_map": torch.tensor(NF4_VALUES),
        f"{name}.weight.quant_state.bitsandbytes__nf4": torch.tensor(
            list(json.dumps(state).encode()), dtype=torch.uint8
        ),
    }


def config(tensors: Collection[str], dtype: str) -> dict[str, Any]:
    """Return what config.json has to say for the stored `tensors`; nothing where none is packed.

    Args:
        tensors: their names.
        dtype: in which bitsandbytes computes, and what is no NF4 is stored.
    """
    matrices = [name.removesuffix(".weight") for name in tensors if name.endswith("_proj.weight")]
    floats = [name for name in matrices if f"{name}.weight.absmax" not in tensors]
    if len(floats) == len(matrices):
        return {}
    quantization = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_compute_dtype": dtype,
        "llm_int8_skip_modules": ["lm_head", *floats],
    }
    return {"quantization_config": quantization}
