import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.operators import mutate, shrink, switch_levels
from search.subspace import Subspace, check_kinds
from supernet.errors import UserError
from supernet.genes import KINDS, Gene, SearchSpace

ROWS = {"row": ("d",), "unit": 64, "groups": (256, 32, 1)}
SPACES = [
    SearchSpace(
        [
            Gene("d", (1, 2, 4), "width"),
            Gene("only", (4,), "width"),
            *(
                gene
                for i in range(3)
                for gene in (
                    Gene(f"{i}.on", (0, 1), "switch"),
                    Gene(f"{i}.width", (2, 3, 4), "width", f"{i}.on"),
                    Gene(f"{i}.up", ("Q2_K", "Q4_0", "F16"), "format", f"{i}.on", **ROWS),
                    Gene(f"{i}.down", ("Q2_K", "Q4_0", "F16"), "format", f"{i}.on", **ROWS | {"row": (f"{i}.width",)}),
                )
            ),
        ]
    ),
    SearchSpace(
        [
            Gene("only", (4,), "width"),
            Gene("w", (1, 2, 3), "width"),
            Gene("fmt", ("Q4_0", "F16"), "format"),
            Gene("on", (0, 1), "switch"),
        ]
    ),
]
PARTS = st.tuples(
    st.sampled_from(SPACES),
    st.sampled_from([("width",), ("switch",), ("format",), ("width", "switch"), ("switch", "format")]),
)
SEEDS = st.integers(0, 2**32)


def parts(space, kinds, seed):
    """Return a subspace with a random base, or several where that may be, and a generator."""
    rng, n = np.random.default_rng(seed), 3 if kinds == ("format",) else 1
    bases = {
        tuple(np.where(_held(space, kinds), genome, 0)): genome for genome in (space.sample(rng) for _ in range(n))
    }
    return Subspace(space, kinds, list(bases.values())), rng


def _held(space, kinds):
    return [gene.kind not in kinds for gene in space]


@given(part=PARTS, seed=SEEDS)
def test_what_is_lifted_differs_from_its_base_in_free_genes_alone(part, seed):
    space, kinds = part
    part, rng = parts(space, kinds, seed)
    genome = part.sample(rng)
    whole, base = part.lift(genome), part.bases[genome[0]]
    assert space.check(whole) == whole
    off = set(range(len(space))) - set(space.active(whole))
    for i, gene in enumerate(space):
        put_back = whole[i] == 0 if i in off else gene.row and whole[i] > base[i]
        assert gene.kind in kinds or whole[i] == base[i] or put_back


@given(part=PARTS, seed=SEEDS)
def test_two_genomes_are_equal_exactly_when_they_stand_for_the_same(part, seed):
    space, kinds = part
    part, rng = parts(space, kinds, seed)
    first, second = part.sample(rng), part.sample(rng)
    assert part.canonical(first) == first == part.project(part.lift(first))
    assert (first == second) == (part.lift(first) == part.lift(second))


@given(part=PARTS, seed=SEEDS)
def test_projecting_again_changes_nothing(part, seed):
    space, kinds = part
    part, rng = parts(space, kinds, seed)
    projected = part.project(space.sample(rng))
    assert part.project(part.lift(projected)) == projected


@given(part=PARTS, seed=SEEDS)
def test_operators_stay_within(part, seed):
    space, kinds = part
    part, rng = parts(space, kinds, seed)
    genome = part.sample_spread(rng)
    children = [mutate(part, genome, 2.0, rng), switch_levels(part, genome, lambda g: sum(g) <= 4, rng)]
    children.append(shrink(part, genome, lambda g: False, rng))
    for child in children:
        assert part.canonical(child) == child
        assert part.lift(child)[space.position["only"]] == 0
    if part.active(genome) != [0]:
        assert children[0] != genome or all(len(part.genes[i].choices) == 1 for i in part.active(genome))
    assert children[2] == part.cheapest


def test_layers_that_differ_in_held_genes_are_alike():
    space = SearchSpace(
        [Gene(f"layers.{i}.{name}", choices, kind) for i in range(3) for name, choices, kind in
         (("width", (1, 2), "width"), ("fmt", ("Q4_0", "F16"), "format"))]
    )  # fmt: skip
    part = Subspace(space, ["format"], [(0, 1, 1, 1, 0, 1)])
    assert len(part.alike[0]) == 3
    assert part.lift(part.cheapest) == (0, 0, 1, 0, 0, 0)


def test_what_cannot_vary_is_refused():
    with pytest.raises(UserError, match=r"evolution\.vary=\['format'\]: no gene of these kinds"):
        Subspace(SearchSpace([Gene("w", (1, 2), "width")]), ["format"], [(1,)])
    for wrong in ("widths", ["width", "depth"], []):
        with pytest.raises(UserError, match=r"evolution\.vary must list some of width, switch, format, got"):
            check_kinds(wrong, "evolution.vary")
    assert check_kinds(["format", "width"], "") == ("width", "format")
    assert set(KINDS) == {gene.kind for gene in SPACES[0]}
