import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.operators import mutate, shrink, switch_levels
from search.subspace import KINDS, Subspace, check_kinds
from supernet.errors import UserError
from supernet.genes import Gene, SearchSpace

PARTS = st.sampled_from([("width",), ("switch",), ("format",), ("width", "switch"), ("switch", "format")])
SEEDS = st.integers(0, 2**32)


def parts(space, kinds, seed, n=3):
    """Return a subspace with some random bases, and a generator."""
    rng = np.random.default_rng(seed)
    bases = {
        tuple(np.where(_held(space, kinds), genome, 0)): genome for genome in (space.sample(rng) for _ in range(n))
    }
    return Subspace(space, kinds, list(bases.values())), rng


def _held(space, kinds):
    return [gene.kind not in kinds for gene in space]


@given(kinds=PARTS, seed=SEEDS)
def test_what_is_lifted_differs_from_its_base_in_free_genes_alone(toy_space, kinds, seed):
    part, rng = parts(toy_space, kinds, seed)
    genome = part.sample(rng)
    whole, base = part.lift(genome), part.bases[genome[0]]
    assert toy_space.check(whole) == whole
    off = set(range(len(toy_space))) - set(toy_space.active(whole))
    for i, gene in enumerate(toy_space):
        assert gene.kind in kinds or whole[i] == base[i] or (i in off and whole[i] == 0)


@given(kinds=PARTS, seed=SEEDS)
def test_two_genomes_are_equal_exactly_when_they_stand_for_the_same(toy_space, kinds, seed):
    part, rng = parts(toy_space, kinds, seed, n=1)
    first, second = part.sample(rng), part.sample(rng)
    assert part.canonical(first) == first == part.project(part.lift(first))
    assert (first == second) == (part.lift(first) == part.lift(second))


@given(kinds=PARTS, seed=SEEDS)
def test_projecting_again_changes_nothing(toy_space, kinds, seed):
    part, rng = parts(toy_space, kinds, seed)
    projected = part.project(toy_space.sample(rng))
    assert part.lift(part.project(part.lift(projected))) == part.lift(projected)


@given(kinds=PARTS, seed=SEEDS)
def test_operators_stay_within(toy_space, kinds, seed):
    part, rng = parts(toy_space, kinds, seed)
    genome = part.sample_spread(rng)
    children = [mutate(part, genome, 2.0, rng), switch_levels(part, genome, lambda g: sum(g) <= 4, rng)]
    children.append(shrink(part, genome, lambda g: False, rng))
    for child in children:
        assert part.canonical(child) == child
        assert part.lift(child)[toy_space.position["only"]] == 0
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


def test_what_cannot_vary_is_refused(toy_space):
    with pytest.raises(UserError, match=r"evolution\.vary=\['format'\]: no gene of these kinds"):
        Subspace(SearchSpace([Gene("w", (1, 2), "width")]), ["format"], [(1,)])
    for wrong in ("widths", ["width", "depth"], []):
        with pytest.raises(UserError, match=r"evolution\.vary must list some of width, switch, format, got"):
            check_kinds(wrong, "evolution.vary")
    assert check_kinds(["format", "width"], "") == ("width", "format")
    assert set(KINDS) == {gene.kind for gene in toy_space}
