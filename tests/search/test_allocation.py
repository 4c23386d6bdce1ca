from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.allocation import Allocation, allocate, preferences, seeds
from supernet.genes import KINDS, Gene, SearchSpace

SEEDS = st.integers(0, 2**32)


def weights_of(space, rng):
    """Return rises and costs by gene and choice: rising and falling with what a choice keeps, roughly."""
    rises, costs = {}, {}
    for gene in space:
        n = len(gene.choices)
        rises[gene.name] = [*np.sort(rng.random(n - 1))[::-1].tolist(), 0.0]
        costs[gene.name] = np.cumsum(rng.random(n) + 0.1).tolist()
    return rises, costs


def additive(space, costs):
    """Return a cost that is the sum over genes that have an effect; a block that is dropped costs nothing."""

    def cost(genome):
        on = [i for i in space.active(genome) if space.genes[i].choices[genome[i]] != 0]
        return sum(costs[space.genes[i].name][genome[i]] for i in on)

    return cost


def rise_of(space, rises, genome):
    return sum(rises[space.genes[i].name][genome[i]] for i in space.active(genome))


def genomes(space, vary=KINDS, base=None):
    """Return every genome whose genes differ from the base in some kinds only."""
    base = base or space.largest
    indices = [range(len(g.choices)) if g.kind in vary else [k] for g, k in zip(space, base, strict=True)]
    return {space.canonical(genome) for genome in product(*indices)}


@given(seed=SEEDS, share=st.floats(0.05, 1.05), vary=st.sampled_from([KINDS, ("format",), ("format", "width")]))
def test_it_finds_what_trying_everything_finds(toy_space, seed, share, vary):
    rises, costs = weights_of(toy_space, np.random.default_rng(seed))
    cost = additive(toy_space, costs)
    budget = share * cost(toy_space.largest)
    found = allocate(toy_space, rises, cost, budget, vary)
    within = [genome for genome in genomes(toy_space, vary) if cost(genome) <= budget]
    assert (found is None) == (not within)
    if found is not None:
        assert toy_space.check(found) == found and found in genomes(toy_space, vary)
        assert cost(found) <= budget
        best = min(rise_of(toy_space, rises, genome) for genome in within)
        assert rise_of(toy_space, rises, found) == pytest.approx(best, abs=1e-6)


@given(seed=SEEDS)
def test_all_but_what_varies_is_the_base(toy_space, seed):
    rng = np.random.default_rng(seed)
    rises, costs = weights_of(toy_space, rng)
    base, cost = toy_space.sample(rng), additive(toy_space, costs)
    found = allocate(toy_space, rises, cost, 0.9 * cost(base), ("format",), base)
    if found is not None:
        for gene, ours, theirs in zip(toy_space, found, base, strict=True):
            assert ours == theirs or gene.kind == "format"


def test_a_budget_holds_where_costs_do_not_add_up(toy_space):
    rises, costs = weights_of(toy_space, np.random.default_rng(0))
    plain, switches = additive(toy_space, costs), [toy_space.position[n] for n in ("a.active", "b.active")]

    def cost(genome):  # without either block something must stand in
        return plain(genome) + 0.7 * (not any(genome[i] for i in switches))

    for share in np.linspace(0.3, 0.9, 13):
        found = allocate(toy_space, rises, cost, share * cost(toy_space.largest))
        assert found is None or cost(found) <= share * cost(toy_space.largest)


def test_what_is_unknown_is_not_chosen(toy_space):
    rises, costs = weights_of(toy_space, np.random.default_rng(0))
    rises["fmt"] = [None, 0.1, 0.0]
    cost = additive(toy_space, costs)
    budget = min(cost(g) for g in genomes(toy_space) if g[toy_space.position["fmt"]] > 0)
    assert allocate(toy_space, rises, cost, budget)[toy_space.position["fmt"]] == 1
    assert allocate(toy_space, rises, cost, budget - 1e-3) is None


def test_a_cheap_choice_that_seems_to_help_is_luck(toy_space):
    rises, costs = weights_of(toy_space, np.random.default_rng(0))
    rises["fmt"] = [-0.1, 0.2, 0.0]
    cost = additive(toy_space, costs)
    assert allocate(toy_space, rises, cost, cost(toy_space.largest)) == toy_space.largest


def test_several_budgets_at_once(toy_space):
    rng = np.random.default_rng(1)
    (rises, sizes), (_, times) = weights_of(toy_space, rng), weights_of(toy_space, rng)
    size, time = additive(toy_space, sizes), additive(toy_space, times)
    program = Allocation(toy_space, rises, lambda g: {"size_mb": size(g), "decode_ms": time(g)})
    budgets = {"size_mb": 0.6 * size(toy_space.largest), "decode_ms": 0.6 * time(toy_space.largest)}
    within = [g for g in genomes(toy_space) if size(g) <= budgets["size_mb"] and time(g) <= budgets["decode_ms"]]
    found = program.solve(budgets)
    assert found in within
    best = min(rise_of(toy_space, rises, g) for g in within)
    assert rise_of(toy_space, rises, found) == pytest.approx(best, abs=1e-6)


def test_seeds_are_different_nets_below_the_budget(toy_space):
    rises, costs = weights_of(toy_space, np.random.default_rng(1))
    cost = additive(toy_space, costs)
    program = Allocation(toy_space, rises, lambda genome: {"size_mb": cost(genome)})
    bound = 0.8 * cost(toy_space.largest)
    found = seeds(program, {"size_mb": bound}, 0.5, 6)
    assert len({genome for _, genome in found}) == len(found) > 2
    assert all(cost(genome) <= bound for _, genome in found)
    assert found[0] == (f"sensitivity LP {bound:.3g} MB", program.solve({"size_mb": bound}))
    free = seeds(program, {}, 0.5, 6)
    assert all(cost(genome) < cost(toy_space.largest) for _, genome in free) and len(free) > 2


def test_a_bargain_is_preferred_and_what_hurts_is_not():
    space = SearchSpace([Gene(name, ("Q2_K", "F16"), "format") for name in ("cheap", "fair", "dear")])
    rises = {"cheap": [0.0, 0.0], "fair": [0.1, 0.0], "dear": [9.0, 0.0]}
    (cheap, top), (fair, _), (dear, _) = preferences(space, rises, {name: [100.0, 0.0] for name in rises})
    assert cheap > fair == top == 0 > dear
    unknown, nothing = {name: [None, 0.0] for name in rises}, {name: [0.0, 0.0] for name in rises}
    assert preferences(space, unknown, nothing) == [[0.0, 0.0]] * 3
