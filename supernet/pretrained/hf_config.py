"""The shape of a Llama from the config.json of a Hugging Face folder, in the spelling of transformers 4 or 5."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supernet.errors import UserError
from supernet.files import read_object
from supernet.pretrained.checkpoint import Llama
from supernet.rope import Llama3Scaling, Rope, check_scaling

ARCHITECTURE, MODEL_TYPE = "LlamaForCausalLM", "llama"
DEFAULTS = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "rope_theta": 1e4}  # of transformers' LlamaConfig
MUST_BE = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "partial_rotary_factor": 1.0}
SCALING = tuple(Llama3Scaling.__dataclass_fields__)


def read_config(path: Path) -> Llama:
    """Return the shape that a config.json describes.

    Raises:
        UserError: it is damaged, or describes something that the supernet's largest net cannot be.
    """
    config = read_object(path)
    _refuse_others(path, config)
    heads, d_model = _count(path, config, "num_attention_heads"), _count(path, config, "hidden_size")
    head_dim = d_model // heads if config.get("head_dim") is None else _count(path, config, "head_dim")
    kv_heads = heads if config.get("num_key_value_heads") is None else _count(path, config, "num_key_value_heads")
    context_length = _number(path, "max_position_embeddings", config)
    llama = Llama(
        vocab_size=_count(path, config, "vocab_size"),
        n_layers=_count(path, config, "num_hidden_layers"),
        d_model=d_model,
        heads=heads,
        kv_heads=kv_heads,
        mlp_width=_count(path, config, "intermediate_size"),
        rope=_rope(path, config, head_dim, int(context_length)),
        norm_eps=_number(path, "rms_norm_eps", config),
        context_length=int(context_length),
        tied=bool(config.get("tie_word_embeddings", False)),
    )
    llama.check(str(path))
    return llama


def config_of(llama: Llama) -> dict[str, Any]:
    """Return the content of a config.json from which `read_config` reads this shape, as transformers does."""
    scaling = llama.rope.scaling_json()
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "vocab_size": llama.vocab_size,
        "num_hidden_layers": llama.n_layers,
        "hidden_size": llama.d_model,
        "num_attention_heads": llama.heads,
        "num_key_value_heads": llama.kv_heads,
        "head_dim": llama.head_dim,
        "intermediate_size": llama.mlp_width,
        "rms_norm_eps": llama.norm_eps,
        "max_position_embeddings": llama.context_length,
        "rope_theta": llama.rope.theta,
        "rope_scaling": {"rope_type": "llama3", **scaling} if scaling else None,
        "tie_word_embeddings": llama.tied,
    }


def _refuse_others(path: Path, config: Mapping[str, Any]) -> None:
    architectures = config.get("architectures") or [ARCHITECTURE]
    experts = [key for key in config if "experts" in key and config[key]]
    if experts:
        raise UserError(f"{path}: {experts[0]} is {config[experts[0]]!r}; mixtures of experts are not supported")
    if architectures != [ARCHITECTURE]:
        raise UserError(f"{path}: the architecture is {architectures}; only {ARCHITECTURE} is supported")
    if config.get("model_type") != MODEL_TYPE:
        raise UserError(f"{path}: model_type is {config.get('model_type')!r}; only {MODEL_TYPE!r} is supported")
    if config.get("auto_map"):
        raise UserError(f"{path}: auto_map names code of the checkpoint's own, which is never run")
    if config.get("quantization_config"):
        raise UserError(f"{path}: quantization_config says that the weights are quantized; take the original in floats")
    for key, value in MUST_BE.items():
        if config.get(key, value) not in (value, None):
            raise UserError(f"{path}: {key} is {config[key]!r}; only {value!r} is supported")


def _count(path: Path, config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{path}: {key} must be a whole number above 0, got {value!r}")
    return value


def _number(path: Path, key: str, config: Mapping[str, Any]) -> float:
    value = DEFAULTS[key] if config.get(key) is None else config[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{path}: {key} must be a number above 0, got {value!r}")
    return value


def _rope(path: Path, config: Mapping[str, Any], head_dim: int, context_length: int) -> Rope:
    """Return the rotary positions: transformers 5 has all in `rope_parameters`, 4 has `rope_theta`, `rope_scaling`."""
    told: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling", "rope_theta"):
        said = config.get(key)
        if said is not None and not isinstance(said, dict) and key != "rope_theta":
            raise UserError(f"{path}: {key} must be an object, got {said!r}")
        said = {"rope_theta": said} if key == "rope_theta" else dict(said or {})
        if "type" in said:  # before transformers 4.43
            said.setdefault("rope_type", said.pop("type"))
        for name, value in said.items():
            if value is not None and told.setdefault(name, value) != value:
                raise UserError(f"{path} says {name} twice: {told[name]!r} and {value!r}")
    kind = told.pop("rope_type", "default")
    theta = _number(path, "rope_theta", told)
    told.pop("rope_theta", None)
    if told.pop("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{path}: partial_rotary_factor must be 1.0")
    if kind == "default":
        return Rope(head_dim, theta)
    if kind != "llama3":
        raise UserError(f"{path}: the type of rope is {kind!r}; known are 'default' and 'llama3'")
    told.setdefault("original_max_position_embeddings", context_length)
    scaling = check_scaling(f"{path}: rope", {key: value for key, value in told.items() if key in SCALING})
    return Rope(head_dim, theta, scaling)
