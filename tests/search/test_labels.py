"""Names beside points: readable whatever the points' places are."""

from itertools import combinations

import numpy as np
import pytest

from search.report.labels import CHARACTER, LINE, Canvas, places

FONT, SIZE = 11, (1000, 300)
NAMES = ["smallest", "Q4_0", "Q5_0", "llama.cpp Q2_K", "llama.cpp Q3_K_M", "llama.cpp Q4_K_M", "31", "largest F16"]


def boxes(canvas, points, names, found):
    """Return what each name covers, in px."""
    at = [(x * FONT, y * FONT) for x, y in canvas.scaled(points)]
    for (x, y), name, place in zip(at, names, found, strict=True):
        half = CHARACTER * len(name) * FONT / 2
        yield x + place.x - half, y + place.y - LINE * FONT / 2, x + place.x + half, y + place.y + LINE * FONT / 2


def overlaps(a, b):
    return min(a[2], b[2]) - max(a[0], b[0]) > 1e-6 and min(a[3], b[3]) - max(a[1], b[1]) > 1e-6


@pytest.mark.parametrize("seed", range(10))
def test_names_cover_neither_each_other_nor_points(seed):
    rng = np.random.default_rng(seed)
    knot = rng.uniform((0.15, 1.8), (0.22, 2.2), (6, 2))  # six nets of nearly one size and loss
    points = [(0.09, 4.8), *map(tuple, knot), (0.56, 1.8)]
    canvas = Canvas(points, SIZE, FONT)
    covered = list(boxes(canvas, points, NAMES, found := places(canvas, points, NAMES)))
    assert not any(overlaps(a, b) for a, b in combinations(covered, 2))
    for x, y in canvas.scaled(points):
        assert not any(overlaps(box, (x * FONT - 2, y * FONT - 2, x * FONT + 2, y * FONT + 2)) for box in covered)
    assert places(canvas, points, NAMES) == found


def test_a_name_alone_stands_above_its_point_or_within_the_picture():
    (place,) = places(Canvas([(0, 0), (2, 2)], SIZE, FONT), [(1, 1)], ["alone"])
    assert not place.apart
    canvas = Canvas([(0.0, 0.0), (1.0, 1.0)], SIZE, FONT)
    ((left, _, right, _),) = boxes(canvas, [(1.0, 0.5)], ["at the edge"], places(canvas, [(1.0, 0.5)], ["at the edge"]))
    assert left < right < SIZE[0] + 2 * FONT


def test_points_in_one_place_and_none_at_all():
    same = [(1.0, 1.0)] * 3
    canvas = Canvas(same, SIZE, FONT)
    assert len(set(places(canvas, same, ["a", "b", "c"]))) == 3
    long = ["a name that is long"] * 6  # there is room for four beside a point
    found = places(Canvas([*same * 2, (0.0, 0.0), (2.0, 2.0)], SIZE, FONT), same * 2, long)
    assert len(set(found)) == 6 and any(place.apart for place in found) and not found[0].apart
    assert places(Canvas([], SIZE, FONT), [], []) == []
