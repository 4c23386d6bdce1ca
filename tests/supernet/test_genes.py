import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supernet.errors import UserError
from supernet.genes import Gene, SearchSpace

SEEDS = st.integers(0, 2**32)


@st.composite
def spaces(draw):
    """Spaces of a few groups: a switch or none, and genes that need it or stand alone."""
    genes = []
    for k in range(draw(st.integers(1, 4))):
        switch = draw(st.sampled_from([None, (0, 1), (1,)]))
        if switch is not None:
            genes.append(Gene(f"{k}.active", switch, "switch"))
        needs = f"{k}.active" if switch else None
        for i in range(draw(st.integers(1, 3))):
            values = range(1, 1 + draw(st.integers(1, 4)))
            if draw(st.booleans()):
                genes.append(Gene(f"{k}.w{i}", tuple(values), "width", needs))
            else:
                genes.append(Gene(f"{k}.f{i}", tuple(f"F{v}" for v in values), "format", needs))
    return SearchSpace(genes)


@given(spaces(), SEEDS)
def test_draws_are_canonical_members(space, seed):
    rng = np.random.default_rng(seed)
    for genome in (space.sample(rng), space.sample_spread(rng)):
        assert space.check(genome) == genome == space.canonical(genome)
        assert all(type(index) is int for index in genome)  # NumPy's would not go into JSON


@given(spaces())
def test_ends_are_canonical_members(space):
    for genome in (space.largest, space.smallest, space.cheapest):
        assert space.check(genome) == genome
    assert all(c <= s <= x for c, s, x in zip(space.cheapest, space.smallest, space.largest, strict=True))
    architecture = space.decode(space.smallest)
    assert all(architecture[gene.name] == 1 for gene in space if gene.kind == "switch")


@given(spaces(), SEEDS)
def test_encode_inverts_decode(space, seed):
    genome = space.sample(np.random.default_rng(seed))
    assert space.encode(space.decode(genome)) == genome


@given(spaces())
def test_json_round_trip(space):
    assert SearchSpace.from_json(json.loads(json.dumps(space.to_json()))).genes == space.genes


@given(spaces(), SEEDS)
def test_equal_subnets_have_equal_genomes(space, seed):
    rng = np.random.default_rng(seed)
    indices = [int(rng.integers(len(gene.choices))) for gene in space]
    genome = space.canonical(indices)
    off = {gene.name for gene, i in zip(space, indices, strict=True) if gene.choices[i] == 0}
    for gene, before, after in zip(space, indices, genome, strict=True):
        assert after == (0 if gene.needs in off else before)
    assert space.canonical(genome) == genome


def test_draws_repeat_with_the_seed_and_reach_everything(toy_space):
    def drawn(method):
        rng = np.random.default_rng(5)
        return [method(rng) for _ in range(400)]

    for method in (toy_space.sample, toy_space.sample_spread):
        genomes = drawn(method)
        assert genomes == drawn(method)
        for i, gene in enumerate(toy_space):
            assert {genome[i] for genome in genomes} == set(range(len(gene.choices)))


def test_spread_draws_reach_extremes_that_independent_ones_miss():
    space = SearchSpace([Gene(f"f{i}", ("Q4_0", "Q5_0", "Q8_0", "F16"), "format") for i in range(40)])
    rng = np.random.default_rng(0)
    independent = [np.mean(space.sample(rng)) for _ in range(300)]
    spread = [np.mean(space.sample_spread(rng)) for _ in range(300)]
    assert min(spread) < min(independent) and max(spread) > max(independent)
    assert np.std(spread) > 2 * np.std(independent)


def test_uniform_formats(toy_space):
    assert toy_space.uniform_formats == ("Q4_0", "F16")
    genome = toy_space.with_format(toy_space.largest, "Q4_0")
    assert {toy_space.decode(genome)[name] for name in ("fmt", "a.fmt")} == {"Q4_0"}
    with pytest.raises(UserError, match=r"a\.fmt has no choice 'Q8_0'"):
        toy_space.with_format(toy_space.largest, "Q8_0")


def test_full_precision_replaces_formats_only(toy_space):
    full, plain = toy_space.full_precision(toy_space.smallest), toy_space.decode(toy_space.smallest)
    assert {name for name in full if full[name] != plain[name]} == {"fmt", "a.fmt"}
    assert full["fmt"] == full["a.fmt"] == "F32"


def test_n_genomes(toy_space):
    assert toy_space.n_genomes == 3 * 3 * 2 * 4 * 2 * 2 * 2 * 2


@pytest.mark.parametrize(
    "genome",
    [(), (0,) * 9, (0,) * 11, (3, *[0] * 9), (-1, *[0] * 9), (0.0, *[0] * 9), ("0", *[0] * 9), (0,) * 4 + (1,) * 6],
)  # fmt: skip
def test_what_is_no_genome_is_refused(toy_space, genome):
    with pytest.raises(UserError, match="not a genome"):
        toy_space.check(genome)


def test_architectures_are_checked(toy_space):
    architecture = toy_space.decode(toy_space.largest)
    with pytest.raises(UserError, match="d has no choice 9"):
        toy_space.encode({**architecture, "d": 9})
    with pytest.raises(UserError, match="extra"):
        toy_space.encode({**architecture, "extra": 1})
    with pytest.raises(UserError, match="fmt"):
        toy_space.encode({k: v for k, v in architecture.items() if k != "fmt"})


@pytest.mark.parametrize("choices", [(), (1, 1)])
def test_a_gene_needs_different_choices(choices):
    with pytest.raises(UserError, match="gene w needs"):
        Gene("w", choices, "width")


@pytest.mark.parametrize(
    "genes", [None, [3], [{"name": "w"}], [{"name": "w", "choices": [1], "kind": "width", "needs": "gone"}]]
)
def test_damaged_json_is_refused(genes):
    with pytest.raises(UserError, match="search space is damaged"):
        SearchSpace.from_json(genes)


def test_baselines(toy_space):
    named = dict(toy_space.baselines())
    assert list(named) == ["largest F16", "uniform Q4_0", "smallest"]
    assert named["largest F16"] == toy_space.largest
    assert named["uniform Q4_0"] == toy_space.with_format(toy_space.largest, "Q4_0")
    assert named["smallest"] == toy_space.smallest


def test_the_largest_is_a_baseline_where_no_uniform_format_reaches_it():
    space = SearchSpace([Gene("a", ("Q4_0", "Q8_0"), "format"), Gene("b", ("Q4_0", "F16"), "format")])
    assert [name for name, _ in space.baselines()] == ["largest", "uniform Q4_0", "smallest"]


def test_layers_are_found_by_the_number_in_their_names():
    space = SearchSpace(
        [Gene("d", (1, 2), "width")]
        + [Gene(f"layers.{i}.a.w", (1, 2), "width") for i in range(2)]
        + [Gene(f"layers.{i}.b.w", (1, 2 + i), "width") for i in range(2)]
        + [Gene(f"{i}.w", (1, 2), "width") for i in range(10, 13)]
        + [Gene("experts.0.layers.1.w", (1, 2), "width"), Gene("v2.w", (1,), "width")]
    )
    assert space.layers == ((1, 3), (2, 4), (5,), (6,), (7,))
    assert space.alike == (((5,), (6,), (7,)),)  # layers.0 and layers.1 differ in the choices of b


def test_no_layers(toy_space):
    assert toy_space.layers == toy_space.alike == ()


@given(spaces(), SEEDS)
def test_active_genes_are_those_that_have_an_effect(space, seed):
    genome = space.sample(np.random.default_rng(seed))
    active = space.active(genome)
    for i, gene in enumerate(space):
        off = gene.needs is not None and space.decode(genome)[gene.needs] == 0
        assert (i in active) != off
