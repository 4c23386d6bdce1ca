import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from search.operators import cross, difference, mutate, shrink
from supernet.genes import Gene, SearchSpace

SEEDS = st.integers(0, 2**32)


def drawn(space, seed):
    rng = np.random.default_rng(seed)
    return space.sample(rng), space.sample(rng), rng


@given(seed=SEEDS, rate=st.floats(0, 8))
def test_a_mutant_is_another_member(toy_space, seed, rate):
    parent, _, rng = drawn(toy_space, seed)
    child = mutate(toy_space, parent, rate, rng)
    assert toy_space.check(child) == child != parent
    assert all(type(index) is int for index in child)


@given(seed=SEEDS)
def test_a_cross_takes_each_gene_from_either_parent(toy_space, seed):
    first, second, rng = drawn(toy_space, seed)
    child = cross(toy_space, first, second, rng)
    assert toy_space.check(child) == child
    for gene, c, a, b in zip(toy_space, child, first, second, strict=True):
        assert c in (a, b) or (c == 0 and gene.needs)
    assert cross(toy_space, first, first, rng) == first


@given(seed=SEEDS, budget=st.integers(0, 20))
def test_shrinking_ends_within_the_budget_where_that_is_possible(toy_space, seed, budget):
    genome, _, rng = drawn(toy_space, seed)
    small = shrink(toy_space, genome, lambda g: sum(g) <= budget, rng)
    assert toy_space.check(small) == small
    assert sum(small) <= budget  # index 0 everywhere always fits
    assert all(s <= g for s, g in zip(small, genome, strict=True))
    if sum(genome) <= budget:
        assert small == genome


@given(seed=SEEDS)
def test_shrinking_ends_where_nothing_fits(toy_space, seed):
    genome, _, rng = drawn(toy_space, seed)
    assert shrink(toy_space, genome, lambda g: False, rng) == toy_space.cheapest


def test_blocks_are_dropped_last(toy_space):
    switches = [toy_space.position[name] for name in ("a.active", "b.active")]
    for seed in range(20):
        seen: list[tuple] = []

        def refuse(genome, seen=seen):
            seen.append(genome)
            return False

        shrink(toy_space, toy_space.largest, refuse, np.random.default_rng(seed))
        for genome in seen:
            if not all(genome[i] for i in switches):
                kept = [i for i, gene in enumerate(toy_space) if gene.kind != "switch"]
                assert not any(genome[i] for i in kept)


def test_rate_is_the_mean_number_of_changes():
    space = SearchSpace([Gene(f"w{i}", (1, 2, 3), "width") for i in range(60)])
    for rate, wanted in ((0.0, 1), (1.0, 1), (3.0, 3)):
        rng = np.random.default_rng(0)
        children = [mutate(space, space.largest, rate, rng) for _ in range(400)]
        changes = [len(difference(space, space.largest, child)) for child in children]
        assert abs(np.mean(changes) - wanted) < 0.25 and min(changes) == 1


def test_operators_repeat_with_the_generator(toy_space):
    def play(seed):
        rng = np.random.default_rng(seed)
        a, b = toy_space.sample(rng), toy_space.sample(rng)
        return (
            mutate(toy_space, a, 2, rng),
            cross(toy_space, a, b, rng),
            shrink(toy_space, a, lambda g: sum(g) < 3, rng),
        )

    assert play(1) == play(1)
    assert len({play(seed) for seed in range(10)}) > 1


def test_nothing_to_mutate():
    space = SearchSpace([Gene("only", (1,), "width")])
    assert mutate(space, (0,), 2.0, np.random.default_rng(0)) == (0,)


def test_difference(toy_space):
    assert difference(toy_space, toy_space.largest, toy_space.largest) == ()
    other = toy_space.encode(toy_space.decode(toy_space.largest) | {"a.width": 1, "fmt": "Q4_0"})
    assert difference(toy_space, toy_space.largest, other) == ("fmt", "a.width")
