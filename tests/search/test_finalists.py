import pytest
import torch

from search.candidate import Candidate, Lineage
from search.finalists import Judge, best_within, near_budget, spread
from supernet.losses import evaluate
from supernet.subnet import extract

OBJECTIVES = ("loss", "size_mb")
BUDGET = {"size_mb": 10.0}


def front(*points):
    return [
        Candidate(i, (i,), dict(zip(OBJECTIVES, point, strict=True)), 0.0, Lineage(0, "test"))
        for i, point in enumerate(points)
    ]


LINE = front(*((float(i), 10.0 - i) for i in range(11)))


def ids(candidates):
    return [c.id for c in candidates]


def test_the_spread_takes_both_ends_then_the_middle():
    assert ids(spread(LINE, OBJECTIVES, 1)) == [0]
    assert ids(spread(LINE, OBJECTIVES, 2)) == [0, 10]
    assert ids(spread(LINE, OBJECTIVES, 3)) == [0, 5, 10]


def test_units_do_not_matter():
    uneven = [(float(i), (10.0 - i) ** 1.7) for i in range(11)]
    plain, scaled = front(*uneven), front(*((loss * 1e6 + 3, size * 1e-6) for loss, size in uneven))
    assert ids(spread(scaled, OBJECTIVES, 4)) == ids(spread(plain, OBJECTIVES, 4))


def test_a_knot_is_not_taken_twice():
    knotted = front((0.0, 10.0), (0.01, 9.99), (0.02, 9.98), (5.0, 5.0), (10.0, 0.0))
    assert ids(spread(knotted, OBJECTIVES, 3)) == [0, 3, 4]


@pytest.mark.parametrize("n", [5, 6, 100])
def test_a_small_front_is_taken_whole(n):
    assert spread(LINE[:5], OBJECTIVES, n) == LINE[:5]
    assert near_budget(LINE[:5], BUDGET, n, 0.5) == LINE[:5]
    assert spread([], OBJECTIVES, n) == []


def test_no_candidate_is_chosen_twice():
    for n in range(1, 11):
        chosen = ids(spread(LINE, OBJECTIVES, n))
        assert len(set(chosen)) == n == len(chosen)


def test_each_size_gets_the_best_that_is_no_larger():
    def loss(candidate):
        return candidate.scores["loss"]

    assert ids(best_within(LINE, [0.0, 4.5, 10.0], loss)) == [10, 6, 0]
    assert ids(best_within(LINE, [4.0, 4.9, 3.0], loss)) == [6, 7]  # who is best for two, once
    assert ids(best_within(front((1.0, 3.0), (1.0, 2.0)), [5.0], loss)) == [1]  # of equals the smallest
    assert best_within(LINE[:5], [5.5], loss) == []


def test_equal_scores_are_different_candidates():
    twins = front(*[(1.0, 1.0)] * 4)
    assert len(set(ids(spread(twins, OBJECTIVES, 3)))) == 3


def test_finalists_make_use_of_the_budget():
    assert ids(near_budget(LINE, BUDGET, 3, 0.5)) == [0, 1, 2, 3, 4, 5]
    assert near_budget(LINE, BUDGET, 3, 0.0) == LINE


def test_where_too_few_are_near_the_nearest_are_taken():
    uneven = front((0.0, 10.0), (1.0, 3.0), (2.0, 2.0), (3.0, 1.0))
    assert ids(near_budget(uneven, BUDGET, 2, 0.9)) == [0, 1]


def test_one_bound_used_up_is_enough():
    assert ids(near_budget(LINE, {"size_mb": 10.0, "loss": 10.0}, 1, 0.95)) == [0, 10]


def test_without_a_budget_all_are_near():
    assert near_budget(LINE, {}, 2, 0.9) == LINE


def test_the_judge_reads_both_splits(tiny_supernet):
    generator = torch.Generator().manual_seed(0)
    valid, test = (torch.randint(50, (3, 9), generator=generator) for _ in range(2))
    decoder = extract(tiny_supernet, tiny_supernet.space.largest).freeze_formats()
    slices = torch.tensor([[2] * 8, [0] * 8, [2] * 4 + [1] * 4])
    scores = Judge(valid, test, 2, slices, ["json", "re", "os"]).scores(decoder)
    assert (scores["valid_loss"], scores["valid_accuracy"]) == evaluate(decoder, valid, 2)
    assert (scores["test_loss"], scores["test_accuracy"]) == evaluate(decoder, test, 2)
    logits = decoder(test[:, :-1]).detach()
    losses = torch.nn.functional.cross_entropy(logits.mT, test[:, 1:], reduction="none")
    assert scores["late_loss"] == pytest.approx(losses[:, 2:].mean().item())
    large = {"json": losses[slices == 0].mean().item(), "os": losses[slices == 2].mean().item()}
    assert scores["slice_losses"] == pytest.approx(large)
