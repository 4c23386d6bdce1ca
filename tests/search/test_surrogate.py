"""What the surrogate-assisted search predicts with."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.candidate import Candidate, Lineage
from search.strategies import shipped
from search.strategies.forecast import Forecast
from search.strategies.prediction import Embedding, Model, Warp
from supernet.genes import Gene, SearchSpace

SPACE = SearchSpace([Gene(f"w{i}", (1, 2, 3, 4), "width") for i in range(10)])
EFFECTS = np.random.default_rng(0).gamma(0.7, size=10)
SMALL = partial(shipped("surrogate"), population=10, pool=60, rounds=2, fitted=60)


def loss(genome):
    return 2.0 - float(EFFECTS @ np.array(genome)) / EFFECTS.sum() / 3 + 0.2 * (genome[0] == 0) * (genome[1] == 3)


def genomes(n, seed=0):
    rng = np.random.default_rng(seed)
    return list(dict.fromkeys(SPACE.sample(rng) for _ in range(n)))


def told(n=60, scores=lambda g: {"loss": loss(g), "size": float(sum(g))}, violation=lambda g: 0.0):
    return [Candidate(i, g, scores(g), violation(g), Lineage(0, "random")) for i, g in enumerate(genomes(n))]


@given(scores=st.lists(st.floats(-100, 1e6), min_size=1, max_size=30))
def test_warping_keeps_order_and_is_undone(scores):
    scores = np.array(scores)
    warp = Warp(scores)
    warped = warp(scores)
    assert np.isfinite(warped).all()
    assert (np.diff(warped[np.argsort(scores)]) >= 0).all()
    assert np.allclose(warp.inverse(warped), scores, rtol=1e-6, atol=1e-6 * (np.abs(scores).max() or 1))


def test_an_outlier_does_not_set_the_scale():
    scores = np.append(np.linspace(2, 3, 50), 1e4)
    warped = Warp(scores)(scores)
    assert np.ptp(warped[:50]) > 0.5


def test_the_model_predicts_and_knows_how_well():
    embedding, train, test = Embedding(SPACE), genomes(150), genomes(100, seed=1)
    targets = np.array([loss(g) for g in train])
    mean, scale = targets.mean(), targets.std()
    model = Model(embedding, embedding(train), (targets - mean) / scale)
    wanted = (np.array([loss(g) for g in test]) - mean) / scale
    error = model.mean(embedding(test)) - wanted
    assert 1 - error.var() / wanted.var() > 0.9
    draws = model.draw(embedding(test), 400, np.random.default_rng(0))
    assert draws.shape == (400, len(test))
    assert np.abs(draws.mean(0) - model.mean(embedding(test))).max() < 0.2
    spread = draws.std(0)
    assert np.mean(np.abs(error) < 2 * spread) > 0.5
    assert model.draw(embedding(train), 50, np.random.default_rng(0)).std(0).mean() < 0.5 * spread.mean()


def test_the_gene_that_matters_weighs_most():
    embedding, train = Embedding(SPACE), genomes(80)
    share = embedding.importance(embedding(train), np.array([float(g[4] > 1) for g in train]) - 0.5)
    assert share.argmax() == 4 and share.sum() == pytest.approx(1)


def test_what_is_known_is_not_predicted():
    asked = []

    def known(genome):
        asked.append(genome)
        return {"size": 100.0 + sum(genome)}

    strategy = SMALL(SPACE, ["loss", "size"], known=known)
    candidates = told(scores=lambda g: {"loss": loss(g), "size": 100.0 + sum(g)})
    strategy.tell(candidates)
    forecast = Forecast(strategy, candidates, candidates)
    assert set(forecast.models) == {"loss"}
    new = strategy.ask(5, np.random.default_rng(0))
    for c, p in zip(forecast.candidates(new), new, strict=True):
        assert c.scores["size"] == 100.0 + sum(p.genome)
        assert c.scores["loss"] == pytest.approx(loss(p.genome), abs=0.3)
    points, _ = forecast.draw([p.genome for p in new], 8, np.random.default_rng(0))
    assert np.ptp(points[..., 1], axis=0).max() == 0 < np.ptp(points[..., 0], axis=0).min()


@pytest.mark.parametrize("n", [1, 2, 3, 60])
@pytest.mark.parametrize(
    "scores",
    [
        lambda g: {"loss": 1.0, "size": 2.0},
        lambda g: {"loss": loss(g), "size": 2.0},
        lambda g: {"loss": 1e9 * (sum(g) > 14), "size": -float(sum(g))},
    ],
)
def test_constant_extreme_and_few_scores(n, scores):
    strategy = SMALL(SPACE, ["loss", "size"])
    strategy.tell(told(n, scores))
    proposals = strategy.ask(7, np.random.default_rng(0))
    assert len({p.genome for p in proposals} - strategy.seen) == 7
    assert [p.genome for p in strategy.ask(7, np.random.default_rng(0))] == [p.genome for p in proposals]


@pytest.mark.parametrize("names", [["loss"], ["loss", "size", "other"]])
def test_any_number_of_objectives(names):
    candidates = told(scores=lambda g: {"loss": loss(g), "size": float(sum(g)), "other": float(g[0] * g[1])})
    strategy = SMALL(SPACE, names)
    strategy.tell(candidates)
    new = [loss(p.genome) for p in strategy.ask(8, np.random.default_rng(0))]
    assert min(new) < np.quantile([c.scores["loss"] for c in candidates], 0.1)


def test_a_budget_on_a_score_that_must_be_evaluated_is_learned():
    """Half of the space misses it: the first objective improves, but not into what is not allowed."""
    candidates = told(scores=lambda g: {"loss": loss(g)}, violation=lambda g: max(0.0, sum(g) / 15 - 1))
    strategy = SMALL(SPACE, ["loss"])
    strategy.tell(candidates)
    new = strategy.ask(20, np.random.default_rng(0))
    assert np.mean([sum(p.genome) <= 15 for p in new]) > 0.5
    assert min(loss(p.genome) for p in new) < min(c.scores["loss"] for c in candidates if c.feasible)


def test_nothing_feasible_yet_leads_to_less_violation():
    candidates = told(scores=lambda g: {"loss": loss(g)}, violation=lambda g: (1 + sum(g)) / 5)
    strategy = SMALL(SPACE, ["loss"])
    strategy.tell(candidates)
    new = strategy.ask(10, np.random.default_rng(0))
    assert np.mean([sum(p.genome) for p in new]) < min(sum(c.genome) for c in candidates)


def test_only_some_are_fitted_to():
    strategy = SMALL(SPACE, ["loss", "size"], fitted=20)
    candidates = told()
    strategy.tell(candidates)
    fitted = strategy._to_fit()
    assert len({c.id for c in fitted}) == 20 and fitted[-10:] == candidates[-10:]
    assert len(strategy.ask(5, np.random.default_rng(0))) == 5
