"""Strategies that a joint search is compared with: what they may change, in which order, and how they go on."""

from functools import partial

import numpy as np
import pytest

from search.candidate import Candidate, Lineage, Proposal
from search.evolution import pareto_front
from search.strategies import shipped
from supernet.errors import UserError
from supernet.genes import Gene, SearchSpace
from supernet.randomness import generator

OBJECTIVES = ("loss", "size_mb")
BITS = {"Q2_K": 2.625, "Q4_0": 4.5, "Q8_0": 8.5, "F16": 16.0}
HARM = {"Q2_K": 0.5, "Q4_0": 0.1, "Q8_0": 0.01, "F16": 0.0}
LAYERS = 5
SPACE = SearchSpace(
    [
        gene
        for i in range(LAYERS)
        for gene in (
            Gene(f"layers.{i}.active", (0, 1), "switch"),
            Gene(f"layers.{i}.width", (1, 2, 3, 4), "width", f"layers.{i}.active"),
            Gene(f"layers.{i}.fmt", tuple(BITS), "format", f"layers.{i}.active"),
        )
    ]
)
WORTH = np.random.default_rng(0).gamma(0.6, size=LAYERS)
DELICATE = np.random.default_rng(1).gamma(0.6, size=LAYERS)
SMALL = {"population": 12, "pool": 60, "rounds": 2, "fitted": 40}
STRATEGIES = {
    "uniform": shipped("uniform"),
    "sensitivity": shipped("sensitivity"),
    "structure": partial(shipped("structure"), **SMALL),
    "formats": partial(shipped("formats"), **SMALL),
    "sequential": partial(shipped("sequential"), structures=3, **SMALL),
}
SOLUTIONS = [SPACE.canonical([1, 3, k] * (LAYERS - k) + [1, 3, 2] * k) for k in (0, 1)]
FIRST = [
    Proposal(SPACE.largest, Lineage(0, "largest F16")),
    Proposal(SPACE.with_format(SPACE.largest, "Q4_0"), Lineage(0, "uniform Q4_0")),
    Proposal(SPACE.smallest, Lineage(0, "smallest")),
    *(Proposal(genome, Lineage(0, f"sensitivity LP {k} MB")) for k, genome in enumerate(SOLUTIONS)),
]
every_strategy = pytest.mark.parametrize("name", STRATEGIES)
searches = pytest.mark.parametrize("name", ["structure", "formats", "sequential"])


def scores(genome):
    """Layers differ in what their width is worth and in how much rounding harms them."""
    at = SPACE.decode(genome)
    loss, size = float(WORTH.sum()), 0.1
    for i in range(LAYERS):
        if at[f"layers.{i}.active"]:
            width, name = at[f"layers.{i}.width"], at[f"layers.{i}.fmt"]
            loss -= WORTH[i] * width / 4 * (1 - DELICATE[i] * HARM[name])
            size += width * BITS[name] / 64
    return {"loss": float(loss), "size_mb": float(size)}


def evaluate(number, proposal, budget):
    result = scores(proposal.genome)
    violation = 0.0 if budget is None else max(0.0, result["size_mb"] / budget - 1)
    return Candidate(number, proposal.genome, result, violation, proposal.lineage)


def play(name, seed=0, n=60, batch=8, journal=(), first=FIRST, budget=None, evaluations=None, **settings):
    """Return the candidates of a search that found `journal` on disk, and the strategy."""
    strategy = STRATEGIES[name](
        SPACE,
        OBJECTIVES,
        first,
        seed,
        lambda genome: budget is None or scores(genome)["size_mb"] <= budget,
        lambda genome: {"size_mb": scores(genome)["size_mb"]},
        evaluations=evaluations or n,
        **settings,
    )
    told, done = list(journal), 0
    while done < n:
        proposals = strategy.ask(min(batch, n - done), generator(seed, "ask", strategy.generation))
        if not proposals:
            break
        assert [c.genome for c in told[done : done + len(proposals)]] == [p.genome for p in proposals][
            : len(told) - done
        ]
        told += [evaluate(i, proposals[i - done], budget) for i in range(len(told), done + len(proposals))]
        strategy.tell(told[done : done + len(proposals)])
        done += len(proposals)
    return told, strategy


def structures(candidates):
    return [[index for index, gene in zip(c.genome, SPACE, strict=True) if gene.kind != "format"] for c in candidates]


def formats(candidate):
    return {v for name, v in SPACE.decode(candidate.genome).items() if name.endswith("fmt")} - {"Q2_K"}


@every_strategy
@pytest.mark.parametrize("budget", [None, 1.2])
def test_a_killed_search_goes_on_as_if_nothing_had_happened(name, budget):
    whole, _ = play(name, budget=budget)
    assert len({c.genome for c in whole}) == len(whole)
    assert all(SPACE.check(c.genome) == c.genome for c in whole)
    for kept in (8, 31, 47):
        assert play(name, budget=budget, journal=whole[:kept])[0] == whole


@searches
def test_lineage_tells_what_changed(name):
    candidates, _ = play(name)
    bred = [c for c in candidates if c.lineage.parents]
    assert len(bred) > 20
    for c in bred:
        parent = candidates[c.lineage.parents[0]]
        pairs = zip(SPACE, parent.genome, c.genome, strict=True)
        assert set(c.lineage.changed) == {gene.name for gene, a, b in pairs if a != b}


def test_uniform_asks_for_the_formats_and_ends():
    candidates, _ = play("uniform", first=())
    assert [c.lineage.operator for c in candidates] == ["largest F16", "uniform Q8_0", "uniform Q4_0", "uniform Q2_K"]
    assert [c.genome for c in candidates] == [SPACE.with_format(SPACE.largest, name) for name in list(BITS)[::-1]]


def test_sensitivity_asks_for_the_solutions_in_formats_alone():
    candidates, _ = play("sensitivity")
    assert [c.genome for c in candidates] == SOLUTIONS
    with pytest.raises(UserError, match="found no net within the budget"):
        play("sensitivity", first=FIRST[:3])


def test_only_what_may_vary_varies():
    candidates, _ = play("structure")
    assert len(set(map(tuple, structures(candidates)))) == len(candidates) == 60
    assert all(formats(c) <= {"F16"} for c in candidates)
    candidates, _ = play("formats")
    assert all(structure == [1, 3] * LAYERS for structure in structures(candidates))
    operators = {c.lineage.operator for c in candidates}
    assert "largest F16" in operators and "smallest" not in operators


def test_what_was_held_is_within_the_budget_again():
    proposals, _ = play("structure", n=3, budget=2.0)
    assert proposals[0].lineage.operator == "largest F16"  # as it was: a baseline may miss the budget
    assert all(c.feasible for c in proposals[1:])
    assert all(c.lineage.operator.endswith(" + hold") or c.lineage.operator == "random" for c in proposals[1:])


@pytest.mark.parametrize("budget", [None, 0.8])
def test_sequential_keeps_the_structures_of_its_first_half(budget):
    candidates, strategy = play("sequential", n=80, budget=budget)
    first, second = candidates[:40], candidates[40:]
    assert all(formats(c) <= {"F16"} for c in first)
    assert any(len(formats(c)) > 1 for c in second)
    kept = {tuple(s) for s in structures(second)}
    assert kept <= {tuple(s) for s in structures(first)} and len(kept) <= 3
    if budget is None:  # of the front
        front = pareto_front([strategy._as_structure(c) for c in first], OBJECTIVES)
        assert kept <= {tuple(s) for s in structures(front)}
    else:  # structures that fit in the reference format, though they do not as they were scored
        assert all(scores(SPACE.with_format(c.genome, "Q4_0"))["size_mb"] <= budget for c in first[1:])
        assert not all(c.feasible for c in first[1:]) and all(c.feasible for c in second)


def test_sequential_goes_on_with_formats_where_structures_run_out():
    settings = {"vary": ["switch", "format"], "evaluations": 400}  # 32 structures
    candidates, _ = play("sequential", n=60, **settings)
    n_first = next(i for i, c in enumerate(candidates) if formats(c) - {"F16"})
    assert n_first <= 32
    for kept in (n_first - 1, n_first, n_first + 3, 60):
        assert play("sequential", n=60, journal=candidates[:kept], **settings)[0] == candidates


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 1.0}, r"evolution\.share must be between 0 and 1"),
        ({"structures": 0}, r"evolution\.structures must be 1 or more"),
        ({"reference": "Q9"}, r"evolution\.reference=Q9: .*Q2_K, Q4_0, Q8_0, F16"),
        ({"vary": ["format"]}, r"evolution\.vary=\['format'\]: sequential needs"),
        ({"vary": ["width"]}, r"evolution\.vary=\['width'\]: sequential needs"),
        ({"evaluations": None}, "how many evaluations"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        shipped("sequential")(SPACE, OBJECTIVES, **{"evaluations": 10, **settings})
