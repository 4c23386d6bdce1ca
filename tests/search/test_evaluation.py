"""A candidate's cheap evaluation gives the very numbers that its shipped weights give."""

import numpy as np
import pytest
import torch

from search.evaluation import Evaluator, FrozenElasticLinear, frozen
from search.objectives.loss import Loss
from search.objectives.size import Size
from supernet.losses import evaluate
from supernet.subnet import extract

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rows():
    return torch.randint(50, (5, 17), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def genomes(tiny_supernet):
    space, rng = tiny_supernet.space, np.random.default_rng(0)
    drawn = [space.sample(rng) for _ in range(8)] + [space.sample_spread(rng) for _ in range(8)]
    return [space.largest, space.smallest, space.cheapest, *drawn]


def test_frozen_weights_give_exactly_the_shipped_logits(tiny_supernet, genomes, rows):
    rounded_once = frozen(tiny_supernet, CPU)
    with torch.inference_mode():
        for genome in genomes:
            wanted = extract(tiny_supernet, genome).freeze_formats()(rows)
            assert torch.equal(extract(rounded_once, genome)(rows), wanted)


def test_the_score_is_exactly_the_shipped_loss(tiny_supernet, genomes, rows):
    evaluator = Evaluator(tiny_supernet, rows, 2)
    for genome in genomes:
        evaluation = evaluator.evaluation(genome)
        shipped = extract(tiny_supernet, genome).freeze_formats()
        assert evaluation.quality == evaluate(shipped, rows, 2)
        assert Loss().score(evaluation) == evaluation.quality[0]


def test_size_is_the_supernets(tiny_supernet, genomes, rows):
    evaluator = Evaluator(tiny_supernet, rows, 2)
    for genome in genomes:
        size = Size().score(evaluator.evaluation(genome))
        assert size == tiny_supernet.n_bytes(tiny_supernet.space.decode(genome)) / 1e6


def test_scores_repeat_in_any_order(tiny_supernet, genomes, rows):
    first, second = (Evaluator(tiny_supernet, rows, 2) for _ in range(2))
    forward = [first.evaluation(genome).quality for genome in genomes[:6]]
    backward = [second.evaluation(genome).quality for genome in reversed(genomes[:6])]
    assert forward == backward[::-1]


def test_a_cheap_score_runs_no_network(tiny_supernet, rows, monkeypatch):
    monkeypatch.setattr("search.evaluation.extract", None)
    evaluation = Evaluator(tiny_supernet, rows, 2).evaluation(tiny_supernet.space.largest)
    assert Size.cheap and not Loss.cheap
    assert Size().score(evaluation) > 0


def test_each_thing_is_computed_once(tiny_supernet, rows, monkeypatch):
    calls = []

    def counted(*args):
        calls.append(args)
        return extract(*args)

    monkeypatch.setattr("search.evaluation.extract", counted)
    evaluation = Evaluator(tiny_supernet, rows, 2).evaluation(tiny_supernet.space.largest)
    assert Loss().score(evaluation) == Loss().score(evaluation)
    assert len(calls) == 1


def test_freezing_leaves_the_supernet_as_it_was(supernet_of, rows):
    supernet = supernet_of()
    architecture = supernet.space.decode(supernet.space.largest)
    before = supernet(rows, architecture)
    result = frozen(supernet, CPU)
    assert torch.equal(supernet(rows, architecture), before)
    assert all(parameter.requires_grad for parameter in supernet.parameters())
    assert not any(isinstance(module, FrozenElasticLinear) for module in supernet.modules())
    n_frozen = sum(isinstance(module, FrozenElasticLinear) for module in result.modules())
    assert n_frozen == 1 + 3 * (4 + 3)


def test_a_candidate_only_views_the_rounded_weights(tiny_supernet):
    rounded_once = frozen(tiny_supernet, CPU)
    with torch.inference_mode():
        subnet = extract(rounded_once, tiny_supernet.space.smallest)
    name = tiny_supernet.space.decode(tiny_supernet.space.smallest)["embedding.format"]
    shared = rounded_once.embedding.rounded[name].untyped_storage().data_ptr()
    assert subnet.embedding.weight.untyped_storage().data_ptr() == shared
