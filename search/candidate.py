"""A candidate: genome, scores, lineage."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from supernet.genes import Genome


@dataclass(frozen=True)
class Lineage:
    """Where a genome comes from.

    Attributes:
        generation: of the search; 0 is the first population.
        operator: what made it, as `mutate`, `cross + mutate`, `uniform Q4_0`, `gates mode`.
        parents: ids of the candidates it was made from.
        changed: genes in which it differs from its first parent.
        seed: of the search; with it and the generation every draw can be repeated.
    """

    generation: int
    operator: str
    parents: tuple[int, ...] = ()
    changed: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Proposal:
    """A genome that a strategy asks to have evaluated."""

    genome: Genome
    lineage: Lineage


@dataclass(frozen=True)
class Candidate:
    """An evaluated genome.

    Attributes:
        id: its position in the journal.
        genome: canonical.
        scores: by objective, minimized; more than the search's objectives may be there.
        violation: by how much, relatively, budgets are exceeded in sum; 0 when it is feasible.
        lineage: where it comes from.
        stopped: why some scores are missing (`hurdle 1`, `failed: ...`); None when all are there.
    """

    id: int
    genome: Genome
    scores: Mapping[str, float]
    violation: float
    lineage: Lineage
    stopped: str | None = None

    @property
    def whole(self) -> bool:
        """Whether it was scored to the end, in numbers."""
        return self.stopped is None and all(map(math.isfinite, (*self.scores.values(), self.violation)))

    @property
    def feasible(self) -> bool:
        """Whether it was scored to the end and meets every budget."""
        return self.whole and self.violation == 0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "id": self.id,
            "genome": list(self.genome),
            "scores": dict(self.scores),
            "violation": self.violation,
            "feasible": self.feasible,
            "stopped": self.stopped,
            "lineage": vars(self.lineage),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Candidate":
        """Rebuild a candidate that `to_json` wrote; raises KeyError or TypeError when it is not one."""
        lineage = content["lineage"]
        return cls(
            int(content["id"]),
            tuple(content["genome"]),
            {str(name): float(score) for name, score in content["scores"].items()},
            float(content["violation"]),
            Lineage(
                int(lineage["generation"]),
                str(lineage["operator"]),
                tuple(lineage["parents"]),
                tuple(lineage["changed"]),
                int(lineage["seed"]),
            ),
            content.get("stopped"),
        )
