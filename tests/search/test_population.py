import pytest

from search.population import first_population
from supernet.errors import UserError
from supernet.gates import Gates
from supernet.run import gates_json
from supernet.training import rounded_probabilities


def everything(genome):
    return True


@pytest.fixture
def gates(toy_space):
    """Return the content of gates.json for two budgets."""
    gates = Gates(toy_space, 2, 1.0)
    history = [{"step": 3, "probabilities": rounded_probabilities(gates)}]
    return gates_json(gates, [1.0, 2.5], history)


def populate(space, gates, fits=everything, size=100, seed=0, gate_samples=3, random=5):
    return first_population(space, gates, fits, size, seed, gate_samples, random)


def test_order_and_sources(toy_space, gates):
    operators = [p.lineage.operator for p in populate(toy_space, gates)]
    assert operators[:3] == ["largest F16", "uniform Q4_0", "smallest"]
    sources = {
        "largest F16", "uniform Q4_0", "smallest", "random",
        "gates mode 1 MB", "gates sample 1 MB", "gates mode 2.5 MB", "gates sample 2.5 MB",
    }  # fmt: skip
    assert set(operators) <= sources
    assert {"gates sample 1 MB", "gates sample 2.5 MB", "random"} <= set(operators)
    assert all(p.lineage.generation == 0 for p in populate(toy_space, gates))


def test_no_genome_twice_and_no_more_than_asked_for(toy_space, gates):
    proposals = populate(toy_space, gates, gate_samples=40, random=40)
    genomes = [p.genome for p in proposals]
    assert len(set(genomes)) == len(genomes)
    assert all(toy_space.check(genome) == genome for genome in genomes)
    assert populate(toy_space, gates, size=4, gate_samples=40, random=40) == proposals[:4]


def test_all_but_the_baselines_fit(toy_space, gates):
    proposals = populate(toy_space, gates, lambda genome: sum(genome) <= 6, random=20)
    assert sum(proposals[0].genome) > 6
    assert all(sum(p.genome) <= 6 for p in proposals if p.lineage.operator.startswith(("gates", "random")))


def test_it_is_a_function_of_the_seed(toy_space, gates):
    assert populate(toy_space, gates) == populate(toy_space, gates)
    assert populate(toy_space, gates) != populate(toy_space, gates, seed=1)


def test_without_gates(toy_space):
    proposals = populate(toy_space, gates_json(None, [], []))
    assert len(proposals) == 8
    assert {p.lineage.operator for p in proposals[3:]} == {"random"}


def test_gates_of_another_space_are_refused(toy_space, gates):
    gates["modes"][0] = [0, 0]
    with pytest.raises(UserError, match="not a genome"):
        populate(toy_space, gates)


def test_solutions_of_the_sensitivities_follow_the_baselines(toy_space, gates):
    asked = []

    def solutions(n):
        asked.append(n)
        return [("sensitivity LP 1 MB", toy_space.cheapest), ("sensitivity LP 2 MB", toy_space.smallest)]

    proposals = first_population(toy_space, gates, everything, 100, 0, 3, 5, sensitivity=2, solutions=solutions)
    assert [p.lineage.operator for p in proposals[:4]][2:] == ["smallest", "sensitivity LP 1 MB"]  # no net twice
    assert asked == [2]
    without = first_population(toy_space, gates, everything, 100, 0, 3, 5, sensitivity=0, solutions=solutions)
    assert without == populate(toy_space, gates) and asked == [2]
