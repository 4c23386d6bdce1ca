"""Weight formats: how a matrix of weights is stored, to the bit.

`encode` turns float32 weights into what is stored, `decode` is what the runtime reads back (llama.cpp's
dequantization, operation for operation), and `fake_quantize` is both in a forward pass with the gradient passed
straight through (Bengio et al., arXiv 1308.3432).

Groups run along the last (in-) dimension, so slicing rows, or columns at group boundaries, commutes
with encoding.
"""

from collections.abc import Sequence
from functools import cache

from supernet.errors import UserError
from supernet.formats.base import F16, F32, MB, Encoded, Fitting, ScaledFormat, WeightFormat
from supernet.formats.bitsandbytes import INT8, NF4
from supernet.formats.blocks import IQ4_NL, Q4_0, Q5_0, Q8_0
from supernet.formats.k_blocks import Q2_K, Q3_K, Q6_K

__all__ = [
    "F16",
    "F32",
    "FORMATS",
    "INT8",
    "IQ4_NL",
    "MB",
    "NF4",
    "Q2_K",
    "Q3_K",
    "Q4_0",
    "Q5_0",
    "Q6_K",
    "Q8_0",
    "Encoded",
    "Fitting",
    "ScaledFormat",
    "WeightFormat",
    "check_formats",
    "format_named",
]

# What genes may choose from: INT8 is none, its scales belong to whole rows and do not survive slicing.
FORMATS: dict[str, WeightFormat] = {
    f.name: f for f in (Q2_K(), Q3_K(), NF4(), Q4_0(), IQ4_NL(), Q5_0(), Q6_K(), Q8_0(), F16(), F32())
}


@cache
def format_named(name: str, fitting: Fitting = "absmax") -> WeightFormat:
    """Return the format of that name.

    Raises:
        UserError: there is none, or its scales cannot be fitted so.
    """
    if name not in FORMATS:
        raise UserError(f"unknown weight format {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name] if fitting == "absmax" else type(FORMATS[name])(fitting)


def check_formats(key: str, names: Sequence[str], widths: Sequence[int]) -> tuple[str, ...]:
    """Return `names` when each exists, they ascend in bits, and every width can be stored in the last.

    A format in between may be offered for the widths that are multiples of its group.

    Args:
        key: where the formats are set, for the message.
        names: format names.
        widths: lengths of the rows that are stored in these formats.

    Raises:
        UserError: one of the above fails, or no width fits a format.
    """
    formats = [format_named(name) for name in names]
    if [f.bits for f in formats] != sorted({f.bits for f in formats}) or not formats:
        raise UserError(f"{key}: formats must ascend in bits per weight, got {list(names)}")
    for f in formats:
        misfits = [width for width in widths if width % f.group]
        if len(misfits) == len(widths) or (misfits and f is formats[-1]):
            raise UserError(
                f"{key}: a width of {misfits[0]} does not fit {f.name}, whose groups hold {f.group} weights"
            )
    return tuple(names)
