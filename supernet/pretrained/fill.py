"""What a model's settings leave open (null) is taken from a checkpoint, before anything is built.

What comes out is complete: a run's files describe its supernet without the checkpoint.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from supernet.errors import UserError
from supernet.formats import Q4_0, format_named
from supernet.pretrained.checkpoint import Checkpoint

PART = 32  # what lengths are rounded to where no format asks for more


def filled(model: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the settings of a model with what is null taken from a checkpoint.

    Widths are null (the checkpoint's), sizes, or shares of the checkpoint's such as [0.5, 1.0], rounded to what its
    formats store in whole groups. The model's and the feed-forward width and the key-value heads grow until the format
    with the smallest groups can store their rows: what is added will be zeros. With the width epsilon falls, since the
    norms' mean squares fall. Formats that fit no row at all are left out.

    Args:
        model: its keys, with `blocks`; without interpolations.
        checkpoint: opened.

    Raises:
        UserError: a setting is of another net than the checkpoint's.
    """
    llama = checkpoint.llama
    blocks = {name: dict(block) for name, block in model["blocks"].items()}
    attention, mlp = blocks["attention"], blocks["mlp"]
    readers = [model.get("embedding_formats"), model.get("output_formats")]
    readers += [attention.get("qkv_formats"), mlp.get("gate_up_formats")]
    width = _padded(llama.d_model, 1, [name for formats in readers for name in formats or ()])
    taken: dict[str, Any] = {
        "n_layers": llama.n_layers,
        "head_dim": llama.head_dim,
        "rope_theta": llama.rope.theta,
        "rope_scaling": llama.rope.scaling_json(),
        "norm_eps": llama.norm_eps * llama.d_model / width,
        "tied": llama.tied,
    }
    for key, value in taken.items():
        if model.get(key) not in (None, value):
            raise UserError(f"model.{key} is {model[key]!r}, but {checkpoint.path} has {value!r}; null takes that")
    result = {**model, **taken, "blocks": blocks}
    if model.get("context_length") is None:
        result["context_length"] = llama.context_length

    d_model = _widths("model.d_model", model.get("d_model"), width, _rounding(width))
    mlp_width = _padded(llama.mlp_width, 1, mlp.get("down_formats"))
    mlp["width"] = _widths("model.blocks.mlp.width", mlp.get("width"), mlp_width, _rounding(mlp_width))
    kv_heads = _padded(llama.kv_heads, llama.heads_per_kv * llama.head_dim, attention.get("o_formats"))
    attention["kv_heads"] = _widths("model.blocks.attention.kv_heads", attention.get("kv_heads"), kv_heads, 1)
    key = "model.blocks.attention.heads_per_kv"
    attention["heads_per_kv"] = _widths(key, attention.get("heads_per_kv"), llama.heads_per_kv, 1)
    result["d_model"], attention["head_dim"] = d_model, llama.head_dim

    pairs = itertools.product(attention["kv_heads"], attention["heads_per_kv"])
    heads = [kv * per_kv * llama.head_dim for kv, per_kv in pairs]
    rows = {"qkv_formats": d_model, "o_formats": heads, "gate_up_formats": d_model, "down_formats": mlp["width"]}
    for settings, keys in ((result, ("embedding_formats", "output_formats")), (attention, rows), (mlp, rows)):
        for key in keys:
            if settings.get(key) is not None:
                settings[key] = _fitting(settings[key], rows.get(key, d_model))
    if attention.get("droppable") is None:  # the stand-in of what is dropped ships in Q4_0
        attention["droppable"] = all(row % Q4_0.group == 0 for row in (llama.head_dim, *d_model))
    if mlp.get("droppable") is None:
        mlp["droppable"] = all(row % Q4_0.group == 0 for row in d_model)
    return result


def padding(model: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, list[int]]:
    """Return what a filled model has more of than its checkpoint -> both numbers, the checkpoint's first."""
    llama, blocks = checkpoint.llama, model["blocks"]
    pairs = {
        "model.d_model": [llama.d_model, model["d_model"][-1]],
        "model.blocks.attention.kv_heads": [llama.kv_heads, blocks["attention"]["kv_heads"][-1]],
        "model.blocks.mlp.width": [llama.mlp_width, blocks["mlp"]["width"][-1]],
    }
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _groups(formats: Sequence[str] | None) -> list[int]:
    """Return the groups of the formats that store more than one weight at a time, ascending."""
    return sorted({format_named(name).group for name in formats or ()} - {1})


def _padded(size: int, unit: int, formats: Sequence[str] | None) -> int:
    """Return the least number from `size` on that gives rows, of `unit` for each, with whole groups."""
    groups = _groups(formats)
    if not groups:
        return size
    step = groups[0] // math.gcd(groups[0], unit)
    return -(-size // step) * step


def _rounding(width: int) -> int:
    """Return what shares of a width are rounded to: whole groups of the K-formats where it has such itself."""
    return next((group for group in (256, PART) if width % group == 0), 1)


def _widths(key: str, value: Any, full: int, rounding: int) -> list[int]:
    """Return the choices that a setting asks for; the last must be the largest net's."""
    if value is None:
        return [full]
    values = list(value)
    if values and all(isinstance(share, float) and 0 < share <= 1 for share in values):
        values = sorted({max(rounding, round(share * full / rounding) * rounding) for share in values})
    if not values or values[-1] != full:
        asked = f"the last choice must be the checkpoint's, {full} (or 1.0), got {list(value)}"
        raise UserError(f"{key}: {asked}; what fits no format's groups counts as padded")
    return values


def _fitting(formats: Sequence[str], rows: Sequence[int]) -> list[str]:
    """Return the formats whose groups fit some row; the last, which has to fit every one, is left to its check."""
    return [f for f in formats if f == formats[-1] or any(row % format_named(f).group == 0 for row in rows)]
