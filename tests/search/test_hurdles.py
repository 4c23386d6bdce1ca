"""Who passes a hurdle, and that a batch half known from a journal goes on as it began."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.hurdles import Hurdles
from supernet.errors import UserError

EARLIER = [{"size_mb": 2.0, "divergence_1": 1.0, "divergence_2": 2.0}, {"size_mb": 3.0, "divergence_1": 2.0}]
KNOWN, OBJECTIVES = {"size_mb", "decode_ms"}, ["loss", "size_mb"]


def hurdles(*levels, eval_sequences=64):
    return Hurdles({"levels": [{"sequences": s, "keep": k} for s, k in levels]}, eval_sequences)


def over(bound):
    return lambda scores: max(0.0, scores["size_mb"] / bound - 1)


def batch(*pairs):
    return [{"divergence_1": divergence, "size_mb": size} for divergence, size in pairs]


def survivors(keep, scores, bound=100.0, earlier=(), **kwargs):
    return hurdles((2, keep)).survivors(0, scores, earlier, KNOWN, OBJECTIVES, over(bound), **kwargs)


def test_the_dominated_are_stopped():
    assert survivors(0.5, batch((3, 1), (4, 2), (1, 3), (2, 4))) == [0, 2]


def test_feasible_ones_come_first():
    assert survivors(0.5, batch((1, 9), (5, 4), (2, 8), (6, 5)), bound=5) == [1, 3]


def test_of_one_rank_the_closest_to_the_largest_are_kept():
    assert survivors(0.5, batch((4, 1), (3, 2), (2.9, 2.1), (1, 4))) == [2, 3]


def test_those_of_earlier_batches_compare_too():
    earlier = batch((1, 1), (1, 1.5), (9, 9), (8, 8))
    assert survivors(0.5, batch((2, 2), (0.5, 3), (3, 4), (4, 5)), earlier=earlier) == [0, 1]
    assert survivors(0.25, batch((2, 2), (0.5, 3), (3, 4), (4, 5)), earlier=earlier) == [1]
    assert survivors(0.5, batch((2, 2), (0.5, 3), (3, 4), (4, 5)), earlier=[{"size_mb": 1.0}]) == [0, 1]


def test_the_best_of_a_batch_always_passes():
    assert survivors(0.1, batch((5, 5), (4, 4)), earlier=batch(*((i / 100, 1) for i in range(50)))) == [1]


def test_a_floor_makes_small_nets_equal():
    scores = batch((4, 1), (3, 2), (2, 3))
    assert survivors(1 / 3, scores, floors={"size_mb": 3}) == [2]


def test_a_budget_on_what_is_not_minimized_counts():
    scores = [
        {"divergence_1": 1.0, "size_mb": 1.0, "decode_ms": 9.0},
        {"divergence_1": 2.0, "size_mb": 2.0, "decode_ms": 1.0},
    ]
    chosen = hurdles((2, 0.5)).survivors(0, scores, [], KNOWN, OBJECTIVES, lambda s: max(0.0, s["decode_ms"] - 5))
    assert chosen == [1]


def test_what_a_journal_knows_beside_makes_no_difference():
    scores = batch((3, 1), (4, 2), (1, 3), (2, 4))
    more = [{**s, "loss": 9.0 - i, "divergence_2": -i} for i, s in enumerate(scores)]
    assert survivors(0.5, more) == survivors(0.5, scores)


@pytest.mark.parametrize(
    ("keep", "n", "kept"), [(0.15, 20, 3), (0.25, 20, 5), (0.2, 3, 1), (1, 7, 7), (0.01, 5, 1), (1 / 3, 9, 3)]
)
def test_shares_are_rounded_up(keep, n, kept):
    assert len(survivors(keep, batch(*((i, -i) for i in range(n))))) == kept


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=12),
    st.integers(0, 12),
    st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_a_batch_that_was_interrupted_ends_the_same(pairs, n_known, failing):
    levels = hurdles((2, 0.7), (8, 0.5))

    def diverge(positions, level):
        asked.append((positions, level))
        return ["failed: gone" if failing[i] and level else float(pairs[i][level]) for i in positions]

    def run(scores, failed):
        return levels.run(scores, EARLIER, diverge, KNOWN, OBJECTIVES, over(3), failed=failed)

    asked = []
    whole = [{"size_mb": float(size)} for _, size in pairs]
    stopped = run(whole, {})
    n_known = min(n_known, len(pairs))
    again = [dict(s) for s in whole[:n_known]] + [{"size_mb": float(size)} for _, size in pairs[n_known:]]
    asked.clear()
    assert run(again, {i: s for i, s in stopped.items() if i < n_known and s.startswith("failed")}) == stopped
    assert again == whole
    assert all(i >= n_known for positions, _ in asked for i in positions)
    assert {s for s in stopped.values()} <= {"hurdle 1", "hurdle 2", "failed: gone"}


def test_a_failure_at_the_end_leaves_the_hurdles_as_they_were():
    """It was scored in full and failed then: those it had beaten stay beaten."""
    scores = batch((1, 1), (2, 2))
    assert hurdles((2, 0.5)).run(scores, [], lambda *_: [], KNOWN, OBJECTIVES, over(9), failed={0: "failed: x"}) == {
        0: "failed: x",
        1: "hurdle 1",
    }


def test_without_levels_all_go_on():
    none = Hurdles({"levels": []}, 64)
    assert len(none) == 0 and none.run(batch((1, 1)), [], lambda *_: [], KNOWN, OBJECTIVES, over(1)) == {}


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([{"sequences": 0, "keep": 0.5}], r"levels\[0\]\.sequences .* got 0"),
        ([{"sequences": 64, "keep": 0.5}], "below eval_sequences=64"),
        ([{"sequences": 8, "keep": 0.5}, {"sequences": 8, "keep": 0.5}], r"levels\[1\]\.sequences must ascend"),
        ([{"sequences": 2.5, "keep": 0.5}], "got 2.5"),
        ([{"sequences": 2, "keep": 0}], r"levels\[0\]\.keep must be above 0 and at most 1, got 0"),
        ([{"sequences": 2, "keep": 1.5}], "got 1.5"),
        ([{"sequences": 2, "keep": "half"}], "got 'half'"),
        ([{"sequences": 2}], r"levels\[0\] must have sequences and keep"),
        ([{"sequences": 2, "keep": 1, "rows": 3}], "must have sequences and keep"),
        ([3], "must have sequences and keep"),
    ],
)
def test_settings_that_cannot_be_are_refused(levels, message):
    with pytest.raises(UserError, match=message):
        Hurdles({"levels": levels}, 64)
