import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from search.operators import (
    ONE_PARENT,
    copy_layer,
    cross,
    cross_layers,
    difference,
    mutate,
    shrink,
    swap_layers,
    switch_levels,
    vary,
)
from supernet.genes import Gene, SearchSpace

SEEDS = st.integers(0, 2**32)
LAYERS = SearchSpace(
    [Gene("d", (8, 16), "width"), Gene("fmt", ("Q4_0", "F16"), "format")]
    + [
        gene
        for i in range(4)
        for gene in (
            Gene(f"layers.{i}.mlp.active", (0, 1), "switch"),
            Gene(f"layers.{i}.mlp.width", (1, 2, 3), "width", f"layers.{i}.mlp.active"),
            Gene(f"layers.{i}.fmt", ("Q4_0", "Q8_0", "F16"), "format"),
        )
    ]
    + [Gene("layers.4.other", (1, 2), "width")]
)


def everything(genome):
    return True


def of_layer(genome, i):
    return tuple(genome[2 + 3 * i : 5 + 3 * i])


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


@given(seed=SEEDS)
def test_one_layer_becomes_a_copy_of_another(seed):
    parent, _, rng = drawn(LAYERS, seed)
    child = copy_layer(LAYERS, parent, everything, rng)
    assert LAYERS.check(child) == child
    before, after = ([of_layer(g, i) for i in range(4)] for g in (parent, child))
    changed = [i for i in range(4) if before[i] != after[i]]
    assert len(changed) == (1 if len(set(before)) > 1 else 0)
    assert all(after[i] in before for i in changed)
    assert child[:2] == parent[:2] and child[-1] == parent[-1]


@given(seed=SEEDS)
def test_two_layers_change_places(seed):
    parent, _, rng = drawn(LAYERS, seed)
    child = swap_layers(LAYERS, parent, everything, rng)
    assert LAYERS.check(child) == child
    before, after = ([of_layer(g, i) for i in range(4)] for g in (parent, child))
    changed = [i for i in range(4) if before[i] != after[i]]
    if len(set(before)) > 1:
        one, other = changed
        assert after[one] == before[other] and after[other] == before[one]
    assert sorted(before) == sorted(after)
    assert child[:2] == parent[:2] and child[-1] == parent[-1]


@given(seed=SEEDS)
def test_the_first_layers_stay_the_first_parents(seed):
    first, second, rng = drawn(LAYERS, seed)
    child = cross_layers(LAYERS, first, second, rng)
    assert LAYERS.check(child) == child
    own = [of_layer(child, i) == of_layer(first, i) for i in range(4)]
    others = [of_layer(child, i) == of_layer(second, i) for i in range(4)]
    assert child[:2] == first[:2] and child[-1] == second[-1]
    assert any(all(own[:cut]) and all(others[cut:]) for cut in range(1, 5))


def test_layers_are_copied_swapped_and_cut_everywhere():
    rng = np.random.default_rng(0)
    parent = LAYERS.canonical([1, 1, 1, 0, 0, 1, 1, 1, 1, 2, 2, 0, 0, 1, 0])
    other = LAYERS.canonical([0, 0, 1, 2, 0, 1, 0, 2, 0, 0, 0, 1, 1, 2, 1])
    for operator, n in ((copy_layer, 12), (swap_layers, 6)):
        assert len({operator(LAYERS, parent, everything, rng) for _ in range(500)}) == n
    assert len({cross_layers(LAYERS, parent, other, rng) for _ in range(200)}) == 4


@given(seed=SEEDS, budget=st.integers(3, 20))  # 3: a gene of two choices up, in a layer that is kept
def test_switching_levels_stays_within_the_budget(seed, budget):
    parent, _, rng = drawn(LAYERS, seed)
    child = switch_levels(LAYERS, parent, lambda g: sum(g) <= budget, rng)
    assert LAYERS.check(child) == child
    assert sum(child) <= budget or child == parent == LAYERS.largest
    raised = [i for i, (a, b) in enumerate(zip(parent, child, strict=True)) if b > a]
    assert len(raised) == (0 if parent == LAYERS.largest else 1)
    assert all(child[i] == parent[i] + 1 for i in raised)


def test_switching_levels_without_a_budget_trades_or_adds():
    rng, parent = np.random.default_rng(0), LAYERS.canonical([0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 2, 0, 0])
    children = [switch_levels(LAYERS, parent, everything, rng) for _ in range(300)]
    lowered = [sum(b < a for a, b in zip(parent, child, strict=True)) > 0 for child in children]
    assert 0.35 < np.mean(lowered) < 0.65


@given(seed=SEEDS)
def test_one_parent_operators_do_nothing_where_there_are_no_layers(toy_space, seed):
    parent, other, rng = drawn(toy_space, seed)
    assert copy_layer(toy_space, parent, everything, rng) == parent
    assert swap_layers(toy_space, parent, everything, rng) == parent
    assert cross_layers(toy_space, parent, other, rng) == parent


@given(seed=SEEDS, name=st.sampled_from([*ONE_PARENT, "mutate"]))
def test_a_child_is_named_after_what_made_it(seed, name):
    parent, _, rng = drawn(LAYERS, seed)
    operator, child = vary(LAYERS, parent, {name: 1.0} if name in ONE_PARENT else {}, 1.0, everything, rng)
    assert operator in (name, "mutate") and child != parent


def test_shares_are_kept_and_every_kind_of_gene_mutates():
    rng = np.random.default_rng(0)
    shares = {"copy layer": 0.2, "swap layers": 0.1, "switch levels": 0.3}
    parent = LAYERS.canonical([0, 1, 1, 1, 1, 1, 0, 1, 0, 0, 1, 1, 2, 0, 0])
    made = [vary(LAYERS, parent, shares, 1.0, everything, rng) for _ in range(1000)]
    for name, share in {**shares, "mutate": 0.4}.items():
        assert abs(np.mean([operator == name for operator, _ in made]) - share) < 0.05
    mutants = [difference(LAYERS, parent, child) for operator, child in made if operator == "mutate"]
    kinds = {gene.name: gene.kind for gene in LAYERS}
    assert {kinds[name] for names in mutants for name in names} == {"width", "format", "switch"}


def test_weights_say_how_often_a_choice_is_drawn():
    space = SearchSpace([Gene(f"w{i}", (1, 2, 3), "width") for i in range(4)])
    weights = [[9.0, 1.0, 1.0]] * 2 + [[1.0, 1.0, 9.0]] * 2
    rng, parent = np.random.default_rng(0), (1, 1, 1, 1)
    children = [mutate(space, parent, 1.0, rng, weights=weights) for _ in range(600)]
    lowered = [sum(child[i] == 0 for child in children) for i in range(4)]
    raised = [sum(child[i] == 2 for child in children) for i in range(4)]
    assert min(lowered[:2]) > 4 * max(raised[:2]) and min(raised[2:]) > 4 * max(lowered[2:])
    even = [[1.0] * 3] * 4
    assert all(space.check(mutate(space, parent, 2.0, rng, weights=even)) != parent for _ in range(50))
