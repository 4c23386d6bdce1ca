"""Where a finalist comes from: its ancestors, what changed at each step, and their places in a drawing."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from search.report.data import Entry, ReportData
from supernet.genes import Gene, SearchSpace

MAX_DRAWN = 160  # ancestors in one drawing
MAX_LANES = 16  # side by side


@dataclass(frozen=True)
class Change:
    """A gene in which a child differs from its parent on the main line.

    Attributes:
        gene: its name.
        before: the parent's value.
        after: the child's value.
        donor: id of the other parent, where that has the child's value; None where the value is new.
    """

    gene: str
    before: object
    after: object
    donor: int | None

    def __str__(self) -> str:
        source = "" if self.donor is None else f" (of {self.donor})"
        return f"{self.gene} {self.before} → {self.after}{source}"


@dataclass(frozen=True)
class Ancestry:
    """A candidate's ancestors.

    Attributes:
        members: the candidate and all its ancestors, by id.
        line: the main line, from the first population to the candidate: of two parents the nearer one.
    """

    members: dict[int, Entry]
    line: list[Entry]

    @cached_property
    def layers(self) -> list[int]:
        """The generations of those that are drawn, in order."""
        return sorted({generation(self.members[i]) for i in self.lanes})

    @cached_property
    def lanes(self) -> dict[int, int]:
        """Id -> place within its layer for those that are drawn: 0 is the main line, others are 1, 2, ..."""
        children: defaultdict[int, list[int]] = defaultdict(list)
        for i, entry in self.members.items():
            for parent in parents(entry):
                children[parent].append(i)
        lanes = {e["id"]: 0 for e in self.line}
        near = self._steps_from_line()
        side = sorted((i for i in self.members if i not in lanes), key=lambda i: (near[i], -i))[:MAX_DRAWN]
        layers: defaultdict[int, list[int]] = defaultdict(list)
        for i in side:
            layers[generation(self.members[i])].append(i)
        # From the youngest layer down, so that each is ordered by where its children stand.
        for layer in sorted(layers, reverse=True):
            kept = layers[layer][:MAX_LANES]
            drawn = {i: [lanes[child] for child in children[i] if child in lanes] for i in kept}
            kept.sort(key=lambda i: (sum(drawn[i]) / len(drawn[i]) if drawn[i] else MAX_LANES, i))
            lanes |= {i: lane for lane, i in enumerate(kept, start=1)}
        return lanes

    def _steps_from_line(self) -> dict[int, int]:
        """Return for each member by how many births it is away from the main line."""
        steps = {e["id"]: 0 for e in self.line}
        waiting = [e["id"] for e in self.line]
        for i in waiting:  # grows while it is walked
            for parent in parents(self.members[i]):
                if parent in self.members and parent not in steps:
                    steps[parent] = steps[i] + 1
                    waiting.append(parent)
        return steps


def generation(entry: Entry) -> int:
    """Return the generation that a candidate was made in."""
    return int(entry["lineage"]["generation"])


def parents(entry: Entry) -> list[int]:
    """Return the ids of a candidate's parents."""
    return list(dict.fromkeys(entry["lineage"]["parents"]))


def ancestry(data: ReportData, entry: Entry) -> Ancestry | None:
    """Return the ancestors of a finalist, None when it is not in the journal."""
    start = data.by_id.get(entry.get("id"))  # type: ignore[arg-type]
    if start is None:
        return None
    members, waiting = {start["id"]: start}, [start]
    for child in waiting:  # grows while it is walked
        # A parent is older than its child; anything else, in a journal of unknown origin, could go in circles.
        known = [data.by_id[i] for i in parents(child) if i in data.by_id and i < child["id"]]
        for parent in known:
            if parent["id"] not in members:
                members[parent["id"]] = parent
                waiting.append(parent)
    line = [start]
    while older := [members[i] for i in parents(line[-1]) if i in members and i < line[-1]["id"]]:
        line.append(min(older, key=lambda parent: _distance(parent, line[-1])))
    return Ancestry(dict(sorted(members.items())), line[::-1])


def _distance(a: Entry, b: Entry) -> int:
    return sum(x != y for x, y in zip(a["genome"], b["genome"], strict=True))


def changes(space: SearchSpace, members: Mapping[int, Entry], entry: Entry) -> list[Change]:
    """Return the genes in which a candidate differs from the nearer of its parents, those that are new first."""
    known = [members[i] for i in parents(entry) if i in members]
    if not known:
        return []
    nearest = min(known, key=lambda parent: _distance(parent, entry))
    others = [parent for parent in known if parent is not nearest]
    found = []
    for i, gene in enumerate(space):
        after = entry["genome"][i]
        if nearest["genome"][i] != after and _matters(space, gene, entry):
            donors = [parent["id"] for parent in others if parent["genome"][i] == after]
            before = gene.choices[nearest["genome"][i]] if _matters(space, gene, nearest) else "–"
            found.append(Change(gene.name, before, gene.choices[after], donors[0] if donors else None))
    return sorted(found, key=lambda change: change.donor is not None)


def _matters(space: SearchSpace, gene: Gene, entry: Entry) -> bool:
    """Say whether a gene's block is there to obey it."""
    if gene.needs is None:
        return True
    switch = space.position[gene.needs]
    return space.genes[switch].choices[entry["genome"][switch]] != 0
