"""What each choice of each gene is worth by itself, as sensitivity.json holds it. No torch, no model."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from supernet.errors import UserError
from supernet.files import read_json
from supernet.genes import SearchSpace

SENSITIVITY = "sensitivity.json"


@dataclass(frozen=True)
class Profile:
    """Content of sensitivity.json.

    Attributes:
        space: the genes.
        content: `split`, `sequences`, `sequence_length`; `reference` with `genome`, `loss` in nats, `bytes`; `genes`,
            each with `name`, `kind`, `choices` and, by choice, `rise` of the loss in nats (null where the largest net
            cannot take it, or has no finite loss with it), its `standard_error` over sequences, `divergence` from the
            largest net in nats, null likewise, and `bytes_saved`; `findings`, in words.
    """

    space: SearchSpace
    content: Mapping[str, Any]

    @cached_property
    def divergences(self) -> dict[str, list[float | None]]:
        """KL(largest || net with that choice) in nats per token, by gene and choice."""
        return {gene["name"]: gene["divergence"] for gene in self.content["genes"]}

    @cached_property
    def saved(self) -> dict[str, list[float]]:
        """Bytes saved by gene and choice."""
        return {gene["name"]: gene["bytes_saved"] for gene in self.content["genes"]}


def read_profile(path: Path, space: SearchSpace) -> Profile:
    """Read what `measure_sensitivity` wrote.

    Raises:
        UserError: it is missing, damaged, or belongs to another search space.
    """
    content = read_json(path)
    try:
        theirs = [(gene["name"], tuple(gene["choices"])) for gene in content["genes"]]
        columns = ("rise", "divergence", "bytes_saved")
        whole = all(len(gene[column]) == len(gene["choices"]) for gene in content["genes"] for column in columns)
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{path} is damaged; delete it to measure anew")
    if theirs != [(gene.name, gene.choices) for gene in space]:
        raise UserError(f"{path} was measured for another search space; delete it to measure anew")
    return Profile(space, content)
