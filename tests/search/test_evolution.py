"""Strategies on a synthetic space: what a search relies on, and that they are worth having."""

import re
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from search.candidate import Candidate, Lineage, Proposal
from search.evolution import pareto_front, ranks
from search.strategies import shipped
from search.strategies.aging import Aging
from search.strategies.level_switch import LevelSwitch
from search.strategies.nsga2 import NSGA2
from search.strategies.random import Random
from supernet.errors import UserError
from supernet.genes import Gene, SearchSpace
from supernet.randomness import generator

OBJECTIVES = ("loss", "size_mb")
N_GENES, N_CHOICES = 16, 5
SPACE = SearchSpace(
    [Gene(f"{i}.active", (0, 1), "switch") for i in range(4)]
    + [Gene(f"{i}.w", tuple(range(1, N_CHOICES + 1)), "width", f"{i % 4}.active") for i in range(N_GENES)]
)
WORTH = np.random.default_rng(0).gamma(0.6, size=N_GENES)
COST = np.random.default_rng(1).uniform(0.5, 1.5, size=N_GENES)
STRATEGIES = {
    "random": partial(shipped("random"), population=30),
    "aging": partial(shipped("aging"), population=30),
    "nsga2": partial(shipped("nsga2"), population=30),
    "level_switch": partial(shipped("level_switch"), population=30),
    "surrogate": partial(shipped("surrogate"), population=30, pool=120, rounds=2, fitted=50),
}
BREEDS = {"mutate", "copy layer", "swap layers", "switch levels", "cross + mutate", "cross layers"}
PLAIN = {"population": 30, "crossover": 0.5, "layer_moves": 0.0, "level_switches": 0.0, "mutations": 1.5}
every_strategy = pytest.mark.parametrize("name", STRATEGIES)


def scores(genome):
    """A knapsack: genes differ in worth and in price, so that a good front buys some and leaves others."""
    architecture = SPACE.decode(genome)
    levels = np.array([architecture[f"{i}.w"] * architecture[f"{i % 4}.active"] for i in range(N_GENES)])
    return {"loss": 1 - float(WORTH @ levels) / WORTH.sum() / N_CHOICES, "size_mb": float(COST @ levels) / COST.sum()}


def evaluate(number, proposal, budget=None, stop=False):
    result = scores(proposal.genome)
    if stop and sum(proposal.genome) % 3 == 0:
        size = {"size_mb": result["size_mb"]}
        return Candidate(number, proposal.genome, size, 0.0, proposal.lineage, stopped="hurdle 1")
    violation = 0.0 if budget is None else max(0.0, result["size_mb"] / budget - 1)
    return Candidate(number, proposal.genome, result, violation, proposal.lineage)


def make(name, seed=0, first=(), budget=None, **settings):
    def fits(genome):
        return budget is None or scores(genome)["size_mb"] <= budget

    def known(genome):
        return {"size_mb": scores(genome)["size_mb"]}

    return STRATEGIES[name](SPACE, OBJECTIVES, first, seed, fits, known, **settings)


def play(name, seed=0, n=120, batch=12, journal=(), first=(), budget=None, stop=False, **settings):
    """Return the candidates of a search that found `journal` on disk, and what it asked for."""
    strategy, known, asked = make(name, seed, first, budget, **settings), list(journal), []
    done = 0
    while done < n:
        proposals = strategy.ask(min(batch, n - done), generator(seed, "ask", strategy.generation))
        if not proposals:
            break
        asked += proposals
        new = range(len(known), done + len(proposals))
        known += [evaluate(i, proposals[i - done], budget, stop) for i in new]
        strategy.tell(known[done : done + len(proposals)])
        done += len(proposals)
    return known, asked


def hypervolume(candidates, reference=(1.0, 5.0)):
    volume, height = 0.0, reference[1]
    for c in pareto_front(candidates, OBJECTIVES):
        loss, size = (c.scores[name] for name in OBJECTIVES)
        if loss < reference[0] and size < height:
            volume += (reference[0] - loss) * (height - size)
            height = size
    return volume


@cache
def volumes(name, n):
    return np.array([hypervolume(play(name, seed, n, 20)[0]) for seed in range(4)])


@every_strategy
def test_the_same_seed_gives_the_same_search(name):
    once, again, other = (play(name, seed)[0] for seed in (0, 0, 1))
    assert once == again
    assert [c.genome for c in once] != [c.genome for c in other]


@every_strategy
def test_nothing_is_asked_for_twice_and_all_is_canonical(name):
    candidates, _ = play(name, n=240)
    genomes = [c.genome for c in candidates]
    assert len(set(genomes)) == len(genomes) == 240
    assert all(SPACE.check(genome) == genome for genome in genomes)


@every_strategy
@pytest.mark.parametrize("kept", [0, 1, 12, 30, 59, 120])
def test_a_killed_search_goes_on_as_if_nothing_had_happened(name, kept):
    whole, asked = play(name)
    resumed, asked_again = play(name, journal=whole[:kept])
    assert resumed == whole
    assert asked_again == asked


@every_strategy
def test_the_hypervolume_of_the_front_never_falls(name):
    candidates, _ = play(name)
    seen = [hypervolume(candidates[:n]) for n in range(1, len(candidates) + 1)]
    assert all(b >= a - 1e-12 for a, b in pairwise(seen))
    assert seen[-1] > seen[11]


@every_strategy
def test_what_is_asked_for_fits_the_budget(name):
    candidates, _ = play(name, budget=1.0)
    assert all(c.feasible for c in candidates)
    if name not in ("random", "level_switch"):  # the latter fits its children itself
        assert any("shrink" in c.lineage.operator for c in candidates)


@every_strategy
def test_the_first_population_comes_first_as_it_is(name):
    first = [Proposal(SPACE.largest, Lineage(0, "largest")), Proposal(SPACE.smallest, Lineage(0, "smallest"))]
    candidates, _ = play(name, first=first, budget=1.0)
    assert [c.lineage.operator for c in candidates[:2]] == ["largest", "smallest"]
    assert not candidates[0].feasible  # a baseline may miss the budget


@every_strategy
def test_a_first_population_larger_than_a_batch(name):
    rng = np.random.default_rng(0)
    genomes = list(dict.fromkeys(SPACE.sample(rng) for _ in range(30)))
    first = [Proposal(genome, Lineage(0, "first")) for genome in genomes]
    candidates, _ = play(name, first=first)
    assert [c.genome for c in candidates[: len(genomes)]] == genomes


@every_strategy
def test_a_space_that_runs_out_ends_the_search(name):
    space = SearchSpace([Gene("a", (1, 2, 3), "width"), Gene("b", (1, 2), "width")])
    strategy = STRATEGIES[name](space, OBJECTIVES, [], 0, lambda genome: True)
    told = []
    for generation in range(4):
        proposals = strategy.ask(4, np.random.default_rng(generation))
        batch = [
            Candidate(len(told) + i, p.genome, {"loss": float(i), "size_mb": float(sum(p.genome))}, 0.0, p.lineage)
            for i, p in enumerate(proposals)
        ]
        told += batch
        if batch:
            strategy.tell(batch)
    assert len(told) == len({c.genome for c in told}) == 6


@every_strategy
def test_lineage_tells_where_a_genome_comes_from(name):
    candidates, _ = play(name, seed=3, n=240)
    for c in candidates:
        assert c.lineage.seed == 3 and c.lineage.generation == c.id // 12
        assert all(parent < c.id for parent in c.lineage.parents)
        if c.lineage.parents:
            parent = candidates[c.lineage.parents[0]]
            names = {g.name for g, a, b in zip(SPACE, parent.genome, c.genome, strict=True) if a != b}
            assert set(c.lineage.changed) == names
        else:
            assert c.lineage.changed == () and c.lineage.operator.startswith("random")
    operators = {one for c in candidates for one in c.lineage.operator.split(", ")}
    crossing = {"cross + mutate", "cross layers"}
    wanted = {
        "random": {"random"},
        "aging": {"random"} | BREEDS - crossing,
        "nsga2": {"random"} | BREEDS,
        "level_switch": {"random", "switch levels"},
        "surrogate": {"random"} | BREEDS,
    }
    assert operators == wanted[name]


@every_strategy
def test_ancestry_leads_back_to_what_has_no_parents(name):
    candidates, _ = play(name, seed=1)
    for c in candidates:
        while c.lineage.parents:
            assert set(c.lineage.changed) <= set(SPACE.position)
            c = candidates[c.lineage.parents[0]]
        assert c.lineage.operator.startswith("random")


@pytest.mark.parametrize(("name", "n"), [("nsga2", 500), ("aging", 500), ("level_switch", 500), ("surrogate", 160)])
def test_strategies_beat_random_draws(name, n):
    assert volumes(name, n).mean() > volumes("random", 500).mean()
    assert (volumes(name, n) > volumes("random", 500)).sum() >= 3


@every_strategy
def test_who_was_stopped_is_not_asked_for_again_and_no_parent(name):
    whole, asked = play(name, stop=True)
    stopped = {c.id for c in whole if c.stopped}
    assert len(stopped) > 10
    assert len({c.genome for c in whole}) == len(whole)
    assert not stopped & {parent for c in whole for parent in c.lineage.parents}
    assert play(name, journal=whole[:50], stop=True) == (whole, asked)
    strategy = make(name)
    strategy.tell([replace(c, stopped="failed: no memory", scores={}) for c in whole[:12]])
    assert strategy.parents == [] and strategy.seen == {c.genome for c in whole[:12]}
    assert {p.lineage.operator for p in strategy.ask(5, generator(0, "ask", 1))} == {"random"}


@every_strategy
def test_with_a_fitness_the_weighted_sum_decides(name):
    fitness = {"loss": 1.0, "size_mb": 0.1, "decode_ms": None}

    def value(c):
        return c.scores["loss"] + 0.1 * c.scores["size_mb"]

    candidates, asked = play(name, n=240, fitness=fitness)
    assert play(name, n=240, journal=candidates[:100], fitness=fitness) == (candidates, asked)
    if name != "random":
        draws, _ = play("random", n=240)
        assert np.mean([value(c) for c in candidates[-60:]]) < np.quantile([value(c) for c in draws], 0.25)


def test_the_best_by_fitness_become_parents():
    told = [candidate(0, 1.0, 9.0), candidate(1, 5.0, 1.0), candidate(2, 3.0, 3.0), candidate(3, 0.0, 0.0, 0.5)]
    for weights, wanted in (({"loss": 1.0}, [0, 2]), ({"size_mb": 1}, [1, 2]), ({"loss": 1, "size_mb": 2.0}, [1, 2])):
        strategy = STRATEGIES["nsga2"](SPACE, OBJECTIVES, population=2, fitness=weights)
        strategy.tell(told)
        assert [c.id for c in strategy.parents] == wanted


def test_a_weight_counts_the_mean_over_targets():
    strategy = make("nsga2", fitness={"decode_ms": 2.0, "loss": 1.0})
    scores = {"loss": 1.0, "decode_ms@phone": 3.0, "decode_ms@pi": 5.0}
    strategy.floors = {"decode_ms@phone": 4.0}  # whoever weighs a score wants all of it
    assert strategy.value(scores) == 9.0


def test_a_weight_on_no_score_is_refused():
    strategy = make("aging", fitness={"decode_ms": 1.0})
    with pytest.raises(UserError, match=r"evolution\.fitness\.decode_ms: no such score; candidates have loss, size_mb"):
        strategy.tell([candidate(0, 1.0, 1.0)])
        strategy.ask(1, np.random.default_rng(0))
    with pytest.raises(UserError, match=r"evolution\.fitness\.loss must be a number, got 'much'"):
        make("aging", fitness={"loss": "much"})


def test_level_switch_keeps_the_best_alone_where_something_holds_the_others():
    told = [candidate(0, 1.0, 9.0), candidate(1, 5.0, 1.0), candidate(2, 3.0, 3.0), candidate(3, 4.0, 4.0)]
    for settings, wanted in (
        ({}, [0, 2, 1]),  # nothing: the front
        ({"fitness": {"size_mb": 1.0}}, [1]),
        ({"fits": lambda genome: sum(genome) < 9}, [0]),  # a budget: the first objective
    ):
        strategy = LevelSwitch(SPACE, OBJECTIVES, population=10, switches=1.0, **settings)
        strategy.tell(told)
        assert [c.id for c in strategy.parents] == wanted
    strategy.tell([candidate(4, 9.0, 9.0, 0.1)])
    assert [c.id for c in strategy.parents] == [0]


def test_a_budget_below_everything_still_leads_towards_it():
    """Unknown beforehand, so that nothing is shrunk: the violation has to fall by selection."""
    strategy = STRATEGIES["nsga2"](SPACE, OBJECTIVES)
    means, number = [], 0
    for generation in range(10):
        proposals = strategy.ask(20, generator(0, "ask", generation))
        batch = [evaluate(number + i, p, budget=0.05) for i, p in enumerate(proposals)]
        number += len(batch)
        strategy.tell(batch)
        means.append(np.mean([c.violation for c in strategy.parents]))
    assert means[-1] < 0.5 * means[0]


def candidate(number, loss, size, violation=0.0):
    return Candidate(number, (number,), {"loss": loss, "size_mb": size}, violation, Lineage(0, "test"))


def test_feasible_comes_first():
    bad_but_feasible = candidate(0, 9.0, 9.0)
    good_but_not = candidate(1, 1.0, 1.0, 0.5)
    less_wrong = candidate(2, 5.0, 5.0, 0.1)
    order = ranks([bad_but_feasible, good_but_not, less_wrong], OBJECTIVES, {})
    assert order[0] < order[2] < order[1]
    assert pareto_front([bad_but_feasible, good_but_not, less_wrong], OBJECTIVES) == [bad_but_feasible]
    strategy = NSGA2(SPACE, OBJECTIVES, **PLAIN | {"population": 2})
    strategy.tell([good_but_not, less_wrong, bad_but_feasible])
    assert strategy.parents == [less_wrong, bad_but_feasible]


def test_ends_of_the_front_are_the_least_crowded():
    front = [candidate(i, float(i), 4.0 - i) for i in range(5)] + [candidate(5, 5.0, 5.0)]
    order = ranks(front, OBJECTIVES, {})
    assert [rank for _, rank, _ in order] == [0, 0, 0, 0, 0, 1]
    assert order[0][2] == order[4][2] == -float("inf") < order[2][2]


def test_aging_lets_the_oldest_die():
    strategy = Aging(SPACE, OBJECTIVES, tournament=2, **PLAIN | {"population": 3})
    strategy.tell([candidate(0, 0.0, 0.0), candidate(1, 1.0, 1.0)])
    strategy.tell([candidate(2, 9.0, 9.0), candidate(3, 9.0, 9.0)])
    assert [c.id for c in strategy.parents] == [1, 2, 3]


def dominates(a, b):
    pairs = [(a.scores[name], b.scores[name]) for name in OBJECTIVES]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


@pytest.mark.parametrize("seed", range(10))
def test_the_front_is_what_brute_force_finds(seed):
    rng = np.random.default_rng(seed)
    # Few levels, so that there are ties and equals.
    candidates = [
        candidate(i, float(rng.integers(8)), float(rng.integers(8)), float(rng.random() < 0.3)) for i in range(40)
    ]
    feasible = [c for c in candidates if c.feasible]
    wanted = {c.id for c in feasible if not any(dominates(other, c) for other in feasible)}
    front = pareto_front(candidates, OBJECTIVES)
    assert {c.id for c in front} == wanted and len(front) == len(wanted)
    losses = [c.scores["loss"] for c in front]
    assert losses == sorted(losses)


def test_fronts_of_few():
    assert pareto_front([], OBJECTIVES) == []
    assert pareto_front([candidate(0, 1.0, 1.0, 0.1)], OBJECTIVES) == []
    assert [c.id for c in pareto_front([candidate(0, 1.0, 1.0)], OBJECTIVES)] == [0]
    assert [c.id for c in pareto_front([candidate(0, 2.0, 1.0), candidate(1, 1.0, 9.0)], ["loss"])] == [1]


def test_a_population_of_one_is_refused():
    with pytest.raises(UserError, match=r"evolution\.population must be 2 or more, got 1"):
        Random(SPACE, OBJECTIVES, population=1)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("nsga2", {"crossover": 1.5}, r"evolution\.crossover must be from 0 to 1, got 1\.5"),
        ("nsga2", {"layer_moves": 0.6, "level_switches": 0.6}, r"layer_moves \+ level_switches must be from 0 to 1"),
        ("surrogate", {"pool": 0}, r"evolution\.pool must be 1 or more, got 0"),
        ("surrogate", {"fitted": 1}, r"evolution\.fitted must be 2 or more, got 1"),
        ("surrogate", {"random": -0.1}, r"evolution\.random must be from 0 to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, settings, message):
    with pytest.raises(UserError, match=message):
        make(name, **settings)


def test_a_strategy_that_is_not_shipped_is_refused():
    with pytest.raises(
        UserError, match="evolution=annealing: no such strategy; there are aging, formats, level_switch"
    ):
        shipped("annealing")


def test_the_feasible_are_ranked_among_themselves():
    better_but_not, feasible, worse = candidate(0, 0.0, 0.0, 0.1), candidate(1, 1.0, 1.0), candidate(2, 2.0, 2.0)
    order = ranks([better_but_not, feasible, worse], OBJECTIVES, {})
    assert [rank for _, rank, _ in order] == [0, 0, 1]


def test_below_a_floor_less_is_no_better():
    front = [Candidate(i, (i,), {"loss": 2.0 - i, "size_mb": float(i)}, 0.0, Lineage(0, "test")) for i in range(3)]
    assert [rank for _, rank, _ in ranks(front, ("loss", "size_mb"), {})] == [0, 0, 0]
    assert [rank for _, rank, _ in ranks(front, ("loss", "size_mb"), {"size_mb": 1.0})] == [1, 0, 0]


def test_the_example_of_the_documentation_runs(capsys):
    page = Path(__file__).parents[2] / "docs" / "search.md"
    example = re.search(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)[1]
    assert len(example.splitlines()) < 30
    found = {}
    exec(compile(example, str(page), "exec"), found)
    assert len(found["journal"]) == len({c.genome for c in found["journal"]}) == 200
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 10 and all("error" in line for line in lines)


def test_a_strategy_as_in_the_documentation():
    """The one that docs/adding.md adds."""
    page = Path(__file__).parents[2] / "docs" / "adding.md"
    code = re.search(r"```python\n(# search/strategies/climbing\.py.*?)```", page.read_text(encoding="utf-8"), re.S)[1]
    found = {}
    exec(compile(code, str(page), "exec"), found)
    climbing = found["HillClimbing"](SPACE, ["loss"], population=2, mutations=2.0)
    for generation in range(20):
        proposals = climbing.ask(10, generator(0, "ask", generation))
        climbing.tell([evaluate(10 * generation + i, p) for i, p in enumerate(proposals)])
        assert len(climbing.parents) == 1
    assert climbing.parents[0].scores["loss"] < 0.1
