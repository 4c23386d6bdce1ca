"""What a net holds as shipped, counted from its choices: exactly, or in expectation under soft ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from supernet.formats import format_named
from supernet.genes import Value

Choice = Value | Tensor
Choices = Mapping[str, Choice]
# Feature -> (expected) count. `Q4_0.weights`, `Q4_0.rows` of all matrices in a format, `norm.weights` and
# `rope.weights` (F32), blocks by name, and whatever else a runtime's time and memory depend on.
Inventory = dict[str, Any]


def mean(shares_of_widths: Mapping[int, Any]) -> Any:
    """Return the expected width."""
    return sum(width * share for width, share in shares_of_widths.items())


def shares(choice: Choice, values: Sequence[Value]) -> dict[Any, Any]:
    """Return value -> probability; a hard choice is certain, and may be none of `values` (F32, unrounded)."""
    if isinstance(choice, Tensor):
        return dict(zip(values, choice.unbind(), strict=True))
    return {choice: 1.0}


def add(total: Inventory, part: Inventory, factor: Any = 1.0, prefix: str = "") -> None:
    """Add `factor` times an inventory to `total`, under names that begin with `prefix`."""
    for name, count in part.items():
        total[prefix + name] = total.get(prefix + name, 0.0) + factor * count


def joint(*choices: Mapping[int, Any]) -> dict[int, Any]:
    """Return product -> probability of independent widths."""
    found: dict[int, Any] = {1: 1.0}
    for shares_of_one in choices:
        wider: dict[int, Any] = {}
        for width, p in found.items():
            for factor, q in shares_of_one.items():
                wider[width * factor] = wider.get(width * factor, 0.0) + p * q
        found = wider
    return found


def next_fitting(name: Value, names: Sequence[str], row: int) -> str:
    """Return the format, or the next of `names` that can store rows of that length; the last if none can.

    None can in a block that is dropped, whose choices mean nothing.
    """
    later = names[names.index(str(name)) :]
    return next((other for other in later if row % format_named(other).group == 0), later[-1])


def fitted(choice: Choice, names: Sequence[str], rows: Mapping[int, Any]) -> Choice:
    """Return a soft format with the probability of what does not fit a row moved to what ships in its stead.

    Args:
        choice: a hard choice fits already, see `SearchSpace.canonical`.
        names: what the probabilities are of.
        rows: length of a stored row -> probability.
    """
    if not isinstance(choice, Tensor) or all(row % format_named(name).group == 0 for name in names for row in rows):
        return choice
    found: dict[str, Any] = dict.fromkeys(names, choice.new_zeros(()))
    for row, p in rows.items():
        for name, q in zip(names, choice.unbind(), strict=True):
            stored = next_fitting(name, names, row)
            found[stored] = found[stored] + p * q
    return torch.stack(list(found.values()))


def matrices(rows: Any, columns: Mapping[int, Any], formats: Mapping[Value, Any]) -> Inventory:
    """Return the inventory of matrices with `rows` in sum, stored in each format with a probability.

    Args:
        rows: (expected) number.
        columns: length of a row -> probability.
        formats: name -> probability, in ascending cost; what does not fit a row ships in the next that does.
    """
    found: Inventory = {}
    names = [str(name) for name in formats]
    for name, share in formats.items():
        for column, p in columns.items():
            stored = next_fitting(name, names, column)
            n_rows = share * p * rows
            for key, count in ((f"{stored}.weights", n_rows * column), (f"{stored}.rows", n_rows)):
                found[key] = found.get(key, 0.0) + count
    return found


def inventory_bytes(inventory: Inventory) -> Any:
    """Return the (expected) bytes of all tensors in an inventory."""
    total: Any = 0.0
    for name, count in inventory.items():
        stored_as, _, what = name.rpartition(".")
        if what == "weights" and "." not in stored_as:  # with a second dot it is a share of what is counted already
            total = total + format_named("F32" if stored_as in ("norm", "rope") else stored_as).n_bytes(count)
    return total
